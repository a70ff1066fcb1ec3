"""Every program in programs.txt, with all layers and with each layer alone that is said to hold it.

What a program needs and this machine has not is skipped by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench.tasks.sandbox import layers, outside
from workbench.tasks.sandbox.outside import Call, Program, Result

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's"),
    pytest.mark.filterwarnings("ignore:the sandbox:RuntimeWarning"),
]

ALL = ("namespaces", "landlock", "seccomp", "limits", "audit")
COMES_WITH = {"scopes": "landlock", "tmpfs": "namespaces"}
PATIENT = 60.0  # seconds for what ends by itself, on a machine that does much else
SOON = 0.3  # for what does not

BEFORE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def syscall(name, *args):
    args = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
"""
AFTER = """
def swallow():
    try:
        return attempt()
    except OSError as error:
        return type(error).__name__
"""


class Hostile(NamedTuple):
    name: str
    held_by: tuple[str, ...]
    outcome: str
    source: str


def hostile_programs() -> list[Hostile]:
    text = Path(__file__).with_name("programs.txt").read_text()
    programs = []
    for block in text.split("\n=== ")[1:]:
        header, _, source = block.partition("\n")
        name, held_by, *outcome = (part.strip() for part in header.split("|"))
        outcome = outcome[0] if outcome else "refused"
        programs.append(Hostile(name, tuple(held_by.split()), outcome, source))
    return programs


PROGRAMS = hostile_programs()
SINGLE = [
    pytest.param(program, layer, id=f"{program.name}-{layer}")
    for program in PROGRAMS
    for layer in program.held_by
    if layer != "protocol"
]


def system_calls() -> dict[str, int]:
    machine, _ = layers.MACHINES[os.uname().machine]
    words = (layers.FORBIDDEN + layers.CHANGING).split()
    numbers = dict(zip(words[::3], map(int, words[1 + machine :: 3]), strict=True))
    more = {"clone": layers.CLONE, "clone3": layers.CLONE3, "fcntl": layers.ONLY[0][0]}
    return numbers | {name: pair[machine] for name, pair in more.items()}


@pytest.fixture(scope="module")
def here() -> set[str]:
    """The layers of this machine."""
    with Program("") as program:
        return set(program.start())


class World(NamedTuple):
    """What the programs try to reach, by the words that stand for it."""

    words: dict[str, str]
    bystander: subprocess.Popen
    folder: Path
    sockets: tuple[socket.socket, ...]

    def check(self) -> None:
        """Nothing has arrived, and all is as it was."""
        assert self.bystander.poll() is None
        assert [path.name for path in self.folder.iterdir()] == ["victim"]
        victim = self.folder / "victim"
        assert victim.read_text() == "untouched" and victim.stat().st_mode & 0o777 == 0o644
        assert victim.stat().st_mtime > 0 and not os.path.exists("/dev/shm/workbench-hostile")
        for listening in self.sockets:
            with pytest.raises(BlockingIOError):
                listening.accept() if listening.type == socket.SOCK_STREAM else listening.recv(9)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    victim = folder / "victim"
    victim.write_text("untouched")
    victim.chmod(0o644)
    path = str(tmp_path_factory.mktemp("sockets") / "socket")
    abstract = f"workbench-{os.getpid()}"
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    environment = {"PASSWORD": "swordfish"}
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = tcp.getsockname()[1]
        datagrams = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, path)]
        sockets = [tcp]
        for family, address in [*datagrams, (socket.AF_UNIX, "\0" + abstract)]:
            sockets.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
            sockets[-1].bind(address)
        for listening in sockets:
            listening.setblocking(False)
        bystander = stack.enter_context(
            subprocess.Popen(sleep, env=environment, start_new_session=True)
        )
        words = {"PORT": port, "BYSTANDER": bystander.pid, "FOLDER": folder}
        words |= {"SOCKET": path, "ABSTRACT": abstract}
        yield World(words, bystander, folder, tuple(sockets))
        bystander.kill()


def attempted(program: Hostile, world: World, without: tuple[str, ...]) -> Result:
    source = program.source
    for word, value in world.words.items():
        source = source.replace(word, str(value))
    prelude = f"NUMBERS = {system_calls()}{BEFORE}" if "audit" in without else ""
    seconds = SOON if program.outcome == "timed out" else PATIENT
    function = "swallow" if program.outcome in ("refused", "ok") else "attempt"
    with Program(source + AFTER, seconds=seconds, prelude=prelude, without=without) as running:
        return running.call(Call(function))


