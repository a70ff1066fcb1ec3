"""The set-up files agree with one another, and the scripts that use them say so when something is
missing.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
REQUIRED = [
    "jupyterlab",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "unsloth",
    "matplotlib",
    "pandas",
    "ipywidgets",
    "pytest",
    "nbmake",
]
OPT_IN = {"tensorboard"}  # an extra that no environment file installs
GPU_ONLY = {"unsloth"}
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


def by_name(requirements):
    found: dict[str, list[Requirement]] = {}
    for requirement in requirements:
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def project_requirements():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [
        line for name in extras if name not in OPT_IN for line in extras[name]
    ]
    return by_name(map(Requirement, lines))


def conda_requirements(cuda=""):
    """The pip section as pip reads it: variables that are set are replaced first, the others stay
    as they are.
    """
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    lines = [line.replace("${WORKBENCH_CUDA}", cuda) if cuda else line for line in pip]
    return by_name(Requirement(line) for line in lines if not line.startswith("-"))


def constraints(name, python):
    """{package: version} that a constraints file gives a Linux user of this Python."""
    environment = LINUX | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "platform_machine": "x86_64",
    }
    pins = {}
    for line in (ROOT / name).read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                (pin,) = requirement.specifier
                assert pin.operator == "==" and requirement.name not in pins, line
                pins[canonicalize_name(requirement.name)] = Version(pin.version)
    return pins


def lower_bound(specifier):
    return max(Version(s.version) for s in specifier if s.operator in (">=", "=="))


def installed(requirements, **environment):
    return {
        r.name: r
        for group in requirements.values()
        for r in group
        if r.marker is None or r.marker.evaluate(LINUX | environment)
    }


def test_environment_and_pyproject_name_the_same_packages():
    assert set(conda_requirements()) == set(project_requirements())
    assert set(REQUIRED) <= set(conda_requirements())
    assert {"notebook", "gpu", "dev", "data", "models"} | OPT_IN == set(
        PROJECT["optional-dependencies"]
    )


def test_environment_and_pyproject_agree_on_python():
    (python,) = [
        Requirement(entry)
        for entry in CONDA["dependencies"]
        if isinstance(entry, str) and entry.startswith("python")
    ]
    assert (
        lower_bound(python.specifier)
        == lower_bound(SpecifierSet(PROJECT["requires-python"]))
        == Version("3.10")
    )


def test_environment_ranges_run_from_pyproject_lower_bound_to_the_pinned_version():
    pins, project = constraints("constraints.txt", "3.12"), project_requirements()
    ranged = {n: r for n, r in conda_requirements().items() if n not in GPU_ONLY | {"torch"}}
    assert len(ranged) > 3
    for name, requirements in ranged.items():
        (requirement,) = requirements
        bounds = {s.operator: Version(s.version) for s in requirement.specifier}
        assert bounds == {">=": lower_bound(project[name][0].specifier), "<=": pins[name]}, name


@pytest.mark.parametrize(
    "file, python",
    [("constraints.txt", p) for p in ("3.10", "3.11", "3.13")] + [("constraints-gpu.txt", "3.12")],
)
def test_constraints_pin_every_direct_dependency_to_an_allowed_version(file, python):
    pins = constraints(file, python)
    assert pins["torch"] == Version("2.13.0")
    for requirements in (project_requirements(), conda_requirements(cuda="linux")):
        for name, group in requirements.items():
            if name in GPU_ONLY and file == "constraints.txt":
                assert name not in pins  # it cannot be installed beside the other pins
            else:
                assert all(
                    pins[name] in r.specifier for r in group if "+" not in str(r.specifier)
                ), name


def test_environment_without_the_variable_installs_nothing_for_cuda():
    chosen = installed(conda_requirements())
    assert str(chosen["torch"].specifier) == "==2.13.0+cpu"
    assert set(REQUIRED) - set(chosen) == GPU_ONLY
    elsewhere = installed(conda_requirements(), sys_platform="darwin")  # no build called +cpu there
    assert "2.13.0" in elsewhere["torch"].specifier and "unsloth" not in elsewhere


def test_environment_with_the_variable_installs_the_cuda_build_and_unsloth():
    chosen = installed(conda_requirements(cuda="linux"))
    assert set(REQUIRED) <= set(chosen)
    assert "2.13.0" in chosen["torch"].specifier and "2.13.0+cpu" not in chosen["torch"].specifier


@pytest.mark.parametrize(
    "target, command",
    [
        ("demo", ".venv/bin/workbench tour --out tour.html"),
        ("test", "-m pytest"),
        ("test", "--nbmake"),
        ("test-slow", "-m slow"),
        ("lab", "jupyter lab"),
        ("organism", "-m data.organism.build.arithmetic"),
        ("bench", "benchmarks/vs_trl.py"),
        ("clean", "tour.html"),
        ("help", "Makefile"),
    ],
)
def test_make_targets(target, command):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"
    }
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and command in done.stdout, done.stderr


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_install_refuses_an_old_python_in_one_sentence_and_makes_nothing(tmp_path):
    old = program(
        tmp_path / "python", '[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n'
    )
    for python, found in ((old, "Python 3.8.10"), (tmp_path / "absent", "no such program")):
        command = ["bash", ROOT / "tools/install.sh", tmp_path / "venv"]
        done = subprocess.run(
            command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stdout == ""
        assert (
            re.fullmatch(r"workbench needs Python 3\.10 or newer.*\n", done.stderr)
            and found in done.stderr
        )
        assert not (tmp_path / "venv").exists()


PASSED = "echo '===== 12 passed, 1 skipped in 75.31s (0:01:15) ====='\n"


@pytest.mark.parametrize(
    "make, succeeds",
    [
        (PASSED + PASSED, True),
        (PASSED + PASSED + "exit 2\n", False),
        (PASSED, False),
        (PASSED + "echo '===== 3 skipped in 0.10s ====='\n", False),
        ("echo '===== no tests ran in 0.01s ====='\nexit 5\n", False),
    ],
)
def test_ci_fails_when_nothing_passed(tmp_path, make, succeeds):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    program(tmp_path / "bin/make", make)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci/run"], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    closing = done.stdout.split("--- pytest's closing lines\n")[1]
    assert closing.startswith("===== ") and closing.endswith(" =====\n")
