r"""TRAPO: trust-region adaptive policy optimisation.   arXiv 2512.17636 (eq. 3: TrSFT; Prop. 1: its optimum; micro-groups: adaptive prefixes)

    A_i     = r_i - mean_G r                                 over all 8, guided ones and the scored
            expert trace included; no std
    L       = [ sum_own - A_i rho_t  +  sum_prefix l(pi(y_t)) ] / (max length * sequences)  -  c
            mean_t H_t
    l(p)    = -log p  where p >= alpha,   -log alpha + 1 - p/alpha  where p < alpha         grad l =
            -min(1, p/alpha) grad log p

Micro-groups of n = 4, 2, 1, 1 rollouts. Before each, m is the mean return over all earlier samples
of the problem; where m < t the policy goes on from the first L of an expert's solution, elsewhere
it writes alone. L = 1: the whole trace, nothing is written.
    paper          L = 0, .2, .5, 1     t = -1, .5, .7, .9
    released-code  L = 0, .25, .5, 1    guided while successes < 2 of 4, < 4 of 6, < 7 of 7

Realised credit: own token rho_t A_i, prefix token min(1, pi/alpha), both over (max length *
sequences). A prefix is learned whatever the reward, so a group without a success still teaches; the
entropy bonus is no coefficient of the sampled token and is not drawn. ``prefix`` is the ablation:
trsft; sft (plain -log p); luffy (A_i p/(p + gamma), each copy with its own A_i); none (micro-groups
only).

Differs from the paper:
- the cut goes to the end of a line within 30 % of the length after L, else is exact (the released
  code: of a paragraph, "\n\n");
- the loss is divided by the number of sequences, so that a step does not grow with the batch (the
  released code divides each micro-batch's
  sum by the maximum length alone); the maximum is ``constant``, the response budget of the default
  task;
- a prefix that several rollouts of a group begin with is learned once (as released;
  ``shared="every"``: each copy);
- the last micro-group takes the problem's second solution where it has one (as released); a problem
  without solutions is never guided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from workbench.core import (
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Rollout,
    Scores,
    WorkbenchError,
    coordinates,
)
from workbench.losses import shaped, trsft
from workbench.rollouts.prefixes import Prefix, continue_from, expert_rollout, prefix_length


class MicroGroup(NamedTuple):
    n: int  # rollouts
    ratio: float  # L, the share of the expert's solution that is given
    bar: float  # t: guided where the mean return so far is below this


PRESETS = {
    "paper": (
        MicroGroup(4, 0.0, -1.0),
        MicroGroup(2, 0.2, 0.5),
        MicroGroup(1, 0.5, 0.7),
        MicroGroup(1, 1.0, 0.9),
    ),
    "released-code": (
        MicroGroup(4, 0.0, -1.0),
        MicroGroup(2, 0.25, 2 / 4),
        MicroGroup(1, 0.5, 4 / 6),
        MicroGroup(1, 1.0, 7 / 7),
    ),
}


@dataclass(frozen=True)
class TRAPO(Method):
    preset: Literal["paper", "released-code"] = "paper"
    prefix: Literal["trsft", "sft", "luffy", "none"] = "trsft"  # how expert tokens are learned
    alpha: float = 0.1  # TrSFT's trust region
    gamma: float = 0.1  # LUFFY's shaping
    shared: Literal["once", "every"] = "once"  # copies of one prefix that are learned
    entropy: float = 0.001  # weight of the entropy bonus
    constant: int = 80  # the length to divide by

    takes_wrong = False

    def __post_init__(self):
        if (
            self.preset not in PRESETS
            or self.prefix not in ("trsft", "sft", "luffy", "none")
            or self.shared not in ("once", "every")
        ):
            raise WorkbenchError(
                "TRAPO takes preset=paper|released-code, prefix=trsft|sft|luffy|none and "
                "shared=once|every"
            )
        if not (
            0 <= self.alpha <= 1 and self.gamma > 0 and self.entropy >= 0 and self.constant >= 1
        ):
            raise WorkbenchError(
                "TRAPO takes alpha from 0 to 1, gamma above 0, entropy of 0 or more and "
                "constant of 1 or more"
            )

    # ---- who writes the tokens

    def sample(self, learner, task, problems, seed) -> list[Group]:
        """The micro-groups one after the other, each in one batched generation over all problems.

        The last is mostly the expert's trace; where the policy may write it, one row would take as
        long as many. So it is written with the one before it where that one's success means no
        help, and thrown away (and counted: ``generated``) where help is due after all.
        """
        policy, stages = learner.policy, PRESETS[self.preset]
        rollouts: list[list[Rollout]] = [[] for _ in problems]
        notes: list[dict[str, float]] = [{} for _ in problems]
        ahead: dict[int, list[Rollout]] = {}
        for number, stage in enumerate(stages):
            starts, ready = [], {}
            for i, problem in enumerate(problems):
                rewards, given, wanted = [r.verdict.reward for r in rollouts[i]], (), stage.n
                if problem.solutions and guided(stage, rewards):
                    notes[i][f"guided_{number + 1}"] = 1.0
                    which = 1 if stage.ratio == 1 and len(problem.solutions) > 1 else 0
                    expert = expert_rollout(
                        policy, task, problem, problem.solutions[which], task.max_new
                    )
                    given = expert.completion_ids[
                        : prefix_length(expert, policy.decode, stage.ratio)
                    ]
                    if given == expert.completion_ids:
                        ready[i], wanted = [expert] * stage.n, 0
                    if i in ahead:
                        notes[i]["generated"] = float(sum(len(r.completion_ids) for r in ahead[i]))
                elif i in ahead:
                    ready[i], wanted = ahead[i], 0
                elif stage is stages[-2] and not guided(stages[-1], rewards + [1.0] * stage.n):
                    wanted += stages[-1].n
                starts.append(
                    Prefix(
                        problem,
                        given,
                        [
                            coordinates(*seed, problem.id, len(rollouts[i]) + j)
                            for j in range(wanted)
                        ],
                    )
                )
            for i, written in enumerate(continue_from(policy, task, starts)):
                written = ready.get(i, written)
                rollouts[i] += written[: stage.n]
                if written[stage.n :]:
                    ahead[i] = written[stage.n :]
        return [Group(*parts) for parts in zip(problems, map(tuple, rollouts), notes)]

    # ---- what each token is worth

    def credit(self, groups, learner) -> list[Credit]:
        credits = []
        for group in groups:
            learned = {()}
            for rollout, advantage in zip(group.rollouts, centered(group)):
                given = rollout.completion_ids[: rollout.borrowed]
                weight = (
                    0.0
                    if self.prefix == "none"
                    else advantage
                    if self.prefix == "luffy"
                    else float(given not in learned)
                )
                if self.shared == "once":
                    learned.add(given)
                credits.append(mixed(rollout, advantage, weight))
        return credits

    # ---- the objective

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        imitation = {
            "luffy": lambda logp: shaped(logp, self.gamma),
            "trsft": lambda logp: trsft(logp, self.alpha),
        }
        return mixed_loss(
            scores,
            batch,
            imitation.get(self.prefix, lambda logp: trsft(logp, 0.0)),
            self.constant,
            self.entropy,
        )

    def diagnose(self, groups, credits) -> dict[str, float]:
        """guided_2, _3, _4: problems whose micro-group was guided (a count). correct_unaided: share
        of the first micro-group that is correct; unlike ``correct``, which is also over later
        rollouts and those only where no help was needed. correct_guided: of the rollouts with a
        prefix.
        """
        first = PRESETS[self.preset][0].n
        unaided = [r.verdict.correct for group in groups for r in group.rollouts[:first]]
        helped = [
            r.verdict.correct for group in groups for r in group.rollouts if r.origin == "guided"
        ]
        return {"correct_unaided": float(np.mean(unaided))} | (
            {"correct_guided": float(np.mean(helped))} if helped else {}
        )


def guided(stage: MicroGroup, rewards: list[float]) -> bool:
    """Is this micro-group given a prefix, after the rewards of all earlier samples of the problem?"""
    return bool(rewards) and sum(rewards) / len(rewards) < stage.bar


def centered(group: Group) -> np.ndarray:
    """[K] r - mean r; without contrast exactly 0, not the rounding of it."""
    return (
        group.rewards - group.rewards.mean()
        if group.has_contrast
        else np.zeros(len(group.rollouts))
    )


def mixed(rollout: Rollout, advantage: float, weight: float) -> Credit:
    """``advantage`` on the policy's own tokens, ``weight`` of imitation on those that it borrowed."""
    borrowed = np.arange(len(rollout.completion_ids)) < rollout.borrowed
    return Credit.of(
        rollout, pg=np.where(borrowed, 0.0, advantage), nll=np.where(borrowed, weight, 0.0)
    )


