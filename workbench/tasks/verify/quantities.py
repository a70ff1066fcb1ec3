"""Numbers with their units, read and compared exactly.

The one approximation: a decimal may stand for a fraction without a last digit, such as .333333 for
1/3, to one part in a million of it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from workbench.tasks.verify.notation import rules
from workbench.tasks.verify.units import Unit, read_unit

LONGEST_UNIT = 60  # characters
LARGEST_EXPONENT = 5000  # of a number that is written out
APPROXIMATE = Fraction(1, 10**6)  # how far a decimal may be from a number that has no last digit

_SCALES = dict(
    rules(
        """
hundred ⇒ 100
thousand ⇒ 1000
million ⇒ 1000000
billion ⇒ 1000000000
trillion ⇒ 1000000000000
dozen ⇒ 12
half ⇒ 1/2
halve ⇒ 1/2
third ⇒ 1/3
quarter ⇒ 1/4
fourth ⇒ 1/4
fifth ⇒ 1/5
sixth ⇒ 1/6
seventh ⇒ 1/7
eighth ⇒ 1/8
ninth ⇒ 1/9
tenth ⇒ 1/10
hundredth ⇒ 1/100
thousandth ⇒ 1/1000
"""
    )
)
_FRACTION = r"\\frac\{\s*(?P<over>[+-]?\d+)\s*\}\{\s*(?P<under>[+-]?\d+)\s*\}"
_QUANTITY = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<money>[$€£¥₹]?)\s*(?P<sign2>-?)"
    r"(?:(?P<whole>\d+)\s*" + _FRACTION.replace("over", "part").replace("under", "parts") + "|"
    r"(?P<mixed>\d+) (?P<top>\d+)/(?P<bottom>\d+)|"
    r"(?P<digits>\d*\.\d*)\\(?:overline|bar|dot)\s*\{(?P<repeating>\d+)\}|"
    r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*(?P<divisor>\d+))?"
    r"(?:\s*\*\s*10\s*\^\s*\{?\s*(?P<power>[+-]?\d+)\s*\}?|[eE](?P<exponent>[+-]?\d+))?|"
    + _FRACTION
    + r"|10\s*\^\s*\{?\s*(?P<ten>[+-]?\d+)\s*\}?)"
    r"(?:[ -](?P<scale>" + "|".join(_SCALES) + r")s?\b)?(?P<tail>.*)",
    re.DOTALL,
)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_INDIAN = re.compile(r"(?<![\d.,])[1-9]\d?(?:,\d\d)+,\d{3}(?![\d,])")  # 12,34,567
# 3 dollars and 50 cents; 5 feet 6 inches
_TWO_UNITS = re.compile(r"(.*?[^\s,]),?\s+(?:and\s+(?=\w)|(?=\d))(.*)")


def _counted(ones: str, ending: str) -> dict[str, int]:
    """The words for 0 to 99, from those up to nineteen and what twenty and its kind end with."""
    words = ones.split()
    numbers = dict(zip(words, range(20)))
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    for place, ten in enumerate(tens, 2):
        numbers[ten[:-1] + ending] = 10 * place
        for number, one in enumerate(words[1:10], 1):
            numbers[f"{ten}-{one}"] = 10 * place + number
    return numbers


NUMBER_WORDS = _counted(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen",
    "y",
)
_ORDINALS = _counted(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth",
    "ieth",
)
_WORDS = NUMBER_WORDS | _ORDINALS
_NUMBER_WORD = re.compile(
    "(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")(?![a-zA-Z])", re.IGNORECASE
)


class Quantity(NamedTuple):
    """``decimal``: written with a point, so that it may stand for a number with more digits."""

    value: Fraction
    unit: Unit
    decimal: bool = False


def quantity(answer: str) -> Quantity | None:
    """An answer in ``notation`` as a number with its unit, or with a larger and a smaller one; None
    where it is more than that.
    """
    return _of_one_unit(answer) or _of_two_units(answer)


def _of_two_units(answer: str) -> Quantity | None:
    """What is over a whole number of large units, in small ones, is less than one large one."""
    # longer is no quantity, and what is left is looked at again
    parts = len(answer) < 200 and _TWO_UNITS.fullmatch(answer)
    large = parts and _of_one_unit(parts[1])
    if not large or large.value < 0 or large.value.denominator > 1 or not large.unit.dimensions:
        return None
    small = quantity(parts[2])
    if not small or small.unit.dimensions != large.unit.dimensions:
        return None
    share = small.value * small.unit.factor / large.unit.factor
    return Quantity(large.value + share, large.unit) if 0 <= share < 1 else None


def _of_one_unit(answer: str) -> Quantity | None:
    answer = join_thousands(_INDIAN.sub(_without_commas, answer))
    word = _NUMBER_WORD.match(answer)
    ordinal = bool(word) and word[1].lower() in _ORDINALS
    if word:
        answer = str(_WORDS[word[1].lower()]) + answer[word.end() :]
    match = _QUANTITY.fullmatch(answer)
    if not match or (match["money"] and match["sign"] and match["sign2"]):
        return None
    try:
        value = _value(match)
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, 1/0
        return None
    if value is None:
        return None
    value *= Fraction(_SCALES.get(match["scale"], 1))
    unit = _unit(match["money"], match["tail"], ordinal or abs(value) <= 1)
    if unit is None:
        return None
    negative = "-" in match["sign"] + match["sign2"]
    return Quantity(-value if negative else value, unit, "." in (match["number"] or ""))


def join_thousands(answer: str) -> str:
    """1,234,567 without its commas."""
    return _THOUSANDS.sub(_without_commas, answer)


def _without_commas(digits: re.Match) -> str:
    return digits[0].replace(",", "")


def without_unit(answer: str) -> tuple[str, Unit]:
    """A formula or a number without the unit that stands behind it."""
    for blank in re.finditer(r"(?<=[^\s*/+=-]) (?=[a-z$€£¥₹])", answer):
        tail = answer[blank.end() :]
        unit = read_unit(tail, False) if len(tail) <= LONGEST_UNIT else None
        if unit and unit.dimensions:
            return answer[: blank.start()], unit
    if answer[:1] in "$€£¥₹" and len(answer) > 1:
        return answer[1:].strip(), read_unit(answer[0], False) or Unit()
    return answer, Unit()


def _value(match: re.Match) -> Fraction | None:
    if match["whole"]:
        return int(match["whole"]) + Fraction(int(match["part"]), int(match["parts"]))
    if match["mixed"]:
        return int(match["mixed"]) + Fraction(int(match["top"]), int(match["bottom"]))
    if match["over"]:
        return Fraction(int(match["over"]), int(match["under"]))
    if match["repeating"]:
        start, block = match["digits"], match["repeating"]
        places = len(start.partition(".")[2])
        period = Fraction(int(block), 10**places * (10 ** len(block) - 1))
        return (Fraction(start + "0") if places or start != "." else Fraction(0)) + period
    power = int(match["power"] or match["exponent"] or match["ten"] or 0)
    if abs(power) > LARGEST_EXPONENT:
        return None
    value = Fraction(match["number"] or 1) / int(match["divisor"] or 1)
    return value * Fraction(10) ** power


def _unit(money: str, tail: str, counts_one: bool) -> Unit | None:
    glued = bool(tail) and tail[0].isalpha()
    tail = tail.strip(" -")
    if tail.startswith("(") and tail.endswith(")"):
        tail = tail[1:-1]
    unit = read_unit(f"{money} {tail}" if money else tail, counts_one)
    # 5m and 12xy are products
    if unit is None or (glued and (unit.words or len(re.match("[a-z]+", tail, re.I)[0]) == 1)):
        return None
    # "$5 dollars" is one dollar, not a square one
    if money and any(power == 2 for _, power in unit.dimensions):
        return read_unit(money, True)
    return unit


def equal_quantities(gold: Quantity, given: Quantity) -> bool:
    if not gold.unit.agrees(given.unit):
        return False
    left, right = gold.value * gold.unit.factor, given.value * given.unit.factor
    percent = frozenset([("percent", 1)])
    units = (gold.unit.dimensions, given.unit.dimensions)
    if not all(units):
        left, right = gold.value, given.value
        if percent in units:
            share, bare = (left, right) if units[0] == percent else (right, left)
            # the sign is left out where the question asks for per cent, but not of .5
            return share == 100 * bare or (share == bare and abs(bare) > 1)
    return left == right or _rounded(left, right, gold.decimal, given.decimal)


def _rounded(gold: Fraction, given: Fraction, gold_decimal: bool, given_decimal: bool) -> bool:
    """Is one of them a decimal that stands for the other, which has no last digit?"""
    parts = (given if gold_decimal else gold).denominator
    ends = pow(10, parts.bit_length(), parts) == 0  # only 2 and 5 divide it
    if gold_decimal == given_decimal or ends:
        return False
    return abs(gold - given) <= APPROXIMATE * abs(gold)
