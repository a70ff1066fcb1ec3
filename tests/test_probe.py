"""Locators that let the policy write, on policies whose answers are known, and the table that
scores all of them.
"""

from __future__ import annotations

import json

import pytest
import toys
from test_locate import RIGHT, TASK, WRONG, decode, group

from data.organism.build.common import tokenizer
from workbench.core import Group, Inspection, WorkbenchError
from workbench.inspection import generative_locators
from workbench.inspection.generative_locators import OwnDiagnosis, Rate, ValueDrop
from workbench.inspection.locators import Candidate, Case, Finding, locate
from workbench.rollouts.sampling import Sample
from workbench.studies import locator_table
from workbench.tasks.arithmetic import Arithmetic

TOKENIZER = tokenizer()


def sample(text: str) -> Sample:
    ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id)
    return Sample(ids, (-0.5,) * len(ids), True)


@pytest.mark.parametrize(
    "successes, samples, low, high",
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 8, 0.0224, 0.4709),
    ],
)
def test_wilsons_interval(successes, samples, low, high):
    rate = Rate.of(successes, samples)  # known values of Wilson's interval
    assert (rate.low, rate.high) == pytest.approx(
        (low, high), abs=2e-4
    ) and rate.value == successes / samples


def careful(policy, prompts, seeds, *, max_new):
    """A policy that reckons without fault from what is written, however wrong: right exactly if the
    prefix is.
    """
    made = []
    for prompt, row in zip(prompts, seeds):
        prefix = decode(prompt[1:])
        missing = RIGHT[len(prefix) :] if RIGHT.startswith(prefix) else "Answer 0"
        made.append([sample(missing) for _ in row])
    return made


def test_value_drops_where_a_careful_policy_can_no_longer_end_right(tiny_policy, monkeypatch):
    monkeypatch.setattr(generative_locators, "generate", careful)
    method = ValueDrop(tiny_policy, TASK, samples=4)
    [(rates, cost)] = method.values([Case(Inspection(group(WRONG), {}), 0, decode)])
    # before steps 1 and 2 it can still end right; step 2 is wrong
    assert [rate.value for rate in rates] == [1, 1, 0, 0]
    whole, rest = len(sample(RIGHT).ids), len(sample(RIGHT[10:]).ids)
    assert cost == 4 * (whole + rest + 2 * len(sample("Answer 0").ids))
    found = locate(group(WRONG, RIGHT), decode, [method])[0]["value drop"]
    assert found == Finding((Candidate(1, 10, 1.0),), cost)


def test_a_policy_that_never_succeeds_gives_no_answer(tiny_policy, monkeypatch):
    monkeypatch.setattr(
        generative_locators,
        "generate",
        lambda policy, prompts, seeds, **_: [[sample("?") for _ in row] for row in seeds],
    )
    found = locate(group(WRONG), decode, [ValueDrop(tiny_policy, TASK, samples=2)])[0]["value drop"]
    assert found == Finding((), 4 * 2 * 2)


def test_values_batched_are_the_values_one_by_one(tiny_policy):
    task = toys.FirstCharacter(toys.HALF, max_new=4)
    groups = [
        Group(p, (toys.rollout(5, seed=i),)) for i, p in enumerate(task.problems("train", 3, 0))
    ]
    cases = [Case(Inspection(g, {}), 0, tiny_policy.decode) for g in groups]
    method = ValueDrop(tiny_policy, task, samples=3)
    together = method.values(cases)
    assert together == [method.values([case])[0] for case in cases]
    assert all(0 < cost <= len(rates) * 3 * 4 for rates, cost in together)


def synthesis_says(text: str):
    def made(policy, prompts, seeds, *, max_new):
        assert all(
            WRONG in policy.tokenizer.decode(p) and RIGHT in policy.tokenizer.decode(p)
            for p in prompts
        )
        return [[sample(text)] for _ in prompts]

    return made


