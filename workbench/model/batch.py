"""From painted rollouts to tensors and from tensors to scores: the only padding in the project, and
the only shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from workbench.core import CHANNELS, Batch, Credit, Distil, Method, Rollout, Scores
from workbench.model import distributed, llama
from workbench.model.learner import Learner
from workbench.model.policy import Policy
from workbench.model.scores import divergence, token_scores


def collate(
    credits: Sequence[Credit],
    pad_id: int,
    rows: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Batches of at most ``rows`` rollouts (None: one batch), those of one prompt and like lengths
    together.

    Rows are padded on the right, so positions count from 0 and a causal model needs no mask for
    them. Denominators are those of the whole list: the sum of the micro-batches' losses is the loss
    of the batch.
    """
    if not credits:
        return []
    denominators = {
        name: float(sum(np.count_nonzero(getattr(c, name)) for c in credits)) for name in CHANNELS
    }
    denominators["tokens"] = float(sum(len(c.rollout.completion_ids) for c in credits))
    denominators["kl_right"] = float(
        sum(np.count_nonzero(c.kl) for c in credits if c.rollout.verdict.correct)
    )
    parts = [list(credits)] if rows is None else _micro_batches(credits, rows)
    return [_pad(part, pad_id, denominators, len(credits), device) for part in parts]


def _micro_batches(credits: Sequence[Credit], rows: int) -> list[list[Credit]]:
    """At most ``rows`` rollouts each.

    Those of one prompt stay together, because it is computed once for all of them.
    """
    size = lambda credit: len(credit.rollout.prompt_ids) + len(credit.rollout.completion_ids)  # noqa: E731
    groups: dict[tuple[int, ...], list[Credit]] = {}
    for credit in sorted(credits, key=size, reverse=True):
        groups.setdefault(credit.rollout.prompt_ids, []).append(credit)
    batches: list[list[Credit]] = []
    for group in groups.values():
        for part in (group[i : i + rows] for i in range(0, len(group), rows)):
            if batches and len(batches[-1]) + len(part) <= rows:
                batches[-1] += part
            else:
                batches.append(part)
    return batches


def _pad(
    credits: Sequence[Credit], pad_id: int, denominators: dict[str, float], sequences: int, device
) -> Batch:
    prompts = [len(c.rollout.prompt_ids) for c in credits]
    lengths = [len(c.rollout.completion_ids) for c in credits]
    size, width = (len(credits), max(p + t for p, t in zip(prompts, lengths))), max(lengths)
    input_ids = np.full(size, pad_id, np.int64)
    attention = np.zeros(size, bool)
    small = {
        name: np.zeros((len(credits), width), np.float32) for name in (*CHANNELS, "sampler_logp")
    }
    targets = np.zeros((len(credits), width), np.int64)
    mask = np.zeros((len(credits), width), bool)
    for i, (credit, p, t) in enumerate(zip(credits, prompts, lengths)):
        input_ids[i, : p + t] = credit.rollout.prompt_ids + credit.rollout.completion_ids
        attention[i, : p + t] = True
        targets[i, :t] = credit.rollout.completion_ids
        mask[i, :t] = True
        small["sampler_logp"][i, :t] = credit.rollout.logprobs
        for name in CHANNELS:
            small[name][i, :t] = getattr(credit, name)
    # The one shift: the state at position p - 1 + t predicts completion token t. (Padded places
    # point at a real position; the mask drops them.)
    gather = np.minimum(np.array(prompts)[:, None] - 1 + np.arange(width)[None], size[1] - 1)
    send = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
    return Batch(
        send(input_ids),
        send(attention),
        send(gather),
        send(targets),
        send(mask),
        {name: send(small[name]) for name in CHANNELS},
        send(small["sampler_logp"]),
        None,
        denominators,
        sequences,
        tuple(credits),
    )


def score(learner: Learner, batch: Batch, method: Method | None = None) -> Scores:
    """Log-probability and entropy of every completion token; if the method wants them, the frozen
    reference's log-probability and how far the policy is from a teacher.

    The policy comes last: of a sharded one (shard.py) the backward pass needs the weights that were
    gathered last.
    """
    distil, ref, read, compared = None if method is None else method.distil, None, None, {}
    if method is not None and method.needs_reference:
        with torch.no_grad(), learner.weights("reference") as policy:
            ref = _score(policy, batch)[0]
    if distil is not None:
        read = _read(learner, batch, distil)
    hidden = states(learner.policy, batch)
    logp, entropy = (
        _spread(batch.mask, column)
        for column in token_scores(hidden, learner.policy.head, batch.targets[batch.mask])
    )
    if distil is not None:
        compared = _compare(learner, batch, hidden, read, distil)
    return Scores(logp, entropy, ref, **compared)


