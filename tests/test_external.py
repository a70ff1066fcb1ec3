"""Rollouts that others wrote: every form that is read gives the groups that it says, what cannot be
read is one sentence, and a large file is not held in memory.
"""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_graded_solutions import chat
from test_spans import byte_level

from workbench.core import Group, Problem, Verdict, WorkbenchError
from workbench.corrections.editor import CorrectionEditor
from workbench.exchange import external
from workbench.exchange.external import load_rollouts
from workbench.inspection.locators import Divergence, Truth, locate
from workbench.inspection.readings import inspect_group
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.model.policy import Policy
from workbench.records import dumps, group_to_dict
from workbench.spans import Spans
from workbench.tasks import load_task
from workbench.tasks.verify import grade
from workbench.viz.composer import draft_html
from workbench.viz.view import TokenView

QUESTION = [{"role": "user", "content": "1+1"}]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lines(folder: Path, *rows, name: str = "rollouts.jsonl") -> Path:
    path = folder / name
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def chatml() -> Policy:
    """A tokenizer whose chat template is of ChatML's form; no model."""
    tokenizer = chat(byte_level())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    )
    tokenizer.chat_template = CHATML
    return Policy(None, tokenizer, "chatml")


def verdicts(group: Group) -> list[tuple[float, bool]]:
    return [(r.verdict.reward, r.verdict.correct) for r in group.rollouts]


def same(one: Group, other: Group) -> bool:
    return dumps(group_to_dict(one)) == dumps(group_to_dict(other))


# ---- texts


def test_texts_are_tokenised_once_and_come_back(tiny_policy):
    problem = Problem("q", tuple(QUESTION), "2")
    group = Group.from_texts(problem, ["2", "1+1=3\n3"], tiny_policy, [1, 0.0])
    assert verdicts(group) == [(1.0, True), (0.0, False)]
    for rollout in group.rollouts:
        assert tiny_policy.decode(rollout.completion_ids) == rollout.text
        assert rollout.finished and rollout.prompt_ids == tiny_policy.prompt_ids(QUESTION)
        assert all(map(math.isnan, rollout.logprobs)) and rollout.borrowed == 0
    with pytest.raises(WorkbenchError, match="2 texts and 1 verdicts"):
        Group.from_texts(problem, ["2", "3"], tiny_policy, [1])
    with pytest.warns(UserWarning, match="does not come back"):
        Group.from_texts(problem, ["é"], tiny_policy)


def test_without_anything_to_grade_by_the_verdict_is_unknown_and_never_0(tiny_policy, tmp_path):
    [group] = load_rollouts(
        lines(tmp_path, {"question": "1+1", "completions": ["2", "3"]}), tiny_policy
    )
    assert not any(r.verdict.known for r in group.rollouts)
    with pytest.raises(WorkbenchError, match="verdict on rollout 0 of '1.1' is unknown"):
        inspect_group(tiny_policy, group, external.GivenAnswers(), {"GRPO": GRPO()})
    # what needs no verdict goes on, and says what it does not know
    inspection = inspect_group(tiny_policy, group, external.GivenAnswers())
    page = TokenView(inspection, tiny_policy).to_html()
    assert "verdict unknown" in page and "nan" not in page
    json.dumps(TokenView(inspection, tiny_policy).data(), allow_nan=False)
    assert not grade("", "the answer is 2").known and grade("2", "the answer is 2").correct


def test_a_right_correction_without_a_gold_answer_is_not_graded_wrong(tiny_policy):
    """Composed, shown and kept as unknown; with a gold answer it is graded."""
    for answer, mark in (("", "?"), ("2", "✓"), ("3", "✗")):
        problem = Problem("q", tuple(QUESTION), answer)
        group = Group.from_texts(problem, ["1+1=3\nAnswer 3"], tiny_policy)
        editor = CorrectionEditor(tiny_policy, external.GivenAnswers(), group)
        draft = editor.draft(editor.compose(0, 3, continuation="1+1=2\nAnswer 2"))
        assert draft.verdict.mark == mark and mark in draft_html(draft)
    with pytest.raises(WorkbenchError, match="is unknown"):
        Group(problem, (group.rollouts[0],)).rewards


