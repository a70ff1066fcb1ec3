"""One way of writing for the many that mean the same: LaTeX, plain text and Unicode."""

from __future__ import annotations

import re
import unicodedata

ROW = "\xb6"  # between the rows of a matrix
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺₀₁₂₃₄₅₆₇₈₉", "0123456789-+0123456789")


def rules(text: str) -> list[tuple[str, str]]:
    """(what, new) of each line ``what ⇒ new``; ␣ is a blank."""
    pairs = [line.partition(" ⇒") for line in text.strip().splitlines()]
    return [(what, new[1:].replace("␣", " ")) for what, _, new in pairs]


_SIGNS = """
−–‒﹣－ ⇒ -
\u00a0\u2002\u2003\u2009\u200a\u202f\u2007 ⇒ \u2009
×·⋅∗ ⇒ *
÷⁄ ⇒ /
≈ ⇒ \\approx␣
π ⇒ \\pi␣
∞ ⇒ \\infty␣
√ ⇒ \\sqrt␣
∅ ⇒ \\emptyset␣
θ ⇒ \\theta␣
Ω ⇒ \\Omega␣
α ⇒ \\alpha␣
β ⇒ \\beta␣
λ ⇒ \\lambda␣
\u2061\u200b\u2062\ufeff ⇒
’‘′ ⇒ '
“” ⇒ "
º ⇒ °
⟨ ⇒ \\langle␣
⟩ ⇒ \\rangle␣
"""
_CHARACTERS = str.maketrans({sign: new for signs, new in rules(_SIGNS) for sign in signs})

