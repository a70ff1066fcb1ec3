"""Build the organism of the programs task: a tiny Llama that writes small Python functions.

It is about half right, and can read what went wrong.

    python -m data.organism.build.programs               train data/organism/programmer and its
                                                         teacher again (some ten minutes on two
                                                         cores), print their table
    python -m data.organism.build.programs --measure     only measure them

It is made like the arithmetic organism (data/organism/build/arithmetic.py): the skill is learned
well, and slips are planted: a variable that does not exist (NameError), a forgotten argument
(TypeError), a bracket left open (SyntaxError), and four that only a wrong output gives away. After
feedback the reply is careful about what the feedback names, its line and its kind, and as careless
as ever about the rest: so feedback holds something to be read, no more. Its teacher is the model as
the first stage left it: it knows how, and has not learned to slip.
"""

from __future__ import annotations

import argparse
import json
import re
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
    with_intervals,
)
from data.organism.build.skills import answers, correct
from workbench.core import coordinates
from workbench.paths import ORGANISM
from workbench.records import write_atomic
from workbench.tasks import prompts
from workbench.tasks.arithmetic import split_of
from workbench.tasks.programs import LINE, PHRASES, Operation, Programs, draw, parse, right_lines

NAMES = ("programmer-teacher", "programmer")  # as the stages leave them
SIZE = Size(128, 5, 4)
VOCABULARY = 192
FIXED = (*prompts.PHRASES, *PHRASES)
# wrong attempts with the sandbox's feedback on them, drawn from again and again in training
POOL = 3000

# what each slip makes of the program
KINDS = ("NameError", "TypeError", "SyntaxError", "Wrong Answer")
# chance in a line where the slip is possible
SLIPS = {"NameError": 0.05, "TypeError": 0.09, "SyntaxError": 0.06, "Wrong Answer": 0.10}


class Slip(NamedTuple):
    kind: str
    code: str


def slips(operation: Operation, n: int, rng: Random) -> list[Slip]:
    """One slip of each kind that is possible for an operation."""
    right = operation.code.format(n=n)
    renamed = right.replace("x,", "y,") if "max" in right else right.replace("x", "y")
    possible = [Slip("NameError", renamed)]
    if "(" in right:
        possible.append(Slip("TypeError", right.replace(f",{n}", "")))
        possible.append(Slip("SyntaxError", right.removesuffix(")")))
    possible.append(Slip("Wrong Answer", rng.choice(_confused(operation, n))))
    return possible


def _confused(operation: Operation, n: int) -> list[str]:
    """Other operations, or another number, in place of the right one."""
    right = operation.code.format(n=n)
    swaps = {"+": "-", "-": "+", "max": "min", "min": "max", "%": "//", "//2": "/2"}
    other = next((right.replace(a, b) for a, b in swaps.items() if a in right), None)
    near = [operation.code.format(n=n + d) for d in (-1, 1)] if "{n}" in operation.words else []
    return ([other] if other else []) * 2 + near


def attempt(
    question: str, rng: Random, slips_rate: float = 1.0, careful: frozenset = frozenset()
) -> str:
    """A program in which each line may slip.

    ``careful``: kinds of slip and numbers of lines (the head is line 1) that are an eighth as
    likely to.
    """
    lines = right_lines(question)
    for number, (operation, n) in enumerate(parse(question), start=2):
        for slip in slips(operation, n, rng):
            rate = slips_rate * SLIPS[slip.kind]
            if slip.kind in careful or number in careful:
                rate /= 8
            if rng.random() < rate:
                lines[number - 1] = LINE + slip.code
                break
    return "\n".join(lines)


# ---- training


class Marked(NamedTuple):
    """A wrong attempt and what was said of it."""

    question: str
    feedback: str
    careful: frozenset


def named(feedback: str) -> frozenset:
    """What feedback names: a kind of slip, and the numbers of lines."""
    kinds = [kind for kind in KINDS if kind in feedback]
    return frozenset(kinds + [int(number) for number in re.findall(r"[Ll]ine (\d+)", feedback)])


def train_question(rng: Random) -> str:
    while True:
        question = draw(rng, rng.choice((2, 3, 4, 4, 4, 5)))
        if split_of(question) == "train":
            return question


def pool(seed: int, size: int = POOL) -> list[Marked]:
    """Wrong attempts at training questions, graded by the sandbox."""
    rng = Random(coordinates("pool", seed))
    task = Programs()
    marked: list[Marked] = []
    while len(marked) < size:
        question = train_question(rng)
        verdict = task.grade(task.problem(question), attempt(question, rng, 1.5))
        if not verdict.correct:
            marked.append(Marked(question, verdict.feedback, named(verdict.feedback)))
    return marked


