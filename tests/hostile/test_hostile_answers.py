"""Every answer in answers.txt scores 0 without being evaluated, and honest ones get through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.core import WorkbenchError
from workbench.tasks.verify import expressions
from workbench.tasks.verify.expressions import EVALUATED, LONGEST, check_scorer, inert


def hostile_answers() -> list:
    text = Path(__file__).with_name("answers.txt").read_text()
    answers = []
    for block in text.split("\n=== ")[1:]:
        header, _, answer = block.partition("\n")
        name, dataset = (part.strip() for part in header.split("|"))
        answers.append(pytest.param(dataset, answer.rstrip("\n"), id=name))
    return answers


ANSWERS = hostile_answers()
LONG = {
    "sum": "1+" * LONGEST + "1",
    "minus": "-" * 1500 + "1",
    "brackets": "(" * 900 + "1" + ")" * 900,
    "number": "9" * 5000,
}


@pytest.mark.parametrize("dataset, answer", ANSWERS)
def test_it_is_not_evaluated(dataset, answer):
    assert not inert(dataset, answer, "the gold")


@pytest.mark.parametrize("answer", LONG.values(), ids=LONG)
@pytest.mark.parametrize("dataset", ["countdown", "simple_integration"])
def test_what_is_too_long_or_too_deep_is_not_evaluated(dataset, answer):
    assert not inert(dataset, answer, "the gold")


@pytest.mark.parametrize(
    "dataset, answer",
    [
        ("countdown", "(3 + 4)*5 - 6/2"),
        ("countdown", "2**3 + -1.5"),
        ("puzzle24", "8*(5*1 - 2)"),
        ("polynomial_multiplication", "-152*y**5 + 568*y**3 - 3"),
        ("simple_integration", "-9*X**8/10 + 3*X**4/2 + C"),
        ("intermediate_integration", "2*(2 - 8*x)**(3/2)/3 + exp(x)*sin(3*x)/log(x, 2) + C"),
        ("string_insertion", "['A', 'B', 'C']"),
        ("string_insertion", "the gold"),
        ("spiral_matrix", "1 2 3 4"),
        ("spiral_matrix", "[1, 2, -3]"),
        ("binary_matrix", "0 1\n1 0"),
        ("binary_matrix", "[[0, 1], [1, 0]]"),
        ("n_queens", "_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _"),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]"),
        ("chain_sum", "__import__('os')"),  # compared as text, never evaluated
    ],
)
def test_an_honest_answer_reaches_the_scorer(dataset, answer):
    assert inert(dataset, answer, "the gold")


def test_every_data_set_whose_scorer_evaluates_is_known():
    factory = pytest.importorskip("reasoning_gym.factory")
    assert set(EVALUATED) | expressions.OWN <= set(factory.DATASETS)
    for name, (scorer, _) in factory.DATASETS.items():
        check_scorer(name, scorer)


def test_one_that_is_not_known_is_refused(monkeypatch):
    class New:
        def score_answer(self, answer, entry):
            return float(eval(answer) == entry["answer"])

    with pytest.raises(WorkbenchError, match="gym:new may run answers as code"):
        check_scorer("new", New)


def test_every_gold_of_these_sets_is_an_honest_answer():
    """But those that are written as an integral, which says no more than the question."""
    gym = pytest.importorskip("reasoning_gym")
    for name in EVALUATED:
        for entry in gym.create_dataset(name, seed=5, size=40):
            answer = entry["answer"]
            assert inert(name, answer, answer) == ("Integral" not in answer), (name, answer)


def test_a_letter_is_a_letter_to_sympy():
    sympy = pytest.importorskip("sympy")
    names = expressions.POLYNOMIAL.names | expressions.INTEGRAL.names - {"E", "pi"}
    assert not [name for name in names if hasattr(sympy, name)]
    assert all(hasattr(sympy, name) for name in expressions.INTEGRAL.functions)


def test_a_task_gives_such_an_answer_nothing_and_asks_nobody(monkeypatch):
    pytest.importorskip("reasoning_gym")
    from workbench.tasks import gym, load_task

    task = load_task("gym:countdown,min_numbers=3,max_numbers=3")
    [problem] = task.problems("train", 1, 0)
    monkeypatch.setattr(gym, "_scorers", SimpleNamespace())
    values = [parameters.values for parameters in ANSWERS]
    answers = [answer for dataset, answer in values if dataset == "countdown"]
    assert answers
    for answer in answers:
        verdict = task.grade(problem, f"<answer>{answer}</answer>")
        assert (verdict.reward, verdict.correct) == (0.0, False)
        assert verdict.feedback == "Your answer is not a plain expression or list."


@pytest.mark.parametrize("reply", [{}, {"id": 8, "score": 1.0}, {"id": 7}, {"id": 7, "score": "1"}])
def test_a_reply_to_something_else_is_an_error(reply):
    pytest.importorskip("reasoning_gym")
    from workbench.tasks.gym import _score

    assert _score({"id": 7, "score": 2.0}, 7) == 1.0 and _score({"error": "E"}, 7) == 0.0
    with pytest.raises(WorkbenchError, match="replied to something else"):
        _score(reply, 7)
