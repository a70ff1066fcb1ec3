"""The loop: micro-batches, old log-probs, skipped updates, reference and teacher, and runs that
survive kill -9 bit for bit.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import toys
from tiny import shake_adapter

from workbench.core import WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.methods.sft import SFT
from workbench.model.batch import collate, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.options import with_options
from workbench.records import read_run
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, fit
from workbench.training.update import update

TASK = toys.FirstCharacter(toys.HALF, max_new=6)
KINDS = pytest.mark.parametrize("lora", [0, 4], ids=["full", "lora"])


def new_learner(lora: int = 0, seed: int = 0, **options) -> Learner:
    return Learner(toys.tiny_policy(), OptimConfig(**{"lr": 1e-2, **options}), lora=lora, seed=seed)


def one_update(learner, method=GRPO(k=4), step=0, **how):
    return update(
        method, learner, TASK, TASK.problems("train", 4, step), (0, step), step=step, **how
    )


def weights_of(learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([[5, 20, 30, 40]])).logits


def reloaded(state: dict) -> dict:
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def watched(monkeypatch, learner):
    """The gradients that each ``learner.step`` was given."""
    seen, step = [], learner.step

    def watching():
        seen.append(
            {
                name: p.grad.clone()
                for name, p in learner.policy.model.named_parameters()
                if p.grad is not None
            }
        )
        return step()

    monkeypatch.setattr(learner, "step", watching)
    return seen


# ---- one update


@pytest.mark.parametrize(
    "method",
    [GRPO(k=4), GRPO(k=4, aggregate="sequence"), GRPO(k=4, aggregate="constant", beta=0.1)],
)
def test_the_number_of_microbatches_changes_nothing(monkeypatch, method):
    found = []
    for rows in (None, 5, 1):
        learner = new_learner()
        gradients = watched(monkeypatch, learner)
        found.append((one_update(learner, method, rows=rows), gradients[0]))
    (whole, want), *others = found
    assert whole.metrics["contrast"] == 1 and max(g.abs().max() for g in want.values()) > 1e-3
    for record, got in others:
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)
        for name, value in whole.metrics.items():
            if not name.startswith("seconds") and name != "gap_max":
                assert record.metrics[name] == pytest.approx(value, abs=1e-5), name
        assert [[r.completion_ids for r in g.rollouts] for g in record.groups] == [
            [r.completion_ids for r in g.rollouts] for g in whole.groups
        ]
        for ours, theirs in zip(record.credit, whole.credit):
            assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(ours, theirs))


def test_the_credit_is_the_gradient(monkeypatch):
    """Weight the log-probs of a step's tokens with the painted numbers: the gradient of that sum is
    the one the optimiser got.
    """
    learner, method = new_learner(), GRPO(k=4, aggregate="sequence")
    before = weights_of(learner)
    gradients = watched(monkeypatch, learner)
    record = one_update(learner, method, rows=3)
    twin = new_learner()
    assert same(weights_of(twin), before)
    [batch] = collate(method.credit(list(record.groups), twin), twin.policy.pad_id)
    logp = score(twin, batch).logp
    painted = torch.zeros_like(logp)
    for row, numbers in enumerate(n for group in record.credit for n in group):
        painted[row, : len(numbers)] = torch.tensor(numbers)
    (-(painted * logp).sum() / batch.denominators["tokens"]).backward()
    for name, p in twin.policy.model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[0][name], atol=2e-5, rtol=1e-3)


def test_a_second_update_is_measured_against_the_first_ones_log_probs():
    @dataclass(frozen=True)
    class Watching(GRPO):
        seen: list = field(default_factory=list)

        def loss(self, scores, batch):
            self.seen.append(
                (
                    scores.logp.detach().clone(),
                    None if batch.old_logp is None else batch.old_logp.clone(),
                )
            )
            return super().loss(scores, batch)

    method = Watching(k=4)
    record = one_update(new_learner(), method, rows=None, updates=3)
    (first, none), (second, old), (third, still_old) = method.seen
    assert none is None and torch.equal(old, first) and torch.equal(still_old, first)
    assert not torch.allclose(second, first, atol=1e-3) and not torch.allclose(
        third, second, atol=1e-3
    )
    assert record.metrics["ratio"] == pytest.approx(1.0) and record.metrics["clipped"] == 0
    mask = first != 0
    assert record.metrics["last_ratio"] == pytest.approx(
        float((third - first).exp()[mask].mean()), abs=1e-5
    )
    assert record.metrics["last_clipped"] > 0  # at this rate: some token has left the trust region
    assert not any(name.startswith("last_") for name in one_update(new_learner()).metrics)


@KINDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(lora, bad):
    @dataclass(frozen=True)
    class Broken(GRPO):
        def loss(self, scores, batch):
            loss = super().loss(scores, batch)
            return replace(loss, value=loss.value * bad)

    learner = new_learner(lora)
    one_update(learner)  # so that the optimiser has a state to spoil
    before, moments = weights_of(learner), reloaded(learner.optimizer.state_dict())
    record = one_update(learner, Broken(k=4), 1)
    assert (
        record.metrics["skipped"] == 1 and not torch.tensor(record.metrics["grad_norm"]).isfinite()
    )
    assert same(weights_of(learner), before)
    for key, state in moments["state"].items():
        assert all(
            torch.equal(value, learner.optimizer.state_dict()["state"][key][name])
            for name, value in state.items()
        )
    assert one_update(learner, step=2).metrics["skipped"] == 1
    assert not same(weights_of(learner), before)


def test_the_gradient_is_clipped_to_its_norm(monkeypatch):
    norms = []
    for clip in (1e9, 0.01):
        learner = new_learner(clip=clip)
        step = learner.optimizer.step
        monkeypatch.setattr(
            learner.optimizer,
            "step",
            lambda: (
                norms.append(
                    float(
                        torch.stack(
                            [p.grad.norm() for p in learner.parameters if p.grad is not None]
                        ).norm()
                    )
                )
                or step()
            ),
        )
        reported = one_update(learner).metrics["grad_norm"]
    assert (
        norms[0] == pytest.approx(reported, rel=1e-5)
        and norms[1] == pytest.approx(0.01, rel=1e-3)
        and reported > 0.02
    )


# ---- reference and teacher


@KINDS
def test_the_reference_is_the_policy_as_it_was_loaded(lora):
    learner = new_learner(lora)
    start = logits(learner.policy)
    for step in range(2):
        one_update(learner, step=step)
    trained, before = logits(learner.policy), weights_of(learner)
    assert (trained - start).abs().max() > 1e-3
    with learner.weights("reference") as policy:
        assert torch.equal(logits(policy), start)
    assert torch.equal(logits(learner.policy), trained) and same(weights_of(learner), before)
    if lora:
        assert torch.equal(start, logits(toys.tiny_policy()))  # B = 0: the base itself


@KINDS
def test_asking_for_other_weights_does_not_disturb_a_gradient_in_the_making(lora):
    """``score`` reads the reference (and a method the teacher) between the policy's forward and
    backward pass.
    """
    gradients = []
    for others in ((), ("reference", "teacher")):
        learner = new_learner(lora)
        one_update(learner)
        record = one_update(learner, step=1)
        [batch] = collate(GRPO(k=4).credit(list(record.groups), learner), learner.policy.pad_id)
        scores = score(learner, batch)
        for which in others:
            with torch.no_grad(), learner.weights(which):
                score(learner, batch)
        scores.logp.sum().backward()
        gradients.append(
            {
                name: p.grad
                for name, p in learner.policy.model.named_parameters()
                if p.grad is not None
            }
        )
        assert [p.requires_grad for p in learner.parameters] == [True] * len(learner.parameters)
    assert gradients[0] and same(*gradients)


@KINDS
def test_other_weights_are_put_back_when_the_block_fails(lora):
    learner = new_learner(lora)
    one_update(learner)
    trained = logits(learner.policy)
    for which in ("reference", "teacher"):
        with pytest.raises(KeyError), learner.weights(which):
            raise KeyError
        assert torch.equal(logits(learner.policy), trained)
        assert all(p.requires_grad for p in learner.parameters)


def deltas(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """B A of each adapted matrix: what an adapter does, whatever its factors are."""
    return {
        name: (weights[name.replace("lora_A", "lora_B")] @ weights[name]).detach()
        for name in weights
        if "lora_A." in name
    }


@KINDS
def test_the_teacher_starts_as_the_policy_started_and_only_its_update_moves_it(lora):
    early, late = new_learner(lora), new_learner(lora)
    start = logits(early.policy)
    with early.weights("teacher") as policy:
        assert torch.equal(logits(policy), start)
    for learner in (early, late):
        for step in range(2):
            one_update(learner, step=step)
        # the late one is first asked for now, after the policy has moved
        with learner.weights("teacher") as policy:
            assert torch.equal(logits(policy), start)
        assert not any(p.requires_grad for p in learner._teacher.values())
        assert not {id(p) for p in learner._teacher.values()} & {
            id(p) for group in learner.optimizer.param_groups for p in group["params"]
        }
    assert same(early._teacher, late._teacher)


@KINDS
def test_the_teacher_follows_by_its_rate(lora):
    learner = new_learner(lora, ema=0.25)
    start = {name: weight.detach().clone() for name, weight in learner._weights().items()}
    one_update(learner)
    moved = {name: weight.detach().clone() for name, weight in learner._weights().items()}
    learner.update_teacher()
    for name, weight in learner._teacher.items():
        torch.testing.assert_close(
            weight, 0.75 * start[name] + 0.25 * moved[name], atol=1e-7, rtol=1e-5
        )
    assert same(dict(learner._weights()), moved)  # the policy stays where it is
    # one step from B = 0 and nearly the same A: the product follows at u, not at u squared
    if lora:
        ours, theirs = deltas(learner._weights()), deltas(learner._teacher)
        for policy, teacher in zip(ours.values(), theirs.values(), strict=True):
            assert (teacher.norm() / policy.norm()).item() == pytest.approx(0.25, rel=0.15)


@KINDS
def test_weight_decay_shrinks_matrices_by_its_rate_and_no_vectors(lora):
    learner = new_learner(lora, lr=0.1, weight_decay=0.3)
    for p in learner.parameters:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in learner.parameters]
    learner.step()
    for p, start in zip(learner.parameters, before, strict=True):
        expected = start * (1 - 0.1 * 0.3) if start.ndim > 1 else start
        torch.testing.assert_close(p.detach(), expected)
    assert any(start.ndim > 1 and start.any() for start in before)


def test_the_gradient_is_clipped_to_its_norm_before_the_step():
    """AdamW's second moment after one step is (1 - .999) g^2: what it was given."""
    learner = new_learner(clip=0.5)
    for p in learner.parameters:
        p.grad = torch.ones_like(p)
    size = sum(p.numel() for p in learner.parameters) ** 0.5
    assert learner.step() == pytest.approx(size, rel=1e-4)  # told before clipping
    moments = [state["exp_avg_sq"].sum() for state in learner.optimizer.state.values()]
    assert float(sum(moments)) == pytest.approx(0.001 * 0.5**2, rel=1e-3)


