r"""LUFFY: learning to reason under off-policy guidance.

arXiv 2504.14945 (mixed-policy GRPO with policy shaping)

    A_i  = r_i - mean_G r                     over k - 1 own rollouts and one whole expert trace
    L    = [ sum_own - A_i rho_t  +  sum_expert - A_i f(pi(y_t)) ] / (max length * sequences)
           - c mean_t H_t
    f(p) = p / (p + gamma)                    grad f = gamma p / (p + gamma)^2  grad log p

Realised credit: own token rho_t A_i, expert token A_i gamma p/(p + gamma)^2, both over (max length
* sequences). Where every own rollout is right, A = 0 and the trace teaches nothing; the expert's
probability counts as 1 in its importance ratio, as in the paper.

Differs from the paper:
- no std and no clip, as in the released script (grpo_use_std=False, loss_remove_clip=True) and not
  in the paper's equations;
- divided by the number of sequences as well (see trapo.py); a problem without a solution has k own
  rollouts, as released.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core import (
    FROM_TASK,
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Scores,
    coordinates,
    length_constant,
    refuse_if,
)
from workbench.losses import shaped
from workbench.methods.trapo import CENTERED, mixed, mixed_loss
from workbench.rollouts.prefixes import Prefix, continue_from, expert_rollout


@dataclass(frozen=True)
class LUFFY(Method):
    k: int = 8  # rollouts per problem, the expert's trace included
    gamma: float = 0.1
    entropy: float = 0.001  # weight of the entropy bonus
    constant: int = FROM_TASK  # the length to divide by; -1: the longest that the task allows

    def __post_init__(self):
        refuse_if(
            not (
                self.k >= 2
                and self.gamma > 0
                and self.entropy >= 0
                and length_constant(self.constant) >= 1
            ),
            "LUFFY takes k of 2 or more, gamma above 0, entropy of 0 or more and "
            "constant of 1 or more (-1: the task's max_new)",
        )

    def sample(self, learner, task, problems, seed) -> list[Group]:
        policy, experts, starts = learner.policy, [], []
        for problem in problems:
            traces = [
                expert_rollout(policy, task, problem, text, task.max_new)
                for text in problem.solutions[:1]
            ]
            places = range(self.k - len(traces))
            seeds = [coordinates(*seed, problem.id, place) for place in places]
            experts.append(tuple(traces))
            starts.append(Prefix(problem, (), seeds))
        written = continue_from(policy, task, starts)
        return [
            Group(problem, (*rollouts, *traces))
            for problem, rollouts, traces in zip(problems, written, experts)
        ]

    def credit(self, groups, learner) -> list[Credit]:
        credits = []
        for group in groups:
            for rollout, advantage in zip(group.rollouts, CENTERED.advantages(group)):
                credits.append(mixed(rollout, advantage, weight=advantage))
        return credits

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        length = length_constant(self.constant)
        return mixed_loss(
            scores, batch, lambda logp: shaped(logp, self.gamma), length, self.entropy
        )
