"""SCOPE against its worked examples, hand arithmetic, autograd, OPD, and the released formula
written out again; and the rescue experiment.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import toys

from workbench.core import Group, Verdict, WorkbenchError
from workbench.methods import find, opd, scope
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE, effective_size, perplexity, weights
from workbench.model.batch import collate, rescore, score
from workbench.model.learner import Learner, OptimConfig
from workbench.spans import Spans
from workbench.studies.teacher_rescue import (
    Paths,
    first_mistake,
    quartiles,
    read_record,
    record,
    teacher_prefix_completion,
)
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update

HALVES = toys.FirstCharacter(toys.HALF, max_new=3)


@pytest.fixture
def given(monkeypatch):
    """Log-probs by rollout in place of models:

    ``given(student, teacher)``, dicts from id to [T] arrays (None: the teacher failed).
    """

    def install(student, teacher):
        monkeypatch.setattr(
            scope, "rescore", lambda policy, rollouts: [(student[id(r)], None) for r in rollouts]
        )
        monkeypatch.setattr(
            scope,
            "teacher_logprobs",
            lambda learner, rollouts, which: [teacher[id(r)] for r in rollouts],
        )
        monkeypatch.setattr(
            opd, "rescore", lambda policy, rollouts: [(student[id(r)], None) for r in rollouts]
        )
        monkeypatch.setattr(
            opd,
            "teacher_logprobs",
            lambda learner, rollouts, which: [teacher[id(r)] for r in rollouts],
        )
        return SimpleNamespace(policy=None, expert="scripted")

    return install


def random_tables(groups, seed=0):
    rng, tables = np.random.default_rng(seed), ({}, {})
    for r in (r for g in groups for r in g.rollouts):
        for table in tables:
            table[id(r)] = -3 * rng.random(len(r.completion_ids)).astype(np.float32)
    return tables


def groups_of_both():
    return [
        toys.group([3, 1, 4, 2, 5, 3], [1, 0, 0, 1, 1, 0]),
        toys.group([5, 2, 7], [0, 0, 0], seed=9),
        toys.group([2, 6], [1, 1], seed=20),
    ]


# ---- weights


def test_worked_examples():
    # 1.2/7.6, 2.6/7.6, 3.8/7.6
    assert weights([1.2, 2.6, 3.8], 1.0) == pytest.approx([0.158, 0.342, 0.500], abs=5e-4)
    # exactly .1923, .2984, .5092
    assert weights([4.5, 2.9, 1.7], -1.0) == pytest.approx([0.192, 0.298, 0.510], abs=1e-3)
    assert weights([1.2, 2.6, 3.8], 0.5) == pytest.approx(
        np.sqrt([1.2, 2.6, 3.8]) / np.sqrt([1.2, 2.6, 3.8]).sum()
    )
    assert weights([7.0], -1.0) == pytest.approx([1.0]) and weights(
        [1e4, 1e300], 30.0
    ) == pytest.approx([0.0, 1.0])
    assert perplexity(np.log([0.5, 0.125])) == pytest.approx(4.0)
    assert effective_size([0.25] * 4) == pytest.approx(4) and effective_size(
        [1.0, 0.0]
    ) == pytest.approx(1)
    assert effective_size([0.158, 0.342, 0.5]) == pytest.approx(2.55, abs=0.01)


def test_credit_by_hand(given):
    """Right: perplexities 2 and 4, so weights 1/3 and 2/3.

    Wrong: the teacher's 2 and 8, so 4/5 and 1/5. Times 2, the size of each subset.
    """
    group = toys.group([1, 2, 2, 1], [1, 1, 0, 0])
    a, b, c, d = map(id, group.rollouts)
    student = {a: np.log([0.5]), b: np.log([0.25, 0.25]), c: np.log([0.5, 0.5]), d: np.log([0.5])}
    teacher = {c: np.log([0.5, 0.5]), d: np.log([0.125])}
    learner = given(student, teacher)
    found = {id(x.rollout): x for x in SCOPE().credit([group], learner)}
    assert (
        found[a].nll == pytest.approx([2 / 3])
        and found[b].nll == pytest.approx([4 / 3] * 2)
        and not found[a].pg.any()
    )
    assert (
        found[c].pg == pytest.approx([0, 0])
        and found[d].pg == pytest.approx([0.4 * np.log(0.25)])
        and not found[d].nll.any()
    )
    assert [found[i].weight for i in (a, b, c, d)] == pytest.approx([1 / 3, 2 / 3, 0.8, 0.2])
    reversed_signs = {
        id(x.rollout): x for x in SCOPE(correct="low", wrong="high").credit([group], learner)
    }
    assert [reversed_signs[i].weight for i in (a, b, c, d)] == pytest.approx(
        [2 / 3, 1 / 3, 0.2, 0.8]
    )
    flat = {
        id(x.rollout): x for x in SCOPE(correct="uniform", wrong="uniform").credit([group], learner)
    }
    assert flat[a].nll == pytest.approx([1.0]) and flat[d].pg == pytest.approx([np.log(0.25)])
    sharp = {id(x.rollout): x for x in SCOPE(tau=0.5).credit([group], learner)}
    assert [sharp[i].weight for i in (a, b, c, d)] == pytest.approx([0.2, 0.8, 16 / 17, 1 / 17])
    paper = {id(x.rollout): x for x in SCOPE(normalise="paper").credit([group], learner)}
    # weight * 4 sequences a problem
    assert paper[a].nll == pytest.approx([4 / 3]) and paper[b].nll == pytest.approx([8 / 3] * 2)
    metrics = SCOPE().diagnose([group], list(found.values()))
    assert metrics == pytest.approx(
        {
            "teacher_failed": 0,
            "perplexity_right": 3,
            "perplexity_wrong": 5,
            "ess_right": 1 / (1 / 9 + 4 / 9) / 2,
            "ess_wrong": 1 / (0.64 + 0.04) / 2,
        }
    )


def test_paths_can_be_switched_off(given):
    groups = groups_of_both()
    learner = given(*random_tables(groups))
    for arm, silent in ((SCOPE(correct="off"), True), (SCOPE(wrong="off"), False)):
        credits = arm.credit(groups, learner)
        assert len(credits) == 11
        for credit in credits:
            speaks = credit.rollout.verdict.correct != silent
            assert (
                bool(credit.pg.any() or credit.nll.any()) == speaks
                and (credit.weight > 0) == speaks
            )


def test_a_failed_teacher_drops_the_sample_and_the_weights_are_those_of_the_rest(given):
    group = toys.group([2, 3, 1, 2], [0, 0, 0, 1])
    student, teacher = random_tables([group])
    failed, *others = group.rollouts[:3]
    learner = given(student, teacher | {id(failed): None})
    credits = SCOPE().credit([group], learner)
    assert [id(c.rollout) for c in credits] == [id(group.rollouts[3]), *map(id, others)]
    assert (
        sum(c.weight for c in credits[1:]) == pytest.approx(1)
        and SCOPE().diagnose([group], credits)["teacher_failed"] == 1
    )


# ---- the loss


def score_by(tables, batch):
    return toys.scores_of(
        batch,
        {"logp": {key: torch.from_numpy(np.asarray(t, np.float32)) for key, t in tables.items()}},
    )


def test_loss_by_hand(given):
    group = toys.group([1, 2, 2, 1], [1, 1, 0, 0])
    a, b, c, d = map(id, group.rollouts)
    student = {a: np.log([0.5]), b: np.log([0.25, 0.25]), c: np.log([0.5, 0.5]), d: np.log([0.5])}
    learner = given(student, {c: np.log([0.5, 0.5]), d: np.log([0.125])})
    ln2 = np.log(2)
    # code: right 2/3 ln 2 + 2 * 4/3 * 2 ln 2 = 6 ln 2 over 3 tokens; wrong .4 * 2 ln 2 over all 6.
    # paper: 1/3 ln 2 + 2/3 * 2 ln 2 + .2 * 2 ln 2
    for how, value in (("code", 2 * ln2 + 0.8 / 6 * ln2), ("paper", (1 / 3 + 4 / 3 + 0.4) * ln2)):
        method = SCOPE(normalise=how)
        [batch] = collate(method.credit([group], learner), 0)
        loss = method.loss(score_by(student, batch), batch)
        assert float(loss.value) == pytest.approx(value, abs=1e-5)
        assert loss.metrics["loss_right"] + loss.metrics["loss_wrong"] == pytest.approx(
            value, abs=1e-5
        )


ARMS = [
    SCOPE(),
    SCOPE(normalise="paper"),
    SCOPE(correct="low", tau=0.5),
    SCOPE(correct="off"),
    SCOPE(wrong="off", normalise="paper"),
    SCOPE(correct="uniform", wrong="uniform"),
]


@pytest.mark.parametrize("method", ARMS, ids=str)
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_credit_is_the_gradient(method, shift, given):
    groups = groups_of_both()
    student, teacher = random_tables(groups)
    [batch] = collate(method.credit(groups, given(student, teacher)), 0)
    scores = score_by(student, batch)
    logp = scores.logp.requires_grad_(True)
    loss = method.loss(
        scores, replace(batch, old_logp=(logp.detach() - shift) * batch.mask) if shift else batch
    )
    [grad] = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(
        -grad * batch.denominators["tokens"], loss.credit, atol=1e-5, rtol=1e-5
    )
    assert (
        loss.per_token.sum() == pytest.approx(float(loss.value), abs=1e-5)
        and not loss.credit[~batch.mask].any()
    )


@pytest.mark.parametrize("method", ARMS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_microbatches_padding_and_order_do_not_matter(method, rows, given):
    groups = groups_of_both()
    student, teacher = random_tables(groups)
    learner = given(student, teacher)

    def by_rollout(batches):
        found, value, metrics = {}, 0.0, defaultdict(float)
        for batch in batches:
            loss = method.loss(score_by(student, batch), batch)
            value += float(loss.value)
            for name, part in loss.metrics.items():
                metrics[name] += part
            found |= {
                id(c.rollout): (per[: len(c.pg)], credit[: len(c.pg)])
                for c, per, credit in zip(batch.credits, loss.per_token, loss.credit)
            }
        return found, value, metrics

    turned = [Group(g.problem, g.rollouts[::-1]) for g in groups[::-1]]
    whole, value, metrics = by_rollout(collate(method.credit(groups, learner), 0))
    parts, sum_of_values, sum_of_metrics = by_rollout(
        collate(method.credit(turned, learner), 0, rows)
    )
    assert sum_of_values == pytest.approx(value, abs=1e-5) and sum_of_metrics == pytest.approx(
        metrics, abs=1e-5
    )
    for key, (per_token, credit) in whole.items():
        torch.testing.assert_close(parts[key][0], per_token)
        torch.testing.assert_close(parts[key][1], credit)


def test_an_all_wrong_group_is_weighted_opd_and_with_equal_weights_opd(given):
    group = toys.group([3, 1, 4], [0, 0, 0])
    student, teacher = random_tables([group])
    learner = given(student, teacher)
    [theirs] = collate(OPD(k=3).credit([group], learner), 0)
    [same] = collate(SCOPE(wrong="uniform").credit([group], learner), 0)
    [ours] = collate(SCOPE().credit([group], learner), 0)
    a = OPD(k=3).loss(score_by(student, theirs), theirs)
    b, c = (SCOPE().loss(score_by(student, batch), batch) for batch in (same, ours))
    torch.testing.assert_close(a.credit, b.credit)
    torch.testing.assert_close(a.per_token, b.per_token)
    w = 3 * weights([perplexity(teacher[id(r)]) for r in group.rollouts], -1.0)
    torch.testing.assert_close(c.credit, a.credit * torch.tensor(w, dtype=torch.float32)[:, None])


def test_an_all_right_group_has_the_gradient_of_nll(given):
    group = toys.group([3, 1, 4], [1, 1, 1])
    student, teacher = random_tables([group])
    method = SCOPE(correct="uniform")
    [batch] = collate(method.credit([group], given(student, teacher)), 0)
    scores = score_by(student, batch)
    logp = scores.logp.requires_grad_(True)
    [grad] = torch.autograd.grad(method.loss(scores, batch).value, logp)
    torch.testing.assert_close(grad, batch.mask / -8.0)


# ---- the released formula, with its own flags


def released_weights(
    group_of,
    right,
    logp_s,
    logp_t,
    mask,
    student_positive,
    teacher_positive,
    tau,
    use_student,
    use_teacher,
):
    """Softmax over the group's subset of sign * mean log-prob / tau, times its size; sign +1 for a
    "positive" flag. So "positive" favours low perplexity, and the paper's student weight is the
    flag false. Without the weights of a path, 1 on it.
    """
    length = mask.sum(-1)
    found = [torch.zeros(len(mask)), torch.zeros(len(mask))]
    for path, wanted, table, positive, use in (
        (0, True, logp_s, student_positive, use_student),
        (1, False, logp_t, teacher_positive, use_teacher),
    ):
        mean = (table * mask).sum(-1) / length * (1.0 if positive else -1.0) / tau
        for g in set(group_of):
            rows = [i for i in range(len(mask)) if group_of[i] == g and right[i] == wanted]
            if rows:
                found[path][rows] = torch.softmax(mean[rows], 0) * len(rows) if use else 1.0
    return found


def released_loss(logp, old, logp_t, w_s, w_t, mask):
    """Reward log T - log S on the wrong path times its weight, as the advantage of PPO's loss with
    both of its clips (0.2; 3), mean over all tokens; plus -log pi times the student weight, mean
    over the tokens of right answers.
    """
    advantages, ratio = (logp_t - old) * w_t[:, None], (logp - old).exp()
    clipped = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    clipped = torch.where(advantages < 0, torch.min(-advantages * 3, clipped), clipped)
    right = (w_s > 0)[:, None] * mask
    return (clipped * mask).sum() / mask.sum() + (-logp * w_s[:, None] * right).sum() / right.sum()


RELEASED = {
    "paper": ({}, (False, True, 1.0, True, True)),
    "scripts": ({"correct": "low"}, (True, True, 1.0, True, True)),
    "sharp": ({"tau": 0.4}, (False, True, 0.4, True, True)),
    "both reversed": ({"correct": "low", "wrong": "high"}, (True, False, 1.0, True, True)),
    "no student weights": ({"correct": "uniform"}, (False, True, 1.0, False, True)),
    "no weights": ({"correct": "uniform", "wrong": "uniform"}, (False, True, 1.0, False, False)),
}


@pytest.mark.parametrize("options, flags", RELEASED.values(), ids=RELEASED)
def test_loss_and_gradient_equal_the_released(options, flags, given):
    groups = groups_of_both()
    student, teacher = random_tables(groups, seed=5)
    method = SCOPE(**options)
    [batch] = collate(method.credit(groups, given(student, teacher)), 0)
    scores = score_by(student, batch)
    logp_t = score_by(teacher, batch).logp
    rollouts, mask = [c.rollout for c in batch.credits], batch.mask.float()
    group_of = [
        next(i for i, g in enumerate(groups) if any(r is x for x in g.rollouts)) for r in rollouts
    ]
    w = released_weights(
        group_of, [r.verdict.correct for r in rollouts], scores.logp, logp_t, mask, *flags
    )
    ours, theirs = (
        scores.logp.clone().requires_grad_(True),
        scores.logp.clone().requires_grad_(True),
    )
    value, wanted = (
        method.loss(replace(scores, logp=ours), batch).value,
        released_loss(theirs, scores.logp, logp_t, *w, mask),
    )
    value.backward()
    wanted.backward()
    torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert abs(float(wanted)) > 0.1


# ---- models


def test_a_teacher_equal_to_the_policy_teaches_nothing_on_the_wrong_path():
    learner = Learner(tiny.policy(), expert=tiny.policy())
    record = update(
        SCOPE(k=4, correct="off"), learner, HALVES, HALVES.problems("train", 3, 0), (0,), rows=5
    )
    assert record.metrics["grad_norm"] == 0 and 0 < record.metrics["correct"] < 1
    record = update(SCOPE(k=4), learner, HALVES, HALVES.problems("train", 3, 0), (0,), rows=5)
    assert record.metrics["grad_norm"] > 0 and record.metrics["loss_wrong"] == 0
    assert set(record.metrics) >= {
        "ess_right",
        "ess_wrong",
        "perplexity_right",
        "perplexity_wrong",
        "teacher_failed",
    }


@pytest.mark.parametrize("normalise", ["code", "paper"])
def test_an_all_wrong_batch_moves_the_parameters_as_opd_does(normalise):
    """With equal weights, through two models; by the paper's mean only where all lengths are the
    same.
    """
    learner, groups = (
        Learner(tiny.policy(), expert=tiny.policy(seed=3)),
        [toys.group([4, 4], [0, 0]), toys.group([4, 4], [0, 0], seed=9)],
    )
    found = []
    for method in (OPD(), SCOPE(wrong="uniform", normalise=normalise)):
        [batch] = collate(method.credit(groups, learner), 0)
        method.loss(score(learner, batch, method), batch).value.backward()
        found.append([p.grad.clone() for p in learner.parameters])
        learner.optimizer.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        assert a.abs().max() > 1e-3


def test_the_disabled_adapter_can_be_the_teacher():
    learner, group = (
        Learner(tiny.policy(), lora=2, expert=tiny.policy()),
        toys.group([4, 2, 3], [0, 0, 1]),
    )
    zero = [
        c
        for c in SCOPE(teacher="reference").credit([group], learner)
        if not c.rollout.verdict.correct
    ]
    assert not any(c.pg.any() for c in zero)  # the adapter has not moved: the policy is its base
    tiny.shake_adapter(learner.policy.model)
    for a, b in zip(
        *(SCOPE(teacher=teacher).credit([group], learner) for teacher in ("reference", "expert")),
        strict=True,
    ):
        np.testing.assert_allclose(a.pg, b.pg, atol=1e-4)
        assert (
            a.weight == pytest.approx(b.weight, abs=1e-4)
            and a.pg.any() != a.rollout.verdict.correct
        )


def test_it_learns_from_its_own_right_answers():
    learner, method = (
        Learner(tiny.policy(), OptimConfig(lr=1e-2), expert=tiny.policy()),
        SCOPE(k=8, wrong="off"),
    )
    found = [
        update(method, learner, HALVES, HALVES.problems("train", 4, 0), (0, step)).metrics[
            "correct"
        ]
        for step in range(30)
    ]
    assert np.mean(found[-3:]) > 0.85 > 0.75 > np.mean(found[:3])


def test_no_teacher_is_refused():
    with pytest.raises(WorkbenchError, match="SCOPE learns from a stronger model"):
        SCOPE().sample(Learner(tiny.policy()), HALVES, HALVES.problems("train", 1, 0), (0,))
    assert find("scope") is SCOPE and find("opd") is OPD


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"tau": 0.0},
        {"normalise": "sum"},
        {"correct": "off", "wrong": "off"},
        {"wrong": "best"},
        {"teacher": "self"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        SCOPE(**options)


# ---- can the teacher complete a wrong path?


def test_quartiles_by_hand():
    assert list(quartiles([5.0, 1.0, 3.0, 2.0])) == [4, 1, 3, 2]
    assert list(quartiles([1.0, 1.0, 1.0, 1.0, 9.0])) == [1, 1, 2, 3, 4]
    assert sorted(quartiles(np.arange(10)[::-1])) == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_rescue_against_a_teacher_whose_answer_is_known(monkeypatch):
    """The task pays for "7" in second place; wrong paths have it nowhere.

    A teacher that always writes "7" rescues what is cut after one token, and nothing that is cut
    later. Perplexity is that of the whole wrong path, whatever the ratio.
    """

    class Second(toys.FirstCharacter):
        def grade(self, problem, text):
            return Verdict(float(text[1:2] == "7"), text[1:2] == "7")

    teacher, task = tiny.policy(), Second("7", max_new=4)
    seven = teacher.tokenizer.convert_tokens_to_ids("7")
    generator = np.random.default_rng(0)
    letters = teacher.tokenizer("abcdefghijklmnop")["input_ids"]
    problems = task.problems("train", 4, 0)
    groups = [
        Group(
            p,
            tuple(
                replace(
                    toys.rollout(4, reward),
                    prompt_ids=teacher.prompt_ids(p.messages),
                    finished=False,
                    completion_ids=tuple(int(i) for i in generator.choice(letters, 4)),
                )
                for reward in (0, 0, 1)
            ),
        )
        for p in problems
    ]
    from workbench.rollouts import prefixes
    from workbench.rollouts.sampling import Sample

    calls = []

    def sevens(policy, prompts, seeds, *, max_new, temperature=1.0):
        calls.append((len(prompts), max_new))
        return [
            [Sample((seven,) * n, (0.0,) * n, False) for _ in row] for row, n in zip(seeds, max_new)
        ]

    monkeypatch.setattr(prefixes, "generate", sevens)
    paths = teacher_prefix_completion(teacher, task, groups, ratios=(0.25, 0.5), samples=3)
    # the right rollouts are not asked about; the prefix counts in the budget
    assert calls == [(8, [3] * 8), (8, [2] * 8)]
    assert paths.rescued.tolist() == [[1.0, 0.0]] * 8
    wrong = [r for g in groups for r in g.rollouts if not r.verdict.correct]
    # of the whole path, whatever the ratio
    assert paths.perplexity == pytest.approx(
        [np.exp(-logp.mean()) for logp, _ in rescore(teacher, wrong)]
    )


def test_cells_and_gaps_by_hand(tmp_path):
    """Eight paths, two a quartile.

    Of the two surest .75 and .25 are rescued, of the two least sure none; at the second ratio
    nobody is.
    """
    rescued = np.array([[0, 0], [0.75, 0], [0, 0], [0.25, 0], [1, 0], [1, 0], [1, 0], [0.5, 0]])
    paths = Paths(
        (0.2, 0.8), np.array([8.0, 1, 7, 2, 6, 3, 5, 4]), rescued, np.array([0.2] * 7 + [np.nan])
    )
    cells = paths.cells()
    assert [(c.quartile, c.ratio, c.paths) for c in cells] == [
        (q, ratio, 2) for q in (1, 2, 3, 4) for ratio in (0.2, 0.8)
    ]
    assert [c.rescued for c in cells[::2]] == [0.5, 0.75, 1.0, 0.0] and [
        c.perplexity for c in cells[::2]
    ] == [1.5, 3.5, 5.5, 7.5]
    assert (cells[0].low, cells[0].high) == (0.25, 0.75) and not any(c.rescued for c in cells[1::2])
    early, late = paths.gaps()
    assert early == (0.2, 8, 0.5, 0.25, 0.75) and late == (0.8, 8, 0.0, 0.0, 0.0)
    # seven and none: where nothing is known of the mistake it is neither
    assert paths.gaps("given") == paths.gaps("ahead") == []
    (tmp_path / "r.json").write_text(record(paths, {"seed": 3}))
    assert read_record(tmp_path / "r.json").cells() == cells and np.isnan(
        read_record(tmp_path / "r.json").mistake[-1]
    )
    (tmp_path / "r.json").write_text("{}")
    for name in ("r.json", "none.json"):
        with pytest.raises(WorkbenchError, match=f"{name} holds no record of a rescue experiment"):
            read_record(tmp_path / name)


def test_gaps_of_two_kinds_of_path():
    """Sure and late against unsure and early: over all paths perplexity seems to tell whom the
    teacher can help, among those it was given the mistake of, it does not. And the intervals are
    those of a difference of two means.
    """
    rng, late = np.random.default_rng(1), np.arange(800) < 400
    rescued = np.where(late, rng.random(800) < 0.9, rng.random(800) < 0.2).astype(float)[:, None]
    paths = Paths((0.5,), np.arange(800.0), rescued, np.where(late, 0.8, 0.5))
    [[every], [given], [ahead]] = (paths.gaps(mistake) for mistake in ("any", "given", "ahead"))
    assert (every.paths, given.paths, ahead.paths) == (800, 400, 400)
    assert every.low > 0.6 and given.low < 0 < given.high and ahead.low < 0 < ahead.high
    sure, unsure = rescued[:200, 0], rescued[600:, 0]
    error = np.sqrt(sure.var() / 200 + unsure.var() / 200)
    assert every.mean == pytest.approx(sure.mean() - unsure.mean())
    assert (every.low, every.high) == pytest.approx(
        (every.mean - 1.96 * error, every.mean + 1.96 * error), abs=0.01
    )


def test_the_place_of_the_first_mistake():
    """The end of the first wrong line, of the tokens before the end-of-turn token.

    One token a character, phrases apart.
    """
    policy, task = tiny.policy(), Arithmetic(steps=2)
    problem = task.problem("7+5-3")

    def place(text):
        ids = policy.completion_ids(text)
        return first_mistake(
            task,
            problem,
            Spans(replace(toys.rollout(len(ids)), completion_ids=ids, text=text), policy.decode),
        )

    # a line of seven tokens, another one, and two or more
    first, second = "7+5=11\n11-3=8\nAnswer 8", "7+5=12\n12-3=8\nAnswer 8"
    assert place(first) == pytest.approx(7 / (len(policy.completion_ids(first)) - 1)) and place(
        second
    ) == pytest.approx(2 * place(first))
    assert place("7+5=12\n") == 1.0  # the step that is wrong was never written
    assert np.isnan(place("7+5=12\n12-3=9\nAnswer 9"))


def test_rescue_runs_with_a_model_and_refuses_too_little():
    task = Arithmetic(steps=1)
    policy = tiny.policy()
    groups = SCOPE(k=4, teacher="reference").sample(
        Learner(policy), task, task.problems("train", 2, 0), (0,)
    )
    paths = teacher_prefix_completion(policy, task, groups, samples=2)
    assert paths.rescued.shape == (8, 4) and np.array_equal(
        paths.perplexity,
        teacher_prefix_completion(policy, task, groups, ratios=(0.2,), samples=1).perplexity,
    )
    with pytest.raises(WorkbenchError, match="four wrong rollouts or more, there are 1"):
        teacher_prefix_completion(policy, task, [toys.group([2], [0])])
