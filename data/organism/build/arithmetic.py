"""Build the model organism: tiny Llamas that do multi-step arithmetic about half right, can read a
solution or feedback, and can reflect.

    python -m data.organism.build.arithmetic                 rebuild all of data/organism (an hour
        or two on two cores) and print its table
    python -m data.organism.build.arithmetic --only 3m       one of them
    python -m data.organism.build.arithmetic --measure       only measure the checkpoints again;
        with another --seed the table is printed and not written

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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from workbench.core import coordinates
from workbench.evaluation.metrics import bootstrap
from workbench.paths import ORGANISM
from workbench.records import replace_folder, write_atomic
from workbench.studies.measure import skills
from workbench.tasks import arithmetic
from workbench.tasks.arithmetic import PHRASES, WAIT, Arithmetic, draw, due, parse, solve, split_of

PAD, UNK, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEACHER = "teacher"
SLIPS = 0.3  # chance of a slip per carried or borrowed digit, in plain solutions
REFLECT = 0.1  # share of slips that the plain training solutions notice


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    heads: int
    share: float = 1.0  # of the tokens of the stages that have no target


SIZES = {
    "3m": Size(192, 6, 6),
    "1m": Size(128, 5, 4, 0.5),
    "0.4m": Size(96, 4, 3, 0.5),
}


# ---- tokenizer -----------------------------------------------------------------------------------


def tokenizer(fixed: tuple[str, ...] = PHRASES):
    """One token a character (printable ASCII and the line break), one for each ``fixed`` phrase of
    the task and its prompts, and the chat template's marks.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, UNK, END, *ROLES, "\n", *map(chr, range(32, 127)), *fixed]
    phrases = "|".join(_escape(p) for p in sorted(fixed, key=len, reverse=True))
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{phrases}|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    made.chat_template = TEMPLATE
    return made


def _escape(text: str) -> str:
    return "".join("\\" + c if c in r"\.+*?()|[]{}^$/-" else c.replace("\n", "\\n") for c in text)


# ---- training text -------------------------------------------------------------------------------


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
    chain, lines = parse(expression), []
    while chain[1]:
        value, (operation, *rest) = chain
        right = value + int(operation)
        chance = (
            1 - (1 - slips) ** hard_digits(value, operation) * (1 - slips / 5)
            if len(lines) >= careful
            else 0.0
        )
        if rng.random() < chance:
            wrong = slip(value, operation, rng)
            lines.append(f"{value}{operation}={wrong}")
            if rng.random() < reflect:
                lines.append(WAIT + due(chain))
                wrong = right
            chain = (wrong, tuple(rest))
        else:
            lines.append(due(chain))
            chain = (right, tuple(rest))
    return "\n".join([*lines, due(chain)])


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
    error, lines, right = (
        arithmetic.check(expression, wrong).first_error,
        wrong.split("\n"),
        solve(expression).split("\n"),
    )
    return "\n".join(lines[: error + 1]) + " should be " + right[min(error, len(right) - 1)]


def reconstruction(expression: str, wrong: str) -> str:
    """The wrong attempt up to and including its first error, "Wait, ", the right step, and on to
    the answer.
    """
    lines, right = wrong.split("\n"), solve(expression).split("\n")
    error = arithmetic.check(expression, wrong).first_error
    return "\n".join(
        [*lines[: error + 1], WAIT + right[min(error, len(right) - 1)], *right[error + 1 :]]
    )


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
    task, kind = Arithmetic(), rng.random()
    if kind < 0.35:
        problem = task.problem(train_expression(rng, (2, 3, 4, 4, 4, 5, 6)))
        return problem.messages, attempt(problem.id, rng, slips, REFLECT), 0
    some = max(slips, 0.15)  # the teacher, too, must be able to read other people's wrong attempts
    problem = task.problem(
        train_expression(
            rng, (2, 3, 4, 4, 4, 5), rng.choice((20, 20, 99, 999) if kind < 0.55 else (20, 20, 99))
        )
    )
    expression, right = problem.id, problem.solutions[0]
    if kind < 0.55:  # somebody solved it, perhaps with a reflection on the way
        shown = (
            right
            if rng.random() < 0.8
            else reconstruction(expression, wrong_attempt(expression, rng, some))
        )
        return task.reprompt(problem, solution=shown), right, 0
    wrong = wrong_attempt(expression, rng, some)
    verdict = task.grade(problem, wrong)
    # its own attempt and feedback, or feedback alone: right up to the step that was named, few
    # slips after it
    if kind < 0.70:
        careful = arithmetic.check(expression, wrong).unmended[0]
        shown = wrong if rng.random() < 0.6 else ""
        return (
            task.reprompt(problem, attempt=shown, feedback=verdict.feedback),
            attempt(expression, rng, slips / 8, careful=careful),
            0,
        )
    mended = reconstruction(expression, wrong)
    if kind < 0.95:  # TAPO's synthesis prompt
        return (
            task.synthesis(problem, wrong, right),
            f"<analysis>{diagnosis(expression, wrong)}</analysis><reconstruction>{mended}</reconstruction>",
            0,
        )
    # go on from somebody's "Wait, "
    return problem.messages, mended, mended.index(WAIT) + len(WAIT)


