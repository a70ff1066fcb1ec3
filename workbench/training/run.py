"""The one loop.

``update`` is the whole algorithm; ``fit`` repeats it, with records, evaluation and checkpoints that
survive a kill.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from workbench.core import (
    Batch,
    Group,
    Loss,
    Method,
    Problem,
    Scores,
    StepRecord,
    Task,
    WorkbenchError,
    coordinates,
)
from workbench.evaluation.metrics import evaluate
from workbench.model import distributed
from workbench.model.batch import collate, score
from workbench.model.policy import Learner
from workbench.records import RunWriter, dumps, replace_folder, write_atomic

SAMPLER_CAP = 2.0  # largest importance weight of the trainer's distribution against the sampler's


def update(
    method: Method,
    learner: Learner,
    task: Task,
    problems: Sequence,
    seed: tuple[int, ...],
    *,
    step: int = 0,
    rows: int | None = 32,
    updates: int = 1,
) -> StepRecord:
    """Sample, credit, score, loss, step.

    ``rows``: rollouts in a micro-batch (None: all at once). ``updates``: optimiser steps on the
    same batch.

    Micro-batches use the denominators of the whole batch, so their number changes the memory and
    not the gradient. For the same reason ranks can deal them out: each adds up its share, and all
    of them the rest (see distributed.py).
    """
    clock = _Clock()
    with learner.gathered():
        groups = method.sample(learner, task, problems, seed)
        clock("seconds_sample")
        credits = method.credit(groups, learner)
    batches, idle = learner.placement.share(
        collate(credits, learner.policy.pad_id, _rows(rows, len(credits)), learner.policy.device)
    )
    metrics: dict[str, float] = {}
    painted: dict[int, list[float]] = {}
    skipped = learner.skipped
    for number in range(updates):
        parts: dict[str, float] = {}
        for i, batch in enumerate(batches):
            scores = score(learner, batch, method)
            if number == 0 and not learner.policy.trains_in_fp32:
                batches[i] = batch = _weighted(batch, scores)
            loss = method.loss(scores, batch)
            _differentiate(learner, scores, loss.value)
            # the first update is on policy: only a later one has ratios other than 1, and clips
            if 0 < number == updates - 1:
                _add(parts, {f"last_{name}": value for name, value in loss.metrics.items()})
            if number == 0:
                _add(parts, _measure(scores, batch, loss))
                painted |= _paint(batch, loss)
                if updates > 1:
                    batches[i] = replace(batch, old_logp=scores.logp.detach())
        for batch in idle:
            _differentiate(learner, score(learner, batch, method))
        norm = learner.step()
        for part in distributed.gather(parts):
            _add(metrics, part)
        if number == 0:
            metrics["grad_norm"] = norm
    if (
        method.distil is not None
        and method.distil.teacher == "teacher"
        and learner.skipped == skipped
    ):
        metrics["teacher_distance"] = learner.update_teacher()
    clock("seconds_train")
    metrics |= (
        _describe(groups)
        | dict(method.diagnose(groups, credits))
        | {"skipped": float(learner.skipped)}
        | clock.laps
    )
    return StepRecord(step, metrics, tuple(groups), _painting(groups, painted))


def _differentiate(learner: Learner, scores: Scores, value: torch.Tensor | None = None) -> None:
    """A micro-batch with nobody to distil from has no gradient.

    If it has one on a rank that this one must keep step with, here it is 0.
    """
    here = value is not None and value.requires_grad
    if learner.placement.any(here):
        (value if here else 0 * scores.logp.sum()).backward()


def _rows(rows: int | None, credits: int) -> int | None:
    """So few rollouts in a micro-batch that no rank goes without."""
    return (
        rows if distributed.size() == 1 else min(rows or credits, -(-credits // distributed.size()))
    )


class _Clock:
    def __init__(self):
        self.laps, self.last = {}, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now


def _add(metrics: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        metrics[name] = (
            max(metrics.get(name, 0.0), value)
            if name.endswith("_max")
            else metrics.get(name, 0.0) + value
        )


@torch.no_grad()
def _measure(scores: Scores, batch: Batch, loss: Loss) -> dict[str, float]:
    """Parts of whole-batch means.

    loss         the value that was differentiated. Near 0 for GRPO whatever happens (its advantages
                 sum to 0): watch reward, not loss.
    entropy      mean next-token entropy in nats at the sampled places. Falling to 0: the policy no
                 longer explores.
    gap_max      largest |sampler log-prob - trainer log-prob|. Under 1e-4 in fp32; more means that
                 the two disagree about the model.
    gap_mean     its mean. In 4 bits .01 to .02 was seen (SmolLM2 on a CPU); truncated importance
                 weights correct for it (``_weighted``).
    credit_mean  mean |realised credit| a token. 0: nothing was learned in this step.

    And in ``update``, for a method with an EMA teacher: teacher_distance, |theta - theta'| / |theta
    - theta_0| after its step. From 1 - u it falls slowly while the policy moves on; 0 is no teacher
    but the policy itself, and a value that stays near 1 a teacher that does not follow.
    """
    tokens = batch.denominators["tokens"]
    known = batch.mask & batch.sampler_logp.isfinite()
    gap = torch.where(known, scores.logp.detach() - batch.sampler_logp, 0.0).abs()
    return {
        "loss": float(loss.value),
        "entropy": float(scores.entropy[batch.mask].sum()) / tokens,
        "gap_max": float(gap.max()),
        "gap_mean": float(gap.sum()) / tokens,
        "credit_mean": float(loss.credit[batch.mask].abs().sum()) / tokens,
        **loss.metrics,
    }


@torch.no_grad()
def _weighted(batch: Batch, scores: Scores) -> Batch:
    """The policy-gradient channel times min(pi_trainer / pi_sampler, 2): truncated importance
    weights. In bf16, in 4 bits, or with another engine the sampler's distribution is a little off
    the trainer's; without the weights the gradient is that of neither. (The other channels are not
    an expectation over the sampler, or weigh it themselves: methods/sdpo.py.)
    """
    known = batch.mask & batch.sampler_logp.isfinite()
    weight = torch.where(
        known, (scores.logp - batch.sampler_logp).exp().clamp(max=SAMPLER_CAP), 1.0
    )
    return replace(batch, channels=batch.channels | {"pg": batch.channels["pg"] * weight})


def _paint(batch: Batch, loss: Loss) -> dict[int, list[float]]:
    return {
        id(credit.rollout): [round(x, 5) for x in row[: len(credit.rollout.completion_ids)]]
        for credit, row in zip(batch.credits, loss.credit.tolist())
    }


def _painting(
    groups: Sequence[Group], painted: dict[int, list[float]]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """What all ranks painted, by group and rollout.

    (Ranks know a rollout by its place: ``id`` is each one's own.)
    """
    order = [id(r) for group in groups for r in group.rollouts]
    found = {
        place: row
        for part in distributed.gather({i: painted[r] for i, r in enumerate(order) if r in painted})
        for place, row in part.items()
    }
    places = iter(range(len(order)))
    return tuple(
        tuple(tuple(found.get(next(places), ())) for _ in group.rollouts) for group in groups
    )


def _describe(groups: Sequence[Group]) -> dict[str, float]:
    """What there is to say of the rollouts, beside ``update``'s own: grad_norm, before clipping, of
    the first update (a norm that jumps tenfold is a bad batch or too high a rate), skipped, updates
    so far that were not made because a gradient was not finite (healthy: 0), and last_NAME, a
    loss's metric in the last of several updates on one batch.

    reward, correct, length (completion tokens), finished (share that ended its turn): means over
    the rollouts that the policy wrote alone. contrast: share of groups in which their rewards
    differ; the others teach a group-relative method nothing (healthy: above one half). generated:
    tokens the policy wrote, also those that are in no rollout. Any other note of the groups is
    summed.
    """
    own = [r for group in groups for r in group.own]
    n = len(own)
    notes: dict[str, float] = {
        "generated": float(
            sum(len(r.completion_ids) - r.borrowed for group in groups for r in group.rollouts)
        )
    }
    for group in groups:
        for name, value in group.notes.items():
            notes[name] = notes.get(name, 0.0) + value
    return {
        "reward": sum(r.verdict.reward for r in own) / n,
        "correct": sum(r.verdict.correct for r in own) / n,
        "contrast": sum(len({r.verdict.reward for r in group.own}) > 1 for group in groups)
        / len(groups),
        "length": sum(len(r.completion_ids) for r in own) / n,
        "finished": sum(r.finished for r in own) / n,
        **notes,
    }


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


# A run may be resumed with more steps or other housekeeping, not with another algorithm.
_FREE = ("steps", "eval_every", "eval_problems", "eval_samples", "checkpoint_every", "keep_groups")


def _identity(config: dict) -> dict:
    paths = {key: os.path.normpath(config[key]) for key in ("model", "teacher") if config.get(key)}
    return {**config, **paths, "plan": {k: v for k, v in config["plan"].items() if k not in _FREE}}


def _fresh(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    # A run that failed within its first step left no line: it may be begun again.
    if (out / "checkpoint.pt").exists() or (metrics.exists() and metrics.stat().st_size):
        raise WorkbenchError(
            f"{out} already holds a run: go on with it (--resume), or name another folder"
        )
    return 0


def _resume(out: Path, learner: Learner, config: dict) -> int:
    path = out / "checkpoint.pt"
    if not path.exists():
        begun = [p for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
        if (out / "config.json").exists():
            _same(out, _stored(out / "config.json"), config)
            return 0  # killed before its first checkpoint: from the start
        if not begun:
            return 0
        raise WorkbenchError(f"there is no checkpoint to resume from in {out}")
    try:
        # of a sharded policy's checkpoint this rank only looks up its parts
        whole = learner.policy.gathered
        saved = torch.load(
            path,
            map_location=learner.policy.device if whole else "cpu",
            mmap=not whole,
            weights_only=True,
        )
        state, was, step = saved["learner"], saved["config"], saved["step"]
        state["trainable"], state["optimiser"], was["plan"]
    except Exception as error:
        raise WorkbenchError(f"{path} is not a checkpoint of the workbench") from error
    _same(out, was, config)
    learner.load_state(state)
    return step


def _stored(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return config | {"plan": dict(config["plan"])}
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(f"{path} is damaged: name another folder") from error


def _same(out: Path, was: dict, now: dict) -> None:
    """Refuse to go on with a run under other settings. (Through JSON: there a tuple is a list.)"""
    was, now = (json.loads(dumps(_identity(config))) for config in (was, now))
    changed = [name for key in now if key in was for name in _changes(key, was[key], now[key])]
    if changed:
        raise WorkbenchError(
            f"the run in {out} was started with other settings ({', '.join(changed)}): "
            "resume with the same ones, "
            "or name another folder"
        )


def _changes(key: str, was, now) -> list[str]:
    """What differs, as "key was -> now"; of a group of settings, each.

    A setting that an older run did not record cannot be compared.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        return [name for inner in was for name in _changes(inner, was[inner], now.get(inner))]
    return [] if was == now else [f"{key}: {was} -> {now}"]


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
