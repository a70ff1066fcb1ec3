"""Run untrusted Python programs: locked down, timed, and compared with nothing that they can see.

    run(program, calls, seconds=4.0, memory_mb=512) -> Outcome            one program, all its calls
        in one process
    run_many(programs, calls, seconds=4.0, memory_mb=512) -> [Outcome]    many programs, as many at
        a time as there are processors
    Program(source, seconds=4.0, memory_mb=512)                           a call at a time: with
        Program(source) as p: p.call(Call("f", (1,)))

A ``Call`` names a function and its arguments, or gives the whole program its standard input. A
``Result`` is the value or output, the error with its lines, or the time-out; who calls compares it
with what is right. The program never sees that: it can lie about its own values, nothing else.

A server process (``inside.py``) forks a fresh process for every program, which takes a few
milliseconds, and locks it down before it reads the program; ``protections()`` says with what on
this machine. Needs a system with ``fork``; everything holds on Linux on x86-64 or ARM64 only.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core import WorkbenchError
from workbench.tasks.sandbox.inside import FILE, REPLY, pack, unpack

INSIDE = Path(__file__).with_name("inside.py")
START = 120.0  # seconds that a process may take to be ready, on a machine with much else to do

# What a program could try, and the layers that prevent it: one is enough.
GUARDS = {
    "use the network": ("namespaces", "seccomp"),
    "start processes": ("seccomp",),
    "leave processes behind": ("namespaces", "seccomp"),
    "signal or trace other processes": ("namespaces", "seccomp"),
    "read the memory or environment of other processes": ("namespaces", "landlock"),
    "write outside its temporary folder": ("landlock", "seccomp"),
    "change owners, rights or times of files": ("seccomp",),
    "read files other than Python's own": ("landlock",),
    "fill the disk": ("tmpfs", "seccomp without landlock"),
    "use up memory or processor time": ("limits",),
}


class Call(NamedTuple):
    """One execution:

    ``function`` of the program on ``args`` (plain values), or, with function "", the whole program.
    Both may read ``stdin``.
    """

    function: str = ""
    args: tuple = ()
    stdin: str = ""


class Fault(NamedTuple):
    """Why a call gave no value.

    ``frames``: up to three of the program's own as (line, function), the innermost last.
    """

    type: str
    message: str
    frames: tuple[tuple[int, str], ...] = ()


class Result(NamedTuple):
    """What one call gave: a ``value`` (the whole program:

    None) and ``stdout``, unless there is an ``error`` or it ``timed_out``.
    """

    value: Any = None
    stdout: str = ""
    error: Fault | None = None
    timed_out: bool = False
    seconds: float = 0.0  # wall clock, as the caller saw it

    @property
    def ok(self) -> bool:
        return self.error is None and not self.timed_out


class Outcome(NamedTuple):
    """The results of one program's calls, in order."""

    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Did every call end by itself, without an error? (Not: is it right?)"""
        return all(result.ok for result in self.results)


class Protection(NamedTuple):
    against: str
    # none: nothing in the system prevents it here; Python's own audit events may still notice it
    by: tuple[str, ...]


def run(
    program: str,
    calls: Sequence[Call],
    *,
    seconds: float = 4.0,
    memory_mb: int = 512,
    prelude: str = "",
) -> Outcome:
    """Every call of one program, in one process; after a time-out or a death the next call gets a
    fresh one.

    ``seconds`` is wall clock for each call, ``memory_mb`` address space; ``prelude`` is run before
    the program and counts no lines.
    """
    with Program(
        program, seconds=seconds, memory_mb=memory_mb, prelude=prelude, calls=len(calls)
    ) as running:
        return Outcome(tuple(running.call(call) for call in calls))


def run_many(
    programs: Sequence[str],
    calls: Sequence[Sequence[Call]],
    *,
    seconds: float = 4.0,
    memory_mb: int = 512,
    prelude: str = "",
    workers: int | None = None,
) -> list[Outcome]:
    """``run`` for each program on its own calls, ``workers`` (default: one a processor) at a time.

    Outcomes in the order of the programs.
    """
    if len(programs) != len(calls):
        raise ValueError(f"{len(programs)} programs and {len(calls)} lists of calls")
    with ThreadPoolExecutor(workers or _processors()) as pool:
        return list(
            pool.map(
                lambda program, own: run(
                    program, own, seconds=seconds, memory_mb=memory_mb, prelude=prelude
                ),
                programs,
                calls,
            )
        )


def protections() -> tuple[Protection, ...]:
    """What a program is kept from on this machine, and by which layers; found out by locking one
    down.
    """
    with Program("") as program:
        return _protections(program.start())


class Program:
    """One program in its own process, started at the first call, and again at the first call after
    its death. Close it, or use ``with``.

    ``calls``: how many there will be, for the limit of processor time. ``without``: layers to leave
    out, to test the others.
    """

    def __init__(
        self,
        source: str,
        *,
        seconds: float = 4.0,
        memory_mb: int = 512,
        prelude: str = "",
        calls: int = 1,
        without: Sequence[str] = (),
    ):
        self.seconds = seconds
        self._job = {
            "program": source,
            "prelude": prelude,
            "memory": memory_mb << 20,
            "cpu": math.ceil(seconds * max(calls, 1)) + 1,
            "without": list(without),
        }
        self._leash: socket.socket | None = None
        self._channel: socket.socket | None = None
        self._rest = b""

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> list[str]:
        """Start the process; the layers that hold.

        Raises WorkbenchError when the machine cannot.
        """
        self._leash, self._channel, self._rest = *_zygote.fork(), b""
        deadline = time.monotonic() + START
        try:
            self._send(self._job, deadline)
            layers = self._receive(deadline)["layers"]
        except (OSError, EOFError) as error:
            raise WorkbenchError(
                f"the sandbox did not start{self.close() or f' ({error})'}"
            ) from error
        _warn(_protections(layers))
        return layers

    def call(self, call: Call, answer: Callable[[tuple], Result] | None = None) -> Result:
        """One call.

        With ``answer`` the function gets one more argument, a function whose calls are answered
        here.

        The first answer that is not ok is the result.
        """
        if len(call.stdin) * 4 > FILE:
            raise ValueError(f"the standard input has more than {FILE >> 22} million characters")
        if self._channel is None:
            self.start()
        message = {
            "function": call.function,
            "args": pack(tuple(call.args)),
            "stdin": call.stdin,
            "ask": answer is not None,
        }
        begun = time.monotonic()
        try:
            while True:
                self._send(message, begun + self.seconds)
                reply = self._receive(begun + self.seconds)
                if "ask" not in reply:
                    break
                answered = answer(unpack(reply["ask"]))
                if not answered.ok:
                    self.close()
                    return answered
                message = {"answer": pack(answered.value)}
            if "last" in reply:  # it tried something forbidden, and is no more
                self.close()
            return _result(reply, time.monotonic() - begun)
        except TimeoutError:
            self.close()
            return Result(timed_out=True, seconds=time.monotonic() - begun)
        except (OSError, EOFError):
            return Result(
                error=Fault("ProcessDied", f"the program's process ended{self.close()}"),
                seconds=time.monotonic() - begun,
            )
        # it wrote something else into the channel
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.close()
            return Result(
                error=Fault("BadReply", "the program's process sent something that is no result"),
                seconds=time.monotonic() - begun,
            )

    def close(self) -> str:
        """End the process and wait until it and its folder are gone; how it had ended, in words (""
        when nothing is known).
        """
        if self._channel is None:
            return ""
        with self._leash, self._channel:
            self._channel = None
            self._leash.settimeout(START)
            try:
                self._leash.shutdown(socket.SHUT_WR)
                status = int(self._leash.recv(100))
            except (OSError, ValueError):
                return ""
        return (
            f" (signal {-status}, {signal.Signals(-status).name})"
            if status < 0
            else f" (exit code {status})"
        )

    def _send(self, message: dict, deadline: float) -> None:
        self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, deadline: float) -> dict:
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            parts.append(self._channel.recv(1 << 20))
            size += len(parts[-1])
            if not parts[-1]:
                raise EOFError
            if size > REPLY + (1 << 20):
                raise ValueError("the reply is too long")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return json.loads(line)


class _Zygote:
    """The server process that forks programs; started when first needed.

    Ends with the process that started it.
    """

    def __init__(self):
        self._lock, self._socket = threading.Lock(), None

    def fork(self) -> tuple[socket.socket, socket.socket]:
        """A new program's (leash, channel)."""
        if not hasattr(os, "fork"):
            raise WorkbenchError("the sandbox needs Linux or macOS: this system cannot fork")
        with self._lock:
            for last in (False, True):
                # a warden may hold the dead server's socket open for a moment
                if self._socket is None or self._process.poll() is not None:
                    self._start()
                leash, leash_there = socket.socketpair()
                channel, channel_there = socket.socketpair()
                with leash_there, channel_there:
                    try:
                        socket.send_fds(
                            self._socket, [b"f"], [leash_there.fileno(), channel_there.fileno()]
                        )
                        return leash, channel
                    except OSError:  # it has died: once more with a new one
                        leash.close(), channel.close()
                        self._socket = None
                        if last:
                            raise

    def _start(self) -> None:
        # Not -I: that would ignore the hash seed, and with it grading would not repeat. Nothing
        # else is inherited either way.
        source = (
            f"import sys; sys.path.remove(''); exec(compile(open({str(INSIDE)!r}).read(), "
            "'inside.py', 'exec'))"
        )
        env = {
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",
            **{name: os.environ[name] for name in ("TMPDIR",) if name in os.environ},
        }
        self._socket, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", "-c", source],
                stdin=there,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        self._socket.settimeout(START)


