"""Options written ``key=value``, read into frozen dataclasses, and their choices checked."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from workbench.core import WorkbenchError, refuse_if, refuse_on

# what a value of an option is called
WORDS = {bool: "true or false", int: "a whole number", float: "a finite number"}


def with_options(kind: type, options: Sequence[str], of: str) -> Any:
    """Make a frozen dataclass from ``key=value`` strings.

    Each value is read as the type of the field's default. Raises WorkbenchError, naming ``of`` and
    the keys that there are, for an unknown key or a value that does not parse.
    """
    defaults = {field.name: field.default for field in fields(kind)}
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        refuse_if(
            not equals or key not in defaults,
            f"{of} has no option {key!r}; it has {', '.join(defaults)} (written key=value)",
        )
        expected = WORDS.get(type(defaults[key]))
        with refuse_on((ValueError, KeyError), f"{of}: {key}={text} is not {expected}"):
            values[key] = _parse(text, defaults[key])
    return kind(**values)


def _parse(text: str, default: Any) -> Any:
    """``text`` as a value of the default's type; infinite only where the default is."""
    if isinstance(default, bool):
        return {"true": True, "false": False}[text.lower()]
    if not isinstance(default, str) and not text.isascii():  # other scripts have digits too
        raise ValueError("not ASCII")
    value = type(default)(text)
    if isinstance(value, float) and math.isfinite(default) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


def split_options(
    options: Sequence[str], *kinds: type, fixed: Sequence[str] = ()
) -> list[list[str]]:
    """``key=value`` strings by the dataclass that has the key, a list for each of ``kinds``.

    Where two have it, the first takes it. ``fixed``: keys that are set in another way.

    Raises WorkbenchError, naming all keys, for an option that none of them has.
    """
    owners: dict[str, int] = {}
    for i, kind in enumerate(kinds):
        for field in fields(kind):
            if field.name not in fixed:
                owners.setdefault(field.name, i)
    parts: list[list[str]] = [[] for _ in kinds]
    for option in options:
        key, equals, _ = option.partition("=")
        refuse_if(
            not equals or key not in owners,
            f"--set {option}: {kinds[0].__name__} has no such option; write KEY=VALUE "
            f"with one of {', '.join(sorted(owners))}",
        )
        parts[owners[key]].append(option)
    return parts


def check_choices(instance: Any) -> None:
    """For the ``__post_init__`` of a dataclass: its ``Literal`` fields hold one of their choices.

    Raises WorkbenchError, naming the choices, for the first field that does not.
    """
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        name, hint, value = field.name, hints[field.name], getattr(instance, field.name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = "|".join(map(str, get_args(hint)))
            raise WorkbenchError(f"{type(instance).__name__} takes {name}={choices}, not {value}")


def add_flags(parser: ArgumentParser, **defaults: Any) -> None:
    """``--name`` for each, read as the type of its default; a pair is a default and its help."""
    for name, default in defaults.items():
        value, text = default if isinstance(default, tuple) else (default, None)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
