"""Any task of reasoning-gym:

``gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1`` (that one is within reach of a
135M model).

The first dial names the data set, the others are options of its own config (and ``max_new``). A
problem is generated from (split, seed) alone, and its split is its question's hash, so that no
question is in two splits. The reward is the data set's own ``score_answer``: 1 is correct, less is
partial credit.

The scorer gets what stands in the last <answer>...</answer>, else the last \\boxed{...} or what
follows the last ``Answer:``, else the last number where the solution is one, else everything. It
runs in a process that can be killed and can change nothing: some scorers evaluate what they are
given.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench.core import Problem, Verdict, WorkbenchError, coordinates
from workbench.options import with_options
from workbench.tasks import prompts
from workbench.tasks.loading import INSTALL, SPLITS, split_of
from workbench.tasks.verify import final_answer
from workbench.tasks.verify.answers import is_number
from workbench.tasks.verify.pool import SECONDS, Pool
from workbench.tasks.verify.statements import TAIL

ALONE = "\nGive only the final answer."
ASK = '\nEnd with a line that begins with "Answer:" and gives only the final answer.'
# draws for a wanted problem: a tenth of them are in the smaller splits, and some come twice
TRIES = 40

_scorers = Pool("gym")


def extract(text: str, solution: str) -> str:
    """What the scorer is shown. A solution of several lines may be answered in several."""
    text = text[-TAIL:]
    before, tag, rest = text.rpartition("<answer>")
    if tag:
        return rest.partition("</answer>")[0].strip()
    marked = list(re.finditer(r"\b[Aa]nswer\**:\**[ \t]*\n?", text))
    if marked and "\n" in solution:
        return text[marked[-1].end() :].strip()
    if marked or is_number(solution) or "\\boxed{" in text:
        return final_answer(text).lstrip("$ ").rstrip("$. ")
    return text.strip()


@dataclass(frozen=True)
class Gym(prompts.FreeText):
    """``options``:

    (name, value) pairs of the data set's config. ``Gym.of(dials)`` reads them as its types.
    """

    dataset: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    max_new: int = 512  # longest completion, in tokens
    # false: the prompt asks for the answer alone, which is all that a very small model can do
    think: bool = True

    name = "gym"

    @classmethod
    def of(cls, dials: Sequence[str]) -> Gym:
        own = [dial for dial in dials if dial.startswith(("dataset=", "max_new=", "think="))]
        made = with_options(cls, own, "the task gym")
        known = {f.name: f.default for f in dataclasses.fields(made._config_type)}
        chosen = [dial for dial in dials if dial not in own]
        for dial in chosen:
            name = dial.partition("=")[0]
            if name in ("seed", "size") or (
                name in known and not isinstance(known[name], (bool, int, float, str))
            ):
                raise WorkbenchError(
                    f"gym:{made.dataset}: {name} cannot be set here"
                    + (
                        "; the problems' seed and number come with the run"
                        if name in ("seed", "size")
                        else ": it is no single value"
                    )
                )
        try:
            config = with_options(made._config_type, chosen, f"gym:{made.dataset}")
        except AssertionError as error:
            raise WorkbenchError(f"gym:{made.dataset}: {error}") from error
        names = [dial.partition("=")[0] for dial in chosen]
        return dataclasses.replace(
            made, options=tuple((name, getattr(config, name)) for name in names)
        )

    def __post_init__(self):
        if self.max_new < 1:
            raise WorkbenchError("the task gym takes max_new from 1")
        self._config_type  # a wrong name is said now, not after the model is loaded
        self._make(0, 1)

    @cached_property
    def _config_type(self) -> type:
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise WorkbenchError(f"the task gym needs reasoning-gym, {INSTALL}") from error
        if self.dataset not in DATASETS:
            near = difflib.get_close_matches(self.dataset, DATASETS, 5, 0.4)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"there are {len(DATASETS)}, such as chain_sum, gsm_symbolic, countdown"
            )
            raise WorkbenchError(f"reasoning-gym has no data set {self.dataset!r}; {hint}")
        return DATASETS[self.dataset][1]

    def _make(self, seed: int, size: int):
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(
                self.dataset, seed=seed, size=size, **dict(self.options)
            )
        # what its configs raise for values that do not go together
        except (AssertionError, ValueError, TypeError) as error:
            raise WorkbenchError(
                f"gym:{self.dataset} cannot be made with these options: "
                f"{str(error) or type(error).__name__}"
            ) from error

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split`` (train, validation, test), the same for the same
        seed.
        """
        if split not in SPLITS:
            raise WorkbenchError(f"the splits of gym are {', '.join(SPLITS)}, not {split!r}")
        origin, size = coordinates("gym", self.dataset, split, seed) % 2**31, TRIES * (n + 10)
        data, found = self._make(origin, size), {}
        for index in range(size):
            if len(found) == n:
                break
            entry = data[index]
            question = str(entry["question"])
            if question not in found and split_of(question) == split:
                found[question] = self._problem(entry, split, origin, size, index)
                self._entries[origin, size, index] = _packed(dict(entry))
        if len(found) < n:
            raise WorkbenchError(
                f"gym:{self.dataset} has too few {split} problems with these options: "
                f"{len(found)} found, {n} wanted"
            )
        return list(found.values())

    def _problem(self, entry: dict, split: str, origin: int, size: int, index: int) -> Problem:
        messages = (
            {"role": "user", "content": str(entry["question"]) + (ASK if self.think else ALONE)},
        )
        return Problem(
            f"{self.dataset}:{origin}:{index}",
            messages,
            str(entry["answer"]),
            (f"Answer: {entry['answer']}",),
            {"split": split, "seed": origin, "size": size, "index": index},
        )

    def grade(self, problem: Problem, text: str) -> Verdict:
        given = extract(text, problem.answer)
        if not given:
            return Verdict(0.0, False, "There is no answer.")
        entry = self._entry(problem.meta["seed"], problem.meta["size"], problem.meta["index"])
        reply = _scorers.ask(
            {
                "dataset": self.dataset,
                "options": _packed(dict(self.options)),
                "entry": entry,
                "answer": given,
            }
        )
        if reply is None:
            return Verdict(
                0.0,
                False,
                f"Your answer took more than {SECONDS:g} seconds to check.",
                {"killed": 1.0},
            )
        score = min(max(reply.get("score", 0.0), 0.0), 1.0)
        shown = (
            (given if len(given) <= 200 else given[:200] + "...")
            .encode("utf-8", "replace")
            .decode()
        )
        return Verdict(
            score, score == 1.0, "" if score == 1.0 else f"Your answer {shown} is not right."
        )

    @cached_property
    def _entries(self) -> dict[tuple[int, int, int], str]:
        return {}

    def _entry(self, seed: int, size: int, index: int) -> str:
        """The generated record, pickled for the scorer.

        Made again where it was not made here: a problem is its coordinates.
        """
        key = seed, size, index
        if key not in self._entries:
            self._entries[key] = _packed(dict(self._make(seed, size)[index]))
        return self._entries[key]


def _packed(value: dict) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()
