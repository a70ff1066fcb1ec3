r"""SFT: supervised fine-tuning on expert solutions.

    L = - mean_t log pi(y_t | x, y_<t)      over the tokens of one expert solution of each problem

Realised credit of a token: 1 on every token of the expert solution, right or wrong, likely or not:
what reinforcement learning is compared with. SFT-then-RL is two runs, the second on the model that
the first left, or from its adapter:

    workbench train sft --model MODEL --out runs/sft ...
    workbench train grpo --model runs/sft/model --out runs/sft-grpo ...
    workbench train grpo --model M --adapter runs/sft/adapter --lora 16 ...

Choice: the mean is over all tokens of the batch; each epoch-free step draws its problems like every
other method, so steps compare.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core import Batch, Credit, Group, Loss, Method, Scores, refuse_if, rollouts_of
from workbench.rollouts.prefixes import expert_rollout


@dataclass(frozen=True)
class SFT(Method):
    samples = False
    takes_wrong = False
    k: int = 1  # expert solutions per problem

    def __post_init__(self):
        refuse_if(self.k < 1, f"SFT needs k of 1 or more, not {self.k}")

    def sample(self, learner, task, problems, seed) -> list[Group]:
        groups = []
        for problem in problems:
            texts = problem.solutions[: self.k]
            rollouts = [expert_rollout(learner.policy, task, problem, text) for text in texts]
            if rollouts:
                groups.append(Group(problem, tuple(rollouts)))
        refuse_if(not groups, "SFT needs expert solutions, and the problems of this task have none")
        return groups

    def credit(self, groups, learner) -> list[Credit]:
        return [Credit.of(rollout, nll=1.0) for rollout in rollouts_of(groups)]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Metric ``nll``: nats a token of the expert.

        Falling; towards 0 the solutions are known by heart.
        """
        nll, learned = batch.channels["nll"], batch.denominators["nll"]
        per_token = -scores.logp * nll / learned
        credit = nll * batch.denominators["tokens"] / learned
        value = per_token.sum()
        return Loss(value, per_token.detach(), credit, {"nll": float(value.detach())})
