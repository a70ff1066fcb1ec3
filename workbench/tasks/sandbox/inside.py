"""The inside of the sandbox.

``workbench/tasks/sandbox/outside.py`` starts this file in an interpreter of its own, and imports
only what it says about values.

    zygote   started once, runs no program --fork--> warden: a program's namespaces and folder, its
             end --fork--> the program, locked down

``lock`` is called before a byte of the program is read. What each layer holds off is listed in
``sandbox.GUARDS``. The program shares its process with ``execute`` and can therefore answer
whatever it likes; it never sees what the answer should be.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows; outside.py refuses it in one sentence
    resource = None

NAME = "solution.py"  # the program's file name in messages and frames
REPLY = 8 << 20  # longest reply, in bytes of JSON; so also the most output that a call may have
FILE = 32 << 20  # largest file, in bytes, the captured output among them
FOLDER = 128 << 20  # what the temporary folder may hold, in bytes
THREADS = 64
STACK = 64 << 20  # bytes, room for deep recursion
# file descriptors: the program's line to the parent, the files that are its standard input and
# output
CHANNEL, INPUT, OUTPUT = 3, 4, 5

# Loaded before any fork, so that a program gets them for nothing.
PRELOADED = """array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io itertools json math operator
queue random re statistics string textwrap threading time typing"""


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
    items = [pack(item) for item in base.__iter__(value)]
    return items if base is list else {base.__name__: items}


def unpack(packed):
    """The value again.

    Raises ValueError or TypeError for what ``pack`` does not write, and for keys made to collide in
    a hash table.
    """
    if isinstance(packed, list):
        return [unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, items),) = packed.items()
    if kind == "tuple":
        return tuple(unpack(item) for item in items)
    if kind == "dict":
        pairs = [(unpack(key), unpack(item)) for key, item in items]
        return dict(pairs) if _spread(key for key, _ in pairs) else {}
    made = [unpack(item) for item in items]
    return {"set": set, "frozenset": frozenset}[kind](made if _spread(made) else ())


def _spread(keys) -> bool:
    if max(Counter(map(hash, keys)).values(), default=0) > 100:
        raise ValueError("too many keys with one hash")
    return True


# --- layers ---------------------------------------------------------------------------------------

READ, READ_FOLDER, WRITE = 1 << 2, 1 << 3, 1 << 1  # Landlock's rights
INSTALLED = ("site-packages", "dist-packages")  # whose data may hold the answers
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def namespaces(folder: str) -> list[str]:
    """Namespaces of its own for the next child (users, processes, network, mounts, IPC), and a
    small file system in memory at ``folder``.
    """
    user, processes, network, mounts, ipc = (
        0x10000000,
        0x20000000,
        0x40000000,
        0x00020000,
        0x08000000,
    )
    uid, gid = os.geteuid(), os.getegid()
    if _libc is None or _libc.unshare(user | processes | network | mounts | ipc):
        return []
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:  # then nobody owns anything in the new file system
        return ["namespaces"]
    recursive, private, no_setuid_device_program = 0x4000, 0x40000, 2 | 4 | 8
    options = f"size={FOLDER},nr_inodes=1000,mode=700".encode()
    if _libc.mount(None, b"/", None, recursive | private, None):
        return ["namespaces"]
    if _libc.mount(b"tmpfs", folder.encode(), b"tmpfs", no_setuid_device_program, options):
        return ["namespaces"]
    return ["namespaces", "tmpfs"]


def readable(roots: Sequence[str]) -> list[tuple[int, int]]:
    """What a program may open outside its folder, as (file descriptor, Landlock rights):

    ``roots`` without installed packages, and two devices.
    """
    paths = [(root, READ_FOLDER) for root in roots]
    for root in roots:
        if os.path.dirname(root) not in roots:  # lib-dynload is in the folder above
            with os.scandir(root) as entries:
                paths += [
                    (entry.path, READ | READ_FOLDER * entry.is_dir())
                    for entry in entries
                    if entry.name not in INSTALLED and os.access(entry.path, os.R_OK)
                ]
    return [
        (os.open(path, os.O_PATH), rights)
        for path, rights in (*paths, ("/dev/urandom", READ), ("/dev/null", READ | WRITE))
    ]


def landlock(paths: Sequence[tuple[int, int]], folder: str) -> bool:
    """Restrict this process to ``paths`` (file descriptor, rights), and to files, not folders, in
    ``folder``. Linux 5.13.
    """
    create, add, restrict = 444, 445, 446
    version = _libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    remove, make, truncate = 1 << 5, 1 << 8, 1 << 14
    # all rights that this kernel knows
    handled = (1 << 13) - 1 | (version > 1) << 13 | (truncate if version > 2 else 0)
    attributes = struct.pack("Q", handled)
    ruleset = _libc.syscall(create, attributes, len(attributes), 0)
    own = os.open(folder, os.O_PATH)
    for handle, rights in (
        *paths,
        (own, handled & (READ | READ_FOLDER | WRITE | remove | make | truncate)),
    ):
        _libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, handle), 0)
    return not _libc.syscall(restrict, ruleset, 0)


# System calls that a program may not make, with their numbers on x86-64 and on ARM64 (-1: not
# there).
FORBIDDEN = """
fork 57 -1  vfork 58 -1  execve 59 221  execveat 322 281  socket 41 198  io_uring_setup 425 425  unshare 272 97  setns 308 268
kill 62 129  tkill 200 130  tgkill 234 131  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
pidfd_open 434 434  pidfd_send_signal 424 424  pidfd_getfd 438 438
ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440  kcmp 312 272  migrate_pages 256 238  move_pages 279 239
setpriority 141 140  sched_setaffinity 203 122  sched_setscheduler 144 119  sched_setparam 142 118  sched_setattr 314 274  ioprio_set 251 30
bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  keyctl 250 219  add_key 248 217  request_key 249 218
shmget 29 194  msgget 68 186  semget 64 190  mq_open 240 180  memfd_create 319 279  memfd_secret 447 447
chmod 90 -1  fchmod 91 52  fchmodat 268 53  chown 92 -1  fchown 93 55  lchown 94 -1  fchownat 260 54
utime 132 -1  utimes 235 -1  futimesat 261 -1  utimensat 280 88
setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16"""
CHANGING = """
creat 85 -1  openat2 437 437  truncate 76 45  rename 82 -1  renameat 264 38  renameat2 316 276  mkdir 83 -1  mkdirat 258 34  rmdir 84 -1
unlink 87 -1  unlinkat 263 35  link 86 -1  linkat 265 37  symlink 88 -1  symlinkat 266 36  mknod 133 -1  mknodat 259 33"""
CLONE, CLONE3, PRLIMIT, OPEN, OPENAT, NEWEST = (
    (56, 220),
    (435, 435),
    (302, 261),
    (2, -1),
    (257, 56),
    452,
)


def filter_code(read_only: bool) -> bytes:
    """A seccomp filter (b"" on other processors) that forbids the system calls above: no new
    process (threads may start), no socket, no signal.

    ``read_only``: no change to any file system either.
    """
    machine = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
    if machine is None or struct.calcsize("P") != 8:
        return b""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown, kill = (
        0x7FFF0000,
        0x50000 | errno.EPERM,
        0x50000 | errno.ENOSYS,
        0x80000000,
    )
    number, architecture, arguments = 0, 4, (16, 24, 32)  # where the kernel puts them
    this_architecture = (0xC000003E, 0xC00000B7)[machine]
    thread, writing = 0x10000, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    # an instruction is (what, skip this many if so, skip this many if not, with)
    def when(call, *body):
        return [(equal, 0, len(body), call), *body] if call >= 0 else []

    code = [
        (load, 0, 0, architecture),
        (equal, 1, 0, this_architecture),
        (give, 0, 0, kill),
        (load, 0, 0, number),
    ]
    table = [
        int(word)
        for word in (FORBIDDEN + CHANGING * read_only).split()
        if word.lstrip("-").isdigit()
    ]
    for call in table[machine::2]:
        code += when(call, (give, 0, 0, refuse))
    code += when(
        CLONE[machine],
        (load, 0, 0, arguments[0]),
        (any_bit, 1, 0, thread),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    )
    # its own limits only
    code += when(
        PRLIMIT[machine],
        (load, 0, 0, arguments[0]),
        (equal, 1, 0, 0),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    )
    for calls, flags in ((OPEN, 1), (OPENAT, 2)) if read_only else ():
        code += when(
            calls[machine],
            (load, 0, 0, arguments[flags]),
            (any_bit, 0, 1, writing),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        )
    # its flags are out of reach; the C library goes back to clone
    code += when(CLONE3[machine], (give, 0, 0, unknown))
    # also x86-64's second numbering, from 2**30
    code += [(at_least, 0, 1, NEWEST), (give, 0, 0, unknown), (give, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def seccomp(code: bytes) -> bool:
    buffer = ctypes.create_string_buffer(code, len(code))
    return bool(code) and not _libc.prctl(
        22, 2, struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)), 0, 0
    )


def limits(memory: int, cpu: int, own_users: bool) -> bool:
    """Bytes of address space, processor seconds, size and number of files, threads (counted only in
    a user namespace), no core dump.
    """
    wanted = {
        "AS": memory,
        "CPU": cpu,
        "FSIZE": FILE,
        "NOFILE": 64,
        "CORE": 0,
        **({"NPROC": THREADS} if own_users else {}),
    }
    held = True
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS does not limit the address space
            held = False
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    return held


# Python's audit events: those that end a program, and those that do when they leave its folder or
# the roots.
EVENTS = """os.fork os.forkpty os.exec os.system os.posix_spawn os.spawn subprocess.Popen pty.spawn os.kill os.killpg ctypes.dlopen ctypes.dlsym
socket.connect socket.bind socket.sendto socket.getaddrinfo socket.gethostbyname resource.prlimit
os.mkdir os.rmdir os.rename os.link os.symlink os.chmod os.chown os.utime os.setxattr os.removexattr shutil.rmtree shutil.move"""
PATH_EVENTS = "open os.listdir os.scandir os.remove os.truncate"


def audit(folder: str, roots: Sequence[str]) -> None:
    """Second line: what Python itself reports of a forbidden attempt ends the program there, with
    the line that did it as its error.
    """
    forbidden, paths, changing = (
        set(EVENTS.split()),
        set(PATH_EVENTS.split()),
        {"os.remove", "os.truncate"},
    )
    standard = ("/dev/stdin", "/dev/stdout", "/dev/stderr")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    # the program can change the modules, not these
    unix, leave, frame_of = socket.AF_UNIX, os._exit, sys._getframe
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def inside(event: str, path, flags: int) -> bool:
        real = realpath(fsdecode(path))
        if real.startswith((folder + "/", "/dev/null")) or real == folder:
            return True
        changes = event in changing or (event == "open" and flags & writing)
        library = any(f"{real}/".startswith(f"{root}/") for root in roots) and not any(
            name in real for name in INSTALLED
        )
        return not changes and (library or real == "/dev/urandom")

    def hook(event: str, given: tuple) -> None:
        if event in paths:
            path = "." if given[0] is None else given[0]
            bad = (
                not isinstance(path, int)
                and path not in standard
                and not inside(event, path, given[-1])
            )
        else:
            bad = event in forbidden or (event == "socket.__new__" and given[1] != unix)
        if bad:
            frames, frame = [], frame_of()
            while frame is not None and len(frames) < 3:
                if frame.f_code.co_filename == NAME:
                    frames.insert(0, (frame.f_lineno, frame.f_code.co_name))
                frame = frame.f_back
            what = f"{event} of {given[0]!r:.200}" if event in paths else event
            _send(
                {
                    "error": ["PermissionError", f"the sandbox does not allow {what}", frames],
                    "last": True,
                }
            )
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
    if _libc is None:
        return Prepared(roots, temporary, (), (b"", b""))
    return Prepared(
        roots,
        temporary,
        tuple(readable(roots)),
        (filter_code(read_only=False), filter_code(read_only=True)),
    )


def lock(job: dict, folder: str, layers: list[str], prepared: Prepared) -> list[str]:
    """Put every layer of this machine, less ``job["without"]``, on this process; those that hold."""
    wanted = [
        name for name in ("landlock", "seccomp", "limits", "audit") if name not in job["without"]
    ]
    done = list(layers)
    if _libc is not None:
        _libc.prctl(38, 1, 0, 0, 0)  # no new privileges: wanted by the next two
        if "landlock" in wanted and landlock(prepared.paths, folder):
            done.append("landlock")
    os.closerange(OUTPUT + 1, 1 << 16)
    if "limits" in wanted and limits(job["memory"], job["cpu"], "namespaces" in layers):
        done.append("limits")
    if _libc is not None:
        _libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # root's powers
        if "seccomp" in wanted and seccomp(prepared.filters["landlock" not in done]):
            done.append("seccomp")
    if "audit" in wanted:
        audit(folder, prepared.roots)
        done.append("audit")
    return done


# --- the program's process ------------------------------------------------------------------------


def _send(message: dict) -> None:
    data = json.dumps(message).encode() + b"\n"
    if len(data) > REPLY:
        data = (
            json.dumps(
                {"error": ["OutputLimit", f"more than {REPLY >> 20} MB of output", []]}
            ).encode()
            + b"\n"
        )
    while data:
        data = data[os.write(CHANNEL, data) :]


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

    try:
        _module("__main__", prelude, code)
    except SystemExit:
        pass
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def execute(state: dict, job: dict, call: dict, lines) -> dict:
    """One call, as a reply: {"value", "stdout"} or {"error", "stdout"}."""
    for handle, number in ((INPUT, 0), (OUTPUT, 1)):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, 0)
        os.dup2(handle, number)  # again for each call: open(0) closes what it has read
    os.pwrite(INPUT, call["stdin"].encode("utf-8", "replace"), 0)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = sys.__stdout__ = out = open(
        1, "w", encoding="utf-8", errors="replace", closefd=False
    )

    def ask(*args):
        _send({"ask": pack(args)})
        return unpack(next(lines)["answer"])

    reply = {}
    try:
        state["code"] = state.get("code") or compile(
            job["program"], NAME, "exec", dont_inherit=True
        )
        if not call["function"]:
            _whole(job["prelude"], state["code"])
        else:
            state["names"] = state.get("names") or _module(
                "solution", job["prelude"], state["code"]
            )
            reply["value"] = pack(
                _function(state, call["function"])(
                    *unpack(call["args"]), *([ask] if call["ask"] else [])
                )
            )
    except BaseException as error:
        reply["error"] = fault(error)
    # after an error too: what is left would end up in the next call's output
    for stream in (sys.stdout, out):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException as error:
            reply.setdefault("error", fault(error))
    size = os.fstat(OUTPUT).st_size
    if size > REPLY:
        return {"error": ["OutputLimit", f"more than {REPLY >> 20} MB of output", []]}
    return {**reply, "stdout": os.pread(OUTPUT, size, 0).decode("utf-8", "replace")}


def inmate(job: dict, folder: str, layers: list[str], prepared: Prepared, lines) -> None:
    """Lock up, say so, and answer the parent's calls one at a time."""
    os.setsid()
    if _libc is not None:
        _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # die with the warden
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
    random.seed(0)  # so that grading repeats
    _send({"layers": lock(job, folder, layers, prepared)})
    state = {}
    for call in lines:
        _send(execute(state, job, call, lines))


