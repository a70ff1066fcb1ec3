r"""Answers as a mathematician would grade them, written down before they were run.

A row is ``+ gold ¦ given`` (the same answer) or ``- gold ¦ given`` (another one). ``given`` is what
stands in the text's \boxed{...}; after ``text:`` it is the whole text, with ⏎ for a line break.
"""

# ruff: noqa: E501, RUF001  (rows are not wrapped, and some are about signs that look alike)
from __future__ import annotations

import time

import pytest

from workbench.tasks import verify
from workbench.tasks.verify import grade

TABLE = r"""
# whole numbers
+ 18 ¦ 18
+ 18 ¦ 18.0
+ 18 ¦ +18
+ 007 ¦ 7
+ 18 ¦ 18.
+ -5 ¦ −5
+ -5 ¦ – 5
+ 12 ¦ twelve
- 18 ¦ 19
- 18 ¦ -18
- 18 ¦ 1.8
- 34 ¦ 3 4
- 34 ¦ 3,4
- 18 ¦ 18.0001
- 123456789 ¦ 123456788
- 12345678901234567890 ¦ 12345678901234567891
- 7 ¦ x
- 18 ¦ ?

# thousands
+ 1234 ¦ 1,234
+ 1234 ¦ 1\,234
+ 1234 ¦ 1{,}234
+ 1234 ¦ 1,\!234
+ 1234 ¦ 1\;234
+ 1234567 ¦ 1 234 567
+ 1234 ¦ 1 234
+ 1234 ¦ 1 234
+ 1234567 ¦ 1'234'567
+ 1,234,567.5 ¦ 1234567.5
+ 1\,000\,000 ¦ 1,000,000
+ 1000000 ¦ 10^6
+ 5000000 ¦ 5 million
- 5 ¦ 5 million
- 1234 ¦ 1, 234
- 1234 ¦ 1,23,4
- 1234 ¦ 1.234
- 512 ¦ 5,12
- 1234 ¦ (1,234)

# fractions and decimals
+ \frac{3}{2} ¦ 1.5
+ \frac32 ¦ \dfrac{3}{2}
+ -\frac{1}{2} ¦ \frac{-1}{2}
+ -\frac{1}{2} ¦ \frac{1}{-2}
+ 3/4 ¦ 6/8
+ 0.1 ¦ 1/10
+ .5 ¦ \tfrac12
+ \frac{14}{3} ¦ 14/3
+ \frac{1}{3} ¦ 0.333333333
+ 0.5 ¦ ½
+ \frac{1}{3} ¦ 0.\overline{3}
- \frac{1}{3} ¦ 0.333
- \frac{1}{3} ¦ 0.3
- \frac{2}{3} ¦ 0.67
- \frac{1}{2} ¦ \frac{2}{1}
- 0 ¦ 1/0
- 0.15 ¦ 0.1499
- 0.125 ¦ 0.12

# mixed numbers
+ \frac{7}{2} ¦ 3\frac{1}{2}
+ 3\frac{1}{2} ¦ 3.5
+ 3 \frac{1}{2} ¦ 7/2
+ 3.5 ¦ 3 1/2
+ 2.5 ¦ 2½
+ -\frac{7}{2} ¦ -3\frac{1}{2}
- 3\frac{1}{2} ¦ \frac{3}{2}
- 3 1/2 ¦ 31/2

# scientific notation
+ 6.02e23 ¦ 6.02 \times 10^{23}
+ 6.02 \times 10^{23} ¦ 6.02E+23
+ 6.02 \times 10^{23} ¦ 6.02 \cdot 10^{23}
+ 6.02 \times 10^{23} ¦ 6.02 x 10^23
+ 6.02 \times 10^{23} ¦ 6.02 × 10²³
+ 6.02 \times 10^{23} ¦ 60.2 \times 10^{22}
+ 1.5e-3 ¦ 0.0015
+ 3 \times 10^{-5} ¦ 0.00003
- 6.02 \times 10^{23} ¦ 6.02 \times 10^{22}
- 6.02 \times 10^{23} ¦ 6.03 \times 10^{23}
- 6.02e23 ¦ 6.02
- 1e-30 ¦ 0
- 1e-30 ¦ 2e-30
- 1e3 ¦ 1001
- 1 ¦ 1e999999999

# huge and tiny
+ 1/2004! ¦ \frac{1}{2004!}
+ 2^{100} ¦ 1267650600228229401496703205376
+ 10! ¦ 3628800
+ 2^{10} ¦ 1024
+ \binom{10}{3} ¦ 120
- 1/2004! ¦ 1/2006!
- 1/2004! ¦ 0
- 2004! ¦ 2004!+1
- 2^{100} ¦ 1267650600228229401496703205377
- 2^{100} ¦ 1.2676506 \times 10^{30}
- 10^{200} ¦ 10^{200}+1
- 10^{-12} ¦ 10^{-13}
- e^{-100} ¦ 0
- e^{-100} ¦ e^{-101}
- \sqrt{10^{40}+1} ¦ 10^{20}
- 18 ¦ 10^{10^{10}}
- 18 ¦ 9^{9^{9^{9}}}
- 18 ¦ 100000000!

# roots and constants
+ 11\sqrt2 ¦ 11\sqrt{2}
+ 3\sqrt{13} ¦ \sqrt{117}
+ \frac{\sqrt{2}}{2} ¦ \frac{1}{\sqrt{2}}
+ 1+\sqrt{2} ¦ \sqrt{3+2\sqrt{2}}
+ \sqrt{2} ¦ 1.41421356237
+ \pi ¦ 3.14159265
+ \frac{\pi}{2} ¦ \pi/2
+ 2\pi ¦ 2π
+ 2\pi ¦ 2pi
+ \sqrt{5} ¦ sqrt(5)
+ \sqrt{5} ¦ √5
+ \sqrt{5} ¦ 5^{1/2}
+ \cos 60^\circ ¦ \frac{1}{2}
- \sqrt{2} ¦ 1.41
- \pi ¦ 3.14
- \pi ¦ 22/7
- 3\sqrt{13} ¦ 13\sqrt{3}
- \sqrt{2} ¦ -\sqrt{2}

# formulas
+ p - q ¦ -q + p
+ 2k+2 ¦ 2(k+1)
+ x^2-1 ¦ (x-1)(x+1)
+ \cot x ¦ \frac{\cos x}{\sin x}
+ x^3+3x-6 ¦ -6 + 3x + x^3
+ 6 - 5i ¦ -5i+6
+ \frac{1}{2}x ¦ 0.5x
+ 12xy ¦ 12yx
+ 3n^2 ¦ 3 \cdot n^2
+ 18 ¦ 3 \times 6
+ 18 ¦ 36/2
- p - q ¦ q - p
- 2k+2 ¦ 2k
- x^2 ¦ y^2
- x^2 ¦ x^3
- 6 - 5i ¦ 6 + 5i
- 12xy ¦ 12
- 3xy^2 ¦ 3
- 5 ¦ 5xy^3
- 5 ¦ 5x
- 5x ¦ 5
- 12xyz ¦ 12
- 7abc ¦ 7
- \frac{x}{2} ¦ \frac{2}{x}
- A ¦ a^2

# equations and names
+ 5 ¦ x=5
+ x=5 ¦ 5
+ x=5 ¦ x = 5.0
+ 2x+1 ¦ f(x) = 2x+1
+ 2x+1 ¦ y = 2x + 1
+ x^2+y^2=1 ¦ x^2+y^2-1=0
+ x^2+y^2=1 ¦ 2x^2+2y^2=2
+ y=2x+1 ¦ y - 2x = 1
+ 12 ¦ 3 \times 4 = 12
+ 12 ¦ \text{Total} = 12
+ 5 ¦ m\angle A = 5
- 5 ¦ x=6
- x=5 ¦ y=5
- 5 ¦ 2x+1=5
- 6 ¦ 5=6
- x^2+y^2=1 ¦ 1
- y=2x+1 ¦ y=2x-1

# several values
+ 1,-2 ¦ -2,1
+ 1,-2 ¦ 1 and -2
+ 1,-2 ¦ x=1 or x=-2
+ 1,-2 ¦ x = 1, x = -2
+ 1,-2 ¦ 1 \text{ or } -2
+ 3, 5, 7 ¦ 7, 5, and 3
+ 1 \pm \sqrt{19} ¦ 1+\sqrt{19},1-\sqrt{19}
+ 1 \pm \sqrt{19} ¦ 1 ± \sqrt{19}
+ \pm 3 ¦ 3, -3
+ 3,-3 ¦ x = \pm 3
+ 5 ¦ 5, 5
+ 0.5 ¦ \frac{1}{2} or 0.5
- 1,-2 ¦ 1
- 1,-2 ¦ 1, 2
- 3, 5, 7 ¦ 3, 5
- 3, 5 ¦ 3, 5, 7
- 5 ¦ 5 or 6
- 6 ¦ 5 or 6
- 5 ¦ 5, 6
- 5 ¦ 5 and 6
- 5 ¦ 5 or maybe 6
- 5 ¦ \pm 5
- \pm 3 ¦ 3
- 5 ¦ 5/6
- 5 ¦ 5 - 6
- 5 ¦ 5 to 6
- 5 ¦ either 5 or 6
- 5 ¦ 5; 6
- 1,1,2 ¦ 1,2,2

# sets, points, intervals
+ \{2,3\} ¦ \{3,2\}
+ \{2,3\} ¦ 3,2
+ \{2,3\} ¦ \left\{ 2, 3 \right\}
+ (3, \frac{\pi}{2}) ¦ \left( 3, \frac{\pi}{2} \right)
+ (6,31,-1) ¦ (6, 31, -1)
+ (-2,1) ¦ (x,y) = (-2,1)
+ (-2,1) ¦ -2, 1
+ (1/2,1) ¦ (0.5, 1)
+ (1,2),(3,4) ¦ (3,4) and (1,2)
+ (-\infty,3) ¦ x<3
+ (-\infty,3) ¦ 3 > x
+ x<3 ¦ (-\infty,3)
+ (-\infty,3] ¦ x \le 3
+ [5,\infty) ¦ x \geq 5
+ (1,2] ¦ 1 < x \leq 2
+ (1,2] ¦ x \in (1,2]
+ (1,2] ¦ 2 >= x > 1
+ (-\infty,1)\cup(3,\infty) ¦ x<1 or x>3
+ (-\infty,1)\cup(3,\infty) ¦ (3,\infty) \cup (-\infty,1)
+ (-\infty,\infty) ¦ (-∞, ∞)
- [1,2) ¦ (1,2]
- (1,2) ¦ [1,2]
- (3,1) ¦ (1,3)
- (3,1) ¦ 1, 3
- (1,2) ¦ \{1,2\}
- \{1,2\} ¦ (1,2)
- (-\infty,3) ¦ x \le 3
- (-\infty,3) ¦ x > 3
- (-\infty,3) ¦ 3
- (1,2] ¦ x > 1
- x<3 ¦ y<3
- (-\infty,1)\cup(3,\infty) ¦ (3,\infty)
- \{1,2\} ¦ \{1,2,3\}

# matrices
+ \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{bmatrix}1&2\\3&4\end{bmatrix}
+ \begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} ¦ \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}
- \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
- \begin{pmatrix} 1 & 2 \end{pmatrix} ¦ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
- \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ 1, 2, 3, 4
- \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}

# bases
+ 52_8 ¦ 52_{8}
+ 52_8 ¦ 52_{\text{eight}}
+ 52_8 ¦ 52 base 8
+ 52_8 ¦ 52 \text{ (base 8)}
+ 2A_{16} ¦ 2a_{16}
- 52_8 ¦ 52
- 52_8 ¦ 52_9
- 52_8 ¦ 53_8
- 52 ¦ 52_8
- 101_2 ¦ 101

# per cent
+ 50\% ¦ 50
+ 50 ¦ 50%
+ 50\% ¦ 50 percent
+ 50\% ¦ 0.5
+ 0.5 ¦ 50\%
+ \frac{1}{4} ¦ 25%
+ 12.5\% ¦ 12.5 per cent
- .5 ¦ .5%
- .5% ¦ .5
- 50\% ¦ 5\%
- 50 ¦ 0.5
- 1/4 ¦ 4%

# currency
+ 5 ¦ \$5
+ \$5 ¦ 5
+ \$5 ¦ 5 dollars
+ \$1{,}200.50 ¦ 1200.5
+ \$5 ¦ \$5.00
+ \$5 ¦ 500 cents
+ -5 ¦ -\$5
+ 5 euros ¦ €5
+ \$5 ¦ 5 USD
- \$5 ¦ 5 euros
- \$5 ¦ €5
- \$5 ¦ 5 cents
- \$5 ¦ £5
- \$5 ¦ 5%

# units
+ 5 cm ¦ 5
+ 5 ¦ 5 cm
+ 5 cm ¦ 5\text{ cm}
+ 5 cm ¦ 5 centimeters
+ 5 cm ¦ 5cm
+ 5 m ¦ 500 cm
+ 5 m ¦ 5 \mathrm{m}
+ 10 \text{ inches} ¦ 10 in
+ 5 \text{ cm}^2 ¦ 5 square centimeters
+ 5 \text{ cm}^2 ¦ 5 cm²
+ 60 mph ¦ 60 miles per hour
+ 60 km/h ¦ 60 kilometers per hour
+ 12 ¦ 12 square units
+ 18 ¦ 18 eggs per day
+ 18 ¦ 18 eggs
+ 18 eggs ¦ 18 eggs per day
+ 3 hours ¦ 180 minutes
+ 90^\circ ¦ 90
+ 90^\circ ¦ 90 degrees
+ 90 ¦ 90°
+ 1 ¦ 1 egg
+ 4 ¦ 4 people
+ 3 ¦ 3 more apples
+ 20^\circ C ¦ 20 degrees Celsius
- 5 cm ¦ 5 m
- 5 cm ¦ 5 inches
- 10 cm ¦ 10 inches
- 5 \text{ cm}^2 ¦ 5 cm
- 5 \text{ cm}^2 ¦ 5 \text{ cm}^3
- 5 hours ¦ 5 minutes
- 5 kg ¦ 5 g
- 20^\circ C ¦ 20^\circ F
- 90^\circ ¦ 90 radians
- 60 mph ¦ 60 km/h
- 18 eggs ¦ 18 apples
- 5 ¦ 5 halves
- 5 ¦ 5 thirds
- 5 ¦ 5 wrong
- 5 ¦ 5 dozen
- 5 ¦ 5 hundredths
- 5 ¦ 5 squared
- 5 ¦ 5 factorial
- 5 ¦ 5 incorrect
- 5 ¦ 5!

# letters of a choice
+ \text{(B)} ¦ B
+ \text{(B)} ¦ (B)
+ (B) ¦ \textbf{B}
+ B ¦ \text{(B)}
+ B ¦ B.
+ B ¦ \textbf{(B)}\ 12
+ (C) ¦ C) 12
+ D ¦ \mathrm{D}
+ \text{(B)} ¦ b
+ B ¦ option B
- B ¦ C
- \text{(B)} ¦ (C)
- B ¦ B or C
- B ¦ B, C
- B ¦ not B
- B ¦ ABCD

# words
+ \text{Evelyn} ¦ Evelyn
+ \text{Evelyn} ¦ evelyn
+ \text{east} ¦ \textbf{East}
+ blue whale ¦ Blue  Whale.
+ yes ¦ Yes, because 3 > 2
+ \text{even} ¦ even
+ no solution ¦ \text{no solution}
+ \emptyset ¦ \varnothing
+ \infty ¦ infinity
+ east ¦ the east
- east ¦ seat
- \text{east} ¦ west
- \text{east} ¦ E
- east ¦ not east
- east ¦ east or west
- yes ¦ no
- even ¦ neither even nor odd
- blue ¦ blue and red
- red ¦ infrared

# the answer is stated
+ 5 ¦ text:The answer is 5.
+ 12 ¦ text:Answer: 12, because 3*4 = 12.
+ 12 ¦ text:Answer: 12 because 3*4 = 12.
+ 12 ¦ text:The answer is 12 (since 3*4 = 12).
+ 5 ¦ text:The answer is not 4 but 5.
+ 5 ¦ text:The answer is 5, not 4.
+ 5 ¦ text:The answer isn't 4, it's 5.
+ 5 ¦ text:The final answer is: $5$
+ 5 ¦ text:**Answer:** 5
+ 5 ¦ text:**Final Answer: 5**
+ 5 ¦ text:So the answer is **5**.
+ 5 ¦ text:The answer is $x = 5$.
+ 5 ¦ text:The answer is \(5\).
+ 5 ¦ text:The answer is therefore 5 apples.
+ 5 ¦ text:The answer is 5 apples, which he shares with 3 friends.
+ 5 ¦ text:The correct answer is 5.
+ 5 ¦ text:5 is the answer.
+ 5 ¦ text:<answer>5</answer>
+ 5 ¦ text:#### 5
+ 5 ¦ text:Answer:⏎5
+ \frac12 ¦ text:The answer is $\frac12$.
+ 1,-2 ¦ text:The answers are 1 and -2.
+ east ¦ text:The answer is east.
+ B ¦ text:The answer is (B).
+ 1234 ¦ text:The answer is 1,234.
+ 3.5 ¦ text:The answer is 3.5.
+ 5 ¦ text:The answer is about 6? No. The answer is 5.
+ 3 ¦ text:The answer is 3. It was easy to find 2.
+ 26 ¦ text:so he has 26⏎A: 26
- 5 ¦ text:The answer is not 5.
- 4 ¦ text:The answer is not 4 but 5.
- 4 ¦ text:The answer is 5, not 4.
- 5 ¦ text:The answer cannot be 5.
- 5 ¦ text:I don't think the answer is 5.
- 5 ¦ text:The answer is 5 or 6.
- 6 ¦ text:The answer is 5 or 6.
- 6 ¦ text:It is either 5 or 6
- 5 ¦ text:The answer is 5. Or maybe 6.
- 5 ¦ text:The answer is between 5 and 6.
- 5 ¦ text:The answer is at least 5.
- 5 ¦ text:The answer is more than 5.
- 5 ¦ text:The answer is 5?
- 5 ¦ text:If the answer is 5, then x is 7.
- 5 ¦ text:Answer: 5⏎Answer: 6
- 3 ¦ text:nonsense about a 3-hour
- 5 ¦ text:

# boxes
+ 5 ¦ text:so \boxed{5}.
+ 5 ¦ text:\boxed{4}? No, \boxed{5}.
+ 5 ¦ text:First \boxed{4}.⏎Now add one.⏎So it is 5:⏎\boxed{5}
+ 5 ¦ text:\boxed{5} because 2+3 = 5. This took 2 steps.
+ 5 ¦ text:\fbox{5}
+ 5 ¦ text:\boxed 5
+ 5 ¦ text:$\boxed{5}$ and so $\boxed{5}$
+ 1,-2 ¦ text:\boxed{1} and \boxed{-2}
+ 5 ¦ text:\boxed{\text{The answer is } 5}
+ 5 ¦ text:\boxed{5}⏎#### 5
- 5 ¦ text:\boxed{5} or \boxed{6}
- 6 ¦ text:\boxed{5} or \boxed{6}
- 6 ¦ text:\boxed{5}, \boxed{6}
- 5 ¦ text:\boxed{5}⏎The answer is 6.
- 6 ¦ text:\boxed{5}⏎The answer is 6.
- 5 ¦ text:\boxed{5} or maybe 6
- 5 ¦ text:6 or \boxed{5}
- 5 ¦ text:\boxed{5
- 5 ¦ text:\boxed{}

# thoughts
+ 4 ¦ text:<think>2+2, \boxed{5}?</think>The answer is 4.
+ 4 ¦ text:First I add, \boxed{5}.⏎</think>⏎The answer is 4.
+ 4 ¦ text:[THINK]\boxed{5}[/THINK]\boxed{4}
+ 4 ¦ text:<think></think>\boxed{4}
+ 4 ¦ text:<|channel|>analysis<|message|>\boxed{5}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{4}
- 42 ¦ text:<think>let me see \boxed{42} but let me
- 42 ¦ text:\boxed{42} <think> but let me
- 42 ¦ text:<think>\boxed{42}</think>
- 42 ¦ text:<think>\boxed{42}</think>The answer is 41.
- 42 ¦ text:[THINK]\boxed{42}
- 42 ¦ text:<|channel|>analysis<|message|>\boxed{42}
- 42 ¦ text:<|channel|>analysis<|message|>\boxed{42}<|end|>
"""


