"""discovery@k by hand and by enumeration, resets, conversations, a toy that SDPO must solve sooner
than sampling, and a study that is killed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
import toys

from workbench.core import Problem, Verdict, WorkbenchError
from workbench.evaluation.statistics import bootstrap_nested
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.model.learner import Learner, OptimConfig
from workbench.paths import DATA
from workbench.rollouts.sampling import sample_groups
from workbench.studies import discovery
from workbench.studies.discovery import Study, curves, reached, read_study, run, summary, verdict
from workbench.tasks import prompts
from workbench.training import ttt
from workbench.training.ttt import (
    OPTIONS,
    Blind,
    converse,
    first_success,
    independent,
    learn,
    snapshot,
    that_fits,
    turn_prompt,
)
from workbench.viz.curves import discovery_curves

SECRET, COMMON = "z", "abcdefghij"


# ---- discovery@k


def record_of(
    budget: int,
    methods: dict[str, list[list]],
    rights: dict[str, list[list[int]]] | None = None,
) -> dict:
    """A record with these first successes, [question][seed] by method (and numbers of successes,
    for best_of).
    """
    questions, seeds = (
        len(x) for x in (next(iter(methods.values())), next(iter(methods.values()))[0])
    )
    cells = [
        {
            "question": f"q{q}",
            "method": m,
            "seed": s,
            "first": first,
            "right": rights[m][q][s] if rights and m in rights else int(first is not None),
        }
        for m, table in methods.items()
        for q, row in enumerate(table)
        for s, first in enumerate(row)
    ]
    return {
        "schema_version": 1,
        "config": {
            "methods": list(methods),
            "budget": budget,
            "questions": questions,
            "seeds": seeds,
        },
        "cells": cells,
        "base": [
            {"question": "easy", "hard": False},
            *({"question": f"q{q}", "hard": True} for q in range(questions)),
        ],
    }


def test_discovery_by_hand_where_runs_are_censored():
    found = curves(record_of(4, {"sdpo": [[2, None], [4, 1]]}))["sdpo"]
    assert found.shape == (2, 2, 4)
    # the run without a success stays in the denominator at every k
    assert found.mean((0, 1)).tolist() == [0.25, 0.5, 0.5, 0.75]
    assert (
        reached(None, 3).tolist() == [0, 0, 0]
        and reached(3, 3).tolist() == [0, 0, 1]
        and reached(1, 3).tolist() == [1, 1, 1]
    )


@pytest.mark.parametrize("right", range(6))
def test_best_of_k_is_the_mean_over_all_subsets_of_the_attempts(right):
    attempts = [True] * right + [False] * (5 - right)
    by_enumeration = [
        np.mean([any(subset) for subset in combinations(attempts, k)]) for k in range(1, 6)
    ]
    found = curves(record_of(5, {"best_of": [[1 if right else None]]}, {"best_of": [[right]]}))[
        "best_of"
    ]
    assert found[0, 0] == pytest.approx(by_enumeration)


def test_the_interval_is_over_questions_and_their_seeds():
    # the questions differ and the seeds agree: four facts, not 200
    alike = np.repeat(np.array([0.0, 0.0, 1.0, 1.0])[:, None], 50, axis=1)
    mean, low, high = bootstrap_nested(alike)
    assert mean == 0.5 and low <= 0.25 and high >= 0.75
    assert bootstrap_nested(np.ones((3, 2, 4))) == pytest.approx(np.ones((3, 4)))
    other = np.random.default_rng(0).random((4, 50))
    # paired: what two methods share does not widen their difference
    assert bootstrap_nested(other + 0.1 - other) == pytest.approx([0.1] * 3)


def test_the_verdict_is_computed():
    record = record_of(
        8, {"sdpo": [[1, 2]] * 6, "multi_turn": [[None, None]] * 6, "blind": [[1, 1]] * 6}
    )
    at_1, at_8 = verdict(curves(record), 1), verdict(curves(record), 8)
    assert (
        at_8[0]
        == "At 8 generations SDPO finds more than multi-turn: difference +1.00 [+1.00, +1.00]."
    )
    assert (
        "cannot be told apart from SDPO, blind" in at_8[1]
        and "finds less than SDPO, blind" in at_1[1]
    )
    assert summary(curves(record), [1, 8])[0] == {
        "method": "SDPO",
        "@1": "0.50 [0.25, 0.75]",
        "@8": "1.00 [1.00, 1.00]",
    }
    figure = discovery_curves(
        {name: bootstrap_nested(values) for name, values in curves(record).items()}
    )
    assert [text.get_text() for text in figure.axes[0].texts]


def test_the_committed_study_is_whole():
    record = read_study(DATA / "test_time" / "organism.json")
    settings, found = record["config"], curves(record)
    assert (
        set(found) == set(settings["methods"]) == set(Study().methods)
        and settings["options"] == OPTIONS
    )
    assert {values.shape for values in found.values()} == {
        (settings["questions"], settings["seeds"], settings["budget"])
    }
    assert all(
        b["hard"] == (0 < b["right"] < settings["below"] * settings["samples"])
        for b in record["base"]
    )
    assert all(
        (np.diff(values) >= -1e-9).all() and (values >= 0).all() and (values <= 1).all()
        for values in found.values()
    )


def test_an_unfinished_study_has_no_curves():
    record = record_of(4, {"sdpo": [[2, None]]})
    with pytest.raises(WorkbenchError, match="not finished"):
        curves(record | {"cells": record["cells"][:1]})
    with pytest.raises(WorkbenchError, match="not finished"):
        curves(record | {"config": record["config"] | {"questions": 2}})


# ---- a toy: one letter, which the policy would seldom write, and the feedback names


@dataclass(frozen=True)
class Letter:
    """Right is z.

    The policy below writes it in about 2 % of its attempts, and reads: told a letter, it mostly
    writes that.
    """

    max_new: int = 1
    name = "letter"

    def problems(self, split, n, seed):
        return [Problem(str(i), ({"role": "user", "content": str(i)},), SECRET) for i in range(n)]

    def grade(self, problem, text):
        return Verdict(float(text == SECRET), text == SECRET, "" if text == SECRET else SECRET)

    def first_error(self, problem, text):
        return None

    def reprompt(self, problem, *, solution="", attempt="", feedback=""):
        return prompts.reprompt(problem, solution=solution, attempt=attempt, feedback=feedback)


@pytest.fixture(scope="module")
def reader():
    """The weights of a tiny policy that was taught the toy's habits."""
    policy, task = toys.tiny_policy(), Letter()
    rng, optimizer = np.random.default_rng(0), torch.optim.Adam(policy.model.parameters(), lr=3e-3)
    prompt = cache(
        lambda problem_id, told: policy.prompt_ids(
            task.reprompt(task.problems("", 10, 0)[problem_id], feedback=told)
        )
    )
    token = {letter: policy.completion_ids(letter)[0] for letter in COMMON + SECRET}
    for step in range(400):
        told = step % 2 == 0
        letters = [
            rng.choice([*COMMON, SECRET]) if told or rng.random() > 0.8 else rng.choice([*COMMON])
            for _ in range(10)
        ]
        ids = torch.tensor(
            [
                [*prompt(i, letter if told else ""), token[letter]]
                for i, letter in enumerate(letters)
            ]
        )
        loss = torch.nn.functional.cross_entropy(
            policy.model(input_ids=ids[:, :-1]).logits[:, -1], ids[:, -1]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def fresh(reader) -> Learner:
    policy = toys.tiny_policy()
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            p.copy_(reader[name])
    return Learner(policy, OptimConfig(lr=1e-2, weight_decay=0.01, ema=0.01))


@pytest.fixture
def learner(reader) -> Learner:
    return fresh(reader)


TASK = Letter()
QUESTIONS = TASK.problems("test", 4, 0)
METHOD = SDPO(**OPTIONS)


def test_the_toy_is_what_it_says(learner):
    plain = (
        sum(v.correct for v in independent(learner.policy, TASK, QUESTIONS[0], 64, ("toy",))) / 1024
    )
    told = replace(QUESTIONS[0], messages=TASK.reprompt(QUESTIONS[0], feedback=SECRET))
    [group] = sample_groups(learner.policy, TASK, [told], 64, (0,))
    assert 0.005 < plain < 0.04 and group.rewards.mean() > 0.5


def test_sdpo_finds_it_sooner_than_best_of_k(learner):
    start, firsts, rights = snapshot(learner), [], []
    for problem in QUESTIONS:
        rights.append(
            [
                sum(v.correct for v in independent(learner.policy, TASK, problem, 6, (0, seed)))
                for seed in range(3)
            ]
        )
        firsts.append([])
        for seed in range(3):
            learner.load_state(start)
            firsts[-1].append(first_success(learn(learner, TASK, problem, METHOD, 6, (0, seed))))
        learner.load_state(start)
    found = curves(record_of(96, {"sdpo": firsts, "best_of": firsts}, {"best_of": rights}))
    assert found["sdpo"][..., 63].mean() == 1.0
    mean, low, _ = bootstrap_nested(found["sdpo"][..., 47] - found["best_of"][..., 47])
    assert mean > 0.2 and low > 0


def test_learning_with_a_scalar_reward_is_best_of_k_until_the_first_success(learner):
    learner.optimizer.param_groups[0]["weight_decay"] = 0.0
    for seed in range(3):
        alone = independent(learner.policy, TASK, QUESTIONS[0], 8, (1, seed))
        start = snapshot(learner)
        assert (
            learn(learner, TASK, QUESTIONS[0], GRPO(k=16), 8, (1, seed))
            == alone[: first_success(alone)]
        )
        learner.load_state(start)


def test_the_blind_teacher_is_told_nothing(learner):
    [group] = sample_groups(learner.policy, TASK, QUESTIONS[:1], 64, (3,))
    shown = {
        r.verdict.correct: Blind(**OPTIONS).shown(group, i) for i, r in enumerate(group.rollouts)
    }
    assert shown == {False: ("", "Wrong."), True: ("", "")}
    assert METHOD.shown(
        group, next(i for i, r in enumerate(group.rollouts) if not r.verdict.correct)
    ) == ("", SECRET)


# ---- every run begins anew


def flat(state: dict) -> list[torch.Tensor]:
    return [*state["trainable"].values(), *state["teacher"].values()]


@pytest.mark.parametrize("lora", [0, 4])
def test_a_run_depends_on_nothing_that_ran_before(reader, lora):
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2, ema=0.5), lora=lora)
    start = snapshot(learner)
    reference = [x.clone() for x in flat(start)]
    first = [learn(learner, TASK, problem, METHOD, 3, (0, 0)) for problem in QUESTIONS[:1]]
    after = [x.clone() for x in flat(learner.state())]
    assert not all(map(torch.equal, after, reference)) and learner.optimizer.state_dict()["state"]
    learner.load_state(start)
    assert (
        all(map(torch.equal, flat(learner.state()), reference))
        and not learner.optimizer.state_dict()["state"]
    )
    learn(learner, TASK, QUESTIONS[2], Blind(**OPTIONS), 2, (0, 4))
    learner.load_state(start)
    assert [learn(learner, TASK, QUESTIONS[0], METHOD, 3, (0, 0))] == first
    assert all(map(torch.equal, flat(learner.state()), after))


