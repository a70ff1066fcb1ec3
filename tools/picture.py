"""Draw the README's picture, data/examples/readme.png: python tools/picture.py

One question, and the credit that every method gives to its tokens. The question is the first
validation problem on which every method has something to say: some attempts right and some wrong,
so that TAPO writes corrections and TRAPO lends a beginning.
"""

from __future__ import annotations

from collections.abc import Mapping

from workbench.inspection.credit import RealisedCredit, comparable_rollouts, credit_by_method
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
from workbench.paths import DATA, ORGANISM, ROOT
from workbench.tasks import load_task
from workbench.viz.png import credit_columns

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


def every_method_speaks(credits: Mapping[str, RealisedCredit]) -> bool:
    """Are there right corrections of TAPO, and right beginnings that TRAPO lent?"""
    tapo, trapo = credits["TAPO"].group.rollouts, credits["TRAPO"].group.rollouts
    return (
        any(rollout.origin != "policy" and rollout.verdict.correct for rollout in tapo)
        and any(rollout.origin != "policy" and rollout.verdict.correct for rollout in trapo)
        and any(rollout.origin == "guided" for rollout in trapo)
    )


def main() -> None:
    task = load_task("arithmetic:style=turned")
    policy = load_policy(ORGANISM / "3m")
    learner = FrozenLearner(policy, load_policy(ORGANISM / "teacher"))
    for number, problem in enumerate(task.problems("validation", 50, 0)):
        credits = credit_by_method(learner, task, problem, METHODS, (0, number))
        if every_method_speaks(credits):
            break
    columns = {}
    for name, realised in comparable_rollouts(credits).items():
        columns[name] = (realised.group, realised.credit)
    figure = credit_columns(columns, lambda token: policy.tokenizer.decode([token]))
    path = DATA / "examples" / "readme.png"
    figure.savefig(path, dpi=110)
    print(problem.id, path.relative_to(ROOT))


if __name__ == "__main__":
    main()
