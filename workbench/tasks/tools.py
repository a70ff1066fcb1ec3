"""Tool calls: ``tools:FILE``.

The records are those of ToolAlpaca as prepared in lasgroup/SDPO (``datasets/tooluse/train.json``
and ``test.json``).

A record has ``prompt`` (the tools' documentation, the format, the question), ``system`` (or null)
and ``answer``: a JSON list of {Action, Action_Input}, the input an object or its JSON text. The
attempt calls by lines ``Action: NAME`` and ``Action Input: {...}``. It is right when the names, as
a multiset, and the arguments of all calls, merged in order, are those of the answer: the authors'
rule (arXiv 2601.20802).

Differs from their grader: an input is read to its own closing brace, where theirs ends at the first
``}``, so that no attempt could ever be right where an argument is an object; an answer that cannot
be read is an error, where theirs has no arguments; the feedback does not give the answer away.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from workbench.core import Problem, Verdict, WorkbenchError, refuse_if
from workbench.tasks.base import Listed, chat, named_split, split_of
from workbench.tasks.loading import Row, checked, has_text, read
from workbench.thoughts import spoken

LONGEST = 100_000  # characters of an attempt that are read


def _number(text: str) -> int | float:
    """As JSON has it, 1.0 is 1."""
    number = float(text)
    return int(number) if math.isfinite(number) and number.is_integer() else number


_DECODER = json.JSONDecoder(parse_float=_number)
_ACTION = re.compile(r"Action:[\s*`\"']*(\w+(?:[.:/-]+\w+)*)")
_INPUT = re.compile(r"Action Input:\s*(?=\{)")


class Calls(NamedTuple):
    actions: Counter[str]
    # of all calls, merged: a later one replaces an earlier one of the same name
    inputs: dict[str, Any]


def calls(text: str) -> Calls:
    """The calls in an attempt; an input that is no JSON object counts as none."""
    text = spoken(text)[:LONGEST]
    inputs: dict[str, Any] = {}
    start = 0
    while match := _INPUT.search(text, start):
        start = match.end()
        with contextlib.suppress(ValueError, RecursionError):
            value, start = _DECODER.raw_decode(text, start)
            json.dumps([value])  # what is too deep to be written is too deep to be compared
            inputs.update(value)
    return Calls(Counter(_ACTION.findall(text)), inputs)


def expected(answer: str) -> Calls:
    """The calls of a record's answer.

    Raises KeyError, TypeError, ValueError or WorkbenchError for another form.
    """
    actions: Counter[str] = Counter()
    inputs: dict[str, Any] = {}
    for call in _DECODER.decode(answer):
        written = call["Action_Input"]
        arguments = _DECODER.decode(written) if isinstance(written, str) else written
        refuse_if(not isinstance(arguments, dict), "an Action_Input that is no object")
        refuse_if(not has_text(call["Action"]), "an Action that is no name")
        actions[call["Action"]] += 1
        inputs.update(arguments)
    refuse_if(not actions, "there are no calls")
    return Calls(actions, inputs)


def same_inputs(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal as JSON is: to Python, true would be 1."""
    try:
        one, other = (
            json.dumps(inputs, sort_keys=True, allow_nan=False) for inputs in (left, right)
        )
    except (ValueError, RecursionError):  # NaN is equal to nothing
        return False
    return one == other


def written_out(answer: Calls) -> str:
    """An attempt that calls so."""
    actions = "".join(f"Action: {name}\n" for name in answer.actions.elements())
    return f"{actions}Action Input: {json.dumps(answer.inputs)}"


@dataclass(frozen=True)
class Tools(Listed):
    """Records with these columns."""

    name = "tools"

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        return tuple(
            _problem(f"{self.source}:{number}", row, self.split)
            for number, row in enumerate(read(self.source), 1)
        )

    def grade(self, problem: Problem, text: str) -> Verdict:
        """``parts``: whether the actions and the arguments are right, each for itself."""
        right, attempt = expected(problem.answer), calls(text)
        parts = {
            "actions": float(attempt.actions == right.actions),
            "inputs": float(same_inputs(attempt.inputs, right.inputs)),
        }
        if not attempt.actions:
            feedback = "There is no line that begins with Action: and names a tool."
            return Verdict(0.0, False, feedback, parts)
        sentences = []
        if not parts["actions"]:
            names = ", ".join(sorted(attempt.actions.elements()))[:500]
            sentences.append(f"These are not the right calls: {names}.")
        if not parts["inputs"]:
            inputs = json.dumps(attempt.inputs)[:500]
            sentences.append(f"This is not the right action input: {inputs}.")
        return Verdict(float(not sentences), not sentences, " ".join(sentences), parts)


def _problem(name: str, row: Row, split: str) -> Problem:
    prompt, system, answer = map(row.columns.get, ("prompt", "system", "answer"))
    refuse_if(
        not has_text(prompt) or answer is None or not isinstance(system, (str, type(None))),
        f"{row.where} needs a prompt and an answer; its columns are {row.column_names}",
    )
    answer = answer if isinstance(answer, str) else json.dumps(answer)
    try:
        gold = expected(answer)
    except (KeyError, TypeError, ValueError, RecursionError, WorkbenchError) as error:
        raise WorkbenchError(
            f"{row.where} has an answer that is no JSON list of Action and Action_Input: {error}"
        ) from error
    attempt = calls(written_out(gold))
    refuse_if(
        attempt.actions != gold.actions or not same_inputs(attempt.inputs, gold.inputs),
        f"{row.where} has an answer that no attempt could give: a tool whose name is no word, "
        f"a number that is none, or more than {LONGEST:,} characters",
    )
    meta = {"split": split or named_split(row.where, row.columns) or split_of(prompt)}
    return checked(row.where, Problem(name, chat(prompt, system), answer, (), meta))
