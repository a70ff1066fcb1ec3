"""The one loop.

``update`` is the whole algorithm; ``fit`` repeats it, with records, evaluation and checkpoints that
survive a kill.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from workbench.core import (
    Method,
    Problem,
    Task,
    WorkbenchError,
    coordinates,
)
from workbench.evaluation.metrics import evaluate
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.records import RunWriter, dumps, replace_folder, write_atomic
from workbench.training.resume import _fresh, _resume
from workbench.training.update import update


@dataclass(frozen=True)
class TrainConfig:
    """How long and how often; everything that is not the method's and not the model's."""

    steps: int = 60
    seed: int = 0
    prompts: int = 16  # problems per step
    rows: int = 32  # rollouts in a micro-batch
    updates: int = 1  # optimiser steps on one batch of rollouts
    eval_every: int = 20  # steps between evaluations on the validation split; 0: none
    eval_problems: int = 100
    eval_samples: int = 4
    checkpoint_every: int = 10
    keep_groups: int = 2  # whole groups recorded at every evaluation

    def __post_init__(self):
        least = {
            "steps": 1,
            "prompts": 1,
            "rows": 1,
            "updates": 1,
            "eval_every": 0,
            "eval_problems": 1,
            "eval_samples": 1,
            "checkpoint_every": 1,
            "keep_groups": 0,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise WorkbenchError(f"{name} must be {value} or more, not {getattr(self, name)}")


def fit(
    method: Method,
    learner: Learner,
    task: Task,
    plan: TrainConfig,
    out: str | Path,
    *,
    config: dict | None = None,
    resume: bool = False,
    writers: Sequence = (),
    watch: Mapping[str, Task] = {},
    progress: bool = True,
) -> Path:
    """Run ``plan.steps`` updates and leave a run directory (records.py) with the trained policy in
    it. ``watch``: other tasks that every evaluation also measures, as ``eval_NAME`` (avg@k on their
    validation split): what the policy could do before and may forget.

    A run that was killed at any moment goes on with ``resume`` from its last checkpoint and leaves
    the same metrics as one that was not: seeds come from coordinates, so nothing depends on what
    ran before.

    Under torchrun or accelerate launch all processes call this with the same arguments and share
    the work; one of them writes. ``out`` must be on a disk that all see. A run may be resumed with
    another number of processes, sharded or not. Raises WorkbenchError where they differ in anything
    that matters.

    Training can destroy what was learned. So a run that was evaluated keeps the policy of its best
    evaluation in ``best`` (none where no update brought it above its start), and warns once when it
    seems to collapse.
    """
    from tqdm.auto import tqdm

    out, main = Path(out), distributed.main()
    if plan.prompts < distributed.size():
        raise WorkbenchError(
            f"{distributed.size()} processes cannot share the {plan.prompts} problems of a "
            "step: start fewer, or set prompts higher"
        )
    config = {
        "method": type(method).__name__,
        "options": asdict(method),
        "plan": asdict(plan),
        **(config or {}),
    }
    start = _resume(out, learner, config) if resume else _fresh(out)
    first = task.problems("train", plan.prompts, coordinates(plan.seed, start))
    validation, *others = [
        t.problems("validation", plan.eval_problems, 0) if plan.eval_every else []
        for t in (task, *watch.values())
    ]
    for t, problems in (
        (task, first if method.samples else []),
        *zip((task, *watch.values()), (validation, *others)),
    ):
        _fits(learner.policy, t, problems)
    distributed.agree(
        lambda: {
            "settings": dumps(config),
            "run folders": str(out),
            "checkpoints": start,
            "weights": learner.fingerprint(),
            "problems": repr((first, validation, others)),
        }
    )
    writer = RunWriter(out, config, start) if main else None
    history = _history(out) if main else []
    ended = collapse(history, method)

    def measured() -> dict[str, float]:
        with learner.gathered():
            result = evaluate(learner.policy, task, validation, plan.eval_samples, 0)
            more = {
                f"eval_{name}": evaluate(learner.policy, other, problems, plan.eval_samples, 0).avg
                for (name, other), problems in zip(watch.items(), others)
            }
        return {
            "eval_avg": result.avg,
            "eval_low": result.low,
            "eval_high": result.high,
            "eval_length": result.length,
            **more,
        }

    with tqdm(
        total=plan.steps,
        initial=start,
        desc=type(method).__name__,
        disable=not (progress and main),
        unit="step",
    ) as bar:
        for step in range(start, plan.steps):
            extra = measured() if plan.eval_every and step % plan.eval_every == 0 else {}
            # the first rank knows the history
            if (
                extra
                and step
                and distributed.gather(extra["eval_avg"] > max(_evaluated(history), default=0.0))[0]
            ):
                _save_policy(out, learner, "best")
            problems = task.problems("train", plan.prompts, coordinates(plan.seed, step))
            with _memory(learner, plan):
                record = update(
                    method,
                    learner,
                    task,
                    problems,
                    (plan.seed, step),
                    step=step,
                    rows=plan.rows,
                    updates=plan.updates,
                )
            last = step + 1 == plan.steps
            if last and plan.eval_every:
                best, extra = (
                    max(_evaluated([*history, extra]), default=0.0),
                    extra | {f"final_{name}": value for name, value in measured().items()},
                )
                if distributed.gather(extra["final_eval_avg"] > best)[0]:
                    _save_policy(out, learner, "best")
            if main:
                history.append(record.metrics | extra)
                if not ended and (ended := collapse(history, method)):
                    kept = (
                        f" The policy of its best evaluation is in {out / 'best'}."
                        if (out / "best").is_dir()
                        else ""
                    )
                    warnings.warn(
                        f"step {step}: {ended}: the run may be collapsing.{kept}", stacklevel=2
                    )
            keep = plan.keep_groups if extra else 0
            record = replace(
                record,
                metrics=record.metrics | extra,
                groups=record.groups[:keep],
                credit=record.credit[:keep],
            )
            for each in (writer, *writers) if main else ():
                each.write(record)
            if (step + 1) % plan.checkpoint_every == 0 or last:
                distributed.agree(lambda: {"weights": learner.fingerprint()})
                _checkpoint(out, learner, step + 1, config)
            bar.update()
            bar.set_postfix(
                correct=f"{record.metrics['correct']:.2f}",
                length=f"{record.metrics['length']:.0f}",
                refresh=False,
            )
    _save_policy(out, learner, "adapter" if learner.lora else "model")
    distributed.gather("saved")  # nobody goes on before there is something to read
    return out


def _fits(policy, task: Task, problems: Sequence[Problem]) -> None:
    """Refuse, before anything is written, what would fail as soon as it is sampled."""
    for problem in problems:
        n = len(policy.prompt_ids(problem.messages))
        if n + task.max_new > policy.context:
            raise WorkbenchError(
                f"{problem.id}: its prompt of {n} tokens and {task.max_new} new ones do not "
                "fit the model's context of "
                f"{policy.context}: lower the task's max_new "
                "(problems.jsonl:max_new=64), or leave the problem out"
            )


@contextmanager
def _memory(learner: Learner, plan: TrainConfig) -> Iterator[None]:
    """Say what to lower when the memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) and "not enough memory" not in str(error):
            raise
        cures = [
            f"rows (now {plan.rows}), the rollouts in a micro-batch",
            "the method's k or the task's max_new, if it ran out while sampling",
        ]
        cures += [] if learner.policy.checkpointing else ["activations, with --checkpointing"]
        cures += [] if learner.lora else ["gradients and optimiser, with --lora 16"]
        cures += (
            ["weights, gradients and optimiser, with --shard"]
            if distributed.size() > 1 and learner.policy.gathered
            else []
        )
        cures += (
            []
            if not learner.lora or getattr(learner.policy.base, "is_quantized", False)
            else ["weights, with --4bit"]
        )
        raise WorkbenchError(
            f"out of memory on {learner.policy.device}; lower in this order: {'; '.join(cures)}"
        ) from error


