r"""Answers as a mathematician would grade them, written down before they were run.

A row is ``+ gold ¦ given`` (the same answer) or ``- gold ¦ given`` (another one). ``given`` is what
stands in the text's \boxed{...}; after ``text:`` it is the whole text, with ⏎ for a line break.
"""

# ruff: noqa: E501  (rows are not wrapped)

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
+ 42 ¦ 42.00
+ 1000 ¦ 1,000.00
+ 0 ¦ -0
+ 0 ¦ 0.0
+ 7 ¦ \mathbf{7}
+ 7 ¦ \boldsymbol{7}
+ 7 ¦ {7}
+ 7 ¦ (7)
+ 7 ¦ $7$
+ 7 ¦ \displaystyle 7
+ 7 ¦ \text{7}
+ 7 ¦ n = 7
+ 7 ¦ \approx 7
+ 21 ¦ twenty-one
+ 100 ¦ one hundred
+ 3/4 ¦ three quarters
+ 1/2 ¦ one half
+ 1/3 ¦ 0.333...
+ \frac{1}{3} ¦ 0.3333\ldots
+ 1/2 ¦ one-half
+ 5000 ¦ five thousand
+ 5 ¦ five apples
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
- 21 ¦ twenty
- 20 ¦ twenty-one
- 3 ¦ three quarters
- 1 ¦ one half
- 1 ¦ one or two
- 10 ¦ 10^2
- 10 ¦ 10\text{ thousand}
- 10 ¦ 10\pm1
- 7 ¦ 7.5
- 7 ¦ 77
- 10 ¦ 1 0
- 7 ¦ 7\ 8
- 1024 ¦ 1024 bits or bytes
- 3 ¦ 3...
- 3 ¦ 2.999999999
- 3 ¦ 3.0000001
- 1000000 ¦ 1000001
- 0.000001 ¦ 0.000002
- 0.0000001 ¦ 0
- 0.333 ¦ 0.333...

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
+ 12345 ¦ 12 345
+ 12345 ¦ 12{,}345
+ 12345 ¦ 12,\!345
+ 12345 ¦ 12~345
+ 12345.5 ¦ 12,345.5
+ 12345 ¦ \$12,345
+ 12345 ¦ 12,345 people
+ 1000000 ¦ 1.000.000
+ 1000000 ¦ 1 million
+ 2500000 ¦ 2.5 million
+ 2,500,000 ¦ 2.5 \times 10^6
- 5 ¦ 5 million
- 1234 ¦ 1, 234
- 1234 ¦ 1,23,4
- 1234 ¦ 1.234
- 512 ¦ 5,12
- 1234 ¦ (1,234)
- 12345 ¦ 12,3456
- 12345 ¦ 12, 345
- 12345 ¦ 12.345
- 12345 ¦ 123,45
- 12345 ¦ \{12,345\}
- 1000 ¦ 1,00
- 12 ¦ 12,000

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
+ 2\sqrt{3} ¦ \sqrt{12}
+ 2\sqrt{3} ¦ 2*sqrt(3)
+ 2\sqrt{3} ¦ 2 \cdot \sqrt{3} \text{ cm}
+ \frac{\sqrt3}{3} ¦ \frac{1}{\sqrt{3}}
+ 6\pi \text{ cm}^2 ¦ 6\pi
+ 6\pi ¦ 6\pi \text{ square units}
+ 6\pi ¦ 18.8495559
+ 4 ¦ |-4|
+ 4 ¦ \sqrt{16}
+ 4 ¦ 2^2
+ 5 ¦ \lfloor 5.7 \rfloor
+ \frac{1+\sqrt5}{2} ¦ 1.618033989
+ \ln 8 ¦ 3\ln 2
+ e^2 ¦ e^{2}
+ -4 ¦ (2i)^2
+ 3+4i ¦ 4i+3
- \sqrt{2} ¦ 1.41
- \pi ¦ 3.14
- \pi ¦ 22/7
- 3\sqrt{13} ¦ 13\sqrt{3}
- \sqrt{2} ¦ -\sqrt{2}
- 3+4i ¦ 3-4i
- 3i ¦ 3
- 6\pi ¦ 18.85
- 6\pi \text{ cm}^2 ¦ 6\pi \text{ cm}
- 6\pi ¦ 6
- 6 ¦ 6\pi
- \frac{1+\sqrt5}{2} ¦ 1.618
- \frac{1+\sqrt5}{2} ¦ \frac{1-\sqrt5}{2}
- e^2 ¦ 2e
- e^2 ¦ 7.389
- \sqrt[3]{2} ¦ \sqrt{2}
- \sqrt{16} ¦ \pm 4
- 10^{100} ¦ 10^{101}
- 10^{-100} ¦ 0
- 10^{-100} ¦ 10^{-101}
- \frac{1}{10^{50}} ¦ \frac{1}{10^{51}}
- 10^{100}+1 ¦ 10^{100}
- 3^{1000} ¦ 3^{1001}
- 1000! ¦ 999!
- \frac{1}{1000!} ¦ \frac{1}{1001!}
- 10^{20}\pi ¦ (10^{20}+1)\pi
- \pi + 10^{-60} ¦ \pi

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
+ x^2+2x+1 ¦ (x+1)^2
+ 2x+3 ¦ 3+2x
+ \frac{x}{2} ¦ 0.5x
+ \frac{x+1}{2} ¦ \frac{1}{2}x+\frac{1}{2}
+ 3x^2y ¦ 3yx^2
+ y = x^2 ¦ y=x^{2}
+ y = x^2 ¦ x^2
+ f(x)=x^2 ¦ x^2
+ n(n-1) ¦ n^2-n
+ \frac{n(n+1)}{2} ¦ \frac{n^2+n}{2}
+ x^2-y^2=1 ¦ y^2 = x^2-1
+ \sin 2x ¦ 2\sin x\cos x
+ 2^{n+1} ¦ 2 \cdot 2^n
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
- x^2+2x+1 ¦ x^2+1
- x^2+2x+1 ¦ (x-1)^2
- 2x+3 ¦ 2x-3
- 2x+3 ¦ 5x
- 2x ¦ 2
- 2x ¦ x
- x ¦ 1x+0.001
- 3x^2y ¦ 3xy^2
- 2^n ¦ 2n
- n^2 ¦ 2^n
- f(x)=x^2 ¦ f(x)=x^3
- y = x^2 ¦ x = y^2
- x^2-y^2=1 ¦ x^2+y^2=1
- ab ¦ a+b
- \frac{a}{b} ¦ \frac{b}{a}
- a ¦ A
- 3x+10^{-20} ¦ 3x

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
+ 1,2,3 ¦ 1, 2, and 3
+ 1,2,3 ¦ \{1, 2, 3\}
+ 1,2,3 ¦ 3;2;1
+ 1,2 ¦ x_1 = 1, x_2 = 2
+ 1,2 ¦ x=1 \text{ and } x=2
+ 1,2 ¦ x \in \{1,2\}
+ \{1,2\} ¦ \lbrace 1, 2 \rbrace
+ (1,2) ¦ \langle 1, 2 \rangle
+ (1,2) ¦ (1.0, 2)
+ 2,-2 ¦ \pm 2
+ \pm\sqrt{2} ¦ \sqrt{2}, -\sqrt{2}
+ (1,2) ¦ x=1, y=2
+ \{\frac12, 3\} ¦ \{3, 0.5\}
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
- (1,2) ¦ x=2, y=1
- 1,2,3 ¦ 1,2
- 1,2,3 ¦ 123
- 1,2 ¦ 1.2
- 1,2 ¦ 12
- 1,2 ¦ (2,1)
- (1,2) ¦ (1,2,3)
- (1,2) ¦ [1,2]
- (1,2) ¦ (2,1)
- (1,2) ¦ 12
- 2 ¦ \pm 2
- 2 ¦ 2, -2
- 2 ¦ \{2, 3\}
- \{1,2\} ¦ [1,2]
- \{1,2\} ¦ \{1,3\}
- 3 ¦ 3 and 4
- 4 ¦ 3 and 4
- 3 ¦ 3/4 or 3
- 3 ¦ 3, 4, 5
- 3 ¦ 3 (or 4)
- 4 ¦ 3 (or 4)
- 3 ¦ 3 | 4
- 3 ¦ 3 vs 4
- 3 ¦ 3 \text{ or } 4
- 3 ¦ \text{either } 3 \text{ or } 4
- 3 ¦ 3 \lor 4
- 3 ¦ 3\ \text{maybe}\ 4
- 3 ¦ 3?4
- 3 ¦ 3 \to 4
- 3 ¦ 3-4
- 3 ¦ 3 < 4
- 3 ¦ x>3
- 3 ¦ \geq 3
- 3 ¦ \approx 3.1

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
+ [0,\infty) ¦ x ≥ 0
+ [0,\infty) ¦ 0 \le x < \infty
+ (0,1) ¦ 0<x<1
+ (0,1) ¦ 1>x>0
+ 0<x<1 ¦ (0,1)
+ 0 < x < 1 ¦ x \in (0, 1)
+ [-2,2] ¦ -2 \leqslant x \leqslant 2
+ (-\infty,-1)\cup(1,\infty) ¦ x<-1 \text{ or } x>1
+ (-\infty,0)\cup(0,\infty) ¦ (-\infty, 0) U (0, \infty)
+ (\frac12, 3] ¦ 0.5 < x \le 3
+ x > 2 ¦ 2 < x
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
- [0,\infty) ¦ x > 0
- [0,\infty) ¦ (0,\infty)
- [0,\infty) ¦ [0,\infty]
- (0,1) ¦ 0<x
- (0,1) ¦ 0 \le x \le 1
- (0,1) ¦ 1<x<0
- x > 2 ¦ x < 2
- x > 2 ¦ x \ge 2
- x > 2 ¦ 2
- x > 2 ¦ x = 2
- (-\infty,-1)\cup(1,\infty) ¦ (-1,1)
- (-\infty,-1)\cup(1,\infty) ¦ x<-1

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
+ 101_2 ¦ 101_{2}
+ 101_2 ¦ 101_{\text{two}}
+ 101_2 ¦ 101_{(2)}
+ 101_2 ¦ 101 \text{ in base } 2
+ 1A_{16} ¦ 1A_{16}
- 52_8 ¦ 52
- 52_8 ¦ 52_9
- 52_8 ¦ 53_8
- 52 ¦ 52_8
- 101_2 ¦ 101
- 101_2 ¦ 5
- 101_2 ¦ 101_3
- 101_2 ¦ 110_2
- 12_3 ¦ 12_{4}

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
+ 5 ¦ 5 m
+ 5 ¦ 5 \text{ meters}
+ 5 ¦ 5\,\text{m}
+ 5 ¦ 5\ \mathrm{kg}
+ 5 \text{ miles} ¦ 5 mi
+ 2.5 \text{ hours} ¦ 2.5 hrs
+ 2.5 \text{ hours} ¦ 150 min
+ 5 \text{ m/s} ¦ 5 meters per second
+ 5 \text{ m/s} ¦ 5 m s^{-1}
+ 30 \text{ m}^3 ¦ 30 cubic meters
+ 5 ¦ 5 years old
+ 5 ¦ 5 apples each
+ 5 ¦ 5 cups of flour
+ 5 ¦ 5 students
+ 5 ¦ 5 minutes late
+ 18 ¦ \$18 per day
+ 18 ¦ \$18 a day
+ 3.5 ¦ 3.5 pounds
+ \frac{1}{2} ¦ \frac{1}{2} cup
+ 45^\circ ¦ 45 deg
+ 45^\circ ¦ \angle A = 45^\circ
+ \frac{\pi}{4} ¦ 45^\circ
+ 20 ¦ 20^\circ
+ 7 ¦ 7 ways
+ 5 ¦ 5 ft^2
+ 5 ¦ 5 m2
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
- 5 ¦ 5 ab
- 5 ¦ 5ab
- 5 ¦ 5a
- 5 ¦ 5 a
- 5 ¦ 5k
- 5 ¦ 5i
- 5 ¦ 5e
- 5 ¦ 5n
- 5 ¦ 5 quarters
- 5 ¦ 5 tenths
- 5 ¦ 5 hundred
- 5 ¦ 5 thousandths
- 5 ¦ 5 pairs or 6
- 5 ¦ 5 false
- 5 ¦ 5 nope
- 5 ¦ 5 is wrong
- 5 ¦ 5 blah
- 5 ¦ 5 minus one
- 5 ¦ 5 plus 1
- 5 ¦ 5 less
- 5 ¦ 5 cubed
- 5 ¦ 5 times 2
- 5 ¦ 5 to the power 2
- 5 ¦ 5 mod 7
- 5 ¦ 5 apples and 6 oranges
- 5 ¦ 5 cm by 6 cm
- 5 ¦ 5 feet 6 inches
- 5 \text{ m} ¦ 5 \text{ km}
- 5 \text{ m} ¦ 5 \text{ s}
- 5 \text{ m} ¦ 5 \text{ m}^2
- 5 \text{ m/s} ¦ 5 \text{ m}
- 5 \text{ m/s} ¦ 5 \text{ m/h}
- 5 \text{ m/s} ¦ 5 \text{ s/m}
- 5 \text{ hours} ¦ 5 \text{ days}
- 5 \text{ pounds} ¦ 5 \text{ kilograms}
- 5 \text{ liters} ¦ 5 \text{ milliliters}
- 5 \text{ apples} ¦ 5 \text{ pears}
- €5 ¦ £5
- €5 ¦ \$5
- 5 euros ¦ 5 dollars
- 5 cents ¦ \$5
- 5\text{ cents} ¦ 5 dollars
- 45^\circ ¦ 45 radians
- 30^\circ C ¦ 30^\circ F
- 30\% ¦ 30 cm
- 30\% ¦ 3\%
- 30\% ¦ 3
- 0.3 ¦ 30
- 0.3 ¦ 3%
- 0.3 ¦ .3\%
- 1/2 ¦ 1/2\%
- 1/2 ¦ 0.5 percent
- 0.05 ¦ 0.05 per cent

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
+ C ¦ \text{C}
+ C ¦ \textbf{(C) }
+ C ¦ \mathbf{C}
+ C ¦ (C) 15
+ C ¦ C: 15
+ C ¦ C. 15
+ C ¦ choice C
+ C ¦ Option (C)
+ (C) ¦ c
+ \text{C} ¦ C
+ \textbf{(C)} ¦ C
- B ¦ C
- \text{(B)} ¦ (C)
- B ¦ B or C
- B ¦ B, C
- B ¦ not B
- B ¦ ABCD
- C ¦ (D)
- C ¦ D
- C ¦ CD
- C ¦ C and D
- C ¦ C/D
- C ¦ (C) or (D)
- C ¦ not C
- C ¦ 3
- (C) ¦ C, D
- C ¦ \text{neither}
- C ¦ all of the above
- C ¦ (C)(D)

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
+ \text{odd} ¦ odd
+ \text{July} ¦ july
+ \text{Monday} ¦ Monday.
+ \text{right triangle} ¦ a right triangle
+ \text{Yes} ¦ yes
+ \text{No} ¦ no
+ \text{True} ¦ true
- east ¦ seat
- \text{east} ¦ west
- \text{east} ¦ E
- east ¦ not east
- east ¦ east or west
- yes ¦ no
- even ¦ neither even nor odd
- blue ¦ blue and red
- red ¦ infrared
- \text{Yes} ¦ No
- \text{No} ¦ on
- \text{True} ¦ False
- \text{True} ¦ not true
- \text{odd} ¦ even
- \text{odd} ¦ odd or even
- \text{Monday} ¦ Sunday
- \text{Monday} ¦ Monday or Tuesday
- \text{Evelyn} ¦ Briana
- \text{Evelyn} ¦ E
- \text{no solution} ¦ 0
- 0 ¦ \text{no solution}
- 0 ¦ \text{none}
- 0 ¦ \emptyset

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
+ 12 ¦ text:The answer is 12, since 3 times 4 is 12.
+ 12 ¦ text:The answer is 12; it follows from 3*4.
+ 12 ¦ text:The answer is 12 - as we saw above.
+ 12 ¦ text:The answer is $12$, which is 3 \cdot 4.
+ 12 ¦ text:Therefore, the answer is: 12 apples.
+ 12 ¦ text:The answer to the question is 12.
+ 12 ¦ text:The final answer is 12 dollars per day.
+ 12 ¦ text:### Answer⏎12
+ 12 ¦ text:**Answer**: 12
+ 12 ¦ text:Final answer: \(12\)
+ 12 ¦ text:The answer is:⏎⏎\[12\]
+ 12 ¦ text:The answer isn't 11 but 12.
+ 12 ¦ text:The answer is not 11, it is 12.
+ 12 ¦ text:The answer is 12 rather than 11.
+ 12 ¦ text:The answer is 12 and not 11.
+ 12 ¦ text:The answer is 12 instead of 11.
+ 12 ¦ text:It is not 11. The answer is 12.
+ 12 ¦ text:You might think it is 11, but the answer is 12.
+ 12 ¦ text:Wait, the answer is not 11. The answer is 12.
+ 3,5 ¦ text:The answers are 3 and 5.
+ yes ¦ text:The answer is yes, because 3>2.
+ Paris ¦ text:The answer is Paris.
+ C ¦ text:The answer is C.
+ C ¦ text:The correct answer is (C) because it is 12.
+ C ¦ text:Answer: C) 12
+ (-\infty,3) ¦ text:The answer is x<3.
+ \frac{3}{4} ¦ text:The answer is 3/4.
+ -3 ¦ text:The answer is -3.
+ 0.5 ¦ text:The answer is .5.
+ 1/2 ¦ text:The answer is 1/2, or 0.5.
+ 1/2 ¦ text:The answer is 1/2 = 0.5.
+ 18 ¦ text:The answer is 18.⏎⏎I hope this helps! Ask me 3 more questions.
+ 18 ¦ text:**Step 1:** The answer to part 1 is 9.⏎**Step 2:** 9*2 = 18⏎The answer is 18.
+ 18 ¦ text:Final Answer: The final answer is $18$. I hope it is correct.
+ 18 ¦ text:<answer>18</answer>
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
- 12 ¦ text:The answer is 12 or 13.
- 13 ¦ text:The answer is 12 or 13.
- 12 ¦ text:The answer is 12, or 13.
- 12 ¦ text:The answer is 12, maybe 13.
- 12 ¦ text:The answer is either 12 or 13.
- 12 ¦ text:The answer is 12 and 13.
- 12 ¦ text:The answer is not 12.
- 12 ¦ text:The answer is definitely not 12.
- 12 ¦ text:The answer isn't 12.
- 12 ¦ text:The answer is neither 12 nor 13.
- 12 ¦ text:The answer is anything but 12.
- 12 ¦ text:The answer is 13, not 12.
- 12 ¦ text:The answer is less than 12.
- 12 ¦ text:The answer is at most 12.
- 12 ¦ text:The answer is greater than 12.
- 12 ¦ text:The answer is twice 12.
- 12 ¦ text:The answer is half of 12.
- 12 ¦ text:The answer is 12 more than 5.
- 12 ¦ text:The answer is minus 12.
- 12 ¦ text:The answer is 12%?
- 12 ¦ text:The answer is unknown, I guessed 12
- 12 ¦ text:The answer is 12. No wait, the answer is 13.
- 12 ¦ text:Answer: 12 / 13
- 12 ¦ text:Answer: 12, 13
- 12 ¦ text:Answer: 12⏎⏎Answer: 13
- 12 ¦ text:Answer A: 12⏎Answer B: 13
- 12 ¦ text:#### 12 #### 13
- 12 ¦ text:I doubt the answer is 12.
- 12 ¦ text:The wrong answer is 12.
- 18 ¦ text:The answer could be 17 or 18
- 18 ¦ text:The answer might be 17, 18 or 19
- 18 ¦ text:The answer is one of 17, 18, 19
- 18 ¦ text:The answer is 17-18
- 18 ¦ text:The answer is 17 to 18
- 18 ¦ text:The answer is 18 to 20
- 18 ¦ text:The answer is 18ish
- 18 ¦ text:The answer is 18, 17, 16
- 18 ¦ text:The answer is in {17, 18}
- 18 ¦ text:The answer is 18. The answer is 17.
- 18 ¦ text:My answer: 18. Other answer: 17.
- 18 ¦ text:Answer 1: 18⏎Answer 2: 17
- 18 ¦ text:no answer, not even 18

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
+ 18 ¦ text:The answer is \boxed{18}.⏎⏎**Explanation:** 16-3-4=9, 9*2=18.
+ 18 ¦ text:Answer: $\boxed{18}$
+ 18 ¦ text:$$\boxed{18}$$
+ 18 ¦ text:\[\boxed{\text{18 dollars}}\]
+ 18 ¦ text:\boxed{18 \text{ dollars}}
+ 18 ¦ text:\boxed{\$18}
+ 18 ¦ text:\boxed{18\,\text{dollars per day}}
+ 18 ¦ text:Let me check: 9*2=18. Yes. \boxed{18}. Double-check: 16-7 = 9, and 9*2 = 18. Correct.
+ 18 ¦ text:Not 17. So \boxed{18}.
+ 18 ¦ text:The value is not 17 but \boxed{18}.
+ 18 ¦ text:If there were no eggs, then 0. But there are, so \boxed{18}.
+ 18 ¦ text:\boxed{18}⏎\boxed{18}
- 5 ¦ text:\boxed{5} or \boxed{6}
- 6 ¦ text:\boxed{5} or \boxed{6}
- 6 ¦ text:\boxed{5}, \boxed{6}
- 5 ¦ text:\boxed{5}⏎The answer is 6.
- 6 ¦ text:\boxed{5}⏎The answer is 6.
- 5 ¦ text:\boxed{5} or maybe 6
- 5 ¦ text:6 or \boxed{5}
- 5 ¦ text:\boxed{5
- 5 ¦ text:\boxed{}
- 12 ¦ text:\boxed{13} 12
- 12 ¦ text:\boxed{12}. Wait, that is wrong.
- 12 ¦ text:\boxed{12} \boxed{13}
- 12 ¦ text:\boxed{13} \boxed{12}
- 12 ¦ text:Either \boxed{12} or \boxed{13}
- 13 ¦ text:Either \boxed{12} or \boxed{13}
- 12 ¦ text:\boxed{12} or perhaps 13
- 12 ¦ text:It is not \boxed{12}
- 12 ¦ text:\boxed{12}⏎Final answer: 13
- 13 ¦ text:\boxed{12}⏎Final answer: 13
- 18 ¦ text:The candidates are \boxed{17} and \boxed{18}.
- 18 ¦ text:\boxed{17/18}
- 18 ¦ text:\boxed{17\text{ or }18}
- 18 ¦ text:\boxed{17}, alternatively \boxed{18}
- 18 ¦ text:\boxed{18}, alternatively 17
- 18 ¦ text:\boxed{18} (or 17)
- 18 ¦ text:\boxed{18} or, if you like, 17
- 18 ¦ text:\boxed{18}⏎⏎\boxed{17}

# nothing is called the answer
+ 12 ¦ text:ANSWER: 12
+ 12 ¦ text:So, x = 12
+ 12 ¦ text:Thus there are 12 apples.
+ 12 ¦ text:3*4 = 12
+ 18 ¦ text:She makes $18 every day at the market.
+ 18 ¦ text:so the total is $18.00.
+ 18 ¦ text:Total = 18
+ 18 ¦ text:<<9*2=18>>18
+ 18 ¦ text:Therefore: **18**
+ 18 ¦ text:Therefore, $x=18$.
+ 70000 ¦ text:profit of $<<200000-130000=70000>>70,000
- 12 ¦ text:Is it 12?
- 12 ¦ text:It is not 12
- 12 ¦ text:It isn't 12
- 12 ¦ text:12 or 13
- 13 ¦ text:12 or 13
- 3 ¦ text:bla bla a 3-hour
- 3 ¦ text:the mp3
- 18 ¦ text:A: 18 or B: 17
- 18 ¦ text:It is 17 or 18.
- 18 ¦ text:It is 17, or perhaps 18.
- 18 ¦ text:between 17 and 18
- 18 ¦ text:17 and 18
- 18 ¦ text:17/18
- 18 ¦ text:17, 18
- 18 ¦ text:x^18
- 18 ¦ text:x_18
- 18 ¦ text:1.18
- 18 ¦ text:17.18
- 18 ¦ text:0.5*18
- 18 ¦ text:18%x
- 18 ¦ text:-18
- 18 ¦ text:- 18 -
- 18 ¦ text:18!
- 18 ¦ text:2^{18}
- 18 ¦ text:\frac{1}{18}
- 18 ¦ text:\sqrt{18}
- 18 ¦ text:a 3-hour ride in 18-hour steps
- 18 ¦ text:chapter18
- 18 ¦ text:more than 18
- 18 ¦ text:less than 18
- 18 ¦ text:at least 18

# as models write
- 2\sqrt{3} \text{ m} ¦ 2\sqrt{3} \text{ cm}
+ 2\sqrt{3} \text{ m} ¦ 2\sqrt{3} \text{ m}
+ 2\sqrt{3} \text{ m} ¦ \sqrt{12} \text{ meters}
+ x+y<3 ¦ y+x<3
- x+y<3 ¦ x+y>3
+ \frac{a}{b} ¦ a/b
+ 12:30 ¦ 12:30
- 12:30 ¦ 12:31
+ 3:4 ¦ 3 : 4
- 3:4 ¦ 4:3
+ 5 ¦ \textbf{5}
+ 1 ¦ 1.0
+ 16\pi ¦ 16 \pi \mathrm{~cm}^{3}
+ 16 ¦ 16 \mathrm{~cm}^{3}
+ 16 ¦ 16\mathrm{cm}
+ 16 ¦ 16 \, \text{cm}^{2}
+ 16 ¦ 16 \text{ sq. units}
- 1.5 ¦ 1,5
+ \frac{5}{3} ¦ 1\frac{2}{3}
+ \frac{5}{3} ¦ 5\div3
+ 1{,}234{,}567 ¦ 1234567
+ \$1,234.56 ¦ 1234.56
+ (3,5) ¦ (3,\,5)
+ x = 3 ¦ x=3.
+ \text{(A)} ¦ \boxed{A}
+ 5 ¦ \text{\$5}
+ 32_{10} ¦ 32_{10}
+ 0.75 ¦ 3/4
+ 2,3 ¦ 2\text{ and }3
+ 2,3 ¦ 2, \text{and } 3
+ k=4 ¦ 4
- 4 ¦ k=4, m=5
+ 4 ¦ \text{There are } 4 \text{ solutions}

# second values in what looks like an explanation
+ 5 ¦ 5, because 2 + 3 = 5
+ 5 ¦ 5 as 2 + 3 = 5
- 5 ¦ 5 as well as 6
- 5 ¦ 5, as well as 6
- 5 ¦ 5, which could also be 6
- 5 ¦ 5 (which may be 6)
- 5 ¦ 5, since it is 5 or 6
- 5 ¦ text:The answer is 5, where it might be 6.

# where the answer stands
+ 18 ¦ text:I add.⏎<answer>⏎18⏎</answer>
+ 18 ¦ text:I add.⏎<answer>⏎⏎  18  ⏎</answer>
+ 18 ¦ text:####⏎18
+ 18 ¦ text:Answer:⏎$$⏎18⏎$$
+ 18 ¦ text:The final answer is⏎\[⏎18⏎\]
+ x^2 ¦ text:The final answer is:⏎\[⏎x^2⏎\]
+ B ¦ text:The answer is B. Option A says 6, which is incorrect.
+ 5 ¦ text:\boxed{5}. A common mistake is 6, which is wrong.
+ 5 ¦ text:\boxed{5}. If you think this is wrong, check again.
+ 5 ¦ text:\boxed{5}.⏎⏎Alternatively, we can note that 2 + 3 = 5.
+ 5 ¦ text:If x = 2 then the answer is 5.
+ St. Louis ¦ text:The answer is St. Louis. It is large.
+ Dr. Smith ¦ text:The answer is Dr. Smith.
+ yes ¦ text:Yes.
+ A ¦ text:(A)
+ A ¦ text:**A**
+ A ¦ text:A
- 18 ¦ text:I add.⏎<answer>⏎19⏎</answer>
+ Main St ¦ text:The answer is Main St. It is long.
+ f(x) ¦ text:f(x)
+ yes ¦ text:<think>Or no?</think>Yes.
- 5 ¦ text:\boxed{5}. Wait, that is wrong.
- 5 ¦ text:\boxed{5}. That is incorrect.
- 5 ¦ text:\boxed{5}. But that is wrong.
- 5 ¦ text:\boxed{5}. I now see that this is wrong.
- 5 ¦ text:\boxed{5}. No that is wrong.
- 5 ¦ text:The answer is 5. Hmm that is wrong.
- 5 ¦ text:\boxed{5}: that is wrong.
- 5 ¦ text:\boxed{5}, which is wrong.
- 5 ¦ text:\boxed{5} which is incorrect.
- 5 ¦ text:The answer is 5, which is wrong.
- 5 ¦ text:\boxed{5} or alternatively 6
- 5 ¦ text:\boxed{5} or **6**
- 5 ¦ text:\boxed{5} or 6 - I am not sure.
- 5 ¦ text:\boxed{5} or 6-7
- 5 ¦ text:\boxed{5} or 6 = 3 + 3
- 5 ¦ text:\boxed{5}⏎⏎Or 6, I am not sure.
- 5 ¦ text:\boxed{5}.⏎⏎Alternatively, the answer could be 6.
- 5 ¦ text:I am not so sure the answer is 5.
- 5 ¦ text:It is not so that the answer is 5.
- no ¦ text:No, I do not know.
- no ¦ text:No, I cannot.
- Paris ¦ text:maybe Paris
- yes ¦ text:
- yes ¦ text:...
- 5 ¦ text:If the answer is 5.
- yes ¦ text:No.
- yes ¦ text:Yes?
- A ¦ text:A or B
- A ¦ text:A⏎B
- 18 ¦ text:eighteen or so
- 18 ¦ \boxed{or}
- or ¦ and
- and ¦ or
- B ¦ text:The answer is and
- x=5 ¦ text:The answer is x = and
- Paris ¦ \cup

# a last number that is more than it looks
+ 0.05 ¦ text:so the rate is .05
+ -0.5 ¦ text:It falls by -.5
+ -7 ¦ text:x is −7.
+ -7 ¦ text:x is –7.
+ 2,3 ¦ text:x = 2 or x = 3
+ 2,3 ¦ text:The roots are x = 2 and x = 3.
+ 5 ¦ text:2 + 3 = 5
+ 18 ¦ text:The total is ...18
+ 5 ¦ text:It is problem No.5
+ 15 ¦ text:aged 10–15
+ 5 ¦ text:There are 5 band members.
- 5 ¦ text:That makes 5 trillion.
- 5 ¦ text:He has 5 dozens.
- 5 ¦ text:She ate 5⅓
- 5 ¦ text:so the rate is .05
- 5 ¦ text:It is .5
- 7 ¦ text:x is −7.
- 3 ¦ text:x = 2 or x = 3
- 3 ¦ text:The roots are x = 2 and x = 3.
- 5 ¦ text:He has 5 thousand dollars.
- 5 ¦ text:He has 5 dozen.
- 5 ¦ text:She ate 5½
- 3 ¦ text:x ≥ 3
- 3 ¦ text:x ≠ 3
- 3 ¦ text:It is ± 3
- 3 ¦ text:2 × 3
- 3 ¦ text:We get 5 - 3
+ 2 ¦ text:We get 5 - 3 = 2
- 3 ¦ text:It is 2√3
- 3 ¦ text:$2 \times 3$
- 3 ¦ text:$x \neq 3$

# plain names, and marks with a blank
+ \ln 2 ¦ ln(2)
+ \sin x ¦ sin(x)
+ \sin x + \cos x ¦ sin(x) + cos(x)
+ \log 5 ¦ log(5)
+ e^x ¦ exp(x)
+ \mathbb{R}\setminus\{0\} ¦ \mathbb{R} \setminus \{0\}
+ 5\,\Omega ¦ 5
+ 5\,\Omega ¦ 5 ohm
+ 5\,\Omega ¦ 5 Ω
+ 5 Ω ¦ 5\,\Omega
+ \tan x ¦ tan x
+ \log x ¦ log(x)
+ log(x) ¦ log x
+ (-\infty,\infty) ¦ \mathbb{R}
+ 2\text{ coulombs} ¦ 2
- \ln 2 ¦ ln(3)
- \sin x ¦ cos(x)
- 5\,\Omega ¦ 5 volts

# thoughts
+ 4 ¦ text:<think>2+2, \boxed{5}?</think>The answer is 4.
+ 4 ¦ text:First I add, \boxed{5}.⏎</think>⏎The answer is 4.
+ 4 ¦ text:[THINK]\boxed{5}[/THINK]\boxed{4}
+ 4 ¦ text:<think></think>\boxed{4}
+ 4 ¦ text:<|channel|>analysis<|message|>\boxed{5}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{4}
+ 18 ¦ text:<think>\boxed{17}</think>⏎⏎\boxed{18}
+ 18 ¦ text:<think>a <think> b</think> 18
+ 18 ¦ text:<think>hm</think><answer>18</answer>
+ 18 ¦ text:<|begin_of_thought|>17<|end_of_thought|><|begin_of_solution|>The answer is 18<|end_of_solution|>
+ 18 ¦ text:<think>17</think><response>The answer is 18</response>
+ 18 ¦ text:Here is my thought process: 17⏎Here is my response: The answer is 18
+ 18 ¦ text:analysisWe need 17.assistantfinalThe answer is 18.
+ 18 ¦ text:<|channel>thought⏎17<channel|>18
+ 18 ¦ text:<seed:think>17</seed:think>18
+ 18 ¦ text:◁think▷17◁/think▷18
- 42 ¦ text:<think>let me see \boxed{42} but let me
- 42 ¦ text:\boxed{42} <think> but let me
- 42 ¦ text:<think>\boxed{42}</think>
- 42 ¦ text:<think>\boxed{42}</think>The answer is 41.
- 42 ¦ text:[THINK]\boxed{42}
- 42 ¦ text:<|channel|>analysis<|message|>\boxed{42}
- 42 ¦ text:<|channel|>analysis<|message|>\boxed{42}<|end|>
- 17 ¦ text:<seed:think>17</seed:think>18
- 18 ¦ text:<seed:think>18
- 18 ¦ text:<|channel>thought⏎18
- 18 ¦ text:analysisWe need 18.
- 18 ¦ text:Here is my thought process: 18
- 18 ¦ text:<|begin_of_thought|>\boxed{18}
- 18 ¦ text:<thinking>\boxed{18}
- 18 ¦ text:<think>\boxed{18}</think>I do not know.
- 18 ¦ text:\boxed{18}</think>I do not know.
"""


def rows(lines: str) -> list[tuple[str, str, str, bool]]:
    """(kind, gold, text, is it right?)"""
    table, kind = [], ""
    for line in lines.strip().splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif line:
            gold, _, given = line[2:].partition(" ¦ ")
            is_text = given.startswith("text:")
            text = given.removeprefix("text:") if is_text else rf"\boxed{{{given}}}"
            table.append((kind, gold, text.replace("⏎", "\n"), line[0] == "+"))
    return table


def misgraded(table: list[tuple], kind: str) -> list[tuple]:
    """The rows of one kind that are graded otherwise: what it should be, gold, text, feedback."""
    rows_of_kind = [row[1:] for row in table if row[0] == kind]
    wrong = []
    for gold, text, right in rows_of_kind:
        verdict = grade(gold, text)
        if verdict.correct != right:
            wrong.append(("right" if right else "wrong", gold, text, verdict.feedback))
    return wrong


ROWS = rows(TABLE)


@pytest.mark.skipif(not verify.find_spec("math_verify"), reason="math-verify is not installed")
@pytest.mark.parametrize("kind", dict.fromkeys(row[0] for row in ROWS))
def test_answers_are_graded_as_a_mathematician_would(kind):
    wrong = misgraded(ROWS, kind)
    assert not wrong, "\n".join(map(str, ["should have been:", *wrong]))


def test_the_table_is_large_and_each_answer_is_its_own():
    assert len(ROWS) >= 900
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
