"""One update: sample, credit, collate, score, loss, step. ``update`` is the whole algorithm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from workbench.core import (
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Problem,
    Scores,
    StepRecord,
    Task,
    Verdict,
    places_of,
)
from workbench.model import distributed
from workbench.model.batch import collate, logp_and_entropy, score
from workbench.model.learner import Learner
from workbench.training.selection import contrast, replaced, written

SAMPLER_CAP = 2.0  # largest importance weight of the trainer's distribution against the sampler's


def update(
    method: Method,
    learner: Learner,
    task: Task,
    problems: Sequence[Problem],
    seed: tuple[int, ...],
    *,
    step: int = 0,
    rows: int | None = 32,
    updates: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    dynamic_sampling: int = 0,
) -> StepRecord:
    """Sample, credit, score, loss, step.

    ``rows``: rollouts in a micro-batch (None: all at once). Micro-batches use the denominators of
    the whole batch, so their number changes the memory and not the gradient; for the same reason
    ranks can deal them out (distributed.py). ``minibatches``: parts of the batch, each with an
    optimiser step of its own; ``updates``: passes over the batch. (``optimize`` says more of both.)

    ``temperature``: the policy is softmax(logits / temperature) in all of the update, also for its
    teachers: what is sampled, its log-probs, entropies, ratios and gradients. So do verl and TRL,
    which divide the trainer's logits by the sampler's temperature.

    ``dynamic_sampling``: how often groups without contrast are replaced (selection.py).
    """
    method = method.for_task(task)
    begin = time.perf_counter()
    with at_temperature(learner, temperature):
        with learner.gathered():
            graded = _Timed(task)
            groups = method.sample(learner, graded, problems, seed)
            groups = replaced(groups, method, learner, graded, seed, dynamic_sampling)
            sampled = time.perf_counter()
            credits = method.credit(groups, learner)
        skipped, steps = learner.skipped, learner.steps
        parts = mini_batches(credits, groups, minibatches)
        first, last, norm = optimize(method, learner, credits, parts, rows, updates)

    metrics = _added(first.measures | first.losses) | {"grad_norm": norm}
    if updates > 1:
        metrics |= {f"last_{name}": value for name, value in _added(last.losses).items()}
    metrics |= _follow(method, learner, skipped)
    seconds = {"seconds_sample": sampled - begin, "seconds_train": time.perf_counter() - sampled}
    metrics |= describe(groups) | dict(method.diagnose(groups, credits))
    metrics |= {"lr": learner.lr, "optimizer_steps": float(learner.steps - steps)}
    metrics |= {"skipped": float(learner.skipped), "seconds_grade": graded.seconds} | seconds
    if learner.loss_scale:
        metrics["loss_scale"] = learner.loss_scale.value
    return StepRecord(step, metrics, tuple(groups), by_group(groups, credits, first.credit))


@contextmanager
def at_temperature(learner: Learner, temperature: float) -> Iterator[None]:
    """In its with block the policy and its teachers are those of softmax(logits / temperature)."""
    policies = [policy for policy in (learner.policy, learner.expert) if policy is not None]
    before = [policy.temperature for policy in policies]
    try:
        for policy in policies:
            policy.temperature = temperature
        yield
    finally:
        for policy, was in zip(policies, before):
            policy.temperature = was


def mini_batches(
    credits: Sequence[Credit], groups: Sequence[Group], parts: int
) -> list[Sequence[int]]:
    """The places of the credits in each of so many parts of the groups: every N-th; none empty."""
    if parts == 1:
        return [range(len(credits))]
    problems = [i for i, _ in places_of(credits, groups)]
    dealt = [[p for p, i in enumerate(problems) if i % parts == part] for part in range(parts)]
    return [places for places in dealt if places]


def optimize(
    method: Method,
    learner: Learner,
    credits: Sequence[Credit],
    parts: Sequence[Sequence[int]],
    rows: int | None = 32,
    passes: int = 1,
) -> tuple[Pass, Pass, float]:
    """An optimiser step on each part of the batch, in each of so many passes over it.

    The gradient of a part is its part of the batch's mean, times the number of parts: with fixed
    weights their mean is the batch's gradient, and each is of its size (the clip means the same).
    pi_old, in ratios and clips, is the policy before the first of these steps; credit was given
    before, to all of the batch. Returns the first pass, the last, and the first step's norm.
    """
    policy, dealt = learner.policy, []
    for only in parts:
        size = _rows_a_rank(rows, len(only))
        batches = collate(credits, policy.pad_id, size, policy.device, only)
        share, idle = learner.placement.share(batches)
        if dealt:  # there is a step before its first pass
            fixed = [fix_old(learner, batch) for batch in (*share, *idle)]
            share = fixed[: len(share)]
        dealt.append((share, idle))
    first, last, norms = Pass(), Pass(), []
    for number in range(passes):
        last = first if number == 0 else Pass()
        for i, (share, idle) in enumerate(dealt):
            result = accumulate(method, learner, share, idle, times=len(dealt))
            dealt[i] = result.batches, idle
            last.add(result)
            norms.append(learner.step())
    return first, last, norms[0] if norms else 0.0


@torch.no_grad()
def fix_old(learner: Learner, batch: Batch) -> Batch:
    """With the policy's log-probs as they are now, for a part of the batch that comes later."""
    scores = Scores(*logp_and_entropy(learner.policy, batch))
    batch = batch if learner.policy.trains_in_fp32 else weigh_sampler(batch, scores)
    return replace(batch, old_logp=scores.logp)


