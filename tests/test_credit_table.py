"""``workbench credit`` and ``workbench lead``: what they refuse, leave, and must come to."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toys

from workbench.app.cli import main
from workbench.core import Problem, Verdict, WorkbenchError
from workbench.methods.sdpo import SDPO
from workbench.model.learner import Learner
from workbench.rollouts.sampling import Sample
from workbench.studies import credit_table, teacher_lead
from workbench.studies.arms import GRID, TRUTH
from workbench.studies.cell import kind_of
from workbench.studies.credit_table import ALL, QUICK, SIGNS
from workbench.tasks.prompts import FEEDBACK, SOLUTION


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toys.saved(toys.tiny_policy(hidden=16, layers=1), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Questions whose answers take three tokens at most."""
    path = tmp_path_factory.mktemp("task") / "problems.jsonl"
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{path}:max_new=3"


def test_the_command_prints_the_table_and_leaves_a_record(model, task, tmp_path, capsys):
    out = tmp_path / "new" / "credit.json"
    words = ["--model", str(model), "--task", task, "--split", "train", "--out", str(out)]
    assert main(["credit", "--quick", *words]) == 0
    printed = capsys.readouterr().out
    record = credit_table.read(out)
    assert tuple(record["methods"]) == QUICK and record["k"] == 4 and record["tokens"] > 0
    for name, row in record["methods"].items():
        assert tuple(row) == credit_table.SCORES and name in printed
    assert credit_table.table(record) in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--methods", "grpoo"), "there is no method 'grpoo'"),
        (("--methods", "sdpo:aa=1"), "sdpo has no option 'aa'"),
        (("--samples", "5", "--methods", "grpo"), "even number of samples"),
        (("--after", "3", "--lora", "2"), "leave --lora out"),
    ],
)
def test_bad_words_are_one_sentence(model, task, tmp_path, capsys, words, says):
    out = tmp_path / "credit.json"
    fixed = ("--model", str(model), "--task", task, "--split", "train", "--out", str(out))
    assert main(["credit", "--groups", "1", "--k", "2", *fixed, *words]) == 2
    assert says in capsys.readouterr().err and not out.exists()


def test_what_cannot_be_made_here_is_left_out_and_said():
    task = toys.FirstCharacter(toys.HALF, max_new=2)
    said: list[str] = []
    record = credit_table.measure(
        Learner(toys.tiny_policy(hidden=16, layers=1)),
        task,
        credit_table.parse(["grpo", "opd", "rlsd"]),
        task.problems("train", 2, 0),
        k=2,
        samples=2,
        says=said.append,
    )
    assert list(record["methods"]) == ["grpo", "rlsd"]
    assert any(line.startswith("opd is left out: OPD learns from a stronger") for line in said)


def test_scores_after_updates(tmp_path, model):
    """The policy that is scored is the one that was trained; a score at the start does not stop
    the training.
    """
    task = toys.FirstCharacter(toys.HALF, max_new=2)
    how = {"problems": task.problems("train", 2, 1), "k": 3, "samples": 2, "seed": 0}
    methods = credit_table.parse(["grpo"])
    both = credit_table.while_learning(
        Learner(toys.tiny_policy()), task, (0, 2), methods, says=lambda line: None, **how
    )
    late = credit_table.while_learning(
        Learner(toys.tiny_policy()), task, (2,), methods, says=lambda line: None, **how
    )
    assert [stage["updates"] for stage in both] == [0, 2]
    one, other = both[1]["methods"]["grpo"], late[0]["methods"]["grpo"]
    np.testing.assert_equal(one, other)


def test_every_method_of_the_table_and_of_the_prediction_exists():
    assert len(credit_table.parse(ALL)) == len(ALL) and set(SIGNS) <= set(ALL)
    for arm in TRUTH:
        assert "lr=1e-4" in arm.stages[0].options and kind_of(arm.stages[0])
    assert not {arm.name for arm in TRUTH} & {arm.name for arm in GRID}


# ---- the teacher's lead


class Reader:
    """Writes a right answer with a chance that depends on what its prompt shows."""

    def __init__(self, policy, plain=0.25, right=0.75, wrong=0.25, feedback=0.5):
        self.decode, self.ids = policy.tokenizer.decode, policy.completion_ids
        self.chances = {"plain": plain, "right": right, "wrong": wrong, "feedback": feedback}

    def generate(self, prompts, seeds, budgets, temperature):
        results = []
        for prompt, row in zip(prompts, seeds):
            text = self.decode(prompt)
            what = "plain"
            if SOLUTION.strip() in text:
                what = "right" if "yes" in text else "wrong"
            elif FEEDBACK.strip() in text:
                what = "feedback"
            results.append([self.write(what, seed) for seed in row])
        return results

    def write(self, what, seed):
        right = np.random.default_rng(seed).random() < self.chances[what]
        ids = self.ids("yes" if right else "no")
        return Sample(ids, (-1.0,) * len(ids), True)


class Ask:
    name, max_new = "ask", 8

    def __init__(self, feedback=""):
        self.feedback = feedback

    def problems(self, split, n, seed):
        return [Problem(f"p{i}", ({"role": "user", "content": str(i)},), "yes") for i in range(n)]

    def grade(self, problem, text):
        return Verdict(float(text == "yes"), text == "yes", "" if text == "yes" else self.feedback)


def reader(**chances):
    policy = toys.tiny_policy(hidden=16, layers=1)
    policy.engine = Reader(policy, **chances)
    return policy


def test_the_lead_is_what_the_hint_gives():
    task = Ask()
    record = teacher_lead.measure(reader(), task, task.problems("test", 120, 0), 8)
    lead, low, high = record["lead"]
    assert abs(lead - 0.5) < 0.06 and low < lead < high < low + 0.15
    assert lead == pytest.approx(record["hinted"] - record["plain"])
    assert record["control"][1] < 0 < record["control"][2]
    assert 0.7 < record["hints"] < 0.99  # first attempts whose siblings were all wrong have none


def test_a_lead_that_any_hint_gives_is_seen_in_the_control():
    task = Ask()
    record = teacher_lead.measure(reader(wrong=0.75), task, task.problems("test", 80, 0), 8)
    assert record["control"][1] > 0.3


def test_feedback_is_the_hint_where_nobody_was_right():
    task = Ask("no, it is yes or no")
    policy = reader(plain=0.0)
    record = teacher_lead.measure(policy, task, task.problems("test", 40, 0), 4)
    assert record["hints"] == 1 and record["plain"] == 0
    assert abs(record["lead"][0] - 0.5) < 0.15
    with pytest.raises(WorkbenchError, match="has nothing to read"):
        teacher_lead.measure(policy, Ask(), task.problems("test", 4, 0), 4)


def test_the_hint_is_what_sdpo_shows():
    group = toys.group((2, 3, 4), (0, 1, 0))
    assert teacher_lead._hint(group) == SDPO().shown(group, 0) == ("?", "")
    assert teacher_lead._wrong_hint(group) == ("?", "")
    assert teacher_lead._wrong_hint(toys.group((2, 3), (0, 1))) == ("", "")


def test_the_lead_command(model, tmp_path, capsys):
    out = tmp_path / "lead.json"
    words = ["lead", "--model", str(model), "--problems", "2", "--k", "2", "--out", str(out)]
    assert main(words) == 0
    assert "lead" in capsys.readouterr().out
    assert json.loads(out.read_text())["lead"]
