"""The page that the tour leaves: what happened, in words, numbers, curves and tokens.

(Not an export of a notebook: this is one file without a script or a request to the network, in
light and dark, and each sentence of it follows from the numbers of its own run.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from workbench.core import Group, Problem, Rollout, Task
from workbench.evaluation.metrics import Evaluation, bootstrap
from workbench.methods import grpo
from workbench.methods.grpo import GRPO
from workbench.model.policy import Policy
from workbench.records import Run
from workbench.training.run import TrainConfig
from workbench.viz.curves import learning_curves
from workbench.viz.html import group_html
from workbench.viz.page import (
    Section,
    cards,
    page,
    paragraphs,
    plain_table,
    preformatted,
    svg,
    table,
)
from workbench.viz.texts import escape
from workbench.viz.tokens import signed

HEADER = ("on held-out problems", "before", "after", "change")


@dataclass(frozen=True)
class Story:
    """A run, and the groups of the same held-out problems before and after it."""

    before: Sequence[Group]
    after: Sequence[Group]
    run: Run
    policy: Policy
    model: str
    task: Task
    method: GRPO
    plan: TrainConfig

    @cached_property
    def was(self) -> Evaluation:
        return Evaluation.of(self.before)

    @cached_property
    def now(self) -> Evaluation:
        return Evaluation.of(self.after)

    @cached_property
    def changes(self) -> list[float]:
        """By problem, the change of its share of right completions."""
        return [now - was for was, now in zip(self.was.per_problem, self.now.per_problem)]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.policy.model.parameters())

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table under ``HEADER``."""
        was, now, samples = self.was, self.now, self.was.samples
        low, high = bootstrap(self.changes)
        correct = (
            f"correct (avg@{samples}, 95 % interval)",
            f"{was.avg:.3f} [{was.low:.3f}, {was.high:.3f}]",
            f"{now.avg:.3f} [{now.low:.3f}, {now.high:.3f}]",
            f"{signed(now.avg - was.avg, 3)} [{signed(low, 3)}, {signed(high, 3)}]",
        )
        at_least_one = [
            _row(f"at least one of {n} correct (pass@{n})", was.pass_at[n], now.pass_at[n])
            for n in was.pass_at
            if n in (samples // 2, samples)
        ]
        length = _row("length, tokens", was.length, now.length, digits=1)
        finished = _row("ended by itself", was.finished, now.finished)
        return [correct, *at_least_one, length, finished]

    @property
    def table(self) -> str:
        """For a terminal."""
        return plain_table(HEADER, self.rows)


def _row(name: str, was: float, now: float, digits: int = 3) -> tuple[str, ...]:
    return name, f"{was:.{digits}f}", f"{now:.{digits}f}", signed(now - was, digits)


def tour_page(story: Story, folder: Path) -> str:
    """``folder``: where the run is, as the page's reader finds it."""
    lead = (
        f"{story.plan.steps} updates, seed {story.plan.seed}. Every number here was computed by "
        "the run that wrote this page."
    )
    sections = {
        "What happened": _what_happened(story),
        "Before and after": _before_and_after(story),
        "Learning curves": _curves(story),
        "One group, token by token": _one_group(story),
        "The same problem before and after": _one_problem(story),
        "The equation and its source": _source(folder),
        "What this can tell, and what not": _scope(story),
    }
    title = f"A tour: {story.model} learns by GRPO"
    return page(title, lead, [Section(name, html) for name, html in sections.items()])


def _what_happened(story: Story) -> str:
    method, plan = story.method, story.plan
    generated = int(story.run.metrics["generated"].sum())
    return paragraphs(
        f"A language model of {story.parameters:,} parameters ({story.model}) wrote solutions to "
        f"problems of the task “{story.task.name}”, and the task’s checker gave each a reward. (In "
        "arithmetic that is 1 if every written step and the answer are right, and 0 if not.) "
        "Nobody showed the model a right solution: it only learned which of its own solutions were "
        "better than its other ones.",
        f"In each of {plan.steps} updates it wrote {method.k} solutions (rollouts) to each of "
        f"{plan.prompts} new problems, {generated:,} tokens in all. GRPO then made the tokens of "
        "better-than-average rollouts more likely and the others less likely.",
        _verdict(story),
    )


def _verdict(story: Story) -> str:
    was, now = story.was, story.now
    low, high = bootstrap(story.changes)
    if low > 0:
        outcome = "It got better"
    elif high < 0:
        outcome = "It got worse"
    else:
        outcome = "No change can be told from chance (the interval of the difference holds 0)"
    better = sum(change > 0 for change in story.changes)
    worse = sum(change < 0 for change in story.changes)
    return (
        f"{outcome}: from {was.avg:.3f} to {now.avg:.3f} of the completions correct. "
        f"Of {was.problems} problems it now solves {better} more often, {worse} less often, and "
        f"{was.problems - better - worse} as often as before."
    )


def _before_and_after(story: Story) -> str:
    return table(HEADER, story.rows) + paragraphs(
        f"{story.was.problems} problems that never occur in training, {story.was.samples} samples "
        "each at temperature 1. Both columns use the same problems and the same random numbers. "
        "The intervals are bootstrap intervals over the problems; the one of the change is of the "
        "paired difference. All this is one run with one seed: another seed gives another number."
    )


def _curves(story: Story) -> str:
    curves = learning_curves({"GRPO": story.run.metrics})
    return svg(curves, "Learning curves: correct, contrast, entropy, length") + paragraphs(
        "Correct should rise. Contrast is the share of groups that hold both right and wrong "
        "rollouts; only these teach. It falls when most problems are always solved or never. "
        "Entropy is how undecided the model is; at 0 it no longer tries anything new. Length shows "
        "whether it learned to ramble or to stop early. The loss is not drawn: see below why it "
        "says nothing."
    )


def _one_group(story: Story) -> str:
    """The first recorded group with contrast, with its advantages computed in words."""
    recorded, metrics = story.run.groups, story.run.metrics
    step, group, credit = next((g for g in recorded if g[1].has_contrast), recorded[0])
    drawn = group_html(group, credit, story.policy)
    without = 100 * (1 - metrics["contrast"].mean())
    return (
        paragraphs(_advantages(step, group))
        + drawn
        + paragraphs(
            "Where all rewards of a group are equal, each is the mean, so every advantage is 0, "
            f"the loss is 0 and the gradient is 0. That was so in {without:.0f} % of this run’s "
            "groups. Even with contrast the loss is near 0, because advantages sum to 0 over a "
            f"group (mean |loss| of this run: {metrics['loss'].abs().mean():.3f}), although the "
            "gradient is not. So watch the share of correct completions, not the loss."
        )
    )


def _advantages(step: int, group: Group) -> str:
    rewards = group.rewards
    mean, std = rewards.mean(), rewards.std()
    if not group.has_contrast:
        return (
            f"No recorded group had contrast. In this one, from step {step}, all rewards are "
            f"{mean:g}, so every advantage is 0."
        )
    best = int((rewards == rewards.max()).sum())
    words = ", ".join(
        f"a rollout with reward {reward:g} gets {signed((reward - mean) / std)}"
        for reward in sorted(set(rewards.tolist()), reverse=True)
    )
    return (
        f"A group from step {step}. {best} of {len(rewards)} rollouts have reward "
        f"{rewards.max():g}: the mean is {mean:.3f} and the standard deviation {std:.3f}. The "
        f"advantage is (reward − mean) / standard deviation: {words}. Every token of a rollout "
        "gets the advantage of the whole: GRPO does not know which step went wrong. That is the "
        "number drawn on the tokens, and it is the number that the optimiser used."
    )


def _one_problem(story: Story) -> str:
    """The problem with the largest gain, all attempts before and after."""
    pairs = list(zip(story.before, story.after))
    before, after = max(pairs, key=lambda pair: _right(pair[1]) - _right(pair[0]))
    n, problem = len(before.rollouts), before.problem
    question = escape(problem.messages[-1]["content"])
    html = paragraphs(
        f"Of all held-out problems this is the one with the largest gain, {_right(before)} of {n} "
        f"correct before and {_right(after)} after: picked to show the change, so not typical. "
        "“◀” stands where an attempt went wrong first."
    )
    html += f"<p>Question: <b>{question}</b>. Answer: <b>{escape(problem.answer)}</b></p>"
    for name, group in (("Before", before), ("After", after)):
        attempts = [_attempt(problem, rollout, story.task) for rollout in group.rollouts]
        html += f"<h3>{name}: {_right(group)} of {n} correct</h3>{cards(attempts)}"
    return html


def _right(group: Group) -> int:
    return sum(rollout.verdict.correct for rollout in group.rollouts)


def _attempt(problem: Problem, rollout: Rollout, task: Task) -> str:
    lines = rollout.text.split("\n")
    mistake = task.first_error(problem, rollout.text)
    if mistake is not None:
        lines += [""] * (mistake.index + 1 - len(lines))
        lines[mistake.index] += "  ◀"
    return "\n".join([rollout.verdict.mark, *lines])


def _source(folder: Path) -> str:
    return (
        paragraphs(
            "This is how the file begins that computed every update above, "
            "workbench/methods/grpo.py, and its loss as it ran:"
        )
        + preformatted(inspect.getdoc(grpo))
        + preformatted(inspect.getsource(GRPO.loss))
        + paragraphs(
            f"The run is in {folder}: metrics.jsonl has one line a step "
            "(pandas.read_json(path, lines=True)), groups.jsonl whole groups with "
            "the number on every token, model/ the trained policy in Hugging "
            "Face format. The loop is workbench/training/update.py, update()."
        )
    )


def _scope(story: Story) -> str:
    return paragraphs(
        f"A model of {story.parameters:,} parameters that was trained on one small task can show "
        "how a method works: which tokens get credit, when a group teaches nothing, whether the "
        "loop learns at all, what happens when a setting changes. It runs through the same code as "
        "a large model.",
        "It cannot tell which method is better for a large language model on real problems, how "
        "large a gain to expect there, or which settings to take. Its mistakes were planted by its "
        "training data, its answers are short, and its checker is never wrong. For such questions "
        "run the same code on your model and your task: "
        "workbench train grpo --model PATH_OR_HUB_ID --task PROBLEMS.jsonl.",
    )
