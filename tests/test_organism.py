"""The arithmetic organism: what it is trained on, how its text becomes targets, and whether the
committed one does what is required of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from safetensors import safe_open

from data.organism.build import arithmetic as organism
from data.organism.build import skills, teacher_26
from data.organism.build.arithmetic import (
    REFLECT,
    REQUIRED,
    ROWS,
    SIZES,
    SLIPS,
    TEACHER,
    attempt,
    diagnosis,
    hard_digits,
    measure,
    missed,
    mixture,
    plain,
    reconstruction,
    slip,
    wrong_attempt,
)
from data.organism.build.common import (
    END,
    PAD,
    TOKENS,
    WIDTHS,
    Size,
    Stage,
    rows_by_width,
    tokenizer,
)
from workbench.evaluation.metrics import evaluate
from workbench.model.loading import load_policy
from workbench.paths import ORGANISM
from workbench.studies import arms
from workbench.tasks import load_task, prompts
from workbench.tasks.arithmetic import WAIT, Arithmetic, check, draw, parse, solve, split_of

TASK = Arithmetic()
TABLE = json.loads((ORGANISM / "table.json").read_text())
FOLDERS = [ORGANISM / name for name in (*SIZES, *arms.TEACHERS, "programmer", "programmer-teacher")]
DRAWS = {
    "plain": plain,
    "mixture": partial(mixture, slips=0.0),
    "mixture with slips": partial(mixture, slips=SLIPS),
}
STEP = re.compile(r"(-?\d+)([+-]\d+)=(-?\d+)")


# ---- held-out problems never occur in the training text


def chains(conversation: tuple) -> list[str]:
    """The question of a training conversation, then what each solution or attempt in its prompt and
    reply is one of, read off the steps.
    """
    messages, reply, _ = conversation
    question, *shown = re.split("|".join(map(re.escape, prompts.PHRASES)), messages[-1]["content"])
    found = [
        STEP.findall("\n".join(line for line in text.split("\n") if STEP.fullmatch(line)))
        for text in (*shown, *re.split("<.*?>", reply))
    ]
    return [question] + [
        steps[0][0] + "".join(operation for _, operation, _ in steps) for steps in found if steps
    ]


def held_out(conversation: tuple) -> bool:
    """Does it ask a question that is not of the training split, or show steps of any other than the
    one it asks?
    """
    question, *shown = chains(conversation)
    return split_of(question) != "train" or any(
        not f"{question}+".startswith((chain + "+", chain + "-")) for chain in shown
    )


@pytest.mark.parametrize("kind", DRAWS)
def test_training_text_is_of_the_training_split_alone(kind):
    rng, parts = Random(1), Counter()
    for _ in range(800):
        conversation = DRAWS[kind](rng)
        assert not held_out(conversation), conversation
        parts[len(chains(conversation))] += 1
        parts.update(
            phrase
            for phrase in prompts.PHRASES
            if phrase in conversation[0][-1]["content"] + conversation[1]
        )
    # a question, two responses, a diagnosis and a reconstruction
    assert kind == "plain" or (set(prompts.PHRASES) <= set(parts) and parts[5] > 100)


@pytest.mark.parametrize("kind", DRAWS)
def test_without_the_split_held_out_problems_would_be_seen(kind, monkeypatch):
    monkeypatch.setattr(organism, "split_of", lambda expression: "train")
    rng = Random(1)
    assert 0.05 < sum(held_out(DRAWS[kind](rng)) for _ in range(800)) / 800 < 0.15


def test_a_solution_of_another_problem_would_be_seen():
    problem, other = TASK.problem("1+2+3"), "1+2+4"
    assert split_of(problem.id) == "train"
    for how in (
        {"solution": solve(other)},
        {"attempt": solve(other)},
        {"solution": solve(problem.id), "attempt": solve(other)},
    ):
        assert held_out((TASK.reprompt(problem, **how), solve(problem.id), 0))
    assert held_out(
        (TASK.synthesis(problem, "1+2=4", solve(other)), solve(problem.id), 0)
    ) and held_out((problem.messages, solve(other), 0))
    assert not held_out((TASK.reprompt(problem, solution=solve(problem.id)), solve(problem.id), 0))


# ---- slips


@pytest.mark.parametrize(
    ("value", "operation", "count"),
    [
        (12, "+7", 0),
        (47, "+5", 1),
        (47, "+85", 2),
        (95, "+5", 2),
        (999, "+1", 3),
        (250, "+250", 1),
        (0, "+9", 0),
        (19, "-7", 0),
        (132, "-29", 1),
        (132, "-49", 2),
        (100, "-1", 2),
        (1000, "-999", 3),
        (20, "-20", 0),
        (5, "-8", 1),
        (-3, "+9", 1),
        (-12, "+3", 1),
    ],
)
def test_carried_and_borrowed_digits_by_hand(value, operation, count):
    assert hard_digits(value, operation) == count


def test_a_slip_is_never_right():
    rng = Random(2)
    for _ in range(5000):
        value, operation = rng.randint(-30, 300), rng.choice("+-") + str(rng.randint(0, 99))
        assert slip(value, operation, rng) != value + int(operation)


def left(line: str) -> tuple[int, str]:
    value, operation, _ = STEP.fullmatch(line).groups()
    return int(value), operation


def slipped(line: str) -> bool:
    asked, found = line.split("=")
    return eval(asked) != int(found)


@pytest.mark.parametrize("slips", [SLIPS, SLIPS / 8])
def test_steps_slip_as_often_as_the_formula_says_and_are_noticed_as_often(slips):
    """Of a step with h hard digits 1 - (1 - s)^h (1 - s/5): within four standard deviations for
    each h, on some thousand attempts.
    """
    rng, tried, wrong, noticed = Random(3), Counter(), Counter(), 0
    for _ in range(4000):
        lines = attempt(draw(rng, 4, 99), rng, slips, REFLECT).split("\n")[:-1]
        for line, after in zip(lines, [*lines[1:], ""]):
            if not line.startswith(WAIT):
                hard = hard_digits(*left(line))
                tried[hard] += 1
                wrong[hard] += slipped(line)
                noticed += after.startswith(WAIT)
    assert {0, 1, 2} <= set(tried) and min(tried[h] for h in (0, 1, 2)) > 1000
    for hard, n in tried.items():
        p = 1 - (1 - slips) ** hard * (1 - slips / 5)
        assert abs(wrong[hard] / n - p) < 4 * (p * (1 - p) / n) ** 0.5, (hard, n)
    n = wrong.total()
    assert abs(noticed / n - REFLECT) < 4 * (REFLECT * (1 - REFLECT) / n) ** 0.5


# ---- attempts, their diagnosis and their reconstruction


def cases(n: int = 400):
    rng = Random(4)
    for _ in range(n):
        expression = draw(rng, rng.randint(1, 6), rng.choice((20, 99, 999)))
        yield (
            TASK.problem(expression),
            wrong_attempt(expression, rng, rng.choice((0.15, SLIPS))),
            rng,
        )


def test_without_slips_an_attempt_is_the_experts_solution_and_careful_steps_do_not_slip():
    for problem, _, rng in cases():
        assert attempt(problem.id, rng, 0.0, reflect=1.0) == problem.solutions[0]
        careful = rng.randint(1, problem.id.count("+") + problem.id.count("-"))
        # hard digits slip for certain
        tried = attempt(problem.id, rng, 1.0, careful=careful).split("\n")
        assert tried[:careful] == problem.solutions[0].split("\n")[:careful]
        assert all(slipped(line) for line in tried[careful:-1] if hard_digits(*left(line)))


def test_a_wrong_attempt_goes_wrong_at_one_step_and_its_diagnosis_and_reconstruction_say_where():
    for problem, wrong, _ in cases():
        lines, right = wrong.split("\n"), problem.solutions[0].split("\n")
        # by Python's arithmetic, and there is one
        error = next(i for i, line in enumerate(lines) if slipped(line))
        assert (
            not TASK.grade(problem, wrong).correct and check(problem.id, wrong).first_error == error
        )
        assert [left(line)[1] for line in lines[:-1]] == list(parse(problem.id)[1])
        assert (
            diagnosis(problem.id, wrong)
            == "\n".join(lines[: error + 1]) + " should be " + right[error]
        )

        mended = reconstruction(problem.id, wrong)
        assert TASK.grade(problem, mended).correct and mended.count(WAIT) == 1
        assert mended.split(WAIT)[0] == "\n".join(lines[: error + 1]) + "\n"
        copied = partial(skills._copied, problem, wrong)
        assert copied(mended) == (True, True)
        for other in (wrong, problem.solutions[0], "\n".join(mended.split("\n")[:error]), ""):
            assert copied(other) == (False, False)
        if error + 2 < len(lines):
            # a line too far
            assert copied("\n".join([*lines[: error + 2], WAIT + right[error]])) == (True, False)


# ---- from text to targets


def test_only_the_reply_after_what_is_given_is_learned_and_targets_are_the_next_tokens():
    tok, drawn, given_some = tokenizer(), {}, 0
    end, pad = tok.convert_tokens_to_ids([END, PAD])

    def remembered(rng):
        messages, reply, given = mixture(rng, SLIPS)
        drawn[f"<|user|>{messages[0]['content']}{END}<|assistant|>{reply}{END}"] = (reply, given)
        return messages, reply, given

    feed, widths = rows_by_width(tok, Random(5), remembered), set()
    for ids_R, targets_R in (next(feed) for _ in range(8)):
        width = len(ids_R[0])
        widths.add(width)
        assert width in WIDTHS and len(ids_R) == len(targets_R) == TOKENS // width
        for ids, targets in zip(ids_R, targets_R, strict=True):
            length = len(ids) - ids.count(pad)
            assert len(ids) == len(targets) == width and ids[length:] == [pad] * (width - length)
            # no row is padded further than it has to be
            assert length > max((w for w in WIDTHS if w < width), default=0)
            reply, given = drawn[tok.decode(ids[:length])]
            learned = [i for i, target in enumerate(targets) if target != -100]
            # to the last token before the padding, without a gap
            assert learned == list(range(learned[0], length - 1))
            assert [targets[i] for i in learned] == ids[learned[0] + 1 : length] and targets[
                learned[-1]
            ] == end
            assert tok.decode([targets[i] for i in learned]) == reply[given:] + END
            given_some += given > 0
    assert len(widths) > 2 and given_some > 10


def test_what_is_too_long_for_a_row_is_left_out():
    long, short = (
        (({"role": "user", "content": "1+1" * 200},), "x", 0),
        (({"role": "user", "content": "1+1"},), "y", 0),
    )
    turns = iter([long, short] * TOKENS)
    ids_R, _ = next(rows_by_width(tokenizer(), Random(0), lambda rng: next(turns)))
    assert len(ids_R) == TOKENS // WIDTHS[0] and len(set(map(tuple, ids_R))) == 1


# ---- building


@pytest.fixture
def small(monkeypatch):
    """Builds of two stages, in which training only writes the seed of its stage into the weights;
    it returns the list of stages that were trained.
    """
    trained = []

    def train(model, tok, stage, seed, say, task):
        trained.append(stage.name)
        torch.nn.init.constant_(model.model.norm.weight, seed % 100)

    monkeypatch.setattr(organism, "SIZES", {"3m": Size(8, 1, 1)})
    monkeypatch.setattr(
        organism, "STAGES", (Stage("reading", plain, 1, 0.1), Stage("slips", plain, 1, 0.1))
    )
    monkeypatch.setattr(organism, "train", train)
    return trained


def weights(folder) -> dict:
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = file.keys()  # of a safetensors file, which is no dict
        return {name: file.get_tensor(name) for name in names}


def test_a_stage_is_taken_up_again_by_builds_of_its_own_seed_alone(small, tmp_path):
    for seed, stages in ((0, ["reading", "slips"]), (0, ["slips"]), (1, ["reading", "slips"])):
        small.clear()
        organism.build("3m", seed, tmp_path)
        assert small == stages
        assert (tmp_path / TEACHER / "model.safetensors").read_bytes() == (
            tmp_path / f".3m-reading-seed{seed}" / "model.safetensors"
        ).read_bytes()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        ".3m-reading-seed0",
        ".3m-reading-seed1",
        "3m",
        TEACHER,
    ]
    norms = [
        weights(tmp_path / name)["model.norm.weight"]
        for name in (".3m-reading-seed0", ".3m-reading-seed1", "3m")
    ]
    assert len({norm[0].item() for norm in norms}) == 3 and {norm.dtype for norm in norms} == {
        torch.bfloat16
    }


def test_a_build_that_is_killed_while_saving_leaves_the_older_checkpoint_and_no_half_of_one(
    small, tmp_path, monkeypatch
):
    organism.build("3m", 0, tmp_path)
    before = (tmp_path / "3m" / "model.safetensors").read_bytes()

    class Killed(Exception):
        pass

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "half").touch()
        raise Killed

    with monkeypatch.context() as half:
        half.setattr("transformers.LlamaForCausalLM.save_pretrained", save_pretrained)
        for seed in (0, 1):  # in the last stage; in the first
            with pytest.raises(Killed):
                organism.build("3m", seed, tmp_path)
    assert (tmp_path / "3m" / "model.safetensors").read_bytes() == before and not (
        tmp_path / ".3m-reading-seed1"
    ).exists()
    organism.build("3m", 1, tmp_path)
    assert (tmp_path / "3m" / "model.safetensors").read_bytes() != before and not list(
        tmp_path.rglob("*.partial")
    ) + list(tmp_path.rglob("half"))


# ---- what is required


def test_the_committed_organism_does_what_is_required():
    assert missed(TABLE["models"]) == [] and TABLE["problems"] == 400
    assert set(TABLE["models"]) == {*SIZES, TEACHER} and all(
        set(rows) == set(ROWS) for rows in TABLE["models"].values()
    )
    assert (ORGANISM / "README.md").read_text() == organism.table(TABLE["models"], TABLE["seed"])


def by_hand(model: str, row: str, p: float) -> tuple[float, float]:
    """The contract, written out again."""
    return {
        ("3m", "plain"): (0.30, 0.60),
        ("3m", "contrast"): (0.70, 1),
        ("3m", "reference"): (0.95, 1),
        ("3m", "feedback"): (p + 0.30, 1),
        ("3m", "parses"): (0.80, 1),
        ("3m", "copies"): (0.60, 1),
        ("3m", "mends"): (0.60, 1),
        (TEACHER, "plain"): (p + 0.30, 1),
    }[model, row]


@pytest.mark.parametrize("which", REQUIRED, ids=lambda which: f"{which.model} {which.row}")
def test_each_number_that_misses_is_named_and_nothing_else(which):
    p = 0.45
    good = {
        "3m": dict.fromkeys(ROWS, (1.0, 1.0, 1.0)) | {"plain": (p, p, p)},
        TEACHER: dict.fromkeys(ROWS, (1.0, 1.0, 1.0)),
    }
    least, most = by_hand(which.model, which.row, p)

    def at(value: float) -> dict:
        return {**good, which.model: good[which.model] | {which.row: (value, 0.0, 1.0)}}

    assert missed(at(least + 1e-6)) == missed(at(most)) == []
    for value in (least - 0.001, float("nan"), *([most + 0.001] if most < 1 else [])):
        (line,) = [
            line
            for line in missed(at(value))
            if ROWS[which.row] in line and line.startswith(which.model)
        ]
        assert f"{value:.4f}" in line and (value != value or missed(at(value)) == [line])
    found = at(least - 0.001)
    # not measured, or nothing to compare with
    assert missed({"1m": found[which.model]}) == [] and missed({TEACHER: found[TEACHER]}) == []
    assert len(missed({"3m": found["3m"]})) == (which.model == "3m")


@pytest.mark.parametrize("contrast", [0.95, 0.5])
def test_the_exit_status_says_whether_something_is_missed_and_the_table_is_written_all_the_same(
    contrast, tmp_path, monkeypatch, capsys
):
    rows = TABLE["models"]["3m"] | {"contrast": (contrast, contrast, contrast)}
    (tmp_path / "3m").mkdir()
    (tmp_path / "3m" / "config.json").touch()
    monkeypatch.setattr(organism, "measure", lambda folder, seed: rows)
    monkeypatch.setattr("sys.argv", ["organism", "--measure", "--out", str(tmp_path)])
    if contrast > 0.7:
        organism.main()
    else:
        with pytest.raises(
            SystemExit,
            match=r"^3m misses what is required: groups of 8 with contrast: 0\.5000, not 0\.7000 "
            r"to 1\.0000$",
        ):
            organism.main()
    assert (
        json.loads((tmp_path / "table.json").read_text())["models"]["3m"]["contrast"][0] == contrast
    )
    assert f"| groups of 8 with contrast | {contrast:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_checkpoints_are_small_and_bf16(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000 and not list(
        folder.glob("*.bin")
    )
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {weight.dtype for weight in weights(folder).values()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_committed_3m_measured_on_other_problems_is_as_often_right():
    """100 other problems, 8 samples each: the standard deviation of the difference is some .025."""
    assert measure(ORGANISM / "3m", problems=100, seed=1)["plain"][0] == pytest.approx(
        TABLE["models"]["3m"]["plain"][0], abs=0.08
    )


# ---- the teacher that knows larger numbers


def test_it_is_right_where_the_other_teacher_is_not():
    task = load_task(arms.TASK)
    problems = task.problems("validation", 60, 1)
    other, strong = (
        evaluate(load_policy(ORGANISM / name), task, problems, 4, 0).avg for name in arms.TEACHERS
    )
    assert other < 0.7 and strong > 0.75


def test_its_build_leaves_the_teacher_with_other_weights(tmp_path, monkeypatch):
    small = replace(teacher_26.PLAN, steps=12, prompts=2, eval_every=0)
    monkeypatch.setattr(teacher_26, "PLAN", small)
    teacher_26.main(tmp_path / "taught")
    before, after = weights(ORGANISM / "teacher"), weights(tmp_path / "taught")
    assert before.keys() == after.keys()
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_policy(tmp_path / "taught").tokenizer.get_vocab()
