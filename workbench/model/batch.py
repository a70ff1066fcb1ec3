"""From credited rollouts to tensors, and from tensors to scores.

pack      prompts and completions -> padded tensors: the only padding in the project, the only shift
collate   credits -> batches: packed micro-batches with channels and the denominators of the step
score     batch -> log-probs, entropy, and what a reference and a teacher say of the same tokens
rescore   what any policy says of completions, without gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench.core import (
    CHANNELS,
    Batch,
    Credit,
    Distil,
    Method,
    Packed,
    Rollout,
    Scores,
    refuse_if,
)
from workbench.model import distributed, llama, llama_states
from workbench.model.learner import Learner
from workbench.model.policy import Policy
from workbench.model.scores import divergence, token_scores

READ = 64  # rollouts that are read together without gradient
Row = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt and of its completion


# ---- tensors


def pack(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Packed:
    """Rows in the order given, padded on the right.

    So positions count from 0 and a causal model needs no mask for the padding.
    """
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    lengths = torch.tensor([len(completion) for _, completion in rows])
    whole = [torch.tensor(prompt + completion) for prompt, completion in rows]
    input_ids = pad_sequence(whole, batch_first=True, padding_value=pad_id)
    completions = [torch.tensor(completion, dtype=torch.long) for _, completion in rows]
    targets = pad_sequence(completions, batch_first=True)
    steps = torch.arange(targets.shape[1])
    mask = steps < lengths[:, None]
    # The one shift: the state at position p - 1 + t predicts completion token t. (Padded places
    # point at a real position; the mask drops them.)
    gather = (starts[:, None] - 1 + steps).clamp(max=input_ids.shape[1] - 1)
    tensors = (tensor.to(device) for tensor in (input_ids, gather, targets, mask))
    return Packed(tuple(rows), *tensors)


def deal(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Places of at most ``most`` rows each, like lengths together.

    Rows of one prompt stay together, because it is computed once for all of them.
    """
    sizes = [len(prompt) + len(completion) for prompt, completion in rows]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for place in sorted(range(len(rows)), key=sizes.__getitem__, reverse=True):
        by_prompt.setdefault(rows[place][0], []).append(place)
    hands: list[list[int]] = []
    for places in by_prompt.values():
        for start in range(0, len(places), most):
            part = places[start : start + most]
            if hands and len(hands[-1]) + len(part) <= most:
                hands[-1] += part
            else:
                hands.append(part)
    return hands


def collate(
    credits: Sequence[Credit],
    pad_id: int,
    rows: int | None = None,
    device: torch.device | str = "cpu",
    only: Sequence[int] | None = None,
) -> list[Batch]:
    """Batches of at most ``rows`` rollouts (None: one batch), of those at the places ``only``.

    Denominators are those of the whole list: the losses of micro-batches add up to the batch's.
    """
    chosen = range(len(credits)) if only is None else only
    if not chosen:
        return []
    denominators = _denominators(credits)
    pairs = [(credit.rollout.prompt_ids, credit.rollout.completion_ids) for credit in credits]
    hands = [range(len(chosen))] if rows is None else deal([pairs[i] for i in chosen], rows)
    batches = []
    for hand in hands:
        places = [chosen[i] for i in hand]
        packed = pack([pairs[place] for place in places], pad_id, device)
        dealt = tuple(credits[place] for place in places)
        channels = {name: _padded(packed, [getattr(c, name) for c in dealt]) for name in CHANNELS}
        sampler_logp = _padded(packed, [credit.rollout.logprobs for credit in dealt])
        batches.append(
            Batch(
                **vars(packed),
                channels=channels,
                sampler_logp=sampler_logp,
                denominators=denominators,
                sequences=len(credits),
                credits=dealt,
                places=tuple(places),
            )
        )
    return batches


def _denominators(credits: Sequence[Credit]) -> dict[str, float]:
    counts = dict.fromkeys((*CHANNELS, "tokens", "kl_right", "others"), 0)
    for credit in credits:
        for name in CHANNELS:
            counts[name] += int(np.count_nonzero(getattr(credit, name)))
        counts["tokens"] += len(credit.pg)
        if credit.rollout.verdict.correct:
            counts["kl_right"] += int(np.count_nonzero(credit.kl))
        if credit.rollout.origin != "policy":
            counts["others"] += len(credit.pg)
    return {name: float(count) for name, count in counts.items()}


