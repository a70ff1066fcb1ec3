"""Two answers compared as a mathematician would.

An answer is taken apart by its form (several values, brackets, matrices, intervals, equations)
down to single values. Numbers, units, letters of a choice and words are compared here, exactly;
what takes algebra is left to the caller.

    same(gold, given, algebra)   True or False; ``algebra(gold, given)`` is asked for formulas
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from workbench.tasks.verify.claims import (
    CONTRARY,
    FUNCTIONS,
    agrees,
    core,
    once,
    tight,
    without_remark,
)
from workbench.tasks.verify.notation import ROW, notation
from workbench.tasks.verify.quantities import (
    NUMBER_WORDS,
    equal_quantities,
    join_thousands,
    quantity,
    without_unit,
)

LONGEST = 2000  # characters of an answer that are worth reading
MOST_VALUES = 30  # of one answer that are compared with each other
DEEPEST = 20  # forms inside each other

Algebra = Callable[[str, str], bool]


def same(gold: str, given: str, algebra: Algebra) -> bool:
    """Is ``given`` the answer ``gold``? Both as written."""
    if max(len(gold), len(given)) > LONGEST:
        return gold == given
    left, right = notation(gold), once(notation(given))
    if not right:
        return False
    if tight(left) == tight(right):
        return True
    if left.lower() in CONTRARY:
        return agrees(left.lower(), core(right))
    if "(" not in left:
        right = without_remark(right)
    return _Comparison(algebra, is_text(gold)).same(left, core(right))


def is_number(answer: str) -> bool:
    return quantity(notation(answer)) is not None


# --- the forms of an answer -----------------------------------------------------------------------

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")
_GIVEN_CHOICE = re.compile(r"\(([A-Za-z])\)(.*)|([A-Za-z])(?:[).:](.*))?", re.DOTALL)
_OTHER_CHOICE = re.compile(r"\b(?:or|and|not)\b|\([A-Z]\)|\b[B-HJ-Z]\b")
_BASE = re.compile(
    r"\(?([\dA-Fa-f]+)\)?\s*(?:_\s*\{?\s*\(?\s*(\w+?)\s*\)?\s*\}?"
    r"|\(?\s*(?:in )?base[\s-]*(\w+)\s*\)?)"
)
_MATRIX = re.compile(
    r"\[?\s*\\begin\{(matrix|[pbBvV]matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*\]?",
    re.DOTALL,
)
_SEPARATOR = re.compile(
    r"\s*(?:[,;]\s*(?:and |or )?|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])|\\cup(?![a-zA-Z]))\s*"
)
_RELATION = re.compile(r"[<>≤≥]")
_CHAIN = re.compile(
    r"(?:(?P<low>[^<>≤≥]+)(?P<first>[<>≤≥]))?\s*(?P<name>\\?[a-zA-Z]+(?:_\w)?)\s*"
    r"(?:(?P<second>[<>≤≥])(?P<high>[^<>≤≥]+))?"
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'*\s*(?:\([A-Za-z, ]+\))?|\([a-z]\s*(?:,\s*[a-z]\s*)+\)"
    r"|m?\s*\\angle\s*[A-Z]+|\\(?:overline|vec|widehat|hat)\s*\{\w+\}|[A-Za-z][A-Za-z ]+)\s*"
)
_MEMBER = re.compile(r"\\?[a-zA-Z]\w*\s*∈\s*")
_EQUALS = re.compile(r"=")
_SYMBOL = re.compile(r"[a-zA-Z]+")
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def _letters(formula: str) -> set[str]:
    """Its symbols; e and i may be numbers."""
    return set(re.findall(r"[a-zA-Z]", _COMMAND.sub(" ", formula))) - {"e", "i"}


def is_text(answer: str) -> bool:
    """Words, that are the same or are not: to algebra, east and seat would be one product of four
    letters.
    """
    plain = notation(answer)
    if not plain or not all(c.isalpha() or c in " '\",.;:()!?&-" for c in plain):
        return False
    return not FUNCTIONS & set(re.findall(r"[a-z]+", plain)) and bool(
        re.search(r"[^\W\d_]{3}|[^\W\d_\x00-\u03ff]", plain) or "\\text" in answer
    )


def split(answer: str, separator: re.Pattern = _SEPARATOR) -> list[str]:
    """The parts of an answer that are outside all brackets."""
    depth, start, parts = 0, 0, []
    marks = re.compile(rf"(?P<open>[(\[{{])|(?P<close>[)\]}}])|(?P<cut>{separator.pattern})")
    for mark in marks.finditer(answer):
        if mark["open"]:
            depth += 1
        elif mark["close"]:
            depth -= 1
        elif depth == 0 and mark["cut"].strip():
            parts.append(answer[start : mark.start()])
            start = mark.end()
    return [part.strip() for part in (*parts, answer[start:]) if part.strip()]


class Values(NamedTuple):
    """``brackets``: "" for none, else the two, such as "(]"."""

    brackets: str
    parts: list[str]

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}")


def values(answer: str) -> Values:
    """What an answer lists."""
    inner = answer.replace("\\{", "{").replace("\\}", "}")
    pair = inner[:1] + inner[-1:]
    if len(inner) > 2 and pair[0] in _BRACKETS and pair[1] in ")]}" and _closes_last(inner):
        parts = split(inner[1:-1])
        if len(parts) > 1 or (pair in ("{}", "()") and parts):
            return Values("" if len(parts) == 1 else pair, parts)
    parts = []
    for part in split(join_thousands(answer)):
        signs = ("+-", "-+") if "±" in part or "∓" in part else ()
        parts += [part.replace("±", plus).replace("∓", minus) for plus, minus in signs] or [part]
    return Values("", [core(part.removeprefix("+")) or part for part in parts])


def _closes_last(answer: str) -> bool:
    """Does the first bracket close with the last character?"""
    depth = 0
    for place, character in enumerate(answer):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return place == len(answer) - 1
    return False


def interval(answer: str) -> tuple[str, str] | None:
    """(name, the values as an interval) of an inequality for one name, ``1 < x ≤ 2``."""
    chain = _CHAIN.fullmatch(answer)
    if not chain or not (chain["first"] or chain["second"]):
        return None
    low, high = chain["low"], chain["high"]
    first, second = chain["first"], chain["second"]
    if {first, second} & set(">≥"):
        if {first, second} & set("<≤"):
            return None
        low, high, first, second = high, low, second, first
    left = ("[" if first in "≤≥" else "(") + low.strip() if low else "(-\\infty"
    right = high.strip() + ("]" if second in "≤≥" else ")") if high else "\\infty)"
    return chain["name"].strip(), f"{left},{right}"


# --- comparison -----------------------------------------------------------------------------------


class _Comparison:
    """The rules in their order; each says True, False, or None where it has nothing to say.

    All take answers in ``notation``.
    """

    def __init__(self, algebra: Algebra, is_text: bool):
        self.algebra = algebra
        self.is_text = is_text
        self.depth = 0

    def same(self, gold: str, given: str) -> bool:
        self.depth += 1  # brackets in brackets: nobody's answer is so deep
        verdict = self.depth <= DEEPEST and self._decide(gold, given)
        self.depth -= 1
        return verdict

    def _decide(self, gold: str, given: str) -> bool:
        gold, given = _MEMBER.sub("", gold), _MEMBER.sub("", given)
        if not given or tight(gold) == tight(given):
            return bool(given)
        for rule in (
            self.choices,
            self.bases,
            self.inequalities,
            self.equations,
            self.lists,
            self.matrices,
            self.quantities,
            self.words,
        ):
            verdict = rule(gold, given)
            if verdict is not None:
                return verdict
        return self.formulas(gold, given)

    def formulas(self, gold: str, given: str) -> bool:
        """Algebra would read any word as a product of its letters."""
        return _letters(given) <= _letters(gold) and self.algebra(gold, given)

    def choices(self, gold: str, given: str) -> bool | None:
        right, chosen = _CHOICE.fullmatch(gold), _GIVEN_CHOICE.fullmatch(given)
        if not right or not chosen:
            return None
        if _OTHER_CHOICE.search(chosen[2] or chosen[4] or ""):
            return False
        letter = chosen[1] or chosen[3]
        in_brackets = right[1] or chosen[1]
        return (letter.upper() if in_brackets else letter) == (right[1] or right[2])

    def bases(self, gold: str, given: str) -> bool | None:
        gold_number, number = _in_base(gold), _in_base(given)
        if gold_number:
            return gold_number == number
        if not number or quantity(gold) is None:
            return None
        digits, base = number
        return base > 0 and self.same(gold, str(int(digits, base)))

    def inequalities(self, gold: str, given: str) -> bool | None:
        if not _RELATION.search(gold + given) or max(len(split(gold)), len(split(given))) > 1:
            return None
        left, right = interval(gold), interval(given)
        if not left and not right:
            return None
        if left and right and left[0] != right[0]:
            return False
        left_side = left[1] if left else gold
        right_side = right[1] if right else given
        if values(left_side).brackets != values(right_side).brackets:
            return False
        return self.same(left_side, right_side)

    def lists(self, gold: str, given: str) -> bool | None:
        if quantity(gold) and quantity(given):
            return None
        left, right = values(gold), values(given)
        if not left.parts or not right.parts:  # nothing but "and"
            return False
        if len(left.parts) == 1 and not left.brackets:
            if right.brackets:
                return False
            if len(right.parts) > 1:
                few = len(right.parts) <= MOST_VALUES
                return few and all(self.same(gold, part) for part in right.parts)
            if left.parts + right.parts == [gold, given]:
                return None
            return self.same(left.parts[0], right.parts[0])
        if left.brackets and right.brackets and left.brackets != right.brackets:
            return False
        if len(right.parts) == 1 and not right.brackets:  # 100,200 may be two values after all
            right = Values("", split(given))
        if len(left.parts) != len(right.parts) or len(left.parts) > MOST_VALUES:
            return False
        if left.ordered or right.ordered:
            names = [part.partition("=")[0] for part in right.parts if "=" in part]
            return names == sorted(names) and all(map(self.same, left.parts, right.parts))
        return self._matches(left.parts, list(right.parts))

    def _matches(self, gold: list[str], given: list[str]) -> bool:
        """Each of ``gold`` has one of ``given`` to itself, in any order."""
        for value in gold:
            place = next((i for i, part in enumerate(given) if self.same(value, part)), None)
            if place is None:
                return False
            given.pop(place)
        return True

    def equations(self, gold: str, given: str) -> bool | None:
        """A name for the value changes nothing; all sides of ``3*4 = 12`` must be the value."""
        left, right = split(gold, _EQUALS), split(given, _EQUALS)
        if len(left) == len(right) == 1 or not left or not right:
            return None
        if len(split(gold)) > 1 or len(split(given)) > 1:
            return None
        left_name, left = _named(left)
        right_name, right = _named(right)
        both = "=" in gold and "=" in given
        if len(left) > 1 and not left_name:
            return both and self.formulas(gold, given)
        other_name = both and left_name != right_name and _SYMBOL.fullmatch(left_name + right_name)
        if not other_name and all(self.same(left[-1], side) for side in right):
            return True
        return bool(both and _letters(left[-1])) and self.formulas(gold, given)

    def matrices(self, gold: str, given: str) -> bool | None:
        left, right = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(given)
        if not left or not right:
            return False if left or right else None
        if left[1].lower().startswith("v") != right[1].lower().startswith("v"):  # determinants
            return False
        rows, given_rows = _cells(left[2]), _cells(right[2])
        if list(map(len, rows)) != list(map(len, given_rows)):
            return False
        return all(map(self.same, itertools.chain(*rows), itertools.chain(*given_rows)))

    def quantities(self, gold: str, given: str) -> bool | None:
        left, right = quantity(gold), quantity(given)
        if left and right:
            return equal_quantities(left, right)
        if self.is_text:
            return None
        gold_formula, gold_unit = without_unit(gold)
        formula, unit = without_unit(given)
        if (gold_formula, formula) == (gold, given):
            return None
        both = gold_unit.dimensions and unit.dimensions
        if not gold_unit.agrees(unit) or (both and gold_unit.factor != unit.factor):
            return False
        return self.same(gold_formula, formula)

    def words(self, gold: str, given: str) -> bool | None:
        if not self.is_text and not is_text(gold):
            return None
        return _ARTICLE.sub("", tight(gold)).lower() == _ARTICLE.sub("", tight(given)).lower()


def _in_base(answer: str) -> tuple[str, int] | None:
    """(digits, base) of 52_8 and "52 base eight"."""
    match = _BASE.fullmatch(answer)
    if not match:
        return None
    name = (match[2] or match[3]).lower()
    base = int(name) if name.isdecimal() and len(name) < 3 else NUMBER_WORDS.get(name, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[1]):
        # 79_8 is no number, so not 79 either; a_1 is a name
        return (match[1], -base) if match[1].isdecimal() else None
    return match[1].lower().lstrip("0"), base


def _named(sides: list[str]) -> tuple[str, list[str]]:
    """(name, values) of the sides of an equation; "" where the first is no name."""
    if len(sides) > 1 and _NAME.fullmatch(sides[0]):
        return sides[0].replace(" ", ""), sides[1:]
    return "", sides


def _cells(matrix: str) -> list[list[str]]:
    rows = [row.strip() for row in matrix.split(ROW)]
    return [[cell.strip() for cell in row.split("&")] for row in rows if row]
