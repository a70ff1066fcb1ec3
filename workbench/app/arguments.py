"""What several commands ask for, and the types of their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature of 0 or more")
    return value


def named(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def folder(text: str) -> Path:
    return Path(named(text))


def add_switches(parser, switches: dict[str, tuple[str, str]]) -> None:
    """``switches``: by flag, the name of the argument and what it is for."""
    for flag, (name, text) in switches.items():
        parser.add_argument(flag, action="store_true", dest=name, help=text)


def add_model_and_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a folder, a hub id, a GGUF file, or smollm2 (a real model without a download)",
    )
    parser.add_argument(
        "--task",
        default="arithmetic",
        metavar="NAME",
        help="arithmetic, arithmetic:steps=5,largest=99, math:gsm8k (math500, aime24, aime25, "
        "hmmt25, a file, a hub id), code:FILE, mcq:FILE, tools:FILE, gym:chain_sum,min_terms=2, "
        "or a file: problems.jsonl, problems.jsonl:max_new=64",
    )
