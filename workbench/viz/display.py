"""What a notebook shows of a view: its static twin, and the live widget in place of it.

Two outputs, because one with both would be drawn as the widget alone, which is an error message in
a notebook that is opened without its kernel. The live one hides its twin while it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from workbench.records import write_atomic

BIG = 3  # MB, from which on a browser and a notebook's diff are slow
FEWER = "a group of fewer rollouts"
# JupyterLab's error message of a widget whose kernel is gone
_DEAD = (
    ".jp-OutputArea-child:has(.wb-twin) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*))"
    "{display:none}"
)


def twin_id() -> str:
    return f"wb-twin-{uuid4().hex[:12]}"


def hiding(twin: str) -> str:
    """The style sheet that a live view brings with it."""
    return f"#{twin}{{display:none!important}}"


def write(path: str | Path, data: bytes, smaller: str) -> None:
    """Write a view to a file, and say what that weighs.

    ``smaller``: how a big one would be smaller.
    """
    write_atomic(Path(path), data)
    print(f"{path}: {_weight(data, smaller)}")


def _weight(data: bytes, smaller: str) -> str:
    size = len(data) / 1e6
    return f"{size:.1f} MB" + (f" ({smaller} makes it smaller)" if size > BIG else "")


def show(text: str, static: str, twin: str, live: Callable[[], object], missing: type) -> None:
    """Display ``static`` under the id ``twin``, then the widget ``live()``.

    Where ``live`` raises ``missing``, only the twin. Colab finds its widget manager by the metadata
    that the widget gives with its data.
    """
    from IPython.display import display

    page = f'<div class="wb-twin" id="{twin}"><style>{_DEAD}</style>{static}</div>'
    if len(page) > BIG * 1e6:
        print(f"This adds {_weight(page.encode(), FEWER)} to the notebook.")
    display({"text/plain": text, "text/html": page}, raw=True)
    with suppress(missing):
        data, metadata = _bundle(live())
        data = {kind: value for kind, value in data.items() if not kind.startswith("text/")}
        # VS Code falls back to it where no kernel has the model, and would else show an error
        display({**data, "text/html": ""}, metadata=metadata, raw=True)


def _bundle(widget) -> tuple[dict, dict]:
    """A widget's data and metadata; ipywidgets 7, which Colab has, displays by itself or not."""
    if not hasattr(widget, "_repr_mimebundle_"):
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        return {"application/vnd.jupyter.widget-view+json": view}, {}
    bundle = widget._repr_mimebundle_()
    return bundle if isinstance(bundle, tuple) else (bundle, {})
