"""vLLM as the second engine, with a stand-in for vLLM: its calls and rules that are used here
(0.33.0), on top of a separately loaded policy.

The stand-in holds adapters as vLLM does, by their number, and never reads one again: an engine that
sent the adapter late, or under an old number, would sample from an old policy.
"""

import dataclasses
import json
import os
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch
import toys
from peft import PeftModel

from workbench.app.cli import main
from workbench.core import WorkbenchError
from workbench.methods.grpo import GRPO
from workbench.model import distributed
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.rollouts import sampling
from workbench.rollouts import vllm as vllm_engine
from workbench.rollouts.sampling import generate
from workbench.rollouts.vllm import VLLM
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update

TASK = toys.FirstCharacter(wanted=toys.HALF, max_new=6)
PROMPTS = [tuple(range(10, 10 + n)) for n in (5, 9, 7)]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True


@dataclasses.dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class LLM:
    made: list = []  # every one, for the tests to look at
    room = 1024

    def __init__(
        self,
        model,
        *,
        enable_lora,
        max_lora_rank,
        dtype,
        gpu_memory_utilization,
        max_model_len,
        logprobs_mode,
        distributed_executor_backend,
        trust_remote_code,
    ):
        assert trust_remote_code is False
        assert enable_lora and max_model_len == -1 and logprobs_mode == "raw_logprobs"
        if max_lora_rank not in (1, 8, 16, 32, 64, 128, 256, 320, 512):
            raise ValueError(
                "1 validation error for LoRAConfig\n  Input should be 1, 8, 16, 32, 64, "
                "128, 256, 320 or 512"
            )
        self.model, self.rank, self.dtype, self.memory = (
            model,
            max_lora_rank,
            dtype,
            gpu_memory_utilization,
        )
        self.backend = distributed_executor_backend
        self.model_config = types.SimpleNamespace(max_model_len=self.room)
        self.base = load_policy(model)
        self.held, self.requests, self.prompts = {}, [], {}
        LLM.made.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        self.requests.append(lora_request)
        policy = self.base if lora_request is None else self.adapted(lora_request)
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            assert (
                params.ignore_eos
                and params.logprobs == 0
                and not params.detokenize
                and not use_tqdm
            )
            policy.stop_ids = frozenset(params.stop_token_ids)
            [[s]] = generate(
                policy,
                [tuple(prompt["prompt_token_ids"])],
                [[params.seed]],
                max_new=params.max_tokens,
                temperature=params.temperature,
            )
            logprobs = [
                {token: types.SimpleNamespace(logprob=lp)} for token, lp in zip(s.ids, s.logprobs)
            ]
            outputs.append(
                types.SimpleNamespace(
                    outputs=[types.SimpleNamespace(token_ids=list(s.ids), logprobs=logprobs)]
                )
            )
        return outputs

    def adapted(self, request):
        assert (
            request.lora_int_id > 0
            and self.prompts.setdefault((request.lora_name, request.lora_path), request.lora_int_id)
            == request.lora_int_id
        )
        if request.lora_int_id not in self.held:
            policy = load_policy(self.model)
            policy.model = PeftModel.from_pretrained(policy.model, request.lora_path).eval()
            self.held[request.lora_int_id] = policy
        return self.held[request.lora_int_id]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.saved(tiny.policy(), tmp_path_factory.mktemp("models") / "tiny")


