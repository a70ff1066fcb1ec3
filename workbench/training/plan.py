"""The plan of a run, what is refused before it begins, and what is said when memory runs out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from workbench.core import Method, Problem, Task, WorkbenchError, refuse_if
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.model.policy import Policy


@dataclass(frozen=True)
class TrainConfig:
    """How long and how often; everything that is not the method's and not the model's."""

    steps: int = 60
    seed: int = 0
    prompts: int = 16  # problems per step
    rows: int = 32  # rollouts in a micro-batch
    updates: int = 1  # passes over one batch of rollouts
    # parts of the problems of a step, each with an optimiser step of its own in a pass
    minibatches: int = 1
    temperature: float = 1.0  # of the policy that is trained; evaluations are at 1
    # how often groups without contrast are replaced by those of fresh problems (DAPO)
    dynamic_sampling: int = 0
    # training problems measured with the policy as it is at the start, of which the run keeps to
    # those that it solves within the bounds; 0: to all problems, unmeasured
    filter_problems: int = 0
    filter_samples: int = 8
    accuracy_lower_bound: float = 0.125
    accuracy_upper_bound: float = 0.875
    eval_every: int = 20  # steps between evaluations on the validation split; 0: none
    eval_problems: int = 100
    eval_samples: int = 4
    checkpoint_every: int = 10
    keep_groups: int = 2  # whole groups recorded at every evaluation
    stop_after: int = 0  # evaluations in a row that are no better than the best before; 0: never

    def __post_init__(self):
        least = {
            "steps": 1,
            "prompts": 1,
            "rows": 1,
            "updates": 1,
            "minibatches": 1,
            "dynamic_sampling": 0,
            "filter_problems": 0,
            "filter_samples": 1,
            "eval_every": 0,
            "eval_problems": 1,
            "eval_samples": 1,
            "checkpoint_every": 1,
            "keep_groups": 0,
            "stop_after": 0,
        }
        for name, value in least.items():
            refuse_if(
                getattr(self, name) < value,
                f"{name} must be {value} or more, not {getattr(self, name)}",
            )
        refuse_if(
            self.minibatches > self.prompts,
            f"{self.minibatches} minibatches cannot share the {self.prompts} problems of a step",
        )
        refuse_if(
            not 0 < self.temperature < math.inf,
            f"temperature must be above 0, not {self.temperature}",
        )
        refuse_if(
            not 0 <= self.accuracy_lower_bound <= self.accuracy_upper_bound <= 1,
            "accuracy_lower_bound and accuracy_upper_bound lie between 0 and 1, in this order",
        )


def refuse_idle_ranks(plan: TrainConfig) -> None:
    refuse_if(
        plan.prompts < distributed.size(),
        f"{distributed.size()} processes cannot share the {plan.prompts} problems of a "
        "step: start fewer, or set prompts higher",
    )


def refuse_unused(plan: TrainConfig, method: Method, learner: Learner) -> None:
    """Raises WorkbenchError for a setting that would do nothing, or not what it says."""
    refuse_idle_ranks(plan)
    warmup = learner.settings.warmup
    refuse_if(
        warmup >= plan.steps,
        f"a warm-up of {warmup} updates never ends in a run of {plan.steps}: lower warmup, or "
        "raise steps",
    )
    refuse_if(
        plan.dynamic_sampling and not (method.samples and getattr(method, "k", 2) > 1),
        "dynamic_sampling replaces groups whose rewards are all equal, and here all are: the "
        "method samples none, or one rollout a group",
    )


def refuse_too_long(policy: Policy, task: Task, problems: Sequence[Problem]) -> None:
    for problem in problems:
        length = len(policy.prompt_ids(problem.messages))
        refuse_if(
            length + task.max_new > policy.context,
            f"{problem.id}: its prompt of {length} tokens and {task.max_new} new ones do not "
            f"fit the model's context of {policy.context}: lower the task's max_new "
            "(problems.jsonl:max_new=64), or leave the problem out",
        )


@contextmanager
def memory(learner: Learner, plan: TrainConfig) -> Iterator[None]:
    """Say what to lower when the memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ran_out = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not ran_out and "not enough memory" not in str(error):
            raise
        raise WorkbenchError(
            f"out of memory on {learner.policy.device}; lower in this order: "
            f"{'; '.join(_cures(learner, plan))}"
        ) from error


def _cures(learner: Learner, plan: TrainConfig) -> list[str]:
    policy = learner.policy
    cures = [
        f"rows (now {plan.rows}), the rollouts in a micro-batch",
        "the method's k or the task's max_new, if it ran out while sampling",
    ]
    if not policy.checkpointing:
        cures.append("activations, with --checkpointing")
    if not learner.lora:
        cures.append("gradients and optimiser, with --lora 16")
    if distributed.size() > 1 and policy.gathered:
        cures.append("weights, gradients and optimiser, with --shard")
    if learner.lora and not getattr(policy.base, "is_quantized", False):
        cures.append("weights, with --4bit")
    return cures
