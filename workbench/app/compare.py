"""Runs side by side: a table for the terminal and a page with the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.core import WorkbenchError
from workbench.records import Run, read_run, write_atomic


def summary(run: Run) -> dict[str, object]:
    """One row: what it was, how far it came, what it cost.

    Accuracy is avg@k on the validation split, before and after.
    """
    m, config = run.metrics, run.config
    row = {
        "run": run.folder.name,
        "method": config["method"],
        "model": Path(str(config.get("model", ""))).name,
        "seed": config["plan"]["seed"],
        "steps": len(m),
    }
    if "eval_avg" in m and len(m):
        first = m[m.eval_avg.notna()].iloc[0]
        row |= {"before": _with_interval(first, "eval"), "after": "running"}
        if "final_eval_avg" in m and m.final_eval_avg.notna().any():
            row["after"] = _with_interval(m[m.final_eval_avg.notna()].iloc[-1], "final_eval")
    if len(m):
        row |= {
            "length": f"{m.length.iloc[-1]:.1f}",
            "entropy": f"{m.entropy.iloc[-1]:.3f}",
            "tokens": f"{int(m.generated.sum()):,}",
            "seconds": f"{m.seconds_sample.sum() + m.seconds_train.sum():.0f}",
        }
    return row


def _with_interval(row, name: str) -> str:
    return f"{row[f'{name}_avg']:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def table(folders: Sequence[Path]) -> str:
    """Raises WorkbenchError when one of the folders is not a run."""
    return _frame([read_run(folder) for folder in folders]).to_string(index=False)


def write_page(folders: Sequence[Path], out: Path) -> None:
    from workbench.viz.curves import learning_curves
    from workbench.viz.page import Section, page, svg
    from workbench.viz.page import table as html_table

    runs = [read_run(folder) for folder in folders]
    frame = _frame(runs)
    rows = [tuple(map(str, row)) for row in frame.itertuples(index=False)]
    curves = svg(
        learning_curves({run.folder.name: run.metrics for run in runs}),
        "Learning curves of the runs",
    )
    write_atomic(
        Path(out),
        page(
            "Runs side by side",
            "Accuracy is avg@k on the validation split, with a 95 % interval over problems.",
            [
                Section("Summary", html_table(tuple(frame.columns), rows)),
                Section("Learning curves", curves),
            ],
        ),
    )


def _frame(runs: Sequence[Run]):
    import pandas as pd

    rows = []
    for run in runs:
        try:
            rows.append(summary(run))
        except (KeyError, AttributeError, TypeError, IndexError, ValueError) as error:
            raise WorkbenchError(
                f"the run in {run.folder} is damaged: {type(error).__name__}: {error}"
            ) from error
    return pd.DataFrame(rows).fillna("")
