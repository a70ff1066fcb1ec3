"""Mathematics with a final answer:

``math:gsm8k``, ``math:math500``, ``math:aime24``, ``math:aime25``, ``math:hmmt25``, a file, or a
data set's hub id.

    --task math:gsm8k,max_new=512
    --task math:problems.jsonl,question=task,answer=result     (.jsonl, .json, .parquet; other
        columns by name)
    --task math:owner/name,config=main,solution=generations

A question gets a line that asks for \\boxed{...}; a column ``prompt`` (text, or a list of messages)
is a whole prompt and stays as it is. A solution may be one text or a list: all are kept, as are
those of records that ask the same question again. Such copies (sets of AIME with each problem 32
times) are one problem, and counted in ``meta["copies"]``.

Splits. A set with train and test of its own keeps them, and a tenth of its train is held out for
validation. The named sets without a train split are there to be measured with: all their problems
are ``test``, and training on them is refused until one says how. ``split=all`` puts every problem
into every split: learned and measured on the same questions, which is what test-time training does.
``split=hash`` holds out a tenth each for validation and test; it is how files and other single sets
are split. ``split=train`` (or validation, test) puts everything there. (``python -m
workbench.training.ttt`` takes its questions from the test split by itself.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from workbench.core import Problem, Verdict, WorkbenchError
from workbench.tasks import prompts
from workbench.tasks.loading import (
    FILES,
    HUB_FILE,
    HUB_ID,
    SPLITS,
    Row,
    check_dials,
    draw,
    read,
    split_of,
)
from workbench.tasks.verify import check_gold, grade
from workbench.tasks.verify.answers import exact
from workbench.tasks.verify.statements import last_box

ASK = "\nPlease reason step by step, and put your final answer within \\boxed{}."


class Known(NamedTuple):
    """``splits`` and ``columns`` as published; a test reads a record of just these columns."""

    hub: str
    config: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]


# From the sets' cards and from public code that reads them. Real records of gsm8k and math500 are
# in the tests; the hub was not asked.
SETS = {
    "gsm8k": Known("openai/gsm8k", "main", ("train", "test"), ("question", "answer")),
    "math500": Known(
        "HuggingFaceH4/MATH-500",
        "",
        ("test",),
        ("problem", "solution", "answer", "subject", "level", "unique_id"),
    ),
    "aime24": Known(
        "HuggingFaceH4/aime_2024",
        "",
        ("train",),
        ("id", "problem", "solution", "answer", "url", "year"),
    ),
    "aime25": Known("math-ai/aime25", "", ("test",), ("problem", "answer", "id")),
    "hmmt25": Known(
        "MathArena/hmmt_feb_2025",
        "",
        ("train",),
        ("problem_idx", "problem", "answer", "problem_type"),
    ),
}

# Looked for in this order where none is named. The dotted one is the form of verl's files.
QUESTIONS, ANSWERS, SOLUTIONS = (
    ("question", "problem", "prompt"),
    ("answer", "final_answer", "reward_model.ground_truth"),
    ("solution", "solutions"),
)


@dataclass(frozen=True)
class Math(prompts.FreeText):
    """``source``: a name in ``SETS``, a file, or a hub id (with its ``config``).

    ``question``, ``answer``, ``solution``: the columns, where the usual names do not find them;
    without an answer it is the solution's \\boxed{...}.
    """

    source: str = ""
    config: str = ""
    question: str = ""
    answer: str = ""
    solution: str = ""
    split: str = ""
    max_new: int = 2048  # longest completion, in tokens

    name = "math"

    def __post_init__(self):
        if self.source not in SETS and not any(
            form.fullmatch(self.source) for form in (FILES, HUB_FILE, HUB_ID)
        ):
            raise WorkbenchError(
                f"the task math needs {', '.join(SETS)}, a file (.jsonl, .json, .parquet) "
                f"or a hub id (owner/name), not {self.source!r}"
            )
        check_dials(self.name, self.split, self.max_new, ("hash", "all"))
        self._problems  # a bad record is said now, not after the model is loaded

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        known = SETS.get(self.source)
        rows = read(*((known.hub, known.config) if known else (self.source, self.config)))
        found: dict[str, list[Problem]] = {}
        for number, row in enumerate(rows, 1):
            problem = self._problem(number, row)
            found.setdefault(" ".join(problem.messages[-1]["content"].split()), []).append(problem)
        own = {row.split for row in rows}
        made = tuple(self._one(same, own) for same in found.values())
        if len(made) < len(rows):
            warnings.warn(
                f"{len(rows) - len(made)} of the {len(rows)} records of {self.source} ask a "
                f"question again; {len(made)} problems are left",
                stacklevel=5,
            )
        return made

    def _problem(self, number: int, row: Row) -> Problem:
        where, record = row.where, row.record
        if not isinstance(record, dict):
            raise WorkbenchError(f"{where} is not a record with named columns")
        question = _column(
            where, record, "question", (self.question,) if self.question else QUESTIONS
        )
        traces = (
            _column(where, record, "solution", (self.solution,))
            if self.solution
            else _first(record, SOLUTIONS)
        )
        solutions = tuple(
            trace
            for trace in (traces if isinstance(traces, list) else [traces])
            if isinstance(trace, str) and trace.strip()
        )
        whole = (self.question or next(name for name in QUESTIONS if name in record)) == "prompt"
        if (
            self.answer
            or _first(record, ANSWERS) is not None
            or not (solutions and last_box(solutions[0]))
        ):
            answer = _column(where, record, "answer", (self.answer,) if self.answer else ANSWERS)
        else:
            answer = last_box(solutions[0])
        answer = str(answer).strip()
        if "####" in answer:  # GSM8K: the worked solution ends with it
            solutions, answer = solutions or (answer,), answer.rsplit("####", 1)[1].strip()
        if not answer:
            raise WorkbenchError(f"{where} has no answer")
        messages = _messages(where, question, whole)
        if any(
            "\ud800" <= c <= "\udfff"
            for c in "".join((answer, *solutions, *(m["content"] for m in messages)))
        ):
            raise WorkbenchError(
                f"{where} holds half of a surrogate pair (\\ud800 to \\udfff alone), which "
                "is no text"
            )
        return Problem(
            f"{self.source}:{number}",
            messages,
            answer,
            solutions,
            {"split": row.split, "where": where},
        )

    def _one(self, same: list[Problem], own: set[str]) -> Problem:
        """A question's records as one problem, with all their solutions."""
        first = same[0]
        check_gold(first.meta["where"], first.answer)
        for other in same[1:]:
            if exact(first.answer, other.answer) is False:
                raise WorkbenchError(
                    f"{other.meta['where']} asks the question of {first.meta['where']} and "
                    "has another answer: "
                    f"{other.answer!r}, not {first.answer!r}"
                )
        solutions = tuple(
            dict.fromkeys(solution for problem in same for solution in problem.solutions)
        )
        split = self._split(
            first.messages[-1]["content"], {problem.meta["split"] for problem in same}, own
        )
        return Problem(
            first.id, first.messages, first.answer, solutions, {"split": split, "copies": len(same)}
        )

    def _split(self, question: str, given: set[str], own: set[str]) -> str:
        hashed = split_of(question)
        if self.split:
            return hashed if self.split == "hash" else self.split
        if {"train", "test"} <= own <= set(SPLITS):
            held_out = hashed == "validation" and "validation" not in own and given == {"train"}
            # a question that is in two splits is not trained on
            return "validation" if held_out else max(given, key=SPLITS.index)
        return "test" if self.source in SETS else hashed

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        if (
            split != "test"
            and n
            and {problem.meta["split"] for problem in self._problems} == {"test"}
        ):
            raise WorkbenchError(
                f"{self.source} is for measuring: all its problems are in the test split; "
                "split=all trains on them and measures on the "
                "same ones (test-time training), split=hash holds a tenth out"
            )
        return draw(self._problems, split, n, seed, self.source)

    def grade(self, problem: Problem, text: str) -> Verdict:
        return grade(problem.answer, text, stated_only="\\boxed" in problem.messages[-1]["content"])


def _first(record: dict, names: tuple[str, ...]) -> Any:
    """The first of the columns that is there; ``a.b`` is b inside a."""
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _column(where: str, record: dict, what: str, names: tuple[str, ...]) -> Any:
    value = _first(record, names)
    if value is None or value == "":
        raise WorkbenchError(
            f"{where} has no {what} in {' or '.join(names)}; its columns are "
            f"{', '.join(map(str, record))}: write {what}=COLUMN"
        )
    return value


def _messages(where: str, question: Any, whole: bool) -> tuple[dict[str, str], ...]:
    if (
        isinstance(question, list)
        and question
        and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role")
            for m in question
        )
    ):
        return tuple({"role": m["role"], "content": m["content"]} for m in question)
    if not isinstance(question, str) or not question.strip():
        raise WorkbenchError(f"{where} has a question that is neither text nor a list of messages")
    return (
        {"role": "user", "content": question if whole or "\\boxed" in question else question + ASK},
    )
