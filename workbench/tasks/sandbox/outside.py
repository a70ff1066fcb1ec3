"""Run untrusted Python programs: locked down, timed, and compared with nothing that they can see.

    run(program, calls, seconds=4.0, memory_mb=512)        -> Results, one process for all calls
    with Program(source) as p: p.call(Call("f", (1,)))     -> Result, call by call

A ``Call`` names a function and its arguments, or gives the whole program its standard input. A
``Result`` is the value or output, the error with its lines, or the time-out; who calls compares it
with what is right. The program never sees that: it can lie about its own values, nothing else. The
first time-out of a program ends it.

A server process (``inside.py``) forks a fresh process for every program, which takes some ten
milliseconds, and locks it down (``layers.py``) before it reads the program; ``report()`` says with
what on this machine, and what that leaves open. Needs a system with ``fork``; everything holds on
Linux on x86-64 or ARM64 only.

Why not bubblewrap or nsjail, where they are installed: both are namespaces first, so both stop in a
plain container just where ours do (setuid root, bubblewrap's way round, is given up in its newer
releases), and neither has Landlock. bubblewrap takes its seccomp filter ready-made and sets no
limits, so the filter, the limits and the watch on threads would stay here; nsjail has those, but is
not in Debian 12 and wants a policy in a language of its own. And both execute a fresh interpreter
for each program, three times as long as the fork here.

What it costs, on two cores with much else to do: 0.3 ms a further call of a program, 41 ms a fresh
program (tests/hostile holds 1 and 50).
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
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core import WorkbenchError, refuse_if
from workbench.tasks.sandbox.inside import REPLY, oversized, pack, unpack
from workbench.tasks.sandbox.layers import FILE

FOLDER = Path(__file__).parent
NO_EXECUTE = "WORKBENCH_NO_EXECUTE"  # of the environment: 1 switches the sandbox off
START = 120.0  # seconds that a process may take to be ready, on a machine with much else to do

# What a program could try, and the layers that prevent it: one is enough.
GUARDS = {
    "use the network": ("namespaces", "seccomp"),
    "reach other processes' sockets in the file system": ("seccomp",),
    "start processes": ("seccomp",),
    "leave processes behind": ("namespaces", "seccomp"),
    "signal other processes": ("namespaces", "seccomp", "scopes"),
    "trace or limit other processes": ("namespaces", "seccomp"),
    "read the memory or environment of other processes": ("namespaces", "landlock"),
    "write outside its temporary folder": ("landlock", "seccomp"),
    "change owners, rights or times of files": ("seccomp",),
    "read files other than Python's own": ("landlock",),
    "fill the disk": ("tmpfs", "seccomp without landlock"),
    "use up memory or processor time": ("limits",),
}

# The zygote's interpreter has no installed packages: of this one, it gets two modules without what
# the packages around them import.
START_ZYGOTE = """
import sys, types
sys.path.remove("")
for name in ("workbench", "workbench.tasks", "workbench.tasks.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{folder!r}]
from workbench.tasks.sandbox.inside import zygote
zygote()
"""

TYPE, MESSAGE, NAME = 200, 2000, 200  # most characters of an error's type and message, of a name


class Call(NamedTuple):
    """One execution: ``function`` of the program on ``args`` (plain values), or, with function "",
    the whole program.

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
    """What one call gave: a ``value`` and ``stdout``, or an ``error``, or it ``timed_out``.

    The value of a whole program is None. Texts can be written anywhere; those within a value are as
    the program has them, to be compared and shown by ``repr``.
    """

    value: Any = None
    stdout: str = ""
    error: Fault | None = None
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.error is None and not self.timed_out


def run(
    program: str,
    calls: Sequence[Call],
    *,
    seconds: float = 4.0,
    memory_mb: int = 512,
    prelude: str = "",
) -> list[Result]:
    """Every call of one program, in one process; after a death the next call gets a fresh one,
    after a time-out there is none.

    ``seconds`` is wall clock for each call, ``memory_mb`` address space; ``prelude`` is run before
    the program and counts no lines.
    """
    with Program(
        program, seconds=seconds, memory_mb=memory_mb, prelude=prelude, calls=len(calls)
    ) as running:
        return list(map(running.call, calls))


def in_parallel(job: Callable, *arguments: Sequence) -> list:
    """``map``, as many at a time as there are processors."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    with ThreadPoolExecutor(len(allowed(0)) if allowed else os.cpu_count()) as pool:
        return list(pool.map(job, *arguments))


def check_execution(what: str) -> None:
    """Raises WorkbenchError where running programs is switched off."""
    refuse_if(
        os.environ.get(NO_EXECUTE, "0") not in ("", "0"),
        f"{what} runs programs that a model wrote, which --no-execute ({NO_EXECUTE}) forbids",
    )


def report() -> str:
    """What holds programs on this machine and what nothing prevents, in a line or two."""
    try:
        with Program("") as program:
            layers = program.start()
    except WorkbenchError as error:
        return f"[ no ] running programs: {error}"
    held = f"running programs: held by {', '.join(layers)}"
    missing = _unprevented(layers)
    if not missing:
        return f"[ ok ] {held}"
    return f"[ no ] {held}\n       nothing here keeps a program from these: {'; '.join(missing)}"


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
        self._over = False  # after its first time-out: it runs no more
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
        missing = _unprevented(layers)
        if missing:
            _warn("; ".join(missing))
        return layers

    def call(self, call: Call, answer: Callable[[tuple], Result] | None = None) -> Result:
        """One call; after a time-out, none any more: each has timed out at once.

        With ``answer`` the function gets one more argument, a function whose calls are answered
        here. The first answer that is not ok is the result.
        """
        if len(call.stdin) * 4 > FILE:
            raise ValueError(f"the standard input has more than {FILE >> 22} million characters")
        message = {
            "function": call.function,
            "args": pack(tuple(call.args)),
            "stdin": call.stdin,
            "ask": answer is not None,
        }
        if self._over:
            return Result(timed_out=True)
        if self._channel is None:
            self.start()
        try:
            return self._converse(message, answer, time.monotonic() + self.seconds)
        except TimeoutError:
            self.close()
            self._over = True
            return Result(timed_out=True)
        except (OSError, EOFError):
            ended = f"the program's process ended{self.close()}"
            return Result(error=Fault("ProcessDied", ended))
        # it wrote something else into the channel
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ):
            self.close()
            nonsense = "the program's process sent something that is no result"
            return Result(error=Fault("BadReply", nonsense))

    def _converse(
        self, message: dict, answer: Callable[[tuple], Result] | None, deadline: float
    ) -> Result:
        """Ask, answer what is asked back, until there is a result."""
        while True:
            self._send(message, deadline)
            reply = self._receive(deadline)
            if "ask" not in reply:
                break
            answered = answer(unpack(reply["ask"]))
            if not answered.ok:
                self.close()
                return answered
            message = {"answer": pack(answered.value)}
        if "last" in reply:  # it tried something forbidden, and is no more
            self.close()
        return _result(reply)

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
        parts = [self._rest]  # joined once: a reply may come in many small ones
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
        if oversized(line):
            raise ValueError("the reply is too large")
        return json.loads(line)


class _Zygote:
    """The server process that forks programs; started when first needed.

    Ends with the process that started it.
    """

    def __init__(self):
        self._lock, self._socket = threading.Lock(), None

    def fork(self) -> tuple[socket.socket, socket.socket]:
        """A new program's (leash, channel)."""
        check_execution("the sandbox")
        refuse_if(
            not hasattr(os, "fork"), "the sandbox needs Linux or macOS: this system cannot fork"
        )
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
        env = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
        if "TMPDIR" in os.environ:
            env["TMPDIR"] = os.environ["TMPDIR"]
        source = START_ZYGOTE.format(folder=str(FOLDER))
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


def _clean(text: str, longest: int = REPLY) -> str:
    """Text of a program's making as text that can be written anywhere: half a character (of a
    surrogate pair) becomes "?". Raises TypeError for what is no text.
    """
    if not isinstance(text, str):
        raise TypeError("not text")
    return text[:longest].encode("utf-8", "replace").decode()


def _result(reply: dict) -> Result:
    """The one way for what a program says, and cleaned on it.

    Raises ValueError, TypeError, LookupError or ArithmeticError for a reply that is none.
    """
    error = None
    if "error" in reply:
        kind, message, trace = reply["error"]
        frames = tuple((int(line), _clean(name, NAME)) for line, name in trace[-3:])
        error = Fault(_clean(kind, TYPE), _clean(message, MESSAGE), frames)
    stdout = _clean(reply.get("stdout", ""))
    return Result(unpack(reply.get("value")), stdout, error)


def _unprevented(layers: Sequence[str]) -> list[str]:
    """What nothing in the system prevents here; Python's own audit events may still notice it."""
    held = set(layers)
    if "seccomp" in held and "landlock" not in held:
        held.add("seccomp without landlock")
    return [against for against, by in GUARDS.items() if held.isdisjoint(by)]


@cache
def _warn(missing: str) -> None:
    """Say once what nothing prevents here."""
    warnings.warn(
        f"the sandbox: nothing in this system keeps a program from these: {missing}",
        RuntimeWarning,
        stacklevel=4,
    )
