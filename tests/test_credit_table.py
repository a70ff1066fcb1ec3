"""``workbench credit`` and ``workbench lead``: what they refuse, leave, and must come to."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import toys

from workbench.app.cli import main
from workbench.core import Problem, Verdict, WorkbenchError
from workbench.inspection import credit, credit_scores, true_credit
from workbench.inspection.credit import realised_credit
from workbench.methods.sdpo import SDPO
from workbench.model.learner import Learner
from workbench.model.loading import load_policy
from workbench.paths import DATA, ORGANISM
from workbench.records import dumps
from workbench.rollouts import sampling
from workbench.rollouts.sampling import Sample, sample_groups
from workbench.studies import credit_table, teacher_lead
from workbench.studies.arms import GRID, TRUTH
from workbench.studies.cell import kind_of
from workbench.studies.credit_kept import KeptGroup, wrong_turns
from workbench.studies.credit_table import ALL, QUICK, SIGNS
from workbench.tasks import load_task
from workbench.tasks.prompts import FEEDBACK, SOLUTION
from workbench.viz.png import credit_columns


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


def test_a_method_is_scored_on_as_many_rollouts_as_were_asked_for():
    """Unless it says itself how many; one whose default is a single one keeps it."""
    words = ("grpo", "sdpo:a=1", "grpo:k=5", "opd", "opd:k=3", "sft", "tapo")
    sizes = [method.k for method in credit_table.parse(words, 4).values()]
    assert sizes == [4, 4, 5, 1, 3, 1, 8]  # TAPO wants two right and four wrong ones
    assert [method.k for method in credit_table.parse(words).values()] == [8, 8, 5, 1, 3, 1, 8]


def tiny_table(problems, words=("grpo", "sdpo:a=1", "rlsd"), **how):
    task = toys.FirstCharacter(toys.HALF, max_new=3)
    learner = Learner(toys.tiny_policy(hidden=16, layers=1))
    methods = credit_table.parse(words, 3)
    how = {"k": 3, "samples": 4, "says": lambda line: None} | how
    return credit_table.measure(learner, task, methods, problems, **how)


def test_scores_do_not_change_with_the_order_of_problems_padding_or_batch_size(monkeypatch):
    """Of tokens and of parameters: a long question beside short ones, read one by one or not."""
    problems = toys.FirstCharacter(toys.HALF).problems("train", 3, 0)
    problems.append(Problem("long", ({"role": "user", "content": "1234567890" * 3},), toys.HALF))
    once = tiny_table(problems)
    monkeypatch.setattr(credit, "ROWS", 2)
    monkeypatch.setattr(credit_scores, "ROWS", 5)
    monkeypatch.setattr(sampling, "ROWS", 7)
    monkeypatch.setattr(true_credit, "AT_ONCE", 3)
    again = tiny_table(problems[::-1])
    assert once["tokens"] == again["tokens"]
    compared = 0
    for name, row in once["methods"].items():
        for score, (value, *_) in row.items():
            np.testing.assert_allclose(value, again["methods"][name][score][0], rtol=2e-4)
            compared += np.isfinite(value)
    assert compared >= 3 * 5


def test_what_is_kept_is_the_truth_and_the_credit_of_each_token(tmp_path):
    """Written, read again and drawn without the model; a method with rollouts of its own is not
    there.
    """
    problems = toys.FirstCharacter(toys.HALF).problems("train", 2, 0)
    record = tiny_table(problems, ("grpo", "sdpo:a=1", "sft"), keep=True)
    assert set(record["methods"]) == {"grpo", "sdpo:a=1", "sft"}
    path = tmp_path / "kept.json"
    path.write_text(dumps(record))
    policy = toys.tiny_policy(hidden=16, layers=1)
    task = toys.FirstCharacter(toys.HALF, max_new=3)
    own = sample_groups(policy, task, problems, 3, (0, "credit"))
    [*truths] = true_credit.true_credit(policy, task, own, 4, 0)
    for row, group, truth in zip(credit_table.read(path)["kept"], own, truths, strict=True):
        kept = KeptGroup.of(row)
        assert kept.group == group and set(kept.credit) == {"grpo", "sdpo:a=1"}
        mine = realised_credit(Learner(policy), group, credit_table.parse(["sdpo:a=1"])["sdpo:a=1"])
        for i, rollout in enumerate(group.rollouts):
            assert "".join(map(kept.decode, rollout.completion_ids)).startswith(rollout.text)
            np.testing.assert_allclose(kept.truth[i], truth.advantage[i], atol=1e-4)
            np.testing.assert_allclose(kept.errors[i], truth.errors[i], atol=1e-4)
            numbers = kept.credit["sdpo:a=1"][i]
            signs = np.sign(mine.credit[i].round(3))
            assert (np.sign(numbers.round(3)) == signs).all() or np.isnan(numbers).any()
        columns = {"the truth": (kept.group, kept.truth)}
        columns |= {name: (kept.group, rows) for name, rows in kept.credit.items()}
        assert credit_columns(columns, kept.decode).axes


def test_the_attempt_that_is_drawn_is_chosen_by_its_rule():
    """The first wrong one with a token that surely lost much, beside a right one."""
    wrong, right = toys.group((3, 3, 3, 3), (0, 0, 0, 1)), toys.group((3, 3), (0, 0))
    lost, noisy, little = [0.1, -0.4, 0.0], [0.3, 0.3, 0.3], [0.1, -0.15, 0.0]
    sure = [0.05] * 3

    def kept(group, truth, errors):
        rows = (tuple(map(np.array, truth)), tuple(map(np.array, errors)))
        return KeptGroup(group, *rows, {}, str)

    assert kept(wrong, [little, lost, lost, lost], [sure, noisy, sure, sure]).wrong_turn() == 2
    assert kept(wrong, [little] * 3 + [lost], [sure] * 4).wrong_turn() is None
    assert kept(right, [lost] * 2, [sure] * 2).wrong_turn() is None  # nobody was right


def test_the_english_record_holds_what_its_picture_draws():
    record = credit_table.read(DATA / "true_credit" / "words.json")
    kept, place = wrong_turns(record)[0]
    attempt = kept.group.rollouts[place]
    assert not attempt.verdict.correct and kept.group.rewards.any()
    assert "".join(map(kept.decode, attempt.completion_ids)).startswith(attempt.text)
    # A sums to the reward, 0, less a chance
    assert -1 <= kept.truth[place].sum() <= 0 and kept.truth[place].min() < -0.2
    columns = kept.of_attempt(place)
    own = [name for name in record["methods"] if name not in ("sft", "tapo", "trapo", "luffy")]
    assert list(columns) == ["the truth", *own], "the others add rollouts or replace them"
    assert len(record["methods"]) == len(own) + 4 and len(columns) >= 8
    for group, rows in columns.values():
        assert group.rollouts == (attempt,)
        assert len(rows) == 1 and len(rows[0]) == len(attempt.completion_ids)


def test_the_order_of_methods_holds_on_other_problems():
    """Committed records: two draws of problems of each task, and a third with fewer samples."""
    folder = DATA / "true_credit"
    for names in (("seed1", "seed2", "learning"), ("programs", "programs-seed2")):
        columns = {}
        for name in names:
            record = credit_table.read(folder / f"{name}.json")
            stage = (record["before"] or [record])[0]  # before any update
            columns[name] = {key: row["cosine"][0] for key, row in stage["methods"].items()}
        table = pd.DataFrame(columns).dropna()
        assert len(table) >= 5
        assert table.corr("spearman").to_numpy().min() > 0.9


@pytest.mark.slow
def test_the_order_of_methods_holds_measured_again():
    """On problems and seeds of no record: the self-teacher above GRPO, and turned round below."""
    words = ("grpo", "sdpo:a=1", "sdpo:form=token,ascend=true")
    task = load_task("arithmetic")
    for seed in (11, 12):
        learner = Learner(load_policy(ORGANISM / "3m"))
        problems = task.problems("validation", 6, seed)
        record = credit_table.measure(
            learner, task, credit_table.parse(words, 4), problems, k=4, samples=16, seed=seed
        )
        grpo, sdpo, away = (record["methods"][word]["cosine"][0] for word in words)
        assert sdpo > grpo + 0.1 and grpo > 0 > away


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

    def generate(self, prompts, seeds, budgets, temperature, top_p=1.0):
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


def test_the_wrong_hint_has_the_form_of_what_sdpo_shows():
    group = toys.group((2, 3, 4), (0, 1, 0))
    assert teacher_lead._wrong_hint(group) == SDPO().shown(group, 0) == ("?", "")
    assert teacher_lead._wrong_hint(toys.group((2, 3), (0, 1))) == ("", "")


def test_the_lead_command(model, tmp_path, capsys):
    out = tmp_path / "lead.json"
    words = ["lead", "--model", str(model), "--problems", "2", "--k", "2", "--out", str(out)]
    assert main(words) == 0
    assert "lead" in capsys.readouterr().out
    assert json.loads(out.read_text())["lead"]