def test_the_teacher_follows_by_hand():
    learner = new_learner(ema=0.1)
    name, weight = next(iter(learner._weights().items()))
    with torch.no_grad():
        learner._start[name].fill_(2.0)
        weight.fill_(4.0)
    for value in (2.2, 2.38):  # .9 * 2 + .1 * 4, then .9 * 2.2 + .1 * 4
        learner.update_teacher()
        torch.testing.assert_close(learner._teacher[name], torch.full_like(weight, value))


@KINDS
def test_everything_survives_a_checkpoint(lora):
    learner, other = new_learner(lora), new_learner(lora)
    for step in range(2):
        one_update(learner, step=step)
        learner.update_teacher()
    learner.skipped = 3
    other.load_state(reloaded(learner.state()))
    assert (
        torch.equal(logits(other.policy), logits(learner.policy))
        and same(other._teacher, learner._teacher)
        and other.skipped == 3
    )
    for which in ("reference", "teacher"):
        with learner.weights(which) as policy:
            want = logits(policy)
        with other.weights(which) as policy:
            assert torch.equal(logits(policy), want)
    for both in (learner, other):
        one_update(both, step=2)
        both.update_teacher()
    assert same(weights_of(other), weights_of(learner)) and same(other._teacher, learner._teacher)
    assert not any(p.requires_grad for p in other._teacher.values())


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    wide = Learner(toys.tiny_policy(hidden=48))
    for learner, state in (
        (new_learner(), wide.state()),
        (new_learner(4), new_learner(8).state()),
        (new_learner(), new_learner(4).state()),
        (new_learner(4), new_learner().state()),
        (new_learner(), Learner(toys.tiny_policy(layers=1)).state()),
    ):
        before = weights_of(learner)
        with pytest.raises(WorkbenchError, match="belongs to another model"):
            learner.load_state(reloaded(state))
        assert same(weights_of(learner), before)


