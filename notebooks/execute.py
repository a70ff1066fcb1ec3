"""Run notebooks top to bottom and save them with their outputs: python notebooks/execute.py
[NOTEBOOK ...]

What a viewer cannot show or a diff should not hold is left out: widget state, progress bars,
execution times.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> float:
    notebook = nbformat.read(path, 4)
    began = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=1200,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - began
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o
                for o in map(still, cell.outputs)
                if o.get("name") != "stderr" and o.get("data", {"": ""})
            ]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    return seconds


def still(output):
    """A live view without its widget: the HTML that it carries stays; nothing stays of a widget
    that carries none (a progress bar).
    """
    data = output.get("data", {})
    if data.pop(WIDGET, None) and "text/html" not in data:
        data.clear()
    return output


if __name__ == "__main__":
    here = Path(__file__).parent
    for path in [Path(name) for name in sys.argv[1:]] or sorted(here.glob("*.ipynb")):
        print(f"{path.name}: {execute(path):.0f} s", flush=True)
