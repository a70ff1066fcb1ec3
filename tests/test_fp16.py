"""Computing in fp16, where a GPU has no bf16: the gradient of every method, and the loss scale."""

import json

import pytest
import tiny
import torch
import toys

from workbench.core import WorkbenchError
from workbench.methods import METHODS, find
from workbench.methods.grpo import GRPO
from workbench.model import loading, loss_scale
from workbench.model.batch import collate, rescore
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loss_scale import LossScale
from workbench.paths import ORGANISM
from workbench.rollouts.sampling import generate
from workbench.training.run import TrainConfig, fit
from workbench.training.update import accumulate, update

TOKENS = 16_384  # of the batch whose denominators a micro-batch has
FP16 = torch.float16


class Task(toys.FirstCharacter):
    """With what TAPO asks for."""

    def synthesis(self, problem, wrong, right):
        return problem.messages


def learner(dtype=torch.float32, **options):
    """An adapter that already says something, in fp32, on a base in ``dtype``; rows never end."""
    policy, expert = (tiny.policy(seed=seed, initializer_range=0.15) for seed in (0, 1))
    for each in (policy, expert):
        each.model.to(dtype)
        each.stop_ids = frozenset()
    made = Learner(policy, OptimConfig(lr=1e-2), lora=4, expert=expert, **options)
    tiny.shake_adapter(policy.model)
    return made