# ---- conversations


class Parrot(Letter):
    """Never right; its feedback is as long as one likes."""

    def __init__(self, words: str, max_new: int = 8):
        super().__init__(max_new)
        object.__setattr__(self, "words", words)

    def grade(self, problem, text):
        return Verdict(0.0, False, self.words)


def test_the_oldest_feedback_leaves_first_and_the_question_stays():
    policy, task, problem = toys.tiny_policy(context=64), Parrot("?"), QUESTIONS[3]
    heard = [f"hint {i} " + "." * 10 for i in range(6)]
    kept = that_fits(policy, task, problem, heard)
    assert 0 < len(kept) < 6 and kept == heard[-len(kept) :]
    ids = turn_prompt(policy, task, problem, kept)
    assert (
        len(ids) + task.max_new
        <= 64
        < len(turn_prompt(policy, task, problem, heard[-len(kept) - 1 :])) + task.max_new
    )
    text = policy.decode(ids)
    assert text.startswith("<|user|>3" + prompts.FEEDBACK + kept[0]) and text.endswith(
        heard[-1] + prompts.AGAIN + "<|end|><|assistant|>"
    )
    assert that_fits(policy, task, problem, ["." * 90]) == []  # alone too long: the question alone
    assert turn_prompt(policy, task, problem, []) == policy.prompt_ids(problem.messages)


