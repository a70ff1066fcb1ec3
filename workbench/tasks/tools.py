"""Tool calls:

``tools:FILE`` with the records of ToolAlpaca as prepared in lasgroup/SDPO
(``datasets/tooluse/train.json`` and ``test.json``).

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

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from workbench.core import Problem, Verdict, WorkbenchError
from workbench.tasks import prompts
from workbench.tasks.loading import Row, check_dials, draw, read, split_of

LONGEST = 100_000  # characters of an attempt that are read
_DECODER, _INPUT = json.JSONDecoder(), re.compile(r"Action Input:\s*(?=\{)")


class Calls(NamedTuple):
    actions: Counter[str]
    # of all calls, merged: a later one replaces an earlier one of the same name
    inputs: dict[str, Any]


def calls(text: str) -> Calls:
    """The calls in an attempt; an input that is no JSON object counts as none."""
    text, inputs, start = text[:LONGEST], {}, 0
    while found := _INPUT.search(text, start):
        start = found.end()
        try:
            value, start = _DECODER.raw_decode(text, start)
            inputs.update(value)
        except (ValueError, RecursionError):
            pass
    return Calls(Counter(re.findall(r"Action:\s*(\w+)", text)), inputs)


def expected(answer: str) -> Calls:
    """The calls of a record's answer. Raises KeyError, TypeError or ValueError for another form."""
    actions, inputs = Counter(), {}
    for call in json.loads(answer):
        given = call["Action_Input"]
        given = json.loads(given) if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise TypeError("an Action_Input that is no object")
        actions[call["Action"]] += 1
        inputs.update(given)
    if not actions:
        raise ValueError("there are no calls")
    return Calls(actions, inputs)


@dataclass(frozen=True)
class Tools(prompts.FreeText):
    """``source``: a file, or a hub id with these columns.

    A tenth each is held out for validation and test, by the prompt's hash, unless ``split`` puts
    all into one.
    """

    source: str = ""
    split: str = ""
    max_new: int = 1024  # longest completion, in tokens

    name = "tools"

    def __post_init__(self):
        if not self.source:
            raise WorkbenchError("the task tools needs a file of problems: tools:FILE")
        check_dials(self.name, self.split, self.max_new)
        self._problems  # a bad record is said now, not after the model is loaded

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        return tuple(
            _problem(f"{self.source}:{number}", row, self.split)
            for number, row in enumerate(read(self.source), 1)
        )

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        return draw(self._problems, split, n, seed, self.source)

    def grade(self, problem: Problem, text: str) -> Verdict:
        """``parts``: whether the actions and the arguments are right, each for itself."""
        wanted, given = expected(problem.answer), calls(text)
        right = {
            "actions": float(given.actions == wanted.actions),
            "inputs": float(given.inputs == wanted.inputs),
        }
        if all(right.values()):
            return Verdict(1.0, True, "", right)
        if not given.actions:
            return Verdict(
                0.0, False, "There is no line that begins with Action: and names a tool.", right
            )
        words = (
            []
            if right["actions"]
            else [
                "These are not the right calls: "
                f"{', '.join(sorted(given.actions.elements()))[:500]}."
            ]
        )
        words += (
            []
            if right["inputs"]
            else [f"This is not the right action input: {json.dumps(given.inputs)[:500]}."]
        )
        return Verdict(0.0, False, " ".join(words), right)


def _problem(name: str, row: Row, split: str) -> Problem:
    where, record = row.where, row.record if isinstance(row.record, dict) else {}
    prompt, system, answer = (record.get(key) for key in ("prompt", "system", "answer"))
    if not isinstance(prompt, str) or not prompt.strip() or answer is None:
        raise WorkbenchError(
            f"{where} needs a prompt and an answer; its columns are "
            f"{', '.join(map(str, record)) or 'none'}"
        )
    answer = answer if isinstance(answer, str) else json.dumps(answer)
    try:
        expected(answer)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"{where} has an answer that is no JSON list of Action and Action_Input: {error}"
        ) from error
    messages = (
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": prompt},
    )
    return Problem(name, messages, answer, (), {"split": split or split_of(prompt)})
