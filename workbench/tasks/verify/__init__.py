"""Final answers: found in a text, and compared.

Every task whose answer is a number, a formula or words grades with this and nothing else.

    final_answer(text)    the answer that a solution ends with
    compare(gold, given)  exactly where that decides; else by math-verify in a process that is
                          killed after a time limit
    grade(gold, text)     both, as a Verdict

math-verify is optional at run time. Numbers and words need none. Where only it could tell, an
answer counts as wrong without it and one warning says so; a gold answer that is a formula is
refused by ``check_gold`` when the problems are read, because rewards for the one way of writing it
down would look like rewards for mathematics.
"""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from typing import NamedTuple

from workbench.core import Verdict, WorkbenchError
from workbench.tasks.verify.answers import LONGEST, exact, final_answer, is_number, is_text
from workbench.tasks.verify.pool import SECONDS, Pool

NEEDED = "math-verify is not installed (pip install -e '.[data]')"

_math = Pool("math")


class Comparison(NamedTuple):
    """``how``:

    "exact", "math-verify", "killed" (out of time or memory: counts as wrong), "no math-verify"
    (likewise).
    """

    same: bool
    how: str


@functools.lru_cache(maxsize=1 << 14)  # the rollouts of a group give the same few answers
def compare(gold: str, given: str) -> Comparison:
    """Is ``given`` the same answer as ``gold``?

    Never raises for anything that a model can write.
    """
    known = exact(gold, given)
    if known is not None:
        return Comparison(known, "exact")
    if not find_spec("math_verify"):
        warnings.warn(
            f"some answers are not written as the solution has them, and count as wrong: {NEEDED}",
            stacklevel=2,
        )
        return Comparison(False, "no math-verify")
    reply = _math.ask({"gold": gold, "given": given})
    return (
        Comparison(False, "killed")
        if reply is None
        else Comparison(reply.get("same", False), "math-verify")
    )


def grade(gold: str, text: str) -> Verdict:
    """Reward 1 where the text's final answer is ``gold``.

    ``parts``: a comparison that was killed is counted there.
    """
    given = final_answer(text)
    if not given:
        return Verdict(0.0, False, "There is no final answer.")
    same, how = compare(gold, given)
    if same:
        return Verdict(1.0, True)
    shown = given if len(given) <= 200 else given[:200] + "..."
    shown = shown.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
    if how == "killed":
        return Verdict(
            0.0,
            False,
            f"Your final answer {shown} took more than {SECONDS:g} seconds to compare.",
            {"killed": 1.0},
        )
    return Verdict(0.0, False, f"Your final answer {shown} is not right.")


def check_gold(where: str, gold: str) -> None:
    """Raises WorkbenchError, naming the record, for a gold answer that nothing could be compared
    with.
    """
    if is_number(gold) or is_text(gold):
        return
    if not find_spec("math_verify"):
        raise WorkbenchError(
            f"{where} has the answer {gold!r}, which only math-verify can compare: {NEEDED}"
        )
    if len(gold) > LONGEST or not (_math.ask({"gold": gold}) or {}).get("read"):
        raise WorkbenchError(
            f"{where} has the answer {gold[:200]!r}, which cannot be read as a number, a "
            "formula or words"
        )
