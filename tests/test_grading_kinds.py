r"""More answers as a mathematician would grade them, by kind, written down before they were run.

The form is that of ``test_grading_table``.
"""

# ruff: noqa: E501  (rows are not wrapped)

from __future__ import annotations

import pytest
from test_grading_table import misgraded, rows

from workbench.tasks import verify

TABLE = r"""
# ordinals
+ 7 ¦ 7th
+ 7 ¦ 7^{\text{th}}
+ 7 ¦ 7^{th}
+ 1 ¦ 1st
+ 2 ¦ 2nd
+ 3 ¦ 3rd
+ 22 ¦ 22nd
+ 7 ¦ the 7th
+ 7th ¦ 7
- 7 ¦ 8th
- 7 ¦ 1/7th
- 7 ¦ 17th
- 8 ¦ 8 sevenths
- 1/7 ¦ 7th

# spacing commands in a number
+ 1234 ¦ 1\hspace{0.1cm}234
+ 1234567 ¦ 1\hspace{2pt}234\hspace{2pt}567
+ 1234 ¦ 1\thinspace 234
+ 1234 ¦ 1\,\!234
+ 12345 ¦ 12\:345
+ 12345 ¦ 12\ 345
+ 1000000 ¦ 1\,000\,000
+ 4000 ¦ 4\hspace{1mm}000
+ 12 ¦ \hspace{1cm} 12
+ 12 ¦ 12\hspace{3pt}\text{cm}
- 34 ¦ 3\hspace{1cm}4
- 1234 ¦ 12\hspace{1cm}34
- 7 ¦ 7\quad 8
- 1234 ¦ 1,\quad 234

# the number again, in words
+ 4 ¦ 4 (four)
+ 4 ¦ four (4)
+ 12 ¦ twelve (12)
+ 4 ¦ 4 \text{ (four)}
+ 1/2 ¦ 1/2 (one half)
+ 3 ¦ text:The answer is 3 (three).
+ 5 ¦ 5 (i.e. five)
+ 1/2 ¦ \frac{1}{2} (0.5)
- 4 ¦ 4 (five)
- 5 ¦ 4 (five)
- 4 ¦ 4 (or five)
- 4 ¦ four (5)
- 4 ¦ 4 (6)

# boxes joined by words
+ 2,3 ¦ text:\boxed{2} and then \boxed{3}
- 3 ¦ text:\boxed{2} and then \boxed{3}
- 2 ¦ text:\boxed{2} and then \boxed{3}
- 3 ¦ text:\boxed{2} and also \boxed{3}
- 3 ¦ text:\boxed{2} as well as \boxed{3}
- 3 ¦ text:\boxed{2} and, in addition, \boxed{3}
- 3 ¦ text:\boxed{2} or else \boxed{3}
- 3 ¦ text:\boxed{2} followed by \boxed{3}
+ 3 ¦ text:First \boxed{2}. Then I add one and get \boxed{3}.
+ 3 ¦ text:\boxed{2} plus one is \boxed{3}
+ 2,3 ¦ text:$x=\boxed{2}$ and $y=\boxed{3}$
+ 2,3 ¦ text:\boxed{2}, \boxed{3}

# fractions and mixed numbers
+ \frac{7}{3} ¦ 2 1/3
+ \frac{7}{3} ¦ 2\tfrac{1}{3}
+ \frac{7}{3} ¦ 2 + \frac{1}{3}
+ \frac{7}{3} ¦ {7 \over 3}
+ \frac{7}{3} ¦ \cfrac{7}{3}
+ \frac{7}{3} ¦ \frac 7 3
+ \frac{7}{3} ¦ 7⁄3
+ \frac{5}{8} ¦ ⅝
+ \frac{5}{8} ¦ five eighths
+ -\frac{2}{3} ¦ -2/3
+ \frac{2}{3} ¦ \frac{-2}{-3}
+ 0.375 ¦ 3/8
+ 1.75 ¦ 1\frac{3}{4}
- \frac{7}{3} ¦ 2\frac{2}{3}
- \frac{7}{3} ¦ 3/7
- \frac{7}{3} ¦ -\frac{7}{3}
- \frac{2}{3} ¦ 0.66
- 2\frac{1}{3} ¦ \frac{2}{3}
- -2\frac{1}{3} ¦ -1\frac{2}{3}
- \frac{7}{3} ¦ 2 1 3

# percentages
+ 25\% ¦ 25 %
+ 25\% ¦ 25\ \%
+ 25\% ¦ \frac14
+ 25\% ¦ twenty-five percent
+ 12\frac{1}{2}\% ¦ 12.5\%
+ 33\frac{1}{3}\% ¦ \frac{1}{3}
+ 150\% ¦ 1.5
+ 25\% ¦ \textbf{25\%}
+ 7.5\% ¦ text:The answer is 7.5%.
- 25\% ¦ 2.5\%
- 25\% ¦ 0.025
- 25\% ¦ 75\%
- 25\% ¦ -25\%
- 0.25 ¦ 0.25\%

# intervals and inequalities
+ [2,5) ¦ 2 \le x < 5
+ [2,5) ¦ x\in[2,5)
+ [2,5) ¦ \left[2, 5\right)
+ [2,\infty) ¦ x \geqslant 2
+ (2,5) ¦ 5 > x > 2
+ (-\infty, 2] \cup [5, \infty) ¦ x \le 2 \text{ or } x \ge 5
+ x \ge 2 ¦ [2, +\infty)
+ x \ge 2 ¦ x≥2
+ (0, 1) ¦ (0; 1)
+ [\frac12, 2] ¦ [0.5, 2]
+ (-\infty,\infty) ¦ \mathbb{R}
- [2,5) ¦ [2,5]
- [2,5) ¦ (2,5)
- [2,5) ¦ [2,6)
- [2,5) ¦ 2 < x < 5
- [2,\infty) ¦ (-\infty,2]
- x \ge 2 ¦ x \ge -2
- (-\infty, 2] \cup [5, \infty) ¦ [2,5]
- (-\infty, 2] \cup [5, \infty) ¦ x \le 2 \text{ and } x \ge 6

# sets
+ \{1,2,3\} ¦ {1, 2, 3}
+ \{1,2,3\} ¦ \{3, 1, 2\}
+ \{1,2,3\} ¦ \lbrace 1,2,3 \rbrace
+ \{1,2,3\} ¦ x \in \{1,2,3\}
+ \{1,2,3\} ¦ S = \{1,2,3\}
+ \emptyset ¦ \{\}
+ \emptyset ¦ ∅
+ \{a,b\} ¦ \{b,a\}
- \{1,2,3\} ¦ \{1,2\}
- \{1,2,3\} ¦ \{1,2,3,4\}
- \{1,2,3\} ¦ (1,2,3)
- \emptyset ¦ \{0\}
- \emptyset ¦ 0
- \{a,b\} ¦ \{a,c\}

# tuples and points
+ (3,-4) ¦ (3, -4)
+ (3,-4) ¦ x=3, y=-4
+ (3,-4) ¦ (x, y) = (3, -4)
+ (3,-4) ¦ x = 3 and y = -4
+ (3,-4) ¦ (3,−4)
+ (1/2, 2) ¦ \left(\frac{1}{2}, 2\right)
+ (1,2,3) ¦ x=1, y=2, z=3
- (3,-4) ¦ (-4,3)
- (3,-4) ¦ (3,4)
- (3,-4) ¦ 3
- (3,-4) ¦ x=-4, y=3
- (1,2,3) ¦ (1,3,2)
- (1,2,3) ¦ (1,2)

# plus or minus
+ \pm 4 ¦ 4, -4
+ \pm 4 ¦ x = 4 or x = -4
+ \pm 4 ¦ +/-4
+ \pm 4 ¦ ±4
+ \pm 4 ¦ 4 \text{ and } -4
+ 2 \pm \sqrt{3} ¦ 2+\sqrt{3}, 2-\sqrt{3}
+ 2 \pm \sqrt{3} ¦ x = 2 \pm \sqrt{3}
+ \frac{1\pm\sqrt5}{2} ¦ \frac{1+\sqrt5}{2}, \frac{1-\sqrt5}{2}
- \pm 4 ¦ 4
- \pm 4 ¦ -4
- \pm 4 ¦ \pm 2
- 4 ¦ \pm 4
- 2 \pm \sqrt{3} ¦ 2+\sqrt{3}
- 2 \pm \sqrt{3} ¦ \pm\sqrt{3}

# matrices and vectors
+ \begin{pmatrix} 1 \\ 2 \end{pmatrix} ¦ \begin{bmatrix} 1 \\ 2 \end{bmatrix}
+ \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ¦ \left(\begin{matrix} 1 & 0 \\ 0 & 1 \end{matrix}\right)
+ \begin{pmatrix} 1/2 & 0 \end{pmatrix} ¦ \begin{pmatrix} 0.5 & 0 \end{pmatrix}
+ \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ¦ A = \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}
+ \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ¦ \left[\begin{array}{cc} 1 & 0 \\ 0 & 1 \end{array}\right]
- \begin{pmatrix} 1 \\ 2 \end{pmatrix} ¦ \begin{pmatrix} 2 \\ 1 \end{pmatrix}
- \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ¦ \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}
- \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ¦ 1
- \begin{pmatrix} 1 \\ 2 \end{pmatrix} ¦ \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}

# units
+ 12 cm ¦ 12\,\mathrm{cm}
+ 12 cm ¦ 120 mm
+ 12 cm ¦ 0.12 m
+ 12 cm ¦ 12 \text{ centimetres}
+ 12 \text{ cm}^2 ¦ 12 sq cm
+ 12 \text{ cm}^2 ¦ 12\,\text{cm}^2
+ 90 \text{ km/h} ¦ 90 kilometers per hour
+ 90 \text{ km/h} ¦ 25 m/s
+ 2 \text{ hours} ¦ 2 h
+ 2 \text{ hours} ¦ 120 minutes
+ 3 kg ¦ 3000 g
+ 2 liters ¦ 2000 mL
+ 12 ¦ 12 units
- 12 cm ¦ 12 mm
- 12 cm ¦ 12 cm^2
- 12 \text{ cm}^2 ¦ 12 \text{ m}^2
- 90 \text{ km/h} ¦ 90 mph
- 90 \text{ km/h} ¦ 90 m/s
- 2 \text{ hours} ¦ 2 minutes
- 3 kg ¦ 3 pounds

# currency
+ \$3.50 ¦ 3.5
+ \$3.50 ¦ \$3.5
+ \$3.50 ¦ 350 cents
+ \$1,000 ¦ 1000 dollars
+ \$1,000 ¦ USD 1000
+ €20 ¦ 20 €
+ 15 ¦ \text{\$}15
+ 15 ¦ $15
- \$3.50 ¦ \$3.05
- \$3.50 ¦ 35 cents
- \$1,000 ¦ \$100
- €20 ¦ \$20
- £20 ¦ €20
- \$3.50 ¦ -\$3.50

# times and dates
+ 3:30 PM ¦ 3:30 p.m.
+ 3:30 \text{ p.m.} ¦ 3:30 pm
+ 09:05 ¦ 9:05
+ July 4 ¦ July 4th
+ \text{Tuesday} ¦ tuesday
+ July 4 ¦ 4 July
- 3:30 PM ¦ 3:30 AM
- 3:30 ¦ 3:03
- 3:30 ¦ 3.30
- 3:30 ¦ 330
- July 4 ¦ July 5
- July 4 ¦ June 4
- \text{Tuesday} ¦ Thursday

# scientific notation
+ 3.2 \times 10^5 ¦ 320000
+ 3.2 \times 10^5 ¦ 3.2e5
+ 3.2 \times 10^5 ¦ 3.2*10^5
+ 3.2 \times 10^5 ¦ 3.2·10⁵
+ 3.2 \times 10^5 ¦ 32 \times 10^{4}
+ 3.2 \times 10^{-5} ¦ 0.000032
+ 3.2 \times 10^{-5} ¦ 3.2E-5
+ 3.2 \times 10^5 ¦ 3.2 \times {10}^{5}
- 3.2 \times 10^5 ¦ 3.2 \times 10^{-5}
- 3.2 \times 10^5 ¦ 3.2 \times 10^6
- 3.2 \times 10^5 ¦ 3.20 \times 105
- 3.2 \times 10^5 ¦ 3.2
- 3.2 \times 10^{-5} ¦ 0

# separators of other places
+ 1234567 ¦ 1.234.567
+ 1234567 ¦ 1’234’567
+ 1234567 ¦ 1 234 567
+ 1234567.5 ¦ 1,234,567.5
- 1234567 ¦ 1,234,568
- 1234567 ¦ 1.234567
- 1234567 ¦ 1,234,5670
- 12345 ¦ 1,2345
- 1500 ¦ 1.5

# radicals
+ 5\sqrt{2} ¦ \sqrt{50}
+ 5\sqrt{2} ¦ 5√2
+ 5\sqrt{2} ¦ 5*sqrt(2)
+ 5\sqrt{2} ¦ \sqrt{2}\cdot 5
+ 5\sqrt{2} ¦ \frac{10}{\sqrt{2}}
+ \sqrt[3]{2} ¦ 2^{1/3}
+ \sqrt[3]{16} ¦ 2\sqrt[3]{2}
+ \frac{\sqrt{3}}{3} ¦ \frac{1}{\sqrt3}
+ 5\sqrt{2} ¦ 5 \sqrt 2
- 5\sqrt{2} ¦ 2\sqrt{5}
- 5\sqrt{2} ¦ \sqrt{10}
- 5\sqrt{2} ¦ 7.07
- 5\sqrt{2} ¦ 5\sqrt[3]{2}
- \sqrt[3]{2} ¦ 3\sqrt{2}
- \sqrt{2}+\sqrt{3} ¦ \sqrt{5}

# repeating decimals
+ 0.\overline{3} ¦ 1/3
+ 0.\overline{3} ¦ 0.333...
+ 0.1\overline{6} ¦ \frac16
+ 0.\overline{142857} ¦ 1/7
+ 0.\bar{3} ¦ \frac{1}{3}
+ 0.\dot{3} ¦ \frac{1}{3}
+ 0.\overline{9} ¦ 1
+ 2.\overline{3} ¦ 7/3
- 0.\overline{3} ¦ 0.3
- 0.\overline{3} ¦ 0.33
- 0.\overline{12} ¦ 0.1\overline{2}
- 0.\overline{3} ¦ 0.\overline{33}4

# equations
+ x = 7 ¦ 7
+ 7 ¦ x = 7
+ 7 ¦ x=7.0
+ 7 ¦ \text{Area} = 7
+ y = 3x - 2 ¦ 3x - y = 2
+ y = 3x - 2 ¦ y=-2+3x
+ y = 3x - 2 ¦ f(x) = 3x - 2
+ x^2 + y^2 = 9 ¦ y^2 + x^2 = 9
+ 7 ¦ 2 + 5 = 7
- 7 ¦ x = -7
- 7 ¦ 7 = 8
- y = 3x - 2 ¦ y = 3x + 2
- y = 3x - 2 ¦ y = 2x - 3
- x^2 + y^2 = 9 ¦ x^2 + y^2 = 3
- x^2 + y^2 = 9 ¦ 9

# factorials and binomials
+ 5! ¦ 120
+ 120 ¦ 5!
+ \binom{5}{2} ¦ 10
+ 10 ¦ {5 \choose 2}
+ \frac{10!}{7!} ¦ 720
- 5! ¦ 5
- 120 ¦ 4!
- \binom{5}{2} ¦ \frac{5}{2}
- \binom{5}{2} ¦ 20

# trigonometry
+ \sin^2 x ¦ 1-\cos^2 x
+ \sin 30^\circ ¦ \frac{1}{2}
+ \tan\frac{\pi}{4} ¦ 1
+ \cos 2x ¦ 2\cos^2 x - 1
+ \sec x ¦ \frac{1}{\cos x}
+ \arctan 1 ¦ \frac{\pi}{4}
- \sin^2 x ¦ \cos^2 x
- \sin 2x ¦ 2\sin x
- \cos 2x ¦ \cos^2 x
- \sin 30^\circ ¦ \sin 30

# complex numbers
+ 2+3i ¦ 3i+2
+ 2+3i ¦ 2 + 3 i
+ -1 ¦ i^2
+ e^{i\pi} ¦ -1
+ \frac{1+i}{2} ¦ \frac12 + \frac12 i
+ i ¦ \sqrt{-1}
- 2+3i ¦ 2-3i
- 2+3i ¦ 3+2i
- 2+3i ¦ 5i
- i ¦ -i
- i ¦ 1

# bases
+ 1011_2 ¦ 1011_{2}
+ 1011_2 ¦ (1011)_2
+ 1011_2 ¦ 1011 (base 2)
+ FF_{16} ¦ ff_{16}
- 1011_2 ¦ 11
- 1011_2 ¦ 1011_3
- 1011_2 ¦ 1101_2

# words
+ \text{rational} ¦ rational.
+ \text{Alice} ¦ **Alice**
+ yes ¦ Yes.
+ yes ¦ \text{Yes}
+ no ¦ text:The answer is no.
+ infinitely many ¦ \text{infinitely many}
- yes ¦ No
- no ¦ yes
- yes ¦ yes and no
- yes ¦ not yes
- no ¦ none
- \text{Alice} ¦ Bob
- \text{Alice} ¦ Alice and Bob
- \text{acute} ¦ obtuse
- \text{rational} ¦ irrational
- infinitely many ¦ finitely many

# hedges, negations and corrections
+ 5 ¦ text:The answer is 4. Wait, no, the answer is 5.
+ 5 ¦ text:The answer is 4. Actually, the answer is 5.
+ 5 ¦ text:The answer is 5, I am sure.
+ 5 ¦ text:I first thought 4, but the answer is 5.
+ 5 ¦ text:The answer is definitely 5.
+ 5 ¦ text:\boxed{4} is what I had at first. Correction: \boxed{5}
- 4 ¦ text:The answer is 4. Wait, no, the answer is 5.
- 4 ¦ text:The answer is 4. Wait, no, it is 5.
- 4 ¦ text:\boxed{4}. No wait, it is 5.
- 4 ¦ text:\boxed{4}. Actually, it should be 5.
- 5 ¦ text:The answer is 4 or 5, I cannot tell.
- 5 ¦ text:It might be 5, or it might be 6.
- 5 ¦ text:The answer is certainly not 5.
- 5 ¦ text:The answer is not \boxed{5}.
- 5 ¦ text:5 is not the answer.
- 5 ¦ text:The answer cannot be 5, it must be 4.
- 5 ¦ text:Perhaps 5? Perhaps 6?

# explanations after the answer
+ 12 ¦ text:The answer is 12 because 3 times 4 is 12.
+ 12 ¦ text:The answer is 12, obtained by multiplying 3 and 4.
+ 12 ¦ text:\boxed{12}, since 3 \cdot 4 = 12.
+ 12 ¦ text:**Answer: 12**⏎⏎Explanation: 3 boxes with 4 each.
+ 12 ¦ text:#### 12⏎That is 3 times 4.
+ 12 ¦ text:The answer is 12. Let me know if you want 2 more examples.
- 3 ¦ text:The answer is 12 because 3 times 4 is 12.
- 4 ¦ text:Answer: 12 (3 boxes of 4)
- 12 ¦ text:The answer is 11, because 12 is too large.

# wrappers
+ 9 ¦ \text{9}
+ 9 ¦ \mathrm{9}
+ 9 ¦ \mathbf{9}
+ 9 ¦ \textbf{9}
+ 9 ¦ \textit{9}
+ 9 ¦ \boxed{9}
+ 9 ¦ \fbox{9}
+ 9 ¦ \underline{9}
+ 9 ¦ \color{red}{9}
+ 9 ¦ \textcolor{blue}{9}
+ 9 ¦ \bm{9}
+ 9 ¦ \mathit{9}
+ 9 ¦ \left(9\right)
+ 9 ¦ \mbox{9}
+ 9 ¦ \ensuremath{9}
+ 9 ¦ \large 9
+ 9 ¦ text:**9**
+ 9 ¦ text:The answer is __9__.
+ 9 ¦ text:The answer is `9`.
+ 9 ¦ text:The answer is $$9$$.
+ 9 ¦ text:The answer is \[9\].
+ 9 ¦ text:$\boxed{\textbf{9}}$
+ 9 ¦ text:\framebox{9}
- 9 ¦ \text{not 9}
- 9 ¦ \overline{9}x
- 9 ¦ \textbf{8}
- 9 ¦ \sout{9}

# other scripts
+ 42 ¦ ４２
+ 42 ¦ ٤٢
+ 42 ¦ ४२
+ 3.5 ¦ ３．５
+ 42 ¦ text:答案是 42。
+ 42 ¦ text:答案：42
+ x=5 ¦ ｘ＝５
+ (1,2) ¦ （1，2）
- 42 ¦ ４３
- 42 ¦ ٤٣

# boxes that are not finished
+ 8 ¦ text:\boxed{7} was too small. \boxed{8}
- 8 ¦ text:So the answer is \boxed{8
- 8 ¦ text:\boxed{\frac{8}{1}
- 8 ¦ text:\boxed{ }
- 8 ¦ text:\boxed

# several values
+ 2,5,7 ¦ 2, 5 and 7
+ 2,5,7 ¦ x = 2, 5, 7
+ 2,5,7 ¦ 2; 5; 7
+ 2,5,7 ¦ 7, 2, 5
+ 2,5,7 ¦ x \in \{2,5,7\}
+ 2,5 ¦ text:The answers are 2 and 5.
+ 2,5 ¦ x=2 \lor x=5
+ 2,5 ¦ x = 2, \quad x = 5
- 2,5,7 ¦ 2, 5
- 2,5,7 ¦ 2, 5, 8
- 2,5 ¦ 2 or 6
- 2,5 ¦ 7
- 5 ¦ 2 and 5
- 5 ¦ 2, 5, 7

# what looks like a kind above and is not
+ 13 ¦ 3 + {5 \choose 3}
- 28 ¦ 3 + {5 \choose 3}
- \mathbb{R} ¦ \mathbb{R}\setminus\{0\}
- \mathbb{R} ¦ \mathbb{R}^2
- \mathbb{R} ¦ (0,\infty)
- 1011_2 ¦ 10112
- 1011_2 ¦ 1011²
- 102 ¦ 10²
- 102 ¦ 10₂
- 25/8 ¦ 2⅝
+ 21/8 ¦ 2⅝
- 4 ¦ 2 (2.0)
- 6 ¦ 3 (2)
- 3 ¦ 3 (2)
- 5 ¦ 5 am
- 5 ¦ 5th root of 2
- 5 ¦ 5 th 6
- 3 ¦ 3\lor 4
- 12 ¦ 1\hspace{3pt}2
- 7 ¦ \color{red}{8}
- 7 ¦ \underline{\hspace{2cm}}
- 7 ¦ definitely not 7
- 7 ¦ \dot{7}x
+ 7 ¦ text:The answer is 7. Wait, no need to go on.
+ 7 ¦ text:\boxed{7}. Actually, that is correct.
- 7 ¦ text:\boxed{7}. Wait, no.
- 7 ¦ text:7 isn't the answer.
- 7 ¦ text:7 cannot be right.
- 7 ¦ text:答案不是 7 而是 8
- 7 ¦ text:答案是 7 或 8

# derivatives and integrals
+ \frac{x^3}{3} + C ¦ \frac{1}{3}x^3 + C
+ x^2 + C ¦ C + x^2
+ 2x e^{x^2} ¦ 2xe^{x^2}
+ \ln|x| + C ¦ \ln |x| + C
- x^2 + C ¦ x^3 + C
- 2x ¦ x^2
- \frac{1}{x} ¦ x

# numbers taken back in words
- 20 ¦ text:The answer is 15. Wait, no, it should be 20 or 25.
+ 20 ¦ text:The answer is 15. Wait, no, it should be 20 dollars.
- 4 ¦ text:The answer is 4. Actually, no.
- 4 ¦ text:The answer is 4. No, it is 5.
+ 8 ¦ text:The answer is 4... wait, no, it is 8 apples.
+ 4 ¦ text:The answer is 4. Wait, that is right.
+ 4 ¦ text:The answer is 4. Wait, no need to check.
+ 5 ¦ text:The answer is 4. I made a mistake; it is 5.
+ 5 ¦ text:The answer is 4. Correction: 5.
+ 5 ¦ text:The answer is 4. Scratch that, it's 5.
+ 5 ¦ text:The answer is 4 — no, wait — 5.
+ 5 ¦ text:The answer is 4. No, it is 5.
+ 5 ¦ text:The answer is 4. Actually, no, it's 5.
+ 5 ¦ text:The answer is 4... wait, no, it is 5
+ 5 ¦ text:The answer is 4. Wait, no, it is 5.
+ 5 ¦ text:The answer is 4... wait, no, it's 5.
+ 5 ¦ text:The answer is 4. No, wait, the answer is 5.
+ 5 ¦ text:The answer is 4, no, wait, it is 5.
+ 5 ¦ text:The answer is 4. Wait, that is wrong, it should be 5.
+ 5 ¦ text:The answer is \boxed{4}. Wait, no, it is \boxed{5}.
- 4 ¦ text:The answer is 4... wait, no, it is 5
- 4 ¦ text:The answer is 4. Wait, no.
- 5 ¦ text:The answer is 4. Wait, no, it is 5 or 6.
- 5 ¦ text:The answer is 4... wait, no, it is not 5
- 5 ¦ text:The answer is 4. Wait, no, is it 5?
- 5 ¦ text:The answer is 4. Wait, no, it is 5 less than 9...
- 4 ¦ text:The answer is \boxed{4}. Wait, no, it is 5.
- 5 ¦ text:The answer is 4. Wait, no, it is 5. Actually, it is 6.
+ 5 ¦ text:The answer is 4... wait, no, 5.
- 4 ¦ text:\boxed{4}... wait, no, it is 5.
- 5 ¦ text:The answer is 5... wait, no, it is 4

# yes and no
+ No ¦ text:The answer is no, it is 5.
- Yes ¦ Yesterday
- No ¦ Nobody
- Yes ¦ No, yes is wrong
+ Yes ¦ text:\boxed{Yes}, because 3 > 2
+ No ¦ No, it is not prime, it is composite
+ No ¦ No, she does not have enough money
+ Yes ¦ Yes, definitely
+ No ¦ no it is not
+ No ¦ No; it isn't
+ No ¦ \text{No}, it is not
+ No ¦ text:The answer is **No**, it is not.
+ Yes ¦ Yes (it is)
+ No ¦ No, it is not
+ No ¦ No, it is not.
+ Yes ¦ Yes, it is
+ Yes ¦ Yes, they are equal
+ no ¦ text:The answer is no, it is not.
+ No ¦ text:Answer: No, the triangle is not right.
+ Yes ¦ Yes, because 2 < 3
+ No ¦ No: 7 does not divide 12
+ Yes ¦ yes
- No ¦ Yes, it is
- Yes ¦ No, it is
- Yes ¦ No, it is not
- No ¦ Not sure
- No ¦ No, wait, yes
- Yes ¦ Yes or no
- Yes ¦ Yes and no
- No ¦ No, yes
- Yes ¦ not yes
- No ¦ None
- No ¦ north
- 5 ¦ No, 5
+ Yes ¦ Yes, there is no remainder
- Yes ¦ Yes, or maybe no
+ No ¦ No, there are no solutions
+ True ¦ True, because it holds
- True ¦ True, no wait, false

# a remark in brackets
+ 12 ¦ text:Answer: 12 apples (3 bags of 4 apples)
- 12 ¦ 12 or 13 (3 boxes of 4)
- 12 ¦ 12 (13 if it rains)
+ 12 ¦ 12 (not 13)
+ 12 ¦ 12 (out of 20)
+ 12 ¦ 12 (see step 3)
+ 12 ¦ 12 (3 times 4)
+ 12 ¦ 12 (i.e. 3*4)
+ 12 ¦ $12 (3 × $4)
+ 12 ¦ 12 (4 each for 3 kids)
+ 12 ¦ 12 (3 boxes of 4)
+ 12 ¦ 12 (3 boxes with 4 each)
+ 12 ¦ 12 eggs (3 boxes of 4)
+ 12 ¦ 12 (3 + 9)
+ 12 ¦ 12 (= 3*4)
+ 12 ¦ text:The answer is 12 (3 boxes of 4).
+ 12 ¦ 12 (since 3 boxes hold 4 each)
- 12 ¦ 3 (12 boxes of 4)
- 12 ¦ 13 (12 + 1)
- 4 ¦ 12 (3 boxes of 4)
- 12 ¦ 12 (or 13)
- 12 ¦ 12 (maybe 13)
- 12 ¦ 12 (13)
- 12 ¦ 12 (thirteen)
- 12 ¦ 12(3)
- 12 ¦ 12 (x + 1)
- 12 ¦ 12 (mod 13)
- 12 ¦ 12 (wrong)
- 12 ¦ 12 (base 3)
+ 12 ¦ 12 (3 red and 9 blue)
- 12 ¦ 12 (13 + 4)
- 2\sqrt{3} ¦ 2 (\sqrt{3} + 1)
+ 3(x + 2) ¦ 3 (x + 2)

# Indian grouping
- 12345 ¦ 1,23,45
+ 10000000 ¦ 1,00,00,000
+ 1234567 ¦ text:So in all he has 12,34,567
+ -1234567 ¦ -12,34,567
+ 123456.78 ¦ 1,23,456.78
+ 1234567 ¦ 12,34,567 rupees
+ 1234567 ¦ 12,34,567
+ 12345678 ¦ 1,23,45,678
+ 123456 ¦ 1,23,456
+ 1234567 ¦ ₹12,34,567
+ 1234567 ¦ 12,34,567.00
+ 12,34,567 ¦ 1234567
+ 1234567 ¦ text:The answer is Rs 12,34,567.
- 1234567 ¦ 12,34,568
- 1234567 ¦ 12,3,4567
- 1234567 ¦ 123,45,67
- 3,45,678 ¦ 3,45,679
+ 12,34,567 ¦ 567,34,12
- (12,34,567) ¦ 1234567
- 1234567 ¦ 12,34 and 567
+ 1500 ¦ Rs. 1,500

# two units
- 3.5 ¦ 3 dollars and 5 dimes
+ 3.75 ¦ text:She pays 3 dollars and 75 cents.⏎The answer is 3 dollars and 75 cents.
+ 1.5 years ¦ 1 year and 6 months
+ 2.5 km ¦ 2 km 500 m
+ 5.3 ¦ 5 kg 300 g
+ 74 inches ¦ 6 feet 2 inches
+ 3.5 ¦ 3 dollars and 50 cents each
+ 3.5 ¦ 3 dollars, 50 cents
+ 2.25 hours ¦ 2 hours 15 minutes
+ 2.25 ¦ 2 hours and 15 minutes
+ 3.50 ¦ 3 dollars and 50 cents
+ 3.50 ¦ $3 and 50 cents
+ 3.50 ¦ 3 dollars 50 cents
+ $3.50 ¦ 3 dollars and 50 cents
+ 3.50 ¦ three dollars and fifty cents
+ 3.05 ¦ 3 dollars and 5 cents
+ 1.5 ¦ 1 hour and 30 minutes
+ 90 minutes ¦ 1 hour and 30 minutes
+ 1.5 hours ¦ 1 hour 30 minutes
+ 5.5 feet ¦ 5 feet 6 inches
+ 66 inches ¦ 5 feet and 6 inches
+ 3.50 ¦ text:The answer is 3 dollars and 50 cents.
- 3.50 ¦ 3 dollars and 5 cents
- 3.50 ¦ 3 dollars or 50 cents
- 3.50 ¦ 50 dollars and 3 cents
- 3 ¦ 3 dollars and 50 cents
- 50 ¦ 3 dollars and 50 cents
- 53 ¦ 3 dollars and 50 apples
- 53 ¦ 3 apples and 50 pears
- 3.5 ¦ 3 apples and 50 cents
+ 5.25 pounds ¦ 5 pounds 4 ounces

# ordinals in words
- 2 ¦ 2 seconds later than 3
- 13 ¦ thirtieth
+ 30 ¦ thirtieth
+ 99 ¦ ninety-ninth
+ 11 ¦ eleventh
+ 12 ¦ the twelfth
+ 7 ¦ seventh place
+ 7 ¦ text:It is the seventh.⏎#### seventh
+ 7 ¦ Seventh
+ 1/2 ¦ a half
+ 3.5 ¦ 3 and one half
+ 3.5 ¦ 3 and a half
+ 7 ¦ seventh
+ 7 ¦ the seventh
+ 7 ¦ text:The answer is the seventh.
+ 7 ¦ text:It is the seventh day.⏎Answer: seventh
+ 3 ¦ third
+ 21 ¦ twenty-first
+ 20 ¦ twentieth
+ 7 ¦ seventh day
+ 1 ¦ first
+ 2 ¦ second
+ 1/7 ¦ one seventh
+ 1/7 ¦ a seventh
+ 3/7 ¦ three sevenths
- 7 ¦ one seventh
- 7 ¦ eighth
- 7 ¦ seventeenth
- 1/7 ¦ the seventh
- 7 ¦ a seventh
- 7 ¦ three sevenths
- 7 ¦ seventh or eighth
- 60 ¦ 1 second
+ 1/4 ¦ a quarter
+ 1/3 ¦ a third
+ 12, 34, 567 ¦ 34, 12, 567
+ 1/8 ¦ an eighth
"""

ROWS = rows(TABLE)


@pytest.mark.skipif(not verify.find_spec("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize("kind", dict.fromkeys(row[0] for row in ROWS))
def test_answers_of_a_kind(kind):
    wrong = misgraded(ROWS, kind)
    assert not wrong, "\n".join(map(str, ["should have been:", *wrong]))


def test_the_table_is_large():
    assert len(ROWS) >= 400 and len({row[0] for row in ROWS}) >= 25
