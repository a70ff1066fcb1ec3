r"""SDPO: self-distillation policy optimisation.

arXiv 2601.20802 v2 (and the authors' code); SRPO routing: 2604.02288; OPSD: 2601.18734;
pass-rate weights (SC-SDPO): 2605.27765; ascent (AntiSD): 2605.11609; onset (ROSD): 2605.28014

    q         = pi_theta'(. | reprompt(x, demonstration or feedback), y_<t)
                theta': weights that follow theta slowly
    L         = mean_t w_t D_a(pi || sg q)          D over the policy's top_k tokens and one bucket
                                                    for the others (eq. 11)
    D_a       a = 1: KL(pi || q);  a = 0: KL(q || pi);  else, with m = (1-a) pi + a q,
              (1-a) KL(pi || m) + a KL(q || m)      a = 1/2: Jensen-Shannon
    token:    L = - mean_t w_t sg(Delta_t) log pi(y_t),   Delta_t = log q(y_t) - log pi(y_t)
    sequence: the same with Delta_t's mean over the rollout
    w_t       = min(pi / pi_old, cap) min(pi_old / pi_sampler, cap)
                detached; 1 on the first update with one engine
    mix       mix L_GRPO + (1 - mix) L              eq. 3's lambda
    mixed     teacher: log q = (1 - trust) log q_ref + trust log q_theta - log Z (the trust region),
              both under the reprompt

The teacher never writes: it re-scores the policy's own tokens, knowing more. A rollout is shown
another correct rollout of its group, drawn by coordinates (problem, its place, the texts of the
group: the same group, the same draw), without its <think> part; if there is none, the feedback on
itself; if there is neither it is masked. Correct rollouts are distilled too. The failed attempt is
not shown.

Realised credit of a token: w_t c_t with c = Delta_t (a = 1, token), q/pi - 1 (a = 0), (1 - a)(log m
- log pi) between; a token of the bucket has the bucket's. That is the sampled part: the loss moves
all tokens of the vocabulary. mix adds mix times GRPO's.

Differs from the paper and its code:
- the demonstration is drawn uniformly; the code takes the first, which its shuffling makes random;
- success is the task's ``correct``, not a reward threshold;
- a prompt that is too long loses the end of the demonstration or feedback, whichever is longer,
  never the instruction (the code cuts the prompt's end);
- the EMA teacher stays where it is if any update on the batch was not finite (the code: if all were
  not);
- aggregate="sequence" is what the code effectively does, masked rollouts counting in the mean; the
  default is the paper's mean over distilled tokens;
- sequence form: our reading of the ablation, the mean of Delta_t on every token of the rollout;
- advantage_clip holds every token's credit c_v in the gradient at this value from above (paper: 5
  at test time), and leaves the loss's value alone;
- a sampler that differs from the trainer is weighed as in the code (truncated at 2) in the GRPO of
  mix and srpo too, but by training/update.py, for all methods;
- srpo: one mean over all tokens of the batch, and exp(-H(q_t)) has mean 1 over each rollout, so
  that micro-batches do not change it.

OPSD is SDPO(teacher="frozen", demonstration="reference"). Of three more papers the abstracts were
read, not the whole text, and each is one factor on w_t:

- SC-SDPO, ``by_pass_rate``: [p (1 - p)]^(1/2) of a problem, p the share of its group that is right,
  with mean 1 over the rollouts of the batch that are distilled;
- AntiSD, ``ascend``: -1, the divergence from the hinted teacher grows. The paper's is a term beside
  GRPO, A - lam (softplus(Delta_t) - log 2) / 2 with lam = 1/2 (by others' reproduction of it): here
  ascend=true with a=0.5 and mix=0.67. Ascent alone is the sign of one reading, not the paper. A
  token where the teacher's entropy is not above ``gate`` nats is left out. The gate is by token
  (our reading: the paper's term is off while the teacher's mean entropy is under .93 of what it
  was after five updates);
- ROSD, ``onset``: 0 before the first step that the nearest right sibling does not have (the locator
  "divergence"), and on right rollouts. The paper's hint is a short corrective idea; ours is SDPO's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np
import torch

from workbench.core import (
    Batch,
    Credit,
    Distil,
    Group,
    Loss,
    Method,
    Problem,
    Rollout,
    Scores,
    coordinates,
    refuse_if,
)
from workbench.methods.grpo import GRPO
from workbench.options import check_choices
from workbench.rollouts.sampling import sample_groups
from workbench.spans import Spans, shared_steps, thought_texts
from workbench.tasks.prompts import reprompt
from workbench.thoughts import spoken

Teacher = Literal["ema", "mixed", "frozen", "live"]
Demonstration = Literal["sibling", "any", "reference", "none"]
WEIGHTS = {"ema": "teacher", "mixed": "mixed", "frozen": "reference", "live": "policy"}
BASELINE = GRPO(scale="none", eps_lo=0.2, eps_hi=0.28)  # the paper's GRPO


@dataclass(frozen=True)
class SDPO(Method):
    k: int = 8  # rollouts per problem
    a: float = 0.5  # the divergence, in logit form
    top_k: int = 100  # tokens compared one by one, in logit form; 0: all
    form: Literal["logit", "token", "sequence"] = "logit"
    # its rate u is the learner's option ema; "live" is the policy itself, and diverges (Table 4)
    teacher: Teacher = "ema"
    trust: float = 0.01  # share of the policy in the mixed teacher
    # "any": a success may be shown itself (Table 2); "reference": the problem's own solution
    demonstration: Demonstration = "sibling"
    # "always": also beside a demonstration
    feedback: Literal["fallback", "always", "never"] = "fallback"
    mix: float = 0.0  # lambda, the share of GRPO
    srpo: bool = False  # distil wrong rollouts only, confident teachers more; GRPO for all others
    cap: float = 2.0  # largest importance weight
    advantage_clip: float = math.inf  # largest credit of any token of the vocabulary
    aggregate: Literal["token", "sequence"] = "token"
    by_pass_rate: bool = False  # SC-SDPO: problems that are right half of the time count most
    ascend: bool = False  # AntiSD: away from the teacher
    gate: float = 0.0  # where it ascends: nats of the teacher's entropy that a token needs
    onset: bool = False  # ROSD: only wrong rollouts, and only from where they went wrong

    teacher_prompt_growth = 1  # the demonstration

    def __post_init__(self):
        check_choices(self)
        refuse_if(
            not (self.k >= 1 and self.top_k >= 0 and self.cap > 0 and self.advantage_clip > 0),
            "SDPO takes k of 1 or more, top_k of 0 or more, and cap and advantage_clip above 0",
        )
        refuse_if(
            not all(0 <= share <= 1 for share in (self.a, self.mix, self.trust)),
            "SDPO takes a, mix and trust from 0 to 1",
        )
        refuse_if(
            (self.ascend and self.srpo) or not 0 <= self.gate < math.inf,
            "SDPO takes ascend or srpo, not both, and gate of 0 or more",
        )
        refuse_if(
            self.srpo and self.mix,
            "SDPO takes srpo or mix, not both: srpo gives each rollout to one of the two losses",
        )

    @property
    def distil(self) -> Distil:
        # whose credit is Delta
        a, top_k = (self.a, self.top_k) if self.form == "logit" else (1.0, 0)
        return Distil(a, top_k, WEIGHTS[self.teacher], self.trust, self.advantage_clip)

    @property
    def grpo(self) -> GRPO:
        return replace(BASELINE, aggregate=self.aggregate)

    def sample(self, learner, task, problems, seed) -> list[Group]:
        return sample_groups(learner.policy, task, problems, self.k, seed)

    def shown(self, group: Group, i: int) -> tuple[str, str]:
        """(demonstration, feedback) for the teacher of rollout i; both empty: it has none."""
        rollout = group.rollouts[i]
        if self.srpo and rollout.verdict.correct:
            return "", ""
        texts = self._demonstrations(group, i)
        group_texts = [r.text for r in group.rollouts]
        draw = Random(coordinates("demonstration", group.problem.id, i, *group_texts))
        asked = group.problem.messages[-1]["content"] + group.problem.messages[0]["content"]
        demonstration = _unless_blank(spoken(draw.choice(texts), asked)) if texts else ""
        if self.feedback == "always" or (self.feedback == "fallback" and not demonstration):
            return demonstration, _unless_blank(rollout.verdict.feedback)
        return demonstration, ""

    def _demonstrations(self, group: Group, i: int) -> tuple[str, ...]:
        """What rollout i may be shown."""
        if self.demonstration == "none":
            return ()
        if self.demonstration == "reference":
            return group.problem.solutions[:1]
        right = [(j, r.text) for j, r in enumerate(group.rollouts) if r.verdict.correct]
        return tuple(text for j, text in right if j != i or self.demonstration == "any")

    def credit(self, groups, learner) -> list[Credit]:
        credits = []
        for group in groups:
            # most rollouts of a group are shown what another one is
            prompts: dict[tuple, tuple[int, ...] | None] = {}
            advantages = [0.0] * len(group.rollouts)
            if self.mix or self.srpo:
                advantages = self.grpo.advantages(group)
            for i, (rollout, pg) in enumerate(zip(group.rollouts, advantages)):
                shown = self.shown(group, i)
                key = (*shown, len(rollout.completion_ids))
                if key not in prompts:
                    prompts[key] = teacher_prompt(learner.policy, group.problem, rollout, *shown)
                prompt = prompts[key]
                taught = prompt is not None
                pg = 0.0 if self.srpo and taught else pg
                kl = taught * self.onset_mask(learner.policy, group, i)
                kl = -kl if self.ascend else kl
                credits.append(Credit.of(rollout, pg=pg, kl=kl, teacher_prompt_ids=prompt))
        if self.by_pass_rate:
            credits = pass_rate_weighted(credits, groups)
        return credits

    def onset_mask(self, policy, group: Group, i: int) -> np.ndarray | float:
        """[T] 1 from where rollout i leaves its nearest right sibling; 0 where it was right."""
        rollout = group.rollouts[i]
        if not self.onset:
            return 1.0
        if rollout.verdict.correct:
            return 0.0
        spans = Spans(rollout, policy.decode)
        right = [thought_texts(r.text) for r in group.rollouts if r.verdict.correct]
        shared = max((shared_steps(spans.lines, lines) for lines in right), default=0)
        return (np.arange(len(rollout.completion_ids)) >= spans.first_token(shared)).astype(float)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        objective, coefficient = self.objective(scores, batch)
        weight = (1 - self.mix) * self.token_weights(scores, batch)
        per_token = weight * objective
        credit = (weight * coefficient).detach() * batch.denominators["tokens"]
        metrics = self.health(scores, batch)
        if not self.mix and not self.srpo:
            return Loss(per_token.sum(), per_token.detach(), credit, metrics)
        grpo, share = self.grpo.loss(scores, batch), self.mix or 1.0
        return Loss(
            per_token.sum() + share * grpo.value,
            per_token.detach() + share * grpo.per_token,
            credit + share * grpo.credit,
            metrics | grpo.metrics,
        )

    def objective(self, scores: Scores, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T] what is minimised, and its realised credit."""
        if self.form == "logit":
            return scores.divergence, scores.divergence_credit
        delta = scores.divergence_credit
        if self.form == "sequence":
            delta = delta.sum(-1, keepdim=True) / batch.mask.sum(-1, keepdim=True)
        return -delta * scores.logp, delta

    def token_weights(self, scores: Scores, batch: Batch) -> torch.Tensor:
        """[B, T] what each distilled token counts: importance weight times part in the mean."""
        logp, kl = scores.logp.detach(), batch.channels["kl"]
        old_logp = logp if batch.old_logp is None else batch.old_logp
        sampled = batch.mask & batch.sampler_logp.isfinite()
        off_sampler = torch.where(sampled, old_logp - batch.sampler_logp, 0.0).exp()
        off_policy = (logp - old_logp).exp()
        weight = kl * off_policy.clamp(max=self.cap) * off_sampler.clamp(max=self.cap)
        if self.ascend:
            weight = weight * (scores.teacher_entropy > self.gate)
        lengths = batch.mask.sum(-1, keepdim=True)
        if self.srpo:
            sure = (-scores.teacher_entropy).exp() * batch.mask
            weight = weight * sure * lengths / sure.sum(-1, keepdim=True)
        if self.aggregate == "sequence":
            return weight / lengths / batch.sequences
        if self.srpo:
            return weight / batch.denominators["tokens"]
        return weight / max(batch.denominators["kl"], 1.0)

    @torch.no_grad()
    def health(self, scores: Scores, batch: Batch) -> dict[str, float]:
        """Means over the distilled tokens of the whole batch.

        divergence       D_a, nats. Falls as the policy learns; 0 from the start: the teacher sees
                         nothing that the policy does not know.
        delta_right      mean Delta_t on correct rollouts. Above delta_wrong, near 0 or positive;
                         falling below: the teacher disowns right answers.
        delta_wrong      the same on wrong rollouts. Negative: the teacher disagrees with mistakes.
                         Not below delta_right: it cannot tell them apart.
        tail             the policy's probability outside top_k. Below 0.01; more: take a larger
                         top_k.
        student_entropy  nats. Slowly falling; towards 0: the policy collapses onto its own
                         demonstrations.
        teacher_entropy  nats, at the same places. Below the policy's; above it: what the teacher
                         reads confuses it.
        """
        distilled, tokens = batch.channels["kl"] != 0, batch.denominators["kl"]
        if not tokens:
            return {}
        columns = {
            "divergence": scores.divergence,
            "tail": scores.tail_mass,
            "student_entropy": scores.entropy,
            "teacher_entropy": scores.teacher_entropy,
        }
        metrics = {name: float(of[distilled].sum()) / tokens for name, of in columns.items()}
        verdicts = [[credit.rollout.verdict.correct] for credit in batch.credits]
        right = distilled & torch.tensor(verdicts, device=distilled.device)
        in_right = batch.denominators["kl_right"]
        delta = scores.teacher - scores.logp
        if in_right:
            metrics["delta_right"] = float(delta[right].sum()) / in_right
        if tokens > in_right:
            metrics["delta_wrong"] = float(delta[distilled & ~right].sum()) / (tokens - in_right)
        return metrics

    def diagnose(self, groups, credits) -> dict[str, float]:
        """Shares of the rollouts.

        demonstrated  with a demonstration. Near the share of groups with a success; 0 without
                      feedback: nothing is learned.
        advised       with feedback on themselves.
        masked        with neither: not distilled (srpo: left to GRPO). Near 1: the problems are too
                      hard, or nearly all too easy to have company.
        copied        of the lines of demonstrated rollouts, the share that stands in their
                      demonstration. Rising to 1: the group has one answer left.
        """
        shown = [self.shown(group, i) for group in groups for i in range(len(group.rollouts))]
        copied = []
        for credit, (demonstration, _) in zip(credits, shown):
            if demonstration:
                lines = demonstration.split("\n")
                copied += [line in lines for line in credit.rollout.text.split("\n")]
        masked = sum(credit.teacher_prompt_ids is None for credit in credits)
        return {
            "demonstrated": sum(bool(text) for text, _ in shown) / len(credits),
            "advised": sum(bool(words) for _, words in shown) / len(credits),
            "masked": masked / len(credits),
            "copied": sum(copied) / max(len(copied), 1),
        }


