"""Build the model organism: tiny Llamas that do multi-step arithmetic about half right.

They can read a solution or feedback, and can reflect.

    python -m data.organism.build.arithmetic               rebuild all of data/organism (an hour or
                                                           two on two cores) and print its table
    python -m data.organism.build.arithmetic --only 3m     one of them
    python -m data.organism.build.arithmetic --measure     only measure the checkpoints again; with
                                                           another --seed the table is printed and
                                                           not written

Where the 3m or its teacher misses what is REQUIRED of it, the numbers are named and the exit status
is 1; the table is written all the same.

Why it errs. A skill that is only half learned gives a base accuracy that is a cliff in training
time. So the skill is learned well and the *slips* are planted: in the plain-prompt training
solutions a step goes wrong with a probability that depends on how hard the step is (more when a
digit is carried or borrowed), and the solution then goes on, consistently, from the wrong value.
Now and then (``REFLECT``) the slip is noticed: "Wait, ..." and the right step. The right answer
stays known, the policy is calibrated about its own slips, and reinforcement learning has something
real to do: a better policy than the data it was trained on. Prompts that hold a solution or
feedback are answered with far fewer slips, because there the right value can be read.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from data.organism.build.common import (
    Measured,
    Say,
    Size,
    Stage,
    begin,
    markdown,
    prefixed,
    save,
    say_now,
    tokenizer,
    train,
    whole,
    with_intervals,
)
from data.organism.build.skills import skills
from workbench.core import coordinates
from workbench.paths import ORGANISM
from workbench.records import write_atomic
from workbench.tasks import arithmetic
from workbench.tasks.arithmetic import WAIT, Arithmetic, draw, due, parse, solve, split_of

TEACHER = "teacher"
SLIPS = 0.3  # chance of a slip per carried or borrowed digit, in plain solutions
REFLECT = 0.1  # share of slips that the plain training solutions notice


SIZES = {
    "3m": Size(192, 6, 6),
    "1m": Size(128, 5, 4, 0.5),
    "0.4m": Size(96, 4, 3, 0.5),
}


# ---- training text


def hard_digits(value: int, operation: str) -> int:
    """How many digits of the step are carried or borrowed."""
    other, count, carry = abs(int(operation)), 0, 0
    if value < 0 or value + int(operation) < 0:  # only after a slip: as hard as one carry
        return 1
    while value or other or carry:
        a, b = value % 10, other % 10
        carry = int(a + b + carry > 9) if operation[0] == "+" else int(a - b - carry < 0)
        count += carry
        value, other = value // 10, other // 10
    return count


def slip(value: int, operation: str, rng: Random) -> int:
    """A plausible wrong result: a forgotten carry (most often), one off, or the sign misread."""
    right = value + int(operation)
    kind = rng.random()
    if kind < 0.6:
        wrong = right - 10 if operation[0] == "+" else right + 10
    elif kind < 0.85:
        wrong = right + rng.choice((-1, 1))
    else:
        wrong = value - int(operation)
    return wrong if wrong >= 0 and wrong != right else right + 1


def attempt(
    expression: str, rng: Random, slips: float, reflect: float = 0.0, careful: int = 0
) -> str:
    """A solution in which each of the steps from ``careful`` on may slip; a slip is noticed with
    probability ``reflect``.
    """
    lines = []
    value, operations = parse(expression)
    while operations:
        operation, *rest = operations
        right = value + int(operation)
        line = due((value, operations))
        chance = 0.0
        if len(lines) >= careful:
            chance = 1 - (1 - slips) ** hard_digits(value, operation) * (1 - slips / 5)
        if rng.random() < chance:
            wrong = slip(value, operation, rng)
            lines.append(f"{value}{operation}={wrong}")
            if rng.random() < reflect:
                lines.append(WAIT + line)
                wrong = right
            value = wrong
        else:
            lines.append(line)
            value = right
        operations = tuple(rest)
    return "\n".join([*lines, due((value, operations))])


def wrong_attempt(expression: str, rng: Random, slips: float) -> str:
    while True:
        text = attempt(expression, rng, slips)
        if not arithmetic.check(expression, text).correct:
            return text


def diagnosis(expression: str, wrong: str) -> str:
    """The attempt read line by line until one is not what it should be.

    (Asked for the number of the wrong step first, a model this small mostly says 1: it would have
    to compare all lines at once.)
    """
    error = arithmetic.check(expression, wrong).first_error
    lines = wrong.split("\n")
    right = solve(expression).split("\n")
    return "\n".join(lines[: error + 1]) + " should be " + right[min(error, len(right) - 1)]


def reconstruction(expression: str, wrong: str) -> str:
    """The wrong attempt up to and including its first error, "Wait, ", the right step, and on to
    the answer.
    """
    error = arithmetic.check(expression, wrong).first_error
    lines = wrong.split("\n")
    right = solve(expression).split("\n")
    turn = WAIT + right[min(error, len(right) - 1)]
    return "\n".join([*lines[: error + 1], turn, *right[error + 1 :]])


def train_expression(rng: Random, lengths: tuple[int, ...], largest: int = 20) -> str:
    """A chain of the training split."""
    while True:
        expression = draw(rng, rng.choice(lengths), largest)
        if split_of(expression) == "train":
            return expression


def plain(rng: Random) -> tuple[tuple, str, int]:
    """Where a model starts: short questions and their solutions."""
    expression = train_expression(rng, (1, 2, 3, 4))
    return Arithmetic().problem(expression).messages, solve(expression), 0


def mixture(rng: Random, slips: float) -> tuple[tuple, str, int]:
    """One training conversation: messages, the reply, and how many leading characters of the reply
    are given, not learned.

    Prompts to be read often hold numbers too large for the model to reckon with: there reading
    pays, and is learned.
    """
    task = Arithmetic()
    kind = rng.random()
    if kind < 0.35:
        problem = task.problem(train_expression(rng, (2, 3, 4, 4, 4, 5, 6)))
        return problem.messages, attempt(problem.id, rng, slips, REFLECT), 0
    some = max(slips, 0.15)  # the teacher, too, must be able to read other people's wrong attempts
    largest = rng.choice((20, 20, 99, 999) if kind < 0.55 else (20, 20, 99))
    problem = task.problem(train_expression(rng, (2, 3, 4, 4, 4, 5), largest))
    expression = problem.id
    right = problem.solutions[0]
    if kind < 0.55:  # somebody solved it, perhaps with a reflection on the way
        shown = right
        if rng.random() >= 0.8:
            shown = reconstruction(expression, wrong_attempt(expression, rng, some))
        return task.reprompt(problem, solution=shown), right, 0
    wrong = wrong_attempt(expression, rng, some)
    # its own attempt and feedback, or feedback alone: right up to the step that was named, few
    # slips after it
    if kind < 0.70:
        feedback = task.grade(problem, wrong).feedback
        careful = arithmetic.check(expression, wrong).unmended[0]
        messages = task.reprompt(
            problem, attempt=wrong if rng.random() < 0.6 else "", feedback=feedback
        )
        return messages, attempt(expression, rng, slips / 8, careful=careful), 0
    mended = reconstruction(expression, wrong)
    if kind < 0.95:  # TAPO's synthesis prompt
        analysis = diagnosis(expression, wrong)
        output = f"<analysis>{analysis}</analysis><reconstruction>{mended}</reconstruction>"
        return task.synthesis(problem, wrong, right), output, 0
    # go on from somebody's "Wait, "
    return problem.messages, mended, mended.index(WAIT) + len(WAIT)


# ---- training


STAGES = (
    # a skill is a cliff in training time, so the clock is no stopping rule
    Stage("skill", plain, 8_000_000, 3e-3, until=0.7),
    Stage("reading", partial(mixture, slips=0.0), 5_000_000, 2e-3),
    Stage("slips", partial(mixture, slips=SLIPS), 6_000_000, 2e-3),
)
# the teacher is the 3m as this stage left it: it knows how, reads, and has not learned to slip
TEACHER_STAGE = "reading"


def build(name: str, seed: int, out: Path, say: Say = say_now) -> None:
    """Train one size through the stages and save it in Hugging Face format, bf16.

    A stage that this seed has left a checkpoint of is not repeated.
    """
    size = SIZES[name]
    tok = tokenizer()
    start = None
    for number, stage in enumerate(STAGES):
        last = stage is STAGES[-1]
        folder = out / (name if last else f".{name}-{stage.name}-seed{seed}")
        if last or not (folder / "config.json").is_file():
            first_seed = coordinates("organism", name, stage.name, seed) % 2**31
            model = begin(size, tok, first_seed, start)
            whole_budget = stage.until > 1
            most = int(stage.most * size.share) if whole_budget else stage.most
            train(
                model,
                tok,
                replace(stage, most=most),
                coordinates("organism", name, number, seed),
                prefixed(say, f"{name} {stage.name:8}"),
                Arithmetic(),
            )
            save(model, tok, folder)
        if name == "3m" and stage.name == TEACHER_STAGE:
            with whole(out / TEACHER) as fresh:
                shutil.copytree(folder, fresh)
        start = folder


# ---- the table


def measure(folder: Path, problems: int = 400, seed: int = 0) -> Measured:
    """On held-out problems at temperature 1: each number with its 95 % bootstrap interval over
    problems.
    """
    from workbench.model.loading import load_policy
    from workbench.rollouts.sampling import sample_groups

    policy = load_policy(folder)
    task = Arithmetic()
    held_out = task.problems("test", problems, seed)
    groups = sample_groups(policy, task, held_out, 8, ("measure", seed))
    values = {
        "plain": [sum(r.verdict.correct for r in g.rollouts) / 8 for g in groups],
        "contrast": [float(g.has_contrast) for g in groups],
        **skills(policy, task, groups, seed),
    }
    return with_intervals(values)


ROWS = {
    "plain": "plain prompt: correct (p)",
    "contrast": "groups of 8 with contrast",
    "reference": "with a correct solution in the prompt: correct",
    "feedback": "with its own wrong attempt and feedback: correct",
    "feedback_alone": "with the feedback alone: correct",
    "parses": "synthesis prompt: output parses",
    "copies": "its reconstruction begins with the attempt through the true error, and departs "
    "from it there or later",
    "departs": "the same, and departs right there",
    "mends": "its reconstruction ends correct",
}


class Required(NamedTuple):
    model: str
    row: str
    least: float
    most: float = 1.0
    over_plain: bool = False  # ``least`` is counted from the 3m's plain number, p


REQUIRED = (
    Required("3m", "plain", 0.30, 0.60),
    Required("3m", "contrast", 0.70),
    Required("3m", "reference", 0.95),
    Required("3m", "feedback", 0.30, over_plain=True),
    Required("3m", "parses", 0.80),
    Required("3m", "copies", 0.60),
    Required("3m", "mends", 0.60),
    Required(TEACHER, "plain", 0.30, over_plain=True),
)


def missed(models: dict[str, Measured]) -> list[str]:
    """What the numbers miss of REQUIRED, in a line each.

    Models that were not measured are not judged, and none without the 3m.
    """
    if "3m" not in models:
        return []
    plain, *_ = models["3m"]["plain"]
    lines = []
    for model, row, least, most, over_plain in REQUIRED:
        if model not in models:
            continue
        value, *_ = models[model][row]
        least += over_plain * plain
        if not least <= value <= most:
            lines.append(
                f"{model} misses what is required: {ROWS[row]}: {value:.4f}, not "
                f"{least:.4f} to {most:.4f}"
            )
    return lines


HEAD = """# The model organism

