"""Hostile programs against the sandbox: what they try does not happen, their results are failures,
nothing of them is left, and nothing hangs.
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
import warnings
from functools import partial
from pathlib import Path

import pytest

from workbench.tasks.sandbox import outside
from workbench.tasks.sandbox.inside import pack, unpack
from workbench.tasks.sandbox.outside import Call, Program, in_parallel, run

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's"),
    pytest.mark.filterwarnings("ignore:the sandbox:RuntimeWarning"),
]

# seconds for programs that should end by themselves, on a machine that does much else
PATIENT = 60.0
CONTAINER = ("namespaces",)  # what a container without user namespaces lacks


def value(source: str, *args, without=(), seconds=PATIENT, memory_mb=512):
    """The one result of f(*args)."""
    with Program(source, seconds=seconds, memory_mb=memory_mb, without=without) as program:
        return program.call(Call("f", args))


def layers(without=()) -> set[str]:
    """The layers of this machine, less some."""
    with Program("", without=without) as program:
        return set(program.start())


def needs(*wanted: str, without=()) -> None:
    if not layers(without) & set(wanted):
        pytest.skip(f"this machine has no {' or '.join(wanted)}")


# --- programs that mean well ----------------------------------------------------------------------


def test_functions_whole_programs_and_errors():
    source = "def f(a, b=2):\n    print('seen')\n    return [a + b, (a, None), {b: 1.5}]\n"
    values, error = run(source, [Call("f", (1,)), Call("f", ("x",))], seconds=PATIENT)
    assert values.value == [3, (1, None), {2: 1.5}] and values.stdout == "seen\n" and values.ok
    assert (
        error.error == ("TypeError", 'can only concatenate str (not "int") to str', ((3, "f"),))
        and error.value is None
        and not error.ok
    )
    double, wrong = run(
        "n = int(input())\nprint(2 * n)\nexit()\n",
        [Call(stdin="21\n"), Call(stdin="x")],
        seconds=PATIENT,
    )
    assert double.stdout == "42\n" and double.ok
    assert wrong.error.type == "ValueError" and wrong.error.frames == ((1, "<module>"),)


def test_frames_are_the_last_three_of_the_program():
    source = (
        "def d(x): return 1 / x\ndef c(x): return d(x)\ndef b(x): return max([x], "
        "key=c)\ndef f(x): return b(x)\n"
    )
    assert value(source, 0).error == (
        "ZeroDivisionError",
        "division by zero",
        ((3, "b"), (2, "c"), (1, "d")),
    )
    bad = value("def f(:\n", 0).error
    assert (
        bad.type == "SyntaxError"
        and bad.message.endswith("(solution.py, line 1)")
        and bad.frames == ()
    )
    assert value("def g(x): return x", 0).error.message == "the program has no function 'f'"


def test_methods_of_a_solution_class_and_a_prelude_that_counts_no_lines():
    source = (
        "class Solution:\n    def f(self, words: List[str]) -> int:\n        return words[0] + 1\n"
    )
    with Program(source, prelude="from typing import *\n\n", seconds=PATIENT) as program:
        assert program.call(Call("f", (["a"],))).error.frames == ((3, "f"),)
        assert program.call(Call("f", ([1],))).value == 2


def test_every_way_of_reading_and_printing():
    reading = [
        "input()",
        "__import__('sys').stdin.readline()",
        "open(0).readline()",
        "__import__('os').read(0, 100).decode()",
        "__import__('sys').stdin.buffer.readline().decode()",
    ]
    for way in reading:
        assert (
            run(f"print(int({way}))", [Call(stdin="7\n"), Call(stdin="8\n")], seconds=PATIENT)[
                1
            ].stdout
            == "8\n"
        ), way
    writing = [
        "import os\nos.write(1, b'7')",
        "import atexit\natexit.register(print, 7, end='')",
        "import threading\nthreading.Thread(target=lambda: print(7, end='')).start()",
        "import sys\nsys.stdout.write('7')\nsys.exit(3)",
        "def main():\n    print(7, end='')\nif __name__ == '__main__':\n    main()",
    ]
    for way in writing:
        assert run(way, [Call(), Call()], seconds=PATIENT)[1].stdout == "7", way


def test_a_program_may_use_its_folder_threads_and_the_standard_library():
    source = """
import asyncio, concurrent.futures, dataclasses, fractions, os, threading
@dataclasses.dataclass
class Point:
    x: "int"
