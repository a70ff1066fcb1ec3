"""Who writes the tokens: generation engines behind one call, and groups of graded rollouts made
with them.

``generate(policy, prompts, seeds)`` computes each prompt once for all of its samples, decodes all
rows together and drops rows that finished. Every row draws from its own stream of uniforms, seeded
by its coordinates, so a sample does not depend on what ran beside it. What a row's next state is,
an engine says: ``llama.Decoder`` for that family and its relatives, ``decoder.Decoder`` (the
model's own forward pass) for all others. A policy whose ``engine`` is set (vllm.py) is not decoded
here at all: the call goes there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from workbench.core import (
    Group,
    Problem,
    Rollout,
    Task,
    coordinates,
    refuse_if,
)
from workbench.model import distributed, llama
from workbench.model.decoder import Decoder
from workbench.model.policy import Policy
from workbench.model.scores import capped

ROWS = 256  # most rows decoded together
CHECK = 8  # tokens between looks for rows that ended
# ended rows are dropped when at most this share goes on: dropping copies the cache of the others
WORTHWHILE = 7 / 8


@dataclass(frozen=True)
class Sample:
    """What the engine wrote: token ids (with the end-of-turn token if ``finished``) and their
    log-probs at the policy's temperature.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[Sequence[int]],
    *,
    max_new: int | Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[Sample]]:
    """For prompt i, one sample for each seed in ``seeds[i]``.

    ``temperature``, on top of the policy's own: 0 is greedy. ``top_p``: only from the likeliest
    tokens that together have this probability (nucleus sampling, arXiv 1904.09751). The log-probs
    are those of the policy, which neither changes: nothing is trained on such samples. ``max_new``:
    one for all prompts, or one for each.

    Raises WorkbenchError when a prompt leaves no room for its ``max_new`` tokens in the model's
    context, the policy's weights are not all here, or its engine knows no temperature of its own.
    """
    policy.need_gathered()
    budgets = [max_new] * len(prompts) if isinstance(max_new, int) else list(max_new)
    _refuse_too_long(policy, prompts, budgets)
    if policy.engine is not None:
        refuse_if(
            policy.temperature != 1,
            "vLLM gives log-probs at temperature 1 here: leave out temperature or --vllm",
        )
        return policy.engine.generate(prompts, seeds, budgets, temperature, top_p)
    longest = max((len(prompt) + n for prompt, n in zip(prompts, budgets)), default=0)
    weights = llama.Weights.of(policy) if llama.supported(policy, longest) else None
    results: list[list[Sample]] = [[] for _ in prompts]
    for places in _parts(prompts, seeds, policy.pads_left):
        begin = (
            [prompts[i] for i in places],
            [len(seeds[i]) for i in places],
            max(budgets[i] for i in places),
        )
        engine = Decoder(policy, *begin) if weights is None else llama.Decoder(weights, *begin)
        rows = [(seed, budgets[i]) for i in places for seed in seeds[i]]
        samples = iter(_decode(policy, engine, *zip(*rows), temperature, top_p))
        for i in places:
            results[i] = [next(samples) for _ in seeds[i]]
    return results


def _refuse_too_long(policy: Policy, prompts: Sequence, budgets: Sequence[int]) -> None:
    for prompt, budget in zip(prompts, budgets):
        refuse_if(
            len(prompt) + budget > policy.context,
            f"a prompt of {len(prompt)} tokens and {budget} new ones do not fit the model's "
            f"context of {policy.context}: lower max_new, or leave long problems out",
        )


def _parts(prompts: Sequence, seeds: Sequence[Sequence[int]], pads_left: bool) -> list[list[int]]:
    """Prompts to decode together: at most ROWS rows, like lengths for less padding, or equal ones
    where there must be none.
    """
    asked = [i for i in range(len(prompts)) if seeds[i]]
    parts: list[list[int]] = []
    rows = 0
    for i in sorted(asked, key=lambda i: len(prompts[i])):
        alike = pads_left or not parts or len(prompts[parts[-1][0]]) == len(prompts[i])
        if not parts or not alike or rows + len(seeds[i]) > ROWS:
            parts.append([])
            rows = 0
        parts[-1].append(i)
        rows += len(seeds[i])
    return parts