def test_a_turn_reads_the_feedback_of_the_turns_before(monkeypatch):
    policy, seen = toys.tiny_policy(context=64), []
    real = ttt.generate

    def generate(policy, prompts, *args, **how):
        seen.append([policy.decode(ids) for ids in prompts])
        return real(policy, prompts, *args, **how)

    monkeypatch.setattr(ttt, "generate", generate)
    talks = converse(policy, Parrot("say x"), QUESTIONS[0], 4, [(0, 0), (0, 1)])
    assert [[text.count("say x") for text in turn] for turn in seen] == [[n, n] for n in range(4)]
    assert [len(talk) for talk in talks] == [4, 4]


def test_a_conversation_ends_with_its_success(learner):
    talks = converse(learner.policy, TASK, QUESTIONS[0], 12, [(0, seed) for seed in range(4)])
    # it reads: told the letter, it writes it
    assert all(first_success(talk) == len(talk) < 12 for talk in talks)


# ---- the study

SMALL = Study(questions=2, seeds=2, budget=32, samples=256, below=0.05, candidates=4)


def test_a_killed_study_goes_on_as_if_nothing_had_happened(reader, learner, tmp_path, monkeypatch):
    whole = run(
        learner, TASK, SMALL, tmp_path / "whole" / "a.json", {"task": "letter"}, progress=False
    )
    assert (
        len(whole["cells"]) == 2 * 2 * 4
        and json.loads((tmp_path / "whole" / "a.json").read_text()) == whole
    )
    out, writes, real = tmp_path / "b.json", [], discovery.write_atomic

    def killed(path, data):
        writes.append(path)
        if len(writes) % 4 == 0:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(discovery, "write_atomic", killed)
    for _ in range(20):
        try:
            again = run(fresh(reader), TASK, SMALL, out, {"task": "letter"}, progress=False)
            break
        except KeyboardInterrupt:
            continue
    assert len(writes) > 4 * 4 and again == whole
    assert {c["method"] for c in whole["cells"]} == set(SMALL.methods) and set(
        verdict(curves(whole), 32)
    )


