"""The badges: right for any fork, written once, and refused where there is nothing to link to."""

import shutil
import subprocess

import nbformat
import pytest

from tools import badges
from workbench.core import WorkbenchError
from workbench.paths import ROOT


@pytest.fixture
def clone(tmp_path):
    """A repository with our README and two of our notebooks; ``clone(address)`` sets its origin."""
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "notebooks/00_tour.ipynb", "notebooks/10_grpo.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def from_origin(address):
        words = ["git", "-C", str(tmp_path), "remote", "add", "origin", address]
        subprocess.run(words, check=True)
        return tmp_path

    return from_origin


def links(root):
    return [nbformat.read(f, 4).cells[0].source.split("\n")[-1] for f in root.glob("notebooks/*")]


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/someone/a.fork-2",
        "https://github.com/someone/a.fork-2.git",
        "https://token@github.com/someone/a.fork-2/",
        "git@github.com:someone/a.fork-2.git",
        "ssh://git@github.com:22/someone/a.fork-2.git",
    ],
)
def test_every_way_to_write_an_address_gives_the_forks_own_links(clone, address):
    root = clone(address)
    assert len(badges.write(root)) == 3
    place = "(https://colab.research.google.com/github/someone/a.fork-2/blob/main/notebooks/"
    assert all(place in link and link.endswith(".ipynb)") for link in links(root))
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"[00]{place}00_tour.ipynb)" in readme and f"[10]{place}10_grpo.ipynb)" in readme
    assert badges.END in readme and "token" not in readme.partition(badges.BEGIN)[2][:300]


def test_a_second_time_nothing_changes_and_a_fork_of_the_fork_gets_its_own(clone):
    root = clone("https://github.com/someone/fork.git")
    before = {file: nbformat.read(file, 4) for file in root.glob("notebooks/*")}
    badges.write(root)
    assert badges.write(root) == []
    words = ["git", "-C", str(root), "remote", "set-url", "origin", "git@github.com:other/name.git"]
    subprocess.run(words, check=True)
    assert len(badges.write(root)) == 3
    for file, was in before.items():
        now = nbformat.read(file, 4)
        assert now.cells[0].source.startswith(was.cells[0].source)
        assert now.cells[0].source.count("![") == 1 and "other/name" in now.cells[0].source
        assert now.cells[1:] == was.cells[1:]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "someone/fork" not in readme and readme.count(badges.BADGE) == 1


def test_the_branch_is_the_one_that_github_shows_first(clone):
    root = clone("https://github.com/someone/fork.git")
    words = ("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk/new")
    subprocess.run(["git", "-C", str(root), *words], check=True)
    badges.write(root)
    assert all("/blob/trunk/new/notebooks/" in link for link in links(root))


@pytest.mark.parametrize(
    "address",
    ["https://me:secret@gitlab.com/a/b.git", "https://notgithub.com/a/b", "/srv/workbench", None],
)
def test_elsewhere_than_on_github_it_is_refused_and_nothing_is_written(clone, address, tmp_path):
    root = clone(address) if address else tmp_path
    texts = {file: file.read_bytes() for file in root.glob("notebooks/*")}
    with pytest.raises(WorkbenchError, match=r"no repository on GitHub.*OWNER/NAME") as caught:
        badges.write(root)
    assert "secret" not in str(caught.value)
    assert texts == {file: file.read_bytes() for file in root.glob("notebooks/*")}