def gpu(there=True):
    """For the engine alone: with a GPU the rest would load its models there."""
    return types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_available=lambda: there),
        bfloat16=torch.bfloat16,
        float16=torch.float16,
    )


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, on a machine that seems to have a GPU."""
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = LoRARequest
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    for name, found in (
        ("vllm", module),
        ("vllm.lora", types.ModuleType("vllm.lora")),
        ("vllm.lora.request", request),
    ):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(vllm_engine, "torch", gpu())
    LLM.made.clear()


def made(folder, rank=4, lr=1e-2, shaken=True):
    """A learner whose tokens the stand-in writes, and the stand-in."""
    learner = Learner(load_policy(folder), OptimConfig(lr=lr), lora=rank)
    if shaken:
        tiny.shake_adapter(learner.policy.model)
    learner.policy.engine = VLLM(learner.policy)
    return learner, LLM.made[-1]


def own(policy, *args, **options):
    """What the in-process engine writes."""
    engine, policy.engine = policy.engine, None
    try:
        return generate(policy, *args, **options)
    finally:
        policy.engine = engine


def same(found, expected):
    assert [[(s.ids, s.finished) for s in row] for row in found] == [
        [(s.ids, s.finished) for s in row] for row in expected
    ]
    for a, b in zip((s for row in found for s in row), (s for row in expected for s in row)):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and len(a.logprobs) == len(a.ids)


# --- the same samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0])
def test_samples_are_those_of_the_policy_with_its_adapter(folder, vllm, temperature):
    """Token ids, log-probs at temperature 1, who finished; a prompt without seeds, and budgets of
    their own.
    """
    learner, _llm = made(folder)
    arguments, options = (
        (PROMPTS, [[1, 2, 3], [], [4]]),
        {"max_new": [40, 9, 5], "temperature": temperature},
    )
    found = generate(learner.policy, *arguments, **options)
    same(found, own(learner.policy, *arguments, **options))
    assert [len(row) for row in found] == [3, 0, 1] and len(found[2][0].ids) <= 5
    # the base without it
    assert found != own(Learner(load_policy(folder)).policy, *arguments, **options)


def test_some_end_their_turn_and_some_do_not(folder, vllm):
    learner, _llm = made(folder)
    [samples] = generate(learner.policy, PROMPTS[:1], [list(range(24))], max_new=40)
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert (s.ids[-1] in learner.policy.stop_ids) == s.finished and (
            s.finished or len(s.ids) == 40
        )


def test_a_sample_is_the_same_in_another_batch(folder, vllm):
    learner, _llm = made(folder)
    together = generate(learner.policy, PROMPTS, [[1], [2], [3]], max_new=8)
    assert generate(learner.policy, [PROMPTS[1]], [[2]], max_new=8) == [together[1]]


def test_nothing_to_write(folder, vllm):
    learner, _llm = made(folder)
    assert generate(learner.policy, [], [], max_new=8) == [] and generate(
        learner.policy, PROMPTS[:1], [[]], max_new=8
    ) == [[]]


# --- the adapter ----------------------------------------------------------------------------------


def gaps(learner):
    """|sampler - trainer| log-prob, the largest of two updates that really learn."""
    found = []
    for step in range(2):
        record = update(
            GRPO(k=4), learner, TASK, TASK.problems("train", 4, step), (0, step), step=step
        )
        assert record.metrics["grad_norm"] > 1e-3
        found.append(record.metrics["gap_max"])
    return found


def test_the_adapter_just_trained_is_sampled_from(folder, vllm):
    learner, llm = made(folder, lr=0.1)
    before = generate(learner.policy, PROMPTS, [[1], [2], [3]], max_new=8)
    assert max(gaps(learner)) < 1e-4
    assert sorted(llm.held) == [1, 2]
    after = generate(learner.policy, PROMPTS, [[1], [2], [3]], max_new=8)
    assert after != before and sorted(llm.held) == [1, 2, 3]
    same(after, own(learner.policy, PROMPTS, [[1], [2], [3]], max_new=8))


def test_without_the_hand_over_the_gap_shows_it(folder, vllm, monkeypatch):
    """The gap above is small because the adapter went over, and not because the updates are."""
    learner, llm = made(folder, lr=0.1)
    monkeypatch.setattr(distributed, "fingerprint", lambda tensors: [0])  # "nothing has changed"
    first, second = gaps(learner)
    assert first < 1e-4 and second > 0.1 and sorted(llm.held) == [1]


def test_the_adapter_goes_over_once_a_change(folder, vllm):
    learner, llm = made(folder)
    for seed in range(3):
        generate(learner.policy, PROMPTS[:1], [[seed]], max_new=4)
    assert [request.lora_int_id for request in llm.requests] == [1, 1, 1]
    tiny.shake_adapter(learner.policy.model, seed=2)
    generate(learner.policy, PROMPTS[:1], [[0]], max_new=4)
    last = llm.requests[-1]
    assert (last.lora_int_id, last.lora_name) == (2, "default-2")
    kept = Path(last.lora_path).parent
    assert [path.name for path in kept.iterdir()] == ["2"]  # the older one is gone
    assert json.loads((kept / "2" / "adapter_config.json").read_text())["r"] == 4


def test_reference_and_teacher(folder, vllm):
    """The reference is the base without an adapter.

    The teacher is sent as another adapter, and the policy's goes over again after it.
    """
    learner, llm = made(folder)
    arguments = (PROMPTS, [[1], [2], [3]])
    policy = generate(learner.policy, *arguments, max_new=8)
    found = {}
    for which in ("reference", "teacher"):
        with learner.weights(which) as weights:
            found[which] = generate(weights, *arguments, max_new=8)
            same(found[which], own(weights, *arguments, max_new=8))
    assert found["reference"] != policy
    assert generate(learner.policy, *arguments, max_new=8) == policy
    assert [request and request.lora_name for request in llm.requests] == [
        "default-1",
        None,
        "default-2",
        "default-3",
    ]
    learner.update_teacher()
    with learner.weights("teacher") as weights:
        same(generate(weights, *arguments, max_new=8), own(weights, *arguments, max_new=8))
    assert llm.requests[-1].lora_name == "default-4"


def test_every_update_is_weighed(folder, vllm, monkeypatch):
    """Where the sampler's log-probs are off by 0.5 the gradient is that of the weighed channel:
    e^0.5 times it.
    """
    learner, _ = made(folder)
    assert not learner.policy.trains_in_fp32 and load_policy(folder).trains_in_fp32
    norms = {}
    for off in (0.0, 0.5):
        plain = VLLM._sample
        with monkeypatch.context() as patch:
            patch.setattr(
                VLLM,
                "_sample",
                lambda self, output: dataclasses.replace(
                    plain(self, output),
                    logprobs=tuple(lp - off for lp in plain(self, output).logprobs),
                ),
            )
            learner, _llm = made(folder)
            metrics = update(GRPO(k=4), learner, TASK, TASK.problems("train", 4, 0), (0, 0)).metrics
        assert metrics["gap_mean"] == pytest.approx(off, abs=1e-4)
        norms[off] = metrics["grad_norm"]
    assert norms[0.5] / norms[0.0] == pytest.approx(2.718281828**0.5, rel=1e-3)


# --- how vLLM is set up ---------------------------------------------------------------------------


@pytest.mark.parametrize("rank, room", [(1, 8), (4, 8), (8, 8), (17, 32)])
def test_room_for_the_rank(folder, vllm, rank, room):
    assert made(folder, rank=rank)[1].rank == room


def test_one_process_or_many(folder, vllm, monkeypatch):
    _, alone = made(folder)
    assert (alone.backend, alone.model, alone.memory, alone.dtype) == (
        "uni",
        str(folder),
        vllm_engine.MEMORY,
        torch.float16,
    )
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    learner = Learner(load_policy(folder), lora=4)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    VLLM(learner.policy, memory=0.2)
    assert (LLM.made[-1].backend, LLM.made[-1].memory) == ("external_launcher", 0.2)


def test_smollm2_goes_in_as_the_folder_that_it_is_converted_to(folder, vllm, monkeypatch):
    monkeypatch.setattr(
        vllm_engine, "source_of", lambda name: folder if name == "smollm2" else name
    )
    policy = Learner(load_policy(folder), lora=4).policy
    policy.name = "smollm2"
    VLLM(policy)
    assert LLM.made[-1].model == str(folder)


# --- refusals -------------------------------------------------------------------------------------


def test_refusals(folder, vllm, monkeypatch):
    def refused(policy, sentence):
        with pytest.raises(WorkbenchError, match=sentence) as caught:
            VLLM(policy)
        assert "\n" not in str(caught.value)

    refused(load_policy(folder), "adapters, not all weights: add --lora R")
    learner = Learner(load_policy(folder), lora=513)
    refused(
        learner.policy,
        "could not load .*tiny with 0.4 of the GPU's memory: .*Input should be 1, 8,",
    )
    policy = Learner(load_policy(folder), lora=4).policy
    policy.unsloth = True
    refused(policy, "different versions of torch")
    policy.unsloth = False
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        refused(policy, "vLLM cannot be imported here .*environment of its own")
    with monkeypatch.context() as patch:
        patch.setattr(vllm_engine, "torch", gpu(there=False))
        refused(policy, "needs an NVIDIA GPU")


def test_four_bits_are_refused(vllm):
    model = Path(__file__).parent.parent / "data" / "organism" / "0.4m"
    learner = Learner(load_policy(model, four_bit=True), lora=2)
    with pytest.raises(WorkbenchError, match="does not load bitsandbytes' 4-bit weights"):
        VLLM(learner.policy)


def test_an_adapter_that_vllm_does_not_take(folder, vllm, monkeypatch):
    def refuse(*_):
        raise ValueError("expected target modules in ['q_proj'],\nbut received ['dense']")

    learner, _llm = made(folder)
    monkeypatch.setattr(LLM, "adapted", refuse)
    with pytest.raises(
        WorkbenchError,
        match=r"vLLM does not take the adapter: expected target modules in \['q_proj'\], but "
        r"received",
    ):
        generate(learner.policy, PROMPTS[:1], [[1]], max_new=4)


def test_what_does_not_fit(folder, vllm, monkeypatch):
    monkeypatch.setattr(LLM, "room", 20)
    learner, _llm = made(folder)
    assert len(generate(learner.policy, PROMPTS, [[1], [1], [1]], max_new=[15, 11, 13])) == 3
    with pytest.raises(
        WorkbenchError,
        match="a prompt of 9 tokens and 12 new ones do not fit the 20 that vLLM has room for",
    ):
        generate(learner.policy, PROMPTS, [[1], [1], [1]], max_new=12)
    with pytest.raises(
        WorkbenchError,
        match="a prompt of 5 tokens and 200 new ones do not fit the model's context of 128",
    ):
        generate(learner.policy, PROMPTS[:1], [[1]], max_new=200)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--lora", "2"], "vLLM cannot be imported here"),
        ([], "add --lora R"),
        (["--lora", "2", "--4bit"], "leave out --4bit or --vllm"),
        (["--lora", "2", "--unsloth"], "leave out --unsloth or --vllm"),
        (["--lora", "2", "--shard"], "leave out --shard or --vllm"),
    ],
)
def test_the_command_line_says_why_not_before_it_loads_anything(
    folder, words, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(vllm_engine, "torch", gpu())
    assert (
        main(
            [
                "train",
                "grpo",
                "--model",
                str(folder),
                "--vllm",
                *words,
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        said.startswith("workbench: ")
        and sentence in said
        and said.count("\n") == 1
        and not (tmp_path / "run").exists()
    )


def test_the_command_line_trains_with_it(folder, vllm, tmp_path):
    assert (
        main(
            [
                "train",
                "grpo",
                "--model",
                str(folder),
                "--vllm",
                "--lora",
                "2",
                "--steps",
                "2",
                "--out",
                str(tmp_path / "run"),
                "--set",
                "k=2",
                "--set",
                "prompts=2",
                "--set",
                "eval_every=1",
                "--set",
                "eval_problems=2",
                "--set",
                "eval_samples=1",
            ]
        )
        == 0
    )
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    # two steps, three evaluations
    assert (
        len(lines) == 2
        and all(line["gap_max"] < 1e-4 for line in lines)
        and len(LLM.made[-1].requests) == 5
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and vLLM")
def test_vllm_itself():
    """What the stand-in stands for: trained and sampled in turns, vLLM's log-probs stay near the
    trainer's.
    """
    pytest.importorskip("vllm")
    learner = Learner(
        load_policy(Path(__file__).parent.parent / "data" / "organism" / "3m", frozen=True),
        OptimConfig(lr=1e-2),
        lora=8,
    )
    learner.policy.engine = VLLM(learner.policy)
    task = Arithmetic()
    for step in range(3):
        metrics = update(
            GRPO(k=8), learner, task, task.problems("train", 8, step), (0, step), step=step
        ).metrics
        assert metrics["grad_norm"] > 0 and metrics["gap_mean"] < 0.05
    with learner.weights("reference") as weights:
        assert generate(weights, PROMPTS, [[1], [2], [3]], max_new=8, temperature=0)


def test_the_in_process_engine_is_left_alone(folder):
    policy = load_policy(folder)
    assert policy.engine is None and sampling.generate(policy, PROMPTS[:1], [[1]], max_new=4)
