"""One paper a file.

A method is found by its file's name: ``workbench/methods/grpo.py`` holds the dataclass ``GRPO``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

from workbench.core import WorkbenchError


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type:
    """The dataclass of a method by the name of its file.

    Raises WorkbenchError when there is none.
    """
    if name not in names():
        raise WorkbenchError(f"there is no method {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for key, value in vars(module).items()
        if key.lower() == name.replace("_", "") and dataclasses.is_dataclass(value)
    )
