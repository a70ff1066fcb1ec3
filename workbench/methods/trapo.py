r"""TRAPO: trust-region adaptive policy optimisation.

arXiv 2512.17636 (eq. 3: TrSFT; Prop. 1: its optimum; micro-groups: adaptive prefixes)

    A_i  = r_i - mean_G r              over all 8, guided ones and the scored expert trace included;
                                       no std
    L    = [ sum_own - A_i rho_t  +  sum_prefix l(pi(y_t)) ] / (max length * sequences)
           - c mean_t H_t
    l(p) = -log p                      where p >= alpha
           -log alpha + 1 - p/alpha    where p < alpha        grad l = -min(1, p/alpha) grad log p

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
  released code divides each micro-batch's sum by the maximum length alone); the maximum is
  ``constant``, the task's response budget if nothing else is said (in runs before it was: 80);
- a prefix that several rollouts of a group begin with is learned once (as released;
  ``shared="every"``: each copy);
- the last micro-group takes the problem's second solution where it has one (as released); a problem
  without solutions is never guided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from workbench.core import (
    FROM_TASK,
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Problem,
    Rollout,
    Scores,
    Task,
    coordinates,
    length_constant,
    refuse_if,
    rollouts_of,
)
from workbench.losses import ratio, shaped, trsft
from workbench.methods.grpo import GRPO
from workbench.model.policy import Policy
from workbench.options import check_choices
from workbench.rollouts.prefixes import Prefix, continue_from, expert_rollout, prefix_length

CENTERED = GRPO(scale="none")  # A_i = r_i - mean_G r


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
    constant: int = FROM_TASK  # the length to divide by; -1: the longest that the task allows

    takes_wrong = False

    def __post_init__(self):
        check_choices(self)
        refuse_if(
            not (
                0 <= self.alpha <= 1
                and self.gamma > 0
                and self.entropy >= 0
                and length_constant(self.constant) >= 1
            ),
            "TRAPO takes alpha from 0 to 1, gamma above 0, entropy of 0 or more and "
            "constant of 1 or more (-1: the task's max_new)",
        )

    # ---- who writes the tokens

    def sample(self, learner, task, problems, seed) -> list[Group]:
        """The micro-groups one after the other, each in one batched generation over all problems.

        The last is mostly the expert's trace; where the policy may write it, one row would take as
        long as many. So it is written with the one before it where that one's success means no
        help, and thrown away (and counted: ``generated``) where help is due after all.
        """
        drafts = list(map(_Draft, problems))
        for number in range(len(PRESETS[self.preset])):
            starts = [self._start(draft, number, learner.policy, task, seed) for draft in drafts]
            written = continue_from(learner.policy, task, starts)
            size = PRESETS[self.preset][number].n
            for draft, rollouts in zip(drafts, written):
                draft.add(rollouts, size)
        return [Group(d.problem, tuple(d.rollouts), d.notes) for d in drafts]

    def _start(
        self, draft: _Draft, number: int, policy: Policy, task: Task, seed: tuple[int, ...]
    ) -> Prefix:
        """What the policy goes on from in a problem's next micro-group, and how often."""
        stages, problem = PRESETS[self.preset], draft.problem
        stage, rewards = stages[number], draft.rewards
        prefix: tuple[int, ...] = ()
        rows = stage.n
        draft.ready = None
        if problem.solutions and guided(stage, rewards):
            expert, prefix = self._prefix(stage, policy, task, problem)
            if prefix == expert.completion_ids:
                draft.ready, rows = [expert] * stage.n, 0
            draft.notes[f"guided_{number + 1}"] = 1.0
            if draft.ahead:
                wasted = sum(len(rollout.completion_ids) for rollout in draft.ahead)
                draft.notes["generated"] = float(wasted)
        elif draft.ahead:
            draft.ready, rows = draft.ahead, 0
        elif stage is stages[-2] and not guided(stages[-1], rewards + [1.0] * stage.n):
            rows += stages[-1].n
        places = range(len(rewards), len(rewards) + rows)
        return Prefix(problem, prefix, [coordinates(*seed, problem.id, i) for i in places])

    @staticmethod
    def _prefix(
        stage: MicroGroup, policy: Policy, task: Task, problem: Problem
    ) -> tuple[Rollout, tuple[int, ...]]:
        """The expert's trace, and the beginning of it that is lent."""
        whole = stage.ratio == 1
        solution = problem.solutions[1 if whole and len(problem.solutions) > 1 else 0]
        expert = expert_rollout(policy, task, problem, solution, task.max_new)
        length = prefix_length(expert, policy.decode, stage.ratio)
        return expert, expert.completion_ids[:length]

    # ---- what each token is worth

    def credit(self, groups, learner) -> list[Credit]:
        credits = []
        for group in groups:
            learned = {()}
            for rollout, advantage in zip(group.rollouts, CENTERED.advantages(group)):
                prefix = rollout.completion_ids[: rollout.borrowed]
                weight = float(prefix not in learned)
                if self.prefix == "luffy":
                    weight = advantage
                if self.prefix == "none":
                    weight = 0.0
                if self.shared == "once":
                    learned.add(prefix)
                credits.append(mixed(rollout, advantage, weight))
        return credits

    # ---- the objective

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        if self.prefix == "luffy":
            imitation = partial(shaped, gamma=self.gamma)
        else:
            imitation = partial(trsft, alpha=self.alpha if self.prefix == "trsft" else 0.0)
        length = length_constant(self.constant)
        return mixed_loss(scores, batch, imitation, length, self.entropy)

    def diagnose(self, groups, credits) -> dict[str, float]:
        """guided_2, _3, _4: problems whose micro-group was guided (a count).

        correct_unaided: share of the first micro-group that is correct; unlike ``correct``, which
        is also over later rollouts and those only where no help was needed. correct_guided: of the
        rollouts with a prefix.
        """
        first = PRESETS[self.preset][0].n
        rollouts = rollouts_of(groups)
        unaided = [r.verdict.correct for group in groups for r in group.rollouts[:first]]
        helped = [r.verdict.correct for r in rollouts if r.origin == "guided"]
        metrics = {"correct_unaided": float(np.mean(unaided))}
        if helped:
            metrics["correct_guided"] = float(np.mean(helped))
        return metrics


