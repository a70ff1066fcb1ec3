"""Final answers: found in a text, and compared.

Every task whose answer is a number, a formula or words grades with this and nothing else.

    final_answer(text)    the answer that a solution ends with
    compare(gold, given)  exactly where that decides; else by algebra in a process that is killed
                          after a time limit
    grade(gold, text)     both, as a Verdict

math-verify is optional at run time. Numbers and words need none. Where only it could tell, an
answer counts as wrong without it and one warning says so; a gold answer that is a formula is
refused by ``check_gold`` when the problems are read, because rewards for the one way of writing it
down would look like rewards for mathematics.
"""

from __future__ import annotations

import functools
import math
import warnings
from importlib.util import find_spec
from typing import NamedTuple

from workbench.core import Verdict, refuse_if
from workbench.tasks.verify.answers import LONGEST, is_number, is_text, same, values
from workbench.tasks.verify.notation import notation
from workbench.tasks.verify.pool import SECONDS, Pool
from workbench.tasks.verify.statements import final_answer, final_answers
from workbench.thoughts import said_aloud

__all__ = ["check_gold", "compare", "final_answer", "final_answers", "grade", "shown"]

NEEDED = "math-verify is not installed (pip install -e '.[data]')"

_math = Pool("math")


class Comparison(NamedTuple):
    """``how``:

    "exact", "math-verify", "killed" (out of time or memory: counts as wrong), "no math-verify"
    (likewise).
    """

    same: bool
    how: str


class _Algebra:
    """Asks a process about pairs of formulas, and remembers ``how`` it went."""

    how = "exact"
    left = 200  # of a list's values against another's

    def __call__(self, gold: str, given: str) -> bool:
        if not find_spec("math_verify"):
            self.how = "no math-verify"
            return False
        if self.how == "killed" or not self.left:  # one is enough
            return False
        self.left -= 1
        reply = _math.ask({"gold": gold, "given": given})
        self.how = "killed" if reply is None else "math-verify"
        return bool(reply and reply.get("same"))


@functools.lru_cache(maxsize=1 << 14)  # the rollouts of a group give the same few answers
def compare(gold: str, given: str) -> Comparison:
    """Is ``given`` the same answer as ``gold``?

    Never raises for anything that a model can write. Raises WorkbenchError when the process that
    should tell is killed from outside, twice; then nothing is remembered.
    """
    algebra = _Algebra()
    verdict = same(gold, given, algebra)
    if algebra.how == "no math-verify":
        warnings.warn(
            f"some answers are not written as the solution has them, and count as wrong: {NEEDED}",
            stacklevel=2,
        )
    return Comparison(verdict, algebra.how)


def grade(gold: str, text: str, stated_only: bool = False) -> Verdict:
    """Reward 1 where the text's final answer is ``gold``.

    ``stated_only``: for prompts that ask for a box; the last number of a text that states no answer
    is not taken for one. ``parts``: a comparison that was killed is counted there. Without a gold
    answer nobody knows: the reward is NaN.
    """
    if not gold.strip():
        return Verdict(math.nan, False, "There is no right answer to compare with.")
    answers = final_answers(text, stated_only)
    if not answers and not stated_only:  # a word may be the whole text
        word, said = gold.strip().casefold(), said_aloud(text).strip(" \n*.")
        answers = [said] if said.casefold() in (word, f"({word})") else []
    if not answers:
        return Verdict(0.0, False, "There is no final answer.")
    given = " or ".join(reversed(answers))
    same, how = compare(gold, given)
    if same:
        return Verdict(1.0, True)
    if how == "killed":
        return Verdict(
            0.0,
            False,
            f"Your final answer {shown(given)} took more than {SECONDS:g} seconds to compare.",
            {"killed": 1.0},
        )
    return Verdict(0.0, False, f"Your final answer {shown(given)} is not right.")


def shown(answer: str) -> str:
    """The beginning of an answer, as text: half of a surrogate pair is none."""
    beginning = answer if len(answer) <= 200 else answer[:200] + "..."
    return beginning.encode("utf-8", "replace").decode()


def check_gold(where: str, gold: str) -> None:
    """Raises WorkbenchError, naming the record, for a gold answer that nothing could be compared
    with.
    """
    if is_text(gold):
        return
    parts = values(notation(gold)).parts if len(gold) <= LONGEST else []
    formulas = [part for part in parts if not (is_number(part) or is_text(part))]
    refuse_if(
        formulas and not find_spec("math_verify"),
        f"{where} has the answer {gold!r}, which only math-verify can compare: {NEEDED}",
    )
    read = [bool((_math.ask({"gold": formula}) or {}).get("read")) for formula in formulas]
    refuse_if(
        not parts or not all(read),
        f"{where} has the answer {gold[:200]!r}, which cannot be read as a number, a "
        "formula or words",
    )
