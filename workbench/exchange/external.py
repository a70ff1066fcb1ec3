"""Rollouts that somebody else wrote, as groups for the viewer, the credit, locators and composer.

    groups = load_rollouts("completions/", policy)     # TRL's, verl's, prime-rl's, or your own file
    TokenView(groups, policy)
    inspect_group(policy, groups[0], groups.task, {"GRPO": GRPO()})

What a file may look like: logs.py and formats.py. A file is read once from end to end, so that a
bad record is said at once; what is in it is then read, tokenised and graded group by group, when it
is asked for.
"""

from __future__ import annotations

import math
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.core import (
    Group,
    Message,
    Problem,
    Rollout,
    Task,
    Verdict,
    WorkbenchError,
    refuse_if,
)
from workbench.exchange.formats import Attempt, Entry
from workbench.exchange.logs import entry_of
from workbench.exchange.sources import Source, sources
from workbench.model.policy import Policy
from workbench.records import group_from_dict
from workbench.spans import split_steps
from workbench.tasks.base import FreeText, chat
from workbench.tasks.loading import Row
from workbench.tasks.verify import grade

SMALL = 8 << 20  # bytes: files up to here are made into groups at once
KEPT = 64  # groups of a larger file that are kept when they have been made
SHORT_ID = 80  # characters: a question up to here is its own name
PLACE = "[[question]]", "[[system]]"


@dataclass(frozen=True)
class GivenAnswers(FreeText):
    """Grades by the problem's own answer; where it has none, the verdict is unknown."""

    name = "given answers"
    max_new: int = 2048

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        raise WorkbenchError("rollouts from a file are no task to train on: name one with --task")

    def grade(self, problem: Problem, text: str) -> Verdict:
        return grade(problem.answer, text)


def load_rollouts(path: str | Path, policy: Policy, task: Task | None = None) -> Rollouts:
    """The groups of a file, or of a folder of them, in the order in which their questions appear.

    Rewards and verdicts of the file are kept; without them ``task`` grades, or else the answer that
    stands beside the question; where there is neither, the verdict is unknown (reward NaN).
    ``policy`` gives its tokenizer, chat template and context; its model may be None. Raises
    WorkbenchError, in one sentence with the record's place, for what cannot be read.
    """
    return Rollouts(sources(Path(path)), policy, task or GivenAnswers())


