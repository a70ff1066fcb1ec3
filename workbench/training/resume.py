"""Which run may be gone on with, and from which step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from workbench.core import WorkbenchError
from workbench.methods import without_retired
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.records import dumps

# A run may be resumed with more steps or other housekeeping, not with another algorithm.
HOUSEKEEPING = (
    "steps",
    "eval_every",
    "eval_problems",
    "eval_samples",
    "checkpoint_every",
    "keep_groups",
)


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
        if checkpoint.exists() or (metrics.exists() and metrics.stat().st_size):
            raise WorkbenchError(
                f"{out} already holds a run: go on with it (--resume), or name another folder"
            )
        return 0
    if checkpoint.exists():
        return _load(checkpoint, learner, config)
    if (out / "config.json").exists():  # killed before its first checkpoint
        _refuse_changes(out, _config(out / "config.json"), config)
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise WorkbenchError(f"there is no checkpoint to resume from in {out}")
    return 0


def _load(checkpoint: Path, learner: Learner, config: dict) -> int:
    # of a sharded policy's checkpoint this rank only looks up its parts
    gathered = learner.policy.gathered
    device = learner.policy.device if gathered else "cpu"
    try:
        saved = torch.load(checkpoint, map_location=device, mmap=not gathered, weights_only=True)
        state, recorded, step = saved["learner"], saved["config"], saved["step"]
        state["trainable"], state["optimiser"], recorded["plan"]
    except Exception as error:
        raise WorkbenchError(f"{checkpoint} is not a checkpoint of the workbench") from error
    _refuse_changes(checkpoint.parent, recorded, config)
    learner.load_state(state)
    return step


def _config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return config | {"plan": dict(config["plan"])}
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(f"{path} is damaged: name another folder") from error


def _refuse_changes(out: Path, recorded: dict, config: dict) -> None:
    before, now = _identity(recorded), _identity(config)
    changes = []
    for key in now:
        if key in before:
            changes += _changes(key, before[key], now[key])
    if changes:
        raise WorkbenchError(
            f"the run in {out} was started with other settings ({', '.join(changes)}): "
            "resume with the same ones, or name another folder"
        )


def _identity(config: dict) -> dict:
    """What must not change. (Through JSON: there a tuple is a list.)"""
    identity = json.loads(dumps(config))
    for name in HOUSEKEEPING:
        identity["plan"].pop(name, None)
    template = identity.pop("template", None) or {}
    identity["template"] = dumps(template.get("options", {}), sort_keys=True)
    identity["options"] = without_retired(identity.get("options", {}))
    for name in ("model", "adapter", "teacher"):
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
