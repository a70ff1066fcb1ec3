"""The tour: the embedded model before, a short GRPO run, the same model after, and one page that
shows what happened.

    tour(Path("tour.html"))        what `make demo` and `workbench tour` run; the run goes to
                                   runs/tour-1 (2, 3, ...) beside the page
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path

from workbench.app.arguments import ADAPTER, add, named, positive
from workbench.core import Group, Problem, Task, WorkbenchError, refuse_if
from workbench.paths import ROOT
from workbench.records import read_run, write_atomic

ARGUMENTS = {
    "--model": {
        "type": named,
        "default": "data/organism/3m",
        "metavar": "MODEL",
        "help": "a folder, a hub id or a GGUF file (default: the organism, data/organism/3m)",
    },
    **ADAPTER,
    "--task": {"default": "arithmetic", "metavar": "NAME", "help": "as workbench train takes it"},
    "--out": {
        "type": Path,
        "default": Path("tour.html"),
        "help": "the page to write (default: tour.html)",
    },
    "--steps": {"type": positive, "default": 60},
    "--seed": {"type": int, "default": 0},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, ARGUMENTS)


def main(args: argparse.Namespace) -> None:
    tour(
        args.out,
        model=args.model,
        adapter=args.adapter,
        task=args.task,
        steps=args.steps,
        seed=args.seed,
    )


def tour(
    out: str | Path,
    *,
    model: str = "data/organism/3m",
    adapter: str | Path | None = None,
    task: str = "arithmetic",
    steps: int = 60,
    seed: int = 0,
    problems: int = 400,
    samples: int = 8,
    k: int = 8,
    progress: bool = True,
    **plan,
) -> Path:
    """Evaluate, train by GRPO, evaluate again on the same held-out problems; print a table and
    write the page ``out``. Returns the run's folder.

    ``model`` is a hub id, a path, or a path inside this checkout; ``adapter`` is merged into it
    first. ``plan`` are further fields of ``TrainConfig``.
    """
    from workbench.app.tour_page import Story, tour_page
    from workbench.methods.grpo import GRPO
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.tasks import load_task
    from workbench.training.run import TrainConfig, fit

    out = Path(out)
    method, plan = GRPO(k=k), TrainConfig(steps=steps, seed=seed, **plan)
    task = load_task(task)
    policy = load_policy(_place(model), adapter=adapter)
    learner = Learner(policy, OptimConfig(), seed=seed)
    folder = _fresh_folder(out)
    held_out = task.problems("test", problems, seed)
    sampled = partial(_sample, policy, task, held_out, samples, seed, progress)
    say = partial(print, flush=True)
    say(f"1/3  {model} on {problems} held-out problems, {samples} samples each")
    before = sampled("before")
    say(f"2/3  GRPO: {steps} updates of {plan.prompts} x {k} rollouts; the run is in {folder}")
    config = {"model": model, "task": task.name, "optimiser": asdict(learner.settings)}
    fit(method, learner, task, plan, folder, config=config, progress=progress)
    say("3/3  the same problems again")
    story = Story(before, sampled("after"), read_run(folder), policy, model, task, method, plan)
    say(f"\n{story.table}\n")
    write_atomic(out, tour_page(story, folder.relative_to(out.parent)))
    say(f"The page is {out}")
    return folder


def _place(model: str) -> str | Path:
    return ROOT / model if (ROOT / model).exists() else model


def _fresh_folder(out: Path) -> Path:
    """The first free runs/tour-N beside the page; made now, so that a folder that cannot be written
    to is noticed before the work.
    """
    refuse_if(out.is_dir(), f"{out} is a folder: name the file of the page to write")
    for number in count(1):
        folder = out.parent / "runs" / f"tour-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise WorkbenchError(
                f"could not write to {out.parent}: {error.strerror or error}"
            ) from error


def _sample(
    policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    progress: bool,
    name: str,
) -> list[Group]:
    """What ``evaluate`` samples, a few problems at a time under a progress bar; the groups are
    kept.
    """
    from tqdm.auto import tqdm

    from workbench.rollouts.sampling import sample_groups

    groups = []
    with tqdm(total=len(problems), desc=name, disable=not progress, unit="problem") as bar:
        for start in range(0, len(problems), 32):
            few = problems[start : start + 32]
            groups += sample_groups(policy, task, few, samples, (seed, "evaluate"))
            bar.update(len(few))
    return groups
