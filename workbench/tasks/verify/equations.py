"""Equations written in a text, each checked by itself.

    3 boxes * 4 pencils = 12 pencils    units between number and sign are skipped
    $1,200 / 4 = $300,  30% of 160 = 48,  10 / 4 = 2.5,  10 / 3 = 3.33 (rounded as written)
    2 + 3 = 5 + 4 = 9                   a chain is wrong where two neighbours differ (5 and 9)

An equation has an operation on at least one side, so "x = 5" and "Step 1" are none.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from functools import lru_cache
from operator import add, mul, sub, truediv
from typing import NamedTuple

_NUMBER = r"[$€£]?(?<!\d)(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?!\d)(?:\.\d{1,18}(?!\d))?%?"
_UNIT = r"(?:[ ]+(?!(?:x|of)\b)[A-Za-z]+){0,3}"  # words after a number
# "of" multiplies after a percentage or a fraction only: not in "a total of 3"
_SIGN = r"(?:[-+*/×÷·−–]|\bx\b|(?:(?<=%[ ])|(?<=/\d[ ]))of\b)"
_TERM = rf"-?[(]*{_NUMBER}{_UNIT}[)]*"
_SIDE = rf"{_TERM}(?:[ ]*{_SIGN}[ ]*{_TERM}){{0,11}}"  # bounded: time stays linear
_EQUATION = re.compile(rf"(?<![\w.]){_SIDE}(?:[ ]*=[ ]*{_SIDE}){{1,7}}", re.ASCII)
_OPERATORS = {"×": "*", "÷": "/", "·": "*", "−": "-", "–": "-", "x": "*", "of": "*"}
_SUMS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}
_LARGEST = Fraction(10) ** 30
_TINY = Fraction(1, 10**9)  # 48 * 0.3333333333333333 is 16


class Equation(NamedTuple):
    """Where it stands in the text, and its sides from left to right."""

    start: int
    end: int
    sides: tuple[str, ...]

    @property
    def result(self) -> Fraction | None:
        """What it comes to: the last side that is a number alone, else the last."""
        plain = [side for side in self.sides if len(numbers(side)) == 1]
        return value((plain or self.sides)[-1])

    @property
    def operands(self) -> tuple[Fraction, ...]:
        """The numbers of the sides with an operation."""
        worked = [side for side in self.sides if len(numbers(side)) > 1]
        return tuple(number for side in worked for number in numbers(side))

    @property
    def wrong(self) -> tuple[str, Fraction | None] | None:
        """(side, what it comes to) of the first side that its neighbour is not equal to.

        None for the value of a division by zero.
        """
        for left, right in zip(self.sides, self.sides[1:]):
            if not _same(left, right):
                worked = left if len(numbers(left)) > 1 else right
                return _plain(worked), value(worked)
        return None


def equations(text: str) -> list[Equation]:
    """All equations of a text, in order."""
    matches = []
    for match in _EQUATION.finditer(text):
        sides = tuple(side.strip() for side in match[0].split("="))
        # "2(3+4) = 14" begins before the match: what it comes to is not known
        whole = all(side.count(")") <= side.count("(") for side in sides[:-1])
        if whole and any(len(numbers(side)) > 1 for side in sides):
            matches.append(Equation(*match.span(), sides))
    return matches


def numbers(side: str) -> tuple[Fraction, ...]:
    """The numbers of a text, without signs; a percentage as a hundredth."""
    return tuple(map(_number, re.findall(_NUMBER, side, re.ASCII)))


@lru_cache(maxsize=1 << 14)
def value(side: str) -> Fraction | None:
    """What a side comes to; None where it cannot be told (a division by zero, say)."""
    try:
        result = _evaluate(ast.parse(_plain(side), mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return result if abs(result) < _LARGEST else None


def _same(left: str, right: str) -> bool:
    first, second = value(left), value(right)
    if first is None or second is None:
        return False
    return abs(first - second) <= max(_rounding(left), _rounding(right), _TINY)


def _plain(side: str) -> str:
    """The side in Python's signs, without units."""
    if "÷" in side:  # 13 ÷ 1/2: the slash writes a fraction
        side = re.sub(r"(\d+/\d+)", r"(\1)", side)
    for sign, operator in _OPERATORS.items():
        side = re.sub(rf"\b{sign}\b" if sign.isalpha() else sign, operator, side)
    side = re.sub(r"[A-Za-z$€£ ]|(?<=\d),(?=\d)", "", side)
    if side.count("(") != side.count(")"):  # one that was opened before the equation
        side = re.sub(r"[()]", "", side)
    side = re.sub(r"([\d.]+)%", r"(\1/100)", side)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", side)


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if not isinstance(node, ast.BinOp):
        raise ValueError("not a sum")
    return _SUMS[type(node.op)](_evaluate(node.left), _evaluate(node.right))


def _number(text: str) -> Fraction:
    digits = Fraction(re.sub(r"[$€£,%]", "", text))
    return digits / 100 if text.endswith("%") else digits


def _rounding(side: str) -> Fraction:
    """Half a unit in the last decimal of a side that is a number alone."""
    decimals = re.fullmatch(r"[^\d]*[\d,]+\.(\d+)[^\d]*", side)
    return Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else Fraction(0)
