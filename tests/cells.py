"""Records of a study made by hand, or drawn with a truth that is known."""

import json
from pathlib import Path

import numpy as np


def line(step, generated, **more):
    return {"step": step, "generated": generated, **more}


def run(curve, generated=100, lengths=None, **more):
    """The metrics of a run that was evaluated with these accuracies, and answers of these
    lengths (10 tokens), an update apart.
    """
    lengths = lengths or [10.0] * len(curve)
    points = list(zip(curve, lengths, strict=True))
    lines = []
    for i, (avg, length) in enumerate(points[:-1]):
        lines.append(line(i, generated, eval_avg=avg, eval_length=length, **more))
    avg, length = points[-1]
    lines[-1] |= {"final_eval_avg": avg, "final_eval_length": length}
    lines[-1] |= {"final_eval_low": 0.0, "final_eval_high": 1.0}
    return [{"eval_low": 0.0, "eval_high": 1.0, **each} for each in lines]


def rows(*right):
    """problem -> (right, direct, reflecting, effective, needless, spoiled)."""
    return {f"p{i}": (r, r, 0, 0, 0, 0) for i, r in enumerate(right)}


def write(root, arm, seed, counts, *, samples=4, metrics=(), model="3m", length=10.0, **more):
    """A record. ``more``: what else is in it, such as reading_counts."""
    folder = Path(root) / f"{arm}-{model}-seed{seed}"
    folder.mkdir(parents=True)
    avg = float(np.mean([row[0] / samples for row in counts.values()]))
    test = {"samples": samples, "avg": avg, "low": avg, "high": avg, "length": length}
    record = {
        "arm": {"name": arm, "model": model, "task": "arithmetic"},
        "seed": seed,
        "seconds": 1.0,
        "test": test | {"pass_at": {"1": avg, "4": 1.0}},
        "counts": counts,
        **more,
    }
    (folder / "evaluation.json").write_text(json.dumps(record))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def study(root, arms, seeds=10, spread=0.01, problems=60, draw=0):
    """Records of ``arms``, (name, model) -> accuracy, that differ between the seeds by ``spread``.

    The problems of a seed are the same for all arms, and harder for all of them or easier.
    """
    rng = np.random.default_rng(draw)
    for seed in range(seeds):
        ease = rng.uniform(-0.15, 0.15, problems)
        for (arm, model), accuracy in arms.items():
            p = np.clip(accuracy + rng.normal(0, spread) + ease, 0, 1)
            counts = {f"p{i}": _counts(rng, chance) for i, chance in enumerate(p)}
            rise = 1 - np.exp(-np.arange(12) / rng.uniform(2, 4))
            curve = 0.2 + (accuracy - 0.2) * rise
            often = {f"p{i}": int(rng.binomial(32, chance)) for i, chance in enumerate(p[:20])}
            read = {f"r{i}": int(rng.random() < accuracy) for i in range(40)}
            write(
                root,
                arm,
                seed,
                counts,
                model=model,
                length=float(rng.normal(30, 0.5)),
                metrics=run(curve, int(rng.integers(50, 150)), eligible=0.1),
                reading={"avg": float(np.mean(list(read.values())))},
                reading_counts=read,
                pass32={"samples": 32, "pass_at": {"32": 1.0}},
                pass32_counts=often,
            )


def _counts(rng, chance):
    right, reflecting = int(rng.binomial(4, chance)), int(rng.binomial(4, 0.4))
    return right, min(right, 4 - reflecting), reflecting, int(rng.integers(reflecting + 1)), 0, 0