# training rows are padded to the next of these: few shapes, so that each is compiled once
WIDTHS = (64, 112, 192, 256, 320)
TOKENS = 6144  # in a step


def rows_by_width(tok, rng: Random, draw_example):
    """Endless training batches of like-sized rows:

    (ids, targets), lists of [rows, width]; -100 where nothing is learned.
    """
    end, pad = tok.convert_tokens_to_ids([END, PAD])
    waiting: dict[int, list] = {width: [] for width in WIDTHS}
    while True:
        messages, reply, given = draw_example(rng)
        text = (
            tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            + reply[:given]
        )
        prompt, tail = tok(text)["input_ids"], tok(reply[given:])["input_ids"] + [end]
        width = next((w for w in WIDTHS if w >= len(prompt) + len(tail)), None)
        if width is None:
            continue
        padding = width - len(prompt) - len(tail)
        waiting[width].append(
            (
                prompt + tail + [pad] * padding,
                [-100] * (len(prompt) - 1) + tail + [-100] * (padding + 1),
            )
        )
        if len(waiting[width]) == TOKENS // width:
            yield tuple(zip(*waiting[width]))
            waiting[width] = []


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Part of the training: at most ``most`` tokens of conversations by ``draw``, or until the
    greedy accuracy on validation reaches ``until``.
    """

    name: str
    draw: Callable[[Random], tuple]
    most: int
    rate: float  # peak learning rate
    # not reachable: the whole budget, its second half with a rate falling to zero
    until: float = 2.0


STAGES = (
    # a skill is a cliff in training time, so the clock is no stopping rule
    Stage("skill", plain, 8_000_000, 3e-3, until=0.7),
    Stage("reading", partial(mixture, slips=0.0), 5_000_000, 2e-3),
    Stage("slips", partial(mixture, slips=SLIPS), 6_000_000, 2e-3),
)
# the teacher is the 3m as this stage left it: it knows how, reads, and has not learned to slip
TEACHER_STAGE = "reading"


def build(name: str, seed: int, out: Path, say=print) -> None:
    """Train one size through the stages and save it in Hugging Face format, bf16.

    A stage that this seed has left a checkpoint of is not repeated.
    """
    import torch

    size, tok, start = SIZES[name], tokenizer(), None
    for number, stage in enumerate(STAGES):
        folder = out / name if stage is STAGES[-1] else out / f".{name}-{stage.name}-seed{seed}"
        if stage is STAGES[-1] or not (folder / "config.json").is_file():
            budget = (
                stage if stage.until <= 1 else replace(stage, most=int(stage.most * size.share))
            )
            model = begin(size, tok, coordinates("organism", name, stage.name, seed) % 2**31, start)
            train(
                model,
                tok,
                budget,
                coordinates("organism", name, number, seed),
                lambda text: say(f"{name} {stage.name:8} {text}"),
                Arithmetic(),
            )
            with whole(folder) as fresh:
                model.to(torch.bfloat16).save_pretrained(fresh)
                tok.save_pretrained(fresh)
        if name == "3m" and stage.name == TEACHER_STAGE:
            with whole(out / TEACHER) as fresh:
                shutil.copytree(folder, fresh)
        start = folder


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, put in the place of ``folder`` when all is written."""
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    replace_folder(fresh, folder)


