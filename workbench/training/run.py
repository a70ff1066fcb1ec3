"""A run: many updates, with records, evaluation and checkpoints that survive a kill."""

from __future__ import annotations

import io
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError

from workbench.core import (
    Interrupted,
    Method,
    Problem,
    StepRecord,
    Task,
    WorkbenchError,
    coordinates,
    reason,
    refuse_if,
)
from workbench.evaluation.metrics import evaluate
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.records import RunWriter, dumps, read_metrics, replace_folder, write_atomic
from workbench.training import selection
from workbench.training.interrupts import Interrupts
from workbench.training.plan import (
    TrainConfig,
    memory,
    refuse_too_long,
    refuse_unused,
)
from workbench.training.resume import first_step, same_prompts, sole_training
from workbench.training.update import at_temperature, update


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
    """Run ``plan.steps`` updates and leave a run directory (records.py) with the trained policy.

    That is ``model`` where all weights were trained, and ``adapter`` with LoRA, for the model that
    the run was given: ``load_policy(model, adapter=out / "adapter")``. ``best`` is of the
    same form.

    ``watch``: other tasks that every evaluation also measures, as ``eval_NAME`` (avg@k on their
    validation split): what the policy could do before and may forget. ``writers`` are given each
    step's record, with all its groups, beside the run directory's own: ``write(record)``, and where
    they have them ``begin(plan)``, ``warn(words)`` and ``end()``. ``LiveRun()`` shows the run in a
    notebook as it is trained, with a stop button; ``Tracker(name, out)`` is for TensorBoard,
    trackio and W&B.

    A run that was killed at any moment goes on with ``resume`` from its last checkpoint and leaves
    the same metrics as one that was not: seeds come from coordinates, so nothing depends on what
    ran before. Ctrl-C and SIGTERM leave a checkpoint of all steps that were made, and then raise
    Interrupted; at a Python prompt and in a notebook Ctrl-C (its stop button) gives the run back
    with the policy so far, and a warning.

    With ``plan.stop_after`` = N the run ends when N evaluations in a row were no better than the
    best before them; resumed with the same N it makes no further step.

    Under torchrun or accelerate launch all processes call this with the same arguments and share
    the work; one of them writes. ``out`` must be on a disk that all see. A run may be resumed with
    another number of processes, sharded or not. Raises WorkbenchError where they differ in anything
    that matters.

    Training can destroy what was learned. So a run that was evaluated keeps the policy of its best
    evaluation in ``best`` (none where no update brought it above its start), and warns once when it
    seems to collapse.
    """
    out = Path(out)
    method = method.for_task(task)
    refuse_unused(plan, method, learner)
    refuse_if(
        taken := sorted({"", *PARTS} & set(watch)),
        f"a watched task cannot be called {', '.join(map(repr, taken))}: the task itself has that",
    )
    settings = _settings(method, learner, plan)
    with sole_training(out):
        config = settings | same_prompts(out, learner, resume) | (config or {})
        start = first_step(out, learner, config, resume)
        first = task.problems("train", plan.prompts, coordinates(plan.seed, start))
        exams = {name: Exam.of(each, plan) for name, each in {"": task, **watch}.items()}
        refuse_too_long(learner.policy, task, first if method.samples else ())
        for exam in exams.values():
            refuse_too_long(learner.policy, exam.task, exam.problems)
        _agree(learner, out, config, start, (first, *(exam.problems for exam in exams.values())))
        task = _filtered(learner, task, plan, out, start, resume)
        log = _Log(out, config, start, method, writers)
        with _watched(log, plan), _bar(method, plan, start, progress) as bar:
            _make_steps(method, learner, task, plan, exams, log, range(start, plan.steps), bar)
        _save_policy(out, learner, "adapter" if learner.lora else "model")
        distributed.gather("saved")  # nobody goes on before there is something to read
    return out


