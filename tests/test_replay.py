"""Training on corrections: by every method, beside what it samples, in a quarter of a step."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import toys

from workbench.app.cli import main
from workbench.core import Group, WorkbenchError
from workbench.corrections import buffer
from workbench.corrections.compose import of_text, to_rollout
from workbench.corrections.replay import Replay, WithCorrections
from workbench.methods.grpo import GRPO
from workbench.methods.kd import KD
from workbench.methods.luffy import LUFFY
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model.learner import Learner, OptimConfig
from workbench.paths import ORGANISM
from workbench.records import read_run
from workbench.rollouts import reconstructions
from workbench.rollouts.sampling import Sample
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.prompts import TAGS, synthesis
from workbench.training.update import update

METHODS = (GRPO(), SFT(), KD(), SDPO(), TAPO(), TRAPO(), LUFFY(), SCOPE(), OPD(k=4))


@dataclass(frozen=True)
class Toy(toys.FirstCharacter):
    """Right iff the first character is one of half of them; with a synthesis prompt."""

    wanted: str = toys.HALF
    max_new: int = 12

    def synthesis(self, problem, wrong, right):
        return synthesis(problem, wrong, right)


TASK = Toy()
PROBLEMS = TASK.problems("train", 8, 0)


def save(path, policy, problem, text):
    """One correction of a wrong rollout, in the buffer; it is right iff its first character is."""
    [group] = GRPO(k=2).sample(Learner(policy), TASK, [problem], (9,))
    source = replace(group.rollouts[0], verdict=TASK.grade(problem, "!"))
    composition = of_text(policy, problem, source, text)
    rollout = to_rollout(policy, TASK, composition)
    buffer.append(path, buffer.Correction(composition, rollout, policy.name))


@pytest.fixture
def path(tiny_policy, tmp_path):
    """Corrections of three problems: right and wrong, right, wrong."""
    path = tmp_path / "buffer.jsonl"
    right, wrong = (f"{first} Answer 1" for first in ('"', "!"))
    assert TASK.grade(PROBLEMS[0], right).correct and not TASK.grade(PROBLEMS[0], wrong).correct
    for number, text in ((1, right), (1, wrong), (4, right), (6, wrong)):
        save(path, tiny_policy, PROBLEMS[number], text)
    return path


@pytest.fixture
def scripted(monkeypatch):
    """What the policy answers to a synthesis prompt depends on the seed alone."""

    def generate(policy, prompts, seeds, **_):
        rows = []
        for [seed] in seeds:
            text = f"{TAGS[0]}why{TAGS[1]}{TAGS[2]}{'!#'[seed % 2]}{seed % 7}{TAGS[3]}"
            ids = policy.completion_ids(text.replace("#", '"'))
            rows.append([Sample(ids, (-1.0,) * len(ids), True)])
        return rows

    monkeypatch.setattr(reconstructions, "generate", generate)


def step(method, number=0):
    record = update(
        method, Learner(toys.tiny_policy()), TASK, PROBLEMS, (0, number), rows=8, updates=2
    )
    metrics = {k: v for k, v in record.metrics.items() if not k.startswith("seconds")}
    return record, repr((record.groups, record.credit, metrics))


@pytest.mark.parametrize(
    "options", [{}, {"dae": False}, {"negatives": False}, {"sft": True}, {"prefix": "masked"}]
)
def test_corrections_join_tapos_own_reconstructions(options, path, scripted):
    """Counted apart, and the same step comes out twice the same."""
    method = TAPO(n_pos=1, n_neg=2, **options)
    around = WithCorrections.from_file(method, path, toys.tiny_policy())
    for number in (0, 1):
        record, text = step(around, number)
        assert text == step(around, number)[1]
        assert record.metrics["composed"] >= 1 and record.metrics["corrections"] > 1


def test_a_quarter_of_the_problems_drawn_with_the_seed(path, tiny_policy):
    around = WithCorrections.from_file(GRPO(k=2), path, tiny_policy)
    learner = Learner(tiny_policy)
    others = Toy(wanted=toys.HALF).problems("train", 12, 1)
    others = [replace(problem, id=f"other {i}") for i, problem in enumerate(others)]
    firsts = set()
    for seed in range(6):
        groups = around.sample(learner, TASK, others[:8], (seed,))
        ids = [group.problem.id for group in groups]
        # two of eight, first; then those of the step, as many as there is room for
        assert set(ids[:2]) <= {"p1", "p4", "p6"} and ids[2:] == [p.id for p in others[:6]]
        assert [len(group.rollouts) for group in groups[2:]] == [2] * 6
        again = around.sample(learner, TASK, others[:8], (seed,))
        assert repr(again) == repr(groups)
        firsts.add(tuple(ids[:2]))
    assert len(firsts) > 1
    # one where a quarter is less than one
    groups = around.sample(learner, TASK, others[:3], (0,))
    assert sum(len(group.rollouts) > 2 for group in groups) == 1 and len(groups) == 3
    # a problem of the step that has corrections is asked once
    ids = [group.problem.id for group in around.sample(learner, TASK, PROBLEMS, (0,))]
    assert len(ids) == len(set(ids)) == 8


def test_corrections_stand_after_the_methods_own_as_they_were_composed(path, tiny_policy):
    around = WithCorrections.from_file(GRPO(k=2), path, tiny_policy)
    for seed in range(4):
        for group in around.sample(Learner(tiny_policy), TASK, PROBLEMS, (seed,)):
            own, joined = group.rollouts[:2], group.rollouts[2:]
            assert all(r.origin == "policy" and not r.borrowed for r in own)
            for rollout in joined:
                assert rollout.origin == "edited"
                assert rollout.borrowed == len(rollout.completion_ids)
                assert all(map(math.isnan, rollout.logprobs))
                assert rollout.prompt_ids == own[0].prompt_ids


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_takes_corrections_and_none_imitates_a_wrong_one(method, path, scripted):
    learner = Learner(toys.tiny_policy(), OptimConfig(), expert=toys.tiny_policy(seed=1))
    around = WithCorrections.from_file(method, path, learner.policy)
    assert around.needs_expert == method.needs_expert and around.samples == method.samples
    record = update(around, learner, TASK, PROBLEMS, (0, 0), rows=8)
    joined = [
        (rollout, credit)
        for group, credits in zip(record.groups, record.credit)
        for rollout, credit in zip(group.rollouts, credits)
        if rollout.origin == "edited"
    ]
    assert joined and math.isfinite(record.metrics["loss"])
    assert all(map(math.isfinite, (x for _, credit in joined for x in credit)))
    if isinstance(method, (SFT, KD, TRAPO)):
        assert all(rollout.verdict.correct for rollout, _ in joined)
        assert all(min(credit) > 0 for _, credit in joined)


def test_replay_is_the_method_on_the_recorded_groups(tiny_policy, path):
    groups = tuple(buffer.groups(buffer.load(path), tiny_policy))
    assert Replay(GRPO(beta=0.1), ()).needs_reference and not Replay(SFT(), ()).needs_reference
    sample = Replay(SFT(), groups).sample
    assert sample(None, TASK, [], (0,)) == list(groups)
    assert sample(None, TASK, PROBLEMS[:2], (0,)) == [groups[0]]


# ---- the command line


@pytest.fixture
def command(tmp_path):
    words = ["train", "tapo", "--model", str(ORGANISM / "0.4m"), "--steps", "1", "--out"]
    return [*words, str(tmp_path / "run"), "--set", "prompts=2", "eval_every=0"]


def test_train_with_corrections(tmp_path, command, capsys):
    from workbench.model.loading import load_policy

    policy, task, path = load_policy(ORGANISM / "0.4m"), Arithmetic(), tmp_path / "mine.jsonl"
    problem = task.problem("47+85-29")
    [group] = GRPO(k=2).sample(Learner(policy), task, [problem], (0,))
    source = replace(group.rollouts[0], verdict=task.grade(problem, "?"))
    composition = of_text(policy, problem, source, problem.solutions[0])
    rollout = to_rollout(policy, task, composition)
    buffer.append(path, buffer.Correction(composition, rollout, "0.4m"))
    assert main([*command, "--corrections", str(path)]) == 0
    run = read_run(tmp_path / "run")
    assert run.metrics["composed"].tolist() == [1]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "TAPO" and config["options"]["m_max"] == 4
    assert config["corrections"] == str(path)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2  # the run was another without them
    assert "corrections" in capsys.readouterr().err


def test_no_corrections_is_one_sentence_before_anything_is_written(tmp_path, command, capsys):
    assert main([*command, "--corrections", str(tmp_path / "none.jsonl")]) == 2
    assert "there are no corrections in the buffer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_corrections_of_another_tokenizer_are_refused(path, tiny_policy):
    other = replace_tokenizer(tiny_policy)
    with pytest.raises(WorkbenchError, match="was tokenised for tiny, not for other"):
        WithCorrections.from_file(GRPO(), path, other)


def replace_tokenizer(policy):
    from test_graded_solutions import chat
    from test_spans import byte_level

    return type(policy)(None, chat(byte_level()), "other")


def test_a_group_of_wrong_corrections_alone_changes_no_imitation(tiny_policy, path):
    wrong = [g for g in buffer.groups(buffer.load(path), tiny_policy) if not g.rewards.any()]
    [group] = WithCorrections(SFT(), tuple(wrong)).sample(
        Learner(tiny_policy), TASK, PROBLEMS[:1], (0,)
    )
    assert isinstance(group, Group) and group.problem.id == "p6" and len(group.rollouts) == 1