def f(n):
    assert os.listdir() == []
    with open("notes", "w") as file:
        file.write("x" * n)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        sizes = pool.map(lambda i: len(open("notes").read()), range(3))
        return sum(sizes) + asyncio.run(later(Point(n)))
async def later(point):
    return int(fractions.Fraction(point.x))
"""
    assert value(source, 5).value == 20 and value(source, 5, without=CONTAINER).value == 20


def test_grading_repeats():
    source = (
        "import random\ndef f():\n    return [random.random(), hash('word'), list({'a', "
        "'b', 'c', 'd'})]"
    )
    assert value(source).value == value(source).value


DIES_OR_LOOPS = (
    "import os\ndef f(x):\n    while x == 1: pass\n    if x == 2: os._exit(0)\n    return x\n"
)


def test_after_a_death_the_next_call_gets_a_fresh_process():
    dead, good = run(DIES_OR_LOOPS, [Call("f", (2,)), Call("f", (3,))], seconds=PATIENT)
    assert dead.error.type == "ProcessDied" and "exit code 0" in dead.error.message
    assert good.value == 3


def test_the_first_time_out_of_a_program_is_its_last_call():
    begun = time.monotonic()
    calls = [Call("f", (x,)) for x in (3, *[1] * 9, 3)]
    good, slow, *rest = run(DIES_OR_LOOPS, calls, seconds=1.0)
    assert good.value == 3 and slow.timed_out
    assert all(result.timed_out for result in rest) and len(rest) == 9
    # a second for the first that hangs, and none for the others, also where much else is done
    assert 1.0 <= time.monotonic() - begun < 6.0


def test_many_programs_keep_their_order():
    programs = [f"def f(x): return x * {i}" for i in range(6)]
    calls = [[Call("f", (i,)), Call("f", (1,))] for i in range(6)]
    outcomes = in_parallel(partial(run, seconds=PATIENT), programs, calls)
    values = [[result.value for result in outcome] for outcome in outcomes]
    assert values == [[i * i, i] for i in range(6)]


def test_one_program_can_ask_another():
    with (
        Program(
            "def check(candidate):\n    assert candidate([1]) == [1, 1] and candidate([]) == "
            "[]\n    return 'passed'\n",
            seconds=PATIENT,
        ) as checker,
        Program("def f(x): return x + x", seconds=PATIENT) as good,
        Program("def f(x): return x[0] + [1]", seconds=PATIENT) as bad,
    ):
        assert (
            checker.call(Call("check"), lambda args: good.call(Call("f", args))).value == "passed"
        )
        assert (
            checker.call(Call("check"), lambda args: bad.call(Call("f", args))).error.type
            == "TypeError"
        )


# --- programs that do not -------------------------------------------------------------------------

SWALLOW = (
    "def f(*args):\n    try:\n        seen = attempt(*args)\n    except Exception as "
    "error:\n        seen = type(error).__name__\n    return seen\n"
)

# What is tried, by the guard of sandbox.GUARDS that prevents it, in a function ``attempt`` that
# gives "done" where it worked.
ATTEMPTS = {
    "use the network": [
        "import socket\ndef attempt():\n    socket.create_connection(('127.0.0.1', PORT), "
        "5)\n    return 'done'\n",
        "import socket\ndef attempt():\n    socket.socket(socket.AF_INET, "
        "socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))\n    return 'done'\n",
    ],
    "start processes": [
        "import os\ndef attempt():\n    if os.fork() == 0:\n        os._exit(0)\n    "
        "return 'done'\n",
        "import subprocess\ndef attempt():\n    subprocess.run(['/bin/true'])\n    return 'done'\n",
        "import os\ndef attempt():\n    os.posix_spawn('/bin/true', ['true'], {})\n    "
        "return 'done'\n",
    ],
    "signal other processes": [
        "import os\ndef attempt():\n    os.kill(BYSTANDER, 15)\n    return 'done'\n",
        "import os\ndef attempt():\n    if os.getppid() < 1: raise OSError\n    "
        "os.kill(os.getppid(), 9)\n    return 'done'\n",
    ],
    "trace or limit other processes": [
        "import resource\ndef attempt():\n    resource.prlimit(BYSTANDER, "
        "resource.RLIMIT_NOFILE, (9, 9))\n    return 'done'\n",
    ],
    "read the memory or environment of other processes": [
        "def attempt():\n    return 'done' if open('/proc/BYSTANDER/mem', 'rb').fileno() else ''\n",
        "def attempt():\n    return 'done' if open('/proc/BYSTANDER/environ').read() else ''\n",
    ],
    "write outside its temporary folder": [
        "def attempt():\n    open('FOLDER/fresh', 'w')\n    return 'done'\n",
        "def attempt():\n    open('FOLDER/victim', 'a').write('x')\n    return 'done'\n",
        "import os\ndef attempt():\n    os.remove('FOLDER/victim')\n    return 'done'\n",
        "import os\ndef attempt():\n    os.rename('FOLDER/victim', 'FOLDER/fresh')\n    "
        "return 'done'\n",
        "import os\ndef attempt():\n    os.mkdir('FOLDER/fresh')\n    return 'done'\n",
        "import os\ndef attempt():\n    os.truncate('FOLDER/victim', 0)\n    return 'done'\n",
        "import os\ndef attempt():\n    os.symlink('FOLDER/fresh', 'here')\n    "
        "open('here', 'w')\n    return 'done'\n",
    ],
    "change owners, rights or times of files": [
        "import os\ndef attempt():\n    os.chmod('FOLDER/victim', 0)\n    return 'done'\n",
        "import os\ndef attempt():\n    os.utime('FOLDER/victim', (0, 0))\n    return 'done'\n",
    ],
    "read files other than Python's own": [
        "def attempt():\n    return 'done' if open('FOLDER/victim').read() else ''\n",
        "import os\ndef attempt():\n    return 'done' if os.listdir('FOLDER') else ''\n",
    ],
}


@pytest.fixture
def bystander():
    """A process of the same user, which must live on as it is."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], env={"NAME": "bystander"}
    ) as process:
        yield process.pid
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    "without",
    [
        (),
        ("audit",),
        ("audit", "namespaces"),
        ("audit", "landlock"),
        ("audit", "seccomp"),
        ("namespaces", "landlock", "seccomp"),
    ],
    ids=lambda names: f"without-{'-'.join(names)}" if names else "whole",
)
def test_forbidden_attempts_fail_whichever_layer_is_missing(tmp_path, bystander, without):
    """Each attempt swallows its error and goes on.

    One layer that guards against it is enough; Python's audit events make it the program's end.
    """
    victim = tmp_path / "victim"
    victim.write_text("kept")
    before, present = victim.stat(), layers(without)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        for guard, sources in ATTEMPTS.items():
            if not present & {*outside.GUARDS[guard], "audit"}:
                continue
            for source in sources:
                for word, meant in (
                    ("PORT", server.getsockname()[1]),
                    ("BYSTANDER", bystander),
                    ("FOLDER", tmp_path),
                ):
                    source = source.replace(word, str(meant))
                result = value(source + SWALLOW, without=without)
                assert result.value != "done", (source, result)
                if "audit" in present and "getppid" not in source:
                    assert (
                        result.error.type == "PermissionError"
                        and "the sandbox does not allow" in result.error.message
                    ), (source, result)
        with pytest.raises(TimeoutError):
            server.accept()
    after = victim.stat()
    assert list(tmp_path.iterdir()) == [victim] and victim.read_text() == "kept"
    assert (after.st_mtime, after.st_mode & 0o777) == (
        before.st_mtime,
        before.st_mode & 0o777,
    ) or not present & {"seccomp", "audit"}


