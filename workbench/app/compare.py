"""``workbench compare``: runs side by side, a table for the terminal and a page with the curves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from workbench.core import WorkbenchError
from workbench.records import Run, read_run, write_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--html", type=Path, metavar="F", help="write a page with the curves as well"
    )


def main(args: argparse.Namespace) -> None:
    print(table(args.runs))
    if args.html:
        write_page(args.runs, args.html)
        print(f"The curves are in {args.html}")


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
    curves = learning_curves(dict(zip(frame["run"], (run.metrics for run in runs))))
    sections = [
        Section("Summary", html_table(tuple(frame.columns), rows)),
        Section("Learning curves", svg(curves, "Learning curves of the runs")),
    ]
    lead = "Accuracy is avg@k on the validation split, with a 95 % interval over problems."
    write_atomic(Path(out), page("Runs side by side", lead, sections))


def _frame(runs: Sequence[Run]):
    import pandas as pd

    rows = []
    for name, run in zip(_names(runs), runs):
        try:
            rows.append(summary(run) | {"run": name})
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise WorkbenchError(
                f"the run in {run.folder} is damaged: {type(error).__name__}: {error}"
            ) from error
    return pd.DataFrame(rows).fillna("")


def _names(runs: Sequence[Run]) -> list[str]:
    """Their folders' names; where two have the same, their paths."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def summary(run: Run) -> dict[str, object]:
    """One row: what it was, how far it came, what it cost.

    Accuracy is avg@k on the validation split, before and after.
    """
    metrics, config = run.metrics, run.config
    row = {
        "run": run.folder.name,
        "method": config["method"],
        "model": _model(config),
        "seed": config["plan"]["seed"],
        "steps": len(metrics),
    }
    if not len(metrics):
        return row
    if "eval_avg" in metrics:
        first = metrics[metrics.eval_avg.notna()].iloc[0]
        row |= {"before": _with_interval(first, "eval"), "after": "running"}
        if "final_eval_avg" in metrics and metrics.final_eval_avg.notna().any():
            last = metrics[metrics.final_eval_avg.notna()].iloc[-1]
            row["after"] = _with_interval(last, "final_eval")
    seconds = metrics.seconds_sample.sum() + metrics.seconds_train.sum()
    return row | {
        "length": f"{metrics.length.iloc[-1]:.1f}",
        "entropy": f"{metrics.entropy.iloc[-1]:.3f}",
        "tokens": f"{int(metrics.generated.sum()):,}",
        "seconds": f"{seconds:.0f}",
    }


def _model(config) -> str:
    """What the run started from: a model, and perhaps an adapter on it."""
    model = Path(str(config.get("model", ""))).name
    adapter = config.get("adapter")
    return f"{model} + {'/'.join(Path(adapter).parts[-2:])}" if adapter else model


def _with_interval(row, name: str) -> str:
    return f"{row[f'{name}_avg']:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
