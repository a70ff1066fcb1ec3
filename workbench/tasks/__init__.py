"""Tasks: problems, grading, feedback. Imports model and what is before it.

By name:

arithmetic                         a task as it is
arithmetic:steps=5,largest=999     with dials
math:gsm8k,max_new=512             a first dial that is a text may go without its name
problems.jsonl                     math:problems.jsonl,plain=true,max_new=512
problems.jsonl:max_new=64          the same with shorter completions, or another dial of math

Rows in memory, and a reward of one's own: rows.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench.core import Task, refuse_if
from workbench.options import with_options

# module -> class, imported when it is asked for
TASKS = {
    "arithmetic": "Arithmetic",
    "code": "Code",
    "gym": "Gym",
    "math": "Math",
    "mcq": "Mcq",
    "programs": "Programs",
    "tools": "Tools",
    "words": "Words",
}


def load_task(name: Any, *, reward: Callable[..., Any] | None = None, **dials: Any) -> Task:
    """A task by name, or of rows (dicts, a data set of ``datasets``, a pandas.DataFrame).

    ``reward``: a function of your own that grades (rows.py); ``name`` is then rows, a file or a
    hub id. ``dials``: those of ``math``, for rows and files with a reward.

    Raises WorkbenchError for an unknown name, a bad dial, or a file that is not a list of problems.
    """
    name = str(name) if isinstance(name, Path) else name
    if reward is not None or not isinstance(name, str):
        return _of_rows(name, reward, dials)
    refuse_if(dials, f"write dials into the name: {name}:{next(iter(dials), '')}=...")
    task, _, dials = name.partition(":")
    if task in TASKS:
        return _with_dials(task, dials)
    path, suffix, dials = name.rpartition(".jsonl")
    refuse_if(
        not suffix or dials[:1] not in ("", ":"),
        f"there is no task {task!r}; there are {', '.join(TASKS)}, and any .jsonl file of problems",
    )
    return _with_dials("math", dials[1:], f"source={path}.jsonl", "plain=true", "max_new=512")


def _of_rows(source: Any, reward: Callable[..., Any] | None, dials: dict[str, Any]) -> Task:
    from workbench.tasks.rows import Rows, rows_of

    fields = {field.name for field in dataclasses.fields(Rows)} - {"rows", "reward", "source"}
    unknown = min(set(dials) - fields, default="")
    refuse_if(unknown, f"rows have no dial {unknown}; there are {', '.join(fields)}")
    name = source if isinstance(source, str) else "rows"
    return Rows(source=name, rows=rows_of(source), reward=reward, **dials)


def _with_dials(task: str, text: str, *before: str) -> Task:
    kind = getattr(import_module(f"{__name__}.{task}"), TASKS[task])
    first = dataclasses.fields(kind)[0]
    dials = [*before, *filter(None, text.split(","))]
    if dials and "=" not in dials[0] and first.default == "":
        dials[0] = f"{first.name}={dials[0]}"
    if hasattr(kind, "of"):  # a task that knows more dials than its fields
        return kind.of(dials)
    return with_options(kind, dials, f"the task {task}")
