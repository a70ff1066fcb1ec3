"""Programs, run against tests in the sandbox.

    --task code:problems.jsonl,max_new=4096
    --task code:livecodebench_v6,split=test

Each line of the file (plain or .gz) is a record of LiveCodeBench (``question_content``,
``public_test_cases``, ``private_test_cases``, ...) or of HumanEval (``prompt``, ``test``,
``entry_point``, ...); a line may name its ``split``. The program is the last fenced block of the
completion, else all of it. Reward 1 only if every test passes; the feedback tells of the *training
tests* alone, which are LiveCodeBench's public tests and the ``>>>`` examples in HumanEval's prompt.

Differs from LiveCodeBench's own grader: every standard-input test gets a real process state
(open(0), threads, exit handlers), and functions may return what a test wants in any plain type that
is equal to it. From HumanEval's: ``check`` runs in another process than the program, and only plain
values pass between them, so that no object of the program's can call itself equal.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import keyword
import re
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, NamedTuple

from workbench.core import Problem, Step, Verdict, WorkbenchError, refuse_if
from workbench.tasks.base import Reprompts, chat, check_dials, draw, named_split, split_of
from workbench.tasks.loading import Row, check_text, checked, has_text, limit, read, structured
from workbench.tasks.sandbox.outside import Call, Program, Result, check_execution, in_parallel
from workbench.thoughts import spoken

# Read as files: livecodebench/code_generation_lite comes with a loading script, which datasets runs
# no longer. v6 is what its last release added: 175 questions of January to April 2025 (the file's
# size and count as others report them; it was not downloaded here).
SETS = {"livecodebench_v6": "hf://datasets/livecodebench/code_generation_lite/test6.jsonl"}

# What LiveCodeBench puts before every program, in its order.
PRELUDE = """\
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, \
itertools, functools, operator, io, sys, json
sys.setrecursionlimit(50000)"""

ASK = (
    "Write a correct Python program for the problem below; it must pass all tests. Think "
    "first if you like, and end with the complete program in one ```python block."
)
STDIN = "The program reads standard input and prints the answer to standard output."
STARTER = "Use this starter code:"
COMPLETE = "Complete this function, and give all of it:"
SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
FORMAT = "Incorrect Format: Put your code inside a ```python ... ``` block."


class Test(NamedTuple):
    """``input`` is the input as the record writes it, for the feedback.

    A whole program's output is compared as text, a function's as a value.
    """

    call: Call
    expected: Any
    input: str

    def passed(self, result: Result) -> bool:
        if not result.ok:
            return False
        if self.call.function:
            return same_value(result.value, self.expected)
        return same_output(result.stdout, self.expected)


class Suite(NamedTuple):
    """What one problem's programs are graded by.

    ``check``: HumanEval's own, a program with a function check_program(candidate).
    """

    public: tuple[Test, ...]
    private: tuple[Test, ...] = ()
    check: str = ""
    function: str = ""
    prelude: str = PRELUDE


# --- comparing, as LiveCodeBench does -------------------------------------------------------------


def same_output(output: str, expected: str) -> bool:
    """Line by line without outer blanks; lines that differ as text must be equal, number for
    number, as exact decimals (1.50 is 1.5; no tolerance).
    """
    lines, due = ([*map(str.strip, t.strip().split("\n"))] for t in (output, expected))
    return len(lines) == len(due) and all(map(_same_line, lines, due))


def _same_line(line: str, due: str) -> bool:
    try:
        return line == due or [*map(Decimal, line.split())] == [*map(Decimal, due.split())]
    except InvalidOperation:  # not numbers, or signalling NaN
        return False


def same_value(value: Any, expected: Any) -> bool:
    """Equal as Python has it, a tuple as a list; numbers exactly, NaN to nothing."""
    left, right = (list(v) if isinstance(v, tuple) else v for v in (value, expected))
    try:
        return left == right
    except RecursionError:
        return False


# --- feedback (arXiv 2601.20802, in the style of LeetCode) ----------------------------------------


def feedback(tests: Sequence[Test], results: Sequence[Result]) -> str:
    """The first error; else the first time-out; else up to two wrong answers, shortest first; ""
    when all pass. At most 2,000 characters.
    """
    pairs = list(zip(tests, results))
    for test, result in pairs:
        if result.error:
            trace = [f"Line {line} in {name}" for line, name in result.error.frames]
            message = _clip(f"{result.error.type}: {result.error.message}".rstrip(": "))
            return _stopped(test, "Runtime Error", message, *trace)
    for test, result in pairs:
        if result.timed_out:
            return _stopped(test, "Time Limit Exceeded")
    wrong = [(i, t, _output(t, r)) for i, (t, r) in enumerate(pairs, 1) if not t.passed(r)]
    wrong.sort(key=lambda case: len(case[1].input) + len(case[2]))
    return "\n\n".join(_wrong_answer(*case) for case in wrong[:2])[:2000]


def _output(test: Test, result: Result) -> str:
    return repr(result.value) if test.call.function else result.stdout.strip()


def _stopped(test: Test, *lines: str) -> str:
    return "\n".join([*lines, "", "Last Executed Input", _input(test)])[:2000]


def _wrong_answer(number: int, test: Test, output: str) -> str:
    due = test.expected.strip() if isinstance(test.expected, str) else repr(test.expected)
    return (
        f"Test Case {number}: Wrong Answer\n\nInput\n{_input(test)}\n\n"
        f"Output\n{_clip(output)}\n\nExpected\n{_clip(due)}"
    )


def _clip(text: str, longest: int = 250) -> str:
    """Also makes it text that can be written anywhere: a program can return half a character."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _input(test: Test) -> str:
    lines = test.input.rstrip("\n").split("\n")
    rest = f"\n... ({len(lines) - 8} more lines)" if len(lines) > 8 else ""
    return _clip("\n".join(lines[:8])) + rest