@contextmanager
def _watched(log: _Log, plan: TrainConfig) -> Iterator[None]:
    """Tell the writers when it begins and ends. At a prompt an interrupt ends no more than this."""
    log.tell("begin", plan)
    try:
        yield
    except Interrupted as stop:
        at_a_prompt = hasattr(sys, "ps1")  # IPython and its notebooks set it, too
        if stop.number != signal.SIGINT or not at_a_prompt:
            raise
        warnings.warn(str(stop), stacklevel=4)
    finally:
        log.tell("end")


def _settings(method: Method, learner: Learner, plan: TrainConfig) -> dict:
    """What the config says, where its caller says nothing else."""
    settings = {
        "method": type(method).__name__,
        "options": asdict(method),
        "plan": asdict(plan),
        "adapter": learner.policy.adapter or None,
        "adapter_use": learner.adapter_use,
        "teacher_adapter": (learner.expert and learner.expert.adapter) or None,
    }
    dtype = max(learner.policy.dtypes, key=lambda each: torch.finfo(each).eps)
    if dtype != torch.float32:
        settings["dtype"] = str(dtype).removeprefix("torch.")
    if learner.settings.scheduled:
        settings["optimiser"] = asdict(learner.settings)
    return settings


def _make_steps(
    method: Method,
    learner: Learner,
    task: Task,
    plan: TrainConfig,
    exams: Mapping[str, Exam],
    log: _Log,
    steps: range,
    bar,
) -> None:
    """Steps and their checkpoints. Raises Interrupted, with all that were made kept."""
    with Interrupts(learner) as interrupts:
        for step in steps:
            if log.out_of_patience(plan.stop_after):
                if step > steps.start:
                    _checkpoint(log.out, learner, step, log.config)
                break
            try:
                interrupts.begin_step()
                record = _step(method, learner, task, plan, exams, log, step)
            except KeyboardInterrupt:
                if not interrupts.intact():
                    raise
                learner.optimizer.zero_grad(set_to_none=True)
                if step > steps.start:
                    _checkpoint(log.out, learner, step, log.config)
                raise interrupts.stopped(step, plan.steps) from None
            log.write(record, keep=plan.keep_groups)
            if (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.steps:
                _checkpoint(log.out, learner, step + 1, log.config)
            bar.update()
            correct, length = record.metrics["correct"], record.metrics["length"]
            bar.set_postfix(correct=f"{correct:.2f}", length=f"{length:.0f}", refresh=False)


def _step(
    method: Method,
    learner: Learner,
    task: Task,
    plan: TrainConfig,
    exams: Mapping[str, Exam],
    log: _Log,
    step: int,
) -> StepRecord:
    """One update, with the evaluations that are due before it and, at the end, after it."""
    evaluation: dict[str, float] = {}
    if plan.eval_every and step % plan.eval_every == 0:
        evaluation = evaluate_now(learner, exams)
        if step:
            keep_best(log, learner, evaluation["eval_avg"], log.history)
    problems = task.problems("train", plan.prompts, coordinates(plan.seed, step))
    learner.set_rate(step, plan.steps)
    with memory(learner, plan):
        record = update(
            method,
            learner,
            task,
            problems,
            (plan.seed, step),
            step=step,
            rows=plan.rows,
            updates=plan.updates,
            minibatches=plan.minibatches,
            temperature=plan.temperature,
            dynamic_sampling=plan.dynamic_sampling,
        )
    if step == 0 and isinstance(task, selection.Filtered):
        if distributed.main():
            task.save(log.out)
        evaluation["generated"] = record.metrics["generated"] + task.generated
    if plan.eval_every and step + 1 == plan.steps:
        final = evaluate_now(learner, exams)
        keep_best(log, learner, final["eval_avg"], [*log.history, evaluation])
        evaluation |= {f"final_{name}": value for name, value in final.items()}
    return replace(record, metrics=record.metrics | evaluation)


def _filtered(
    learner: Learner, task: Task, plan: TrainConfig, out: Path, start: int, resume: bool
) -> Task:
    """The task with problems of medium difficulty, measured before the first step alone."""
    if not plan.filter_problems:
        return task
    problems = selection.pool(task, plan.filter_problems, plan.seed)
    refuse_too_long(learner.policy, task, problems)
    if start or (resume and (out / selection.FILE).exists()):
        measured = selection.recorded_difficulty(out)
    else:
        how = plan.filter_samples, plan.seed
        with memory(learner, plan), at_temperature(learner, plan.temperature):
            measured = selection.measure_difficulty(learner, problems, task, *how)
    bounds = plan.accuracy_lower_bound, plan.accuracy_upper_bound
    return selection.keep(task, problems, measured, bounds, plan.prompts)


class Exam(NamedTuple):
    """Validation problems of one task."""

    task: Task
    problems: list[Problem]
    samples: int

    @classmethod
    def of(cls, task: Task, plan: TrainConfig) -> Exam:
        problems = task.problems("validation", plan.eval_problems, 0) if plan.eval_every else []
        return cls(task, problems, plan.eval_samples)


PARTS = ("avg", "low", "high", "length")  # of an evaluation, in the log


def evaluate_now(learner: Learner, exams: Mapping[str, Exam]) -> dict[str, float]:
    """eval_avg, eval_low, eval_high, eval_length of the task; ``eval_NAME`` of those watched."""
    metrics = {}
    with learner.gathered():
        for name, exam in exams.items():
            result = evaluate(learner.policy, exam.task, exam.problems, exam.samples, 0)
            if name:
                metrics[f"eval_{name}"] = result.avg
                continue
            for part in PARTS:
                metrics[f"eval_{part}"] = getattr(result, part)
    return metrics


def keep_best(log: _Log, learner: Learner, average: float, earlier: Sequence[Mapping]) -> None:
    """Save the policy to ``best`` if it is better than at all ``earlier`` evaluations."""
    better = average > max(_evaluations(earlier), default=0.0)
    if distributed.gather(better)[0]:  # the first rank knows the history
        _save_policy(log.out, learner, "best")


class _Log:
    """The run directory as it is written: by the first rank; the others keep no history."""

    def __init__(self, out: Path, config: dict, start: int, method: Method, writers: Sequence):
        self.out, self.config, self.method = out, config, method
        self.writers: Sequence = ()
        self.history: list[Mapping[str, float]] = []
        if distributed.main():
            self.writers = (RunWriter(out, config, start), *writers)
            self.history = _history(out)
        self.ended = collapse(self.history, method)

    def write(self, record: StepRecord, keep: int) -> None:
        """Add a step, with ``keep`` whole groups if it was evaluated."""
        if not distributed.main():
            return
        self.history.append(record.metrics)
        self.warn_of_collapse(record.step)
        keep = keep if any(f"{name}_avg" in record.metrics for name in _EVALUATIONS) else 0
        own, *others = self.writers
        own.write(replace(record, groups=record.groups[:keep], credit=record.credit[:keep]))
        for writer in others:
            writer.write(record)

    def tell(self, what: str, *words) -> None:
        """Call ``begin``, ``warn`` or ``end`` of the writers that have it."""
        for writer in self.writers:
            getattr(writer, what, lambda *_: None)(*words)

    def out_of_patience(self, patience: int) -> bool:
        """Whether to stop, on all ranks: the first knows the history, and says so."""
        averages = _evaluations(self.history)
        before = averages[:-patience] if patience else []
        stop = bool(before) and max(averages[-patience:]) <= max(before)
        if not patience or not distributed.gather(stop)[0]:
            return False
        if distributed.main():
            self._say(f"stopped: evaluations in a row no better than {max(before):.3g}: {patience}")
        return True

    def _say(self, text: str) -> None:
        """As a warning, and to the writers that show it."""
        best = self.out / "best"
        text += f". The policy of its best evaluation is in {best}." if best.is_dir() else "."
        warnings.warn(text, stacklevel=5)
        self.tell("warn", text)

    def warn_of_collapse(self, step: int) -> None:
        """Once a run."""
        if self.ended:
            return
        self.ended = collapse(self.history, self.method)
        if self.ended:
            self._say(f"step {step}: {self.ended}: the run may be collapsing")


def _bar(method: Method, plan: TrainConfig, start: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(
        total=plan.steps,
        initial=start,
        desc=type(method).__name__,
        disable=not (progress and distributed.main()),
        unit="step",
    )


def _agree(learner: Learner, out: Path, config: dict, start: int, problems: Sequence) -> None:
    """All processes make the same run."""
    distributed.agree(
        lambda: {
            "settings": dumps(config),
            "run folders": str(out),
            "checkpoints": start,
            "weights": learner.fingerprint(),
            "problems": repr(problems),
        }
    )


# ---- collapse


_EVALUATIONS = ("eval", "final_eval")
WINDOW = 5  # steps
SURE = 4.0  # standard errors


def collapse(history: Sequence[Mapping[str, float]], method: Method) -> str:
    """In words, whether a run seems to collapse; "" if not.

    The last evaluation under half of the best (of .05 or more), its interval wholly under one
    before. Means over 5 steps: ``correct`` under half of its best (of .1 or more), by more than
    steps of few problems differ anyway (SURE standard errors, from the steps' differences to the
    next); of a method that learns from itself also ``entropy`` under a tenth or ``length`` under a
    fifth of where it began. (A reward or an expert may rightly lower these.)
    """
    averages, lows, highs = (_evaluations(history, part) for part in ("avg", "low", "high"))
    if (
        averages
        and 0.05 <= max(averages) > 2 * averages[-1]
        and (not lows or max(lows) > highs[-1])  # an evaluation may have no interval
    ):
        return (
            f"right answers to the validation problems fell from {max(averages):.3g} to "
            f"{averages[-1]:.3g}"
        )
    if len(history) <= WINDOW:
        return ""
    from_itself = method.distil is not None and method.distil.teacher != "expert"
    floors = {"correct": 0.5} | ({"entropy": 0.1, "length": 0.2} if from_itself else {})
    for name, floor in floors.items():
        values = [line.get(name, np.nan) for line in history]
        means = np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")
        was, noise = means[0], 0.0
        if name == "correct":
            was = means.max() * (means.max() >= 0.1)
            noise = np.sqrt(np.square(np.diff(values)).mean() / WINDOW)
        if means[-1] < floor * was and was - means[-1] > SURE * noise:
            return f"{name} fell from {was:.3g} to {means[-1]:.3g} (means over {WINDOW} steps)"
    return ""


def _evaluations(history: Sequence[Mapping[str, float]], part: str = "avg") -> list[float]:
    values = [line.get(f"{name}_{part}", np.nan) for line in history for name in _EVALUATIONS]
    return [value for value in values if np.isfinite(value)]


# ---- files


def _history(out: Path) -> list[dict[str, float]]:
    """The metrics so far. JSON has no NaN: null stands for it."""
    return [
        {name: np.nan if value is None else value for name, value in line.items()}
        for line in read_metrics(out)
    ]


def _checkpoint(out: Path, learner: Learner, step: int, config: dict) -> None:
    """Raises WorkbenchError, and leaves the one before, where weights are not finite."""
    distributed.agree(lambda: {"weights": learner.fingerprint()})
    state = learner.state()
    finite = [bool(p.isfinite().all()) for p in state["trainable"].values() if p is not None]
    refuse_if(
        not all(distributed.gather(all(finite))),
        f"after step {step - 1} the policy's weights are no numbers any more (NaN): begin "
        "again in another folder, with a lower lr",
    )
    if distributed.main():
        buffer = io.BytesIO()
        torch.save({"step": step, "config": config, "learner": state}, buffer)
        write_atomic(out / "checkpoint.pt", buffer.getbuffer())


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
            f"could not write the trained policy to {out / name}: {reason(error)}"
        ) from error
