"""What tasks share: splits, the draw of problems, the lines of an attempt, and the plainest of the
prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random
from typing import Any

from workbench.core import Message, Problem, Step, Task, WorkbenchError, refuse_if
from workbench.tasks import prompts
from workbench.thoughts import spoken

SPLITS = ("train", "validation", "test")

# --- splits ---------------------------------------------------------------------------------------


def split_of(question: str, share: int = 26) -> str:
    """By the question's own hash, so that it is on the same side whoever draws it.

    ``share`` of 256 are for test, as many for validation: a tenth each, if nothing else is said.
    """
    bucket = hashlib.blake2b(question.encode("utf-8", "replace"), digest_size=2).digest()[0]
    if bucket < share:
        return "test"
    return "validation" if bucket < 2 * share else "train"


def named_split(where: str, record: Mapping[str, Any]) -> str:
    """The split that a record names, "" where it names none.

    Raises WorkbenchError for another than ``SPLITS``.
    """
    split = record.get("split")
    if split is None:
        return ""
    refuse_if(
        split not in SPLITS,
        f"{where} has the split {split!r}; it must be one of {', '.join(SPLITS)}",
    )
    return split


def check_dials(task: str, split: str, max_new: int, more: tuple[str, ...] = ()) -> None:
    """Raises WorkbenchError for a split that is none of "", ``SPLITS`` and ``more``, or no room to
    write.
    """
    refuse_if(
        split not in ("", *more, *SPLITS),
        f"the task {task} takes split={', '.join((*more, *SPLITS))}, not split={split}",
    )
    refuse_if(max_new < 1, f"the task {task} takes max_new from 1")


# --- the draw of problems -------------------------------------------------------------------------


def draw(problems: Sequence[Problem], split: str, n: int, seed: int, name: str) -> list[Problem]:
    """``n`` different ones of the problems of ``split``, drawn with ``seed``; those of split "all"
    are in every split.
    """
    pool = [problem for problem in problems if problem.meta["split"] in (split, "all")]
    refuse_if(len(pool) < n, f"{name} has {len(pool)} problems in its {split} split, {n} wanted")
    return Random(seed).sample(pool, n)


def draw_generated(
    task: str,
    split: str,
    n: int,
    candidates: Iterable[Any],
    too_few: str,
    split_of: Callable[[str], str] = split_of,
    question_of: Callable[[Any], str] = str,
) -> list[Any]:
    """The first ``n`` candidates that are in ``split`` and ask different questions.

    ``too_few`` begins the sentence that is said where there are not so many.
    """
    refuse_if(split not in SPLITS, f"the splits of {task} are {', '.join(SPLITS)}, not {split!r}")
    by_question: dict[str, Any] = {}
    for candidate in candidates:
        question = question_of(candidate)
        if split_of(question) == split:
            by_question.setdefault(question, candidate)
        if len(by_question) >= n:
            return list(by_question.values())[:n]
    raise WorkbenchError(f"{too_few}: {len(by_question)} found, {n} wanted")


# --- attempts whose lines are due one after the other ---------------------------------------------


def lines(text: str) -> list[str]:
    """Only \\n ends a line: other line breaks that Python knows are characters like any other, and
    never right.
    """
    return text.rstrip("\n").split("\n")


def line_spans(text: str) -> list[Step]:
    """Where the ``lines`` of an attempt are, each with its line break.

    Not ``spans.split_steps``, to which a blank line is a part of the line before: to a checker that
    knows which line is due, a blank line is a wrong one.
    """
    ends = accumulate(len(line) + 1 for line in lines(text))
    places = pairwise([0, *(min(end, len(text)) for end in ends)])
    return [Step(index, start, end) for index, (start, end) in enumerate(places)]


def line_span(text: str, index: int) -> Step | None:
    """Where one line of what is said aloud is in the text; an empty span at its end for a line that
    is missing. None where thoughts stand between what is said.
    """
    said = spoken(text)
    if not text.endswith(said):
        return None
    spans, before = line_spans(said), len(text) - len(said)
    if index >= len(spans):
        return Step(index, len(text), len(text))
    return Step(index, spans[index].start + before, spans[index].end + before)


# --- prompts --------------------------------------------------------------------------------------


def chat(question: str, system: str = "") -> tuple[Message, ...]:
    """The plain prompt of a question, under a system message if there is one."""
    user = {"role": "user", "content": question}
    return ({"role": "system", "content": system}, user) if system else (user,)


class Reprompts:
    """A task that shows solutions, attempts and feedback as SDPO does."""

    reprompt = staticmethod(prompts.reprompt)


@dataclass(frozen=True)
class Among:
    """A task whose training problems are those of ``rows``; all else is the task's."""

    task: Task
    rows: tuple[Problem, ...]

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """Training problems at random, all different while there are enough."""
        if split != "train":
            return self.task.problems(split, n, seed)
        rng = Random(seed)
        return rng.sample(self.rows, n) if n <= len(self.rows) else rng.choices(self.rows, k=n)


class FreeText(Reprompts):
    """A task whose attempts are any text, with TAPO's prompt for real models."""

    synthesis = staticmethod(prompts.audit)

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """Where somebody labelled the steps of this text; else it is not known."""
        label = problem.meta.get("first_errors", {}).get(text)
        return None if label is None else Step(*label)


@dataclass(frozen=True)
class Listed(FreeText):
    """Problems (``_problems``) that stand in ``source``: one of ``sets``, a file or a hub id.

    A tenth each is held out for validation and test, by the prompt's hash, unless ``split`` puts
    all into one.
    """

    source: str = ""
    split: str = ""
    max_new: int = 1024  # longest completion, in tokens

    sets = ()

    def __post_init__(self):
        names = ", ".join((*self.sets, "a file or a hub id"))
        refuse_if(not self.source, f"the task {self.name} needs {names}: {self.name}:FILE")
        check_dials(self.name, self.split, self.max_new)
        _ = self._problems  # a bad record is said now, not after the model is loaded

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        return draw(self._problems, split, n, seed, self.source)