def _decode(
    policy: Policy,
    engine,
    seeds: Sequence[int],
    budgets: Sequence[int],
    temperature: float,
    top_p: float,
) -> list[Sample]:
    """One batch, a sample for each seed.

    Rows that ended are looked for now and then, and write on until they are dropped; that is cut
    off. Rows whose budget is spent are dropped at once: there may be no room for more in the
    model's context.
    """
    device, head, max_new, spent = policy.device, policy.head, max(budgets), frozenset(budgets)
    cap = policy.logits.cap  # of logits at temperature 1
    budget = torch.tensor(budgets, device=device)
    uniforms = _uniforms(seeds, max_new).to(device)
    tokens = torch.zeros(len(seeds), max_new, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(seeds), max_new, device=device)
    alive = torch.arange(len(seeds), device=device)
    for t in range(max_new):
        logits = capped(torch.nn.functional.linear(engine.state, head).float(), cap)
        if policy.temperature != 1:
            logits = logits / policy.temperature
        token = pick(logits, uniforms[alive, t], temperature, top_p)
        tokens[alive, t] = token
        logprobs[alive, t] = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        if t + 1 == max_new:
            break
        if t % CHECK == CHECK - 1 or t + 1 in spent:
            going = ~ends(policy, tokens[alive, : t + 1]).any(-1) & (budget[alive] > t + 1)
            n = int(going.sum())
            if n == 0:
                break
            if n <= WORTHWHILE * len(alive) or t + 1 in spent:
                rows = going.nonzero()[:, 0]
                alive, token = alive[rows], token[rows]
                engine.keep(rows)
        engine.step(token)
    return _samples(policy, tokens, logprobs, budget)


def _uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """[B, count] numbers from 0 to 1, of each row from its own seed."""
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
    return torch.from_numpy(np.stack([stream.random(count, np.float32) for stream in streams]))


def _samples(
    policy: Policy, tokens: torch.Tensor, logprobs: torch.Tensor, budget: torch.Tensor
) -> list[Sample]:
    """Of [B, T] what was written, each row up to its end or its budget."""
    ended = ends(policy, tokens)
    count = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, tokens.shape[1])
    finished, count = ended.any(-1) & (count <= budget), torch.minimum(count, budget)
    refuse_if(
        not logprobs.isfinite().all(),
        f"{policy.name} gives no probabilities any more (NaN): training has destroyed its "
        "weights, or they are damaged; train it again with a lower lr",
    )
    rows = zip(tokens.tolist(), logprobs.tolist(), count.tolist(), finished.tolist())
    return [Sample(tuple(ids[:n]), tuple(lp[:n]), end) for ids, lp, n, end in rows]


def ends(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    """[B, T] whether a turn ends with the token."""
    stop = torch.tensor(sorted(policy.stop_ids), dtype=torch.long, device=tokens.device)
    ended = torch.isin(tokens, stop)
    size = len(policy.stop_sequence)
    if 0 < size <= tokens.shape[1]:
        sequence = torch.tensor(policy.stop_sequence, device=tokens.device)
        ended[:, size - 1 :] |= (tokens.unfold(1, size, 1) == sequence).all(-1)
    return ended


def pick(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float = 1.0
) -> torch.Tensor:
    """[B] tokens by inverse transform: the first token whose cumulative probability exceeds the
    row's uniform number.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_p < 1:
        from transformers import TopPLogitsWarper

        logits = TopPLogitsWarper(top_p)(None, logits)
    mass = logits.softmax(-1).cumsum(-1)
    total = mass[:, -1:]
    # rounding must not carry the target up to the whole mass
    below = torch.nextafter(total, torch.zeros_like(total))
    token = torch.searchsorted(mass, torch.minimum(uniform[:, None] * total, below), right=True)
    return token[:, 0].clamp(max=logits.shape[-1] - 1)  # NaN ends past all of them


def sample_groups(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    k: int,
    seed: tuple[int | str, ...],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Group]:
    """K graded rollouts for each problem.

    ``seed`` are the coordinates of the call, such as (run seed, step); the others as in
    ``generate``.
    """

    def sample(share: list[Problem]) -> list[Group]:
        prompts = [policy.prompt_ids(problem.messages) for problem in share]
        seeds = [[coordinates(*seed, problem.id, j) for j in range(k)] for problem in share]
        written = generate(
            policy,
            prompts,
            seeds,
            max_new=task.max_new,
            temperature=temperature,
            top_p=top_p,
        )
        # a grader that is slow waits for a process of its own: as many at a time as processors
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = [
                pool.map(partial(graded, policy, task, problem, prompt), samples)
                for problem, prompt, samples in zip(share, prompts, written)
            ]
            return [Group(problem, tuple(row)) for problem, row in zip(share, rows)]

    return distributed.spread(problems, sample)


def graded(
    policy: Policy,
    task: Task,
    problem: Problem,
    prompt: tuple[int, ...],
    sample: Sample,
    prefix: tuple[int, ...] = (),
) -> Rollout:
    """What was written after a prompt, or after a ``prefix`` that somebody else wrote there."""
    ids = prefix + sample.ids
    text = policy.decode(ids)
    return Rollout(
        prompt,
        ids,
        (math.nan,) * len(prefix) + sample.logprobs,
        text,
        task.grade(problem, policy.opening(prompt) + text),
        "guided" if prefix else "policy",
        len(prefix),
        sample.finished,
    )
