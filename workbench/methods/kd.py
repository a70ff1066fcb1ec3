r"""KD: knowledge distillation on what a stronger model writes, off policy.

Sequence level: Kim and Rush, arXiv 1606.07947

    L = - mean_t log pi(y_t | x, y_<t)      over the tokens of k samples y ~ q of each problem,
                                            q: the teacher

Realised credit of a token: 1 on every token that the teacher wrote, likely or not. It is SFT on the
teacher's samples in place of expert solutions. Beside OPD it shows what it is worth that the policy
writes and the teacher judges; beside SCOPE and GRPO, that rewards enter.

The teacher's tokens are not the policy's: ``generated`` is 0, they are counted in
``expert_tokens``, also those of samples that are not learned from. ``reward``, ``correct`` and
``length`` of a step are those of the teacher's samples.

Differs from the paper: samples at temperature 1 in place of the beam's best sequence, fresh ones in
each step, so that steps compare with the other methods'; ``correct`` leaves out the wrong ones
(rejection sampling).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.core import (
    Batch,
    Credit,
    Group,
    Loss,
    Method,
    Problem,
    Rollout,
    Scores,
    refuse_if,
    rollouts_of,
)
from workbench.methods.opd import require_teacher
from workbench.methods.sft import SFT
from workbench.model.policy import Policy
from workbench.rollouts.sampling import sample_groups


@dataclass(frozen=True)
class KD(Method):
    samples = False
    needs_expert = True
    takes_wrong = False
    k: int = 8  # the teacher's samples per problem
    correct: bool = False  # learn from the right ones only

    def __post_init__(self):
        refuse_if(self.k < 1, f"KD needs k of 1 or more, not {self.k}")

    def sample(self, learner, task, problems, seed) -> list[Group]:
        require_teacher(learner, "expert", "KD")
        groups = []
        for group in sample_groups(learner.expert, task, problems, self.k, seed):
            rollouts = tuple(
                adopted(learner.policy, group.problem, r, learner.expert) for r in group.rollouts
            )
            tokens = float(sum(len(rollout.completion_ids) for rollout in rollouts))
            groups.append(Group(group.problem, rollouts, {"expert_tokens": tokens}))
        return groups

    def credit(self, groups, learner) -> list[Credit]:
        rollouts = rollouts_of(groups)
        return [Credit.of(r, nll=1.0) for r in rollouts if r.verdict.correct or not self.correct]

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        return SFT().loss(scores, batch)


def adopted(policy: Policy, problem: Problem, rollout: Rollout, teacher: Policy) -> Rollout:
    """What another model with the same tokenizer wrote, after the policy's own prompt.

    None of its tokens is the policy's. Where their templates end turns or open thoughts otherwise,
    it is written as the policy's does. Raises WorkbenchError when it does not fit the context.
    """
    prompt, ids, text = policy.prompt_ids(problem.messages), rollout.completion_ids, rollout.text
    opening = teacher.opening(rollout.prompt_ids)
    if opening != policy.opening(prompt):
        text = opening + text if opening else policy.aloud(prompt, text)
        ids = policy.text_ids(text) + policy.end * rollout.finished
    elif rollout.finished and teacher.end != policy.end:
        end = teacher.end if ids[-len(teacher.end) :] == teacher.end else ids[-1:]
        ids = ids[: -len(end)] + policy.end
    size = len(ids)
    refuse_if(
        len(prompt) + size > policy.context,
        f"problem {problem.id} and the teacher's answer have {len(prompt) + size} "
        f"tokens, more than the model's context of {policy.context}",
    )
    unscored = (float("nan"),) * size
    return replace(
        rollout,
        prompt_ids=prompt,
        completion_ids=ids,
        logprobs=unscored,
        text=text,
        origin="expert",
        borrowed=size,
    )
