"""One reading Delta, several uses: hand arithmetic, and what each paper says must not happen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from workbench.core import Group, Problem, Scores, Verdict, WorkbenchError
from workbench.methods.cast import CAST
from workbench.methods.credit import CREDIT
from workbench.methods.grpo import GRPO
from workbench.methods.rlcsd import RLCSD
from workbench.methods.rlrt import RLRT
from workbench.methods.rlsd import RLSD
from workbench.methods.sdpo import SDPO, teacher_prompt
from workbench.model.batch import collate, rescore
from workbench.model.learner import FrozenLearner, Learner
from workbench.tasks.prompts import reprompt

DELTA = np.log([2.0, 1.0, 0.5, 1.1])
POLICY = toys.tiny_policy()
LEARNER = FrozenLearner(POLICY)


def written(*texts: str, right: tuple[int, ...] = (0,), name: str = "q", ask: str = "1+1") -> Group:
    """A group of attempts with these texts, of which ``right`` are right."""
    problem = Problem(name, ({"role": "user", "content": ask},), "2")
    prompt, rollouts = POLICY.prompt_ids(problem.messages), []
    for i, text in enumerate(texts):
        ids = POLICY.completion_ids(text)
        verdict = Verdict(float(i in right), i in right)
        blank = toys.rollout(len(ids))
        more = {"prompt_ids": prompt, "completion_ids": ids, "text": text, "verdict": verdict}
        rollouts.append(replace(blank, **more))
    return Group(problem, tuple(rollouts))


def logp(rollout, **shown) -> np.ndarray:
    """[T] of a completion after the reprompt with a solution, or after the plain prompt."""
    prompt = POLICY.prompt_ids(reprompt(written("1").problem, **shown))
    return rescore(POLICY, [replace(rollout, prompt_ids=prompt)])[0][0]


def test_rlsd_changes_sizes_and_no_sign():
    method = RLSD(lam=0.5, eps=0.2)
    # exp(Delta) = 2, 1, .5, 1.1, held to .8 .. 1.2
    np.testing.assert_allclose(method.shaped(2.0, DELTA), 2 * np.array([1.1, 1, 0.9, 1.05]))
    # exp(-Delta) = .5, 1, 2, 1/1.1
    np.testing.assert_allclose(
        method.shaped(-2.0, DELTA), -2 * np.array([0.9, 1, 1.1, 0.5 + 0.5 / 1.1])
    )
    np.testing.assert_array_equal(RLSD(lam=0.0).shaped(-1.5, DELTA), np.full(4, -1.5))


def test_rlrt_raises_what_the_teacher_would_not_have_written_in_right_rollouts_only():
    method = RLRT(lam=0.5, eps=0.2)
    np.testing.assert_allclose(method.shaped(2.0, DELTA), 2 * np.array([1, 1, 1.1, 1]))
    np.testing.assert_array_equal(method.shaped(-2.0, DELTA), np.full(4, -2.0))


def test_cast_flips_both_ways_the_positive_one_bounded():
    method = CAST(lam=1.0, clip=3.0, bound=0.5)
    delta = np.array([-2.0, -0.5, 0.0, 1.0])
    np.testing.assert_allclose(method.shaped(1.0, delta), [-1.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(method.shaped(-1.0, delta), [-1.0, -1.0, -1.0, 0.0])
    assert method.shaped(-1.0, np.array([99.0]))[0] == 0.5
    same = written("1", "2", right=(0, 1))
    assert CAST().advantages(same) == [0.1, 0.1] and GRPO().advantages(same) == [0.0, 0.0]
    assert CAST().advantages(written("1", "2", right=())) == [-0.1, -0.1]


def test_cast_without_a_hint_is_grpo_while_the_teacher_is_the_policy():
    group = written("1\n2", "1\n3", "5")
    cast = CAST(demonstration="none").credit([group], LEARNER)
    for credit, advantage in zip(cast, GRPO().advantages(group)):
        np.testing.assert_allclose(credit.pg, advantage, rtol=1e-6)


@pytest.mark.parametrize("kind", [RLSD, RLRT, CAST, CREDIT])
def test_delta_is_the_teachers_word_less_the_policys(kind):
    """One right attempt: what the two wrong ones are shown, and nothing shown to itself."""
    group = written("1\n2", "1\n3", "5")
    right, *wrong = kind().deltas([group], LEARNER)
    np.testing.assert_array_equal(right, np.zeros(len(right)))
    for rollout, delta in zip(group.rollouts[1:], wrong):
        by_hand = logp(rollout, solution="1\n2") - logp(rollout)
        np.testing.assert_allclose(delta, by_hand, atol=1e-5)
        assert np.abs(delta).max() > 1e-4


def test_rlcsd_moves_a_token_by_a_bounded_step_and_never_past_zero():
    method = RLCSD(lam=0.5, tau=0.02, least=0.02)
    delta = np.array([-9.0, 0.02, 0.0005, 0.0, 9.0])
    step = 0.5 * np.tanh(1)
    np.testing.assert_allclose(method.shaped(2.0, delta), [1.5, 2 + step, 2, 2, 2.5])
    np.testing.assert_allclose(method.shaped(-0.3, delta), [-0.8, 0, -0.3, -0.3, 0], atol=1e-12)
    np.testing.assert_array_equal(method.shaped(0.0, delta), np.zeros(5))


def test_rlcsd_compares_a_right_hint_with_the_mean_of_wrong_ones():
    group = written("1\n2", "1\n3", "5", "9")
    right, *others = RLCSD().deltas([group], LEARNER)
    np.testing.assert_array_equal(right, np.zeros(len(right)))  # no other right one to show
    texts = [rollout.text for rollout in group.rollouts]
    for i, delta in enumerate(others, 1):
        rollout = group.rollouts[i]
        wrong = [logp(rollout, solution=text) for text in texts[1:] if text != texts[i]]
        mean = np.log(np.mean(np.exp(wrong), axis=0))
        np.testing.assert_allclose(delta, logp(rollout, solution=texts[0]) - mean, atol=1e-5)


def test_rlcsd_reads_no_more_wrong_hints_than_it_was_told():
    group = written("1\n2", "1\n3", "5", "9")
    _, first, *_ = RLCSD(wrong=1).deltas([group], LEARNER)
    rollout = group.rollouts[1]
    right = logp(rollout, solution="1\n2")
    by_hand = [right - logp(rollout, solution=shown) for shown in ("5", "9")]
    assert any(np.allclose(first, one, atol=1e-5) for one in by_hand)


def test_rlcsd_of_hints_that_do_the_same_is_grpo():
    """Two groups in which the wrong hint is, word for word, the right one."""
    group = written("7", "7", "7", right=(0,))
    for credit, advantage in zip(RLCSD().credit([group], LEARNER), GRPO().advantages(group)):
        np.testing.assert_allclose(credit.pg, advantage, rtol=1e-5)


def test_credit_takes_off_what_the_hint_makes_likely_under_other_problems():
    one = written("1\n2", "1\n3")
    two = written("4\n2", "4\n4", name="r", ask="8/2")
    three = written("6", "9", name="s", ask="3*3")
    rollout = one.rollouts[1]
    base = []
    for group in (two, three):
        prompt = teacher_prompt(POLICY, group.problem, rollout, "1\n2", "")
        base.append(rescore(POLICY, [replace(rollout, prompt_ids=prompt)])[0][0])
    plain = logp(rollout, solution="1\n2") - logp(rollout)
    credits = CREDIT(lam=0.5).credit([one, two, three], LEARNER)
    np.testing.assert_allclose(credits[1].pg, plain - 0.5 * np.mean(base, axis=0), atol=1e-5)
    np.testing.assert_array_equal(credits[0].pg, 0)  # nobody right but itself
    [_, alone] = CREDIT().credit([one], LEARNER)
    np.testing.assert_allclose(alone.pg, plain, atol=1e-5)


def test_pass_rate_weights_have_mean_1_and_favour_the_middle():
    """Of 4: 2 right, 1 right, all right: sqrt(1/4), sqrt(3/16), 0. Who is the only right one of its
    group is not distilled and does not count.
    """
    groups = [
        written("1", "2", "3", "4", right=(0, 1)),
        written("1", "2", "3", "4", right=(0,), name="r"),
        written("1", "1", "1", "1", right=(0, 1, 2, 3), name="s"),
    ]
    credits = SDPO(by_pass_rate=True).credit(groups, LEARNER)
    middle, low = 0.5, math.sqrt(3) / 4
    mean = (4 * middle + 3 * low + 4 * 0) / 11
    by_rollout = [*[middle / mean] * 4, 0.0, *[low / mean] * 3, *[0.0] * 4]
    for credit, weight in zip(credits, by_rollout):
        np.testing.assert_allclose(credit.kl, weight, rtol=1e-6)


def test_ascent_is_the_opposite_of_descent_and_gated_by_the_teachers_entropy():
    group = written("1\n2", "1\n3", "5")
    learner = Learner(toys.tiny_policy())

    def credit(method, entropy):
        [batch] = collate(method.credit([group], learner), POLICY.pad_id)
        shape = batch.mask.shape
        rng = np.random.default_rng(0)
        number = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
        teacher = torch.full(shape, entropy)
        scores = Scores(number, number, None, number, number, number, number, teacher)
        return method.loss(scores, batch).credit

    down, up = SDPO(), SDPO(ascend=True, gate=0.3)
    np.testing.assert_allclose(credit(up, 0.4), -credit(down, 0.4))
    assert credit(down, 0.2).abs().max() > 0 and credit(up, 0.2).abs().max() == 0


def test_ascent_of_jensen_shannon_is_antisds_bounded_advantage():
    """Shen et al. 2026: -(softplus(Delta) - log 2) / 2 on the sampled token."""
    from workbench.inspection.credit import realised_credit

    method = SDPO(ascend=True, a=0.5, top_k=0)
    group = written("1\n2", "1\n3", "5", right=(0, 1))
    learner = Learner(toys.tiny_policy())
    sampled = [replace(r, logprobs=logp(r)) for r in group.rollouts]  # importance weights of 1
    group = Group(group.problem, tuple(sampled))
    found = realised_credit(learner, group, method).credit
    for i, other in ((0, 1), (1, 0)):  # two right ones: each is shown the other
        rollout = sampled[i]
        delta = logp(rollout, solution=sampled[other].text) - logp(rollout)
        expected = -(np.logaddexp(0, delta) - math.log(2)) / 2
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_onset_spares_what_the_nearest_right_sibling_has_too():
    """A right first line, then a wrong one: distilled from that on; right attempts not at all."""
    group = written("1+1=2\n2+2=4", "1+1=2\n2+2=5\n5", "1+1=3", "1+1=2\n2+2=4", right=(0, 3))
    credits = SDPO(onset=True).credit([group], LEARNER)
    first = len(POLICY.completion_ids("1+1=2\n")) - 1
    np.testing.assert_array_equal(credits[0].kl, 0)
    np.testing.assert_array_equal(credits[3].kl, 0)
    np.testing.assert_array_equal(credits[1].kl, np.arange(len(credits[1].kl)) >= first)
    np.testing.assert_array_equal(credits[2].kl, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RLSD(k=1),
        lambda: RLRT(lam=1.5),
        lambda: RLCSD(tau=0.0),
        lambda: RLCSD(wrong=0),
        lambda: RLSD(teacher="mixed"),
        lambda: SDPO(ascend=True, srpo=True),
        lambda: SDPO(gate=-1.0),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make):
    with pytest.raises(WorkbenchError, match="takes"):
        make()