def _padded(packed: Packed, rows: Sequence[Sequence[float]]) -> Tensor:
    """[B, T] the numbers of each row, 0 where padded."""
    tensors = [torch.as_tensor(row, dtype=torch.float32) for row in rows]
    return pad_sequence(tensors, batch_first=True).to(packed.mask.device)


def spread(mask: Tensor, values: Tensor) -> Tensor:
    """[B, T] zeros with ``values`` where ``mask`` is true, row by row."""
    zeros = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return zeros.masked_scatter(mask, values)


# ---- scores


def states(policy: Policy, packed: Packed) -> Tensor:
    """[N, D] the last hidden state that predicts each of the N completion tokens.

    Over the policy's temperature: what its products with the head say is said at that.
    """
    if torch.is_grad_enabled() or not policy.gathered:
        hidden = _states(policy, packed)
    else:
        hidden = _remembered(policy, packed, {} if policy.memory is None else policy.memory)
    return hidden if policy.temperature == 1 else hidden / policy.temperature


def _remembered(policy: Policy, packed: Packed, memory: dict[Row, Tensor]) -> Tensor:
    """``_states``, where equal rows are read once and those in the memory not at all."""
    new = [row for row in dict.fromkeys(packed.rows) if row not in memory]
    if new:
        all_new = len(new) == len(packed.rows)
        fewer = packed if all_new else pack(new, policy.pad_id, packed.mask.device)
        hidden = _states(policy, fewer)
        memory.update(zip(new, hidden.split([len(completion) for _, completion in new])))
        if all_new:
            return hidden
    return torch.cat([memory[row] for row in packed.rows])


def _states(policy: Policy, packed: Packed) -> Tensor:
    prompts = {prompt for prompt, _ in packed.rows}
    longest = packed.input_ids.shape[1]
    shared = policy.device.type == "cpu" and len(prompts) < len(packed.rows)
    if shared and llama.supported(policy, longest):
        return llama_states.completion_states(policy, *zip(*packed.rows))
    refuse_if(
        longest > policy.context,
        f"a prompt and its completion have {longest} tokens, more than the model's context of "
        f"{policy.context}",
    )
    # right padding after a causal model's real tokens: no mask needed
    hidden = policy.hidden(packed.input_ids)
    index = packed.gather[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index)[packed.mask]


def logp_and_entropy(policy: Policy, packed: Packed) -> tuple[Tensor, Tensor]:
    """[B, T] log-prob and entropy (nats) of every completion token, 0 where padded."""
    hidden, targets = states(policy, packed), packed.targets[packed.mask]
    logp, entropy = token_scores(hidden, policy.head, targets, policy.cap)
    return spread(packed.mask, logp), spread(packed.mask, entropy)


def score(learner: Learner, batch: Batch, method: Method | None = None) -> Scores:
    """What the policy, and where the method wants them a reference and a teacher, say of a batch.

    The policy comes last: of a sharded one (shard.py) the backward pass needs the weights that were
    gathered last.
    """
    reference, teacher = None, None
    distil = None if method is None else method.distil
    if method is not None and method.needs_reference:
        with torch.no_grad(), learner.weights("reference") as policy:
            reference, _ = logp_and_entropy(policy, batch)
    if distil is not None:
        teacher = _read(learner, batch, distil)
    hidden = states(learner.policy, batch)
    head, cap = learner.policy.head, learner.policy.cap
    logp, entropy = token_scores(hidden, head, batch.targets[batch.mask], cap)
    compared = {} if distil is None else _compare(learner, batch, hidden, teacher, distil)
    return Scores(
        spread(batch.mask, logp), spread(batch.mask, entropy), reference=reference, **compared
    )


class Teacher(NamedTuple):
    """What ``divergence`` takes of one: [N, E] states and [V, E] head whose products are its
    logits, soft-capped to ``cap``; ``trust`` where they are those of two models.
    """

    hidden: Tensor
    head: Tensor
    cap: float = 0.0
    trust: float | None = None