# --- the task -------------------------------------------------------------------------------------


_PYTHON = re.compile(r"(?:python[\d.]*|py3?)?(?!\S)", re.IGNORECASE)
# A line before a block that is no program.
_SHOWN = re.compile(r"\b(?:inputs?|outputs?|prints)\b[^\n]*\n?[ \t]*\Z", re.IGNORECASE)
# "The program, which prints the answer:" is none, where the block calls itself Python.
_SAYS_WHAT_IT_DOES = re.compile(
    r"\b(?:program|code|solution|script|function|version)\b[^\n]*\b(?:which|that|to)\b"
    r"[^\n]*\n?[ \t]*\Z",
    re.IGNORECASE,
)


def extract(text: str) -> tuple[str, bool]:
    """The program in a completion, and whether it was fenced.

    The last block of Python that is said aloud and not shown as output, else the last block, else
    everything. A fence that is not closed opens a block; one that nothing opens ends a program that
    the prompt has begun.
    """
    said = spoken(text)
    pieces = said.split("```")
    if len(pieces) % 2 == 0 and not pieces[1].partition("\n")[0].strip() and _parses(pieces[0]):
        pieces = ["", "\n" + pieces[0], *pieces[1:]]
    programs, others = [], []
    for before, block in zip(pieces[::2], pieces[1::2]):
        info, newline, program = block.partition("\n")
        program_named = info.strip() and _SAYS_WHAT_IT_DOES.search(before)
        shown = _SHOWN.search(before) and not program_named
        is_program = _PYTHON.match(info.strip()) and not shown
        if newline:
            (programs if is_program else others).append(textwrap.dedent(program))
    blocks = programs or others
    return (blocks[-1], True) if blocks else (said, False)