@KINDS
def test_the_saved_policy_loads_with_plain_transformers(lora, tmp_path, tiny_folder):
    learner = Learner(load_policy(tiny_folder), OptimConfig(lr=1e-2), lora=lora)
    one_update(learner)
    if lora:
        shake_adapter(learner.policy.model)
    learner.update_teacher()
    learner.save(tmp_path / "saved")
    again = (
        load_policy(tiny_folder, adapter=tmp_path / "saved")
        if lora
        else load_policy(tmp_path / "saved")
    )
    torch.testing.assert_close(logits(again), logits(learner.policy), atol=1e-6, rtol=0)
    assert (logits(again) - logits(load_policy(tiny_folder))).abs().max() > 1e-3
    assert not lora or not (tmp_path / "saved" / "teacher").exists()


def test_models_that_cannot_be_loaded_are_refused_in_one_sentence(tmp_path, tiny_folder):
    broken = toys.saved(toys.tiny_policy(), tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    silent = toys.tiny_policy()
    silent.tokenizer.chat_template = None
    (tmp_path / "empty").mkdir()
    for model, message in (
        (tmp_path / "none", "there is no model in"),
        (tmp_path / "empty", "there is no model in"),
        (broken, "could not load the model"),
        (toys.saved(silent, tmp_path / "silent"), "has no chat template"),
    ):
        with pytest.raises(WorkbenchError, match=message) as caught:
            load_policy(model)
        assert "\n" not in str(caught.value)
    config = json.loads((tiny_folder / "config.json").read_text())
    deeper = shutil.copytree(tiny_folder, tmp_path / "deeper")
    (deeper / "config.json").write_text(
        json.dumps(
            {**config, "num_hidden_layers": config["num_hidden_layers"] + 1, "layer_types": None}
        )
    )
    # not: random ones in their place
    with pytest.raises(WorkbenchError, match="lacks 9 of its weights, such as model.layers.2"):
        load_policy(deeper)
    with pytest.raises(WorkbenchError, match="no model is named"):
        load_policy(" ")
    with pytest.raises(WorkbenchError, match="there is no adapter in"):
        load_policy(tiny_folder, adapter=tmp_path / "empty")
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text("{}")
    with pytest.raises(WorkbenchError, match="there is no adapter in"):  # not: a look on the hub
        load_policy(tiny_folder, adapter=half)
    other = Learner(toys.tiny_policy(hidden=48), lora=4)
    other.save(tmp_path / "adapter")
    with pytest.raises(WorkbenchError, match="does not fit the model"):
        load_policy(tiny_folder, adapter=tmp_path / "adapter")


def test_a_template_that_refuses_a_prompt_says_so_in_one_sentence():
    policy = toys.tiny_policy()
    policy.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        WorkbenchError,
        match="the chat template of tiny refuses this prompt: System role not supported",
    ):
        policy.prompt_ids(({"role": "system", "content": "x"},))