# ---- columns by name


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1", "completions": ["2", "3"], "rewards": [1, 0]},
        {"problem": "1+1", "responses": ["2", "3"], "is_correct": [True, False]},
        {"prompt": QUESTION, "outputs": ["2", "3"], "scores": [1.0, 0.0]},
        {"prompt": "1+1", "texts": ["2", "3"], "reward": [0.5, -1], "correct": [1, 0]},
        {"question": "1+1", "completions": ["2", "3"], "answer": "2"},
        {"question": "1+1", "completions": ["2", "3"], "reward_model": {"ground_truth": 2}},
        {"messages": QUESTION, "completion": ["2", "3"], "rewards": [True, False]},
    ],
    ids=lambda row: ",".join(row),
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_columns_by_name_in_every_kind_of_file(tiny_policy, tmp_path, row, suffix):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "parquet":
        pd.DataFrame([row]).to_parquet(path)
    else:
        path.write_text(json.dumps(row if suffix == "jsonl" else [row]))
    [group] = load_rollouts(path, tiny_policy)
    assert [r.verdict.correct for r in group.rollouts] == [True, False]
    assert [r.text for r in group.rollouts] == ["2", "3"]
    assert list(group.problem.messages) == QUESTION and group.problem.id == "1+1"


def test_token_ids_are_kept_where_they_are_given(tiny_policy, tmp_path):
    eos = tiny_policy.tokenizer.eos_token_id
    answer = tiny_policy.completion_ids("17")[:-1]
    row = {
        "question": "1+1",
        "prompt_ids": [7, 8, 9],
        "completion_ids": [[*answer, eos], list(answer)],
        "logprobs": [[-1.0, -0.5, -0.1], None],
        "rewards": [0, 0],
    }
    [group] = load_rollouts(lines(tmp_path, row), tiny_policy)
    first, second = group.rollouts
    assert first.prompt_ids == (7, 8, 9) and first.completion_ids == (*answer, eos)
    assert first.logprobs == (-1.0, -0.5, -0.1) and first.text == "17" and first.finished
    assert not second.finished and all(map(math.isnan, second.logprobs))
    as_ids = {"question": "1+1", "completions": [list(answer)], "rewards": [1]}
    [group] = load_rollouts(lines(tmp_path, as_ids), tiny_policy)
    assert group.rollouts[0].completion_ids == answer


def test_a_text_that_its_ids_do_not_say_is_said_so(tiny_policy, tmp_path):
    ids = tiny_policy.completion_ids("17")
    row = {"question": "1+1", "completions": ["18"], "completion_ids": [list(ids)], "rewards": [1]}
    with pytest.warns(UserWarning, match=r"1 completions do not come back.*line 1"):
        [group] = load_rollouts(lines(tmp_path, row), tiny_policy)
    assert group.rollouts[0].completion_ids == ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_rollouts(lines(tmp_path, row | {"completions": ["17"]}), tiny_policy)


def test_a_task_grades_what_has_no_reward(tiny_policy, tmp_path):
    task = load_task("arithmetic")
    right = "17+14=31\n31+2=33\nAnswer 33"
    row = {"question": "17+14+2", "completions": [right, right.replace("31", "30"), "33"]}
    groups = load_rollouts(lines(tmp_path, row), tiny_policy, task)
    assert verdicts(groups[0]) == [(1.0, True), (0.0, False), (0.0, False)]
    assert groups.task is task
    # and what has one keeps it
    groups = load_rollouts(lines(tmp_path, row | {"rewards": [0, 1, 0.5]}), tiny_policy, task)
    assert groups[0].rewards.tolist() == [0, 1, 0.5]


# ---- the logs of other libraries


def test_verls_dump_with_the_prompt_that_the_chat_template_wrote(tmp_path):
    policy = chatml()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    seen = policy.tokenizer.decode(policy.prompt_ids(asked), skip_special_tokens=True)
    assert seen == "system\nBe brief.\nuser\n1+1?\nassistant\n"
    rows = [
        {"input": seen, "output": "2", "gts": "2", "score": 1.0, "step": 7, "acc": True},
        {"input": "user\nthe dog\nassistant\n", "output": "the", "gts": "x", "score": -1.0},
        {"input": seen, "output": "3", "gts": "2", "score": 0.2, "step": 7, "acc": False},
    ]
    first, second = load_rollouts(lines(tmp_path, *rows, name="7.jsonl"), policy)
    assert list(first.problem.messages) == asked and first.problem.answer == "2"
    assert verdicts(first) == [(1.0, True), (0.2, False)] and first.problem.meta["step"] == 7
    assert first.rollouts[0].prompt_ids == policy.prompt_ids(asked)
    assert list(second.problem.messages) == [{"role": "user", "content": "the dog"}]
    assert verdicts(second) == [(-1.0, False)]