def _read(
    learner: Learner, batch: Batch, distil: Distil
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What the teacher says of the rollouts that it has a prompt for; None where there are none."""
    moved = [
        Credit.of(replace(c.rollout, prompt_ids=c.teacher_prompt_ids))
        for c in batch.credits
        if c.teacher_prompt_ids is not None
    ]
    if not learner.placement.any(bool(moved)):
        return None
    if not moved:
        _teacher(learner, batch, distil)  # other ranks gather its weights, and this one with them
        return None
    # the same rows in the same order, so the same tokens
    [other] = collate(moved, learner.policy.pad_id, device=batch.mask.device)
    return _teacher(learner, other, distil)


def _compare(
    learner: Learner,
    batch: Batch,
    hidden: torch.Tensor,
    read: tuple[torch.Tensor, torch.Tensor] | None,
    distil: Distil,
) -> dict[str, torch.Tensor]:
    """The fields of ``Scores`` that a teacher fills: it reads the very tokens of the completions,
    after the prompts that the credits give it.
    """
    if read is None:
        return dict.fromkeys(
            ("teacher", "divergence", "divergence_credit", "tail_mass", "teacher_entropy"),
            torch.zeros_like(batch.sampler_logp),
        )
    taught = batch.mask & torch.tensor(
        [[c.teacher_prompt_ids is not None] for c in batch.credits], device=batch.mask.device
    )
    found = divergence(
        hidden[taught[batch.mask]],
        learner.policy.head,
        *read,
        batch.targets[taught],
        distil.alpha,
        distil.top_k,
        distil.clip,
    )
    columns = {
        "teacher": found.teacher,
        "divergence": found.value,
        "divergence_credit": found.credit,
        "tail_mass": found.tail_mass,
        "teacher_entropy": found.entropy,
    }
    return {name: _spread(taught, column) for name, column in columns.items()}


@torch.no_grad()
def _teacher(learner: Learner, batch: Batch, distil: Distil) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, E] states and [V, E] head whose product are the teacher's logits.

    A geometric mixture of two distributions is the softmax of the mixture of their logits. That is
    one product again: of mixed states where the two share a head, else of the states side by side
    with the heads side by side.
    """

    def read(which: str):
        with learner.weights(which) as policy:
            found, head = states(policy, batch), policy.head.detach()
            # sharded weights are gathered into the memory of the last ones
            return found, head if policy.gathered or learner.lora else head.clone()

    # models of one family may pad their heads to different sizes: the rows after the policy's are
    # no tokens
    if distil.teacher == "expert":
        return states(learner.expert, batch), learner.expert.head[
            : len(learner.policy.head)
        ].detach()
    if distil.teacher != "mixed":
        return read(distil.teacher)
    (reference, head), (policy, own) = read("reference"), read("policy")
    if head.data_ptr() == own.data_ptr():
        return torch.lerp(reference, policy, distil.trust), own
    return torch.cat([reference * (1 - distil.trust), policy * distil.trust], -1), torch.cat(
        [head, own], -1
    )


@torch.no_grad()
def rescore(
    policy: Policy, rollouts: Sequence[Rollout], rows: int = 64
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What any policy says of these completions under their own prompts:

    (log-probs [T], entropy [T]) in nats for each, temperature 1, no gradient.
    """
    policy.need_gathered()
    return distributed.spread(rollouts, lambda mine: _rescore(policy, mine, rows))


def _rescore(
    policy: Policy, rollouts: Sequence[Rollout], rows: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = {}
    for batch in collate(
        [Credit.of(rollout) for rollout in rollouts], policy.pad_id, rows, policy.device
    ):
        logp, entropy = _score(policy, batch)
        for credit, a, b in zip(
            batch.credits, logp.float().cpu().numpy(), entropy.float().cpu().numpy()
        ):
            size = len(credit.rollout.completion_ids)
            found[id(credit.rollout)] = a[:size], b[:size]
    return [found[id(rollout)] for rollout in rollouts]


def _score(policy, batch: Batch):
    hidden = states(policy, batch)
    return tuple(
        _spread(batch.mask, column)
        for column in token_scores(hidden, policy.head, batch.targets[batch.mask])
    )


def _spread(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[B, T] zeros with ``values`` where ``mask`` is true, row by row."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        mask, values
    )


def states(policy, batch: Batch) -> torch.Tensor:
    """[N, D] the last hidden state that predicts each of the batch's N completion tokens."""
    rows = [(credit.rollout.prompt_ids, credit.rollout.completion_ids) for credit in batch.credits]
    if (
        policy.device.type == "cpu"
        and len({prompt for prompt, _ in rows}) < len(rows)
        and llama.supported(policy)
    ):
        # a teacher reads equal attempts once
        once = rows if torch.is_grad_enabled() else list(dict.fromkeys(rows))
        found = llama.completion_states(policy, *zip(*once))
        if len(once) == len(rows):
            return found
        by_row = dict(zip(once, found.split([len(completion) for _, completion in once])))
        return torch.cat([by_row[row] for row in rows])
    # right padding after a causal model's real tokens: no mask needed
    hidden = policy.hidden(batch.input_ids)
    return hidden.gather(1, batch.gather[..., None].expand(-1, -1, hidden.shape[-1]))[batch.mask]