# ---- whole runs, in this process

PLAN = TrainConfig(
    steps=5,
    prompts=3,
    rows=5,
    eval_every=2,
    eval_problems=3,
    eval_samples=2,
    checkpoint_every=2,
    keep_groups=1,
)


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of a run's file without their clocks."""
    read = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("seconds")}
        for line in read
    ]


def run(
    out: Path, lora: int = 0, plan: TrainConfig = PLAN, method=GRPO(k=4, beta=0.02), **how
) -> Learner:
    learner = new_learner(lora)
    fit(method, learner, TASK, plan, out, config={"model": "tiny"}, progress=False, **how)
    return learner


class Stop:
    """A writer that fails like a killed process: after the step was recorded, before its
    checkpoint.
    """

    def __init__(self, step: int):
        self.step = step

    def write(self, record) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


@KINDS
def test_the_same_run_twice_is_the_same_bit_for_bit(lora, tmp_path):
    one, two = run(tmp_path / "one", lora), run(tmp_path / "two", lora)
    assert lines(tmp_path / "one") == lines(tmp_path / "two") and len(lines(tmp_path / "one")) == 5
    assert (tmp_path / "one" / "groups.jsonl").read_bytes() == (
        tmp_path / "two" / "groups.jsonl"
    ).read_bytes()
    assert same(weights_of(one), weights_of(two))
    fit(
        GRPO(k=4, beta=0.02),
        new_learner(lora),
        TASK,
        replace(PLAN, seed=1),
        tmp_path / "three",
        progress=False,
    )
    assert lines(tmp_path / "three") != lines(tmp_path / "one")


