"""What an answer claims, without the words around it: hedges, explanations, what it rejects, and
remarks in brackets. All take answers in ``notation``.
"""

from __future__ import annotations

import re

from workbench.tasks.verify.equations import value
from workbench.tasks.verify.quantities import equal_quantities, quantity
from workbench.tasks.verify.units import words

FUNCTIONS = words(
    "sin cos tan cot sec csc log exp ln sqrt min max mod lim gcd lcm arcsin arccos arctan sinh "
    "cosh tanh infty frac"
)
_TIGHT = re.compile(r"\s*([^\w\s])\s*")
_LEADING = re.compile(
    r"(?:is|are|equals?|equal to|exactly|therefore|thus|then|hence|simply|just|indeed|clearly|now"
    r"|definitely|certainly|surely|obviously|approximately|about|around|roughly|probably|maybe|perhaps|possibly|likely|either|both"
    r"|the|an|there (?:is|are)"
    r"|(?:the )?(?:final |correct )?answers?(?: is| are)?|it'?s|it is|that is|i\.e\."
    r"|option|choice|letter|\\approx|[=:≈])(?![a-zA-Z])[\s:,]*",
    re.IGNORECASE,
)
_REJECTED_FIRST = re.compile(
    r"(?:not|n't|never|no longer)\b.*?(?:\bbut\b|[,;.]\s*(?:it'?s|it is|rather|instead)\b)"
    r"(?:\s*(?:rather|instead|it'?s|it is)\b)?\s*",
    re.IGNORECASE,
)
_REJECTED_LAST = re.compile(
    r"[\s,;(]+(?:and |but )?(?:not|rather than|instead of|never)\b.*", re.IGNORECASE
)
_EXPLANATION = re.compile(
    r"(?:[\s,;(]+(?:because|since|which|where|as(?! well)|due to|given that|by the|that is,"
    r"|it follows|namely|given by)"
    r"|[,;]\s*(?:i think|i believe|i am|i'm|so that|when|obtained|found|after|by|using|from|for)"
    r"|\s+[-\u2014]+\s+(?=[a-zA-Z]{2}))(?![a-zA-Z]).*|\s*\u2014.*",
    re.IGNORECASE,
)
_SECOND_VALUE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|alternatively|could|might|may|as well)\b[^.]*\d", re.IGNORECASE
)
_NEGATED = re.compile(r"(?:not|n't|never|neither|nor|none of)\b", re.IGNORECASE)


def tight(answer: str) -> str:
    return _TIGHT.sub(r"\1", answer)


def core(answer: str) -> str:
    """What is claimed: without "approximately", "because ..." and the values that it rejects ("not
    4 but 5"); "" where it only rejects.
    """
    explanation = _EXPLANATION.search(answer)
    if explanation and _SECOND_VALUE.search(explanation[0]):
        return ""
    for cut in (_REJECTED_LAST, _EXPLANATION):
        rest = cut.sub("", answer, count=1).strip(" ,;")
        answer = rest if rest and not _NEGATED.match(answer) else answer
    before = None
    while before != answer:
        before = answer
        answer = _REJECTED_FIRST.sub("", answer, count=1) if _NEGATED.match(answer) else answer
        answer = answer[match.end() :] if (match := _LEADING.match(answer)) else answer
    answer = answer.strip(" *_`\"',;:")
    answer = answer if answer.endswith("..") else answer.rstrip(".")
    return "" if _NEGATED.match(answer) else answer


def once(answer: str) -> str:
    """``4 (four)`` and ``1/2 (0.5)`` say one thing twice."""
    twice = re.fullmatch(r"(.*?[^\s(]) *\((?:i\.e\.|or|=|that is)?,?\s*([^()]+)\)", answer)
    if not twice or tight(twice[1]) == tight(twice[2]):  # 2(2) is a product
        return answer
    first, second = quantity(twice[1]), quantity(twice[2].strip())
    return twice[1] if first and second and equal_quantities(first, second) else answer


_REMARK = re.compile(r"(.*?[^\s(]) +\((?:i\.e\.|=|that is)?,?\s*([^()\\\\]*\d[^()\\\\]*)\)")
_NO_REMARK = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|alternatively|could|might|may|not|wrong|unless|if|mod|modulo"
    r"|base|in base|rejected|wait)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-zA-Z]{2,}")


def without_remark(answer: str) -> str:
    """``12 (3 boxes of 4)`` is 12; ``12 (13)`` gives two values, and 2 (a + 1) is a product."""
    remark = _REMARK.fullmatch(answer)
    number = remark and quantity(remark[1])
    if not number or quantity(remark[2].strip()) or _NO_REMARK.search(remark[2]):
        return answer
    in_words = _WORD.search(remark[2]) and not FUNCTIONS & set(_WORD.findall(remark[2]))
    return remark[1] if in_words or value(remark[2]) == number.value else answer


CONTRARY = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_VERDICT = re.compile(
    r"(yes|no|true|false)(?![\w'])[\s*^_]*(?:$|[-,.:;!(\u2014]|(?=(?:it|they|he|she|this|that|there|the|we"
    r"|you|i|because|since|as)\b))(.*)",
    re.IGNORECASE | re.DOTALL,
)
_DOUBT = re.compile(r"\b(?:maybe|perhaps|possibly|wait|unsure|not sure|unless)\b", re.IGNORECASE)


def agrees(gold: str, given: str) -> bool:
    """Does it say ``gold``, yes or no, whatever it adds? Not where it then says the contrary."""
    verdict = _VERDICT.fullmatch(given)
    if not verdict or verdict[1].lower() != gold or _DOUBT.search(verdict[2]):
        return False
    # "no remainder" is no answer
    return not re.search(rf"\b{CONTRARY[gold]}\b(?!\s+[a-z])", verdict[2], re.IGNORECASE)
