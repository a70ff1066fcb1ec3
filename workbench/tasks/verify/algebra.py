"""Formulas compared by algebra: math-verify's reader of LaTeX, and sympy.

Only a worker process imports this: it can run for ever. Numbers are the same when they are so
exactly; to many digits is not enough, since 10^{200} + 1 is 10^{200} to 199.
"""

from __future__ import annotations

import math
import re

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from math_verify import verify

from workbench.tasks.verify.notation import ROW

APPROXIMATE = sympy.Rational(1, 10**6)  # as in ``quantities``, relative to the gold answer
DIGITS = 50
LARGEST = 10**6  # digits of a number that is worth computing
SAMPLES = ((2, 3), (-5, 7), (11, 13))  # symbols are tried at fractions such as these

_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_SYMBOLS = ConversionConfig(lowercase_symbols=False)
_DECIMAL = re.compile(r"-?\d*\.\d+")
_SIGNS = (("≤", r"\le "), ("≥", r"\ge "), ("%", r"\%"), ("∈", r"\in "), ("±", r"\pm "))


class TooLarge(Exception):
    """A number with more digits than ``LARGEST``."""


def read(answer: str):
    """An answer in ``notation`` as sympy has it. Raises whatever the reader raises."""
    for sign, command in _SIGNS:
        answer = answer.replace(sign, command)
    answer = answer.replace(ROW, r"\\")
    answer = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\\frac{\1\\pi}{180})", answer)
    answer = re.sub(r"\^(\d{2,})", r"^{\1}", answer)
    latex = normalize_latex(answer, config=_NORMAL)
    return latex2sympy(latex, is_real=True, normalization_config=None, conversion_config=_SYMBOLS)


def same(gold: str, given: str) -> bool:
    """Do the two formulas say the same?"""
    left, right = read(gold), read(given)
    if isinstance(left, sympy.Eq) and isinstance(right, sympy.Eq):
        return _same_equation(left, right)
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return type(left) is type(right) and verify(left, right, timeout_seconds=None)
    left, right = _worked_out(left), _worked_out(right)
    try:
        _magnitude(left), _magnitude(right)
    except TooLarge:
        return left == right
    if left.free_symbols or right.free_symbols:
        return _same_function(left, right)
    one_decimal = bool(_DECIMAL.fullmatch(gold)) != bool(_DECIMAL.fullmatch(given))
    if one_decimal and not (left.is_rational and right.is_rational):
        return _close(left, right, APPROXIMATE)
    return _same_number(left, right)


def _worked_out(formula: sympy.Expr) -> sympy.Expr:
    """Without limits and integrals; decimals as the fractions that they are, i as the unit."""
    if formula.has(sympy.Limit, sympy.Integral, sympy.Derivative):
        formula = formula.doit()
    exact = {x: sympy.Rational(str(x)) for x in formula.atoms(sympy.Float)}
    imaginary = {x: sympy.I for x in formula.free_symbols if x.name == "i"}
    return formula.xreplace(exact | imaginary)


def _close(left: sympy.Expr, right: sympy.Expr, tolerance: sympy.Rational) -> bool:
    """Do the values differ by no more than a share of the first?"""
    first, second = left.evalf(DIGITS), right.evalf(DIGITS)
    return bool(abs(first - second) <= tolerance * abs(first))


def _same_number(left: sympy.Expr, right: sympy.Expr) -> bool:
    if left == right:
        return True
    nonzero = sympy.Rational(1, 10 ** (DIGITS - 10))
    return _close(left, right, nonzero) and _is_zero(left - right)


def _is_zero(formula: sympy.Expr) -> bool:
    return sympy.simplify(formula) == 0 or formula.equals(0) is True


def _same_function(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Different at one place is different; the same at all is for algebra to say."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    for over, under in SAMPLES:
        place = {x: sympy.Rational(over + i, under) for i, x in enumerate(symbols)}
        first, second = (side.subs(place).evalf(30) for side in (left, right))
        numbers = first.is_number and second.is_number and first.is_finite and second.is_finite
        if numbers and abs(first - second) > abs(first) / 10**20 + sympy.Rational(1, 10**25):
            return False
    return _is_zero(left - right)


def _same_equation(left: sympy.Eq, right: sympy.Eq) -> bool:
    """One is a multiple of the other."""
    first, second = _worked_out(left.lhs - left.rhs), _worked_out(right.lhs - right.rhs)
    if _is_zero(first) or _is_zero(second):
        return False
    ratio = sympy.simplify(first / second)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)


def _magnitude(number: sympy.Expr) -> float:
    """How many digits the number or its inverse may have. Raises TooLarge."""
    parts = list(map(_magnitude, number.args))
    if number.is_Rational:
        size = math.log10(max(abs(number.p), number.q)) + 1
    elif number.is_Pow or isinstance(number, sympy.exp):
        exponent = number.exp
        times = abs(exponent) if exponent.is_Rational else 10 ** min(parts[-1], 20)
        size = (parts[0] if number.is_Pow else 1.0) * max(1, times)
    elif isinstance(number, sympy.factorial):
        size = 10 ** min(parts[0], 20)
    else:
        size = sum(parts) + 1
    if size > LARGEST:
        raise TooLarge
    return size