def trl_log(folder: Path, step: int, prompt, completion) -> Path:
    """A log as TRL 1.16 writes it: GRPOTrainer.log."""
    table = {
        "step": [step] * 2,
        "prompt": [prompt] * 2,
        "completion": completion,
        "accuracy_reward": [1.0, 0.0],
        "format_reward": [0.5, float("nan")],
        "extracted": ["2", "3"],
        "seconds": [9.0, 9.0],
        "advantage": [0.7, -0.7],
    }
    path = folder / f"completions_{step:05d}.parquet"
    pd.DataFrame(table).to_parquet(path)
    return path


def test_trls_completion_logs_in_text_and_in_messages(tmp_path):
    policy = chatml()
    replies = [[{"role": "assistant", "content": text}] for text in ("2", "3")]
    trl_log(tmp_path, 10, QUESTION, replies)
    text = policy.tokenizer.apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=True
    )
    trl_log(tmp_path, 9, text, ["2", "3"])
    early, late = load_rollouts(tmp_path, policy)
    assert [group.problem.meta["step"] for group in (early, late)] == [9, 10]
    for group in (early, late):
        assert verdicts(group) == [(1.5, True), (0.0, False)]
        assert group.rollouts[0].verdict.parts == {
            "accuracy_reward": 1.0,
            "format_reward": 0.5,
            "advantage": 0.7,
        }
        assert list(group.problem.messages) == QUESTION
        assert group.rollouts[0].prompt_ids == policy.prompt_ids(QUESTION)


def prime_record(prompt, completion, mask, advantage, step=3) -> dict:
    """A line as prime-rl 0.8's TokenExporter writes it; the columns that are not read left out."""
    size, whole = len(completion), [*prompt, *completion]
    return {
        "schema_version": 1,
        "step": step,
        "rank": 0,
        "token_ids": whole,
        "loss_mask": [False] * len(prompt) + mask,
        "advantages": [advantage] * len(whole),
        "inference_logprobs": [0.0] * len(prompt) + [-0.5] * size,
        "trainer_logprobs": [-0.4] * len(whole),
        "entropy": [None] * len(whole),
    }


def test_prime_rls_token_export_keeps_every_id(tiny_policy, tmp_path):
    prompt = tiny_policy.prompt_ids(QUESTION)
    right, wrong = tiny_policy.completion_ids("1+1=2"), tiny_policy.completion_ids("3")
    mask = [True, True, False, True, True, True]
    folder = tmp_path / "token_exports" / "step_3"
    folder.mkdir(parents=True)
    rows = [
        prime_record(prompt, right, mask, 0.7),
        prime_record(tiny_policy.prompt_ids([{"role": "user", "content": "5"}]), wrong, [1, 1], 0),
        prime_record(prompt, wrong, [True, True], -0.7),
    ]
    rows[1]["loss_mask"] = [bool(value) for value in rows[1]["loss_mask"]]
    lines(folder, *rows, name="rank_0.jsonl")
    (folder / "STABLE").touch()
    first, second = load_rollouts(tmp_path / "token_exports", tiny_policy)
    assert [r.completion_ids for r in first.rollouts] == [right, wrong]
    assert first.rollouts[0].prompt_ids == prompt and list(first.problem.messages) == QUESTION
    assert np.isnan(first.rollouts[0].logprobs).tolist() == [not own for own in mask]
    assert first.rollouts[0].verdict.parts == {"advantage": 0.7}
    assert not first.rollouts[0].verdict.known and len(second.rollouts) == 1


