"""Corrections kept in a file, one JSON object a line, each with where it came from; read back as
rollouts with their exact token ids.

    schema_version   1                        problem    the Problem            policy     its name
    rollout          the correction, graded   source     the wrong rollout      keep, prefix,
                     transition, continuation, reference, diagnosis, authors

A line is appended whole or not at all: a writer that is killed leaves at most a torn last line,
which readers skip and the next writer removes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.core import Group, Problem, Rollout, WorkbenchError
from workbench.corrections.compose import Composition
from workbench.model.policy import Policy
from workbench.records import dumps, group_from_dict

SCHEMA_VERSION = 1
PARTS = ("keep", "prefix", "transition", "continuation", "reference", "diagnosis", "authors")


@dataclass(frozen=True)
class Correction:
    """One line of the buffer."""

    composition: Composition
    rollout: Rollout
    policy: str

    @property
    def problem(self) -> Problem:
        return self.composition.problem


def append(path: str | Path, correction: Correction) -> None:
    """Add one line.

    Safe beside other writers, and after one that was killed. Raises WorkbenchError when the file
    cannot be written.
    """
    made = correction.composition
    line = {
        "schema_version": SCHEMA_VERSION,
        "policy": correction.policy,
        "problem": asdict(made.problem),
        "rollout": asdict(correction.rollout),
        "source": asdict(made.source),
        **{name: getattr(made, name) for name in PARTS},
    }
    data = dumps(line).encode() + b"\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:  # "a": every write goes to the end
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = file.seek(0) or file.read()
            tail = whole[whole.rfind(b"\n") + 1 :]
            if _torn(tail):
                file.truncate(len(whole) - len(tail))
            file.write(b"\n" * (bool(tail) and not _torn(tail)) + data)
            os.fsync(file.fileno())
    except OSError as error:
        raise WorkbenchError(f"could not write {path}: {error.strerror or error}") from error


def _torn(tail: bytes) -> bool:
    """Is what follows the last line break the beginning of a line that was never finished (and not
    a whole line of somebody's editor)?
    """
    try:
        return bool(tail) and not isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return True


def load(path: str | Path) -> list[Correction]:
    """All corrections of a buffer, in order; none for a file that does not exist yet.

    A malformed line is named by its number (WorkbenchError).
    """
    try:
        raw = Path(path).read_bytes() if Path(path).exists() else b""
    except OSError as error:
        raise WorkbenchError(f"could not read {path}: {error.strerror or error}") from error
    *lines, tail = raw.split(b"\n")
    lines += [] if _torn(tail) else [tail]
    return [
        _correction(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _correction(where: str, line: bytes) -> Correction:
    try:
        row = json.loads(line)
        version = row["schema_version"]
        if version != SCHEMA_VERSION:
            raise WorkbenchError(
                f"{where} has schema version {version}, this package reads {SCHEMA_VERSION}"
            )
        group = group_from_dict(
            {"problem": row["problem"], "rollouts": [row["source"], row["rollout"]]}
        )
        source, rollout = group.rollouts
        made = Composition(group.problem, source, **{name: row[name] for name in PARTS})
        if made.text != rollout.text or not 0 <= made.keep <= len(source.completion_ids):
            raise ValueError("its parts do not make up its text")
        return Correction(made, rollout, row["policy"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = (
            f"it has no {error}"
            if isinstance(error, KeyError)
            else str(error) or type(error).__name__
        )
        raise WorkbenchError(f"{where} is not a correction: {what}") from error


def groups(corrections: Sequence[Correction], policy: Policy) -> list[Group]:
    """The corrections as training reads them: one group a problem, verbatim ids.

    Raises WorkbenchError when ``policy`` has another tokenizer.
    """
    found: dict[str, list[Correction]] = {}
    for correction in corrections:
        if policy.decode(correction.rollout.completion_ids) != correction.rollout.text:
            raise WorkbenchError(
                f"the correction of problem {correction.problem.id} was tokenised for "
                f"{correction.policy}, not for {policy.name}"
            )
        found.setdefault(correction.problem.id, []).append(correction)
    return [Group(rows[0].problem, tuple(row.rollout for row in rows)) for rows in found.values()]