def _parses(program: str) -> bool:
    try:
        return bool(ast.parse(textwrap.dedent(program)).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


@dataclass(frozen=True)
class Code(Reprompts):
    """Problems read from ``path``, a file or a name in ``SETS``.

    A tenth each is held out for validation and test, by the question's hash, unless lines name a
    split or ``split`` puts all of them into one. ``seconds`` and ``memory_mb`` are for each test,
    and for HumanEval's check as a whole.
    """

    path: str = ""
    split: str = ""
    seconds: float = 6.0
    memory_mb: int = 1024
    max_new: int = 2048  # longest completion, in tokens

    name = "code"

    def __post_init__(self):
        refuse_if(not self.path, "the task code needs a file of problems: code:path=FILE")
        check_dials(self.name, self.split, self.max_new)
        check_execution(self.name)
        refuse_if(
            self.seconds <= 0 or self.memory_mb < 64,
            "the task code takes seconds above 0 and memory_mb from 64",
        )
        _ = self._rows  # a bad file is said now, not after the model is loaded

    @cached_property
    def _rows(self) -> dict[str, tuple[Problem, Suite]]:
        rows, places = {}, {}
        for row in read(SETS.get(self.path, self.path)):
            problem, suite = _problem(row, self.split)
            refuse_if(problem.id in rows, f"{row.where} has the id {problem.id} of an earlier line")
            rows[problem.id] = problem, suite
            places[problem.id] = row.where
        with_check = [name for name, (_, suite) in rows.items() if suite.check]
        passes = in_parallel(self._passes_anything, [rows[name][1] for name in with_check])
        for name, anything in zip(with_check, passes):
            refuse_if(anything, f"{places[name]} has a test that any program passes")
        return rows

    def _passes_anything(self, suite: Suite) -> bool:
        """Is a program right that answers every call with nonsense?"""
        with Program(suite.check, seconds=self.seconds, memory_mb=self.memory_mb) as checker:
            answers = (Result(value=None), Result(value="nonsense"))
            return all(
                checker.call(Call("check_program"), lambda _, a=answer: a).ok for answer in answers
            )

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        return draw([problem for problem, _ in self._rows.values()], split, n, seed, self.path)

    def grade(self, problem: Problem, text: str) -> Verdict:
        """``parts``: the share of the training tests that pass."""
        program, fenced = extract(text)
        if not program.strip():
            return Verdict(0.0, False, FORMAT, {"training_tests": 0.0})
        suite = self._rows[problem.id][1]
        results, correct = self._run(program, suite)
        passed = [test.passed(result) for test, result in zip(suite.public, results)]
        share = sum(passed) / len(passed) if passed else float(correct)
        if correct:
            return Verdict(1.0, True, "", {"training_tests": share})
        no_python = not fenced and any(map(_is_no_python, results))
        words = FORMAT if no_python else feedback(suite.public, results)
        return Verdict(0.0, False, words, {"training_tests": share})

    def _run(self, program: str, suite: Suite) -> tuple[list[Result], bool]:
        """What the training tests and HumanEval's check gave, and whether all is right."""
        with Program(
            program,
            seconds=self.seconds,
            memory_mb=self.memory_mb,
            prelude=suite.prelude,
            calls=len(suite.public) + len(suite.private) + 100 * bool(suite.check),
        ) as running:
            results = [running.call(test.call) for test in suite.public]
            # the docstring's examples are for the feedback; what counts is the check
            if suite.check:
                results.append(self._check(suite, running))
                return results, results[-1].ok
            public = map(Test.passed, suite.public, results)
            private = (test.passed(running.call(test.call)) for test in suite.private)
            return results, all(public) and all(private)

    def _check(self, suite: Suite, running: Program) -> Result:
        """HumanEval's check, in a process of its own, asks ``running`` for every value."""
        with Program(suite.check, seconds=self.seconds, memory_mb=self.memory_mb) as checker:
            return checker.call(
                Call("check_program"), lambda args: running.call(Call(suite.function, args))
            )

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """Not known: a failing test does not say which line is to blame."""
        return None


def _is_no_python(result: Result) -> bool:
    """Did the program not even compile?"""
    error = result.error
    return bool(error) and error.type in SYNTAX_ERRORS and not error.frames


# --- records --------------------------------------------------------------------------------------


def _problem(row: Row, split: str) -> tuple[Problem, Suite]:
    """Raises WorkbenchError, naming the line, for a record of neither form."""
    form = next((form for column, form in FORMS.items() if column in row.columns), None)
    refuse_if(
        form is None,
        f"{row.where} is no record of LiveCodeBench (question_content, ...) or HumanEval "
        "(entry_point, ...)",
    )
    check_text(row.where, *filter(has_text, row.columns.values()))
    try:
        problem, suite = form(row.columns)
    except (
        *(KeyError, TypeError, ValueError, AttributeError, WorkbenchError),
        *(SyntaxError, RecursionError, MemoryError, zlib.error),
    ) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise WorkbenchError(f"{row.where} {what}") from error
    question = problem.messages[-1]["content"]
    problem.meta["split"] = split or named_split(row.where, row.columns) or split_of(question)
    check_text(row.where, *(test.input for test in suite.public + suite.private))
    return checked(row.where, problem), suite


def _text(row: dict, column: str) -> str:
    """Raises KeyError or WorkbenchError where the record has no text there."""
    value = row[column]
    refuse_if(not has_text(value), f"{column} is no text")
    return value


def livecodebench(row: dict) -> tuple[Problem, Suite]:
    """A record of LiveCodeBench's code generation set.

    Raises KeyError, TypeError, ValueError or WorkbenchError for another form.
    """
    function = json.loads(row.get("metadata") or "{}").get("func_name") or ""
    public = [_test(case, function) for case in json.loads(row["public_test_cases"])]
    private = [_test(case, function) for case in private_tests(row["private_test_cases"])]
    refuse_if(
        not any(test.expected not in ("", None) for test in public + private),
        "there are no tests" + " with an output" * bool(public + private),
    )
    starter = row.get("starter_code") or ""
    form = f"{STARTER}\n\n```python\n{starter.rstrip()}\n```" if starter.strip() else STDIN
    content = f"{ASK}\n\n{_text(row, 'question_content').strip()}\n\n{form}"
    meta = {key: str(row[key]) for key in ("platform", "difficulty", "contest_date") if key in row}
    problem = Problem(_text(row, "question_id"), chat(content), "", (), meta)
    return problem, Suite(tuple(public), tuple(private))


def _test(case: dict, function: str) -> Test:
    text, expected, kind = case["input"], case["output"], case["testtype"]
    refuse_if(
        not isinstance(text, str) or not isinstance(expected, str),
        "a test whose input or output is no text",
    )
    if kind == "stdin":
        return Test(Call(stdin=text), expected.strip(), text)
    refuse_if(
        kind != "functional" or not is_name(function),
        "a functional test needs metadata with a func_name",
    )
    arguments = tuple(json.loads(line) for line in text.split("\n"))
    return Test(Call(function, arguments), json.loads(expected), text)


def private_tests(text: str) -> list[dict]:
    """JSON, or base64 of zlib of a pickle of JSON text, which is read without running it."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    unpacker = zlib.decompressobj()
    most = limit(len(text))
    data = unpacker.decompress(base64.b64decode(text, validate=True), most)
    refuse_if(not unpacker.eof, "the private tests are cut off, or too large")
    tests = pickled_text(data)
    structured(tests.encode("utf-8", "replace"), most)
    return json.loads(tests)


def pickled_text(data: bytes) -> str:
    """The text in a pickle of one text.

    Nothing is executed; raises WorkbenchError for a pickle with anything else in it.
    """
    import pickletools  # a fifth of a second's worth of module on a slow disk, and used only here

    texts = []
    harmless = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"):
            texts.append(argument)
        else:
            refuse_if(
                opcode.name not in harmless,
                f"the pickle is more than one text: it has {opcode.name}",
            )
    refuse_if(len(texts) != 1, f"the pickle holds {len(texts)} texts")
    return texts[0]


def humaneval(row: dict) -> tuple[Problem, Suite]:
    """A record of HumanEval. Raises as ``livecodebench`` does."""
    prompt, function, test = (_text(row, name) for name in ("prompt", "entry_point", "test"))
    content = f"{ASK}\n\n{COMPLETE}\n\n```python\n{prompt.rstrip()}\n```"
    solution = row.get("canonical_solution")
    solutions = (f"```python\n{prompt}{solution.rstrip()}\n```",) if solution else ()
    refuse_if(not is_name(function), f"{function!r} is no function's name")
    functions = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef)]
    refuse_if(
        not any(node.name == "check" and node.args.args for node in functions),
        "the test has no function check(candidate)",
    )
    # Some checks call the function by its own name as well: there too it is the program's.
    check = (
        f"{prompt}\n{test}\n\ndef check_program(candidate):\n"
        f"    global {function}\n    {function} = candidate\n    check(candidate)\n"
    )
    ast.parse(check)
    problem = Problem(_text(row, "task_id"), chat(content), "", solutions, {})
    return problem, Suite(tuple(examples(prompt, function)), (), check, function, prompt)


def is_name(text: Any) -> bool:
    """Can a function be called so?"""
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)


def examples(prompt: str, function: str) -> list[Test]:
    """The examples ``>>> function(...)`` of a docstring whose arguments and value are written
    out.
    """
    tests = []
    example = r"^[ \t]*>>> (.+)\n[ \t]*(?!>>>)(\S.*)$"
    for source, expected in re.findall(example, prompt, re.MULTILINE):
        # an expression around the call, a comment instead of a value: no example
        with contextlib.suppress(ValueError, SyntaxError):
            match ast.parse(source.strip(), mode="eval").body:
                case ast.Call(ast.Name(name), arguments, []) if name == function:
                    values = tuple(map(ast.literal_eval, arguments))
                    value = ast.literal_eval(expected.strip())
                    tests.append(Test(Call(function, values), value, source.strip()))
    return tests


# by the column that only its records have
FORMS = {"question_content": livecodebench, "entry_point": humaneval}