def mixed_loss(
    scores: Scores, batch: Batch, imitation: Callable, constant: int, entropy: float
) -> Loss:
    """Policy gradient without a clip on ``pg``, ``imitation`` (log p -> loss, weight of grad log p)
    on ``nll``, and the entropy bonus.

    expert_p: mean probability of the learned expert tokens (near 1: nothing to imitate).
    expert_weight: mean weight of their gradient.
    """
    old = scores.logp.detach() if batch.old_logp is None else batch.old_logp
    pg, nll, tokens = batch.channels["pg"], batch.channels["nll"], batch.denominators["tokens"]
    expert_loss, expert_weight = imitation(scores.logp)
    own = (scores.logp - old).exp() * pg
    scale = batch.mask.float() / (constant * batch.sequences)
    per_token = (nll * expert_loss - own) * scale - entropy * scores.entropy * batch.mask / tokens
    credit = (own + nll * expert_weight).detach() * scale * tokens
    metrics, learned = {}, max(batch.denominators["nll"], 1.0)
    for name, value in (("expert_p", scores.logp.detach().exp()), ("expert_weight", expert_weight)):
        metrics[name] = float(value[batch.mask & (nll != 0)].sum()) / learned
    return Loss(per_token.sum(), per_token.detach(), credit, metrics)