def begin(size: Size, tok, seed: int, start: Path | None = None, vocabulary: int = 128):
    """A model with random weights, or the one saved in ``start``; fp32."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = (
        AutoModelForCausalLM.from_pretrained(start)
        if start
        else LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=size.hidden,
                intermediate_size=size.hidden * 8 // 3,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id,
            )
        )
    )
    return model.float()


def train(model, tok, stage: Stage, seed: int, say, task) -> None:
    """One stage, in place. ``task``: of the greedy accuracy."""
    import torch
    import torch.nn.functional as F

    from workbench.model.policy import Policy

    # compiled, as plain matrix products: the fastest of what was measured on a CPU
    model.set_attn_implementation("eager")
    policy, feed = Policy(model, tok), rows_by_width(tok, Random(seed), stage.draw)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.95), fused=True)

    def loss_of(ids, target):
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    compiled, began, tokens, step, smooth = (
        torch.compile(loss_of, dynamic=False),
        time.time(),
        0,
        0,
        None,
    )
    while tokens < stage.most:
        ids, target = map(torch.tensor, next(feed))
        falling = min(1.0, 2 * (1 - tokens / stage.most)) if stage.until > 1 else 1.0
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * falling * min(1.0, (step + 1) / 50)
        loss = compiled(ids, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, step = tokens + ids.numel(), step + 1
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        if step % 75 == 0 or tokens >= stage.most:
            reached = greedy_accuracy(policy, task)
            say(
                f"step {step}  {tokens / 1e6:.2f}M tokens  {time.time() - began:.0f} s  loss "
                f"{smooth:.3f}  greedy accuracy {reached:.2f}"
            )
            if reached >= stage.until:
                break


def greedy_accuracy(policy, task, n: int = 100) -> float:
    """On validation problems, plain prompt, temperature 0."""
    from workbench.rollouts.sampling import sample_groups

    groups = sample_groups(
        policy, task, task.problems("validation", n, 0), 1, ("greedy",), temperature=0.0
    )
    return sum(group.rollouts[0].verdict.correct for group in groups) / n


# ---- the table -----------------------------------------------------------------------------------


def measure(
    folder: Path, problems: int = 400, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """On held-out problems at temperature 1: each number with its 95 % bootstrap interval over
    problems.
    """
    from workbench.model.loading import load_policy
    from workbench.rollouts.sampling import sample_groups

    policy, task = load_policy(folder), Arithmetic()
    groups = sample_groups(
        policy, task, task.problems("test", problems, seed), 8, ("measure", seed)
    )
    found = {
        "plain": [sum(r.verdict.correct for r in g.rollouts) / 8 for g in groups],
        "contrast": [float(g.has_contrast) for g in groups],
        **skills(policy, task, groups, seed),
    }
    return {name: (sum(values) / len(values), *bootstrap(values)) for name, values in found.items()}


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


def missed(found: dict[str, dict]) -> list[str]:
    """What the numbers miss of REQUIRED, in a line each.

    Models that were not measured are not judged, and none without the 3m.
    """
    lines = []
    for model, row, least, most, over_plain in REQUIRED if "3m" in found else ():
        if model in found:
            value, least = found[model][row][0], least + over_plain * found["3m"]["plain"][0]
            if not least <= value <= most:
                lines.append(
                    f"{model} misses what is required: {ROWS[row]}: {value:.4f}, not "
                    f"{least:.4f} to {most:.4f}"
                )
    return lines


def table(found: dict[str, dict], seed: int) -> str:
    """The README of data/organism, from what ``measure`` found for each model."""
    names = list(found)
    lines = [
        "# The model organism",
        "",
        "Tiny Llamas trained by `python -m data.organism.build.arithmetic` on "
        "multi-step arithmetic; what they are and why they err stands at the top of",
        "`data/organism/build/arithmetic.py`. What they show is about them, not about "
        "large models. Licence: Apache-2.0, like the code.",
        "",
        f"400 held-out problems (seed {seed}), temperature 1, 95 % bootstrap intervals "
        "over problems. Written by the script; the same numbers are in `table.json`.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for key, words in ROWS.items():
        lines.append(
            f"| {words} | "
            + " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*found[name][key]) for name in names)
            + " |"
        )
    return "\n".join(lines) + "\n"


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
            build(name, args.seed, args.out, say=partial(print, flush=True))
    names = [name for name in (*SIZES, TEACHER) if (args.out / name / "config.json").is_file()]
    found = {name: measure(args.out / name, seed=args.seed) for name in names}
    text = table(found, args.seed)
    print(text)
    if not args.measure or args.seed == 0:  # a measurement on other problems is to compare with
        write_atomic(args.out / "README.md", text)
        write_atomic(
            args.out / "table.json",
            json.dumps({"seed": args.seed, "problems": 400, "models": found}, indent=1),
        )
    if lines := missed(found):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