def test_other_settings_are_refused(learner, tmp_path):
    small = replace(SMALL, questions=1, seeds=1, methods=("best_of",))
    run(learner, TASK, small, tmp_path / "a.json", {"model": "toy"}, progress=False)
    for other, more in (
        (replace(small, budget=16), {"model": "toy"}),
        (small, {"model": "another"}),
    ):
        with pytest.raises(WorkbenchError, match="holds a study with other settings"):
            run(learner, TASK, other, tmp_path / "a.json", more, progress=False)
    # it may grow
    more = run(
        learner,
        TASK,
        replace(small, questions=2),
        tmp_path / "a.json",
        {"model": "toy"},
        progress=False,
    )
    assert len(more["cells"]) == len(curves(more)["best_of"]) == 2
    with pytest.raises(WorkbenchError, match=r"other settings \(questions\)"):
        run(learner, TASK, small, tmp_path / "a.json", {"model": "toy"}, progress=False)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(WorkbenchError, match="is not the record"):
        run(learner, TASK, small, tmp_path / "a.json", progress=False)
    (tmp_path / "a.json").write_text(
        '{"schema_version": 9, "config": {"methods": []}, "base": [], "cells": []}'
    )
    with pytest.raises(WorkbenchError, match="schema version 9"):
        run(learner, TASK, small, tmp_path / "a.json", progress=False)


def test_too_few_hard_questions(learner, tmp_path):
    with pytest.raises(WorkbenchError, match="only 0 of 4 candidates"):
        run(learner, Parrot("no", max_new=1), SMALL, tmp_path / "a.json", progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 40},
        {"budget": 0},
        {"samples": 8},
        {"questions": 0},
        {"below": 0.0},
        {"methods": ()},
        {"methods": ("ppo",)},
    ],
)
def test_a_study_that_cannot_be(options):
    with pytest.raises(WorkbenchError):
        Study(**options)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--budget", "40"], "multiples of the 16"),
        (["--task", "sudoku"], "no task 'sudoku'"),
        (["--lr", "-1"], "lr"),
    ],
)
def test_bad_input_is_one_sentence(tiny_folder, tmp_path, words, says):
    files = ["--model", str(tiny_folder), "--out", str(tmp_path / "a.json")]
    with pytest.raises(WorkbenchError, match=says) as stopped:
        toys.command(discovery, *files, "--task", "arithmetic", *words)
    assert "\n" not in str(stopped.value)
