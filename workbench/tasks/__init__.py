"""Tasks by name:

``arithmetic``, ``arithmetic:steps=5,largest=999``, or the path of a JSON-lines file of problems
(``problems.jsonl:max_new=64`` for shorter completions than its 512 tokens).

A task is found by its file's name: ``workbench/tasks/arithmetic.py`` holds the dataclass
``Arithmetic``. Where its first dial is a text, that one may go without its name:
``math:gsm8k,max_new=512``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

from workbench.core import Task, WorkbenchError
from workbench.options import with_options


def load_task(name: str) -> Task:
    """Raises WorkbenchError for an unknown name, a bad dial, or a file that is not a list of
    problems.
    """
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for key, value in vars(importlib.import_module(f"{__name__}.{module.name}")).items():
            if (
                key.lower() == module.name
                and dataclasses.is_dataclass(value)
                and module.name != "file"
            ):
                found[module.name] = value
    kind, _, dials = name.partition(":")
    if kind in found:
        first, given = (
            dataclasses.fields(found[kind])[0],
            [dial for dial in dials.split(",") if dial],
        )
        if given and "=" not in given[0] and first.default == "":
            given[0] = f"{first.name}={given[0]}"
        make = getattr(found[kind], "of", None)  # a task that knows more dials than its fields
        return make(given) if make else with_options(found[kind], given, f"the task {kind}")
    path, _, limit = name.partition(".jsonl:max_new=")
    if not name.endswith(".jsonl") and not limit:
        raise WorkbenchError(
            f"there is no task {kind!r}; there are {', '.join(sorted(found))}, and any "
            ".jsonl file of problems"
        )
    from workbench.tasks.file import File

    made = File.read(Path(path + ".jsonl" if limit else name))
    if limit and not (limit.isascii() and limit.isdigit() and int(limit)):
        raise WorkbenchError(f"max_new={limit} is not a whole number of 1 or more")
    return dataclasses.replace(made, max_new=int(limit)) if limit else made