def test_a_forbidden_attempt_is_the_end_and_says_where():
    source = (
        "import os\n\ndef f(x):\n    try:\n        os.system('true')\n    finally:\n       "
        " return x\n"
    )
    first, second = run(source, [Call("f", (1,)), Call("f", (1,))], seconds=PATIENT)
    assert (
        first.error
        == second.error
        == ("PermissionError", "the sandbox does not allow os.system", ((5, "f"),))
    )


@pytest.mark.parametrize(
    "without", [(), CONTAINER, ("audit",)], ids=lambda layers: "-".join(layers) or "whole"
)
def test_the_parents_environment_cannot_be_read(monkeypatch, without):
    needs("namespaces", "landlock", "audit", without=without)
    monkeypatch.setenv("WORKBENCH_SECRET", "swordfish")
    source = """
import os
def f(pids):
    found = [str(dict(os.environ))]
    for pid in [*pids, 'self', os.getpid(), os.getppid()]:
        try:
            found.append(open(f'/proc/{pid}/environ').read())
        except OSError:
            pass
    return ' '.join(found)
"""
    result = value(source, [os.getpid(), os.getppid()], without=without)
    assert "swordfish" not in str(result) and (
        "audit" in without or result.error.type == "PermissionError"
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    while True: pass\n",
        "import signal\nfor number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, "
        "signal.SIGXCPU):\n    signal.signal(number, signal.SIG_IGN)\n"
        "def f(x):\n    while True: pass\n",
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        "
        "except BaseException: pass\n",
        "import time\ntime.sleep(1000)\ndef f(x): return x\n",
        "def f(x): return 10 ** 10 ** 10\n",
        "import re\ndef f(x): return bool(re.match(r'(a+)+$', 'a' * 50 + 'b'))\n",
        "import os\ndef f(x):\n    while True: os.read(3, 1)\n",  # steals what the parent sends it
        # half a reply
        "import os, time\ndef f(x):\n    os.write(3, b'{\"value\": ')\n    time.sleep(1000)\n",
    ],
    ids=[
        "loop",
        "ignores-signals",
        "catches-all",
        "sleeps",
        "power",
        "backtracks",
        "reads-the-channel",
        "half-a-reply",
    ],
)
def test_what_does_not_end_is_ended(source):
    begun = time.monotonic()
    result = value(source, 1, seconds=1.0)
    assert result.timed_out and not result.ok and result.value is None
    assert time.monotonic() - begun < PATIENT


