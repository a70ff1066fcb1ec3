"""The study as a grid that can be stopped and taken up again: blocks of arms x seeds.

Each cell is a run that leaves a small record in data/study/runs.

    workbench study                          every cell that has no record yet, block by block and
                                             in a block seed by seed, one process a core, one
                                             thread each
    workbench study --blocks 1a 1b           some blocks
    workbench study --only grpo sdpo         some arms
    workbench study --tune                   the learning rates of arms with one of their own,
                                             which the study finds before it needs them
    workbench study --truth                  the methods that workbench credit scores, at one rate:
                                             data/true_credit/runs
    workbench study --quick --out DIR        three arms, few steps: the whole path in minutes

What is run stands in arms.py, one cell in cell.py, the learning rates in tuning.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from workbench.core import WorkbenchError
from workbench.paths import DATA, RECORDS, ROOT
from workbench.records import dumps
from workbench.studies.arms import BLOCKS, GRID, QUICK, TRUTH, Arm

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def missing(
    arms: Sequence[Arm], seeds: Sequence[int] | None, records: Path
) -> list[tuple[Arm, int]]:
    """The cells without a record, seed by seed, so that a study that is stopped early has whole
    rows of seeds.
    """
    cells = []
    for seed in range(max((arm.seeds for arm in arms), default=0)):
        for arm in arms:
            wanted = seed < arm.seeds and (seeds is None or seed in seeds)
            if wanted and not (records / arm.cell(seed) / "evaluation.json").is_file():
                cells.append((arm, seed))
    return cells


def in_processes(
    jobs: Sequence[list[str]], workers: int, after: Callable[[list[str], str], None]
) -> list[str]:
    """``python -m workbench.studies.grid WORDS`` for each job, one thread each.

    ``after`` each job gets its words and the line that it printed last. Returns what the failed
    ones said; the others go on.
    """

    def run(words: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "workbench.studies.grid", *words],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            capture_output=True,
            text=True,
        )

    failures = []
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run, words): words for words in jobs}
        for ended in as_completed(running):  # one after another: ``after`` writes files
            words, process = running[ended], ended.result()
            if process.returncode == 0:
                after(words, process.stdout.strip().splitlines()[-1])
                continue
            lines = process.stderr.strip().splitlines()
            failures.append(f"{' '.join(words)}: {lines[-1] if lines else 'killed'}")
    return failures


def study(
    arms: Sequence[Arm],
    seeds: Sequence[int] | None,
    workers: int,
    records: Path,
    work: Path,
    quick: bool,
) -> None:
    """Make the missing cells. Raises WorkbenchError when some failed, after all others are done."""
    places = ["--out", str(records), "--work", str(work), *(["--quick"] if quick else [])]
    cells = missing(arms, seeds, records)
    if any(arm.tuned for arm, _ in cells):
        from workbench.studies.cell import at_common_rate

        tune_all(workers, work)
        cells = [(arm, seed) for arm, seed in cells if not at_common_rate(arm)]
    jobs = [["--cell", arm.cell(seed), *places] for arm, seed in cells]
    print(f"{len(jobs)} cells to make, {workers} at a time", flush=True)
    failures = in_processes(jobs, workers, lambda _, line: print(line, flush=True))
    if failures:
        raise WorkbenchError(f"{len(failures)} of {len(jobs)} cells failed: {'; '.join(failures)}")


def tune_all(workers: int, work: Path) -> None:
    """Every rate with every seed, until no edge of a grid wins; what was tried already is kept."""
    from workbench.studies.tuning import tuning_runs, untried, write_tuning

    runs = tuning_runs()

    def keep(_: list[str], line: str) -> None:
        runs.append(json.loads(line))
        write_tuning(runs)
        print(line, flush=True)

    while left := untried(runs):
        jobs = [["--tune-one", *map(str, words), "--work", str(work)] for words in left]
        failures = in_processes(jobs, workers, keep)
        if failures:
            raise WorkbenchError("; ".join(failures))


# ---- workbench study


def _names(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arms = _names([arm.name for arm in GRID])
    parser.add_argument("--blocks", nargs="+", metavar="BLOCK", help=f"of {_names([*BLOCKS])}")
    parser.add_argument("--only", nargs="+", metavar="ARM", help=f"of {arms}")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--out", type=Path, default=RECORDS, help="where the records go (default: data/study/runs)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "study",
        help="where the runs are while they are made",
    )
    parser.add_argument("--quick", action="store_true", help="three arms, four steps")
    parser.add_argument("--truth", action="store_true", help="the methods that were scored")
    parser.add_argument("--tune", action="store_true", help="find the learning rates alone")


def main(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise WorkbenchError(f"a study needs 1 worker or more, not {args.workers}")
    if args.truth and args.out == RECORDS:
        args.out = DATA / "true_credit" / "runs"
    if args.quick and args.out == RECORDS:
        raise WorkbenchError(
            "a quick study is not to be mixed with the committed records: name a folder with --out"
        )
    chosen = _chosen(args)
    from workbench.training.resume import sole_training  # torch takes a second to import

    work = args.work.resolve()
    with sole_training(work):
        if args.tune:
            tune_all(args.workers, work)
            return
        for arms in chosen:
            seeds = [0] if args.quick else args.seeds
            study(arms, seeds, args.workers, args.out.resolve(), work, args.quick)


def _chosen(args: argparse.Namespace) -> list[tuple[Arm, ...]]:
    """The blocks, of the arms that are asked for."""
    blocks = {"quick": QUICK} if args.quick else {"truth": TRUTH} if args.truth else BLOCKS
    _refuse_unknown("block", args.blocks, blocks)
    chosen = [arms for name, arms in blocks.items() if name in (args.blocks or blocks)]
    _refuse_unknown("arm", args.only, [arm.name for arms in chosen for arm in arms])
    if args.only:
        chosen = [tuple(arm for arm in arms if arm.name in args.only) for arms in chosen]
    return [arms for arms in chosen if arms]


def _refuse_unknown(kind: str, asked: Sequence[str] | None, there: Iterable[str]) -> None:
    unknown = sorted(set(asked or ()).difference(there))
    if unknown:
        raise WorkbenchError(
            f"there is no {kind} {', '.join(unknown)}; there are {_names([*there])}"
        )


def _worker() -> None:
    """One job of ``in_processes``: what it prints last is read by the parent."""
    # torch takes a second to import: the help does not wait for it
    from workbench.studies.cell import FULL, SMALL, TRUTH_SCALE, run_cell
    from workbench.studies.tuning import tune

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--cell")
    parser.add_argument("--tune-one", nargs=3)
    args = parser.parse_args()
    if args.tune_one:
        name, rate, seed = args.tune_one
        print(dumps(tune(name, float(rate), int(seed), args.work)))
        return
    cells = {}
    for scale, arms in ((FULL, GRID), (TRUTH_SCALE, TRUTH)):
        for arm in arms:
            cells |= {arm.cell(seed): (arm, seed, scale) for seed in range(arm.seeds)}
    arm, seed, scale = cells[args.cell]
    record = run_cell(arm, seed, args.work, args.out, SMALL if args.quick else scale)
    evaluation = json.loads((record / "evaluation.json").read_text())
    test = evaluation["test"]
    print(
        f"{args.cell}: avg@{test['samples']} {test['avg']:.3f} "
        f"[{test['low']:.3f}, {test['high']:.3f}]  "
        f"{evaluation['seconds']:.0f} s"
    )


if __name__ == "__main__":
    _worker()
