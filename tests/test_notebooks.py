"""What every notebook has: a plain beginning, one parameters cell, short cells, outputs that a
viewer without a kernel can show.
"""

import json
import re
from pathlib import Path

import pytest

from workbench.app.colab import CELL

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def text(cell) -> str:
    return "".join(cell["source"])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_begins_and_ends_for_a_newcomer(notebook):
    first, last = notebook["cells"][0], notebook["cells"][-1]
    assert first["cell_type"] == "markdown" and text(first).startswith("# ")
    for words in ("**What you will see.**", "**How long.**", "**The question.**"):
        assert words in text(first)
    assert last["cell_type"] == "markdown" and "## What to try next" in text(last)


def test_one_parameters_cell_with_a_quick_mode(notebook):
    tagged = [
        cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])
    ]
    assert len(tagged) == 1 and 'os.environ.get("WORKBENCH_QUICK")' in text(tagged[0])
    # after the set-up
    assert tagged[0] is [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][1]


def test_begins_with_the_set_up(notebook):
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert text(first) == CELL and first["metadata"]["tags"] == ["setup"]
    assert [output["name"] for output in first["outputs"]] == ["stdout"] and text(
        {"source": first["outputs"][0]["text"]}
    ).count("\n") == 1


def test_cells_are_short(notebook):
    assert all(
        len(text(cell).splitlines()) <= 25
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    )


def test_links_lead_to_notebooks_that_exist(notebook):
    names = {path.name for path in NOTEBOOKS}
    linked = {
        name
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
        for name in re.findall(r"\]\((\w+\.ipynb)\)", text(cell))
    }
    assert linked <= names


def test_is_committed_with_outputs_and_without_widget_state(notebook):
    assert (
        "widgets" not in notebook["metadata"]
        and notebook["metadata"]["kernelspec"]["name"] == "python3"
    )
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "run top to bottom: python notebooks/execute.py"
    )
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [
        o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"
    ]
    assert not [
        o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    shown = json.dumps(
        [
            {k: v for k, v in o.get("data", {}).items() if k != "image/png"}
            | {"text": o.get("text")}
            for o in outputs
        ]
    )
    assert not re.search(r"/(work|tmp|root|home|Users)/", shown), "no path of the machine it ran on"


def test_a_styled_table_escapes_what_a_model_wrote(notebook):
    """pandas' Styler, unlike DataFrame.to_html, writes markup as markup."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and ".style." in text(cell):
            assert '.style.format(escape="html")' in text(cell)
