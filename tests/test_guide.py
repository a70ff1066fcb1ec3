"""Expert traces, where they are cut, rollouts that go on from them; and the arithmetic task's
second way of writing.
"""

from __future__ import annotations

import math
from itertools import product
from random import Random

import pytest
import tiny

from workbench.core import WorkbenchError
from workbench.model.batch import rescore
from workbench.rollouts import sampling as engine
from workbench.rollouts.prefixes import Prefix, continue_from, expert_rollout, prefix_length
from workbench.rollouts.sampling import generate
from workbench.tasks import load_task
from workbench.tasks.arithmetic import Arithmetic, check, draw, due, parse, solve

CHAIN = "47+85-29+6"
TURNED = ["85+47=132", "-29+132=103", "6+103=109", "Answer 109"]
PLAIN = ["47+85=132", "132-29=103", "103+6=109", "Answer 109"]


# ---- the turned style


def test_turned_by_hand():
    assert solve(CHAIN, "turned") == "\n".join(TURNED)
    task = load_task("arithmetic:style=turned")
    assert (
        task.problem(CHAIN).solutions == ("\n".join(TURNED),)
        and task.problem(CHAIN).answer == "109"
    )
    assert [p.id for p in task.problems("train", 9, 3)] == [
        p.id for p in Arithmetic().problems("train", 9, 3)
    ]
    with pytest.raises(WorkbenchError, match="style=plain.turned, not back"):
        load_task("arithmetic:style=back")


def test_every_mixture_of_the_styles_is_right_and_every_turned_line_is_true():
    for choice in product((0, 1), repeat=4):
        assert check(CHAIN, "\n".join((PLAIN, TURNED)[c][i] for i, c in enumerate(choice))).correct
    rng = Random(0)
    for _ in range(300):
        for line in solve(draw(rng, 5, 999), "turned").split("\n")[:-1]:
            left, right = line.split("=")
            assert eval(left) == int(right)


def test_a_wrong_edit_of_a_turned_solution_is_found_at_its_line():
    """Nothing but the right line of either style passes: every one-character edit is judged as by
    comparing lines with both solutions.
    """
    rng = Random(1)
    for _ in range(8):
        expression = draw(rng, 3, 99)
        right = list(zip(solve(expression).split("\n"), solve(expression, "turned").split("\n")))
        text = solve(expression, "turned")
        for edit in {
            text[:i] + c + text[i + keep :]
            for i in range(len(text) + 1)
            for c in ("", *"0179+-= \nx")
            for keep in (0, 1)
        }:
            lines = edit.rstrip("\n").split("\n")
            wrong = next(
                (
                    i
                    for i in range(max(len(lines), 4))
                    if i >= len(lines) or i >= 4 or lines[i] not in right[i]
                ),
                None,
            )
            assert check(expression, edit).first_error == wrong and check(
                expression, edit
            ).correct == (wrong is None), edit


def test_reflections_in_either_style():
    assert check(CHAIN, "\n".join(["47+85=122", "Wait, 85+47=132", *PLAIN[1:]])).correct
    assert (
        check(
            CHAIN, "\n".join(["85+47=122", "-29+122=93", "Wait, 47+85=132", *TURNED[1:]])
        ).first_error
        == 0
    )
    # "7+5=12" is step 1 turned and step 3 plain: what is due in the plain style is meant first, as
    # without a second style
    expression = "5+7-5+5"  # 5+7=12, 12-5=7, 7+5=12
    assert check(expression, "5+7=12\n12-5=7\nWait, 7+5=12\nAnswer 12").correct
    # step 3 is not due yet: step 1, turned
    assert check(expression, "5+7=12\nWait, 7+5=12\n12-5=7\n7+5=12\nAnswer 12").correct


@pytest.mark.parametrize(
    "text",
    [
        "-29+132=103",
        "--29+132=103",
        "+85+47=132",
        "85+47=132 ",
        "85 +47=132",
        "٨٥+47=132",
        "Wait, Wait, 85+47=132",
    ],
)
def test_what_only_looks_turned_is_wrong(text):
    assert check(CHAIN, text).first_error == 0


def test_turned_solutions_fit_the_budget(tiny_policy):
    for steps, largest in ((1, 9), (4, 20), (12, 999)):
        task = Arithmetic(steps, largest, "turned")
        assert all(
            len(tiny_policy.completion_ids(p.solutions[0])) <= task.max_new
            for p in task.problems("train", 20, 0)
        )
    assert due(parse("4-9+1"), "turned") == "-9+4=-5" and due((-5, ("+1",)), "turned") == "1+-5=-4"


# ---- cutting a trace


