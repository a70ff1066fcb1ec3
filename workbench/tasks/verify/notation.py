# ruff: noqa: RUF001  (signs that look like others are what this file is about)
"""One way of writing for the many that mean the same: LaTeX, plain text and Unicode."""

from __future__ import annotations

import re

ROW = "\xb6"  # between the rows of a matrix
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SIGNS = {
    "\u2212\u2013\u2012\ufe63\uff0d": "-",
    "\xa0\u2002\u2003\u2009\u200a\u202f\u2007": "\u2009",
    "×·⋅∗": "*",
    "÷": "/",
    "≈": r"\approx ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "∅": r"\emptyset ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "½": r" \frac{1}{2}",
    "¼": r" \frac{1}{4}",
    "¾": r" \frac{3}{4}",
    "⅓": r" \frac{1}{3}",
    "⅔": r" \frac{2}{3}",
    "\u2061\u200b\u2062\ufeff": "",
    "’‘′": "'",
    "“”": '"',
    "º": "°",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
}
_CHARACTERS = str.maketrans({sign: new for signs, new in _SIGNS.items() for sign in signs})

_RULES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(\d*\.\d*?)(\d)\2\2+(?:\.\.\.|…|\\l?dots)", r"\1\\overline{\2}"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:left|right|middle)(?![a-zA-Z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|boldsymbol|[Bb]igg?[lrm]?|limits)(?![a-zA-Z])", ""),
        # thousands
        (r"(?<![\d.]\d{3})(?<=\d)(?:\{,\}|\{\\,\}|,?\\[!,;: ]|[ ~\u2009'])(?=\d{3}(?!\d))", ""),
        (r"(?<![\d.,])(\d{1,3})\.(\d{3})\.(\d{3})(?![\d.])", r"\1\2\3"),
        (
            r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox"
            r"|operatorname\*?|emph|bf|rm)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree|\\circ(?=\s*$)", "°"),
        (r"\\(?:leqslant|leqq|leq|le)(?![a-zA-Z])|<=|≤", "≤"),
        (r"\\(?:geqslant|geqq|geq|ge)(?![a-zA-Z])|>=|≥", "≥"),
        (r"\\(?:neq|ne)(?![a-zA-Z])|!=|≠", r"\\neq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"∪|\bU\b(?=\s*[(\[])", r"\\cup "),
        (r"\\in(?![a-zA-Z])", "∈"),
        (r"\\pm(?![a-zA-Z])|\+/-|\+-", "±"),
        (r"\\mp(?![a-zA-Z])", "∓"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
        (r"\\(?:langle|lparen)(?![a-zA-Z])", "("),
        (r"\\(?:rangle|rparen)(?![a-zA-Z])", ")"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:varnothing|emptyset)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<![a-zA-Z\\])[Ii]nfinity\b", r"\\infty "),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\*\*", "^"),
        (r"(?<=\d)\s*x\s*(?=10\s*\^)", "*"),
        (r"\\(?:quad|qquad|hspace\{[^{}]*\}|phantom\{[^{}]*\})|\\[!,;:> ]|~|\u2009", " "),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})\s*(\w)", r"\1{\2}"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\%", "%"),
        (r"\\([#&])", r"\1"),
    )
]
_BARE_FRACTION = re.compile(r"(\\frac)\s*(?:\{\s*([^{}]*?)\s*\})\s*(?:\{\s*([^{}]*?)\s*\})")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")


def notation(answer: str) -> str:
    """The answer in one notation: no spacing commands, delimiters or fonts; ``*`` for products, ≤
    and ≥, ``°``; no separators of thousands but commas. Upper and lower case stay.
    """
    answer = re.sub(r"\\\\(?:\[[^\]]*\])?", ROW, answer)
    answer = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits[0].translate(_DIGITS)}}}", answer)
    answer = answer.translate(_CHARACTERS)
    for pattern, new in _RULES:
        answer = pattern.sub(new, answer)
    answer = re.sub(r"(?<!\\)\\[()\[\]]", " ", answer)
    # \$ is money; $ too where it has no other to close it
    answer = answer.replace(r"\$", "¤")
    if answer.count("$") % 2 == 0:
        answer = answer.replace("$", " ")
    answer = answer.replace("¤", "$").replace("US$", "$")
    answer = _BARE_FRACTION.sub(r"\1{\2}{\3}", answer)
    answer = " ".join(answer.split()).strip("*_`\"' ").rstrip("\\,;: ")
    return answer if answer.endswith("..") else answer.rstrip(".")