_zygote = _Zygote()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_zygote.__init__)  # a forked process starts its own
_warned = False


def _result(reply: dict, seconds: float) -> Result:
    """Raises ValueError, TypeError or KeyError for a reply that is none."""
    stdout, error = reply.get("stdout", ""), None
    if "error" in reply:
        kind, message, frames = reply["error"]
        error = Fault(kind, message, tuple((int(line), name) for line, name in frames[-3:]))
    if not all(
        isinstance(text, str)
        for text in (
            stdout,
            *(error[:2] if error else ()),
            *(name for _, name in (error.frames if error else ())),
        )
    ):
        raise TypeError("not text")
    return Result(unpack(reply.get("value")), stdout, error, False, seconds)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _protections(layers: Sequence[str]) -> tuple[Protection, ...]:
    held = {
        *layers,
        *(
            ("seccomp without landlock",)
            if "seccomp" in layers and "landlock" not in layers
            else ()
        ),
    }
    return tuple(
        Protection(against, tuple(layer for layer in by if layer in held))
        for against, by in GUARDS.items()
    )


def _warn(found: tuple[Protection, ...]) -> None:
    """Say once what nothing prevents here."""
    global _warned
    missing = [protection.against for protection in found if not protection.by]
    if missing and not _warned:
        _warned = True
        warnings.warn(
            f"the sandbox: nothing in this system keeps a program from these: {'; '.join(missing)}",
            RuntimeWarning,
            stacklevel=4,
        )
