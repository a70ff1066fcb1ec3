"""Units of measurement and of money, and the words that may follow a number without changing it."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from workbench.tasks.verify.notation import rules

# Of a dimension: the names of each unit, and how many of the dimension's first unit it is.
_TABLE = """
length: m meter metre 1; km kilometer kilometre 1000; cm centimeter centimetre 1/100
length: mm millimeter millimetre 1/1000; in inch inche 127/5000; ft foot feet 381/1250
length: yd yard 1143/1250; mi mile 201168/125; nm nanometer 1/1000000000; μm micrometer 1/1000000
mass: g gram gramme 1; kg kilogram kilo 1000; mg milligram 1/1000; tonne 1000000
mass: lb pound 45359237/100000; oz ounce 45359237/1600000; ton 45359237/50
time: s sec second 1; ms millisecond 1/1000; min minute 60; h hr hour 3600; day 86400; week 604800
years: month 1; yr year 12; decade 120; century centurie 1200
volume: l liter litre 1; ml milliliter millilitre 1/1000; cl centiliter 1/100
capacity: gal gallon 1; qt quart 1/4; pt pint 1/8; cup 1/16; tablespoon tbsp 1/256
capacity: teaspoon tsp 1/768
dollar: $ dollar usd buck 1; ¢ cent 1/100
euro: € euro eur 1
sterling: £ gbp 1
yen: ¥ yen jpy 1
rupee: ₹ rupee inr 1
angle: ° degree deg 1
radian: radian rad 1
celsius: celsius 1
fahrenheit: fahrenheit 1
kelvin: kelvin 1
percent: % percent percentage pct 1
force: newton 1
energy: joule 1; kj kilojoule 1000; kwh 3600000
calories: calorie cal 1; kcal kilocalorie 1000
power: watt 1; kw kilowatt 1000
voltage: volt 1
resistance: ohm 1
charge: coulomb 1
current: ampere amp 1
frequency: hz hertz 1; khz kilohertz 1000; mhz megahertz 1000000
pressure: pascal 1; kpa kilopascal 1000
amount: mol mole 1
data: byte 1; kb kilobyte 1000; mb megabyte 1000000; gb gigabyte 1000000000
unit: unit 1
"""
CURRENCY = frozenset(["dollar", "euro", "sterling", "yen", "rupee"])


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _names() -> dict[str, tuple[str, Fraction]]:
    names = {}
    for line in _TABLE.strip().splitlines():
        dimension, _, units = line.partition(": ")
        for unit in units.split("; "):
            *spellings, factor = unit.split()
            names.update(dict.fromkeys(spellings, (dimension, Fraction(factor))))
    return names


_UNITS = _names()
_SPELLED_OUT = r"""
\bmph\b ⇒ mile/h
\b(?:kph|kmh)\b ⇒ km/h
(?:°|\bdegrees?)\s*(?:c|celsius)\b ⇒ celsius
(?:°|\bdegrees?)\s*(?:f|fahrenheit)\b ⇒ fahrenheit
\bper\s*cent\b|\bpercentage points?\b ⇒ percent
\b(?:sq|square)\.?\s+([a-z]+) ⇒ \1^2
\b(?:cu|cubic)\.?\s+([a-z]+) ⇒ \1^3
(?<![a-z])([kcmd]?m)([23])(?!\w) ⇒ \1^\2
([a-z]) squared\b ⇒ \1^2
([a-z]) cubed\b ⇒ \1^3
\bpounds sterling\b ⇒ gbp
\bper\b|\ban?\s+(?=[a-z]{2})|\bfor (?:each|every)\b ⇒ /
\b(?:in total|in all|altogether|total|left|remaining|each|apiece|exactly|long)\b ⇒
\b(?:tall|wide|high|deep|old|away|apart|more|now|worth of|the)\b ⇒
"""
_SPELLING = [(re.compile(pattern), new) for pattern, new in rules(_SPELLED_OUT)]
_TOKEN = re.compile(r"([^\W\d_]+|[%°$€£¥₹¢])\.?(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?|([/*])|[\s-]+")
# These make another number of it, or no number at all.
_CHANGES = words(
    "half halves third thirds quarter quarters fourths fifths sixths sevenths eighths ninths "
    "tenths "
    "hundredths thousandths millionths hundred hundreds thousand thousands million millions "
    "billion billions trillion dozen dozens score gross wrong incorrect false not no never neither "
    "nor or and to times plus minus over mod modulo squared cubed squares cubes factorial "
    "factorials negative less than greater fewer maybe perhaps divided multiplied by between "
    "least most is pi powers roots multiples factors digits guess unsure nonsense"
)
_NOUN = re.compile(r"(?=.*[aeiouy])[a-z]{3}|of$|for$|in$")
_PLURALS = words(
    "people persons men women children feet teeth mice geese sheep fish deer dice oxen"
)


class Unit(NamedTuple):
    """``dimensions``: (name, power) pairs; ``factor``: of their first units; ``words``: what is
    counted.
    """

    dimensions: frozenset = frozenset()
    factor: Fraction = Fraction(1)
    words: frozenset = frozenset()

    def agrees(self, other: Unit) -> bool:
        """Could both stand behind one number, up to their factors? Only one of them: yes."""
        if self.dimensions and other.dimensions:
            return self.dimensions == other.dimensions
        return not self.words or not other.words or bool(self.words & other.words)


def read_unit(tail: str, counts_one: bool) -> Unit | None:
    """What follows a number, as a unit; None where it is more than that (a formula, a remark).

    ``counts_one``: the number is no more than one, so that one names things in the singular.
    """
    tail = tail.lower().strip()
    for pattern, short in _SPELLING:
        tail = pattern.sub(short, tail)
    powers: Counter[str] = Counter()
    factor, sign, end = Fraction(1), 1, 0
    things: list[str] = []
    for token in _TOKEN.finditer(tail):
        if token.start() != end:
            return None
        end = token.end()
        if token[3]:
            sign = -1 if token[3] == "/" else sign
        elif token[1]:
            power = sign * int(token[2] or 1)
            named = _UNITS.get(token[1]) or _UNITS.get(token[1].removesuffix("s"))
            if named:
                powers[named[0]] += power
                factor *= named[1] ** power
            else:
                things.append(token[1])
            sign = 1
    dimensions = {(name, power) for name, power in powers.items() if power}
    if end != len(tail) or sign < 0 or not _counts_things(things, counts_one or bool(dimensions)):
        return None
    if ("time", -1) in dimensions and CURRENCY & set(powers):  # $5 an hour is an answer of $5
        dimensions, factor = {(name, 1) for name in CURRENCY & set(powers)}, Fraction(1)
    return Unit(frozenset(dimensions), factor, frozenset(things))


def _counts_things(things: list[str], any_word: bool) -> bool:
    """Are these words for things, as "duck eggs" and "people"? Or none."""
    if _CHANGES & set(things):
        return False
    plural = any(
        word in _PLURALS or (len(word) > 3 and word.endswith("s") and not word.endswith("ss"))
        for word in things
    )
    return not things or plural or (any_word and all(map(_NOUN.match, things)))