@KINDS
# before any checkpoint, just after one, between two, before the last
@pytest.mark.parametrize("stop", [0, 2, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(lora, stop, tmp_path):
    whole = run(tmp_path / "whole", lora)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", lora, writers=[Stop(stop)])
    assert len(lines(tmp_path / "cut")) == stop + 1
    with open(tmp_path / "cut" / "metrics.jsonl", "ab") as file:
        file.write('{"step": 99, "loss": "é'.encode()[:-1])  # torn
    resumed = run(tmp_path / "cut", lora, resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert lines(tmp_path / "cut", "groups.jsonl") == lines(tmp_path / "whole", "groups.jsonl")
    assert same(weights_of(resumed), weights_of(whole))
    assert not [p.name for p in (tmp_path / "cut").iterdir() if p.name.startswith(".")]


def test_watched_tasks_are_measured_beside_the_tasks_own_and_not_in_its_place(tmp_path):
    plan = TrainConfig(steps=2, prompts=2, eval_every=1, eval_problems=6, eval_samples=2)
    others = {"inverted": replace(TASK, inverted=True)}  # right where the task's are wrong
    out = tmp_path / "run"
    fit(GRPO(k=4), new_learner(), TASK, plan, out, watch=others, progress=False)
    measured = read_run(out).metrics.dropna(subset=["eval_avg"])
    assert len(measured) == 2 and set(measured.eval_avg + measured.eval_inverted) == {1.0}
    for name in ("avg", "low", "high", "length", ""):
        with pytest.raises(WorkbenchError, match=f"cannot be called '{name}'"):
            fit(GRPO(k=4), new_learner(), TASK, plan, tmp_path / "no", watch={name: TASK})
    assert not (tmp_path / "no").exists()


def test_a_finished_run_can_go_on_for_longer(tmp_path):
    run(tmp_path / "long", plan=replace(PLAN, steps=7, eval_every=0))
    run(tmp_path / "run", plan=replace(PLAN, steps=4, eval_every=0))
    run(tmp_path / "run", plan=replace(PLAN, steps=7, eval_every=0), resume=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "long")
    assert read_run(tmp_path / "run").config["plan"]["steps"] == 7


def test_what_an_older_run_did_not_record_does_not_keep_it_from_going_on_and_what_it_did_does(
    tmp_path,
):
    run(tmp_path / "run", plan=replace(PLAN, steps=2, eval_every=0))

    def continue_from(steps, **config):
        fit(
            GRPO(k=4, beta=0.02),
            Learner(toys.tiny_policy()),
            TASK,
            replace(PLAN, steps=steps, eval_every=0),
            tmp_path / "run",
            config={"model": "./tiny/", **config},
            resume=True,
            progress=False,
        )

    continue_from(3, vllm=False)  # the first to record it
    assert len(lines(tmp_path / "run")) == 3
    with pytest.raises(WorkbenchError, match=r"other settings \(vllm: False -> True\)"):
        continue_from(4, vllm=True)
    # NaN
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps(line | {"entropy": None}) + "\n" for line in lines(tmp_path / "run"))
    )
    continue_from(4, vllm=False)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    out = tmp_path / "run"
    run(out)
    written = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    with pytest.raises(WorkbenchError, match="already holds a run"):
        run(out)
    with pytest.raises(WorkbenchError, match="belongs to another model"):
        fit(
            GRPO(k=4, beta=0.02),
            Learner(toys.tiny_policy(hidden=48)),
            TASK,
            PLAN,
            out,
            config={"model": "tiny"},
            resume=True,
            progress=False,
        )
    with pytest.raises(WorkbenchError, match=r"other settings \(beta: 0.02 -> 0.0\)"):
        run(out, method=GRPO(k=4), resume=True)
    with pytest.raises(WorkbenchError, match=r"other settings \(seed: 0 -> 1\)"):
        run(out, plan=replace(PLAN, seed=1), resume=True)
    with pytest.raises(WorkbenchError, match="other settings"):
        run(out, method=SFT(), resume=True)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == written
    for content in (b"", b"not a checkpoint", written["checkpoint.pt"][:-100]):
        (out / "checkpoint.pt").write_bytes(content)
        with pytest.raises(WorkbenchError, match="is not a checkpoint"):
            run(out, resume=True)
    torch.save({"weights": 1}, out / "checkpoint.pt")
    with pytest.raises(WorkbenchError, match="is not a checkpoint"):
        run(out, resume=True)


def test_resuming_what_has_not_begun(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".probe").touch()
    for out in (tmp_path / "none", tmp_path / "empty"):
        run(out, plan=replace(PLAN, steps=1, eval_every=0), resume=True)
        assert len(lines(out)) == 1
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(WorkbenchError, match="no checkpoint to resume from"):
        run(tmp_path / "photos", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(WorkbenchError, match="could not write to"):
        run(tmp_path / "file", resume=True)


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0),
        ("prompts", 0),
        ("rows", 0),
        ("updates", 0),
        ("checkpoint_every", 0),
        ("eval_samples", 0),
        ("eval_problems", 0),
        ("eval_every", -1),
        ("keep_groups", -1),
    ],
)
def test_bad_plans_are_refused(name, value):
    with pytest.raises(WorkbenchError, match=name):
        TrainConfig(**{name: value})