def rows() -> list[tuple[str, str, str, bool]]:
    """(kind, gold, text, is it right?)"""
    table, kind = [], ""
    for line in TABLE.strip().splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif line:
            gold, _, given = line[2:].partition(" ¦ ")
            is_text = given.startswith("text:")
            text = given.removeprefix("text:") if is_text else rf"\boxed{{{given}}}"
            table.append((kind, gold, text.replace("⏎", "\n"), line[0] == "+"))
    return table


ROWS = rows()


@pytest.mark.skipif(not verify.find_spec("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize("kind", dict.fromkeys(row[0] for row in ROWS))
def test_answers_are_graded_as_a_mathematician_would(kind):
    wrong = [
        ("right" if right else "wrong", gold, text, verdict.feedback)
        for row_kind, gold, text, right in ROWS
        if row_kind == kind and (verdict := grade(gold, text)).correct != right
    ]
    assert not wrong, "\n".join(map(str, ["should have been:", *wrong]))


def test_the_table_is_large_and_each_answer_is_its_own():
    assert len(ROWS) >= 300
    assert not [
        row
        for row in ROWS
        if row[0] != "thoughts" and not grade(row[1], rf"\boxed{{{row[1]}}}").correct
    ]


def test_simple_numbers_take_no_process(monkeypatch):
    monkeypatch.setattr(verify, "_math", None)
    verify.compare.cache_clear()
    started = time.process_time()
    for number in range(300):
        assert grade(str(number), rf"so \boxed{{{number}}}").correct
        assert not grade(str(number), f"The answer is {number + 1} apples.").correct
    assert time.process_time() - started < 2