def _read(learner: Learner, batch: Batch, distil: Distil) -> Teacher | None:
    """What the teacher says of the rollouts that it has a prompt for; None where there are none."""
    taught = [
        (credit.teacher_prompt_ids, credit.rollout.completion_ids)
        for credit in batch.credits
        if credit.teacher_prompt_ids is not None
    ]
    if not learner.placement.any(bool(taught)):
        return None
    if not taught:
        _teacher(learner, batch, distil)  # other ranks gather its weights, and this one with them
        return None
    return _teacher(learner, pack(taught, learner.policy.pad_id, batch.mask.device), distil)


def _compare(
    learner: Learner,
    batch: Batch,
    hidden: Tensor,
    teacher: Teacher | None,
    distil: Distil,
) -> dict[str, Tensor]:
    """The fields of ``Scores`` that a teacher fills.

    It reads the very tokens of the completions, after the prompts that the credits give it.
    """
    if teacher is None:
        names = ("teacher", "divergence", "divergence_credit", "tail_mass", "teacher_entropy")
        return dict.fromkeys(names, torch.zeros_like(batch.sampler_logp))
    has_teacher = [[credit.teacher_prompt_ids is not None] for credit in batch.credits]
    taught = batch.mask & torch.tensor(has_teacher, device=batch.mask.device)
    compared = divergence(
        hidden[taught[batch.mask]],
        _first_rows(learner.policy.head, len(teacher.head)),
        teacher.hidden,
        teacher.head,
        batch.targets[taught],
        distil.alpha,
        distil.top_k,
        distil.clip,
        (learner.policy.cap, teacher.cap),
        teacher.trust,
    )
    columns = {
        "teacher": compared.teacher,
        "divergence": compared.value,
        "divergence_credit": compared.credit,
        "tail_mass": compared.tail_mass,
        "teacher_entropy": compared.entropy,
    }
    return {name: spread(taught, column) for name, column in columns.items()}


@torch.no_grad()
def _teacher(learner: Learner, packed: Packed, distil: Distil) -> Teacher:
    """A geometric mixture of two distributions is the softmax of the mixture of their logits.

    That is one product again: of mixed states where the two share a head, else of the states side
    by side with the heads side by side. Logits that are soft-capped are mixed after it.
    """
    if distil.teacher == "expert":
        # models of one family may have heads of different sizes: over the rows that both have
        head = _first_rows(learner.expert.head, len(learner.policy.head)).detach()
        return Teacher(states(learner.expert, packed), head, learner.expert.cap)
    cap = learner.policy.cap
    if distil.teacher != "mixed":
        return Teacher(*_states_and_head(learner, packed, distil.teacher), cap)
    reference, head = _states_and_head(learner, packed, "reference")
    policy, policy_head = _states_and_head(learner, packed, "policy")
    shared = head.data_ptr() == policy_head.data_ptr()
    heads = policy_head if shared else torch.cat([head, policy_head], -1)
    if cap:
        return Teacher(torch.cat([reference, policy], -1), heads, cap, distil.trust)
    if shared:
        return Teacher(torch.lerp(reference, policy, distil.trust), policy_head)
    mixture = torch.cat([reference * (1 - distil.trust), policy * distil.trust], -1)
    return Teacher(mixture, heads)


def _first_rows(head: Tensor, rows: int) -> Tensor:
    return head if len(head) <= rows else head[:rows]


def _states_and_head(learner: Learner, packed: Packed, which: str) -> tuple[Tensor, Tensor]:
    with learner.weights(which) as policy:
        hidden = states(policy, packed)
        head = policy.head.detach()
        # sharded weights are gathered into the memory of the last ones
        return hidden, head if policy.gathered or learner.lora else head.clone()


@torch.no_grad()
def rescore(policy: Policy, rollouts: Sequence[Rollout]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What any policy says of these completions under their own prompts, in the order asked.

    (log-probs [T], entropy [T]) in nats for each rollout, at the policy's temperature, no gradient.
    """
    policy.need_gathered()
    return distributed.spread(rollouts, lambda share: _rescore(policy, share))


def _rescore(policy: Policy, rollouts: Sequence[Rollout]) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
    results: list = [None] * len(rollouts)
    for places in deal(pairs, READ):
        packed = pack([pairs[place] for place in places], policy.pad_id, policy.device)
        logp, entropy = (x.float().cpu().numpy() for x in logp_and_entropy(policy, packed))
        for i, place in enumerate(places):
            length = len(pairs[place][1])
            results[place] = logp[i, :length], entropy[i, :length]
    return results
