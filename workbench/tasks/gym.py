"""Any task of reasoning-gym.

    --task gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1
           (that one is within reach of a 135M model)

The first dial names the data set, the others are options of its own config (and ``max_new``). A
problem is generated from (split, seed) alone, and its split is its question's hash, so that no
question is in two splits. The reward is the data set's own ``score_answer``: 1 is correct, less is
partial credit.

The scorer gets what stands in the last <answer>...</answer>, else the last \\boxed{...} or what
follows the last ``Answer:``, else the last number where the solution is one, else everything. It
runs in a process that can be killed and can change nothing. Some scorers evaluate what they are
given: those get plain arithmetic, formulas and lists alone (``verify/expressions.py``).
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import itertools
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workbench.core import (
    Problem,
    Verdict,
    WorkbenchError,
    coordinates,
    needed,
    refuse_if,
    refuse_on,
)
from workbench.options import with_options
from workbench.tasks.base import FreeText, chat, draw_generated
from workbench.tasks.loading import INSTALL
from workbench.tasks.verify import final_answer, shown
from workbench.tasks.verify.answers import is_number
from workbench.tasks.verify.expressions import check_scorer, inert
from workbench.tasks.verify.pool import SECONDS, Pool
from workbench.tasks.verify.statements import TAIL
from workbench.thoughts import spoken

ALONE = "\nGive only the final answer."
ASK = '\nEnd with a line that begins with "Answer:" and gives only the final answer.'
# draws for a wanted problem: a tenth of them are in the smaller splits, and some come twice
TRIES = 40

_scorers = Pool("gym")
_jobs = itertools.count()


def extract(text: str, solution: str) -> str:
    """What the scorer is shown. A solution of several lines may be answered in several."""
    text = spoken(text)[-TAIL:]
    if "<answer>" in text:
        return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    marked = list(re.finditer(r"\b[Aa]nswer\**:\**[ \t]*\n?", text))
    if marked and "\n" in solution:
        return text[marked[-1].end() :].strip()
    if marked or is_number(solution) or "\\boxed{" in text:
        return final_answer(text).lstrip("$ ").rstrip("$. ")
    return text.strip()


@dataclass(frozen=True)
class Gym(FreeText):
    """Problems of one ``dataset``, under (name, value) pairs of its config.

    ``Gym.of(dials)`` reads these ``options`` as the types of the config.
    """

    dataset: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    max_new: int = 512  # longest completion, in tokens
    # false: the prompt asks for the answer alone, which is all that a very small model can do
    think: bool = True

    name = "gym"

    @classmethod
    def of(cls, dials: Sequence[str]) -> Gym:
        """Raises WorkbenchError for a data set or an option that there is not."""
        task_dials = [d for d in dials if d.startswith(("dataset=", "max_new=", "think="))]
        config_dials = [d for d in dials if d not in task_dials]
        task = with_options(cls, task_dials, "the task gym")
        where = f"gym:{task.dataset}"
        config_type = _config_type(task.dataset)
        defaults = {field.name: field.default for field in dataclasses.fields(config_type)}
        names = [dial.partition("=")[0] for dial in config_dials]
        for name in names:
            refuse_if(
                name in ("seed", "size"),
                f"{where}: {name} cannot be set here; the problems' seed and number come "
                "with the run",
            )
            refuse_if(
                not isinstance(defaults.get(name, ""), (bool, int, float, str)),
                f"{where}: {name} cannot be set here: it is no single value",
            )
        with refuse_on(AssertionError, where, why=True):
            config = with_options(config_type, config_dials, where)
        options = tuple((name, getattr(config, name)) for name in names)
        return dataclasses.replace(task, options=options)

    def __post_init__(self):
        refuse_if(self.max_new < 1, "the task gym takes max_new from 1")
        self._make(0, 1)  # a wrong name is said now, not after the model is loaded

    def _make(self, seed: int, size: int):
        """The data set with ``size`` entries."""
        _config_type(self.dataset)
        import reasoning_gym

        options = dict(self.options)
        # what its configs raise for values that do not go together
        kinds = (AssertionError, ValueError, TypeError)
        with refuse_on(kinds, f"gym:{self.dataset} cannot be made with these options", why=True):
            return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **options)

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split`` (train, validation, test), the same for the same
        seed.
        """
        origin = coordinates("gym", self.dataset, split, seed) % 2**31
        size = TRIES * (n + 10)
        data = self._make(origin, size)
        drawn = draw_generated(
            self.name,
            split,
            n,
            ((index, data[index]) for index in range(size)),
            f"gym:{self.dataset} has too few {split} problems with these options",
            question_of=lambda candidate: str(candidate[1]["question"]),
        )
        return [self._problem(entry, split, origin, size, index) for index, entry in drawn]

    def _problem(self, entry: dict, split: str, origin: int, size: int, index: int) -> Problem:
        answer = str(entry["answer"])
        if not inert(self.dataset, answer, answer):  # an integral that is left to be worked out
            import sympy

            answer = str(sympy.sympify(answer).doit())
        return Problem(
            f"{self.dataset}:{origin}:{index}",
            chat(str(entry["question"]) + (ASK if self.think else ALONE)),
            answer,
            (f"Answer: {answer}",),
            {"split": split, "seed": origin, "size": size, "index": index},
        )

    def grade(self, problem: Problem, text: str) -> Verdict:
        answer = extract(text, problem.answer)
        if not answer:
            return Verdict(0.0, False, "There is no answer.")
        if not inert(self.dataset, answer, problem.answer):
            return Verdict(0.0, False, "Your answer is not a plain expression or list.")
        number = next(_jobs)
        job = {
            "id": number,
            "dataset": self.dataset,
            "options": _packed(dict(self.options)),
            "entry": _entry(self, *(problem.meta[key] for key in ("seed", "size", "index"))),
            "answer": answer,
        }
        reply = _scorers.ask(job)
        if reply is None:
            feedback = f"Your answer took more than {SECONDS:g} seconds to check."
            return Verdict(0.0, False, feedback, {"killed": 1.0})
        score = _score(reply, number)
        if score == 1.0:
            return Verdict(1.0, True)
        return Verdict(score, False, f"Your answer {shown(answer)} is not right.")


@lru_cache(4096)
def _entry(task: Gym, seed: int, size: int, index: int) -> str:
    """The generated record, pickled for the scorer.

    Made again, as a problem is its coordinates; once for the attempts at it.
    """
    return _packed(dict(task._make(seed, size)[index]))


def _config_type(dataset: str) -> type:
    """The config of a data set. Raises WorkbenchError where there is no such one."""
    missing = f"the task gym needs reasoning-gym, {INSTALL}"
    available = needed("reasoning_gym.factory", missing).DATASETS
    if dataset in available:
        scorer, config = available[dataset]
        check_scorer(dataset, scorer)
        return config
    near = difflib.get_close_matches(dataset, available, 5, 0.4)
    examples = f"there are {len(available)}, such as chain_sum, gsm_symbolic, countdown"
    hint = f"did you mean {' or '.join(near)}?" if near else examples
    raise WorkbenchError(f"reasoning-gym has no data set {dataset!r}; {hint}")


def _score(reply: dict, number: int) -> float:
    """0 where the scorer raised.

    Raises WorkbenchError for a reply that is no score of this job.
    """
    if "error" in reply:
        return 0.0
    score = reply.get("score")
    refuse_if(
        reply.get("id") != number or not isinstance(score, float),
        "the process that scores answers replied to something else",
    )
    return min(max(score, 0.0), 1.0)


def _packed(value: dict) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()
