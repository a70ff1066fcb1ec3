"""Who may write a run, which one may be gone on with, and from which step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout

from workbench.core import WorkbenchError, reason, refuse_if, refuse_on
from workbench.methods import without_retired
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.records import dumps, read_metrics

# A run may be resumed with more steps or other housekeeping, not with another algorithm.
HOUSEKEEPING = (
    "steps",  # first
    "eval_every",
    "eval_problems",
    "eval_samples",
    "checkpoint_every",
    "keep_groups",
    "stop_after",
)
# Settings that came later, with the value that runs without them had.
ADDED = {
    "plan": {
        "minibatches": 1,
        "temperature": 1.0,
        "dynamic_sampling": 0,
        "filter_problems": 0,
    },
    "optimiser": {"warmup": 0, "schedule": "constant"},
}
_DAMAGED = (
    "{} is not a checkpoint of the workbench, or it is damaged: put it back as it was, or name "
    "another folder"
)


@contextmanager
def sole_training(out: Path) -> Iterator[None]:
    """Nobody else trains in this folder meanwhile; it goes again if nothing is written to it.

    The system holds the lock for the process (of several, the first rank's), so that of one that
    was killed nothing remains but the file. Raises WorkbenchError, on all ranks, where there is
    another.
    """
    lock = FileLock(out / ".lock")
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    problem = ""
    if distributed.main():
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"another training is writing to {out}: wait for it, or name another folder"
        except (OSError, NotImplementedError) as error:
            problem = f"could not write to {out}: {reason(error)}"
    problem = distributed.gather(problem)[0]
    try:
        if problem:
            raise WorkbenchError(problem)
        yield
    finally:
        if lock.is_locked:  # before its end: whoever opened this file meanwhile asks again
            (out / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # there is a run
                for folder in new:
                    folder.rmdir()
            lock.release()


def same_prompts(out: Path, learner: Learner, resume: bool) -> dict:
    """What the config says of the chat template's options and date: those that the run began with.

    All ranks have the first one's date.
    """
    policies = [p for p in (learner.policy, learner.expert) if p is not None]
    recorded = {}
    if resume and (out / "config.json").exists():
        recorded = _config(out / "config.json").get("template") or {}
    now = learner.policy.template.moment.isoformat(timespec="seconds")
    [record, *_] = distributed.gather({"date": now} | recorded)
    for policy in policies:
        policy.template.restore(record)
    kept = learner.policy.template.record()
    return {"template": kept} if kept else {}


def first_step(out: Path, learner: Learner, config: dict, resume: bool) -> int:
    """The step to go on from: 0, or that of the checkpoint in ``out``, which the learner loads.

    Raises WorkbenchError where there is a run already (without ``resume``), one under other
    settings, or none to resume.
    """
    checkpoint = out / "checkpoint.pt"
    if not resume:
        metrics = out / "metrics.jsonl"
        # A run that failed within its first step left no line: it may be begun again.
        refuse_if(
            checkpoint.exists() or (metrics.exists() and metrics.stat().st_size),
            f"{out} already holds a run: go on with it (--resume), or name another folder",
        )
        return 0
    if checkpoint.exists():
        return _load(checkpoint, learner, config)
    if (out / "config.json").exists():  # killed before its first checkpoint
        _refuse_changes(out, _config(out / "config.json"), config)
    # env.json: all that a run of an older version may hold that was killed when it began
    elif any(path.name[0] != "." and path.name != "env.json" for path in out.glob("*")):
        raise WorkbenchError(f"there is no checkpoint to resume from in {out}")
    return 0


def _load(checkpoint: Path, learner: Learner, config: dict) -> int:
    # of a sharded policy's checkpoint this rank only looks up its parts
    gathered = learner.policy.gathered
    device = learner.policy.device if gathered else "cpu"
    with refuse_on(Exception, _DAMAGED.format(checkpoint)):
        with ZipFile(checkpoint) as archive:  # torch itself does not look at the checksums
            if archive.testzip() is not None:
                raise ValueError("a checksum does not fit")
        saved = torch.load(checkpoint, map_location=device, mmap=not gathered, weights_only=True)
        state, recorded, step = saved["learner"], saved["config"], saved["step"]
        finite = all(bool(weight.isfinite().all()) for weight in state["trainable"].values())
        teacher = state["trainable"] if state["teacher"] is None else state["teacher"]
        whole = teacher.keys() == state["trainable"].keys() and type(state["skipped"]) is int
        if not whole or state["optimiser"].keys() != {"state", "param_groups"}:
            raise ValueError("it has other parts")
        last = recorded["plan"]["steps"]
        possible = type(step) is int and 0 <= step <= last
        _identity(recorded)
    refuse_if(not possible, f"{checkpoint} is damaged: it is of step {step} in a run of {last}")
    refuse_if(
        not finite,
        f"the weights in {checkpoint} are no numbers any more (NaN): begin again in another "
        "folder, with a lower lr",
    )
    out = checkpoint.parent
    _refuse_changes(out, recorded, config)
    refuse_if(
        step > config["plan"]["steps"],
        f"the run in {out} has made {step} steps already, {config['plan']['steps']} are asked "
        "for: ask for as many or more",
    )
    _refuse_gap(out, step)
    failures = (KeyError, TypeError, ValueError, AttributeError, RuntimeError)
    with refuse_on(failures, _DAMAGED.format(checkpoint)):
        learner.load_state(state)
    return step


def _refuse_gap(out: Path, step: int) -> None:
    """What the steps before the checkpoint left must be there, or the run would have a hole."""
    steps = [line["step"] for line in read_metrics(out)]
    # without its file of groups, or one step twice, it is no whole run either
    whole = (out / "groups.jsonl").exists() or step == 0
    refuse_if(
        not whole or [n for n in steps if n < step] != list(range(step)),
        f"metrics.jsonl and groups.jsonl in {out} do not hold each of the {step} steps that "
        "its checkpoint goes on from: put them back as they were, or name another folder",
    )


def _config(path: Path) -> dict:
    damages = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
    with refuse_on(damages, f"{path} is damaged: name another folder"):
        config = json.loads(path.read_text(encoding="utf-8"))
        _identity(config)
        return config


def _refuse_changes(out: Path, recorded: dict, config: dict) -> None:
    before, now = _identity(recorded), _identity(config)
    changes = []
    for key in now:
        if key in before:
            changes += _changes(key, before[key], now[key])
    refuse_if(
        changes,
        f"the run in {out} was started with other settings ({', '.join(changes)}): "
        "resume with the same ones, or name another folder",
    )


def _identity(config: dict) -> dict:
    """What must not change. (Through JSON: there a tuple is a list.)"""
    identity = json.loads(dumps(config))
    for group, defaults in ADDED.items():
        if isinstance(identity.get(group), dict):
            identity[group] = defaults | identity[group]
    # how far a cosine has come depends on the run's end
    cosine = (identity.get("optimiser") or {}).get("schedule") == "cosine"
    for name in HOUSEKEEPING[cosine:]:
        identity["plan"].pop(name, None)
    identity.pop("dtype", None)  # what the GPU computes in: the next one may have another
    template = identity.pop("template", None) or {}
    identity["template"] = dumps(template.get("options", {}), sort_keys=True)
    identity["options"] = without_retired(identity.get("options", {}))
    if identity["options"].get("aggregate", "constant") != "constant":
        identity["options"].pop("constant", None)  # it does nothing
    for name in ("model", "adapter", "teacher", "teacher_adapter"):
        if identity.get(name):
            identity[name] = os.path.normpath(identity[name])
    return identity


def _changes(key: str, before, now) -> list[str]:
    """What differs, as "key before -> now"; of a group of settings, each.

    A setting that an older run did not record cannot be compared.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [name for inner in before for name in _changes(inner, before[inner], now.get(inner))]
    return [] if before == now else [f"{key}: {before} -> {now}"]