@pytest.mark.parametrize(
    "reconstruction, step",
    [
        # copies the mistake, then takes it back
        ("47+85=132\n132-29=113\nWait, 132-29=103\n103+6=109\nAnswer 109", 1),
        (
            "47+85=132\n132-29=1Wait, that is wrong.\nAnswer 109",
            1,
        ),  # stops in the middle of the step
        ("47+85=132\n132-29=103\n103+6=109\nAnswer 109", 1),  # mends it silently
        ("47+85=132\nWait, 47+85=132\nAnswer 109", 0),
        (WRONG + "\nWait, 132-29=103\n103+6=109\nAnswer 109", 3),
    ],
)
def test_the_point_is_where_copying_stops(tiny_policy, monkeypatch, reconstruction, step):
    text = f"<analysis>Step 2</analysis><reconstruction>{reconstruction}</reconstruction>"
    monkeypatch.setattr(generative_locators, "generate", synthesis_says(text))
    found = locate(group(WRONG, RIGHT), decode, [OwnDiagnosis(tiny_policy, TASK)])[0][
        "own diagnosis"
    ]
    assert found.candidates == (
        Candidate(step, [0, 10, 21, 31][step], pytest.approx(2.718281828**-0.5)),
    )
    assert found.cost == len(sample(text).ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know",
        "<analysis>a</analysis><reconstruction>Wait, no\nAnswer 1</reconstruction>",
    ],
)
def test_an_output_that_does_not_parse_or_copies_nothing_is_no_answer(
    tiny_policy, monkeypatch, text
):
    monkeypatch.setattr(generative_locators, "generate", synthesis_says(text))
    found = locate(group(WRONG, RIGHT), decode, [OwnDiagnosis(tiny_policy, TASK)])[0][
        "own diagnosis"
    ]
    assert found == Finding((), len(sample(text).ids))


def test_without_a_correct_sibling_nothing_is_asked(tiny_policy):
    assert (
        locate(group(WRONG, WRONG), decode, [OwnDiagnosis(tiny_policy, TASK)])[1]["own diagnosis"]
        == Finding()
    )
    with pytest.raises(WorkbenchError, match="needs a task with a synthesis prompt"):
        locate(group(WRONG), decode, [OwnDiagnosis(tiny_policy, toys.FirstCharacter())])


def test_scores_by_hand():
    def at(step):
        return Finding((Candidate(step, 0, 1.0), Candidate(9, 0, 0.5)), cost=10)

    truths = [at(2)] * 4
    row = locator_table.score([at(2), at(3), at(0), Finding(cost=2)], truths)
    assert [row[m][0] for m in ("exact", "within_one", "answered")] == [0.25, 0.5, 0.75] and row[
        "tokens"
    ] == 8
    assert row["exact"][1] <= 0.25 <= row["exact"][2]


def test_the_table_from_one_command(tmp_path, capsys, tiny_folder):
    few = ("--attempts", "5", "--rollouts", "2", "--samples", "2")
    files = ("--model", str(tiny_folder), "--out", str(tmp_path))
    # a random model: every attempt is wrong
    toys.command(locator_table, *files, "--task", "arithmetic:steps=1", *few)
    found = json.loads((tmp_path / "locators.json").read_text())
    assert (
        found["attempts"] == 5
        and found["model"] == "tiny"
        and set(found["locators"]["chance"]) == {"exact", "within_one", "answered", "tokens"}
    )
    assert (
        found["locators"]["value drop, 2 samples a step"]["tokens"]
        > 0
        == found["locators"]["chance"]["tokens"]
    )
    text = (tmp_path / "locators.md").read_text()
    assert (
        "5 wrong attempts" in text
        and all(name in text for name in found["locators"])
        and str(tmp_path) not in text
    )
    assert "right step" in capsys.readouterr().out


def test_attempts_are_one_a_problem_and_too_few_are_an_error(tiny_policy):
    task = Arithmetic(steps=1)
    chosen = locator_table.wrong_attempts(tiny_policy, task, 5, 2, 0)
    assert len({g.problem.id for g, _ in chosen}) == 5 and all(
        not g.rollouts[i].verdict.correct for g, i in chosen
    )
    with pytest.raises(WorkbenchError, match="5 wrong attempts were wanted"):
        locator_table.wrong_attempts(
            tiny_policy,
            toys.FirstCharacter("".join(map(chr, range(32, 127))) + "\n", max_new=1),
            5,
            2,
            0,
        )
