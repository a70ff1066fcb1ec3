"""V and A against exact enumeration on a policy of three tokens, and scores that theory knows.

The toy policy is a table: the chance of each of three tokens ("0", "1", end of turn) depends on
what was written. Its engine takes the place of vLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
import toys

from workbench.core import Group, Problem, Rollout, Step, Verdict, WorkbenchError
from workbench.inspection import credit_scores, true_credit
from workbench.inspection.credit import RealisedCredit, realised_credit, realised_credits
from workbench.inspection.credit_scores import (
    compare_gradients,
    gradients,
    ideal_gradients,
    token_scores,
)
from workbench.inspection.true_credit import TrueCredit, expected_cost
from workbench.inspection.true_credit import true_credit as measure
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.model.batch import collate
from workbench.model.learner import Learner
from workbench.rollouts import sampling
from workbench.rollouts.sampling import Sample, sample_groups
from workbench.training.update import accumulate

POLICY = toys.tiny_policy()
ZERO, ONE = (POLICY.completion_ids(c)[0] for c in "01")
END = POLICY.tokenizer.eos_token_id
LONGEST = 5
QUESTIONS = tuple(Problem(f"p{i}", ({"role": "user", "content": str(i)},), "") for i in range(4))


@dataclass(frozen=True)
class Odd:
    """Right iff an odd number of ones was written, and the turn ended or not."""

    name = "odd"
    max_new: int = LONGEST

    def grade(self, problem, text):
        right = text.count("1") % 2 == 1
        return Verdict(float(right), right)

    def first_error(self, problem, text):
        return Step(1, 0, 0) if text.count("1") % 2 == 0 else None


TASK = Odd()


class Table:
    """An engine that writes by a table; ``sure``: after a 1 the turn ends, almost always."""

    def __init__(self, sure: float = 0.0):
        self.sure = sure
        self.chances = cache(self.chances)
        self.plain = [POLICY.prompt_ids(question.messages) for question in QUESTIONS]

    def chances(self, problem: int, written: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng((problem, *written))
        chances = rng.dirichlet((1.5, 1.5, 0.5))
        if self.sure and written and written[-1] == ONE:
            chances = np.array([(1 - self.sure) / 2, (1 - self.sure) / 2, self.sure])
        return chances

    def generate(self, prompts, seeds, budgets, temperature, top_p=1.0):
        results = []
        for prompt, row, budget in zip(prompts, seeds, budgets):
            problem, written = self.read(prompt)
            results.append([self.write(problem, written, s, budget) for s in row])
        return results

    def read(self, prompt) -> tuple[int, tuple[int, ...]]:
        for i, plain in enumerate(self.plain):
            if prompt[: len(plain)] == plain:
                return i, prompt[len(plain) :]
        raise AssertionError("not a prompt of ours")

    def write(self, problem, written, seed, budget) -> Sample:
        rng = np.random.default_rng(seed)
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < budget and (not ids or ids[-1] != END):
            chances = self.chances(problem, (*written, *ids))
            token = min(int((chances.cumsum() < rng.random()).sum()), 2)
            ids.append((ZERO, ONE, END)[token])
            logprobs.append(float(np.log(chances[token])))
        return Sample(tuple(ids), tuple(logprobs), ids[-1] == END)

    def value(self, problem: int, written: tuple[int, ...]) -> float:
        """V by enumeration."""
        if len(written) == LONGEST or written[-1:] == (END,):
            return float(written.count(ONE) % 2)
        after = [self.value(problem, (*written, token)) for token in (ZERO, ONE, END)]
        return float(self.chances(problem, written) @ after)


@pytest.fixture
def policy():
    return toy(Table())


def toy(engine: Table):
    policy = toys.tiny_policy()
    policy.engine = engine
    return policy


def groups_of(policy, k: int = 5, seed: int = 0) -> list[Group]:
    return sample_groups(policy, TASK, QUESTIONS, k, (seed,))


def exact(policy, group: Group) -> list[np.ndarray]:
    """[T + 1] V along each rollout."""
    place = QUESTIONS.index(group.problem)
    rows = []
    for rollout in group.rollouts:
        ids = rollout.completion_ids
        rows.append(np.array([policy.engine.value(place, ids[:t]) for t in range(len(ids) + 1)]))
    return rows


def flat(rows) -> np.ndarray:
    return np.concatenate(list(rows), axis=-1)


# ---- V and A


def test_values_are_those_of_enumeration(policy):
    groups = groups_of(policy)
    worst = 0.0
    for group, truth in zip(groups, measure(policy, TASK, groups, 400, 0)):
        for values, mean in zip(exact(policy, group), truth.values):
            worst = max(worst, np.abs(mean.mean(0) - values).max())
            np.testing.assert_allclose(mean[:, -1], values[-1])
    assert worst < 4.5 * np.sqrt(0.25 / 400)


def test_advantages_sum_to_the_reward_less_the_value_of_the_prompt(policy):
    groups = groups_of(policy)
    for group, truth in zip(groups, measure(policy, TASK, groups, 6, 0)):
        for rollout, halves, values in zip(group.rollouts, truth.halves, truth.values):
            np.testing.assert_allclose(halves.sum(1), rollout.verdict.reward - values[:, 0])


def test_a_real_network_is_continued_by_its_own_sampler():
    """V before the first of two characters, by a forward pass over the vocabulary."""
    policy, task = toys.tiny_policy(hidden=16), toys.FirstCharacter(toys.HALF, max_new=2)
    problems = task.problems("train", 1, 0)
    [group] = sample_groups(policy, task, problems, 4, (0,))
    [truth] = measure(policy, task, [group], 600, 0)
    prompt = torch.tensor([policy.prompt_ids(problems[0].messages)])
    chances = policy.model(prompt).logits[0, -1].softmax(-1)
    right = [policy.decode([i])[:1] in toys.HALF and policy.decode([i]) != "" for i in range(128)]
    value = float(chances[torch.tensor(right)].sum().detach())
    for values in truth.values:
        assert abs(values[:, 0].mean() - value) < 4.5 * np.sqrt(value * (1 - value) / 600)
        assert set(values[:, 1:].flatten()) <= {0.0, 1.0}  # the first character decides


def test_shared_prefixes_are_continued_once_and_the_cost_is_known_before(policy):
    groups = groups_of(policy, k=8)
    together = measure(policy, TASK, groups, 40, 0)
    assert sum(truth.cost for truth in together) == pytest.approx(
        expected_cost(groups, 40), rel=0.25
    )
    double = measure(policy, TASK, [groups[0], groups[0]], 40, 0)
    assert double[1].cost == 0 and double[0].cost == together[0].cost


def test_order_and_batch_size_change_nothing(policy, monkeypatch):
    groups = groups_of(policy)
    once = measure(policy, TASK, groups, 8, 3, error=0.1)
    monkeypatch.setattr(true_credit, "AT_ONCE", 3)
    again = measure(policy, TASK, groups[::-1], 8, 3, error=0.1)[::-1]
    for one, other in zip(once, again):
        np.testing.assert_array_equal(flat(one.values), flat(other.values))
        np.testing.assert_array_equal(flat(one.errors), flat(other.errors))


def test_rows_and_padding_change_nothing_on_a_network(monkeypatch):
    policy, task = toys.tiny_policy(hidden=16), toys.FirstCharacter(toys.HALF, max_new=4)
    longer = Problem("long", ({"role": "user", "content": "1234567890" * 3},), "")
    [one, other] = sample_groups(policy, task, [*task.problems("train", 1, 0), longer], 2, (0,))
    alone = measure(policy, task, [one], 6, 0)[0]
    monkeypatch.setattr(sampling, "ROWS", 5)
    beside = measure(policy, task, [other, one], 6, 0)[1]
    np.testing.assert_array_equal(flat(alone.values), flat(beside.values))


def test_standard_errors_cover(policy):
    """Over repeated runs the truth is within 1.96 standard errors 95 times in 100, and the errors
    are not idly large.
    """
    groups = groups_of(policy)[:2]
    truth = np.concatenate([np.diff(v) for group in groups for v in exact(policy, group)])
    standard, inside = [], []
    for seed in range(25):
        runs = measure(policy, TASK, groups, 20, seed, certain=0.0)
        error = flat([flat(run.errors) for run in runs])
        off = (flat([flat(run.advantage) for run in runs]) - truth)[error > 0]
        standard.append(off / error[error > 0])
        inside.append(np.abs(standard[-1]) < 1.96)
    assert 0.92 < np.mean(inside) < 0.995
    assert 0.7 < np.std(standard) < 1.05


def test_a_stated_error_is_reached_where_values_differ_and_the_halves_stay_unbiased(policy):
    groups = groups_of(policy)[:2]
    rows = [v for group in groups for v in exact(policy, group)]
    truth = np.concatenate([np.diff(v) for v in rows])
    halves, errors, costs = [], [], []
    for seed in range(15):
        plain = measure(policy, TASK, groups, 16, seed)
        runs = measure(policy, TASK, groups, 16, seed, error=0.05)
        halves.append(flat([flat(run.halves) for run in runs]))
        errors.append(flat([flat(run.errors) for run in runs]))
        costs.append([sum(run.cost for run in r) for r in (plain, runs)])
    large = np.abs(truth) > 0.5
    assert np.median(np.array(errors)[:, large]) < 0.06
    before, after = np.sum(costs, axis=0)
    assert before < after < 14 * before
    for half in np.moveaxis(np.array(halves), 1, 0):
        error = half.std(0) / np.sqrt(len(half)) + 1e-9
        assert np.abs((half.mean(0) - truth) / np.maximum(error, 0.005)).max() < 4.5
    product = np.mean([(a * b).sum() for a, b in halves])
    assert product == pytest.approx(float(truth @ truth), rel=0.15)


class Steep(Table):
    """V is about .3 before the first token and 0 after a 0: noise on one side of it only."""

    def chances(self, problem: int, written: tuple[int, ...]) -> np.ndarray:
        after = {(): (0.6, 0.4, 0), (ZERO,): (0, 0, 1)}
        return np.array(after.get(written, (0, 0.25, 0.75)))


def test_what_a_stated_error_adds_does_not_bias_the_halves_nor_their_product():
    """Where the halves chose their own numbers A was 5 % and its square 15 % too large here."""
    policy = toy(Steep())
    ids = ZERO, END
    rollout = Rollout(
        POLICY.prompt_ids(QUESTIONS[0].messages), ids, (-0.5, 0.0), "0", Verdict(0, False)
    )
    groups = [Group(replace(QUESTIONS[0], id=f"same {i}"), (rollout,)) for i in range(900)]
    truths = measure(policy, TASK, groups, 16, 0, error=0.1, certain=0.0)
    halves = np.array([truth.halves[0][:, 0] for truth in truths])
    value = policy.engine.value(0, ())
    for sample, expected in ((halves.mean(1), -value), (halves.prod(1), value**2)):
        error = sample.std() / np.sqrt(len(sample))
        assert error < 0.0045 and abs(sample.mean() - expected) < 3 * error


def test_almost_certain_tokens_are_free_and_cost_next_to_no_truth():
    policy = toy(Table(sure=0.9995))
    groups = groups_of(policy, k=8)
    every = measure(policy, TASK, groups, 40, 0, certain=0.0)
    fewer = measure(policy, TASK, groups, 40, 0)
    assert sum(t.cost for t in fewer) < 0.9 * sum(t.cost for t in every)
    ends = 0
    for group, truth in zip(groups, fewer):
        for rollout, advantage, values in zip(
            group.rollouts, truth.advantage, exact(policy, group)
        ):
            sure = np.exp(rollout.logprobs) > 0.999
            ends += sure.sum()
            assert (advantage[sure] == 0).all()
            assert np.abs(np.diff(values)[sure]).max(initial=0) < 0.001
    assert ends > 3


def test_an_odd_number_of_samples_has_no_halves(policy):
    with pytest.raises(WorkbenchError, match="even number of samples, not 5"):
        measure(policy, TASK, groups_of(policy), 5, 0)


# ---- scores


@cache
def known() -> tuple[tuple[Group, ...], tuple[TrueCredit, ...]]:
    """Groups with their true credit by enumeration."""
    policy = toy(Table())
    groups = groups_of(policy)
    truths = []
    for group in groups:
        values = tuple(np.stack([row, row]) for row in exact(policy, group))
        errors = tuple(np.zeros(row.shape[1] - 1) for row in values)
        truths.append(TrueCredit(group, values, errors, 0))
    return tuple(groups), tuple(truths)


def credits_of(make) -> list[RealisedCredit]:
    rows = []
    for group, truth in zip(*known()):
        rows.append(RealisedCredit(group, tuple(map(make, truth.advantage)), {}))
    return rows


def scored(make, truths=None):
    return token_scores(credits_of(make), truths or known()[1], TASK, POLICY.decode)


def test_the_truth_scores_1_and_its_opposite_minus_1():
    same, opposite = scored(lambda a: 3 * a), scored(lambda a: -a)
    assert same["cosine"] == pytest.approx((1, 1, 1))
    assert opposite["cosine"] == pytest.approx((-1, -1, -1))
    assert same["sign"] == (1, 1, 1) and opposite["sign"] == (0, 0, 0)
    truth = np.concatenate([flat(t.advantage) for t in known()[1]])
    share = np.abs(truth[np.abs(truth) > 0.2]).sum() / np.abs(truth).sum()
    assert same["decisive"][0] == pytest.approx(share) == opposite["decisive"][0]


def test_a_constant_credit_scores_what_theory_says():
    """cos = sum of A / (sqrt N |A|), and the sum of A over a rollout is reward - V(prompt)."""
    scores = scored(np.ones_like)
    groups, truths = known()
    total = sum(
        rollout.verdict.reward - values[0, 0]
        for group, truth in zip(groups, truths)
        for rollout, values in zip(group.rollouts, truth.values)
    )
    truth = np.concatenate([flat(t.advantage) for t in truths])
    expected = total / np.sqrt(len(truth) * (truth @ truth))
    assert scores["cosine"][0] == pytest.approx(expected)
    decisive = np.abs(truth) > 0.2
    assert scores["sign"][0] == pytest.approx((truth[decisive] > 0).mean())
    assert scores["decisive"][0] == pytest.approx(decisive.mean())


def test_a_method_that_says_nothing_has_no_cosine():
    assert np.isnan(scored(np.zeros_like)["cosine"]).all()
    left_out = scored(lambda a: np.full_like(a, np.nan))
    assert np.isnan(left_out["cosine"]).all() and left_out["sign"][0] == 0


def test_doubling_the_samples_does_not_move_the_cosine(policy):
    """In the mean over runs it is that of the exact A; without the halves it would be less."""
    groups, _ = known()
    root = credits_of(lambda a: np.sign(a) * np.sqrt(np.abs(a)))
    exact_score = scored(lambda a: np.sign(a) * np.sqrt(np.abs(a)))["cosine"][0]
    c = np.concatenate([flat(credit.credit) for credit in root])
    plain = {}
    for samples, runs in ((4, 24), (8, 12), (16, 6)):
        products, plain[samples] = [], []
        for seed in range(runs):
            truths = measure(policy, TASK, groups, samples, seed, certain=0.0)
            first, second = flat([flat(run.halves) for run in truths])
            mean = (first + second) / 2
            products.append((c @ mean, first @ second))
            plain[samples].append(c @ mean / np.sqrt(c @ c * (mean @ mean)))
        dot, square = np.mean(products, axis=0)
        assert dot / np.sqrt(c @ c * square) == pytest.approx(exact_score, abs=0.04)
    assert np.mean(plain[4]) + 0.05 < np.mean(plain[16]) < exact_score - 0.03


def test_scores_do_not_depend_on_the_order_of_groups():
    truths = known()[1]
    credits = credits_of(lambda a: a + 0.1)
    one = token_scores(credits, truths, TASK, POLICY.decode)
    other = token_scores(credits[::-1], truths[::-1], TASK, POLICY.decode)
    for name, score in one.items():
        np.testing.assert_allclose(score[0], other[name][0], rtol=1e-12)


def test_the_intervals_of_the_cosine_cover():
    """In repeated draws of 16 problems they hold that of all problems, about 9 times in 10."""
    rng = np.random.default_rng(0)
    attempt = toys.rollout(48)
    group = Group(toys.QUESTION, (attempt,))

    def problem() -> tuple[RealisedCredit, TrueCredit]:
        a = (
            1.5 * rng.gamma(8) / 8 * rng.standard_normal(48)
        )  # problems differ in how much is at stake
        halves = a + 0.3 * rng.standard_normal((2, 48))
        values = np.cumsum(np.pad(halves, ((0, 0), (1, 0))), axis=1)
        credit = RealisedCredit(group, (a + rng.standard_normal(48),), {})
        return credit, TrueCredit(group, (values,), (np.full(48, 0.2),), 0)

    square = 1.5**2 * (8 + 8**2) / 8**2  # of A in the mean; the credit's noise adds 1
    expected = np.sqrt(square / (square + 1))
    inside = []
    for _ in range(100):
        credits, truths = zip(*(problem() for _ in range(16)))
        _, low, high = token_scores(credits, truths, TASK, POLICY.decode)["cosine"]
        inside.append(low <= expected <= high)
    assert 0.83 < np.mean(inside) < 0.99


def test_the_rank_of_the_first_wrong_step():
    """Steps "1\\n", "22\\n", "3": the second is the wrong one."""
    ids = POLICY.completion_ids("1\n22\n3")
    text = POLICY.decode(ids)
    wrong = Rollout((5,), ids, (-1.0,) * len(ids), text, Verdict(0.0, False))

    @dataclass(frozen=True)
    class Second(Odd):
        def first_error(self, problem, text):
            return Step(1, 2, 5)

    group = Group(toys.QUESTION, (wrong, replace(wrong, verdict=Verdict(1.0, True))))
    numbers = {  # by token: 1 nl 2 2 nl 3 end
        (0, 0, -3, 0, 0, 0, 0): 1.0,
        (-2, 0, -1, 0, 0, 0, -9): 2.0,
        (1, 1, 5, 5, 5, 1, 0): 3.0,
        (-1, -1, -1, -1, -1, -1, -1): 2.0,  # all alike: in the middle
    }
    for row, rank in numbers.items():
        credit = RealisedCredit(group, (np.array(row, float),) * 2, {})
        assert credit_scores.failure_ranks(credit, Second(), POLICY.decode) == [rank]


# ---- parameters


def network_groups(learner, task, k=3):
    problems = task.problems("train", 3, 0)
    return sample_groups(learner.policy, task, problems, k, (1,))


def test_parts_of_a_gradient_add_up_to_the_batch():
    learner, task = Learner(toys.tiny_policy(hidden=16)), toys.FirstCharacter(toys.HALF, max_new=3)
    groups = network_groups(learner, task)
    for method in (GRPO(), SDPO(a=1.0, demonstration="any")):
        credits = method.credit(groups, learner)
        accumulate(method, learner, collate(credits, learner.policy.pad_id))
        whole = torch.cat([p.grad.flatten() for p in learner.parameters])
        learner.optimizer.zero_grad()
        parts = [credits[3 * i : 3 * i + 3] for i in range(3)]
        torch.testing.assert_close(
            gradients(learner, method, parts).sum(0), -whole, atol=1e-6, rtol=1e-4
        )
        assert whole.abs().max() > 1e-4


def test_the_ideal_gradient_is_the_sum_of_a_grad_log_pi():
    learner, task = Learner(toys.tiny_policy(hidden=16)), toys.FirstCharacter(toys.HALF, max_new=2)
    groups = network_groups(learner, task)
    truths = measure(learner.policy, task, groups, 10, 0)
    for half, ideal in enumerate(ideal_gradients(learner, truths)):
        for truth, part in zip(truths, ideal):
            total = 0.0
            for rollout, advantage in zip(truth.group.rollouts, truth.halves):
                ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
                logits = learner.policy.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
                targets = torch.tensor(rollout.completion_ids)[:, None]
                logp = logits.log_softmax(-1).gather(-1, targets)[:, 0]
                total = total + (torch.from_numpy(advantage[half]).float() * logp).sum() / 3
            learner.optimizer.zero_grad()
            total.backward()
            by_hand = torch.cat([p.grad.flatten() for p in learner.parameters])
            torch.testing.assert_close(part, by_hand, atol=1e-6, rtol=1e-4)
    learner.optimizer.zero_grad()


def test_the_gain_is_that_of_the_step():
    """Chance of a wanted first character, before and after a step of the stated length."""
    learner = Learner(toys.tiny_policy(hidden=16))
    prompt = torch.tensor([learner.policy.prompt_ids(toys.QUESTION.messages)])
    right = torch.tensor([chr(i) in toys.HALF for i in range(128)])

    def chance() -> torch.Tensor:
        return learner.policy.model(prompt).logits[0, -1].softmax(-1)[right].sum()

    before = chance()
    before.backward()
    ideal = torch.cat([p.grad.flatten() for p in learner.parameters])
    step = ideal + 0.3 * ideal.norm() / ideal.numel() ** 0.5 * torch.randn(
        ideal.shape, generator=torch.Generator().manual_seed(0)
    )
    scores = compare_gradients(torch.stack([step] * 2), *[torch.stack([ideal] * 2)] * 2)
    length = 1e-3
    direction = step / step.norm() * length
    sizes = [p.numel() for p in learner.parameters]
    with torch.no_grad():
        for p, part in zip(learner.parameters, direction.split(sizes)):
            p.add_(part.view_as(p))
    gained = float((chance() - before).detach()) / length * credit_scores.LENGTH
    assert scores["gain"][0] == pytest.approx(gained, rel=0.02)
    cosine = torch.nn.functional.cosine_similarity(step, ideal, dim=0)
    assert scores["gradient"][0] == pytest.approx(float(cosine), rel=1e-4)


def test_several_groups_are_one_batch():
    """The credit of a rollout is what ``update`` would record, also of a mean over the batch."""
    learner, task = Learner(toys.tiny_policy(hidden=16)), toys.FirstCharacter(toys.HALF, max_new=3)
    groups = network_groups(learner, task)
    method = GRPO(aggregate="sequence")
    together = realised_credits(learner, groups, method)
    alone = [realised_credit(learner, group, method) for group in groups]
    tokens = [sum(len(r.completion_ids) for r in group.rollouts) for group in groups]
    for one, other, size in zip(together, alone, tokens):
        for row, by_itself in zip(one.credit, other.credit):
            np.testing.assert_allclose(row * 3, by_itself * sum(tokens) / size, rtol=1e-5)
