"""Prompts that put a solution, an attempt or feedback in front of the policy.

``reprompt`` is SDPO's teacher prompt (arXiv 2601.20802; the strings of the released code). The released code never shows the attempt, and
neither does SDPO here; the part exists because a policy that reads its own attempt is a thing to study. The organism's tokenizer
holds each fixed phrase as one token, so the tiny model goes through the same code as a large one.
"""

from __future__ import annotations

import re

from workbench.core import Message, Problem

SOLUTION = "\nCorrect solution:\n\n"
ATTEMPT = "\nYour unsuccessful earlier attempt:\n\n"
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
AGAIN = "\n\nCorrectly solve the original question."
WRONG, RIGHT, REFLECT = "\nError response:\n", "\nCorrect response:\n", "\nReflect."
TAGS = ("<analysis>", "</analysis>", "<reconstruction>", "</reconstruction>")
PHRASES = (SOLUTION, ATTEMPT, FEEDBACK, AGAIN, WRONG, RIGHT, REFLECT, *TAGS)

_BODY = r"((?:(?!</?(?:analysis|reconstruction)>).)+)"  # anything but another tag
_SYNTHESIS = re.compile(rf"\s*<analysis>{_BODY}</analysis>\s*<reconstruction>{_BODY}</reconstruction>\s*", re.DOTALL)


def _append(problem: Problem, extra: str) -> tuple[Message, ...]:
    *before, last = problem.messages
    return (*before, {**last, "content": last["content"] + extra})


def reprompt(problem: Problem, *, solution: str = "", attempt: str = "", feedback: str = "") -> tuple[Message, ...]:
    """The plain prompt with a solution, an attempt and feedback on it; each may be left out, and with none it is the plain prompt."""
    extra = "".join(head + text for head, text in ((SOLUTION, solution), (ATTEMPT, attempt), (FEEDBACK, feedback)) if text)
    return _append(problem, extra + (AGAIN if extra else ""))


def synthesis(problem: Problem, wrong: str, right: str) -> tuple[Message, ...]:
    """TAPO's synthesis prompt (arXiv 2606.18844, Fig. 2) in the organism's short form."""
    return _append(problem, f"{WRONG}{wrong}{RIGHT}{right}{REFLECT}")


def parse_synthesis(text: str) -> tuple[str, str] | None:
    """(analysis, reconstruction) of a synthesis output; None unless it is exactly one non-empty pair, in this order."""
    found = _SYNTHESIS.fullmatch(text)
    if not found or not found[1].strip() or not found[2].strip():
        return None
    return found[1].strip(), found[2].strip("\n")
