"""One update: sample, credit, collate, score, loss, step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.core import Batch, Group, Loss, Method, Scores, StepRecord, Task
from workbench.model import distributed
from workbench.model.batch import collate, score
from workbench.model.learner import Learner

SAMPLER_CAP = 2.0  # largest importance weight of the trainer's distribution against the sampler's


def update(
    method: Method,
    learner: Learner,
    task: Task,
    problems: Sequence,
    seed: tuple[int, ...],
    *,
    step: int = 0,
    rows: int | None = 32,
    updates: int = 1,
) -> StepRecord:
    """Sample, credit, score, loss, step.

    ``rows``: rollouts in a micro-batch (None: all at once). ``updates``: optimiser steps on the
    same batch.

    Micro-batches use the denominators of the whole batch, so their number changes the memory and
    not the gradient. For the same reason ranks can deal them out: each adds up its share, and all
    of them the rest (see distributed.py).
    """
    clock = _Clock()
    with learner.gathered():
        groups = method.sample(learner, task, problems, seed)
        clock("seconds_sample")
        credits = method.credit(groups, learner)
    batches, idle = learner.placement.share(
        collate(credits, learner.policy.pad_id, _rows(rows, len(credits)), learner.policy.device)
    )
    metrics: dict[str, float] = {}
    painted: dict[int, list[float]] = {}
    skipped = learner.skipped
    for number in range(updates):
        parts: dict[str, float] = {}
        for i, batch in enumerate(batches):
            scores = score(learner, batch, method)
            if number == 0 and not learner.policy.trains_in_fp32:
                batches[i] = batch = _weighted(batch, scores)
            loss = method.loss(scores, batch)
            _differentiate(learner, scores, loss.value)
            # the first update is on policy: only a later one has ratios other than 1, and clips
            if 0 < number == updates - 1:
                _add(parts, {f"last_{name}": value for name, value in loss.metrics.items()})
            if number == 0:
                _add(parts, _measure(scores, batch, loss))
                painted |= _paint(batch, loss)
                if updates > 1:
                    batches[i] = replace(batch, old_logp=scores.logp.detach())
        for batch in idle:
            _differentiate(learner, score(learner, batch, method))
        norm = learner.step()
        for part in distributed.gather(parts):
            _add(metrics, part)
        if number == 0:
            metrics["grad_norm"] = norm
    if (
        method.distil is not None
        and method.distil.teacher == "teacher"
        and learner.skipped == skipped
    ):
        metrics["teacher_distance"] = learner.update_teacher()
    clock("seconds_train")
    metrics |= (
        _describe(groups)
        | dict(method.diagnose(groups, credits))
        | {"skipped": float(learner.skipped)}
        | clock.laps
    )
    return StepRecord(step, metrics, tuple(groups), _painting(groups, painted))


def _differentiate(learner: Learner, scores: Scores, value: torch.Tensor | None = None) -> None:
    """A micro-batch with nobody to distil from has no gradient.

    If it has one on a rank that this one must keep step with, here it is 0.
    """
    here = value is not None and value.requires_grad
    if learner.placement.any(here):
        (value if here else 0 * scores.logp.sum()).backward()


def _rows(rows: int | None, credits: int) -> int | None:
    """So few rollouts in a micro-batch that no rank goes without."""
    return (
        rows if distributed.size() == 1 else min(rows or credits, -(-credits // distributed.size()))
    )


class _Clock:
    def __init__(self):
        self.laps, self.last = {}, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now


def _add(metrics: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        metrics[name] = (
            max(metrics.get(name, 0.0), value)
            if name.endswith("_max")
            else metrics.get(name, 0.0) + value
        )


@torch.no_grad()
def _measure(scores: Scores, batch: Batch, loss: Loss) -> dict[str, float]:
    """Parts of whole-batch means.

    loss         the value that was differentiated. Near 0 for GRPO whatever happens (its advantages
                 sum to 0): watch reward, not loss.
    entropy      mean next-token entropy in nats at the sampled places. Falling to 0: the policy no
                 longer explores.
    gap_max      largest |sampler log-prob - trainer log-prob|. Under 1e-4 in fp32; more means that
                 the two disagree about the model.
    gap_mean     its mean. In 4 bits .01 to .02 was seen (SmolLM2 on a CPU); truncated importance
                 weights correct for it (``_weighted``).
    credit_mean  mean |realised credit| a token. 0: nothing was learned in this step.

    And in ``update``, for a method with an EMA teacher: teacher_distance, |theta - theta'| / |theta
    - theta_0| after its step. From 1 - u it falls slowly while the policy moves on; 0 is no teacher
    but the policy itself, and a value that stays near 1 a teacher that does not follow.
    """
    tokens = batch.denominators["tokens"]
    known = batch.mask & batch.sampler_logp.isfinite()
    gap = torch.where(known, scores.logp.detach() - batch.sampler_logp, 0.0).abs()
    return {
        "loss": float(loss.value),
        "entropy": float(scores.entropy[batch.mask].sum()) / tokens,
        "gap_max": float(gap.max()),
        "gap_mean": float(gap.sum()) / tokens,
        "credit_mean": float(loss.credit[batch.mask].abs().sum()) / tokens,
        **loss.metrics,
    }


@torch.no_grad()
def _weighted(batch: Batch, scores: Scores) -> Batch:
    """The policy-gradient channel times min(pi_trainer / pi_sampler, 2): truncated importance
    weights. In bf16, in 4 bits, or with another engine the sampler's distribution is a little off
    the trainer's; without the weights the gradient is that of neither. (The other channels are not
    an expectation over the sampler, or weigh it themselves: methods/sdpo.py.)
    """
    known = batch.mask & batch.sampler_logp.isfinite()
    weight = torch.where(
        known, (scores.logp - batch.sampler_logp).exp().clamp(max=SAMPLER_CAP), 1.0
    )
    return replace(batch, channels=batch.channels | {"pg": batch.channels["pg"] * weight})


def _paint(batch: Batch, loss: Loss) -> dict[int, list[float]]:
    return {
        id(credit.rollout): [round(x, 5) for x in row[: len(credit.rollout.completion_ids)]]
        for credit, row in zip(batch.credits, loss.credit.tolist())
    }


def _painting(
    groups: Sequence[Group], painted: dict[int, list[float]]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """What all ranks painted, by group and rollout.

    (Ranks know a rollout by its place: ``id`` is each one's own.)
    """
    order = [id(r) for group in groups for r in group.rollouts]
    found = {
        place: row
        for part in distributed.gather({i: painted[r] for i, r in enumerate(order) if r in painted})
        for place, row in part.items()
    }
    places = iter(range(len(order)))
    return tuple(
        tuple(tuple(found.get(next(places), ())) for _ in group.rollouts) for group in groups
    )


def _describe(groups: Sequence[Group]) -> dict[str, float]:
    """What there is to say of the rollouts, beside ``update``'s own: grad_norm, before clipping, of
    the first update (a norm that jumps tenfold is a bad batch or too high a rate), skipped, updates
    so far that were not made because a gradient was not finite (healthy: 0), and last_NAME, a
    loss's metric in the last of several updates on one batch.

    reward, correct, length (completion tokens), finished (share that ended its turn): means over
    the rollouts that the policy wrote alone. contrast: share of groups in which their rewards
    differ; the others teach a group-relative method nothing (healthy: above one half). generated:
    tokens the policy wrote, also those that are in no rollout. Any other note of the groups is
    summed.
    """
    own = [r for group in groups for r in group.own]
    n = len(own)
    notes: dict[str, float] = {
        "generated": float(
            sum(len(r.completion_ids) - r.borrowed for group in groups for r in group.rollouts)
        )
    }
    for group in groups:
        for name, value in group.notes.items():
            notes[name] = notes.get(name, 0.0) + value
    return {
        "reward": sum(r.verdict.reward for r in own) / n,
        "correct": sum(r.verdict.correct for r in own) / n,
        "contrast": sum(len({r.verdict.reward for r in group.own}) > 1 for group in groups)
        / len(groups),
        "length": sum(len(r.completion_ids) for r in own) / n,
        "finished": sum(r.finished for r in own) / n,
        **notes,
    }
