"""The final answers that a text states. Pure, linear in the text's length."""

from __future__ import annotations

import re
from typing import NamedTuple

from workbench.tasks.verify.answers import LONGEST, same
from workbench.tasks.verify.claims import core
from workbench.tasks.verify.notation import notation
from workbench.tasks.verify.quantities import quantity
from workbench.thoughts import said_aloud

TAIL = 100_000  # the answer is looked for in this many last characters
NEAR = 80  # characters between two answers that belong together
MOST = 10  # answers that are given together

_NUMBER = re.compile(r"(?:-|(?<!\d)[\u2212\u2013])?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)(?:/\d+)?")
_MARKED = re.compile(
    r"(?:(?:####|<answer>)\s*|\b(?:[Aa]nswer|ANSWER)s?\*{0,4}"
    r"(?:(?P<negated>[ \t]+(?:is|are|was|can|could)(?:n['\u2019]t|not|[ \t]+not)\b(?:[ \t]+be\b)?)"
    r"|(?:[ \t]+(?:to|for|in)[ \t][^\n.:,]{1,40}?)?[ \t]+"
    r"(?:is|are|must be|should be|equals)\b:?\**\s*"
    r"|\**:\**\s*|(?<=[^s])(?=[ \t]+[-$\d])))[* \t]*"
    r"(?:(?:\\\[|\$\$)[ \t]*\n\s*)?"
)
_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
_BLANK = re.compile(r"\s*")
_OPEN_BOX = re.compile(r"\\boxed\s*\{[^}]*$")
_BARE_BOX = re.compile(r"\\boxed\s+(-?[\w.]+)")
_SENTENCE_END = re.compile(r"(?<=\S)[.?](?=\s)|!(?=\s+[A-Z])|</answer>")
# What stands before an answer and takes it back.
_DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|doubt|wrong|incorrect)\b|n['\u2019]t\b)[^.,;:!?\n]*$"
    r"|\b(?:if|suppose|assume|whether|unless)\b(?:(?!\b(?:then|so|thus|hence)\b)[^.,;:!?\n])*$",
    re.IGNORECASE,
)
_NOT_THIS_BOX = re.compile(
    r"(?:\bnot|n['\u2019]t(?: be)?|rather than|instead of|\bnot equal to)[\s$\\(\[*]*$",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"(?:[\s$\\()\[\],.;:*=]|\b(?:or|and|maybe|perhaps|possibly|also|alternatively|either"
    r"|then|else|as|well|in addition|followed|by|both"
    r"|[a-z]|[Aa]nswers?|[Ff]inal|the|is)\b|####)*",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(r"(-?[\d.,/]*\d)[\s$\\),]*\bor\b[\s$\\(a-z=]{0,12}$", re.IGNORECASE)
_AND_BEFORE = re.compile(
    r"(-?[\d.,/]*\d)[\s$\\),]*\b(?:or|and|to)\b[\s$\\(a-z=]{0,12}$", re.IGNORECASE
)
# What makes a number a part of a formula or of a word, or only a bound.
_BOUND_BEFORE = re.compile(
    r"(?:[a-zA-Z^_{\\]|[+/\xb1\xb7\xd7\u221a\u2260\u2264\u2265]\s*|\d\s*-\s+"
    r"|(?<!\*)\*\s*|(?<![<>])[<>]\s*"
    r"|\\(?:pm|times|cdot|[gln]eq?)\s+"
    r"|\b(?:(?:more|less|greater|fewer|other) than|at (?:least|most)|between|over|under|below"
    r"|above|up to|twice|half of)\s+)$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(
    r"-?[a-zA-Z]|\s*[!^}\xbc-\xbe\u2150-\u215e]|%\w"
    r"|\s*(?:dozen|hundred|thousand|[mbt]r?illion)s?\b"
    r"|\W*(?:is|was|are|can)(?:n['\u2019]|no| no)t\b"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_OR_AFTER = re.compile(
    r"[\s$\\)\]},.;*]*\(?(?:(?:or|alternatively|maybe|perhaps|possibly|otherwise|unless|and or)\b"
    r"(?:[^\w.\n]{0,12}(-?\d[\d.,/]*)"
    # a sum says how it came, and is no other answer
    r"|[^.\n\d]{0,60}(-?\d[\d.,/]{0,40})(?![\d.,/])(?!\s{0,9}[-+*/=]\s{0,9}[\d(\\]))"
    r"|and\s+[$\\(]*(-?\d[\d.,/]*))",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:(?<!if )(?<!you think )(?:that|this|it)(?: is|['\u2019]s| was) "
    r"(?:wrong|incorrect|not right|not correct)"
    r"|(?:actually|oh|sorry|hmm),? no\b(?! need)"
    r"|(?<=[.!?\u2026] )no,? it(?: is|['\u2019]s) (?=[-$\\]*\d)"
    r"|scratch that|correction:|i made (?:a mistake|an error)|wait,? no\b(?! need)|no,? wait\b"
    r"|actually,? (?:it|that|this|the answer) (?:is|should|must)\b(?! (?:right|correct)))",
    re.IGNORECASE,
)


# The same of the statement that it follows; of another number it takes back nothing.
_WHICH = re.compile(r"[\s$.,*)]{0,9}\bwhich (?:is|was) (?:wrong|incorrect|not right|not correct)")
_SAID_ANEW = re.compile(
    r"[\s,.;:\u2014-]*(?:(?:so|rather|instead)\W+)?(?:be\s+"
    r"|(?:it|that|this|(?:the |my )?(?:\w+ )?answer)(?:['\u2019]s| is| must be| should be)\s+)?"
    r"(?P<claim>[^\n]{0,200})",
    re.IGNORECASE,
)


class Statement(NamedTuple):
    """``said``: what is claimed there, "" for nothing; it stands in ``text[start:end]``."""

    start: int
    end: int
    said: str


def final_answer(text: str) -> str:
    """The last \\boxed{...}, else what follows the last ``####``, ``Answer:``, ``answer is`` or
    ``Answer 18``, else the last number; "" for none. Thoughts are not looked at.
    """
    answers = final_answers(text)
    return answers[0] if answers else ""


def final_answers(text: str, stated_only: bool = False) -> list[str]:
    """All final answers that a text gives, the last one first; those that only differ in place are
    one. More than one is no answer, unless a list of values was asked for.

    ``stated_only``: a last number that nothing calls the answer is none.
    """
    text = said_aloud(text)[-TAIL:]
    boxes, marked = _boxes(text), _marked(text)
    if boxes:
        return _together(text, boxes, marked)
    if marked:
        return _together(text, marked, [])
    return [] if stated_only else _last_number(text)


def last_box(text: str) -> str:
    """What stands in the \\boxed{...} that begins last, of those that are closed and not empty; ""
    for none.
    """
    boxes = _boxes(text)
    return boxes[-1].said if boxes else ""


def _boxes(text: str) -> list[Statement]:
    """The last boxes that are closed and not empty, in their order. One pass: text can be nothing
    but braces.
    """
    # for every open brace: where the box and its content begin; None for a brace that is no box
    open_at: list[tuple[int, int] | None] = []
    spans: list[tuple[int, int, int, int]] = []
    for mark in _BRACES.finditer(text):
        if mark[0] == "{":
            open_at.append(None)
        elif mark[0] == "}":
            begin = open_at.pop() if open_at else None
            if begin and _BLANK.match(text, begin[1], mark.start()).end() < mark.start():
                spans.append((begin[0], mark.end(), begin[1], mark.start()))
        elif mark[0].endswith("{") and len(mark[0]) > 2:
            open_at.append((mark.start(), mark.end()))
    spans += [(*bare.span(), *bare.span(1)) for bare in _BARE_BOX.finditer(text)]
    last = sorted(spans)[-MOST:]
    return [Statement(start, end, text[first:stop].strip()) for start, end, first, stop in last]


def _marked(text: str) -> list[Statement]:
    """The last sentences that call something the answer."""
    statements = []
    for mark in list(_MARKED.finditer(text))[-MOST:]:
        start = mark.end()
        said = text[start : start + LONGEST].partition("\n")[0]
        stop = next((s for s in _SENTENCE_END.finditer(said) if not _abbreviates(said, s)), None)
        end = stop.start() if stop else len(said)
        asked = said[end : end + 1] == "?" or said[:end].rstrip(" *$").endswith("?")
        denied = _DENIED.search(text[max(0, mark.start() - NEAR) : mark.start()])
        claim = re.sub(r"\*+(?!\*)(?=\W*$)", "", said[:end]).strip("* \t")
        if mark["negated"]:
            claim = core("not " + claim)
        elif asked or denied:
            claim = ""
        statements.append(Statement(mark.start(), start + end, claim))
    return statements


def _abbreviates(said: str, stop: re.Match) -> bool:
    return bool(
        re.search(
            r"\b(?:e\.g|i\.e|approx|ca|vs|sq|cu|Rs|Dr|Mrs?|Ms|Mt|Prof)$|^St$", said[: stop.start()]
        )
    )


def _last_number(text: str) -> list[str]:
    """The last number, or the last line where it is nothing but numbers and signs.

    A number inside a formula, one of two, a rejected one, and one that is only a bound are none.
    """
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return []
    last = numbers[-1]
    line_start = text.rfind("\n", 0, last.start()) + 1
    line = _CALCULATOR.sub("", text[line_start:].partition("\n")[0][-LONGEST:]).rpartition("=")[2]
    before = text[max(line_start, last.start() - NEAR) : last.start()]
    after = text[last.end() : last.end() + 12]
    if _DENIED.search(before) or _OPEN_BOX.search(before) or re.match(r"[*$)]*\?", after):
        return []
    alternative = _AND_BEFORE.search(before)
    if not alternative and not re.search(r"[a-zA-Z]|[^\W\d_\x00-\u03ff]", _COMMAND.sub("", line)):
        return [line.strip(" $*.")]
    if _BOUND_BEFORE.search(before) or _BOUND_AFTER.match(after):
        return []
    return [last[0], *([alternative[1]] if alternative else [])]


def _said_anew(rest: str) -> list[str]:
    """The number that follows an answer which was taken back; none where more is said."""
    claim = _SAID_ANEW.match(rest)["claim"]
    stop = _SENTENCE_END.search(claim)
    claim = claim[: stop.start()] if stop and stop[0] != "?" else claim
    return [claim] if quantity(notation(core(claim))) else []


def _together(text: str, statements: list[Statement], later: list[Statement]) -> list[str]:
    """The last statement, and what is given with it, before it and after it, as an answer."""
    kept = [s for s in statements if not _NOT_THIS_BOX.search(text[max(0, s.start - 30) : s.start])]
    if not kept:
        return []
    last = kept[-1]
    which = _WHICH.search(text, last.start, last.end) or _WHICH.match(text, last.end)
    taken_back = [*filter(None, [which]), *_TAKEN_BACK.finditer(text, last.start)]
    if taken_back:
        return _said_anew(text[taken_back[-1].end() :])
    answers, start = [last.said], last.start
    for earlier in reversed(kept[:-1]):
        if not 0 <= start - earlier.end <= NEAR or not _BETWEEN.fullmatch(text, earlier.end, start):
            break
        answers.append(earlier.said)
        start = earlier.start
    before = _OR_BEFORE.search(text[max(0, start - NEAR) : start])
    for alternative in (before, _OR_AFTER.match(text, last.end)):
        answers += [alternative[alternative.lastindex]] if alternative else []
    for other in later:
        number = other.start >= last.end and quantity(notation(core(other.said)))
        if number and not same(last.said, other.said, lambda gold, given: False):
            answers.append(other.said)
    return list(dict.fromkeys(filter(None, answers)))
