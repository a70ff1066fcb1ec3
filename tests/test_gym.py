"""Generated problems: the same for the same split and seed, no question in two splits, scored by
their own data set in a process that can be killed.
"""

from __future__ import annotations

import pytest

pytest.importorskip(
    "reasoning_gym", reason="reasoning-gym is not installed (pip install -e '.[data]')"
)

from workbench.core import Problem, Task, WorkbenchError
from workbench.tasks import gym, load_task
from workbench.tasks.gym import Gym, extract

EASY = "gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"


@pytest.fixture(scope="module")
def easy():
    return load_task(EASY)


def test_dials_become_options_of_the_data_set(easy):
    assert easy == Gym(
        "chain_sum", (("min_terms", 2), ("max_terms", 2), ("min_digits", 1), ("max_digits", 1))
    ) and isinstance(easy, Task)
    assert load_task("gym:chain_sum,allow_negation=true,max_new=7") == Gym(
        "chain_sum", (("allow_negation", True),), 7
    )
    [problem] = easy.problems("train", 1, 0)
    assert (
        problem.messages[0]["content"].endswith(gym.ASK)
        and "Answer:" in gym.ASK
        and problem.answer.lstrip("-").isdigit()
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("gym", "no data set ''; there are 1"),
        ("gym:chain_sums", "no data set 'chain_sums'; did you mean chain_sum or"),
        ("gym:chain_sum,terms=2", "has no option 'terms'; it has min_terms"),
        ("gym:chain_sum,min_terms=x", "min_terms=x is not a whole number"),
        ("gym:chain_sum,min_terms=9,max_terms=2", "max_terms must be >= min_terms"),
        (
            "gym:chain_sum,seed=1",
            "seed cannot be set here; the problems' seed and number come with the run",
        ),
        ("gym:chain_sum,max_new=0", "max_new from 1"),
        ("gym:count_primes,max_n=0", "cannot be made with these options"),
    ],
)
def test_a_bad_dial_is_one_sentence(name, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


def test_problems_are_their_split_and_seed_and_no_question_is_in_two_splits(easy):
    task = load_task("gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=2")
    assert task.problems("train", 30, 3) == load_task(
        "gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=2"
    ).problems("train", 30, 3)
    assert task.problems("train", 30, 3)[:10] != task.problems("train", 30, 4)[:10]
    asked = {
        split: {
            p.messages[0]["content"] for seed in range(4) for p in task.problems(split, 25, seed)
        }
        for split in ("train", "validation", "test")
    }
    assert all(len(questions) >= 25 for questions in asked.values())
    assert (
        not asked["train"] & asked["test"]
        and not asked["train"] & asked["validation"]
        and not asked["test"] & asked["validation"]
    )
    with pytest.raises(
        WorkbenchError,
        match=r"gym:chain_sum has too few test problems with these options: [0-9]+ found, 400 "
        "wanted",
    ):
        easy.problems("test", 400, 0)
    with pytest.raises(WorkbenchError, match="the splits of gym are"):
        easy.problems("dev", 1, 0)


@pytest.mark.parametrize(
    "text, solution, found",
    [
        ("Answer: 7", "7", "7"),
        ("4 + 3 = 7.", "7", "7"),
        ("7", "7", "7"),
        ("so \\boxed{7}", "7", "7"),
        ("**Answer:** $7$.", "7", "7"),
        ("<answer> 7 </answer> 8", "7", "7"),
        ("The answer is 7.", "7", "7"),
        ("Answer: yes", "yes", "yes"),
        ("yes", "yes", "yes"),
        ("let me see\nAnswer:\n1 2\n3 4", "1 2\n3 4", "1 2\n3 4"),
        ("none", "7", ""),
        ("", "x", ""),
    ],
)
def test_what_the_scorer_is_shown(text, solution, found):
    assert extract(text, solution) == found


def test_an_integral_is_worked_out_in_the_solution():
    """reasoning-gym leaves some golds as Integral(...), which would be the question again."""
    task = load_task("gym:intermediate_integration")
    entries = task._make(1, 12)
    left = [i for i, entry in enumerate(entries) if "Integral" in entry["answer"]]
    assert left
    for index in left[:2]:
        problem = task._problem(entries[index], "train", 1, 12, index)
        assert "Integral" not in problem.answer
        assert task.grade(problem, problem.solutions[0]).correct


def test_the_reward_is_the_data_sets_own(easy):
    [problem] = easy.problems("train", 1, 0)
    assert (
        easy.grade(problem, f"Answer: {problem.answer}").correct
        and easy.grade(problem, f"Answer: {problem.answer}").reward == 1.0
    )
    wrong = easy.grade(problem, "Answer: 1000")
    assert (wrong.reward, wrong.correct, wrong.feedback) == (
        0.0,
        False,
        "Your answer 1000 is not right.",
    )
    assert (
        easy.grade(problem, "").feedback == "There is no answer."
        and easy.first_error(problem, "x") is None
    )
    # by a task that did not make the problem
    assert load_task(EASY).grade(problem, problem.answer).correct
    numbers = load_task("gym:countdown,min_numbers=3,max_numbers=3")
    [problem] = numbers.problems("train", 1, 0)
    assert numbers.grade(problem, f"<answer>{problem.answer}</answer>").correct
    assert 0 < numbers.grade(problem, "<answer>1+1</answer>").reward < 1  # partial credit


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "\x00",
        "Answer: \ud800",
        "x" * 3_000_000,
        "<answer>" * 20_000,
        "<answer>" + "(" * 50_000,
    ],
)
def test_hostile_text_is_graded_wrong_soon(text, easy):
    verdict = easy.grade(easy.problems("train", 1, 0)[0], text)
    assert not verdict.correct and verdict.feedback.encode() and len(verdict.feedback) < 400


def test_an_attempt_that_hangs_is_killed(monkeypatch):
    task = load_task("gym:coin_flip")  # reads 1e9999999999 as a fraction
    [problem] = task.problems("train", 1, 0)
    asked = gym._scorers.ask
    monkeypatch.setattr(gym._scorers, "ask", lambda job: asked(job, seconds=0.5))
    verdict = task.grade(problem, "<answer>1e9999999999</answer>")
    assert verdict.parts == {"killed": 1.0} and "to check" in verdict.feedback
    monkeypatch.undo()
    assert task.grade(problem, f"<answer>{problem.answer}</answer>").correct


@pytest.mark.parametrize(
    "name",
    [
        "basic_arithmetic",
        "gsm_symbolic",
        "leg_counting",
        "base_conversion",
        "mini_sudoku",
        "propositional_logic",
    ],
)
def test_other_data_sets(name):
    task = load_task(f"gym:{name}")
    for problem in task.problems("train", 3, 1):
        assert isinstance(problem, Problem) and (
            problem.answer == "None"
            or task.grade(problem, f"<answer>{problem.answer}</answer>").correct
        )
