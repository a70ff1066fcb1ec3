"""Which run may be gone on with, and from where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from workbench.core import WorkbenchError
from workbench.model.learner import Learner
from workbench.records import dumps

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
