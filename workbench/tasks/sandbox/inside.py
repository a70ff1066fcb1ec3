"""The inside of the sandbox.

``outside.py`` starts this module in an interpreter of its own, and imports only what it says about
values and replies.

    zygote   started once, runs no program
      |fork
    warden   a program's namespaces and folder, its end, and the end of whatever it left
      |fork
    program  locked down by ``layers.py``

``lock`` is called before a byte of the program is read. What each layer holds off is listed in
``outside.GUARDS``. The program shares its process with ``execute`` and can therefore answer
whatever it likes; it never sees what the answer should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from io import FileIO
from types import CodeType, ModuleType
from typing import NamedTuple

from workbench.tasks.sandbox import layers
from workbench.tasks.sandbox.layers import INSTALLED

NAME = "solution.py"  # the program's file name in messages and frames
REPLY = 8 << 20  # longest reply, in bytes of JSON; so also the most output that a call may have
# What a reply may hold: as Python objects, eight megabytes of "[],[],[]," are four hundred.
VALUES, CONTAINERS = 1 << 20, 1 << 18
WATCH = 0.02  # seconds between looks at the number of threads, where the system does not count
BURIAL = 10.0  # seconds for which what a program left behind is looked for
# file descriptors: the program's line to the parent, the files that are its standard input and
# output
CHANNEL, INPUT, OUTPUT = 3, 4, 5

# Loaded before any fork, so that a program gets them for nothing.
PRELOADED = """array bisect cmath collections copy dataclasses datetime decimal enum fractions
functools hashlib heapq io itertools json math operator queue random re statistics string textwrap
threading time typing"""


# --- values ---------------------------------------------------------------------------------------


def pack(value):
    """A value as JSON: lists, tuples, dicts, sets, text, numbers, truth values and None; of a
    subclass, only what its plain base holds.

    No method of the value's own class is called. Raises TypeError for anything else.
    """
    bases = (type(None), bool, int, float, str, list, tuple, dict, set, frozenset)
    base = next((base for base in bases if issubclass(type(value), base)), None)
    if base is None:
        raise TypeError(
            f"the value is a {type(value).__name__}; only plain Python values can be compared"
        )
    if base in (type(None), bool):
        return value
    if base is int and int.bit_length(value) > 14_000:
        raise TypeError("the value is a number of more than 4,200 digits")
    if base in (int, float, str):
        return {int: int.__index__, float: float.__float__, str: str.__str__}[base](value)
    if base is dict:
        return {"dict": [[pack(key), pack(item)] for key, item in dict.items(value)]}
    items = list(map(pack, base.__iter__(value)))
    return items if base is list else {base.__name__: items}


def unpack(packed):
    """The value again.

    Raises ValueError, TypeError or KeyError for what ``pack`` does not write, and for keys made to
    collide in a hash table.
    """
    if isinstance(packed, list):
        return list(map(unpack, packed))
    if not isinstance(packed, dict):
        return packed
    ((kind, items),) = packed.items()
    base = {"tuple": tuple, "dict": dict, "set": set, "frozenset": frozenset}[kind]
    members = list(map(unpack, items))
    if base is not tuple:
        keys = [key for key, _ in members] if base is dict else members
        if max(Counter(map(hash, keys)).values(), default=0) > 100:
            raise ValueError("too many keys with one hash")
    return base(members)


def oversized(reply: bytes) -> bool:
    """Is a reply longer, or would it be more objects, than is worth reading?"""
    if len(reply) > REPLY:
        return True
    if reply.count(b",") < VALUES and reply.count(b"[") + reply.count(b"{") < CONTAINERS:
        return False
    # within a text they are one object
    plain = reply.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * CONTAINERS:
        return True
    bare = re.sub(rb'"[^"]*"', b"", plain)
    return bare.count(b",") >= VALUES or bare.count(b"[") + bare.count(b"{") >= CONTAINERS


# --- locking up -----------------------------------------------------------------------------------

# Python's audit events: those that end a program, and those that do when they leave its folder or
# the roots.
EVENTS = """os.fork os.forkpty os.exec os.system os.posix_spawn os.spawn subprocess.Popen pty.spawn
os.kill os.killpg ctypes.dlopen ctypes.dlsym resource.prlimit fcntl.ioctl fcntl.flock
socket.__new__ socket.connect socket.bind socket.sendto socket.sendmsg socket.getaddrinfo
socket.gethostbyname os.mkdir os.rmdir os.rename os.link os.symlink os.chmod os.chown os.utime
os.setxattr os.removexattr shutil.rmtree shutil.move"""
PATH_EVENTS = "open os.listdir os.scandir os.remove os.truncate"
CHANGING_EVENTS = "os.remove os.truncate"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def audit(folder: str, roots: Sequence[str]) -> None:
    """Second line: what Python itself reports of a forbidden attempt ends the program there, with
    the line that did it as its error.
    """
    forbidden, paths, changing = (
        frozenset(events.split()) for events in (EVENTS, PATH_EVENTS, CHANGING_EVENTS)
    )
    standard = ("/dev/stdin", "/dev/stdout", "/dev/stderr")
    # the program can change the modules, not these
    commands, leave, frame_of, send = layers.FCNTL, os._exit, sys._getframe, _send
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def inside(event: str, path, flags: int) -> bool:
        real = realpath(fsdecode(path))
        if real.startswith((folder + "/", "/dev/null")) or real == folder:
            return True
        changes = event in changing or (event == "open" and flags & WRITING)
        library = any(f"{real}/".startswith(f"{root}/") for root in roots) and not any(
            name in real for name in INSTALLED
        )
        return not changes and (library or real == "/dev/urandom")

    def allowed(event: str, args: tuple) -> bool:
        if event == "fcntl.fcntl":
            return args[1] in commands
        if event not in paths:
            return event not in forbidden
        path = "." if args[0] is None else args[0]
        return isinstance(path, int) or path in standard or inside(event, path, args[-1])

    def hook(event: str, args: tuple) -> None:
        if allowed(event, args):
            return
        frames, frame = [], frame_of()
        while frame is not None and len(frames) < 3:
            if frame.f_code.co_filename == NAME:
                frames.insert(0, (frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
        what = f"{event} of {args[0]!r:.200}" if event in paths else event
        words = f"the sandbox does not allow {what}"
        send({"error": ["PermissionError", words, frames], "last": True})
        leave(1)

    sys.addaudithook(hook)


class Prepared(NamedTuple):
    """What the layers need and the zygote makes once."""

    roots: tuple[str, ...]  # the folders of Python's own modules
    temporary: str  # where each program's own folder is made
    paths: tuple[tuple[int, int], ...]
    filters: tuple[bytes, bytes]  # with landlock, and without


def prepare() -> Prepared:
    roots = tuple(os.path.realpath(path) for path in sys.path if os.path.isdir(path))
    temporary = os.path.realpath(tempfile.gettempdir())
    filters = layers.filter_code(read_only=False), layers.filter_code(read_only=True)
    return Prepared(roots, temporary, tuple(layers.readable(roots)), filters)


def lock(job: dict, folder: str, present: list[str], prepared: Prepared) -> list[str]:
    """Put every layer of this machine, less ``job["without"]``, on this process; those that hold,
    ``present`` among them.
    """
    without = job["without"]
    holding = list(present)
    if layers.libc is not None and "landlock" not in without:
        holding += layers.landlock(prepared.paths, folder)
    os.closerange(OUTPUT + 1, 1 << 16)
    if "limits" not in without and layers.limits(
        job["memory"], job["cpu"], "namespaces" in present
    ):
        holding.append("limits")
    layers.drop_powers()
    if "seccomp" not in without and layers.seccomp(prepared.filters["landlock" not in holding]):
        holding.append("seccomp")
    if "audit" not in without:
        audit(folder, prepared.roots)
        holding.append("audit")
    return holding


# --- the program's process ------------------------------------------------------------------------


def _send(message: dict) -> None:
    data = json.dumps(message).encode() + b"\n"
    if oversized(data):
        error = ["OutputLimit", f"more than {REPLY >> 20} MB or a million values of output", []]
        data = json.dumps({"error": error}).encode() + b"\n"
    while data:
        data = data[os.write(CHANNEL, data) :]


class _End(FileIO):
    """One end of a pipe in a socket's clothes: as much of one as asyncio's event loop uses."""

    recv, send = FileIO.read, FileIO.write

    def setblocking(self, blocking: bool) -> None:
        os.set_blocking(self.fileno(), blocking)


def one_way_pair() -> tuple[_End, _End]:
    """In place of socket.socketpair, since a program gets no socket: the second end writes to the
    first.
    """
    reading, writing = os.pipe()
    return _End(reading), _End(writing, "w")


def _lines(handle: int):
    """The lines of JSON that arrive, until the other side closes."""
    rest = b""
    while True:
        data = os.read(handle, 1 << 20)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)


def fault(error: BaseException) -> list:
    """[type, message, up to three frames of the program as (line, function), the innermost last]"""
    frames, trace = deque(maxlen=3), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            frames.append((trace.tb_lineno, trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    try:
        message = str(error)[:2000]
    except BaseException:  # a message of the program's own making
        message = ""
    return [type(error).__name__, message, list(frames)]


def _module(name: str, prelude: str, code: CodeType) -> dict:
    """Run the program in a fresh module; its names."""
    module = sys.modules[name] = ModuleType(name)
    exec(compile(prelude, "prelude", "exec", dont_inherit=True), module.__dict__)
    exec(code, module.__dict__)
    return module.__dict__


def _function(state: dict, name: str):
    """A method of the program's class Solution, where it has one (LeetCode's form; one object for
    all calls), else a function.
    """
    names = state["names"]
    if hasattr(names.get("Solution"), name):
        if "solution" not in state:
            state["solution"] = names["Solution"]()
        return getattr(state["solution"], name)
    if name not in names:
        raise NameError(f"the program has no function {name!r}")
    return names[name]


def _whole(prelude: str, code: CodeType) -> None:
    """The program from beginning to end, as ``python solution.py`` would run it."""
    import atexit
    import threading

    with contextlib.suppress(SystemExit):
        _module("__main__", prelude, code)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def _fresh_streams(stdin: str):
    """Standard input and output for one call; the output, to be flushed at its end."""
    for handle, number in ((INPUT, 0), (OUTPUT, 1)):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, 0)
        os.dup2(handle, number)  # again for each call: open(0) closes what it has read
    os.pwrite(INPUT, stdin.encode("utf-8", "replace"), 0)
    text = {"encoding": "utf-8", "errors": "replace", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **text)  # noqa: SIM115 (they stay open for the program)
    sys.stdout = sys.__stdout__ = open(1, "w", **text)  # noqa: SIM115
    return sys.stdout


def _value(state: dict, job: dict, call: dict, lines):
    """What the call returns; None for a whole program."""

    def ask(*args):
        _send({"ask": pack(args)})
        return unpack(next(lines)["answer"])

    if "code" not in state:
        state["code"] = compile(job["program"], NAME, "exec", dont_inherit=True)
    if not call["function"]:
        return _whole(job["prelude"], state["code"])
    if "names" not in state:
        state["names"] = _module("solution", job["prelude"], state["code"])
    function = _function(state, call["function"])
    return function(*unpack(call["args"]), *([ask] if call["ask"] else []))


def execute(state: dict, job: dict, call: dict, lines) -> dict:
    """One call, as a reply: {"value", "stdout"} or {"error", "stdout"}."""
    output = _fresh_streams(call["stdin"])
    reply = {}
    try:
        reply["value"] = pack(_value(state, job, call, lines))
    except BaseException as error:
        reply["error"] = fault(error)
    # after an error too: what is left would end up in the next call's output
    for stream in (sys.stdout, output):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException as error:
            reply.setdefault("error", fault(error))
    size = min(os.fstat(OUTPUT).st_size, REPLY + 1)  # ``_send`` says that it is too much
    return {**reply, "stdout": os.pread(OUTPUT, size, 0).decode("utf-8", "replace")}


def inmate(job: dict, folder: str, present: list[str], prepared: Prepared, lines) -> None:
    """Lock up, say so, and answer the parent's calls one at a time."""
    os.setsid()
    layers.set_process(layers.PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the warden
    os.chdir(folder)
    # files without a name: a program's output can neither block it nor fill our memory
    for handle in (INPUT, OUTPUT):
        file = os.open("captured", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink("captured")
        os.dup2(file, handle)
        os.close(file)
    os.environ.update(HOME=folder, TMPDIR=folder)
    sys.argv[:] = [NAME]
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(50_000)  # LiveCodeBench's
    import builtins
    import random

    builtins.exit = builtins.quit = sys.exit  # left out by -S
    socket.socketpair = one_way_pair
    random.seed(0)  # so that grading repeats
    _send({"layers": lock(job, folder, present, prepared)})
    state = {}
    for call in lines:
        _send(execute(state, job, call, lines))


# --- from fork to burial --------------------------------------------------------------------------


def _wait(leash: int, pid: int) -> None:
    """Until the parent lets go of the leash (or dies); a program with too many threads ends before,
    where the system does not count them.
    """
    poll = select.poll()
    poll.register(leash, select.POLLIN)
    while not poll.poll(WATCH * 1000):
        if layers.crowded(pid):
            os.kill(pid, signal.SIGKILL)


def _bury(pid: int, present: list[str]) -> int:
    """End the program and all that it started; its exit status."""
    os.kill(pid, signal.SIGKILL)  # and with the first of a process namespace, all of it
    if "namespaces" not in present:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    deadline = time.monotonic() + BURIAL
    while time.monotonic() < deadline and (orphans := layers.children()):
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
    return os.waitstatus_to_exitcode(status)


def warden(leash: int, channel: int, prepared: Prepared) -> None:
    """One program from fork to burial.

    The parent lets go of the leash (or dies): the program ends, its folder goes, and its exit
    status is told.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    layers.set_process(layers.PR_SET_CHILD_SUBREAPER, 1)
    os.dup2(channel, CHANNEL)
    os.close(channel)
    lines = _lines(CHANNEL)
    job = next(lines)
    folder = os.path.join(prepared.temporary, f"workbench-{os.urandom(8).hex()}")
    os.mkdir(folder, 0o700)
    try:
        present = layers.namespaces(folder) if "namespaces" not in job["without"] else []
        pid = os.fork()
        if pid == 0:
            try:
                inmate(job, folder, present, prepared, lines)
            finally:
                os._exit(1)
        os.close(CHANNEL)
        _wait(leash, pid)
        status = _bury(pid, present)
        if "tmpfs" in present:
            layers.unmount(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(leash, str(status).encode())


def zygote() -> None:
    """Fork a warden for every pair of file descriptors (leash, channel) that arrives on standard
    input, until the parent closes it.
    """
    for name in PRELOADED.split():
        __import__(name)
    for name in [name for name in sys.modules if name.startswith("workbench")]:
        del sys.modules[name]  # programs have no such package
    for handle in (CHANNEL, INPUT, OUTPUT):
        os.dup2(2, handle)  # keeps the number free
    prepared = prepare()
    os.environ.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # buries the wardens
    parent = socket.socket(fileno=0)
    while True:
        data, handles, _, _ = socket.recv_fds(parent, 1, 2)
        if not data:
            return
        if os.fork() == 0:
            try:
                warden(*handles, prepared)
            finally:
                os._exit(0)
        for handle in handles:
            os.close(handle)