def plain(rng: Random) -> tuple[tuple, str, int]:
    """Where it starts: questions and right programs."""
    question = train_question(rng)
    return Programs().problem(question).messages, "\n".join(right_lines(question)), 0


def mixture(rng: Random, marked: list[Marked]) -> tuple[tuple, str, int]:
    """One conversation: messages, the reply, and how much of the reply is given."""
    task = Programs()
    kind = rng.random()
    question = train_question(rng)
    problem = task.problem(question)
    if kind < 0.5:
        return problem.messages, attempt(question, rng), 0
    if kind < 0.7:
        right = problem.solutions[0]
        return task.reprompt(problem, solution=right), right, 0
    case = rng.choice(marked)
    messages = task.reprompt(task.problem(case.question), feedback=case.feedback)
    return messages, attempt(case.question, rng, careful=case.careful), 0


def build(seed: int, out: Path, say: Say = say_now) -> None:
    """Train it and save it after each stage, in Hugging Face format, bf16: first as the teacher,
    then as the programmer.
    """
    tok = tokenizer(FIXED)
    stages = (
        Stage("skill", plain, 4_000_000, 3e-3, until=0.97),
        Stage("slips", partial(mixture, marked=pool(seed)), 4_000_000, 2e-3),
    )
    model = begin(SIZE, tok, coordinates("programmer", seed) % 2**31, vocabulary=VOCABULARY)
    for number, (stage, name) in enumerate(zip(stages, NAMES, strict=True)):
        place = coordinates("programmer", number, seed)
        train(model, tok, stage, place, prefixed(say, f"{stage.name:6}"), Programs())
        save(model, tok, out / name)


# ---- the table

ROWS = {
    "plain": "plain prompt: correct (p)",
    "contrast": "groups of 8 with contrast",
    "solution": "with a correct program in the prompt: correct",
    "feedback": "with the feedback on its own wrong attempt: correct",
    "again": "the same questions, plain prompt: correct",
}


def measure(folder: Path, problems: int = 400, seed: int = 0) -> Measured:
    """On held-out problems at temperature 1: each number with its 95 % bootstrap interval over
    problems. feedback and again are of the problems with a wrong first attempt, so that feedback is
    compared with a second try.
    """
    from workbench.model.loading import load_policy
    from workbench.rollouts.sampling import sample_groups

    policy = load_policy(folder)
    task = Programs()
    held_out = task.problems("test", problems, seed)
    groups = sample_groups(policy, task, held_out, 8, ("measure", seed))
    failed = [group for group in groups if not group.rollouts[0].verdict.correct]
    tried = [group.problem for group in failed]

    def right(name: str, cases: list, prompts: list) -> list[float]:
        texts = answers(policy, prompts, task.max_new, ("measure", name, seed))
        return correct(task, cases, texts)

    solved = [task.reprompt(p, solution=p.solutions[0]) for p in held_out]
    marked = [
        task.reprompt(group.problem, feedback=group.rollouts[0].verdict.feedback)
        for group in failed
    ]
    values = {
        "plain": [sum(r.verdict.correct for r in g.rollouts) / 8 for g in groups],
        "contrast": [float(g.has_contrast) for g in groups],
    }
    values["solution"] = right("solution", held_out, solved)
    values["feedback"] = right("feedback", tried, marked)
    values["again"] = right("again", tried, [problem.messages for problem in tried])
    return with_intervals(values)


HEAD = """# The programmer

Two tiny Llamas trained by `python -m data.organism.build.programs` to write small Python \
functions: the one to be trained further, and its
teacher. How they were made stands at the top of `data/organism/build/programs.py`. What they \
show is about themselves, not about large models.
Licence: Apache-2.0, like the code.

The teacher was shown nothing but plain prompts: it can judge an attempt, token by token, and \
read no other.

400 held-out problems (seed {seed}), temperature 1, 95 % bootstrap intervals over problems. \
Written by the script, the numbers also in `table.json`.

"""


def table(models: dict[str, Measured], seed: int) -> str:
    return markdown(HEAD.format(seed=seed), ROWS, models)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="build nothing, measure what is there"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ORGANISM)
    args = parser.parse_args()
    if not args.measure:
        build(args.seed, args.out)
    models = {name: measure(args.out / name, seed=args.seed) for name in reversed(NAMES)}
    text = table(models, args.seed)
    print(text)
    if not args.measure or args.seed == 0:
        record = {"seed": args.seed, "problems": 400, "measured": models}
        write_atomic(args.out / NAMES[-1] / "README.md", text)
        write_atomic(args.out / NAMES[-1] / "table.json", json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