class Rollouts(Sequence[Group]):
    """Groups that are made when they are asked for. ``task``: what grades them."""

    def __init__(self, files: Sequence[Source], policy: Policy, task: Task):
        self.policy, self.task = policy, task
        self._files = files
        self._places: dict[Any, list[tuple[int, Any]]] = {}
        self._strange: list[str] = []  # completions that do not come back from their tokens
        self._foreign: list[str] = []  # prompts that the chat template did not write
        kinds: dict[str, str] = {}
        for number, file in enumerate(files):
            for place, row in file.scan():
                key = self._key(row, kinds)
                self._places.setdefault(key, []).append((number, place))
        refuse_if(not self._places, f"there are no rollouts in {files[0].path}: it is empty")
        small = sum(file.path.stat().st_size for file in files) <= SMALL
        self._group = lru_cache(maxsize=None if small else KEPT)(self._made)
        self._keys = list(self._places)
        if small:  # what is wrong with any of it is said now
            for i in range(len(self)):
                self._group(i)
            self._warn()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        group = self._group(range(len(self))[i])
        self._warn()
        return group

    def _warn(self) -> None:
        if self._strange:
            warnings.warn(
                f"{len(self._strange)} completions do not come back from their tokens (the first: "
                f"{self._strange[0]}): what is drawn is what their tokens say",
                stacklevel=4,
            )
            self._strange = []
        if self._foreign:
            warnings.warn(
                f"{len(self._foreign)} prompts are not what the chat template of "
                f"{self.policy.name} writes (the first: {self._foreign[0]}): each is taken for one "
                "question",
                stacklevel=4,
            )
            self._foreign = []

    def _key(self, row: Row, kinds: dict[str, str]) -> Any:
        if _is_group(row):
            return row.where
        entry = entry_of(row)
        for attempt in entry.attempts:
            if attempt.reward is not None:
                kind = "true or false" if isinstance(attempt.reward, bool) else "numbers"
                kinds.setdefault(kind, row.where)
        if len(kinds) > 1:
            both = ", ".join(f"{kind} ({where})" for kind, where in kinds.items())
            raise WorkbenchError(f"the rewards are of mixed kinds: {both}; make them one kind")
        # a hash: the questions of a large file are not kept
        return hash(entry.key)

    def _made(self, i: int) -> Group:
        rows = [self._files[number].at(place) for number, place in self._places[self._keys[i]]]
        if _is_group(rows[0]):
            group = _recorded(rows[0])
            for rollout in group.rollouts:
                _check_ids(self.policy, rows[0].where, rollout.prompt_ids + rollout.completion_ids)
                if self.policy.decode(rollout.completion_ids) != rollout.text:
                    self._strange.append(rows[0].where)
            return group
        entries = list(map(entry_of, rows))
        first = entries[0]
        messages, prompt_ids = _prompt(self.policy, first)
        if first.written == "stripped" and _recovered(self.policy, first.question) is None:
            self._foreign.append(first.where)
        problem_id = first.id or _named(messages) or f"{Path(first.where).stem}:{rows[0].number}"
        attempts = [
            (entry.where, _without_end(self.policy, attempt))
            for entry in entries
            for attempt in entry.attempts
        ]
        meta: dict[str, Any] = {} if first.step is None else {"step": first.step}
        labels = {a.text: _label(a) for _, a in attempts if a.labelled}
        if labels:
            meta["first_errors"] = labels
        problem = Problem(problem_id, messages, first.answer, first.solutions, meta)
        return Group(problem, tuple(self._rollout(problem, prompt_ids, *a) for a in attempts))

    def _rollout(
        self, problem: Problem, prompt_ids: tuple[int, ...], where: str, attempt: Attempt
    ) -> Rollout:
        ids = _ids(self.policy, where, attempt)
        says = self.policy.decode(ids)
        text = says if attempt.text is None else attempt.text
        if says != text:
            self._strange.append(where)
        size = len(prompt_ids) + len(ids)
        context = math.inf if self.policy.model is None else self.policy.context
        refuse_if(
            size > context,
            f"{where}: the prompt and the completion have {size} tokens, more than the model's "
            f"context of {context}",
        )
        logprobs = attempt.logprobs or (math.nan,) * len(ids)
        refuse_if(
            len(logprobs) != len(ids),
            f"{where} has {len(logprobs)} log-probabilities for {len(ids)} tokens",
        )
        finished = _finished(self.policy, ids)
        reply = self.policy.opening(prompt_ids) + text
        verdict = _verdict(self.task, problem, reply, attempt)
        return Rollout(prompt_ids, ids, logprobs, text, verdict, finished=finished)


def _is_group(row: Row) -> bool:
    """Is it a line of a run's groups.jsonl?"""
    columns = row.columns
    return isinstance(columns.get("problem"), dict) and isinstance(columns.get("rollouts"), list)


