"""Draw the README's picture: one question, painted by every method: python tools/picture.py   (data/examples/readme.png)

The question is the first validation problem on which every method has something to say: some
attempts right and some wrong, so that TAPO writes corrections and TRAPO lends a beginning.
"""

from __future__ import annotations

from pathlib import Path

from workbench.inspection.credit import comparable_rollouts, credit_by_method
from workbench.methods.grpo import GRPO
from workbench.methods.luffy import LUFFY
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model.learner import FrozenLearner
from workbench.model.loading import load_policy
from workbench.tasks import load_task
from workbench.viz.columns import columns

ROOT = Path(__file__).parent.parent
METHODS = {
    "SFT": SFT(),
    "GRPO": GRPO(),
    "OPD": OPD(k=8),
    "SCOPE": SCOPE(),
    "SDPO": SDPO(a=1.0),
    "TAPO": TAPO(),
    "TRAPO": TRAPO(),
    "LUFFY": LUFFY(),
}


def main() -> None:
    task = load_task("arithmetic:style=turned")
    learner = FrozenLearner(
        load_policy(ROOT / "data" / "organism" / "3m"),
        load_policy(ROOT / "data" / "organism" / "teacher"),
    )
    for number, problem in enumerate(task.problems("validation", 50, 0)):
        found = credit_by_method(learner, task, problem, METHODS, (0, number))
        if all(
            any(r.origin != "policy" and r.verdict.correct for r in found[name].group.rollouts)
            for name in ("TAPO", "TRAPO")
        ) and any(r.origin == "guided" for r in found["TRAPO"].group.rollouts):
            break
    figure = columns(
        {name: (of.group, of.credit) for name, of in comparable_rollouts(found).items()},
        lambda token: learner.policy.tokenizer.decode([token]),
    )
    out = ROOT / "data" / "examples" / "readme.png"
    figure.savefig(out, dpi=110)
    print(problem.id, out.relative_to(ROOT))


if __name__ == "__main__":
    main()