def collapse(history: Sequence[Mapping[str, float]], method: Method, window: int = 5) -> str:
    """In words, whether a run seems to collapse; "" if not.

    The last evaluation under half of the best (of .05 or more). Means over 5 steps: ``correct``
    under half of its best (of .1 or more); of a method that learns from itself also ``entropy``
    under a tenth or ``length`` under a fifth of where it began. (A reward or an expert may rightly
    lower these.)
    """
    evaluated = _evaluated(history)
    if evaluated and 0.05 <= max(evaluated) > 2 * evaluated[-1]:
        return (
            f"right answers to the validation problems fell from {max(evaluated):.3g} to "
            f"{evaluated[-1]:.3g}"
        )
    if len(history) <= window:
        return ""
    from_itself = method.distil is not None and method.distil.teacher != "expert"
    floors = {"correct": 0.5} | ({"entropy": 0.1, "length": 0.2} if from_itself else {})
    for name, floor in floors.items():
        means = np.convolve([line[name] for line in history], np.full(window, 1 / window), "valid")
        was = means.max() * (means.max() >= 0.1) if name == "correct" else means[0]
        if means[-1] < floor * was:
            return f"{name} fell from {was:.3g} to {means[-1]:.3g} (means over {window} steps)"
    return ""


def _evaluated(history: Sequence[Mapping[str, float]]) -> list[float]:
    return [
        line[name]
        for line in history
        for name in ("eval_avg", "final_eval_avg")
        if np.isfinite(line.get(name, np.nan))
    ]


def _history(out: Path) -> list[dict[str, float]]:
    """The metrics so far. JSON has no NaN: null stands for it."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: np.nan if value is None else value for name, value in json.loads(line).items()}
        for line in lines
    ]


def _checkpoint(out: Path, learner: Learner, step: int, config: dict) -> None:
    state = learner.state()
    if distributed.main():
        buffer = io.BytesIO()
        torch.save({"step": step, "config": config, "learner": state}, buffer)
        write_atomic(out / "checkpoint.pt", buffer.getvalue())


def _save_policy(out: Path, learner: Learner, name: str) -> None:
    fresh = out / f".{name}.partial"
    if distributed.main():
        shutil.rmtree(fresh, ignore_errors=True)
    try:
        learner.save(fresh)
        if distributed.main():
            replace_folder(fresh, out / name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise WorkbenchError(
            f"could not write the trained policy to {out / name}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error