@dataclass
class Pass:
    """What one pass over a rank's micro-batches leaves beside the gradient.

    ``batches`` hold the log-probs from before the first update; ``credit`` is the realised credit
    of a rollout by its place among the credits; the metrics are parts of whole-batch means.
    """

    batches: list[Batch] = field(default_factory=list)
    credit: dict[int, list[float]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    def add(self, other: Pass) -> None:
        self.batches += other.batches
        self.credit |= other.credit
        _add(self.measures, other.measures)
        _add(self.losses, other.losses)


def accumulate(
    method: Method,
    learner: Learner,
    batches: Sequence[Batch],
    idle: Sequence[Batch] = (),
    times: int = 1,
) -> Pass:
    """Score, loss and backward over micro-batches: the gradient of their sum is added up.

    ``idle``: batches of other ranks that this one goes through to keep step with them. ``times``:
    what the gradient is multiplied with.
    """
    result = Pass()
    for batch in batches:
        scores = score(learner, batch, method)
        if batch.old_logp is None and not learner.policy.trains_in_fp32:
            batch = weigh_sampler(batch, scores)
        loss = method.loss(scores, batch)
        _differentiate(learner, scores, times * loss.value)
        _add(result.measures, measure(scores, batch, loss))
        _add(result.losses, loss.metrics)
        for place, credit, row in zip(batch.places, batch.credits, loss.credit.tolist()):
            result.credit[place] = [round(number, 5) for number in row[: len(credit.pg)]]
        if batch.old_logp is None:
            batch = replace(batch, old_logp=scores.logp.detach())
        result.batches.append(batch)
    for batch in idle:
        _differentiate(learner, score(learner, batch, method))
    return result


def _differentiate(learner: Learner, scores: Scores, value: torch.Tensor | None = None) -> None:
    """A micro-batch with nobody to distil from has no gradient.

    If it has one on a rank that this one must keep step with, here it is 0.
    """
    here = value is not None and value.requires_grad
    if learner.placement.any(here):
        learner.backward(value if here else 0 * scores.logp.sum())


def _follow(method: Method, learner: Learner, skipped: int) -> dict[str, float]:
    """The EMA teacher follows, where the method has one and all updates were finite."""
    if method.distil is None or method.distil.teacher != "teacher" or learner.skipped != skipped:
        return {}
    return {"teacher_distance": learner.update_teacher()}


def _rows_a_rank(rows: int | None, credits: int) -> int | None:
    """So few rollouts in a micro-batch that no rank goes without."""
    if distributed.size() == 1:
        return rows
    return min(rows or credits, -(-credits // distributed.size()))


class _Timed:
    """A task, and the seconds in which at least one attempt was being graded."""

    def __init__(self, task: Task):
        self._task = task
        self._times: list[tuple[float, float]] = []  # beginning and end of each

    def __getattr__(self, name: str):
        return getattr(self._task, name)

    def grade(self, problem: Problem, text: str) -> Verdict:
        begin = time.perf_counter()
        verdict = self._task.grade(problem, text)
        self._times.append((begin, time.perf_counter()))
        return verdict

    @property
    def seconds(self) -> float:
        seconds = last = 0.0
        for begin, end in sorted(self._times):
            seconds += max(0.0, end - max(begin, last))
            last = max(end, last)
        return seconds


# ---- metrics


def _add(metrics: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        before = metrics.get(name, 0.0)
        metrics[name] = max(before, value) if name.endswith("_max") else before + value


def _added(part: dict[str, float]) -> dict[str, float]:
    """This rank's part and all others'."""
    metrics: dict[str, float] = {}
    for other in distributed.gather(part):
        _add(metrics, other)
    return metrics


@torch.no_grad()
def weigh_sampler(batch: Batch, scores: Scores) -> Batch:
    """The policy-gradient channel times min(pi_trainer / pi_sampler, 2).

    In bf16, in 4 bits, or with another engine the sampler's distribution is a little off the
    trainer's; without these truncated importance weights the gradient is that of neither. (The
    other channels are not an expectation over the sampler, or weigh it themselves:
    methods/sdpo.py.)
    """
    sampled = batch.mask & batch.sampler_logp.isfinite()
    ratio = (scores.logp - batch.sampler_logp).exp().clamp(max=SAMPLER_CAP)
    weighted = batch.channels["pg"] * torch.where(sampled, ratio, 1.0)
    return replace(batch, channels=batch.channels | {"pg": weighted})


@torch.no_grad()
def measure(scores: Scores, batch: Batch, loss: Loss) -> dict[str, float]:
    """Parts of whole-batch means.

    loss         the value that was differentiated. Near 0 for GRPO whatever happens (its advantages
                 sum to 0): watch reward, not loss.
    entropy      mean next-token entropy in nats at the sampled places. Falling to 0: the policy no
                 longer explores.
    gap_max      largest |sampler log-prob - trainer log-prob|. Under 1e-4 in fp32; more means that
                 the two disagree about the model.
    gap_mean     its mean. In 4 bits .01 to .02 was seen (SmolLM2 on a CPU); truncated importance
                 weights correct for it (``weigh_sampler``).
    credit_mean  mean |realised credit| a token. 0: nothing was learned in this step.

    And in ``update``: grad_norm, before clipping, of the first optimiser step (a norm that jumps
    tenfold is a bad batch or too high a rate); lr, its learning rate; optimizer_steps, how many
    there were on this batch: minibatches times updates (less: some parts had no rollout that is
    learned from); with several mini-batches the measures above are each part's at its own step;
    skipped, updates so far that were not made because a gradient was not finite (healthy: 0; in
    fp16 a few, each of which halves loss_scale, what the loss is multiplied by against rounding to
    0); last_NAME, a loss's metric in the last of several updates on one batch; for a method with an
    EMA teacher teacher_distance, |theta - theta'| / |theta - theta_0| after its step. From 1 - u it
    falls slowly while the policy moves on; 0 is no teacher but the policy itself, and a value that
    stays near 1 a teacher that does not follow. seconds_sample and seconds_train, of the first
    process; of the former seconds_grade went by while attempts were graded, several at a time.
    """
    tokens = batch.denominators["tokens"]
    sampled = batch.mask & batch.sampler_logp.isfinite()
    # of the policy that sampled, where steps were made since
    logp = scores.logp.detach() if batch.old_logp is None else batch.old_logp
    gap = torch.where(sampled, logp - batch.sampler_logp, 0.0).abs()
    return {
        "loss": float(loss.value),
        "entropy": float(scores.entropy[batch.mask].sum()) / tokens,
        "gap_max": float(gap.max()),
        "gap_mean": float(gap.sum()) / tokens,
        "credit_mean": float(loss.credit[batch.mask].abs().sum()) / tokens,
    }


def describe(groups: Sequence[Group]) -> dict[str, float]:
    """What there is to say of the rollouts.

    reward, correct, length (completion tokens), finished (share that ended its turn): means over
    the rollouts that the policy wrote alone. contrast: share of groups in which their rewards
    differ; the others teach a group-relative method nothing (healthy: above one half). generated:
    tokens the policy wrote, also those that are in no rollout. Any other note of the groups is
    summed.
    """
    alone = [rollout for group in groups for rollout in group.own]
    differ = [contrast(group) for group in groups]
    metrics = {
        "reward": sum(rollout.verdict.reward for rollout in alone) / len(alone),
        "correct": sum(rollout.verdict.correct for rollout in alone) / len(alone),
        "contrast": sum(differ) / len(groups),
        "length": sum(len(rollout.completion_ids) for rollout in alone) / len(alone),
        "finished": sum(rollout.finished for rollout in alone) / len(alone),
        "generated": 0.0,
    }
    for group in groups:
        _add(metrics, {**group.notes, "generated": written(group)})
    return metrics


def by_group(
    groups: Sequence[Group], credits: Sequence[Credit], by_place: dict[int, list[float]]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """All ranks' realised credit, by group and rollout; empty for a rollout without any."""
    rows: list[list[tuple[float, ...]]] = [[()] * len(group.rollouts) for group in groups]
    places = places_of(credits, groups)
    for part in distributed.gather(by_place):
        for place, numbers in part.items():
            i, j = places[place]
            rows[i][j] = tuple(numbers)
    return tuple(tuple(row) for row in rows)
