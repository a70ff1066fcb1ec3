"""Prompts that put a solution, an attempt or feedback in front of the policy.

``reprompt`` is SDPO's teacher prompt (arXiv 2601.20802; the strings of the released code). The
released code never shows the attempt, and neither does SDPO here; the part exists because a policy
that reads its own attempt is a thing to study. The organism's tokenizer holds each fixed phrase as
one token, so the tiny model goes through the same code as a large one.
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

AUDITOR = """\
You are an auditor of mathematical reasoning. You are given a question, a response to it that is \
wrong, and (if there is one) a response that is
correct. Write the wrong response again as somebody would who makes its first critical mistake, \
notices it, and mends it. Four goals:

1. Say exactly where the first critical mistake is, and of which kind it is (calculation, \
misreading, wrong theorem, gap in the logic, ...).
2. Keep the original mistaken thought: copy the error response word for word from its beginning up \
to and including that mistake. Then move
   naturally into doubt and correction, as in "Wait, let me double-check that ...", and reason on \
correctly to the end.
3. Keep the style of the error response: its tone, its notation, the length of its steps. Never \
mention that you were shown any response.
4. Obey the format below to the letter."""
AUDIT_FORMAT = """\
## Format

Write these two blocks and nothing else:

<analysis>
the step of the first critical mistake, its kind, and why it is wrong
</analysis>
<reconstruction>
the error response up to and including the mistake, the moment of doubt, the correction, and the \
rest of the solution
Final Answer: \\boxed{the answer}
</reconstruction>"""
# words of the prompts themselves, which no reply to the plain prompt should hold
LEAKS = (*PHRASES, "\n## Error response", "\n## Correct response")

_BODY = r"((?:(?!</?(?:analysis|reconstruction)>).)+)"  # anything but another tag
_SYNTHESIS = re.compile(
    rf"\s*<analysis>{_BODY}</analysis>\s*<reconstruction>{_BODY}</reconstruction>\s*", re.DOTALL
)


def _append(problem: Problem, extra: str) -> tuple[Message, ...]:
    *before, last = problem.messages
    return (*before, {**last, "content": last["content"] + extra})


def reprompt(
    problem: Problem, *, solution: str = "", attempt: str = "", feedback: str = ""
) -> tuple[Message, ...]:
    """The plain prompt with a solution, an attempt and feedback on it; each may be left out, and
    with none it is the plain prompt.
    """
    extra = ""
    for head, text in ((SOLUTION, solution), (ATTEMPT, attempt), (FEEDBACK, feedback)):
        extra += head + text if text else ""
    return _append(problem, extra + AGAIN if extra else "")


def synthesis(problem: Problem, wrong: str, right: str) -> tuple[Message, ...]:
    """TAPO's synthesis prompt (arXiv 2606.18844, figure 2) in the organism's short form.

    ``right`` may be "": then no correct response is shown.
    """
    return _append(problem, WRONG + wrong + (RIGHT + right if right else "") + REFLECT)


def audit(problem: Problem, wrong: str, right: str) -> tuple[Message, ...]:
    """TAPO's synthesis prompt for real models, after the paper's figure 2, in our words.

    System messages stay; the last user message becomes the question inside it. ``right`` may be "":
    then no correct response is shown.
    """
    *before, last = problem.messages
    parts = [AUDITOR, f"## Question\n\n{last['content']}", f"## Error response\n\n{wrong}"]
    if right:
        parts.append(f"## Correct response\n\n{right}")
    return (*before, {**last, "content": "\n\n".join([*parts, AUDIT_FORMAT])})


def parse_synthesis(text: str) -> tuple[str, str] | None:
    """(analysis, reconstruction) of a synthesis output; None unless it is exactly one non-empty
    pair, in this order.
    """
    match = _SYNTHESIS.fullmatch(text)
    if not match or not match[1].strip() or not match[2].strip():
        return None
    return match[1].strip(), match[2].strip("\n")
