"""Mathematics with a final answer: a named set, a file, or a data set's hub id.

    --task math:gsm8k,max_new=512
           (also math500, aime24, aime25, hmmt25)
    --task math:problems.jsonl,question=task,answer=result
           (.jsonl, .json, .parquet; columns that have other names than the usual ones)
    --task math:owner/name,config=main,solution=generations
    --task problems.jsonl:max_new=64
           (math:problems.jsonl,plain=true,max_new=64)

A question gets a line that asks for \\boxed{...}; a column ``prompt`` (text, or a list of messages)
is a whole prompt and stays as it is. A solution may be one text or a list: all are kept, as are
those of records that ask the same question again. Such copies (sets of AIME with each problem 32
times) are one problem, and counted in ``meta["copies"]``.

Plain records are taken as they stand: ``question`` is the whole prompt, ``answer`` may be any
words, ``solution`` and ``split`` may be there, and each line is a problem of its own.

Splits. A set with train and test of its own keeps them, and a tenth of its train is held out for
validation. The named sets without a train split are there to be measured with: all their problems
are ``test``, and training on them is refused until one says how. ``split=all`` puts every problem
into every split: learned and measured on the same questions, which is what test-time training does.
``split=hash`` holds out a tenth each for validation and test; it is how files and other single sets
are split. ``split=train`` (or validation, test) puts everything there. (``workbench
discover`` takes its questions from the test split by itself.)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.core import Message, Problem, Verdict, refuse_if
from workbench.tasks.base import SPLITS, FreeText, chat, check_dials, draw, named_split, split_of
from workbench.tasks.loading import FILES, HUB_FILE, HUB_ID, Row, checked, has_text, read
from workbench.tasks.verify import check_gold, compare, grade
from workbench.tasks.verify.statements import last_box

ASK = "\nPlease reason step by step, and put your final answer within \\boxed{}."


# Hub id and config, from the sets' cards and from public code that reads them (the hub was not
# asked).
SETS = {
    "gsm8k": ("openai/gsm8k", "main"),
    "math500": ("HuggingFaceH4/MATH-500", ""),
    "aime24": ("HuggingFaceH4/aime_2024", ""),
    "aime25": ("math-ai/aime25", ""),
    "hmmt25": ("MathArena/hmmt_feb_2025", ""),
}

# Looked for in this order where none is named. The dotted one is the form of verl's files.
QUESTIONS = ("question", "problem", "prompt")
ANSWERS = ("answer", "final_answer", "reward_model.ground_truth")
SOLUTIONS = ("solution", "solutions")


@dataclass(frozen=True)
class Math(FreeText):
    """``source``: a name in ``SETS``, a file, or a hub id (with its ``config``).

    ``question``, ``answer``, ``solution``: the columns, where the usual names do not find them;
    without an answer it is the solution's \\boxed{...}. ``plain``: the records are taken as they
    stand.
    """

    source: str = ""
    config: str = ""
    question: str = ""
    answer: str = ""
    solution: str = ""
    split: str = ""
    max_new: int = 2048  # longest completion, in tokens
    plain: bool = False

    name = "math"

    def __post_init__(self):
        forms = (FILES, HUB_FILE, HUB_ID)
        refuse_if(
            self.source not in SETS and not any(form.fullmatch(self.source) for form in forms),
            f"the task math needs {', '.join(SETS)}, a file (.jsonl, .json, .parquet) "
            f"or a hub id (owner/name), not {self.source!r}",
        )
        columns = (self.config, self.question, self.answer, self.solution)
        refuse_if(
            self.plain and (any(columns) or not FILES.fullmatch(self.source)),
            "the task math takes plain=true with a file whose columns are question and answer",
        )
        check_dials(self.name, self.split, self.max_new, ("hash", "all"))
        _ = self._problems  # a bad record is said now, not after the model is loaded

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        if self.plain:
            return tuple(map(self._plain_problem, self._read()))
        rows = self._read()
        copies_by_question: dict[str, list[Problem]] = {}
        for number, row in enumerate(rows, 1):
            problem = self._problem(number, row)
            question = " ".join(problem.messages[-1]["content"].split())
            copies_by_question.setdefault(question, []).append(problem)
        set_splits = {row.split for row in rows}
        problems = tuple(self._merged(c, set_splits) for c in copies_by_question.values())
        if len(problems) < len(rows):
            warnings.warn(
                f"{len(rows) - len(problems)} of the {len(rows)} records of {self.source} ask a "
                f"question again; {len(problems)} problems are left",
                stacklevel=5,
            )
        return problems

    def _read(self) -> list[Row]:
        return read(*SETS.get(self.source, (self.source, self.config)))

    def _plain_problem(self, row: Row) -> Problem:
        """A record as it stands. Its id is the file's name and its line: runs record it."""
        where, record = row.where, row.columns
        question, answer = record.get("question"), record.get("answer")
        refuse_if(not has_text(question), f'{where} needs a "question" with text in it')
        refuse_if(answer is None or answer == "", f'{where} needs an "answer"')
        answer, solutions = _after_hashes(_answer_text(where, answer), self._solutions(row))
        refuse_if(not answer, f'{where} has no answer after its "####"')
        # words are compared as they stand; a formula that cannot be read would equal no other
        # writing of itself
        if "\\" in answer:
            check_gold(where, answer)
        split = self.split or named_split(where, record) or "hash"
        meta = {"split": split_of(question) if split == "hash" else split}
        problem_id = f"{Path(self.source).stem}:{row.number}"
        _check_accepted(where, answer)
        return checked(where, Problem(problem_id, chat(question), answer, solutions, meta))

    def _problem(self, number: int, row: Row) -> Problem:
        where, record = row.where, row.record
        refuse_if(not isinstance(record, dict), f"{where} is not a record with named columns")
        column, question = column_of(row, "question", self.question, QUESTIONS)
        solutions = self._solutions(row)
        answer, solutions = _after_hashes(self._answer(row, solutions), solutions)
        refuse_if(not answer, f"{where} has no answer")
        messages = messages_of(where, question, whole=column == "prompt")
        named = "" if self.split else named_split(where, record)
        meta = {"split": row.split, "named": named, "where": where}
        return checked(where, Problem(f"{self.source}:{number}", messages, answer, solutions, meta))

    def _solutions(self, row: Row) -> tuple[str, ...]:
        _, value = row.first(SOLUTIONS)
        if self.solution:
            _, value = column_of(row, "solution", self.solution)
        return tuple(filter(has_text, value if isinstance(value, list) else [value]))

    def _answer(self, row: Row, solutions: tuple[str, ...]) -> str:
        """The answer's column; without one, what the first solution has in its box."""
        boxed = last_box(solutions[0]) if solutions else ""
        if boxed and not self.answer and not row.first(ANSWERS)[0]:
            return boxed
        _, value = column_of(row, "answer", self.answer, ANSWERS)
        return _answer_text(row.where, value)

    def _merged(self, copies: list[Problem], set_splits: set[str]) -> Problem:
        """A question's records as one problem, with all their solutions."""
        first = copies[0]
        check_gold(first.meta["where"], first.answer)
        _check_accepted(first.meta["where"], first.answer)
        solutions: dict[str, None] = {}  # in order, each once
        answers = {first.answer}
        for copy in copies:
            refuse_if(
                copy.answer not in answers and not _same(first, copy),
                f"{copy.meta['where']} asks the question of {first.meta['where']} and "
                f"has another answer: {copy.answer!r}, not {first.answer!r}",
            )
            answers.add(copy.answer)
            solutions |= dict.fromkeys(copy.solutions)
        named = {copy.meta["named"] for copy in copies} - {""}
        splits = named or {copy.meta["split"] for copy in copies}
        question = first.messages[-1]["content"]
        split = self._split(question, splits, set(SPLITS) if named else set_splits)
        meta = {"split": split, "copies": len(copies)}
        return Problem(first.id, first.messages, first.answer, tuple(solutions), meta)

    def _split(self, question: str, splits: set[str], set_splits: set[str]) -> str:
        """Where a question belongs whose records are in ``splits``, of the set's ``set_splits``."""
        hashed = split_of(question)
        if self.split:
            return hashed if self.split == "hash" else self.split
        if not {"train", "test"} <= set_splits <= set(SPLITS):
            return "test" if self.source in SETS else hashed
        if hashed == "validation" and "validation" not in set_splits and splits == {"train"}:
            return "validation"
        return max(splits, key=SPLITS.index)  # a question that is in two is not trained on

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        only_measures = not self.plain and all(p.meta["split"] == "test" for p in self._problems)
        refuse_if(
            only_measures and split != "test" and n,
            f"{self.source} is for measuring: all its problems are in the test split; "
            "split=all trains on them and measures on the "
            "same ones (test-time training), split=hash holds a tenth out",
        )
        return draw(self._problems, split, n, seed, self.source)

    def grade(self, problem: Problem, text: str) -> Verdict:
        return grade(problem.answer, text, stated_only="\\boxed" in problem.messages[-1]["content"])


