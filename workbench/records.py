"""A run is a directory of plain files:

    config.json     what was asked for
    env.json        what it ran on
    metrics.jsonl   one line a step: pandas.read_json(path, lines=True)
    groups.jsonl    a few whole groups with their credit
    checkpoint.pt   what it resumes from: a zip archive, which holds a checksum of each of its parts
    model/          the trained policy, in Hugging Face format; with LoRA adapter/, in peft's, for
                    the model that config.json names; with checksums.json
    best/           the policy at its best evaluation, if above its start
    .lock           while a training writes here, or where one was killed

Every file is either appended to line by line or replaced whole, and is on the disk before the next
one is begun: a run that is killed at any moment can be read and resumed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import (
    Group,
    Problem,
    Rollout,
    StepRecord,
    Verdict,
    WorkbenchError,
    reason,
    refuse_if,
    refuse_on,
)

SCHEMA_VERSION = 1
CHECKSUMS = "checksums.json"


def write_atomic(path: Path, data: str | bytes | memoryview) -> None:
    """All of the file or none of it, also when the process or the disk gives up half-way.

    Its folder is made.
    """
    refuse_if(
        path.exists() and not path.is_file(), f"could not write {path}: it is no ordinary file"
    )
    # always the same name, so that a killed process leaves one at most
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise WorkbenchError(f"could not write {path}: {reason(error)}") from error
    with suppress(OSError):  # not every system can
        _sync(path.parent)


def refuse_unwritable(path: Path) -> None:
    """Before the work whose result ``path`` will hold. Nothing is made yet.

    Raises WorkbenchError where the file cannot be written.
    """
    special = path.exists() and not path.is_file()
    refuse_if(special, f"could not write {path}: it is no ordinary file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    refuse_if(
        not (above.is_dir() and os.access(above, os.W_OK)),
        f"could not write {path}: nothing can be written into {above}",
    )


def _sync(path: Path) -> None:
    """What was written to a file or a folder goes onto the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path) -> None:
    """Leave the checksums of a folder's weights beside them, and all of it on the disk."""
    sums = {path.name: _checksum(path) for path in sorted(folder.glob("*.safetensors"))}
    write_atomic(folder / CHECKSUMS, dumps(sums, indent=1))
    for path in folder.iterdir():
        _sync(path)


def check_seal(folder: Path) -> None:
    """Raises WorkbenchError where weights are not those that were sealed.

    Folders without checksums, older or of others, are taken as they are.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    damages = (OSError, ValueError, TypeError, RecursionError)
    with refuse_on(damages, f"{folder / CHECKSUMS} is damaged", why=True):
        sums = dict(json.loads((folder / CHECKSUMS).read_bytes()))
    for path in folder.glob("*.safetensors"):
        refuse_if(
            path.name in sums and sums[path.name] != _checksum(path),
            f"{path} is damaged: its checksum is not that in {CHECKSUMS} (which you may delete "
            "if you put other weights there)",
        )


def _checksum(path: Path) -> str:
    """CRC-32: it finds damage, not malice, at twice the speed of the fastest hash."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return f"crc32:{crc:08x}"


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: no NaN and no infinity (null), and no numbers of numpy's."""
    if isinstance(value, np.floating):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def dumps(value: Any, **how) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, **how)


def environment() -> dict[str, Any]:
    """What a run ran on, as far as it bears on its numbers."""
    import torch
    from torch import distributed

    packages = ("torch", "transformers", "peft", "numpy")
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    joined = distributed.is_available() and distributed.is_initialized()
    return {
        "schema_version": SCHEMA_VERSION,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
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
    rollouts = tuple(map(_rollout_from_dict, data["rollouts"]))
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
        with refuse_on(OSError, f"could not write to {self.folder}", why=True):
            self.folder.mkdir(parents=True, exist_ok=True)
        # first what makes it a run: one that is killed here can be resumed
        write_atomic(
            self.folder / "config.json",
            dumps({"schema_version": SCHEMA_VERSION, **config}, indent=1),
        )
        if start_step == 0 or not (self.folder / "env.json").exists():
            write_atomic(self.folder / "env.json", dumps(environment(), indent=1))
        for name in ("metrics.jsonl", "groups.jsonl"):
            earlier = [line for line in _lines(self.folder / name) if line["step"] < start_step]
            write_atomic(self.folder / name, "".join(dumps(line) + "\n" for line in earlier))

    def write(self, record: StepRecord) -> None:
        self._append("metrics.jsonl", [{"step": record.step, **record.metrics}])
        groups = zip(record.groups, record.credit)
        self._append(
            "groups.jsonl",
            [{"step": record.step, **group_to_dict(g), "credit": credit} for g, credit in groups],
        )

    def _append(self, name: str, lines: Sequence[Mapping]) -> None:
        if not lines:
            return
        path = self.folder / name
        unwritten = f"could not write {path}"
        with refuse_on(OSError, unwritten, why=True), path.open("a", encoding="utf-8") as file:
            file.writelines(dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[dict]:
    """The whole lines of a run's file: JSON objects with a step.

    A last line that a killed process left unfinished is dropped. Raises WorkbenchError, naming the
    line, for any other.
    """
    if not path.exists():
        return []
    lines = []
    # bytes: only \n ends a line (not U+2028), and a character may be torn, too
    raw = path.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(raw, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(raw):
                raise WorkbenchError(f"{path}, line {number} is not JSON: {error}") from error
            continue
        refuse_if(
            not isinstance(value, dict) or type(value.get("step")) is not int,
            f"{path}, line {number} is damaged: an object with a whole number as its step is "
            "needed",
        )
        lines.append(value)
    return lines


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl: numbers by name, None for one that is not finite.

    Raises WorkbenchError, naming the line, where there is something else.
    """
    path = folder / "metrics.jsonl"
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        for name, value in line.items():
            refuse_if(
                value is not None and type(value) not in (int, float),
                f"{path}, line {number} is damaged: {name} is no number",
            )
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
    refuse_if(
        not (folder / "config.json").is_file(),
        f"there is no run in {folder}: a folder with a config.json is needed",
    )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = config["schema_version"]
        refuse_if(
            version != SCHEMA_VERSION,
            f"the run in {folder} has schema version {version}, this package reads "
            f"{SCHEMA_VERSION}",
        )
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        groups = tuple(
            (line["step"], group_from_dict(line), line["credit"])
            for line in _lines(folder / "groups.jsonl")
        )
        metrics = pd.DataFrame(read_metrics(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WorkbenchError(
            f"the run in {folder} is damaged: {type(error).__name__}: {error}"
        ) from error
    return Run(folder, config, env, metrics, groups)


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder that is complete in the place of an older one, which is whole until then."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        os.replace(old, aside)
    os.replace(new, old)
    with suppress(OSError):
        _sync(old.parent)
    shutil.rmtree(aside, ignore_errors=True)