@dataclass
class _Draft:
    """A problem's group in the making."""

    problem: Problem
    rollouts: list[Rollout] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    ready: list[Rollout] | None = None  # the next micro-group, where nothing has to be written
    ahead: list[Rollout] = field(default_factory=list)  # the last one, written with another

    @property
    def rewards(self) -> list[float]:
        return [rollout.verdict.reward for rollout in self.rollouts]

    def add(self, written: list[Rollout], size: int) -> None:
        """A micro-group of ``size``; what was written beyond it is kept for the last one."""
        micro_group = written if self.ready is None else self.ready
        self.rollouts += micro_group[:size]
        if micro_group[size:]:
            self.ahead = micro_group[size:]


def guided(stage: MicroGroup, rewards: list[float]) -> bool:
    """Is this micro-group given a prefix, after the rewards of all earlier samples?"""
    return bool(rewards) and sum(rewards) / len(rewards) < stage.bar


def mixed(rollout: Rollout, advantage: float, weight: float) -> Credit:
    """``advantage`` on the policy's own tokens, ``weight`` of imitation on the borrowed ones."""
    borrowed = np.arange(len(rollout.completion_ids)) < rollout.borrowed
    pg, nll = np.where(borrowed, 0.0, advantage), np.where(borrowed, weight, 0.0)
    return Credit.of(rollout, pg=pg, nll=nll)


def mixed_loss(
    scores: Scores, batch: Batch, imitation: Callable, constant: int, entropy: float
) -> Loss:
    """Policy gradient without a clip on ``pg``, ``imitation`` on ``nll``, and the entropy bonus.

    ``imitation``: log p -> (loss, weight of grad log p). Metrics, of the learned expert tokens:
    expert_p, their mean probability (near 1: nothing to imitate); expert_weight, the mean weight of
    their gradient.
    """
    pg, nll, tokens = batch.channels["pg"], batch.channels["nll"], batch.denominators["tokens"]
    expert_loss, expert_weight = imitation(scores.logp)
    surrogate = ratio(scores.logp, batch.old_logp) * pg
    scale = batch.mask.float() / (constant * batch.sequences)
    bonus = entropy * scores.entropy * batch.mask / tokens
    per_token = (nll * expert_loss - surrogate) * scale - bonus
    credit = (surrogate + nll * expert_weight).detach() * scale * tokens
    learned, places = max(batch.denominators["nll"], 1.0), batch.mask & (nll != 0)
    metrics = {
        "expert_p": float(scores.logp.detach().exp()[places].sum()) / learned,
        "expert_weight": float(expert_weight[places].sum()) / learned,
    }
    return Loss(per_token.sum(), per_token.detach(), credit, metrics)
