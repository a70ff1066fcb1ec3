"""A run is a directory of plain files:

    config.json     what was asked for
    env.json        what it ran on
    metrics.jsonl   one line a step: pandas.read_json(path, lines=True)
    groups.jsonl    a few whole groups with their credit
    checkpoint.pt   what it resumes from
    model/          the trained policy (or adapter/), in Hugging Face format
    best/           the policy at its best evaluation, if above its start

Every file is either appended to line by line or replaced whole, so a run that is killed at any
moment can be read and resumed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import Group, Problem, Rollout, StepRecord, Verdict, WorkbenchError

SCHEMA_VERSION = 1


def write_atomic(path: Path, data: str | bytes) -> None:
    """All of the file or none of it, also when the process or the disk gives up half-way."""
    if path.exists() and not path.is_file():
        raise WorkbenchError(f"could not write {path}: it is no ordinary file")
    # always the same name, so that a killed process leaves one at most
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise WorkbenchError(f"could not write {path}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: no NaN and no infinity (null), and no numbers of numpy's."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def dumps(value: Any, **how) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, **how)


def environment() -> dict[str, Any]:
    """What a run ran on, as far as it bears on its numbers."""
    import torch
    from torch import distributed

    versions = {}
    for name in ("torch", "transformers", "peft", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    joined = distributed.is_available() and distributed.is_initialized()
    return {
        "schema_version": SCHEMA_VERSION,
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": distributed.get_world_size() if joined else 1,
        "system": platform.system(),
    }


def group_to_dict(group: Group) -> dict:
    return asdict(group)


def group_from_dict(data: Mapping) -> Group:
    """The group that ``group_to_dict`` wrote: JSON has lists for tuples, and null for NaN."""
    about = data["problem"]
    problem = Problem(
        about["id"],
        tuple(about["messages"]),
        about["answer"],
        tuple(about["solutions"]),
        about["meta"],
    )
    rollouts = tuple(_rollout_from_dict(rollout) for rollout in data["rollouts"])
    return Group(problem, rollouts, data.get("notes", {}))


def _rollout_from_dict(data: Mapping) -> Rollout:
    logprobs = tuple(math.nan if logp is None else logp for logp in data["logprobs"])
    verdict = dict(data["verdict"])
    verdict["reward"] = math.nan if verdict["reward"] is None else verdict["reward"]
    return Rollout(
        **{
            **data,
            "verdict": Verdict(**verdict),
            "prompt_ids": tuple(data["prompt_ids"]),
            "completion_ids": tuple(data["completion_ids"]),
            "logprobs": logprobs,
        }
    )


class RunWriter:
    """Writes a run directory.

    ``start_step`` > 0: goes on with one, forgetting whatever came after the checkpoint.

    Raises WorkbenchError where the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any], start_step: int = 0):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkbenchError(
                f"could not write to {self.folder}: {error.strerror or error}"
            ) from error
        if start_step == 0:
            write_atomic(self.folder / "env.json", dumps(environment(), indent=1))
        write_atomic(
            self.folder / "config.json",
            dumps({"schema_version": SCHEMA_VERSION, **config}, indent=1),
        )
        for name in ("metrics.jsonl", "groups.jsonl"):
            earlier = [line for line in _lines(self.folder / name) if line["step"] < start_step]
            write_atomic(self.folder / name, "".join(dumps(line) + "\n" for line in earlier))

    def write(self, record: StepRecord) -> None:
        self._append("metrics.jsonl", {"step": record.step, **record.metrics})
        for group, credit in zip(record.groups, record.credit):
            line = {"step": record.step, **group_to_dict(group), "credit": credit}
            self._append("groups.jsonl", line)

    def _append(self, name: str, line: Mapping) -> None:
        try:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(dumps(line) + "\n")
        except OSError as error:
            raise WorkbenchError(
                f"could not write {self.folder / name}: {error.strerror or error}"
            ) from error


def _lines(path: Path) -> list[dict]:
    """The whole lines of a JSON-lines file.

    A last line that a killed process left unfinished is dropped.
    """
    if not path.exists():
        return []
    lines = []
    # bytes: only \n ends a line (not U+2028), and a character may be torn, too
    raw = path.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(raw, 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            if number < len(raw):
                raise WorkbenchError(f"{path}, line {number} is not JSON: {error}") from error
    return lines


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    metrics: Any  # a DataFrame with one row a step
    groups: tuple[tuple[int, Group, list], ...]  # (step, group, realised credit [rollout][token])


def read_run(folder: str | Path) -> Run:
    """Raises WorkbenchError where there is no run, or a damaged one, or one of another schema."""
    import pandas as pd

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise WorkbenchError(f"there is no run in {folder}: a folder with a config.json is needed")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = config["schema_version"]
        if version == SCHEMA_VERSION:
            env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
            groups = tuple(
                (line["step"], group_from_dict(line), line["credit"])
                for line in _lines(folder / "groups.jsonl")
            )
            metrics = pd.DataFrame(_lines(folder / "metrics.jsonl"))
            if len(metrics) and "step" not in metrics:
                raise ValueError("metrics.jsonl has other fields than a run's")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            f"the run in {folder} is damaged: {type(error).__name__}: {error}"
        ) from error
    if version != SCHEMA_VERSION:
        raise WorkbenchError(
            f"the run in {folder} has schema version {version}, this package reads {SCHEMA_VERSION}"
        )
    return Run(folder, config, env, metrics, groups)


class TensorBoard:
    """An extra writer of the metrics, for those who have TensorBoard."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise WorkbenchError("TensorBoard is not installed: pip install tensorboard") from error
        self._open = partial(SummaryWriter, str(Path(folder) / "tensorboard"))
        self._writer = None

    def write(self, record: StepRecord) -> None:
        # by now the run directory has been checked; of a resumed run, what came after its
        # checkpoint is made again
        if self._writer is None:
            self._writer = self._open(purge_step=record.step)
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder that is complete in the place of an older one."""
    if old.exists():
        shutil.rmtree(old)
    os.replace(new, old)
