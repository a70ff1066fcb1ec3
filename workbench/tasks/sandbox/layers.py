"""What the system itself forbids a process: namespaces, Landlock, seccomp, limits, root's powers.

Each layer is a function that puts itself on the calling process and says whether it holds.
``inside.lock`` calls them; which of them keeps a program from what is ``outside.GUARDS``. Of this
package, only the standard library is imported: the interpreter that runs programs has no other.

Numbers are Linux's: system calls from arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h (ARM64), the others from the header named beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence
from itertools import starmap

try:
    import resource
except ImportError:  # Windows; outside.py refuses it in one sentence
    resource = None

FILE = 32 << 20  # largest file, in bytes, the captured output among them
FOLDER = 128 << 20  # what the temporary folder may hold, in bytes
THREADS = 64
STACK = 64 << 20  # bytes, room for deep recursion
DESCRIPTORS = 64

libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


# --- prctl (include/uapi/linux/prctl.h) -----------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_SET_SECCOMP = 1, 15, 16, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
PR_SET_VMA = 0x53564D41  # by which the C library names its memory


def set_process(option: int, value: int) -> None:
    if libc is not None:
        libc.prctl(option, value, 0, 0, 0)


def drop_powers() -> None:
    """Root is root no more: no capability, and none to be had by running a program."""
    if libc is not None:
        set_process(PR_SET_NO_NEW_PRIVS, 1)
        libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # capability.h, version 3


# --- namespaces (include/uapi/linux/sched.h, mount.h) ---------------------------------------------

NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NEW_MOUNTS, NEW_IPC = 0x00020000, 0x08000000
MS_NOSUID_NODEV_NOEXEC, MS_REC, MS_PRIVATE = 2 | 4 | 8, 0x4000, 0x40000
MNT_DETACH = 2


def namespaces(folder: str) -> list[str]:
    """Namespaces of its own for the next child (users, processes, network, mounts, IPC), and a
    small file system in memory at ``folder``.
    """
    uid, gid = os.geteuid(), os.getegid()
    fresh = NEW_USERS | NEW_PROCESSES | NEW_NETWORK | NEW_MOUNTS | NEW_IPC
    if libc is None or libc.unshare(fresh):
        return []
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    try:
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:  # then nobody owns anything in the new file system
        return ["namespaces"]
    options = f"size={FOLDER},nr_inodes=1000,mode=700".encode()
    shared = libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    if shared or libc.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID_NODEV_NOEXEC, options):
        return ["namespaces"]
    return ["namespaces", "tmpfs"]


def unmount(folder: str) -> None:
    libc.umount2(folder.encode(), MNT_DETACH)


# --- Landlock (include/uapi/linux/landlock.h) -----------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on both processors
WRITE, READ, READ_FOLDER, REMOVE, MAKE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
REFER, TRUNCATE, DEVICES = 1 << 13, 1 << 14, 1 << 15  # since versions 2, 3, 5
TCP = 3  # bind and connect, since version 4
SCOPES = 3  # abstract sockets and signals, since version 6
INSTALLED = ("site-packages", "dist-packages")  # whose data may hold the answers


def readable(roots: Sequence[str]) -> list[tuple[int, int]]:
    """What a program may open outside its folder, as (file descriptor, Landlock rights):

    ``roots`` without installed packages, and two devices.
    """
    if libc is None:
        return []
    paths = [(root, READ_FOLDER) for root in roots]
    for root in roots:
        if os.path.dirname(root) in roots:  # lib-dynload is in the folder above
            continue
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name not in INSTALLED and os.access(entry.path, os.R_OK):
                    paths.append((entry.path, READ | READ_FOLDER * entry.is_dir()))
    paths += [("/dev/urandom", READ), ("/dev/null", READ | WRITE)]
    return [(os.open(path, os.O_PATH), rights) for path, rights in paths]


def landlock(paths: Sequence[tuple[int, int]], folder: str) -> list[str]:
    """Restrict this process to ``paths`` (file descriptor, rights), and to files, not folders, in
    ``folder`` (Linux 5.13); to no signal and no abstract socket of others ("scopes", Linux 6.12).
    """
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return []
    handled = (1 << 13) - 1  # all rights that this kernel knows
    handled |= (version > 1) * REFER | (version > 2) * TRUNCATE | (version > 4) * DEVICES
    # as much of it as this kernel knows
    attributes = struct.pack("QQQ", handled, TCP, SCOPES)[: 8 * (1 + (version > 3) + (version > 5))]
    set_process(PR_SET_NO_NEW_PRIVS, 1)
    ruleset = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    own = READ | READ_FOLDER | WRITE | REMOVE | MAKE | TRUNCATE & handled
    for handle, rights in (*paths, (os.open(folder, os.O_PATH), own)):
        libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, handle), 0)
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        return []
    return ["landlock", "scopes"] if version > 5 else ["landlock"]


# --- seccomp (include/uapi/linux/seccomp.h, filter.h, audit.h) ------------------------------------

# System calls that a program may not make: name, number on x86-64, on ARM64 (-1: not there).
FORBIDDEN = """
fork 57 -1  vfork 58 -1  execve 59 221  execveat 322 281  unshare 272 97  setns 308 268
seccomp 317 277
socket 41 198  socketpair 53 199  connect 42 203  bind 49 200  listen 50 201  accept 43 202
accept4 288 242
sendto 44 206  sendmsg 46 211  sendmmsg 307 269  recvfrom 45 207  recvmsg 47 212
recvmmsg 299 243
shutdown 48 210  getsockname 51 204  getpeername 52 205  setsockopt 54 208  getsockopt 55 209
io_uring_setup 425 425  io_uring_enter 426 426  io_uring_register 427 427
kill 62 129  tkill 200 130  tgkill 234 131  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
pidfd_open 434 434  pidfd_send_signal 424 424  pidfd_getfd 438 438  process_mrelease 448 448
ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440
kcmp 312 272
migrate_pages 256 238  move_pages 279 239  get_robust_list 274 100
setpriority 141 140  sched_setaffinity 203 122  sched_setscheduler 144 119
sched_setparam 142 118
sched_setattr 314 274  ioprio_set 251 30
bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  keyctl 250 219  add_key 248 217
request_key 249 218
shmget 29 194  shmat 30 196  shmctl 31 195  msgget 68 186  msgsnd 69 189  msgrcv 70 188
msgctl 71 187
semget 64 190  semop 65 193  semctl 66 191  semtimedop 220 192  mq_open 240 180
mq_unlink 241 181
memfd_create 319 279  memfd_secret 447 447
inotify_init 253 -1  inotify_init1 294 26  inotify_add_watch 254 27  fanotify_init 300 262
chmod 90 -1  fchmod 91 52  fchmodat 268 53  chown 92 -1  fchown 93 55  lchown 94 -1
fchownat 260 54
utime 132 -1  utimes 235 -1  futimesat 261 -1  utimensat 280 88
setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15
fremovexattr 199 16
mount 165 40  umount2 166 39  pivot_root 155 41  chroot 161 51  open_tree 428 428
move_mount 429 429
fsopen 430 430  fsconfig 431 431  fsmount 432 432  fspick 433 433  mount_setattr 442 442
name_to_handle_at 303 264  open_by_handle_at 304 265  syslog 103 116  personality 135 92
modify_ldt 154 -1
capset 126 91  setuid 105 146  setgid 106 144  setreuid 113 145  setregid 114 143
setgroups 116 159
setresuid 117 147  setresgid 119 149  setfsuid 122 151  setfsgid 123 152
iopl 172 -1  ioperm 173 -1  swapon 167 224  swapoff 168 225  reboot 169 142  sethostname 170 161
setdomainname 171 162  init_module 175 105  finit_module 313 273  delete_module 176 106
kexec_load 246 104  kexec_file_load 320 294  acct 163 89  quotactl 179 60  quotactl_fd 443 443
settimeofday 164 170  clock_settime 227 112  adjtimex 159 171  clock_adjtime 305 266"""
CHANGING = """
creat 85 -1  openat2 437 437  truncate 76 45  rename 82 -1  renameat 264 38  renameat2 316 276
mkdir 83 -1
mkdirat 258 34  rmdir 84 -1  unlink 87 -1  unlinkat 263 35  link 86 -1  linkat 265 37
symlink 88 -1
symlinkat 266 36  mknod 133 -1  mknodat 259 33"""
CLONE, CLONE3, OPEN, OPENAT, NEWEST = (56, 220), (435, 435), (2, -1), (257, 56), 452
CLONE_THREAD = 0x10000

# What the calls that do many things may still do: (numbers, which argument, its values).
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)  # fcntl.h: copies, flags, own locks
IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # ioctls.h: isatty, FIONREAD,
PRCTL = (PR_SET_NAME, PR_GET_NAME, PR_SET_VMA)  # FIONBIO, FIOCLEX; names of threads and of memory
ONLY = (
    ((72, 25), 1, FCNTL),  # no owner, no signal, no lease
    ((16, 29), 1, IOCTL),  # no owner either, no typing into a terminal
    ((157, 167), 0, PRCTL),  # no other parent-death signal
    ((302, 261), 0, (0,)),  # prlimit64: its own limits
)

# Instructions of the filter: load a word, jump if equal, if at least, if any bit is set, give.
LOAD, EQUAL, AT_LEAST, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, UNKNOWN = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # struct seccomp_data, in bytes; an argument has 8
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _when(call: int, *body: tuple) -> list[tuple]:
    """``body``, which ends in ``GIVE``, for one call.

    An instruction is (what, skip so many if so, skip so many if not, with).
    """
    return [(EQUAL, 0, len(body), call), *body] if call >= 0 else []


def _only(call: int, argument: int, values: Sequence[int]) -> list[tuple]:
    tests = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    load = (LOAD, 0, 0, ARGUMENTS + 8 * argument)
    return _when(call, load, *tests, (GIVE, 0, 0, REFUSE), (GIVE, 0, 0, ALLOW))


def _numbers(table: str, machine: int) -> list[int]:
    return list(map(int, table.split()[1 + machine :: 3]))


def filter_code(read_only: bool) -> bytes:
    """A seccomp filter (b"" on other processors) that forbids the system calls above: no new
    process (threads may start), no socket, no signal.

    ``read_only``: no change to any file system either.
    """
    machine, architecture = MACHINES.get(os.uname().machine, (None, 0))
    if machine is None or struct.calcsize("P") != 8:
        return b""
    refuse, allow = (GIVE, 0, 0, REFUSE), (GIVE, 0, 0, ALLOW)
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (GIVE, 0, 0, KILL)]
    code.append((LOAD, 0, 0, NUMBER))
    for call in _numbers(FORBIDDEN + CHANGING * read_only, machine):
        code += _when(call, refuse)
    for calls, argument, values in ONLY:
        code += _only(calls[machine], argument, values)
    flags = (LOAD, 0, 0, ARGUMENTS)
    code += _when(CLONE[machine], flags, (ANY_BIT, 1, 0, CLONE_THREAD), refuse, allow)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    for calls, argument in ((OPEN, 1), (OPENAT, 2)) if read_only else ():
        flags = (LOAD, 0, 0, ARGUMENTS + 8 * argument)
        code += _when(calls[machine], flags, (ANY_BIT, 0, 1, writing), refuse, allow)
    # its flags are out of reach; the C library goes back to clone
    code += _when(CLONE3[machine], (GIVE, 0, 0, UNKNOWN))
    # also x86-64's second numbering, from 2**30
    code += [(AT_LEAST, 0, 1, NEWEST), (GIVE, 0, 0, UNKNOWN), allow]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def seccomp(code: bytes) -> bool:
    """Put the filter on this process and its threads."""
    if libc is None or not code:
        return False
    set_process(PR_SET_NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    return not libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0)


# --- limits ---------------------------------------------------------------------------------------


def limits(memory: int, cpu: int, own_users: bool) -> bool:
    """Bytes of address space, processor seconds, size and number of files, threads (counted only in
    a user namespace, and never for root: ``crowded`` looks after those), no core dump.
    """
    values = {"AS": memory, "CPU": cpu, "FSIZE": FILE, "NOFILE": DESCRIPTORS, "CORE": 0}
    if own_users:
        values["NPROC"] = THREADS
    holds = list(starmap(limit, values.items()))
    return limit("STACK", STACK, for_good=False) and all(holds)


def limit(name: str, value: int, for_good: bool = True) -> bool:
    """At most ``value`` of one resource. ``for_good``: the process cannot have more again."""
    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (lowest, lowest if for_good else hard))
    except (OSError, ValueError):  # macOS does not limit the address space
        return False
    return True


def crowded(pid: int) -> bool:
    """Has the process more threads than it may? False where nothing tells."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2 > THREADS
    except OSError:
        return False


def children() -> list[int]:
    """The processes that the calling one has started, or has inherited as a subreaper."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return list(map(int, file.read().split()))
    except OSError:
        return []
