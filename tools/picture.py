"""Draw the README's picture from the committed runs: python tools/picture.py   (data/examples/readme.png)"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from workbench.core import Inspection
from workbench.policy import load_policy
from workbench.records import read_run
from workbench.viz.curves import COLOURS, STYLES, evaluations
from workbench.viz.view import TokenView

ROOT = Path(__file__).parent.parent
SHOWN = 4  # rollouts


def main() -> None:
    runs = [read_run(folder) for folder in sorted((ROOT / "data" / "runs").glob("grpo-3m-seed*"))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), width_ratios=(1, 1.25), layout="constrained", facecolor="white")
    for i, run in enumerate(runs):
        found = evaluations(run.metrics)
        left.plot(found.updates, found.avg, STYLES[i], color=COLOURS[i], marker="o", label=f"seed {run.config['plan']['seed']}")
        left.fill_between(found.updates, found.low, found.high, color=COLOURS[i], alpha=0.15, linewidth=0)
    left.set(xlabel="updates of GRPO", ylabel="share of right attempts", ylim=(0, 1), title="A 2.7M-parameter model gets better (validation problems)")
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower right")

    step, group, painting = next((step, group, painting) for step, group, painting in runs[0].groups if 2 <= group.rewards.sum() <= len(group.rollouts) - 2)
    order = np.argsort(-group.rewards, kind="stable")
    order = [*order[: SHOWN // 2], *order[-SHOWN // 2:]]
    policy = load_policy(ROOT / "data" / "organism" / "3m")
    few = replace(group, rollouts=tuple(group.rollouts[i] for i in order))
    view = TokenView(Inspection(few, {"GRPO credit": tuple(np.array(painting[i], float) for i in order)}), lambda token: policy.tokenizer.decode([token]))
    right.imshow(plt.imread(io.BytesIO(view.to_png())))
    right.axis("off")
    right.set_title(f"What one update says to every token of “{group.problem.messages[-1]['content']}”")
    out = ROOT / "data" / "examples" / "readme.png"
    figure.savefig(out, dpi=110)
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