@pytest.mark.parametrize(
    "source, kind",
    [
        ("def f(x):\n    return len(bytearray(10 << 30))\n", "MemoryError"),
        (
            "def f(x):\n    held = []\n    while True: held.append(bytearray(1 << 20))\n",
            "MemoryError",
        ),
        (
            "def f(x):\n    for _ in range(1024): print('x' * (1 << 20))\n    return 2\n",
            "OutputLimit",
        ),
        (
            "def f(x):\n    try:\n        for _ in range(1024): print('x' * (1 << 20))\n    except "
            "OSError: pass\n    return 2\n",
            "OutputLimit",
        ),
        ("def f(x): return 'x' * (10 << 20)\n", "OutputLimit"),
        (
            "import os\ndef f(x):\n    with open('big', 'wb') as file:\n        for _ in "
            "range(1024): file.write(bytes(1 << 20))\n    return 2\n",
            "OSError",
        ),
        ("import os, sys\ndef f(x): os._exit(0)\n", "ProcessDied"),
        ("import os\nos._exit(0)\n", "ProcessDied"),
        ("import sys\ndef f(x): sys.exit(0)\n", "SystemExit"),
        ("import os\ndef f(x):\n    os.closerange(0, 100)\n    return 2\n", "ProcessDied"),
        ("import os\ndef f(x):\n    os.write(3, b'no json\\n' * 3)\n    return 2\n", "BadReply"),
        ("import os\ndef f(x):\n    os.write(3, b'[]\\n')\n    return 2\n", "BadReply"),
        (
            "import os\ndef f(x):\n    os.write(3, b'[' * 100_000 + b'\\n')\n    return 2\n",
            "BadReply",
        ),
        ("import os\ndef f(x):\n    os.write(3, b'{\"ask\": []}\\n')\n    return 2\n", "BadReply"),
        ("import os\ndef f(x):\n    while True: os.write(3, bytes(1 << 20))\n", "BadReply"),
        ("def f(x): return f(x)\n", "RecursionError"),
        ("def f(x):\n    x = []\n    x.append(x)\n    return x\n", "RecursionError"),
        ("def f(x): return 10 ** 100_000\n", "TypeError"),
        (
            "class C:\n    __eq__ = lambda *_: True\n    def __repr__(self): raise SystemExit\ndef "
            "f(x): return C()\n",
            "TypeError",
        ),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(x): raise E\n", "E"),
        (
            "import builtins, os\ndef f(x):\n    builtins.isinstance = builtins.issubclass = "
            "builtins.open = builtins.type = os._exit\n    return 2\n",
            None,
        ),
        (
            "import json\nclass D(dict):\n    pass\njson.dumps = lambda *_, **__: '2'\ndef f(x): "
            "return 2\n",
            "BadReply",
        ),
    ],
)
def test_contained_and_no_success(source, kind):
    result = value(source, 1)
    assert not result.ok and result.value is None and not result.timed_out
    assert kind is None or result.error.type == kind, result


def test_deep_recursion_in_c_ends_the_program_alone():
    source = (
        "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    __getattr__ = lambda "
        "self, name: getattr(self, name)\ndef f(x): return A().b\n"
    )
    assert value(source, 1).error is not None
    assert value("def f(x): return x", 1).value == 1