def _recorded(row: Row) -> Group:
    try:
        return group_from_dict(row.record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkbenchError(f"{row.where} is no group of a run: {error!r}") from error


def _named(messages: Sequence[Message]) -> str:
    question = messages[-1]["content"]
    return question if len(question) <= SHORT_ID and "\n" not in question else ""


def _label(attempt: Attempt) -> tuple[int, int, int] | None:
    """(index, start, end) of the first wrong step, counted as the viewer counts steps."""
    if attempt.wrong is None:
        return None
    start, end = attempt.wrong
    return bisect_right([step.end for step in split_steps(attempt.text)], start), start, end


def _verdict(task: Task, problem: Problem, text: str, attempt: Attempt) -> Verdict:
    reward, correct = attempt.reward, attempt.correct
    if reward is None and correct is None:
        verdict = task.grade(problem, text)
        return Verdict(
            verdict.reward,
            verdict.correct,
            verdict.feedback,
            {**verdict.parts, **attempt.parts},
        )
    correct = float(reward) > 0 if correct is None else correct
    return Verdict(float(correct if reward is None else reward), correct, "", attempt.parts)


# ---- tokens --------------------------------------------------------------------------------------


def _finished(policy: Policy, ids: Sequence[int]) -> bool:
    return tuple(ids[-len(policy.end) :]) == policy.end or ids[-1] in policy.stop_ids


def _ids(policy: Policy, where: str, attempt: Attempt) -> tuple[int, ...]:
    if attempt.ids is not None:
        _check_ids(policy, where, attempt.ids)
        return attempt.ids
    ids = policy.text_ids(attempt.text)
    return ids if attempt.finished is False and ids else ids + policy.end


def _without_end(policy: Policy, attempt: Attempt) -> Attempt:
    """Its text as it was said, where it was decoded with the end of its turn."""
    if attempt.text is None:
        return attempt
    end = policy.tokenizer.decode(list(policy.end))
    return replace(attempt, text=attempt.text.removesuffix(end))


def _check_ids(policy: Policy, where: str, ids: Sequence[int]) -> None:
    size = len(policy.tokenizer) if policy.model is None else len(policy.head)
    strange = next((token for token in ids if not 0 <= token < size), None)
    refuse_if(
        strange is not None,
        f"{where} holds the token id {strange}, outside the vocabulary of {policy.name} (0 to "
        f"{size - 1}): it was written with another tokenizer",
    )


def _prompt(policy: Policy, entry: Entry) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """The messages, and the ids that the model read: as they are where the record has them."""
    question, ids = entry.question, entry.prompt_ids
    if ids is not None:
        _check_ids(policy, entry.where, ids)
    if isinstance(question, tuple):
        messages = question
    elif not question:
        written = policy.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        messages = _messages(policy, written)
    elif entry.written == "question":
        messages = chat(question)
    else:
        messages = _messages(policy, question)
        if entry.written == "verbatim":
            ids = tuple(policy.tokenizer(question)["input_ids"])
    return messages, policy.prompt_ids(messages) if ids is None else ids


def _messages(policy: Policy, text: str) -> tuple[Message, ...]:
    """What the chat template wrote into ``text``; where it did not, the whole is one question."""
    return _recovered(policy, text) or chat(text)


def _recovered(policy: Policy, text: str) -> tuple[Message, ...] | None:
    """The messages of a prompt as the model read it, with its special tokens or without; None where
    the policy's chat template did not write it.
    """
    user = {"role": "user", "content": PLACE[0]}
    for stripped in (False, True):
        for messages in ((user,), ({"role": "system", "content": PLACE[1]}, user)):
            parts = re.fullmatch(_pattern(policy, messages, stripped), text, re.DOTALL)
            if parts:
                return tuple(
                    {"role": message["role"], "content": part}
                    for message, part in zip(messages, parts.groups())
                )
    return None


def _pattern(policy: Policy, messages: Sequence[Message], stripped: bool) -> str:
    """What the chat template writes around the messages; a pattern that nothing fits, where it
    refuses them or changes their order.
    """
    try:
        ids = list(policy.prompt_ids(messages))
    except WorkbenchError:
        return r"(?!)"
    written = policy.tokenizer.decode(
        ids, skip_special_tokens=stripped, clean_up_tokenization_spaces=False
    )
    parts = written
    for message in messages:
        _, mark, parts = parts.partition(message["content"])
        if not mark:
            return r"(?!)"
    pattern = re.escape(written)
    for place in PLACE:
        pattern = pattern.replace(re.escape(place), "(.+?)")
    return pattern
