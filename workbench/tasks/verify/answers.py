"""Answers as text: finding the one that a solution ends with, and comparing two where that needs no
algebra. Pure, linear in the text's length.
"""

from __future__ import annotations

import re
from fractions import Fraction

TAIL = 100_000  # the answer is looked for in this many last characters
LONGEST = 2000  # characters of an answer that are worth reading

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_MARKED = re.compile(r"(?:####|\b[Aa]nswer\**(?:[ \t]+is\b:?|:|(?=[ \t]+[-$\d])))[* \t]*([^\n]+)")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)

# Ways of writing that change nothing: what is found, and what stands for it.
_SAME = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"[\u2212\u2013]", "-"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:left|right|displaystyle|Bigg?|bigg?)(?![a-zA-Z])", ""),
        (r"\\[!,;:> ]|\\q?quad|~", " "),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1"),
        (r"\^\{?\\circ\}?|\\degree|°", ""),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\{,\}", ","),
        (r"\\([%$#&])", r"\1"),
    )
]
_BASE = re.compile(r"_\{?(\d+)\}?$")
_TIGHT = re.compile(r"\s*([^\w\s])\s*")
_QUANTITY = re.compile(
    r"([+-]?)(?:(\d+/\d+|\d+(?:\.\d*)?|\.\d+)|\\frac\{(-?\d+)\}\{(-?\d+)\})(%| "
    r"?[a-z]{2,}(?: [a-z]{2,}){0,2}(?:\^\d)?)?"
)
_SCALES = frozenset(
    [
        "hundred",
        "thousand",
        "million",
        "billion",
        "trillion",
        "dozen",
        "percent",
        "and",
        "or",
        "to",
        "times",
        "plus",
        "minus",
        "over",
        "of",
        "mod",
        "is",
        "pi",
    ]
)
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "exp",
        "sqrt",
        "min",
        "max",
        "mod",
        "lim",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "infty",
    ]
)


def final_answer(text: str) -> str:
    """The last \\boxed{...}, else what follows the last ``####``, ``Answer:``, ``answer is`` or
    ``Answer 18``, else the last number; "" for none.
    """
    text = text[-TAIL:]
    boxed = last_box(text)
    if boxed:
        return boxed
    marked = [found.strip() for found in _MARKED.findall(text)]
    if marked:
        return re.split(r"(?<=\S)\.\s", marked[-1], maxsplit=1)[0].rstrip("* \t")
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def last_box(text: str) -> str:
    """What stands in the \\boxed{...} that begins last, of those that are closed and not empty; ""
    for none. One pass: text can be nothing but braces.
    """
    # for every open brace: where the box's content begins; None for a brace that is no box
    open_at: list[int | None] = []
    start, found = -1, ""
    for mark in _BRACES.finditer(text):
        if mark[0] == "{":
            open_at.append(None)
        elif mark[0] == "}":
            begin = open_at.pop() if open_at else None
            if (
                begin is not None
                and begin > start
                and (inside := text[begin : mark.start()].strip())
            ):
                start, found = begin, inside
        elif mark[0].endswith("{") and len(mark[0]) > 2:
            open_at.append(mark.end())
    return found


def normal(answer: str) -> str:
    """The answer in lower case, without what only changes how it looks: dollar signs, \\left,
    \\text{...}, degrees, blanks around signs.
    """
    for pattern, new in _SAME:
        answer = pattern.sub(new, answer)
    answer = re.sub(r"\\[()\[\]]|\$", "", answer).lower()
    return _TIGHT.sub(r"\1", " ".join(answer.split())).strip("*").rstrip(".")


def quantity(plain: str) -> tuple[Fraction, str] | None:
    """A normal answer as a number and its unit ("" or such as "%", "cm", "square units"); None
    where it is more than that.
    """
    found = _QUANTITY.fullmatch(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain))
    if not found or _SCALES & set((found[5] or "").split()):
        return None
    try:
        value = Fraction(found[2]) if found[2] else Fraction(int(found[3]), int(found[4]))
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, 1/0
        return None
    return (-value if found[1] == "-" else value), (found[5] or "").strip()


def exact(gold: str, given: str) -> bool | None:
    """Are the two the same? None where it takes algebra to tell."""
    if max(len(gold), len(given)) > LONGEST:
        return gold == given
    left, right = normal(gold), normal(given)
    if left and left == right:
        return True
    a, b = quantity(left), quantity(right)
    if a and b and (a[0] == b[0] or "%" not in a[1] + b[1]):
        return a[0] == b[0] and (not a[1] or not b[1] or a[1] == b[1])
    # math-verify drops them: 52_8 would be 52_9
    bases = [_BASE.findall(side) for side in (left, right)]
    return False if not right or is_text(gold) or (all(bases) and bases[0] != bases[1]) else None


def is_number(answer: str) -> bool:
    return quantity(normal(answer)) is not None


def is_text(answer: str) -> bool:
    """Words, that are the same or are not: to algebra, east and seat would be one product of four
    letters.
    """
    plain = normal(answer)
    if not plain or not all(c.isalpha() or c in " '\",.;:()!?&-" for c in plain):
        return False
    return not _FUNCTIONS & set(re.findall(r"[a-z]+", plain)) and bool(
        re.search(r"[^\W\d_]{3}|[^\W\d_\x00-\u03ff]", plain) or "\\text" in answer
    )