def judge(program: Hostile, result: Result, world: World) -> None:
    world.check()
    if program.outcome == "refused":
        assert result.value != "done" and not result.timed_out, result
    elif program.outcome == "ok":
        assert result.value == "done" and result.ok, result
    elif program.outcome == "timed out":
        assert result.timed_out and result.value is None
    elif program.outcome == "clean":
        assert len(json.dumps(result, ensure_ascii=False).encode()) < 4000
        assert result.error.message is not None and not result.ok
    else:
        assert result.error and result.error.type == program.outcome, result
        assert result.value is None


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_with_all_layers(program, world):
    if program.outcome == "OSError" and "tmpfs" in program.held_by:
        needs_layer("tmpfs", program)
    judge(program, attempted(program, world, ()), world)


@pytest.mark.slow
@pytest.mark.parametrize("program, layer", SINGLE)
def test_one_layer_is_enough(program, layer, world, here):
    if layer not in here:
        pytest.skip(f"this machine has no {layer}")
    without = set(ALL) - {COMES_WITH.get(layer, layer), "limits"}
    judge(program, attempted(program, world, tuple(without)), world)


@pytest.mark.parametrize(
    "program",
    [program for program in PROGRAMS if set(program.held_by) & {"seccomp", "landlock", "protocol"}],
    ids=lambda program: program.name,
)
def test_in_a_plain_container(program, world, here):
    """Without namespaces, and without Python's audit events to help."""
    missing = {"seccomp", "landlock"} - here
    if missing:
        pytest.skip(f"this machine has no {' or '.join(missing)}")
    judge(program, attempted(program, world, ("namespaces", "audit")), world)


def needs_layer(layer: str, program: Hostile) -> None:
    with Program("") as running:
        if layer not in running.start():
            pytest.skip(f"this machine has no {layer}, which holds {program.name!r}")


def test_there_are_enough():
    assert len(PROGRAMS) >= 80 and len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    named = {layer for program in PROGRAMS for layer in program.held_by}
    assert {layer for by in outside.GUARDS.values() for layer in by} - named == {
        "seccomp without landlock"
    }


@pytest.mark.parametrize(
    "name",
    [
        "a pair of sockets",
        "half the line shut",
        "fork",
        "an owner",
        "a signal of its choice",
        "outliving the one that watches",
        "an owner changed",
        "a file read",
        "a wide pipe",
    ],
)
def test_without_any_layer_it_would_work(name, world):
    """So that a layer is what stops it, and not a mistake in the attempt."""
    [program] = [program for program in PROGRAMS if program.name == name]
    result = attempted(program, world, ALL)
    assert result.value == "done" or (name == "half the line shut" and not result.ok)
    world.check()


def test_nothing_is_left(world):
    """No process, no descriptor, here or in the server."""
    server = outside._zygote._process.pid

    def counts() -> tuple[int, int, str]:
        here, there = (len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", server))
        return here, there, Path(f"/proc/{server}/task/{server}/children").read_text()

    before = (*counts()[:2], "")
    for program in PROGRAMS[::9]:
        attempted(program, world, ())
    deadline = time.monotonic() + PATIENT  # a warden tells that all is over before it ends itself
    while counts() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts() == before


@pytest.mark.slow
def test_what_a_call_costs():
    """Under 1 ms for a further call, under 50 for a fresh program: the fastest of many, since the
    machine may have much else to do.
    """
    source, warm, fresh = "def f(x):\n    return x + 1\n", [], []
    with Program(source, seconds=PATIENT, calls=400) as running:
        running.call(Call("f", (0,)))
        for number in range(400):
            begun = time.perf_counter()
            assert running.call(Call("f", (number,))).value == number + 1
            warm.append(time.perf_counter() - begun)
    for number in range(40):
        begun = time.perf_counter()
        with Program(source, seconds=PATIENT) as running:
            assert running.call(Call("f", (number,))).ok
        fresh.append(time.perf_counter() - begun)
    assert statistics.quantiles(warm, n=10)[0] < 1e-3 and min(fresh) < 50e-3