def _answer_text(where: str, value: Any) -> str:
    """Raises WorkbenchError for what is neither text nor a number."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    shown = json.dumps(value, default=repr)[:100]
    refuse_if(
        not number or not abs(value) < float("inf"),
        f"{where} has an answer that is neither text nor a number: {shown}",
    )
    return str(value)


def _check_accepted(where: str, gold: str) -> None:
    """Raises WorkbenchError where not even the answer itself would be right."""
    texts = f"\\boxed{{{gold}}}", f"#### {gold}", f"Answer: {gold}"
    refuse_if(
        not any(grade(gold, text, stated_only=True).correct for text in texts),
        f"{where} has the answer {gold[:200]!r}, which the grader would not find right itself",
    )


def _same(first: Problem, copy: Problem) -> bool:
    """Have two records of one question the same answer?"""
    check_gold(copy.meta["where"], copy.answer)
    verdict = compare(first.answer, copy.answer)
    return verdict.same or verdict.how == "no math-verify"


def _after_hashes(answer: str, solutions: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """GSM8K's answer is a worked solution that ends with ``#### 18``: taken apart."""
    if "####" not in answer:
        return answer, solutions
    return answer.rsplit("####", 1)[1].strip(), solutions or (answer,)


def column_of(row: Row, what: str, named: str, usual: Sequence[str] = ()) -> tuple[str, Any]:
    """(name, value) of the column ``named``, else of the first of the ``usual`` ones."""
    names = (named,) if named else usual
    name, value = row.first(names)
    refuse_if(
        value is None or value == "",
        f"{row.where} has no {what} in {' or '.join(names)}; its columns are "
        f"{row.column_names}: write {what}=COLUMN",
    )
    return name, value


def messages_of(where: str, question: Any, whole: bool) -> tuple[Message, ...]:
    if isinstance(question, list) and question and all(map(_is_message, question)):
        messages = tuple({"role": m["role"], "content": m["content"]} for m in question)
        question = messages[-1]["content"]
        if has_text(question):
            return messages
    refuse_if(
        not has_text(question),
        f"{where} has a question that is neither text nor a list of messages",
    )
    return chat(question if whole or "\\boxed" in question else question + ASK)


def _is_message(value: Any) -> bool:
    texts = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None,)
    return all(isinstance(text, str) for text in texts) and bool(texts[0])
