"""What may reach a scorer that evaluates answers as code.

Nine of reasoning-gym's data sets hand a model's answer to ``eval``, or to sympy's ``parse_expr``,
which evaluates it too; and their scorer needs the gold beside it. So an answer is parsed here,
never run, and reaches such a scorer only when it is arithmetic, a formula or a list of literals,
all of bounded size: evaluated, that is a value and does nothing. Anything else scores 0 unread.
(To keep the gold out of that process too, each of the nine scorers would have to be written again
as a value and a comparison; it would then be ours and no longer the data set's.)

Found by reading every ``score_answer`` of reasoning-gym 0.1.25; a data set that is not in the list
but whose scorer's module evaluates something is refused.
"""

from __future__ import annotations

import ast
import inspect
import re
import string
from typing import NamedTuple

from workbench.core import refuse_if
from workbench.tasks.sandbox.outside import check_execution

LONGEST = 2000  # characters of a formula
LONGEST_LIST = 50_000  # of a list: reasoning-gym's largest matrix has 10,000 numbers
BITS = 1 << 17  # most that a number may have, on the way too
EXPONENT = 10  # bits of an exponent


class Grammar(NamedTuple):
    """What an answer may be made of; a list has neither names nor functions."""

    characters: re.Pattern
    names: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()


FUNCTIONS = """sin cos tan sec csc cot asin acos atan asec acsc acot sinh cosh tanh asinh acosh
atanh exp log ln sqrt Abs"""
ARITHMETIC = Grammar(re.compile(r"[-+*/(). \t0-9]+"))
POLYNOMIAL = Grammar(re.compile(r"[-+*/(). \ta-z0-9]+"), frozenset(string.ascii_lowercase))
# Not Integral: the question, written back, would be a right answer.
INTEGRAL = Grammar(
    re.compile(r"[-+*/(),. \ta-zA-Z0-9]+"),
    frozenset([*string.ascii_lowercase, "X", "C", "E", "pi"]),
    frozenset(FUNCTIONS.split()),
)
LIST = Grammar(re.compile(r"(?!.*--)[-\w\s,.'\"\[\]()]+", re.ASCII))

EVALUATED = {
    "countdown": ARITHMETIC,
    "puzzle24": ARITHMETIC,
    "polynomial_multiplication": POLYNOMIAL,
    "simple_integration": INTEGRAL,
    "intermediate_integration": INTEGRAL,
    "string_insertion": LIST,
    "spiral_matrix": LIST,
    "binary_matrix": LIST,
    "n_queens": LIST,
}
# They evaluate only what they have generated, or have a parser of their own by such a name.
OWN = frozenset(["number_sorting", "bitwise_arithmetic", "codeio", "propositional_logic"])
_EVALUATION = re.compile(
    r"(?<!\w)(?:eval|exec|parse_expr|sympify|lambdify|parse_latex|S|pickle\.loads?)\("
)


def check_scorer(dataset: str, scorer: type) -> None:
    """Raises WorkbenchError for a data set whose scorer may evaluate answers in a way that is not
    known here.
    """
    if dataset in EVALUATED:
        check_execution(f"gym:{dataset}")
    elif dataset not in OWN:
        source = inspect.getsource(inspect.getmodule(scorer.score_answer))
        refuse_if(
            _EVALUATION.search(source),
            f"gym:{dataset} may run answers as code when it scores them, and how to prevent that "
            "is not known here",
        )


def inert(dataset: str, answer: str, gold: str) -> bool:
    """Can the data set's scorer be given this answer? Always, where it evaluates none."""
    grammar = EVALUATED.get(dataset)
    if grammar is None:
        return True
    text = answer.strip()
    if grammar is LIST and text == gold.strip():
        return True  # the scorer compares before it evaluates
    longest = LONGEST_LIST if grammar is LIST else LONGEST
    if len(text) > longest or not grammar.characters.fullmatch(text):
        return False
    try:
        tree = ast.parse(text, mode="eval").body
        return _is_literal(tree) if grammar is LIST else _bits(tree, grammar) <= BITS
    except SyntaxError:
        return grammar is LIST  # boards and rows of numbers: evaluated, they fail in the same way
    except (ValueError, OverflowError, RecursionError, MemoryError):
        return False


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, (ast.List, ast.Tuple)):
        return all(map(_is_literal, node.elts))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float, str)


def _bits(node: ast.expr, grammar: Grammar) -> int:
    """How large the numbers in a formula may become at most, in bits.

    Raises ValueError for what is no formula.
    """
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return max(int(value).bit_length(), 1 if isinstance(value, int) else 64)
        case ast.Name(id=name) if name in grammar.names:
            return 1
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _bits(operand, grammar)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return _bits(left, grammar) + _bits(right, grammar) + 1
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            exponent = _bits(right, grammar)
            if exponent > EXPONENT:
                raise ValueError("the exponent is too large")
            size = _bits(left, grammar) << exponent
            if size > BITS:
                raise ValueError("the power is too large")
            return size
        case ast.Call(func=ast.Name(id=name), args=[_] | [_, _] as args, keywords=[]):
            if name in grammar.functions:
                return 64 + sum(_bits(argument, grammar) for argument in args)
    raise ValueError("no formula")