def test_a_text_that_was_decoded_with_the_end_of_its_turn(tiny_policy, tmp_path):
    end = tiny_policy.tokenizer.decode(list(tiny_policy.end))
    row = {"question": "1+6", "answer": "7", "completion": f"The answer is 7{end}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (group,) = load_rollouts(lines(tmp_path, row), tiny_policy)
        (rollout,) = group.rollouts
    assert rollout.text == "The answer is 7" and verdicts(group) == [(1.0, True)]
    assert rollout.completion_ids[-len(tiny_policy.end) :] == tiny_policy.end and rollout.finished


def test_an_answer_after_hashes_and_a_missing_one(tiny_policy, tmp_path):
    rows = [
        {"question": "9*2", "answer": "9*2=18\n#### 18", "completion": "The answer is 18"},
        {"question": "9*3", "ground_truth": "so\n#### 27", "completion": "The answer is 18"},
        {"question": "9*4", "answer": math.nan, "completion": "The answer is 36"},
    ]
    right, wrong, unknown = load_rollouts(lines(tmp_path, *rows), tiny_policy)
    assert verdicts(right) == [(1.0, True)] and right.problem.answer == "18"
    assert verdicts(wrong) == [(0.0, False)] and wrong.problem.answer == "27"
    assert not unknown.rollouts[0].verdict.known


def test_a_run_of_another_tokenizer_is_said_so(tiny_policy, tmp_path):
    problem = Problem("q", tuple(QUESTION), "2")
    record = json.loads(dumps(group_to_dict(Group.from_texts(problem, ["2"], tiny_policy, [1]))))
    other = json.loads(json.dumps(record))
    other["rollouts"][0]["completion_ids"][0] += 1  # inside the vocabulary, and another text
    with pytest.warns(UserWarning, match="do not come back from their tokens"):
        load_rollouts(lines(tmp_path, other), tiny_policy)[0]
    other["rollouts"][0]["completion_ids"][0] = 90_000
    with pytest.raises(WorkbenchError, match="token id 90000, outside the vocabulary of tiny"):
        load_rollouts(lines(tmp_path, other), tiny_policy)[0]


# ---- labelled steps


@pytest.mark.parametrize("label, begins", [(0, "a b"), (1, "c\nd"), (2, "a b"), (-1, None)])
def test_processbench_labels_become_the_truth_of_locators(tiny_policy, tmp_path, label, begins):
    row = {
        "id": "gsm8k-7",
        "generator": "x",
        "problem": "what",
        "steps": ["a b", "c\nd", "a b"],
        "final_answer_correct": label == -1,
        "label": label,
    }
    groups = load_rollouts(lines(tmp_path, row), tiny_policy)
    [group] = groups
    error = groups.task.first_error(group.problem, group.rollouts[0].text)
    assert verdicts(group) == [(float(label == -1), label == -1)]
    if begins is None:
        assert error is None
        return
    text = group.rollouts[0].text
    assert text[error.start : error.end] == begins and text[: error.start].count("\n\n") == label
    assert error.index == Spans(group.rollouts[0], tiny_policy.decode).step_at(error.start)
    inspection = inspect_group(tiny_policy, group, groups.task)
    found = locate(inspection, tiny_policy.decode, [Truth(), Divergence()])
    assert found[0]["truth"].candidates[0].step == error.index
    with pytest.raises(WorkbenchError, match="label 3: it is the number"):
        load_rollouts(lines(tmp_path, row | {"label": 3}), tiny_policy)


def test_prm800k_as_it_is(tiny_policy, tmp_path):
    def step(*completions, chosen=0, human=None):
        texts = [{"text": text, "rating": rating, "flagged": None} for text, rating in completions]
        return {"completions": texts, "human_completion": human, "chosen_completion": chosen}

    row = {
        "labeler": "x",
        "question": {
            "problem": "1+1+1",
            "ground_truth_solution": "3",
            "ground_truth_answer": "3",
            "pre_generated_steps": ["1+1=2", "2+1=4", "so 4"],
        },
        "label": {
            "steps": [step(("1+1=2", 1)), step(("2+1=4", -1), ("2+1=3", 1), chosen=None)],
            "finish_reason": "found_error",
        },
    }
    groups = load_rollouts(lines(tmp_path, row), tiny_policy)
    [group] = groups
    [rollout] = group.rollouts
    assert rollout.text == "1+1=2\n2+1=4\nso 4" and verdicts(group) == [(0.0, False)]
    error = groups.task.first_error(group.problem, rollout.text)
    assert rollout.text[error.start : error.end] == "2+1=4" and error.index == 1
    row["question"].pop("pre_generated_steps")
    row["label"]["steps"][1]["human_completion"] = {"text": "2+1=3", "rating": None}
    row["label"]["finish_reason"] = "solution"
    [group] = load_rollouts(lines(tmp_path, row), tiny_policy)
    assert group.rollouts[0].text == "1+1=2\n2+1=3" and verdicts(group) == [(1.0, True)]


def test_step_labels_as_trl_has_them(tiny_policy, tmp_path):
    row = {"prompt": "1+1+1", "completions": ["1+1=2", "2+1=4", "so 4"]}
    labels = [[True, False, False], [True] * 3]
    path = lines(tmp_path, *({**row, "labels": label} for label in labels))
    groups = load_rollouts(path, tiny_policy)
    [group] = groups
    assert [r.text for r in group.rollouts] == ["1+1=2\n\n2+1=4\n\nso 4"] * 2
    row = {"question": "1+1", "completions": ["1+1=2\n\n2", "2\n3"], "first_wrong_step": [-1, 1]}
    groups = load_rollouts(lines(tmp_path, {**row, "label": "easy"}), tiny_policy)
    right, wrong = (groups.task.first_error(groups[0].problem, r.text) for r in groups[0].rollouts)
    assert right is None and wrong == (1, 2, 3)


def test_what_other_writers_leave_out_or_add(tiny_policy, tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"text": "1"}]}]
    ids = list(tiny_policy.completion_ids("17"))
    rows = [
        {"prompt": parts, "completion": ids, "id": 0, "reward": None, "tool_calls": None},
        {"prompt": "1+1", "completion": "2", "id": 1, "reward": float("nan")},
        {"step": 1, "prompt": QUESTION, "completion": "2", "some": 1.0, "advantage": None},
        {"input": "5+5", "output": "10", "score": 0.5, "acc": 0.5},
    ]
    first, second, third = load_rollouts(lines(tmp_path, *rows), tiny_policy)
    assert list(first.problem.messages) == QUESTION and first.problem.id == "0"
    assert [r.text for r in first.rollouts] == ["17", "2"]
    assert not any(r.verdict.known for r in first.rollouts)
    assert second.rollouts[0].verdict == Verdict(1.0, True, "", {"some": 1.0})
    assert verdicts(third) == [(0.5, True)]


