"""What is exported is what the other library trains on: each form is loaded by it and takes a step,
and what TRL logs itself is read back.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import toys
from test_compose import PROBLEM, RIGHT, TASK, WRONG, composed
from test_external import same
from test_readings import group_of

from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.corrections.buffer import Correction, append, groups
from workbench.corrections.compose import to_rollout
from workbench.exchange.export import (
    as_dataset,
    export_corrections,
    export_groups,
    rows,
)
from workbench.exchange.external import load_rollouts

ASKED = [{"role": "user", "content": "47+85-29"}]


@pytest.fixture
def group(tiny_policy) -> Group:
    return group_of(tiny_policy, WRONG, "47+85=122\nAnswer 122", RIGHT)


@pytest.fixture
def correction(tiny_policy, group) -> Correction:
    composition = composed(tiny_policy, group)
    return Correction(composition, to_rollout(tiny_policy, TASK, composition), "tiny")


def reply(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# ---- the rows


def test_a_correction_in_each_form(tiny_policy, correction):
    text = correction.rollout.text
    assert rows([correction], "sft") == [{"messages": ASKED + reply(text)}]
    assert rows([correction], "completions") == [{"prompt": ASKED, "completion": reply(text)}]
    [pair] = rows([correction], "dpo")
    assert pair == {"prompt": ASKED, "chosen": reply(text), "rejected": reply(WRONG)}
    shared = correction.composition.prefix
    assert shared and text.startswith(shared) and WRONG.startswith(shared)
    [tokens] = rows([correction], "tokens")
    kept = len(correction.rollout.prompt_ids) + correction.composition.keep
    assert tokens["input_ids"][kept:] == tokens["labels"][kept:]
    assert set(tokens["labels"][:kept]) == {-100}
    learned = tiny_policy.decode([i for i in tokens["labels"] if i != -100])
    assert shared + learned == text


def test_a_pair_as_texts_shares_its_prompt_and_nothing_after_it(tiny_policy, group, correction):
    for pair in rows([correction, group], "dpo", tiny_policy):
        assert pair["chosen"] and pair["rejected"] and pair["chosen"][0] != pair["rejected"][0]
        asked = tiny_policy.tokenizer.decode(group.rollouts[0].prompt_ids)
        assert pair["prompt"].startswith(asked)
    [pair] = rows([correction], "dpo", tiny_policy)
    end = tiny_policy.tokenizer.decode(tiny_policy.end)
    assert pair["prompt"] + pair["chosen"] == asked + correction.rollout.text + end
    assert pair["prompt"] + pair["rejected"] == asked + WRONG + end
    assert pair["prompt"].startswith(asked + correction.composition.prefix)


@pytest.mark.parametrize("bos", [False, True])
def test_texts_come_back_as_the_rollouts_tokens(bos):
    """With bytes for letters: a shared first byte of two letters is not cut off its letter; a
    tokenizer that begins each text with its own token does so once."""
    policy = _Bytes(bos)
    right, wrong = (tuple(f"n = {c}".encode()) for c in ("é", "è"))  # c3 a9, c3 a8
    problem = Problem("q", ({"role": "user", "content": "?"},), "1")
    prompt = (256,) * bos + tuple(b"Q: ?\n")
    pair = [
        Rollout(prompt, ids, (0.0,) * len(ids), bytes(ids).decode(), Verdict(r, r > 0))
        for ids, r in ((right, 1.0), (wrong, 0.0))
    ]
    [row] = rows([Group(problem, tuple(pair))], "dpo", policy)
    assert row == {"prompt": "Q: ?\nn = ", "chosen": "é", "rejected": "è"}
    assert tuple(policy.tokenizer(row["prompt"] + row["chosen"]).input_ids) == prompt + right
    cut = replace(pair[1], completion_ids=right[:3], text="n =", logprobs=(0.0,) * 3)
    [row] = rows([Group(problem, (pair[0], cut))], "dpo", policy)
    assert row == {"prompt": "Q: ?\nn ", "chosen": "= é", "rejected": "="}


class _Bytes:
    """A policy and its tokenizer."""

    def __init__(self, bos: bool):
        self.bos, self.tokenizer = [256] * bos, self

    def __call__(self, text):
        return SimpleNamespace(input_ids=[*self.bos, *text.encode()])

    def decode(self, ids, **_):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def test_a_group_gives_its_right_attempts_and_a_pair_for_each_wrong_one(group):
    assert [row["messages"][-1]["content"] for row in rows([group], "sft")] == [RIGHT]
    pairs = rows([group], "dpo")
    assert [pair["rejected"][0]["content"] for pair in pairs] == [
        WRONG,
        "47+85=122\nAnswer 122",
    ]
    assert all(pair["chosen"] == reply(RIGHT) for pair in pairs)


def test_wrong_corrections_stay_behind_and_unknown_ones_do_not(correction):
    def judged(reward: float) -> Correction:
        rollout = replace(correction.rollout, verdict=Verdict(reward, reward > 0))
        return replace(correction, rollout=rollout)

    assert len(rows([judged(1.0), judged(0.0), judged(math.nan)], "sft")) == 2
    with pytest.raises(WorkbenchError, match="nothing to export as sft: nothing right"):
        rows([judged(0.0)], "sft")


@pytest.mark.parametrize(
    "form, name, sentence",
    [
        ("gguf", "a.jsonl", "no form 'gguf' to export; there are sft, completions, tokens, dpo"),
        ("sft", "a.csv", "the form sft is written to a .jsonl or .parquet file, not to a.csv"),
        ("groups", "a.parquet", "the form groups is written to a .jsonl file"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(group, tmp_path, form, name, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        export_groups([group], tmp_path / name, form)
    with pytest.raises(WorkbenchError, match="no wrong attempt with a right one beside it"):
        export_groups([Group(PROBLEM, group.rollouts[:2])], tmp_path / "b.jsonl", "dpo")
    assert not list(tmp_path.iterdir())


# ---- out and in


def test_out_and_in_changes_nothing(tiny_policy, group, tmp_path):
    unknown = Group.from_texts(PROBLEM, ["?", "Answer 7"], tiny_policy)
    assert export_groups([group, unknown], tmp_path / "all.jsonl", "groups") == 2
    first, second = load_rollouts(tmp_path / "all.jsonl", tiny_policy)
    assert same(first, group) and same(second, unknown)


@pytest.mark.parametrize("form", ["sft", "completions"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_forms_for_trainers_are_read_back_too(tiny_policy, group, tmp_path, form, suffix):
    path = tmp_path / f"out.{suffix}"
    export_groups([group], path, form)
    [back] = load_rollouts(path, tiny_policy, TASK)
    [rollout] = back.rollouts
    assert list(back.problem.messages) == ASKED and rollout.verdict.correct
    assert rollout.completion_ids == group.rollouts[2].completion_ids
    assert rollout.prompt_ids == group.rollouts[2].prompt_ids


def test_two_questions_with_one_id_are_two_rows_and_two_groups(tiny_policy, group, correction):
    """Those of two files, both rollouts:1."""
    problem = replace(group.problem, messages=({"role": "user", "content": "1+1"},))
    assert len(rows([group, replace(group, problem=problem), group], "verl")) == 2
    other = replace(correction, composition=replace(correction.composition, problem=problem))
    two = groups([correction, other, correction], tiny_policy)
    assert [len(each.rollouts) for each in two] == [2, 1]


def test_verls_columns(group, tmp_path):
    export_groups([group, group], tmp_path / "train.parquet", "verl")
    table = pd.read_parquet(tmp_path / "train.parquet")
    assert list(table) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    [row] = table.to_dict("records")  # a problem once
    assert list(row["prompt"]) == ASKED
    assert row["reward_model"] == {"style": "rule", "ground_truth": "103"}
    assert row["extra_info"]["index"] == 0
    # its SFT data set reads "messages" with pyarrow's types
    export_groups([group], tmp_path / "sft.parquet", "sft")
    sft = pd.read_parquet(tmp_path / "sft.parquet", dtype_backend="pyarrow")
    assert list(sft["messages"][0]) == ASKED + reply(RIGHT)


# ---- the libraries themselves


def settings(kind, folder, **more):
    return kind(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        **more,
    )


def moved(policy, before) -> bool:
    return not all(
        (old == new).all() for old, new in zip(before, policy.model.parameters(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sft", "completions", "tokens"])
def test_trls_sft_trainer_takes_a_step(tiny_policy, group, correction, tmp_path, form):
    from trl import SFTConfig, SFTTrainer

    append(tmp_path / "buffer.jsonl", correction)
    export_corrections(tmp_path / "buffer.jsonl", tmp_path / "out.jsonl", form)
    from datasets import Dataset

    written = (tmp_path / "out.jsonl").read_text().splitlines()
    data = Dataset.from_list([json.loads(line) for line in written] * 2)
    assert data[0] == as_dataset([correction], form)[0]
    before = [weight.clone() for weight in tiny_policy.model.parameters()]
    trainer = SFTTrainer(
        tiny_policy.model,
        args=settings(SFTConfig, tmp_path),
        train_dataset=data,
        processing_class=tiny_policy.tokenizer,
    )
    # the trainer's tokens are ours, and so is what it learns
    ids, labels = (trainer.train_dataset[0][name] for name in ("input_ids", "labels"))
    rollout, keep = correction.rollout, correction.composition.keep
    assert tuple(ids[: len(rollout.prompt_ids)]) == rollout.prompt_ids
    if form != "sft":
        assert tuple(ids) == (*rollout.prompt_ids, *rollout.completion_ids)
        masked = len(rollout.prompt_ids) + (keep if form == "tokens" else 0)
        assert labels == [-100] * masked + ids[masked:]
    loss = trainer.train().training_loss
    assert math.isfinite(loss) and loss > 0 and moved(tiny_policy, before)


@pytest.mark.slow
def test_trls_dpo_trainer_takes_a_step(tiny_policy, group, correction, tmp_path):
    from trl import DPOConfig, DPOTrainer

    before = [weight.clone() for weight in tiny_policy.model.parameters()]
    trainer = DPOTrainer(
        tiny_policy.model,
        ref_model=toys.tiny_policy().model,
        args=settings(DPOConfig, tmp_path),
        train_dataset=as_dataset([correction, group], "dpo"),
        processing_class=tiny_policy.tokenizer,
    )
    example = trainer.train_dataset[0]
    assert tuple(example["chosen_ids"]) == correction.rollout.completion_ids
    assert tuple(example["rejected_ids"]) == group.rollouts[0].completion_ids
    # policy and reference are the same: log 2
    assert trainer.train().training_loss == pytest.approx(math.log(2), abs=1e-3)
    assert moved(tiny_policy, before)


@pytest.mark.slow
def test_trls_dpo_trainer_gets_the_shared_beginning_in_the_prompt(
    tiny_policy, group, correction, tmp_path
):
    from trl import DPOConfig, DPOTrainer

    before = [weight.clone() for weight in tiny_policy.model.parameters()]
    trainer = DPOTrainer(
        tiny_policy.model,
        ref_model=toys.tiny_policy().model,
        args=settings(DPOConfig, tmp_path),
        train_dataset=as_dataset([correction, group], "dpo", tiny_policy),
        processing_class=tiny_policy.tokenizer,
    )
    example, wrong = trainer.train_dataset[0], group.rollouts[0]
    keep, right = correction.composition.keep, correction.rollout
    shared = len(example["prompt_ids"]) - len(right.prompt_ids)
    assert shared >= keep > 0
    assert tuple(example["prompt_ids"]) == (*right.prompt_ids, *right.completion_ids[:shared])
    assert tuple(example["chosen_ids"]) == right.completion_ids[shared:]
    assert tuple(example["rejected_ids"]) == wrong.completion_ids[shared:]
    assert example["chosen_ids"][0] != example["rejected_ids"][0]
    assert trainer.train().training_loss == pytest.approx(math.log(2), abs=1e-3)
    assert moved(tiny_policy, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["messages", "text"])
def test_what_trl_logs_itself_is_read(tiny_policy, tmp_path, kind):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts = ["17+14", "5+5"]
    asked = [[{"role": "user", "content": p}] for p in prompts] if kind == "messages" else prompts

    def length_reward(completions, **_):
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [float(len(text)) for text in texts]

    trainer = GRPOTrainer(
        tiny_policy.model,
        reward_funcs=length_reward,
        args=settings(
            GRPOConfig,
            tmp_path,
            num_generations=2,
            gradient_accumulation_steps=2,
            max_completion_length=12,
            log_completions=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in asked]),
        processing_class=tiny_policy.tokenizer,
    )
    trainer.train()
    logged = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    groups = load_rollouts(tmp_path / "completions", toys.tiny_policy())
    assert sorted(group.problem.messages[-1]["content"] for group in groups) == sorted(prompts)
    rollouts = [r for group in groups for r in group.rollouts]
    assert sorted(r.verdict.reward for r in rollouts) == sorted(logged["length_reward"])
    assert all(len(group.rollouts) == 2 for group in groups)
    plain = tiny_policy.tokenizer(groups[0].problem.messages[-1]["content"])["input_ids"]
    expected = tiny_policy.prompt_ids(groups[0].problem.messages) if kind == "messages" else plain
    assert groups[0].rollouts[0].prompt_ids == tuple(expected)