def test_a_program_can_lie_about_its_values_but_does_not_know_what_is_wanted():
    """A pass printed, or written straight into the channel, is only one more value to compare."""
    printed = value('def f(x):\n    print(\'{"value": 4, "passed": true}\')\n    return None\n', 2)
    assert printed.value is None
    forged = (
        'import os\ndef f(x):\n    os.write(3, b\'{"value": true, "stdout": "all tests '
        "passed\"}\\n')\n    os._exit(0)\n"
    )
    assert value(forged, 2).value is True


def test_plain_values_come_without_their_classes():
    source = """
from collections import Counter, namedtuple
class S(str):
    __eq__ = lambda *_: True
    __hash__ = str.__hash__
class I(int):
    __eq__ = lambda *_: True
    __index__ = __int__ = lambda self: 42
class L(list):
    __iter__ = lambda self: iter([42])
def f(x):
    return [S('no'), I(7), L([1]), Counter('aab'), namedtuple('P', 'x y')(1, 2), {1, 2},
            frozenset((3,)), True, float('inf')]
"""
    got = value(source, 1).value
    assert got == [
        "no",
        7,
        [1],
        {"a": 2, "b": 1},
        (1, 2),
        {1, 2},
        frozenset((3,)),
        True,
        float("inf"),
    ]
    assert [type(item) for item in got] == [
        str,
        int,
        list,
        dict,
        tuple,
        set,
        frozenset,
        bool,
        float,
    ]
    nan = value("def f(x): return [float('nan')]", 1).value
    assert nan != [float("nan")] and nan != nan[0]


def test_output_that_is_no_text():
    result = run(
        "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe1')\n", [Call()], seconds=PATIENT
    )[0]
    assert result.stdout == "\ufffd\ufffd1"
    half = value("def f(x): return '\\ud800'", 1)
    assert half.value == "\ud800" and json.dumps(half.value)


def test_keys_made_to_collide_cannot_stall_the_comparison():
    begun = time.process_time()
    # the program stalls itself
    assert (
        value(
            "def f(x): return {i * (2 ** 61 - 1) for i in range(1, 300_000)} and 1", 1, seconds=1.0
        ).value
        is None
    )
    crafted = {"set": [i * (2**61 - 1) for i in range(200_000)]}
    with pytest.raises(ValueError, match="one hash"):
        unpack(crafted)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "packed", [{"list": [1]}, {"set": [[1]]}, {"a": 1, "b": 2}, {"dict": [[1]]}, {"set": 3}, {}]
)
def test_only_what_pack_writes_is_unpacked(packed):
    with pytest.raises((ValueError, TypeError, KeyError)):
        unpack(packed)


def test_pack_and_unpack_are_inverse():
    plain = [None, True, -3, 2.5, "text", (1, [2]), {(1, "a"): {2}}, frozenset(("x",)), {}]
    assert unpack(json.loads(json.dumps(pack(plain)))) == plain


# --- nothing is left ------------------------------------------------------------------------------


def processes_in(folder: str) -> list[int]:
    """The processes whose working directory is, or was, ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found += [int(entry.name)] if os.readlink(entry / "cwd").startswith(folder) else []
    return found


@pytest.mark.parametrize(
    "without",
    [("audit",), ("audit", "seccomp"), ("audit", "seccomp", "namespaces")],
    ids=["whole", "without-seccomp", "without-both"],
)
@pytest.mark.parametrize(
    "source",
    [
        """
import os, time
def f():
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    except OSError:
        pass
    return os.getcwd()
""",
        """
import os, threading, time
def f():
    threading.Thread(target=time.sleep, args=(600,)).start()
    return os.getcwd()
""",
    ],
    ids=["daemon", "thread"],
)
def test_daemons_and_threads_die_with_the_program_and_its_folder_goes(source, without):
    with Program(source, seconds=PATIENT, without=without) as program:
        folder = program.call(Call("f")).value
        assert processes_in(folder)
    assert not processes_in(folder) and not os.path.exists(folder)


@pytest.mark.parametrize(
    "without", [("audit",), ("audit", "seccomp")], ids=["whole", "without-seccomp"]
)
def test_a_fork_bomb_is_over_when_its_time_is(without):
    needs("namespaces", "seccomp", without=without)
    if "seccomp" in without and os.geteuid() == 0:
        pytest.skip("only seccomp holds root's number of processes down")
    source = (
        "import os\ndef f(folder):\n    while True:\n        try: os.fork()\n        "
        "except OSError: pass\n"
    )
    with Program(
        source + "def where(): return os.getcwd()\n", seconds=2.0, without=without
    ) as program:
        folder = program.call(Call("where")).value
        assert folder and program.call(Call("f", (1,))).timed_out
    assert not processes_in(folder) and not os.path.exists(folder)


def test_a_program_dies_with_the_process_that_started_it():
    script = """
