"""Test-time training: find one solution to one hard question (arXiv 2601.20802 v2, section 5).

    discovery@k = P(first success within k generations)

A generation is one attempt, a success one that the task grades as correct. The same number of
generations, spent in three ways:

    sdpo         16 attempts a step, each distilled from its own feedback (SDPO, reverse KL), until
                 the first success. Weights, optimiser and EMA teacher begin anew for every question
                 and seed.
    best_of      independent attempts of the base policy
    multi_turn   one attempt a turn, after the question and the feedback on all attempts so far,
                 without the attempts; where that is too long for the context, the oldest feedback
                 leaves first

and a control:

    blind        sdpo with a teacher that reads only that the attempt was wrong: the same updates
                 without what the feedback tells

GRPO needs no run: until the first success its advantages are 0 and it learns nothing, so it *is*
best_of, attempt by attempt.

What the feedback gives away. "Step 3 should be 57-28=29" is a line of the solution, so on the
arithmetic task a program that keeps what it is told needs one attempt a line at most. Measured
there is whether a learner can put together what it hears, sdpo in its weights and multi-turn in its
context; it is no search. ``told`` in the record counts the different feedback texts heard. Feedback
that gives away less, such as that of a program's public tests, goes through the same code: only
``task.grade`` is asked, for the words and for the success.

``workbench discover`` runs all of them on many questions: workbench/studies/discovery.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from workbench.core import Method, Problem, Task, Verdict, coordinates
from workbench.methods.sdpo import SDPO
from workbench.model.learner import Learner
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate, graded
from workbench.training.update import update

K = 16  # attempts in a step
# the paper's, at test time
OPTIONS = {"k": K, "a": 1.0, "top_k": 20, "demonstration": "none", "advantage_clip": 5.0}
METHODS = ("best_of", "multi_turn", "sdpo", "blind")
Seed = tuple[int | str, ...]


@dataclass(frozen=True)
class Blind(SDPO):
    """A control: the teacher reads the same word after every wrong attempt."""

    def shown(self, group, i):
        return "", "" if group.rollouts[i].verdict.correct else "Wrong."


# ---- how to spend generations on one question: each gives the verdicts of its attempts, in order


def spend(
    method: str, learner: Learner, task: Task, problem: Problem, budget: int, seeds: Sequence[Seed]
) -> list[list[Verdict]]:
    """The verdicts of a run of ``budget`` generations for each seed; one seed, but in multi_turn.

    ``method`` is one of METHODS. The learner is left as the run leaves it.
    """
    if method == "multi_turn":
        return converse(learner.policy, task, problem, budget, seeds)
    [seed] = seeds
    steps = budget // K
    if method == "best_of":
        return [independent(learner.policy, task, problem, steps, seed)]
    distilled = SDPO(**OPTIONS) if method == "sdpo" else Blind(**OPTIONS)
    return [learn(learner, task, problem, distilled, steps, seed)]


def learn(
    learner: Learner, task: Task, problem: Problem, method: Method, steps: int, seed: Seed
) -> list[Verdict]:
    """Attempt, update, and again, up to the first success.

    (The update on the batch with the success in it is made, and is of no use.)
    """
    verdicts: list[Verdict] = []
    for step in range(steps):
        record = update(method, learner, task, [problem], (*seed, step), step=step)
        verdicts += [rollout.verdict for rollout in record.groups[0].rollouts]
        if first_success(verdicts):
            break
    return verdicts[: first_success(verdicts)]


def independent(
    policy: Policy, task: Task, problem: Problem, steps: int, seed: Seed
) -> list[Verdict]:
    """All of ``steps`` batches of attempts, with the random numbers that ``learn`` draws: the two
    differ by the updates alone.
    """
    seeds = [[coordinates(*seed, step, problem.id, j) for j in range(K)] for step in range(steps)]
    prompts = [policy.prompt_ids(problem.messages)] * steps
    batches = generate(policy, prompts, seeds, max_new=task.max_new)
    samples = chain.from_iterable(batches)
    return [graded(policy, task, problem, prompts[0], sample).verdict for sample in samples]


def converse(
    policy: Policy, task: Task, problem: Problem, turns: int, seeds: Sequence[Seed]
) -> list[list[Verdict]]:
    """A conversation for each seed, side by side, each up to its first success."""
    talks: list[list[Verdict]] = [[] for _ in seeds]
    heard: list[list[str]] = [[] for _ in seeds]
    for turn in range(turns):
        going = [i for i, talk in enumerate(talks) if not first_success(talk[-1:])]
        for i in going:
            heard[i] = that_fits(policy, task, problem, heard[i])
        prompts = [turn_prompt(policy, task, problem, heard[i]) for i in going]
        places = [[coordinates(*seeds[i], "turn", turn, problem.id)] for i in going]
        attempts = generate(policy, prompts, places, max_new=task.max_new)
        for i, prompt, [sample] in zip(going, prompts, attempts):
            verdict = graded(policy, task, problem, prompt, sample).verdict
            talks[i].append(verdict)
            heard[i].append(verdict.feedback)
    return talks


def turn_prompt(
    policy: Policy, task: Task, problem: Problem, feedback: Sequence[str]
) -> tuple[int, ...]:
    return policy.prompt_ids(task.reprompt(problem, feedback="\n".join(feedback)))


def that_fits(policy: Policy, task: Task, problem: Problem, feedback: list[str]) -> list[str]:
    """Without the oldest texts that leave no room for an attempt. The question is never cut."""
    room = policy.context - task.max_new
    while feedback and len(turn_prompt(policy, task, problem, feedback)) > room:
        feedback = feedback[1:]
    return feedback


def first_success(verdicts: Sequence[Verdict]) -> int | None:
    """The number of the generation, from 1."""
    return next((n for n, v in enumerate(verdicts, 1) if v.correct), None)


def snapshot(learner: Learner) -> dict:
    """A copy of all that learning changes.

    ``learner.load_state`` of it is the learner as it is now, without reading the model again.
    """
    with learner.weights("teacher"):  # makes the EMA teacher, which belongs to it
        return copy.deepcopy(learner.state())
