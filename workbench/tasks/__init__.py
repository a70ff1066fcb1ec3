"""Tasks by name: ``arithmetic``, ``arithmetic:steps=5,largest=999``, or the path of a JSON-lines file of problems.

A task is found by its file's name: ``workbench/tasks/arithmetic.py`` holds the dataclass ``Arithmetic``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

from workbench.core import Task, WorkbenchError, with_options


def load_task(name: str) -> Task:
    """Raises WorkbenchError for an unknown name, a bad dial, or a file that is not a list of problems."""
    if name.endswith(".jsonl"):
        from workbench.tasks.file import File
        return File.read(Path(name))
    name, _, dials = name.partition(":")
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for key, value in vars(importlib.import_module(f"{__name__}.{module.name}")).items():
            if key.lower() == module.name and dataclasses.is_dataclass(value) and module.name != "file":
                found[module.name] = value
    if name not in found:
        raise WorkbenchError(f"there is no task {name!r}; there are {', '.join(sorted(found))}, and any .jsonl file of problems")
    return with_options(found[name], [dial for dial in dials.split(",") if dial], f"the task {name}")