# ---- a real process, killed


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(model, problem file): a tiny model that answers any question with some digit, so that a
    tenth of its answers are right.
    """
    folder = tmp_path_factory.mktemp("digits")
    problems = folder / "digits.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"question": f"{i}?", "answer": i % 10, "solution": str(i * 7 % 10)}) + "\n"
            for i in range(300)
        )
    )

    task, learner = load_task(str(problems)), Learner(toys.tiny_policy(), OptimConfig(lr=1e-2))
    for step in range(60):
        update(SFT(), learner, task, task.problems("train", 32, step), (0, step), rows=None)
    return toys.saved(learner.policy, folder / "model"), problems


def command(digits, out: Path, *more: str) -> subprocess.Popen:
    model, problems = digits
    arguments = [
        "train",
        "grpo",
        "--model",
        str(model),
        "--task",
        str(problems),
        "--steps",
        "24",
        "--seed",
        "3",
        "--out",
        str(out),
        "--lora",
        "4",
        "--set",
        "lr=0.003",
        "prompts=4",
        "rows=16",
        "--set",
        "checkpoint_every=3",
        "--set",
        "eval_every=10",
        "--set",
        "eval_problems=4",
        "--set",
        "eval_samples=2",
        *more,
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_kill_9_in_the_middle_and_resume_gives_the_same_run(digits, tmp_path):
    # side by side: one thread each
    whole, cut = command(digits, tmp_path / "whole"), command(digits, tmp_path / "cut")
    moment = random.Random(os.getpid())
    target, metrics, deadline = (
        moment.randint(1, 12),
        tmp_path / "cut" / "metrics.jsonl",
        time.time() + 120,
    )
    while (
        (not metrics.exists() or metrics.read_bytes().count(b"\n") < target)
        and cut.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.002)
    time.sleep(moment.uniform(0, 0.05))
    cut.kill()
    assert cut.wait(30) == -signal.SIGKILL, (
        f"it ended before it was killed: {cut.stderr.read().decode()}"
    )
    resumed = command(digits, tmp_path / "cut", "--resume")
    for process in (whole, resumed):
        assert process.wait(120) == 0, process.stderr.read().decode()

    want, got = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [line["step"] for line in want] == list(range(24))
    # there was something to lose
    assert (
        sum(line["contrast"] > 0 for line in want) > 12
        and sum(line["grad_norm"] > 0 for line in want) > 12
    )
    assert got == want
    assert (tmp_path / "cut" / "groups.jsonl").read_bytes() == (
        tmp_path / "whole" / "groups.jsonl"
    ).read_bytes()
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / adapter).read_bytes() == (tmp_path / "whole" / adapter).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"clip": -1.0},
        {"weight_decay": -1.0},
        {"ema": 7.0},
    ],
)
def test_an_optimiser_that_cannot_be_is_refused(options):
    with pytest.raises(WorkbenchError, match="the optimiser takes"):
        OptimConfig(**options)


def test_options_are_finite():
    with pytest.raises(WorkbenchError, match="beta=inf is not a finite number"):
        with_options(GRPO, ["beta=inf"], "grpo")


class Never(GRPO):
    """Fails in its first step, as a method without its teacher does."""

    def sample(self, learner, task, problems, seed):
        raise WorkbenchError("not today")


def test_a_run_that_failed_in_its_first_step_may_be_begun_again(digits, tmp_path):
    model, problems = digits
    task, plan = load_task(str(problems)), TrainConfig(steps=1, prompts=2, eval_every=0)
    with pytest.raises(WorkbenchError, match="not today"):
        fit(Never(k=2), Learner(load_policy(model)), task, plan, tmp_path / "run", progress=False)
    with pytest.raises(WorkbenchError, match="other settings"):
        fit(
            GRPO(k=3),
            Learner(load_policy(model)),
            task,
            plan,
            tmp_path / "run",
            progress=False,
            resume=True,
        )
    fit(GRPO(k=2), Learner(load_policy(model)), task, plan, tmp_path / "run", progress=False)
    assert len(lines(tmp_path / "run")) == 1


def test_a_problem_file_takes_a_shorter_limit(digits):
    assert load_task(f"{digits[1]}:max_new=7").max_new == 7
    with pytest.raises(WorkbenchError, match="max_new=x is not a whole number"):
        load_task(f"{digits[1]}:max_new=x")


@pytest.mark.parametrize(
    "name, text", [("config.json", "[]"), ("config.json", "{"), ("tokenizer.json", "{}")]
)
def test_a_damaged_model_folder_is_one_sentence(tmp_path, name, text):
    folder = toys.saved(toys.tiny_policy(), tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(WorkbenchError, match="could not load the model"):
        load_policy(folder)


@pytest.mark.parametrize("missing", ["step", "learner", "config"])
def test_a_checkpoint_that_lacks_something_is_one_sentence(digits, tmp_path, missing):
    model, problems = digits
    task, plan, run = (
        load_task(str(problems)),
        TrainConfig(steps=1, prompts=2, eval_every=0),
        tmp_path / "run",
    )
    fit(GRPO(k=2), Learner(load_policy(model)), task, plan, run, progress=False)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    del saved[missing]
    torch.save(saved, run / "checkpoint.pt")
    with pytest.raises(WorkbenchError, match="is not a checkpoint of the workbench"):
        fit(GRPO(k=2), Learner(load_policy(model)), task, plan, run, progress=False, resume=True)