def pass_rate_weighted(credits: list[Credit], groups: list[Group]) -> list[Credit]:
    """SC-SDPO: each problem's ``kl`` times [p (1 - p)]^(1/2), with mean 1 over its rollouts."""
    weights = []
    for group in groups:
        rate = np.mean([rollout.verdict.correct for rollout in group.rollouts])
        weights += [math.sqrt(rate * (1 - rate))] * len(group.rollouts)
    pairs = list(zip(credits, weights, strict=True))
    counted = [weight for credit, weight in pairs if credit.kl.any()]
    mean = float(np.mean(counted)) if any(counted) else 1.0
    return [replace(c, kl=(c.kl * weight / mean).astype(np.float32)) for c, weight in pairs]


def _unless_blank(text: str) -> str:
    return text if text.strip() else ""


def teacher_prompt(
    policy, problem: Problem, rollout: Rollout, demonstration: str, feedback: str
) -> tuple[int, ...] | None:
    """The prompt under which the teacher re-scores ``rollout``; None: there is nothing to show.

    Short enough for the model's context.
    """
    room = policy.context - len(rollout.completion_ids)
    texts = {"solution": demonstration, "feedback": feedback}
    while any(texts.values()):
        ids = policy.prompt_ids(reprompt(problem, **texts))
        if len(ids) <= room:
            return ids
        longer = max(texts, key=lambda name: len(texts[name]))
        tokens = policy.completion_ids(texts[longer])[:-1]
        shorter = policy.decode(tokens[: max(0, len(tokens) - (len(ids) - room))])
        shorter = shorter[: len(texts[longer]) - 1]  # an end of several tokens was cut, not this
        # a cut inside a character would come back longer
        texts[longer] = _unless_blank(shorter.rstrip("\N{REPLACEMENT CHARACTER}"))
    return None
