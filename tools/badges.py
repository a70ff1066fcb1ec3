"""Badges that open the notebooks on Colab, for the GitHub repository that ``origin`` of this clone
is: python -m tools.badges

A link on GitHub is relative within GitHub alone, so one to Colab has to name its repository. Run
here it names this one, in a fork the fork; the second time it writes what is there already.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat

from workbench.core import WorkbenchError
from workbench.paths import ROOT

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github"
BEGIN, END = "<!-- Colab: tools/badges.py -->", "<!-- end of Colab -->"
# a line of its own at the end of a notebook's first cell
IN_NOTEBOOK = re.compile(rf"\n*\[!\[[^]]*\]\({re.escape(BADGE)}\)\]\([^)]*\)\s*$")


def repository(root: Path) -> str:
    """OWNER/NAME of ``origin``. Raises WorkbenchError where that is not on GitHub."""
    address = _git(root, "remote", "get-url", "origin")
    found = re.search(
        r"(?:^|[/@.])github\.com(?::\d+)?[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", address
    )
    if not found:
        named = re.sub(r"//[^/@]*@", "//", address)  # without a password or token in it
        raise WorkbenchError(
            f"origin is {named or 'not set'}, which is no repository on GitHub: Colab opens "
            "notebooks from there alone (git remote set-url origin "
            "https://github.com/OWNER/NAME.git)"
        )
    return found[1]


def branch(root: Path) -> str:
    """The one that GitHub shows first, as far as this clone knows."""
    return _git(root, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")[7:] or "main"


def write(root: Path) -> list[Path]:
    """Badges into README.md and the notebooks. Returns the files that were changed."""
    place = f"{COLAB}/{repository(root)}/blob/{branch(root)}"
    notebooks = sorted(root.glob("notebooks/*.ipynb"))
    changed = [file for file in notebooks if _into_notebook(file, f"{place}/notebooks/{file.name}")]
    links = [f"[{file.stem[:2]}]({place}/notebooks/{file.name})" for file in notebooks]
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    line = f"![open in Colab]({BADGE}) {' '.join(links)}"
    fresh = f"{before}{BEGIN}\n{line}\n{END}{after}"
    if fresh != text:
        readme.write_text(fresh, encoding="utf-8")
        changed.append(readme)
    return changed


def _into_notebook(file: Path, address: str) -> bool:
    notebook = nbformat.read(file, 4)
    first = notebook.cells[0]
    source = IN_NOTEBOOK.sub("", first.source) + f"\n\n[![open in Colab]({BADGE})]({address})"
    if source == first.source:
        return False
    first.source = source
    nbformat.write(notebook, file)
    return True


def _git(root: Path, *words: str) -> str:
    """What it prints; nothing where it has nothing to say."""
    ran = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return ran.stdout.strip() if ran.returncode == 0 else ""


if __name__ == "__main__":
    try:
        for changed in write(ROOT):
            print(changed.relative_to(ROOT))
    except WorkbenchError as error:
        sys.exit(str(error))