def test_a_prompt_that_the_chat_template_did_not_write_is_said_so(tmp_path):
    rows = [{"input": "Human: 1+1? AI:", "output": "2", "score": 1.0, "step": 1}]
    with pytest.warns(UserWarning, match="1 prompts are not what the chat template of chatml"):
        [group] = load_rollouts(lines(tmp_path, *rows), chatml())
    assert group.problem.messages[0]["content"] == "Human: 1+1? AI:"


# ---- bad input: one sentence each, with the place


GOOD = {"question": "1+1", "completions": ["2"], "rewards": [1]}


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([GOOD, {"q": "1+1", "text": "2"}], "line 2 has no question; its columns are q, text;"),
        ([{"question": "1+1", "reward": 1}], "line 1 has no completions; its columns are quest"),
        ([{**GOOD, "completions": [], "rewards": []}], "line 1 has no completion in 'completions'"),
        ([{**GOOD, "completions": [{"a": 1}]}], "line 1 has a completion that is neither text"),
        ([{**GOOD, "question": 5}], "line 1 has a question that is neither text nor a list"),
        ([GOOD, {**GOOD, "rewards": [True]}], r"mixed kinds: numbers \(.*line 1\), true or false"),
        ([{**GOOD, "rewards": ["good"]}], "the reward 'good'; rewards are numbers, or true and"),
        ([{**GOOD, "rewards": [float("inf")]}], "the reward 'inf'"),
        ([{**GOOD, "rewards": [10**400]}], "the reward '1000"),
        ([{**GOOD, "logprobs": [[-(10**400), 0]]}], "no list of log-probabilities"),
        ([{**GOOD, "answer": "\ud800"}], "surrogate"),
        ([{**GOOD, "id": "\ud800"}], "surrogate"),
        ([{**GOOD, "solution": "\ud800"}], "surrogate"),
        ([prime_record([5], [6], [True], "much")], "advantages that are no numbers"),
        ([{**GOOD, "rewards": [1, 0]}], "1 completions, and the column of reward has 2"),
        ([{**GOOD, "completions": ["2", "3"], "rewards": 1}], "one 'rewards' for all of them"),
        ([{**GOOD, "is_correct": ["yes"]}], "the verdict 'yes'; verdicts are true, false"),
        ([{**GOOD, "completions": ["7" * 3000]}], "3007 tokens, more than the model's context"),
        ([{**GOOD, "completions": [[5, 128]]}], "token id 128, outside the vocabulary of tiny"),
        ([{**GOOD, "completions": [[5, -1]]}], "token id -1, outside the vocabulary"),
        ([{**GOOD, "prompt_ids": [900]}], "token id 900, outside the vocabulary"),
        ([{**GOOD, "completion_ids": [[1.5]]}], "no list of token ids"),
        ([{**GOOD, "logprobs": [[-1.0]]}], "1 log-probabilities for 2 tokens"),
        ([{**GOOD, "logprobs": [["x"]]}], "no list of log-probabilities"),
        ([GOOD, json.dumps(GOOD)[:20]], "line 2 is not JSON"),
        ([GOOD, "[" * 100_000], "line 2 is not JSON"),
        (["[1, 2]"], "line 1 has no question; its columns are none"),
        ([{**GOOD, "completions": ["\ud800"]}], "surrogate"),
        ([{"problem": {}, "rollouts": []}], "line 1 is no group of a run"),
        ([{**GOOD, "messages": 1, "question": [{"role": "user"}]}], "neither text nor a list"),
        ([prime_record([5], [6], [False], 1)], "no token that is trained on"),
        ([prime_record([], [6, 7], [True, True], 1)], "no prompt: its first token"),
        ([prime_record([5], [6], [True], 1) | {"advantages": None}], "do not fit its 2 tokens"),
        ([{"problem": "a", "steps": [], "label": 0}], '"steps" is no list of texts'),
        ([{"labeler": "x", "question": {}, "label": {}}], "not of PRM800K's form"),
        ([], "it is empty"),
    ],
)
def test_bad_input_is_one_sentence(tiny_policy, tmp_path, rows, sentence):
    with pytest.raises(WorkbenchError, match=sentence) as caught:
        load_rollouts(lines(tmp_path, *rows), tiny_policy)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tiny_policy, tmp_path):
    for name, sentence in (
        ("none.jsonl", "could not read .*none.jsonl: No such file"),
        ("none.parquet", "could not read .*none.parquet"),
        ("notes.txt", "rollouts are read from .jsonl"),
        ("", "there is no .jsonl.* file in the folder"),
    ):
        with pytest.raises(WorkbenchError, match=sentence):
            load_rollouts(tmp_path / name, tiny_policy)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(WorkbenchError, match="could not read .*torn.parquet"):
        load_rollouts(tmp_path / "torn.parquet", tiny_policy)
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}\n'.encode("latin-1"))
    with pytest.raises(WorkbenchError, match="line 1 is not JSON: it is no UTF-8"):
        load_rollouts(tmp_path / "latin.jsonl", tiny_policy)
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-9])
    with pytest.raises(WorkbenchError, match="line 2 is not JSON.*perhaps cut off"):
        load_rollouts(torn, tiny_policy)