def test_cut_by_hand(tiny_policy):
    task = Arithmetic()
    expert = expert_rollout(tiny_policy, task, task.problem(CHAIN), "\n".join(PLAIN))
    # one token a character, "Answer " one: lines of 10, 11, 10 tokens with their breaks, then 4 and
    # the end: 36
    assert len(expert.completion_ids) == 36

    def at(ratio, reach=0.3):
        return prefix_length(expert, tiny_policy.decode, ratio, reach)

    assert at(0.0) == 0 and at(1.0) == 36
    assert at(0.2) == 10  # 7 tokens, on to the end of line 1; within .5 * 36 = 18
    assert at(0.5) == 21  # 18, on to the end of line 2; within 28.8
    assert at(10 / 36) == 10  # there already
    assert at(0.31) == 21  # 11, and 21 is within 21.96
    assert at(0.31, reach=0.2) == 11  # 21 is over 18.36: exact
    assert at(0.9) == 32  # no line ends before the last one does


def test_cut_of_a_trace_without_lines_is_exact(tiny_policy):
    task = Arithmetic()
    expert = expert_rollout(tiny_policy, task, task.problem(CHAIN), "1" * 19)  # 20 with its end
    assert [
        prefix_length(expert, tiny_policy.decode, ratio) for ratio in (0.2, 0.25, 0.5, 0.04, 1.0)
    ] == [4, 5, 10, 0, 20]


def test_trace_keeps_its_end_unless_it_is_too_long(tiny_policy):
    task = Arithmetic()
    problem = task.problem(CHAIN)
    whole, short = (
        expert_rollout(tiny_policy, task, problem, "\n".join(TURNED)),
        expert_rollout(tiny_policy, task, problem, "\n".join(TURNED), 12),
    )
    assert (
        whole.completion_ids[-1] in tiny_policy.stop_ids
        and whole.finished
        and whole.verdict.correct
    )
    assert (
        short.completion_ids == whole.completion_ids[:12]
        and not short.finished
        and not short.verdict.correct
    )
    assert short.text == "\n".join(TURNED)[:12] and short.borrowed == 12
    for r in (whole, short):
        assert (
            r.origin == "expert"
            and r.borrowed == len(r.completion_ids)
            and all(map(math.isnan, r.logprobs))
        )


# ---- going on


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_going_on_is_one_call_and_the_log_probs_are_those_after_the_prefix(family, monkeypatch):
    policy, task = tiny.policy(family), Arithmetic(steps=2)  # 40 tokens
    problems = task.problems("train", 3, 0)
    calls = []
    monkeypatch.setattr(
        "workbench.rollouts.prefixes.generate", lambda *a, **k: calls.append(1) or generate(*a, **k)
    )
    prefixes = ((), policy.completion_ids(problems[1].solutions[0])[:7], tuple(range(40, 90)))
    found = continue_from(
        policy, task, [Prefix(p, prefix, (1, 2)) for p, prefix in zip(problems, prefixes)]
    )
    assert calls == [1] and [len(row) for row in found] == [2, 2, 2]
    for problem, prefix, row in zip(problems, prefixes, found):
        size = min(len(prefix), 40)
        for r in row:
            assert (
                r.completion_ids[:size] == prefix[:size]
                and len(r.completion_ids) <= 40
                and r.borrowed == size
            )
            assert r.prompt_ids == policy.prompt_ids(problem.messages) and r.text == policy.decode(
                r.completion_ids
            )
            assert [math.isnan(x) for x in r.logprobs] == [t < size for t in range(len(r.logprobs))]
            assert r.origin == ("guided" if prefix else "policy")
            [(logp, _)] = rescore(policy, [r])
            assert logp[size:] == pytest.approx(r.logprobs[size:], abs=1e-4)
    # the prefix fills the budget
    assert all(len(r.completion_ids) == 40 and not r.finished for r in found[2])


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_budget_for_each_prompt_is_the_same_as_a_shorter_run(family, monkeypatch):
    policy = tiny.policy(family)
    prompts, budgets, seeds = [(7, 8), (9, 10, 11), (7, 12)], [5, 30, 17], [(1, 2, 3), (4, 5), (6,)]
    together = generate(policy, prompts, seeds, max_new=budgets)
    for prompt, budget, row, samples in zip(prompts, budgets, seeds, together):
        [alone] = generate(policy, [prompt], [row], max_new=budget)
        for one, other in zip(samples, alone):
            assert (
                one.ids == other.ids and one.finished == other.finished and len(one.ids) <= budget
            )
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # No row is computed beyond its budget: the longest prompt may fill the model's context to the
    # last place.
    steps, original = [], engine.llama.Decoder.step if family == "llama" else engine.Decoder.step
    kind = engine.llama.Decoder if family == "llama" else engine.Decoder
    monkeypatch.setattr(
        kind, "step", lambda self, token: steps.append(len(token)) or original(self, token)
    )
    generate(policy, [(7, 8), (9, 10)], [(1, 2, 3), (4,)], max_new=[4, 12])
    assert all(rows <= 1 for rows in steps[3:])
    with pytest.raises(WorkbenchError, match="prompt of 100 tokens and 30 new"):
        generate(policy, [(7,) * 100, (7,)], [(1,), (1,)], max_new=[30, 90])
    assert generate(policy, [(7,) * 100, (7,)], [(1,), (1,)], max_new=[28, 90])