Tiny Llamas trained by `python -m data.organism.build.arithmetic` on multi-step arithmetic; what \
they are and why they err stands at the top of
`data/organism/build/arithmetic.py`. What they show is about them, not about large models. \
Licence: Apache-2.0, like the code.

400 held-out problems (seed {seed}), temperature 1, 95 % bootstrap intervals over problems. \
Written by the script; the same numbers are in `table.json`.

"""


def table(models: dict[str, Measured], seed: int) -> str:
    """The README of data/organism, from what ``measure`` found for each model."""
    return markdown(HEAD.format(seed=seed), ROWS, models)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=tuple(SIZES), action="append", help="build this one only; may be repeated"
    )
    parser.add_argument(
        "--measure", action="store_true", help="build nothing, measure what is there"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the training, or with --measure of the held-out problems and samples",
    )
    parser.add_argument("--out", type=Path, default=ORGANISM)
    args = parser.parse_args()
    if not args.measure:
        for name in args.only or SIZES:
            build(name, args.seed, args.out)
    names = [name for name in (*SIZES, TEACHER) if (args.out / name / "config.json").is_file()]
    models = {name: measure(args.out / name, seed=args.seed) for name in names}
    text = table(models, args.seed)
    print(text)
    if not args.measure or args.seed == 0:  # a measurement on other problems is to compare with
        write_atomic(args.out / "README.md", text)
        record = {"seed": args.seed, "problems": 400, "models": models}
        write_atomic(args.out / "table.json", json.dumps(record, indent=1))
    if lines := missed(models):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
