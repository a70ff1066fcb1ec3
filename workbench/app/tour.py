"""The tour: the embedded model before, a short GRPO run, the same model after, and one page that
shows what happened.

    tour(Path("tour.html"))        what `make demo` and `workbench tour` run; the run goes to
                                   runs/tour-1 (2, 3, ...) beside the page
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from workbench.core import Group, Problem, Rollout, Task, WorkbenchError
from workbench.evaluation.metrics import Evaluation, bootstrap
from workbench.methods import grpo
from workbench.methods.grpo import GRPO
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.paths import ROOT
from workbench.records import Run, read_run, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, fit
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
from workbench.viz.tokens import signed, visible

HEADER = ("on held-out problems", "before", "after", "change")


def tour(
    out: str | Path,
    *,
    model: str = "data/organism/3m",
    task: str = "arithmetic",
    steps: int = 60,
    seed: int = 0,
    problems: int = 400,
    samples: int = 8,
    k: int = GRPO.k,
    progress: bool = True,
    **plan,
) -> Path:
    """Evaluate, train by GRPO, evaluate again on the same held-out problems; print a table and
    write the page ``out``. Returns the run's folder.

    ``model`` is a hub id, a path, or a path inside this checkout. ``plan`` are further fields of
    train.Plan.
    """
    out, method = Path(out), GRPO(k=k)
    plan = TrainConfig(steps=steps, seed=seed, **plan)
    task = load_task(task)
    policy = load_policy(ROOT / model if (ROOT / model).exists() else model)
    learner = Learner(policy, OptimConfig(), seed=seed)
    folder = _fresh_folder(out)
    held_out = task.problems("test", problems, seed)
    print(f"1/3  {model} on {problems} held-out problems, {samples} samples each", flush=True)
    before = _sample(policy, task, held_out, samples, seed, "before", progress)
    print(
        f"2/3  GRPO: {steps} updates of {plan.prompts} problems x {k} rollouts; the run is in "
        f"{folder}",
        flush=True,
    )
    fit(
        method,
        learner,
        task,
        plan,
        folder,
        config={"model": model, "task": task.name, "optimiser": asdict(learner.settings)},
        progress=progress,
    )
    print("3/3  the same problems again", flush=True)
    after = _sample(policy, task, held_out, samples, seed, "after", progress)
    rows = _rows(Evaluation.of(before), Evaluation.of(after))
    print("\n" + plain_table(HEADER, rows) + "\n")
    write_atomic(
        out,
        _page(
            before,
            after,
            rows,
            read_run(folder),
            policy,
            model,
            task,
            method,
            plan,
            folder.relative_to(out.parent),
        ),
    )
    print(f"The page is {out}")
    return folder


def _fresh_folder(out: Path) -> Path:
    """The first free runs/tour-N beside the page; made now, so that a folder that cannot be written
    to is noticed before the work.
    """
    if out.is_dir():
        raise WorkbenchError(f"{out} is a folder: name the file of the page to write")
    number = 1
    while True:
        folder = out.parent / "runs" / f"tour-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise WorkbenchError(
                f"could not write to {out.parent}: {error.strerror or error}"
            ) from error


def _sample(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    name: str,
    progress: bool,
) -> list[Group]:
    """What ``evaluate`` samples, a few problems at a time under a progress bar; the groups are
    kept.
    """
    from tqdm.auto import tqdm

    groups = []
    with tqdm(total=len(problems), desc=name, disable=not progress, unit="problem") as bar:
        for start in range(0, len(problems), 32):
            groups += sample_groups(
                policy, task, problems[start : start + 32], samples, (seed, "evaluate")
            )
            bar.update(len(groups) - bar.n)
    return groups


# ---- numbers in words ----------------------------------------------------------------------------


def _interval(low: float, high: float, form: Callable[[float], str] = "{:.3f}".format) -> str:
    return f"[{form(low)}, {form(high)}]"


def _rows(before: Evaluation, after: Evaluation) -> list[tuple[str, ...]]:
    change = [b - a for a, b in zip(before.per_problem, after.per_problem)]
    k = before.samples
    measured = lambda e: f"{e.avg:.3f} {_interval(e.low, e.high)}"  # noqa: E731
    plain = lambda name, a, b, digits=3: (
        name,
        f"{a:.{digits}f}",
        f"{b:.{digits}f}",
        signed(b - a, digits),
    )  # noqa: E731
    return [
        (
            f"correct (avg@{k}, 95 % interval)",
            measured(before),
            measured(after),
            f"{signed(after.avg - before.avg, 3)} "
            f"{_interval(*bootstrap(change), lambda x: signed(x, 3))}",
        ),
        *(
            plain(f"at least one of {n} correct (pass@{n})", before.pass_at[n], after.pass_at[n])
            for n in before.pass_at
            if n in (k // 2, k)
        ),
        plain("length, tokens", before.length, after.length, 1),
        plain("ended by itself", before.finished, after.finished),
    ]


def _verdict(before: Evaluation, after: Evaluation) -> str:
    low, high = bootstrap([b - a for a, b in zip(before.per_problem, after.per_problem)])
    better = sum(b > a for a, b in zip(before.per_problem, after.per_problem))
    worse = sum(b < a for a, b in zip(before.per_problem, after.per_problem))
    outcome = (
        "It got better"
        if low > 0
        else "It got worse"
        if high < 0
        else "No change can be told from chance (the interval of the difference holds 0)"
    )
    return (
        f"{outcome}: from {before.avg:.3f} to {after.avg:.3f} of the completions correct. "
        f"Of {before.problems} problems it now solves "
        f"{better} more often, {worse} less often, and "
        f"{before.problems - better - worse} as often as before."
    )


# ---- the page ------------------------------------------------------------------------------------


def _page(
    before: list[Group],
    after: list[Group],
    rows,
    run: Run,
    policy: Policy,
    name: str,
    task: Task,
    method: GRPO,
    plan: TrainConfig,
    folder: Path,
) -> str:
    was, now = Evaluation.of(before), Evaluation.of(after)
    parameters = sum(p.numel() for p in policy.model.parameters())
    generated = int(run.metrics["generated"].sum())
    what = paragraphs(
        f"A language model of {parameters:,} parameters ({name}) wrote solutions to "
        f"problems of the task “{task.name}”, and the task’s checker gave each a "
        "reward. (In arithmetic that is 1 if every written step and the answer are right, "
        "and 0 if not.) Nobody showed the model a right "
        "solution: it only learned which of its own solutions were better than its other ones.",
        f"In each of {plan.steps} updates it wrote {method.k} solutions (rollouts) to each "
        f"of {plan.prompts} new problems, "
        f"{generated:,} tokens in all. GRPO then made the tokens of better-than-average "
        "rollouts more likely and the others less likely.",
        _verdict(was, now),
    )
    measured = table(HEADER, rows) + paragraphs(
        f"{was.problems} problems that never occur in training, {was.samples} samples each "
        "at temperature 1. Both columns use the same problems and "
        "the same random numbers. The intervals are bootstrap intervals over the problems; "
        "the one of the change is of the paired difference. "
        "All this is one run with one seed: another seed gives another number."
    )
    curves = svg(
        learning_curves({"GRPO": run.metrics}),
        "Learning curves: correct, contrast, entropy, length",
    ) + paragraphs(
        "Correct should rise. Contrast is the share of groups that hold both right and "
        "wrong rollouts; only these teach. It falls when "
        "most problems are always solved or never. Entropy is how undecided the model is; "
        "at 0 it no longer tries anything new. "
        "Length shows whether it learned to ramble or to stop early. The loss is not "
        "drawn: see below why it says nothing."
    )
    return page(
        f"A tour: {name} learns by GRPO",
        f"{plan.steps} updates, seed {plan.seed}. Every number here was computed by the "
        "run that wrote this page.",
        [
            Section("What happened", what),
            Section("Before and after", measured),
            Section("Learning curves", curves),
            Section("One group, token by token", _worked(run, policy, method)),
            Section("The same problem before and after", _pair(before, after, task)),
            Section("The equation and its source", _source(folder)),
            Section("What this can tell, and what not", _scope(parameters)),
        ],
    )


def _worked(run: Run, policy: Policy, method: GRPO) -> str:
    """The first recorded group with contrast, with its advantages computed in words."""
    step, group, credit = next((g for g in run.groups if g[1].has_contrast), run.groups[0])
    rewards = group.rewards
    mean, std = rewards.mean(), rewards.std()
    drawn = group_html(group, credit, lambda token: policy.tokenizer.decode([token]))
    if group.has_contrast:
        values = {
            f"{r:g}": signed((r - mean) / std) for r in sorted(set(rewards.tolist()), reverse=True)
        }
        words = ", ".join(f"a rollout with reward {r} gets {a}" for r, a in values.items())
        text = (
            f"A group from step {step}. {int((rewards == rewards.max()).sum())} of "
            f"{len(rewards)} rollouts have reward {rewards.max():g}: the mean "
            f"is {mean:.3f} and the standard deviation {std:.3f}. The advantage is "
            f"(reward − mean) / standard deviation: {words}. Every token of a "
            "rollout gets the advantage of the whole: GRPO does not know which step "
            "went wrong. That is the number drawn on the tokens, "
            "and it is the number that the optimiser used."
        )
    else:
        text = (
            f"No recorded group had contrast. In this one, from step {step}, all rewards are "
            f"{mean:g}, so every advantage is 0."
        )
    without = 1 - run.metrics["contrast"].mean()
    why = (
        "Where all rewards of a group are equal, each is the mean, so every advantage is 0, "
        "the loss is 0 and the gradient is 0. That was so in "
        f"{100 * without:.0f} % of this run’s groups. Even with contrast the loss is "
        "near 0, because advantages sum to 0 over a group "
        f"(mean |loss| of this run: {run.metrics['loss'].abs().mean():.3f}), although "
        "the gradient is not. So watch the share of correct completions, "
        "not the loss."
    )
    return paragraphs(text) + drawn + paragraphs(why)


def _pair(before: list[Group], after: list[Group], task: Task) -> str:
    rate = lambda group: sum(r.verdict.correct for r in group.rollouts)  # noqa: E731
    i = max(range(len(before)), key=lambda j: rate(after[j]) - rate(before[j]))
    n = len(before[i].rollouts)
    text = (
        f"Of all held-out problems this is the one with the largest gain, {rate(before[i])} "
        f"of {n} correct before and {rate(after[i])} after: picked to show "
        "the change, so not typical. “◀” stands where an attempt went wrong first."
    )
    question = escape(visible(before[i].problem.messages[-1]["content"]))
    return (
        paragraphs(text)
        + (f"<p>Question: <b>{question}</b>. Answer: <b>{escape(before[i].problem.answer)}</b></p>")
        + "".join(
            f"<h3>{name}: {rate(group)} of {n} correct</h3>"
            + cards([_attempt(group.problem, rollout, task) for rollout in group.rollouts])
            for name, group in (("Before", before[i]), ("After", after[i]))
        )
    )


def _attempt(problem: Problem, rollout: Rollout, task: Task) -> str:
    lines, wrong = rollout.text.split("\n"), task.first_error(problem, rollout.text)
    if wrong is not None:
        lines += [""] * (wrong.index + 1 - len(lines))
        lines[wrong.index] += "  ◀"
    return "\n".join(["✓" if rollout.verdict.correct else "✗", *lines])


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
            "Face format. The loop is workbench/training/run.py, update()."
        )
    )


def _scope(parameters: int) -> str:
    return paragraphs(
        f"A model of {parameters:,} parameters that was trained on one small task can show "
        "how a method works: which tokens get credit, when a group teaches "
        "nothing, whether the loop learns at all, what happens when a setting changes. It "
        "runs through the same code as a large model.",
        "It cannot tell which method is better for a large language model on real "
        "problems, how large a gain to expect there, or which settings to "
        "take. Its mistakes were planted by its training data, its answers are short, and "
        "its checker is never wrong. For such questions run the same code on your "
        "model and your task: workbench train grpo --model PATH_OR_HUB_ID --task PROBLEMS.jsonl.",
    )
