"""Options written ``key=value``, read into frozen dataclasses."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from workbench.core import WorkbenchError


def with_options(kind: type, options: Sequence[str], of: str) -> Any:
    """Make a frozen dataclass from ``key=value`` strings, each value read as the type of the
    field's default.

    Raises WorkbenchError, naming ``of`` and the known keys, for an unknown key or a value that does
    not parse.
    """
    known, chosen = {f.name: f for f in fields(kind)}, {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in known:
            raise WorkbenchError(
                f"{of} has no option {key!r}; it has {', '.join(known)} (written key=value)"
            )
        default = known[key].default
        try:
            if isinstance(default, bool):
                chosen[key] = {"true": True, "false": False}[text.lower()]
            else:
                chosen[key] = type(default)(text)
            if (
                isinstance(default, float)
                and not math.isfinite(chosen[key])
                and math.isfinite(default)
            ):
                raise ValueError("not finite")
        except (ValueError, KeyError) as error:
            raise WorkbenchError(
                f"{of}: {key}={text} is not a "
                f"{'finite number' if isinstance(default, float) else type(default).__name__}"
            ) from error
    return kind(**chosen)


def split_options(
    options: list[str], method: type, learner_keys: tuple[str, ...]
) -> tuple[list[str], list[str], list[str]]:
    """``--set`` options by whose they are: the method's, the learner's, the plan's."""
    from workbench.training.run import TrainConfig

    owners = {
        "method": [f.name for f in fields(method)],
        "learner": learner_keys,
        "plan": [f.name for f in fields(TrainConfig) if f.name not in ("steps", "seed")],
    }
    found: dict[str, list[str]] = {name: [] for name in owners}
    for option in options:
        key = option.partition("=")[0]
        owner = next((name for name, keys in owners.items() if key in keys), None)
        if owner is None or "=" not in option:
            known = ", ".join(sorted(key for keys in owners.values() for key in keys))
            raise WorkbenchError(
                f"--set {option}: {method.__name__} has no such option; write KEY=VALUE "
                f"with one of {known}"
            )
        found[owner].append(option)
    return found["method"], found["learner"], found["plan"]


def add_flags(parser: ArgumentParser, **defaults: Any) -> None:
    """``--name`` for each, read as the type of its default; a pair is a default and its help."""
    for name, default in defaults.items():
        value, text = default if isinstance(default, tuple) else (default, None)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
