"""Completions that somebody else began: an expert's whole trace, where to cut it, and rollouts that
go on from a given prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from workbench.core import Problem, Rollout, Task, refuse_if
from workbench.model import distributed
from workbench.model.policy import Policy
from workbench.rollouts.sampling import Sample, generate, graded
from workbench.spans import Spans


def expert_rollout(
    policy: Policy, task: Task, problem: Problem, text: str, longest: int | None = None
) -> Rollout:
    """An expert's solution with its end-of-turn token, none of whose tokens the policy wrote.

    What is over ``longest`` tokens is cut off.

    Raises WorkbenchError when it does not fit the model's context.
    """
    prompt = policy.prompt_ids(problem.messages)
    text = policy.aloud(prompt, text)
    solution = policy.completion_ids(text)
    ids = solution[:longest]
    refuse_if(
        len(prompt) + len(ids) > policy.context,
        f"problem {problem.id} and its solution have {len(prompt) + len(ids)} tokens, "
        f"more than the model's context of {policy.context}",
    )
    complete = ids == solution
    text = text if complete else policy.decode(ids)
    verdict, unscored = task.grade(problem, policy.opening(prompt) + text), (math.nan,) * len(ids)
    return Rollout(prompt, ids, unscored, text, verdict, "expert", len(ids), finished=complete)


def prefix_length(
    whole: Rollout, decode: Callable[[Sequence[int]], str], ratio: float, reach: float = 0.3
) -> int:
    """How many tokens of an expert's trace to give.

    ``ratio`` of them, or more up to the end of a line within ``reach`` of the length.
    """
    size = len(whole.completion_ids)
    exact, spans = int(ratio * size), Spans(whole, decode)
    if not 0 < exact < size:
        return exact
    ends = (spans.tokens_through(step.index) for step in spans.steps[:-1])
    return next((end for end in ends if exact <= end <= (ratio + reach) * size), exact)


class Prefix(NamedTuple):
    """What to go on from: a plain prompt and first tokens of a completion, once for each seed."""

    problem: Problem
    prefix: tuple[int, ...]
    seeds: Sequence[int]


def continue_from(policy: Policy, task: Task, starts: Sequence[Prefix]) -> list[list[Rollout]]:
    """Graded rollouts from each start, all in one batched generation.

    The prefix counts in the task's response budget: it is cut to it, and nothing is written where
    it fills it.
    """
    return distributed.spread(starts, lambda share: _continue_from(policy, task, share))


def _continue_from(policy: Policy, task: Task, starts: Sequence[Prefix]) -> list[list[Rollout]]:
    prompts = [policy.prompt_ids(start.problem.messages) for start in starts]
    prefixes = [start.prefix[: task.max_new] for start in starts]
    rooms = [task.max_new - len(prefix) for prefix in prefixes]
    written = generate(
        policy,
        [prompt + prefix for prompt, prefix in zip(prompts, prefixes)],
        [start.seeds if room else () for start, room in zip(starts, rooms)],
        max_new=rooms,
    )
    rollouts = []
    for start, prompt, prefix, samples in zip(starts, prompts, prefixes, written):
        tails = samples or [Sample((), (), False)] * len(start.seeds)
        finish = partial(graded, policy, task, start.problem, prompt, prefix=prefix)
        rollouts.append(list(map(finish, tails)))
    return rollouts