# ---- large files


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_large_file_is_read_group_by_group(tiny_policy, tmp_path, monkeypatch, suffix):
    """The groups are those of the whole, and only what is asked for is in memory."""
    rows = [
        {"question": f"{i}+1", "completions": ["7" * 900] * 8, "rewards": [0] * 8}
        for i in range(300)
    ]
    path = tmp_path / f"large.{suffix}"
    if suffix == "jsonl":
        lines(tmp_path, *rows, name=path.name)
    else:
        pd.DataFrame(rows).to_parquet(path, row_group_size=20)
    monkeypatch.setattr(external, "SMALL", 0)
    rows = None
    tracemalloc.start()
    groups = load_rollouts(path, tiny_policy)
    seen = [groups[i].problem.id for i in (299, 0, 150)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups) == 300 and seen == ["299+1", "0+1", "150+1"]
    # all of it as tokens would be 300 * 8 * 900 * 16 bytes
    assert most < 8e6


def test_the_lines_of_one_question_are_one_group_wherever_they_stand(tiny_policy, tmp_path):
    rows = [{"question": f"{i % 3}+1", "completion": str(i), "reward": i} for i in range(9)]
    groups = load_rollouts(lines(tmp_path, *rows), tiny_policy)
    assert [[r.text for r in group.rollouts] for group in groups] == [
        ["0", "3", "6"],
        ["1", "4", "7"],
        ["2", "5", "8"],
    ]
    assert [group.problem.id for group in groups[1:]] == ["1+1", "2+1"]
    with pytest.raises(IndexError):
        groups[3]


