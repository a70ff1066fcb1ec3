"""Draw the README's pictures: python tools/picture.py [words]

data/examples/readme.png. One question, and the credit that every method gives to its tokens, beside
what would have been right: the true credit, from the policy's own continuations of every prefix.
Beside a method's name the cosine of the two over its whole group. The question is the first
validation problem on which every method has something to say: some attempts right and some wrong,
so that TAPO writes corrections and TRAPO lends a beginning.

data/examples/words.png, with ``words``. One wrong answer in English, the truth and what the methods
that add no words of their own say, out of the committed record: no model is loaded. It is the first
that ``wrong_turn`` (workbench/studies/credit_kept.py) finds. Beside a method's name its cosine over
all problems of the record.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from matplotlib.figure import Figure

from workbench.inspection.credit import RealisedCredit, comparable_rollouts, credit_by_method
from workbench.inspection.credit_scores import token_scores
from workbench.inspection.true_credit import TrueCredit, true_credit
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
from workbench.studies.credit_kept import wrong_turns
from workbench.studies.credit_table import read
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
TRUTH = "the truth"
IN_WORDS = {  # the record's names of methods: those that differ from a name in capitals
    "opd:k=4": "OPD",
    "sdpo": "SDPO, Jensen-Shannon",
    "sdpo:a=1": "SDPO, reverse KL",
    "sdpo:srpo=true": "SRPO",
}
SAMPLES = 64  # continuations from each prefix


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
    groups = [realised.group for realised in credits.values()]
    truths = dict(zip(credits, true_credit(policy, task, groups, SAMPLES, 0)))
    notes = {}
    for name, realised in credits.items():
        scores = token_scores([realised], [truths[name]], task, policy.decode)
        notes[name] = f"cosine {scores['cosine'][0]:.2f}"
    drawn = {TRUTH: as_credit(truths["GRPO"]), **credits}
    columns = {}
    for name, realised in comparable_rollouts(drawn).items():
        columns[name] = (realised.group, realised.credit)
    show = policy.tokenizer.decode
    figure = credit_columns(columns, lambda token: show([token]), per_row=5, width=23, notes=notes)
    path = DATA / "examples" / "readme.png"
    figure.savefig(path, dpi=110)
    print(problem.id, path.relative_to(ROOT), notes)


def as_credit(truth: TrueCredit) -> RealisedCredit:
    """The credit of a method that tells each token its true advantage."""
    return RealisedCredit(truth.group, truth.advantage, {})


def in_english() -> Figure:
    """The picture of the record of English word problems."""
    record = read(DATA / "true_credit" / "words.json")
    kept, place = wrong_turns(record)[0]
    methods = record["methods"]
    titles = {TRUTH: TRUTH} | {name: IN_WORDS.get(name, name.upper()) for name in methods}
    columns = {titles[name]: column for name, column in kept.of_attempt(place).items()}
    notes = {titles[name]: f"cosine {row['cosine'][0]:.2f}" for name, row in methods.items()}
    return credit_columns(columns, kept.decode, per_row=2, width=64, notes=notes)


if __name__ == "__main__":
    if sys.argv[1:] == ["words"]:
        in_english().savefig(DATA / "examples" / "words.png", dpi=110)
    else:
        main()
