"""Problems from a JSON-lines file, graded by their final answer.

Each line is an object with ``question`` and ``answer`` (and, if you like, ``solution`` and ``split``). A GSM8K answer (``... #### 18``) is
read as solution and answer. Graded: the last \\boxed{...}, else what follows the last ``####``, ``Answer:``, ``answer is`` or ``Answer 18``, else
the last number; numbers are compared as numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random

from workbench.core import Message, Problem, Step, Verdict, WorkbenchError
from workbench.tasks import prompts

SPLITS = ("train", "validation", "test")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_PLAIN = re.compile(r"[+-]?(?:\d+/\d+|\d+\.?\d*|\.\d+)")  # no exponents: Fraction would write 1e999999999 out


def final_answer(text: str) -> str:
    """The answer that a solution ends with; "" when there is none."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    marked = re.findall(r"(?:####|\b[Aa]nswer(?:[ \t]+is\b:?|:|(?=[ \t]+[-$\d])))[ \t]*([^\n]+)", text)
    numbers = _NUMBER.findall(text)
    found = boxed or marked or numbers
    return found[-1].strip() if found else ""


def value(answer: str) -> Fraction | str:
    """A number where the answer is one ($1,200.50 and 3/4 are), else the text in lower case."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer.replace("$", "")).strip().rstrip(".%")
    try:
        return Fraction(plain) if _PLAIN.fullmatch(plain) else " ".join(answer.lower().split()).rstrip(".")
    except (ValueError, ZeroDivisionError):  # too many digits for Python, 1/0
        return " ".join(answer.lower().split()).rstrip(".")


@dataclass(frozen=True)
class File:
    """Problems read from ``path``. A tenth each is held out for validation and test, by the question's hash, unless lines name a split."""

    path: str
    rows: tuple[Problem, ...]
    max_new: int = 512  # longest completion, in tokens

    name = "file"

    @classmethod
    def read(cls, path: Path) -> File:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise WorkbenchError(f"could not read the problem file {path}: {getattr(error, 'strerror', None) or error}") from error
        rows = [_problem(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise WorkbenchError(f"the problem file {path} is empty")
        return cls(str(path), tuple(rows))

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        pool = [problem for problem in self.rows if problem.meta["split"] == split]
        if len(pool) < n:
            raise WorkbenchError(f"{self.path} has {len(pool)} problems in its {split} split, {n} wanted")
        return Random(seed).sample(pool, n)

    def grade(self, problem: Problem, text: str) -> Verdict:
        given = final_answer(text)
        correct = bool(given) and value(given) == value(problem.answer)
        feedback = "" if correct else f"Your final answer {given} is not right." if given else "There is no final answer."
        return Verdict(float(correct), correct, feedback)

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """Not known for free text."""
        return None

    def reprompt(self, problem: Problem, *, solution: str = "", attempt: str = "", feedback: str = "") -> tuple[Message, ...]:
        return prompts.reprompt(problem, solution=solution, attempt=attempt, feedback=feedback)

    def synthesis(self, problem: Problem, wrong: str, right: str) -> tuple[Message, ...]:
        return prompts.audit(problem, wrong, right)


def _problem(path: Path, number: int, line: str) -> Problem:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise WorkbenchError(f'{where} needs a "question" with text in it')
    if not isinstance(row.get("answer"), (str, int, float)) or not str(row["answer"]).strip():
        raise WorkbenchError(f'{where} needs an "answer"')
    question, answer, solution = row["question"], str(row["answer"]), str(row.get("solution") or "")
    if any("\ud800" <= c <= "\udfff" for c in question + answer + solution):
        raise WorkbenchError(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no text")
    if "####" in answer:
        solution, answer = solution or answer, answer.rsplit("####", 1)[1].strip()
        if not answer:
            raise WorkbenchError(f'{where} has no answer after its "####"')
    bucket = hashlib.blake2b(question.encode(), digest_size=2).digest()[0]
    split = row.get("split") or ("test" if bucket < 26 else "validation" if bucket < 52 else "train")
    if split not in SPLITS:
        raise WorkbenchError(f"{where} has the split {split!r}; it must be one of {', '.join(SPLITS)}")
    return Problem(f"{path.stem}:{number}", ({"role": "user", "content": question},), answer, (solution,) if solution else (), {"split": split})
