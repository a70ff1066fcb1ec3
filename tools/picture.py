"""Draw the README's picture from the committed runs: python tools/picture.py   (data/examples/readme.png)"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from workbench.core import Inspection
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.policy import load_policy
from workbench.readings import inspect_group
from workbench.records import read_run
from workbench.tasks import load_task
from workbench.viz.curves import COLOURS, STYLES, evaluations
from workbench.viz.view import TokenView

ROOT = Path(__file__).parent.parent
SHOWN = 4  # rollouts
HEAD, TOKENS, SUMS = 50, 250, 110  # pixels of the token view's PNG: its own legend, the tokens, the sum of each step


def main() -> None:
    runs = [read_run(folder) for folder in sorted((ROOT / "data" / "runs").glob("grpo-3m-seed*"))]
    figure, (left, *right) = plt.subplots(1, 3, figsize=(11, 4.6), width_ratios=(1.1, 1, 1), layout="constrained", facecolor="white")
    for i, run in enumerate(runs):
        found = evaluations(run.metrics)
        left.plot(found.updates, found.avg, STYLES[i], color=COLOURS[i], marker="o", label=f"seed {run.config['plan']['seed']}")
        left.fill_between(found.updates, found.low, found.high, color=COLOURS[i], alpha=0.15, linewidth=0)
    left.set(xlabel="updates of GRPO", ylabel="right attempts at validation problems", ylim=(0, 1), title="GRPO on the organism")
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower right")

    policy = load_policy(ROOT / "data" / "organism" / "3m")
    group = next(g for _, g, _ in runs[0].groups if 2 <= g.rewards.sum() <= len(g.rollouts) - 2)
    seen = inspect_group(policy, group, load_task("arithmetic"), {"GRPO": GRPO(), "SDPO": SDPO(a=1.0)})
    order = np.argsort(-group.rewards, kind="stable")
    order = [*order[: SHOWN // 2], *order[-SHOWN // 2:]]
    few = Inspection(replace(group, rollouts=tuple(group.rollouts[i] for i in order)),
                     {name: tuple(seen.layers[name][i] for i in order) for name in ("GRPO credit", "SDPO credit")})
    for axes, layer, words in zip(right, few.layers, ("GRPO credit:\none number for the whole attempt", "SDPO credit:\nthe self-teacher points at the mistake")):
        view = TokenView(few, lambda token: policy.tokenizer.decode([token]), layer=layer)
        image = plt.imread(io.BytesIO(view.to_png()))[HEAD:]
        axes.imshow(np.hstack([image[:, :TOKENS], image[:, -SUMS:]]))
        axes.axis("off")
        axes.set_title(words, fontsize=11, loc="left")
    out = ROOT / "data" / "examples" / "readme.png"
    figure.savefig(out, dpi=110)
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