def warden(leash: int, channel: int, prepared: Prepared) -> None:
    """One program from fork to burial.

    The parent lets go of the leash (or dies): the program ends, its folder goes, and its exit
    status is told.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(channel, CHANNEL)
    os.close(channel)
    lines = _lines(CHANNEL)
    job = next(lines)
    folder = os.path.join(prepared.temporary, f"workbench-{os.urandom(8).hex()}")
    os.mkdir(folder, 0o700)
    try:
        layers = namespaces(folder) if "namespaces" not in job["without"] else []
        pid = os.fork()
        if pid == 0:
            try:
                inmate(job, folder, layers, prepared, lines)
            finally:
                os._exit(1)
        os.close(CHANNEL)
        os.read(leash, 1)
        os.kill(pid, signal.SIGKILL)  # and with the first of a process namespace, all of it
        if "namespaces" not in layers:
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                pass
        status = os.waitpid(pid, 0)[1]
        if "tmpfs" in layers:
            _libc.umount2(folder.encode(), 2)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.write(leash, str(os.waitstatus_to_exitcode(status)).encode())
    except BrokenPipeError:  # nobody asks any more
        pass


def zygote() -> None:
    """Fork a warden for every pair of file descriptors (leash, channel) that arrives on standard
    input, until the parent closes it.
    """
    for name in PRELOADED.split():
        __import__(name)
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


if __name__ == "__main__":
    zygote()
