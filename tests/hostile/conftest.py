"""What was there before the hostile tests is there after them, and nothing else."""

from __future__ import annotations

import gc
import os
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench.tasks import gym, verify
from workbench.tasks.sandbox import outside

PATIENT = 60.0  # seconds for processes to end, on a machine that does much else


class Left(NamedTuple):
    """Of this process: its descendants, its open sockets and pipes, and names in shared memory."""

    processes: frozenset[str]
    lines: int
    shared: frozenset[str]

    @classmethod
    def now(cls) -> Left:
        shared = [name for name in os.listdir("/dev/shm") if belongs_here(name)]
        return cls(frozenset(descendants(os.getpid())), open_lines(), frozenset(shared))


def belongs_here(name: str) -> bool:
    return "workbench" in name or str(os.getpid()) in name


def descendants(pid: int) -> list[str]:
    """Their process ids and names."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                found.append(f"{child} {Path(f'/proc/{child}/comm').read_text().strip()}")
                found += descendants(int(child))
            except OSError:  # it has ended
                continue
    return found


def open_lines() -> int:
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            mode = os.fstat(int(number)).st_mode
        except OSError:  # the one that listed them
            continue
        count += stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
    return count


def close_all() -> None:
    """The servers that wait for more programs and answers."""
    for pool in (gym._scorers, verify._math):
        pool.close()
    zygote = outside._zygote
    if zygote._socket is not None:
        zygote._socket.close()
        zygote._process.wait(PATIENT)
    zygote.__init__()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory):
    if sys.platform != "linux":
        yield
        return
    folder = tmp_path_factory.mktemp("temporary")
    close_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))  # for the server that runs programs
        before = Left.now()
        yield
        close_all()
        deadline = time.monotonic() + PATIENT
        while Left.now() != before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert Left.now() == before
        # but torch's own: its caches, and its launcher's folders where that was killed
        assert [p for p in folder.iterdir() if not p.name.startswith("torch")] == []
