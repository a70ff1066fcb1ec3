"""Wrong answers and hedges made from right ones: none is paid for.

A seed fixes them all; a sample of them is in the fast tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from random import Random

import pytest

from workbench.tasks.verify import grade

SEED, MANY, SAMPLE = 20261127, 5200, 400
UNITS = ("cm", "m", "km", "kg", "g", "s", "hours", "dollars", "euros", "days", "degrees")
WORDS = ("blue whale", "red", "yes", "no", "Monday", "Paris", "isosceles", "even", "odd", "orange")
STATED = ("#### {}", "Answer: {}", "The answer is {}.", "so \\boxed{{{}}}", "**Final Answer:** {}")


def wrong_numbers(number: Fraction, rng: Random) -> list[str]:
    """Others than ``number``: next to it, its negative, its powers of ten, its digits changed."""
    step = Fraction(1, rng.choice((1, 1, 2, 10, 1000)))
    others = [number + step, number - step, -number, number * 10, number / 10, number * 2]
    others += [number + 100, number * number, Fraction(number.denominator, number.numerator or 7)]
    digits = list(str(abs(number.numerator)))
    rng.shuffle(digits)
    others.append(Fraction(int("".join(digits)), number.denominator))
    others.append(Fraction(int(f"{abs(number.numerator)}{rng.randint(0, 9)}"), number.denominator))
    return [written(other, rng) for other in others if other != number]


def written(number: Fraction, rng: Random) -> str:
    if number.denominator == 1:
        whole = number.numerator
        return rng.choice((f"{whole}", f"{whole}", f"{whole:,}", f"{whole}.0", f"${whole}$"))
    decimal = rng.random() < 0.5 and not 10**6 % number.denominator
    return (
        f"{float(number):.9f}".rstrip("0")
        if decimal
        else f"{number.numerator}/{number.denominator}"
    )


def near_misses(gold: str) -> list[str]:
    """The right number with something that makes it another answer."""
    return [
        *(f"{gold}xy", f"{gold}x^2", f"{gold}^2", f"{gold}!", f"2^{gold}", f"\\sqrt{{{gold}}}"),
        *(f"{gold}+1", f"{gold} - 1", f"1/({gold}+3)", f"{gold}i", f"x = {gold} + 1", f"{gold}e5"),
        *(f"{gold}_8", f"{gold} halves", f"{gold} wrong", f"not {gold}", f"> {gold}", f"<{gold}"),
        *(f"{gold} million", f"{gold} \\pi", f"({gold}, {gold})", f"\\frac{{{gold}}}{{11}}"),
    ]


def hedges(gold: str, other: str) -> list[str]:
    """Both, so that one of them is right."""
    return [
        *(f"{gold} or {other}", f"{other} or {gold}", f"{gold} and {other}", f"{other}, {gold}"),
        *(
            f"{gold}, {other}",
            f"either {gold} or {other}",
            f"{{{gold}, {other}}}",
            f"[{gold}, {other}]",
        ),
        *(f"{gold} \\text{{ or }} {other}", f"{gold}; {other}", f"{gold} (or {other})"),
        *(f"{gold}/{other}", f"{gold} = {other}", f"{other} = {gold}", f"{gold} | {other}"),
        *(f"{gold} \\text{{ and }} {other}", f"{gold} vs {other}", f"{gold} to {other}"),
    ]


def double_statements(gold: str, other: str) -> list[str]:
    """Whole texts that end in two answers."""
    return [
        f"\\boxed{{{gold}}} or \\boxed{{{other}}}",
        f"\\boxed{{{other}}} or \\boxed{{{gold}}}",
        f"Answer: {gold}\nAnswer: {other}",
        f"The answer is {gold} or {other}.",
        f"The answer is either {other} or {gold}.",
        f"#### {gold} or {other}",
        f"\\boxed{{{gold}}}, \\boxed{{{other}}}",
        f"It is {gold}.\n#### {other}",
    ]


def of_a_number(rng: Random) -> Iterator[tuple[str, str]]:
    value = Fraction(
        rng.choice((rng.randint(2, 99), rng.randint(100, 99_999), -rng.randint(2, 500)))
    )
    if rng.random() < 0.25:
        value /= rng.choice((3, 4, 7, 8))
    gold = str(value)
    others = wrong_numbers(value, rng)
    for other in others:
        yield gold, rng.choice(STATED).format(other)
    for miss in near_misses(gold) if value.denominator == 1 and value > 0 else ():
        yield gold, rng.choice(STATED).format(miss)
    plain = str(value + rng.randint(1, 9))
    for hedge in hedges(gold, plain):
        yield gold, rng.choice(STATED).format(hedge)
    for text in double_statements(gold, plain):
        yield gold, text


def of_a_quantity(rng: Random) -> Iterator[tuple[str, str]]:
    number, (unit, another) = rng.randint(2, 999), rng.sample(UNITS, 2)
    gold = f"{number} {unit}"
    for wrong in (f"{number} {another}", f"{number + 1} {unit}", f"-{number} {unit}"):
        yield gold, rng.choice(STATED).format(wrong)
    for wrong in (f"{number}0 {unit}", f"{number} {unit} or {number} {another}"):
        yield gold, rng.choice(STATED).format(wrong)
    for hedge in (f"{gold} or {number + 3} {unit}", f"{number + 3} {unit} or {gold}"):
        yield gold, rng.choice(STATED).format(hedge)


def of_words(rng: Random) -> Iterator[tuple[str, str]]:
    gold, other = rng.sample(WORDS, 2)
    for text in (other, f"{gold} or {other}", f"{other} or {gold}", f"not {gold}", f"{gold}ish"):
        yield gold, rng.choice(STATED).format(text)


def of_a_pair(rng: Random) -> Iterator[tuple[str, str]]:
    a, b = rng.sample(range(2, 60), 2)
    gold = f"({a}, {b})"
    for wrong in (f"({b}, {a})", f"({a}, {b + 1})", f"({a})", f"({a}, {b}, {a})", f"({a}, {-b})"):
        yield gold, rng.choice(STATED).format(wrong)
    yield gold, rng.choice(STATED).format(f"({a}, {b}) or ({b}, {a})")


KINDS = (of_a_number, of_a_number, of_a_number, of_a_quantity, of_words, of_a_pair)


def adversarial() -> list[tuple[str, str]]:
    rng = Random(SEED)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < MANY:
        pairs |= dict.fromkeys(rng.choice(KINDS)(rng))
    return list(pairs)


PAIRS = adversarial()


def paid(pairs) -> list[tuple[str, str]]:
    return [(gold, text) for gold, text in pairs if grade(gold, text).reward]


def test_a_sample_is_not_paid():
    pytest.importorskip("math_verify")
    assert paid(Random(SEED).sample(PAIRS, SAMPLE)) == []


@pytest.mark.slow
def test_none_is_paid():
    pytest.importorskip("math_verify")
    assert len(PAIRS) >= 5000 and len(set(PAIRS)) == len(PAIRS)
    assert paid(PAIRS) == []


def test_the_right_ones_are_paid():
    """So that it is what was changed that is not."""
    golds = {gold for gold, _ in PAIRS}
    texts = [(gold, stated.format(gold)) for gold in golds for stated in STATED]
    assert len(golds) > 100
    assert [pair for pair in texts if not grade(*pair).reward] == []