def gradient(learner, method, batch):
    accumulate(method, learner, [batch])
    if learner.loss_scale:
        learner.loss_scale.remove(learner.parameters)
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def error(method, scale):
    """Relative, of the gradient in fp16 of one micro-batch, as a part of a batch of TOKENS."""
    exact = learner()
    task = Task(toys.HALF, max_new=32)
    groups = method.sample(exact, task, task.problems("train", 2, 0), (0, 0))
    credits = method.credit(groups, exact)
    copies = -(-TOKENS // sum(len(credit.pg) for credit in credits))
    batch = collate(credits * copies, exact.policy.pad_id, 8)[0]
    half = learner(FP16)
    assert {p.dtype for p in half.parameters} == {torch.float32}
    half.loss_scale = LossScale(scale)
    expected, ours = gradient(exact, method, batch), gradient(half, method, batch)
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_gradient_survives_fp16(name):
    """Seen on this model with whole batches of 16,384 tokens: .001 (SDPO) to .004 (OPD)."""
    assert error(find(name)(), LossScale().value) <= 0.03


def test_without_a_scale_it_would_not():
    """A student near its teacher: the smallest gradients."""
    unscaled, scaled = (error(find("sdpo")(), scale) for scale in (2.0**-8, 2.0**16))
    assert scaled < 0.01 < 0.1 < unscaled


def test_sampler_and_trainer_agree_in_fp16():
    """As near as rounding to 11 bits lets them, and nearer than in bf16."""
    gaps = {}
    for dtype in (FP16, torch.bfloat16):
        policy = learner(dtype).policy
        prompts = [tuple(range(10, 22)), tuple(range(30, 37))]
        task, rollouts = Task(toys.HALF), []
        problems = task.problems("train", 2, 0)
        for prompt, samples in zip(prompts, generate(policy, prompts, [[1], [2]], max_new=24)):
            rollouts += [
                toys.Rollout(prompt, s.ids, s.logprobs, "", task.grade(problems[0], "7"))
                for s in samples
            ]
        trainer = torch.tensor([x for logp, _ in rescore(policy, rollouts) for x in logp])
        sampler = torch.tensor([x for rollout in rollouts for x in rollout.logprobs])
        gaps[dtype] = float((trainer - sampler).abs().mean())
    assert 0 < gaps[FP16] < 0.02 and gaps[FP16] < gaps[torch.bfloat16] / 2


def test_the_scale_follows_what_fits(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale = LossScale(8.0)
    values = []
    for finite in (True, True, False, True, True, True, True):
        scale.follow(finite)
        values.append(scale.value)
    assert values == [8, 8, 4, 4, 4, 8, 8]
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            LossScale(value)


def test_a_gradient_that_overflows_is_skipped_and_halves_the_scale():
    half = learner(FP16)
    half.loss_scale = LossScale(2.0**40)
    before = [p.detach().clone() for p in half.parameters]
    task = Task(toys.HALF, max_new=4)
    record = update(GRPO(), half, task, task.problems("train", 2, 0), (0, 0))
    assert record.metrics["skipped"] == 1 and record.metrics["loss_scale"] == 2.0**39
    assert all(map(torch.equal, before, half.parameters))


def test_the_step_is_the_unscaled_one():
    """Clipping, norm and update see no scale: adapters and norm as with another scale."""
    task, outcomes = Task(toys.HALF, max_new=4), []
    for scale in (2.0**10, 2.0**14):
        half = learner(FP16)
        half.loss_scale = LossScale(scale)
        record = update(GRPO(), half, task, task.problems("train", 2, 0), (0, 0))
        weights = torch.cat([p.detach().flatten() for p in half.parameters])
        outcomes.append((record.metrics["grad_norm"], weights))
    (norm, weights), (other, others) = outcomes
    assert norm == pytest.approx(other, rel=1e-3)
    torch.testing.assert_close(weights, others, atol=1e-3, rtol=0)


def run(folder, steps, resume=False, scale=2.0**40, dtype=FP16):
    half = learner(dtype)
    if half.loss_scale:
        half.loss_scale = LossScale(scale)
    plan = TrainConfig(steps=steps, prompts=2, eval_every=0, checkpoint_every=1)
    fit(GRPO(k=4), half, Task(toys.HALF, max_new=4), plan, folder, resume=resume, progress=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return half, [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines
    ]


def test_a_resumed_run_keeps_its_scale(tmp_path):
    _, whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    _, parts = run(tmp_path / "parts", 4, resume=True, scale=2.0**16)
    assert parts == whole
    assert [line["loss_scale"] for line in whole] == [2.0**n for n in (39, 38, 37, 36)]
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float16"


def test_a_run_goes_on_where_the_gpu_computes_in_another_type(tmp_path):
    run(tmp_path / "run", 1, scale=2.0**16)
    other, lines = run(tmp_path / "run", 2, resume=True, dtype=torch.bfloat16)
    assert len(lines) == 2 and other.loss_scale is None and "loss_scale" not in lines[1]
    _, lines = run(tmp_path / "run", 3, resume=True, scale=2.0**16)
    assert lines[2]["loss_scale"] == 2.0**16


def test_only_adapters_are_trained_on_16_bits():
    policy = tiny.policy()
    policy.model.to(FP16)
    with pytest.raises(WorkbenchError, match=r"cannot be trained \(4 or 16 bits\)"):
        Learner(policy)


def test_states_too_large_for_fp16_are_refused():
    policy = tiny.policy()
    policy.model.to(FP16)
    for p in policy.model.parameters():
        p.mul_(400)
    with pytest.raises(WorkbenchError, match="its states are too large for fp16"):
        policy.find_logits([(1.0, 0.0)])


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu", "mps"])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_which_16_bits(device, has_bf16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    without = FP16 if "cuda" in device else None
    bf16 = None if device == "mps" else torch.bfloat16
    assert loading.half_type(device) == (bf16 if has_bf16 else without)
    compute = loading._nf4(device).bnb_4bit_compute_dtype
    assert compute == (loading.half_type(device) or torch.float32)


def test_a_frozen_model_on_a_card_without_bf16_is_fp16(monkeypatch, tmp_path):
    """As on a T4; ``meta`` stands for the device that is not here."""
    folder = toys.saved(tiny.policy(), tmp_path / "model")
    asked = {}

    def take(model, source, adapter, **how):
        asked.update(how)
        raise RuntimeError("enough")

    monkeypatch.setattr(loading, "_from_pretrained", take)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for how, dtype in (({"frozen": True}, FP16), ({"four_bit": True}, FP16), ({}, torch.float32)):
        with pytest.raises(WorkbenchError):
            load_with(folder, **how)
        assert asked["dtype"] == dtype
    with pytest.raises(WorkbenchError):
        loading.load_policy(folder, device="cpu", frozen=True)
    assert asked["dtype"] == torch.float32


@pytest.mark.parametrize("dtype", [FP16, torch.bfloat16])
def test_four_bits_are_what_their_layers_compute_in_and_not_what_the_head_is_in(
    dtype, tmp_path, monkeypatch
):
    """The head is in fp32 where an adapter trained it, where all else is, on a CPU."""
    monkeypatch.setattr(loading, "half_type", lambda device: dtype)
    policy = loading.load_policy(ORGANISM / "0.4m", four_bit=True)
    assert policy.head.dtype == torch.float32
    assert policy.dtypes == {torch.float32, dtype}
    quantised = Learner(policy, OptimConfig(lr=1e-2), lora=4)
    assert (quantised.loss_scale is not None) == (dtype == FP16)
    plan = TrainConfig(steps=1, prompts=2, eval_every=0)
    task = Task(toys.HALF, max_new=4)
    fit(GRPO(k=4), quantised, task, plan, tmp_path / "run", progress=False)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def load_with(folder, **how):
    return loading.load_policy(folder, device="cuda", **how)