_RULES = r"""
\A\*\*(.*)\*\*\Z ⇒ \1
\\! ⇒
\\hspace\*?\{[^{}]*\}|\\(?:thin|med|thick)space(?![a-zA-Z])\s? ⇒ ~
(\d*\.\d*?)(\d)\2\2+(?:\.\.\.|…|\\l?dots) ⇒ \1\\overline{\2}
\\[dtc]frac ⇒ \\frac
\\(?:left|right|middle)(?![a-zA-Z])\.? ⇒
\\(?:displaystyle|textstyle|boldsymbol|bm|[Bb]igg?[lrm]?|limits|[Ll]arge|[Hh]uge)(?![a-zA-Z]) ⇒
\\(?:text)?color\{\w+\} ⇒
(?<![\d.]\d{3})(?<=\d)(?:\{,\}|\{\\,\}|,?\\[!,;: ]|[ ~\u2009'])(?=\d{3}(?!\d)) ⇒
(?<![\d.,])(\d{1,3})\.(\d{3})\.(\d{3})(?![\d.]) ⇒ \1\2\3
\\(?:(?:text|math)(?:bf|it|rm|sf|tt|sc|normal)?|[mh]box|operatorname\*?)\s*\{([^{}]*)\} ⇒ ␣\1␣
\\(?:emph|bf|rm|underline|ensuremath)\s*\{([^{}]*)\} ⇒ ␣\1␣
(?<=\d)\s*(?:\^\s*)?(?:\{\s*)?(?:st|nd|rd|th)(?![a-zA-Z])\s*\}? ⇒
(?<=\d)\s*[aA]\.?[mM](?![a-zA-Z])\.? ⇒ ␣am
(?<=\d)\s*[pP]\.?[mM](?![a-zA-Z])\.? ⇒ ␣pm
(?<![a-zA-Z])(?:USD|US\$)\s*(?=\d) ⇒ \$
(?<![a-zA-Z])(?:Rs|INR)\.?\s*(?=\d) ⇒ ₹
(?<![a-zA-Z])[Aa]n? (?=(?:half|quarter|third|(?:four|fif|six|seven|eigh|nin|ten)th)\b) ⇒ one␣
(?<![\w.])(\d+) and one half(?![a-zA-Z]) ⇒ \1 1/2
\\(?:lor|vee)(?![a-zA-Z]) ⇒ ␣or␣
(?<![a-zA-Z\\])(ln|log|sin|cos|tan|exp)(?=\s*\(|\s+\\?[a-zA-Z0-9](?![a-zA-Z])) ⇒ \\\1
\\Omega(?![a-zA-Z]) ⇒ ␣ohm
\\(?:mathbb\s*(?:\{R\}|R)|R)(?![a-zA-Z]|\s*[\^_]) ⇒ (-\\infty,\\infty)
\{\s*(\w+)\s*\\choose\s*(\w+)\s*\} ⇒ \\binom{\1}{\2}
\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree|\\circ(?=\s*$) ⇒ °
\\(?:leqslant|leqq|leq|le)(?![a-zA-Z])|<=|≤ ⇒ ≤
\\(?:geqslant|geqq|geq|ge)(?![a-zA-Z])|>=|≥ ⇒ ≥
\\(?:neq|ne)(?![a-zA-Z])|!=|≠ ⇒ \\neq␣
\\lt(?![a-zA-Z]) ⇒ <
\\gt(?![a-zA-Z]) ⇒ >
∪|\bU\b(?=\s*[(\[]) ⇒ \\cup␣
\\in(?![a-zA-Z]) ⇒ ∈
\\pm(?![a-zA-Z])|\+/-|\+- ⇒ ±
\\mp(?![a-zA-Z]) ⇒ ∓
\\(?:cdot|times|ast)(?![a-zA-Z]) ⇒ *
\\div(?![a-zA-Z]) ⇒ /
\\(?:lvert|rvert|vert)(?![a-zA-Z]) ⇒ |
\\(?:langle|lparen)(?![a-zA-Z]) ⇒ (
\\(?:rangle|rparen)(?![a-zA-Z]) ⇒ )
\\(?:lbrace|\{) ⇒ \\{
\\(?:rbrace|\}) ⇒ \\}
\\(?:varnothing|emptyset)(?![a-zA-Z])|\\\{\s*\\\} ⇒ \\emptyset
(?<![a-zA-Z\\])[Ii]nfinity\b ⇒ \\infty␣
(?<![a-zA-Z\\])pi(?![a-zA-Z]) ⇒ \\pi␣
(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\) ⇒ \\sqrt{\1}
\*\* ⇒ ^
(?<=\d)\s*x\s*(?=10\s*\^) ⇒ *
\\(?:quad|qquad|hspace\{[^{}]*\}|phantom\{[^{}]*\})|\\[!,;:> ]|~|\u2009 ⇒ ␣
\\frac\s*(\d)\s*(\d) ⇒ \\frac{\1}{\2}
\\frac\s*(\d)\s*\{ ⇒ \\frac{\1}{
(\\frac\{[^{}]*\})\s*(\w) ⇒ \1{\2}
\\sqrt\s*(\w) ⇒ \\sqrt{\1}
\\sqrt\s*\(([^()]*)\) ⇒ \\sqrt{\1}
\\% ⇒ %
\\([#&]) ⇒ \1
"""
_REWRITES = [(re.compile(pattern), new) for pattern, new in rules(_RULES)]
_BARE_FRACTION = re.compile(r"(\\frac)\s*(?:\{\s*([^{}]*?)\s*\})\s*(?:\{\s*([^{}]*?)\s*\})")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")


def notation(answer: str) -> str:
    """The answer in one notation: no spacing commands, delimiters or fonts; ``*`` for products, ≤
    and ≥, ``°``; no separators of thousands but commas. Upper and lower case stay.
    """
    answer = re.sub(r"\\\\(?:\[[^\]]*\])?", ROW, answer)
    answer = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits[0].translate(_DIGITS)}}}", answer)
    answer = _SUBSCRIPT.sub(lambda digits: f"_{{{digits[0].translate(_DIGITS)}}}", answer)
    answer = _VULGAR.sub(_fraction, answer)
    answer = unicodedata.normalize("NFKC", answer.translate(_CHARACTERS))  # full-width forms
    for pattern, new in _REWRITES:
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


def _fraction(sign: re.Match) -> str:
    over, _, under = unicodedata.normalize("NFKC", sign[0]).partition("\u2044")
    return f" \\frac{{{over}}}{{{under}}}"