# ---- what is done with them


def test_credit_locators_and_the_view_take_them(tiny_policy, tmp_path):
    texts = ["1+1=2\nAnswer 2", "1+1=3\nAnswer 3"]
    path = lines(tmp_path, {"question": "1+1", "answer": "2", "completions": texts})
    groups = load_rollouts(path, tiny_policy)
    methods = {"GRPO": GRPO(), "SDPO": SDPO()}
    inspection = inspect_group(tiny_policy, groups[0], groups.task, methods)
    right, wrong = (values.mean() for values in inspection.layers["GRPO credit"])
    assert right > 0 > wrong
    assert locate(inspection, tiny_policy.decode, [Divergence()])[1]["divergence"].candidates
    assert len(TokenView(groups, tiny_policy).inspections) == 1


def test_verdicts_survive_a_record(tiny_policy):
    problem = Problem("q", tuple(QUESTION), "")
    group = Group.from_texts(problem, ["2", "3"], tiny_policy, [Verdict(math.nan, False), 1.0])
    line = json.loads(dumps(group_to_dict(group)))
    from workbench.records import group_from_dict

    back = group_from_dict(line)
    assert same(group, back) and not back.rollouts[0].verdict.known


# ---- the command line


def test_from_a_file_to_a_page_and_to_another_file(tiny_folder, tmp_path, capsys):
    from workbench.app.cli import main

    texts = ["1+1=2\nAnswer 2", "1+1=3\nAnswer 3", "<script>alert(1)</script>"]
    rows = [{"question": f"{i}+1", "completions": texts, "rewards": [1, 0, 0]} for i in range(2)]
    rows.append({"question": "<b>2+2</b>", "completions": texts[:1]})
    path, page, pairs = lines(tmp_path, *rows), tmp_path / "page.html", tmp_path / "dpo.jsonl"
    words = ["rollouts", str(path), "--model", str(tiny_folder)]
    more = ["--html", str(page), "--to", "dpo", "--out", str(pairs)]
    assert main([*words, *more]) == 0
    said = capsys.readouterr().out
    assert "3 questions, 7 rollouts: 2 right, 4 wrong, 1 of unknown verdict" in said
    assert "4 rows in" in said and len(pairs.read_text().splitlines()) == 4
    text = page.read_text()
    assert "GRPO credit" in text and "failure point by" in text and "No credit by GRPO" in text
    assert "<script" not in text and "<b>2+2" not in text
    assert main([*words, "--to", "dpo"]) == 2
    assert main(["rollouts", str(tmp_path / "no.jsonl"), "--model", str(tiny_folder)]) == 2
    assert capsys.readouterr().err.count("workbench: ") == 2


def test_locators_are_scored_on_the_steps_that_people_labelled(tiny_folder, tmp_path, capsys):
    """Divergence is right by construction: the labelled step is where the right sibling differs."""
    from workbench.app.cli import main

    rows = []
    for i in range(6):
        right = [f"{i}+1={i + 1}", f"{i + 1}+2={i + 3}", f"Answer {i + 3}"]
        wrong = [right[0], f"{i + 1}+2={i + 4}", f"Answer {i + 4}"]
        for steps, label in ((right, -1), (wrong, 1)):
            row = {"problem": f"{i}+1+2", "steps": steps, "label": label}
            rows.append(row | {"final_answer_correct": label == -1})
    path = lines(tmp_path, *rows)
    assert main(["rollouts", str(path), "--model", str(tiny_folder), "--locators"]) == 0
    said = capsys.readouterr().out
    assert "6 labelled wrong attempts" in said
    [row] = [line for line in said.splitlines() if line.startswith("divergence")]
    assert row.count("100.0% [100.0%, 100.0%]") == 3
    path = lines(tmp_path, GOOD, name="plain.jsonl")
    assert main(["rollouts", str(path), "--model", str(tiny_folder), "--locators"]) == 2
    assert "no attempt has any" in capsys.readouterr().err
