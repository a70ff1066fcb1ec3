"""Corrections kept in a file, one JSON object a line, each with where it came from; read back as
rollouts with their exact token ids.

    schema_version   1
    policy           its name
    problem          the Problem
    rollout          the correction, graded
    source           the wrong rollout
    keep, prefix, transition, continuation, reference, diagnosis, authors    of the Composition

A line is appended whole or not at all: a writer that is killed leaves at most a torn last line,
which readers skip and the next writer removes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from workbench.core import Group, Problem, Rollout, refuse_if, refuse_on
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

    Safe beside other writers (a lock file, ``path`` and ".lock", stays there), and after one that
    was killed. Raises WorkbenchError when the file cannot be written.
    """
    composition = correction.composition
    row = {
        "schema_version": SCHEMA_VERSION,
        "policy": correction.policy,
        "problem": asdict(composition.problem),
        "rollout": asdict(correction.rollout),
        "source": asdict(composition.source),
        **{name: getattr(composition, name) for name in PARTS},
    }
    line = dumps(row).encode() + b"\n"
    with refuse_on(OSError, f"could not write {path}", why=True):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # "a": every write goes to the end
        with open(path, "a+b", buffering=0) as file, FileLock(f"{path}.lock"):
            file.seek(0)
            content = file.read()
            tail = content[content.rfind(b"\n") + 1 :]
            if _torn(tail):
                file.truncate(len(content) - len(tail))
            elif tail:  # a whole line, which somebody's editor left without its end
                line = b"\n" + line
            file.write(line)
            os.fsync(file.fileno())


def _torn(tail: bytes) -> bool:
    """Is what follows the last line break the beginning of a line that was never finished?"""
    try:
        return bool(tail) and not isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return True


def load(path: str | Path) -> list[Correction]:
    """All corrections of a buffer, in order; none for a file that does not exist yet.

    A malformed line is named by its number (WorkbenchError).
    """
    with refuse_on(OSError, f"could not read {path}", why=True):
        content = Path(path).read_bytes() if Path(path).exists() else b""
    *lines, tail = content.split(b"\n")
    if not _torn(tail):
        lines.append(tail)
    return [
        _correction(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _correction(where: str, line: bytes) -> Correction:
    damage = f"{where} is not a correction"
    kinds = (ValueError, TypeError, AttributeError, RecursionError)
    lacking = refuse_on(KeyError, f"{damage}; it lacks", why=True)
    with lacking, refuse_on(kinds, damage, why=True):
        row = json.loads(line)
        version = row["schema_version"]
        refuse_if(
            version != SCHEMA_VERSION,
            f"{where} has schema version {version}, this package reads {SCHEMA_VERSION}",
        )
        group = group_from_dict(
            {"problem": row["problem"], "rollouts": [row["source"], row["rollout"]]}
        )
        source, rollout = group.rollouts
        parts = {name: row[name] for name in PARTS}
        composition = Composition(group.problem, source, **parts)
        inside = 0 <= composition.keep <= len(source.completion_ids)
        refuse_if(
            composition.text != rollout.text or not inside,
            f"{damage}: its parts do not make up its text",
        )
        return Correction(composition, rollout, row["policy"])


def groups(corrections: Sequence[Correction], policy: Policy) -> list[Group]:
    """The corrections as training reads them: one group a problem, verbatim ids.

    Raises WorkbenchError when ``policy`` has another tokenizer.
    """
    by_problem: dict[str, list[Correction]] = {}
    for correction in corrections:
        refuse_if(
            policy.decode(correction.rollout.completion_ids) != correction.rollout.text,
            f"the correction of problem {correction.problem.id} was tokenised for "
            f"{correction.policy}, not for {policy.name}",
        )
        by_problem.setdefault(correction.problem.key, []).append(correction)
    return [
        Group(several[0].problem, tuple(one.rollout for one in several))
        for several in by_problem.values()
    ]
