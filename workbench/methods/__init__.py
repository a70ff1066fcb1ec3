"""One paper a file: who writes the tokens, what each is worth, the objective.

Imports rollouts and what is before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from workbench.core import Method, refuse_if

METHODS = {
    "cast": "CAST",
    "credit": "CREDIT",
    "grpo": "GRPO",
    "kd": "KD",
    "luffy": "LUFFY",
    "opd": "OPD",
    "rlcsd": "RLCSD",
    "rlrt": "RLRT",
    "rlsd": "RLSD",
    "scope": "SCOPE",
    "sdpo": "SDPO",
    "sft": "SFT",
    "tapo": "TAPO",
    "trapo": "TRAPO",
}
RETIRED = {"buffer": ""}  # options that older runs recorded, with the value that did nothing


def find(name: str) -> type[Method]:
    """The dataclass of a method by the name of its file.

    Raises WorkbenchError when there is none.
    """
    refuse_if(name not in METHODS, f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return getattr(import_module(f"{__name__}.{name}"), METHODS[name])


def without_retired(options: Mapping) -> dict:
    """Recorded options less those that no method has any more and that did nothing."""
    return {key: value for key, value in options.items() if RETIRED.get(key) != value}


def from_record(config: Mapping) -> Method:
    """The method of a recorded run, from its config.json."""
    options = without_retired(config["options"])
    # JSON has no infinity: such a limit is the default
    chosen = {key: value for key, value in options.items() if value is not None}
    return find(config["method"].lower())(**chosen)
