"""Rows that are in memory already, and answers that a function of the user's own rewards.

    load_task([{"question": "1 + 1 =", "answer": "2"}, ...])       graded as math: grades a file
    load_task(datasets.load_dataset(...))                          also a pandas.DataFrame
    load_task(rows, reward=lambda text, answer: answer in text)    also "FILE" or "owner/name"

The function is given what it asks for by name: ``text`` (or ``completion``; if it asks for neither,
its first parameter) is what the policy wrote, ``row`` the whole row, and any other name is a column
of it, as in TRL. It returns a number, or True or False, or a ``Verdict``. From 1 on an answer
counts as correct.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from workbench.core import Problem, Verdict, WorkbenchError, first_line, refuse_if
from workbench.tasks.base import check_dials, named_split
from workbench.tasks.loading import Row, checked, read
from workbench.tasks.math import QUESTIONS, Math, column_of, messages_of

TEXT = ("text", "completion")
KINDS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Rows(Math):
    """A task of ``rows`` (rows_of). ``reward``: a function as above; None: by the answer's column.

    The other dials are those of ``math``; with a reward a question stands as it is, an answer need
    not be there, and ``max_new`` is all that has a meaning beside ``question`` and ``split``.

    Raises WorkbenchError, in one sentence, for rows that are none or that lack a column, and when
    grading, for a reward that is no finite number.
    """

    rows: tuple[Row, ...] = ()
    reward: Callable[..., Any] | None = None
    max_new: int = 512

    name = "rows"

    def __post_init__(self):
        check_dials(self.name, self.split, self.max_new, ("hash", "all"))
        refuse_if(not self.rows, "there are no rows: at least one is needed")
        _ = self._problems, self._asks

    def _read(self) -> list[Row]:
        return list(self.rows)

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        if self.reward is None:
            return super()._problems
        by_row: dict[str, Problem] = {}
        splits = {row.split for row in self.rows}
        for number, row in enumerate(self.rows, 1):
            by_row.setdefault(repr((row.record, row.split)), self._rewarded(number, row, splits))
        repeated = len(self.rows) - len(by_row)
        if repeated:
            warnings.warn(f"{repeated} of the {len(self.rows)} rows are copies", stacklevel=6)
        return tuple(by_row.values())

    def _rewarded(self, number: int, row: Row, splits: set[str]) -> Problem:
        """A row whose question stands as it is; its answer, if any, is for the function alone."""
        refuse_if(not row.columns, f"{row.where} is not a record with named columns")
        _, question = column_of(row, "question", self.question, QUESTIONS)
        messages = messages_of(row.where, question, whole=True)
        named = "" if self.split else named_split(row.where, row.record)
        split = named or self._split(messages[-1]["content"], {row.split}, splits)
        answer = row.record.get(self.answer or "answer")
        answer = "" if answer is None else str(answer)
        meta, solutions = {"split": split}, self._solutions(row)
        problem = Problem(f"{self.source}:{number}", messages, answer, solutions, meta)
        return checked(row.where, problem)

    @cached_property
    def _asks(self) -> tuple[str | None, dict[str, inspect.Parameter]]:
        """The parameter for what the policy wrote (None: the first place), and the others."""
        if self.reward is None:
            return None, {}
        refuse_if(not callable(self.reward), f"reward is a function, not {self.reward!r}")
        try:
            parameters = dict(inspect.signature(self.reward).parameters)
        except ValueError:  # some of C's do not say
            return None, {}
        named = [name for name in TEXT if name in parameters]
        names = [name for name, each in parameters.items() if each.kind not in KINDS]
        first = named[0] if named else (names or [None])[0]
        others = {n: each for n, each in parameters.items() if n != first}
        self._check_columns(
            {n for n, p in others.items() if p.kind not in KINDS and p.default is p.empty}
        )
        return named[0] if named else None, others

    def _check_columns(self, names: set[str]) -> None:
        """Raises WorkbenchError for a row without one of the columns that the function needs."""
        for row in self.rows:
            lacking = min(names - {"row", *row.columns}, default="")
            refuse_if(
                lacking,
                f"the reward function asks for {lacking!r}, and {row.where} has no such "
                f"column; it has {row.column_names}, and there are text and row",
            )

    def grade(self, problem: Problem, text: str) -> Verdict:
        if self.reward is None:
            return super().grade(problem, text)
        row = self._row(problem)
        try:
            value = self._call(row, text)
        except Exception as error:  # the user's own code
            raise WorkbenchError(
                f"the reward function failed on {row.where}: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        return _verdict(value, row.where, text)

    def _row(self, problem: Problem) -> Row:
        number = problem.id.rpartition(":")[2]
        refuse_if(
            not number.isdecimal() or not 0 < int(number) <= len(self.rows),
            f"{problem.id!r} is none of the {len(self.rows)} rows",
        )
        return self.rows[int(number) - 1]

    def _call(self, row: Row, text: str) -> Any:
        name, others = self._asks
        available = {**row.columns, "row": row.columns}
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in others.values()):
            available = {key: value for key, value in available.items() if key in others}
        available = {key: value for key, value in available.items() if key not in TEXT}
        return self.reward(**{name: text}, **available) if name else self.reward(text, **available)


def _verdict(value: Any, where: str, text: str) -> Verdict:
    """What a function returned, as a verdict. Raises WorkbenchError for no finite number."""
    if isinstance(value, Verdict):
        return value
    if getattr(value, "shape", None) == ():  # a number of numpy's or torch's
        value = value.item()
    refuse_if(
        not isinstance(value, Real) or not math.isfinite(value),
        f"the reward function gave {repr(value)[:60]} for {where} and {text[:40]!r}: it must "
        "be one finite number, or True or False",
    )
    reward = float(value)
    words = "" if reward >= 1 else f"The reward of this answer is {reward:g}; of a right one 1."
    return Verdict(reward, reward >= 1, words)


def rows_of(source: Any) -> tuple[Row, ...]:
    """Dicts, a ``datasets.Dataset`` (or a dict of several, by split), a pandas.DataFrame, or the
    name of a file or of a set on the hub.

    Raises WorkbenchError for what is none of them.
    """
    if isinstance(source, str):
        return tuple(read(source))
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        source = source.to_dict("records")
    if not isinstance(source, Mapping):
        return tuple(_records(source, "", "row"))
    rows: list[Row] = []
    for split, records in source.items():
        rows += _records(records, str(split), f"{split} row")
    return tuple(rows)


def _records(records: Any, split: str, what: str) -> Iterable[Row]:
    refuse_if(
        not isinstance(records, Iterable),
        f"rows are dicts of columns, not {type(records).__name__}",
    )
    for number, record in enumerate(records, 1):
        where = f"{what} {number}"
        refuse_if(
            not isinstance(record, Mapping),
            f"{where} is {repr(record)[:60]}, and not a dict of columns",
        )
        columns = {str(name): _plain(value) for name, value in record.items()}
        yield Row(where, columns, split)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value