from workbench.tasks.sandbox.outside import Call, Program
source = 'import os\\ndef f(): return os.getcwd()\\ndef g():\\n    while True: pass'
program = Program(source, seconds=600)
print(program.call(Call('f')).value, flush=True)
program.call(Call('g'))
"""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(outside.__file__).parents[3]), *sys.path]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env
    ) as parent:
        folder = parent.stdout.readline().strip()
        assert folder and processes_in(folder)
        parent.kill()
    deadline = time.monotonic() + PATIENT
    while (processes_in(folder) or os.path.exists(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(folder) and not os.path.exists(folder)


def test_a_dead_server_is_replaced():
    value("def f(): return 1")
    outside._zygote._process.kill()
    outside._zygote._process.wait()
    assert value("def f(): return 1").value == 1


def test_a_forked_process_gets_its_own_server():
    value("def f(): return 1")
    pid = os.fork()
    if pid == 0:
        good = value("def f(): return 1").value == 1 and value("def f(): return 1").value == 1
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert value("def f(): return 1").value == 1


# --- what is said, and what it costs --------------------------------------------------------------


def test_missing_layers_are_said_once():
    outside._warn.cache_clear()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            value("def f(): return 1", without=("namespaces", "landlock", "seccomp"))
    assert (
        len(heard) == 1
        and "use the network" in str(heard[0].message)
        and "processor time" not in str(heard[0].message)
    )


def test_protections_are_those_that_hold():
    assert layers() - layers(("landlock", "audit")) == {"landlock", "scopes", "audit"} & layers()
    assert outside._unprevented(()) == [*outside.GUARDS]


def test_no_channel_no_call():
    program = Program("def f(): return 1", seconds=PATIENT)
    assert program.close() == "" and program.call(Call("f")).value == 1
    program.close()
    with pytest.raises(ValueError, match="standard input"):
        program.call(Call(stdin="x" * (outside.FILE // 4 + 1)))
    with pytest.raises(TypeError, match="plain"):
        program.call(Call("f", (object(),)))


def test_overhead():
    """Five milliseconds on an idle machine.

    On a busy one everything takes longer, so also measured against starting an interpreter.
    """
    run("def f(x): return x", [Call("f", (1,))])

    def median(action) -> float:
        times = []
        for _ in range(15):
            begun = time.perf_counter()
            action()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    ours = median(lambda: run("def f(x): return x", [Call("f", (1,))], seconds=PATIENT))
    bare = median(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "pass"]))
    print(f"overhead of a call: {1000 * ours:.1f} ms; an empty interpreter: {1000 * bare:.1f} ms")
    assert ours < max(0.2, 4 * bare)


def test_a_large_reply_costs_little():
    """As objects, eight megabytes of empty lists would be four hundred."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    body = {"[]": "BadReply", '"x"': "BadReply", '{"set":[]}': "BadReply"}
    for item, kind in body.items():
        count = (8 << 20) // (len(item) + 1) - 100
        forged = (
            f"import os\ndef f(x):\n    os.write(3, b'{{\"value\": [' + b'{item},' * {count} + "
            "b'0]}\\n')\n"
        )
        assert value(forged, 1, memory_mb=1024).error.type == kind
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_more_threads_than_are_allowed_are_the_end():
    source = (
        "import threading, time\ndef f(n):\n    threading.stack_size(32768)\n    for _ in range(n):"
        "\n        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "    time.sleep(1)\n    return threading.active_count()\n"
    )
    assert value(source, 50).value == 51
    assert value(source, 600, without=CONTAINER).error is not None


def test_what_a_program_says_can_be_written_anywhere():
    source = (
        "def f(x):\n    raise ValueError('\\ud800' * 9000)\n"
        "f.__code__ = f.__code__.replace(co_name='\\udfff' * 9000)\n"
    )
    error = value(source, 1).error
    assert error == ("ValueError", "?" * 2000, ((2, "?" * 200),))
    assert json.dumps(error, ensure_ascii=False).encode()


def test_the_report_says_what_holds_and_what_is_missing(monkeypatch):
    words = outside.report()
    assert words.startswith(("[ ok ] running programs: held by", "[ no ] running programs"))
    monkeypatch.setitem(outside.GUARDS, "dream", ("sleep",))
    assert outside.report().endswith("dream")
