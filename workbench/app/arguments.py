"""What several commands ask for, and the types of their arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def temperature(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a temperature of 0 or more")


def probability(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a probability above 0, up to 1")


def template_option(text: str) -> tuple[str, bool | int | str]:
    """KEY=VALUE: true and false, whole numbers, and else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if re.fullmatch("0|-?[1-9][0-9]*", value) else value


def named(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def folder(text: str) -> Path:
    return Path(named(text))


def switch(text: str, name: str | None = None) -> dict[str, str]:
    """An argument that is there or not; ``name``: what it is called in the code."""
    options = {"action": "store_true", "help": text}
    return options if name is None else options | {"dest": name}


def add(parser: argparse.ArgumentParser, arguments: Mapping[str, Mapping]) -> None:
    """``arguments``: what ``add_argument`` takes, by name."""
    for name, options in arguments.items():
        parser.add_argument(name, **options)


ADAPTER = {
    "--adapter": {"type": folder, "metavar": "DIR", "help": "a peft adapter to put on the model"}
}
TEMPLATE = {
    "--template": {
        "action": "extend",
        "nargs": "+",
        "type": template_option,
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "an option of the model's chat template, such as enable_thinking=false or "
        "reasoning_effort=low; several, or repeated",
    },
}
MODEL_AND_TASK = {
    "--model": {
        "required": True,
        "metavar": "MODEL",
        "help": "a folder, a hub id, a GGUF file, or smollm2 (a real model without a download)",
    },
    "--task": {
        "default": "arithmetic",
        "metavar": "NAME",
        "help": "arithmetic, arithmetic:steps=5,largest=99, math:gsm8k (math500, aime24, aime25, "
        "hmmt25, a file, a hub id), code:FILE, mcq:FILE, tools:FILE, gym:chain_sum,min_terms=2, "
        "or a file: problems.jsonl, problems.jsonl:max_new=64",
    },
}
