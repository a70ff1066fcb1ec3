"""vLLM as the second engine where there is none, or no GPU: refusals, how it is set up, and when
the adapter goes over.

vLLM itself is run by tests/test_vllm.py. Here a stand-in holds adapters as it does, by their
number, and never reads one again: an engine that sent the adapter late, or under an old number,
would sample from an old policy.
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
from workbench.training.update import update

TASK = toys.FirstCharacter(wanted=toys.HALF, max_new=6)
PROMPTS = [tuple(range(10, 10 + n)) for n in (5, 9, 7)]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    top_p: float = 1.0
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
    is_3d_lora_weight: bool = False


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
        enable_mixed_moe_lora_format,
    ):
        assert trust_remote_code is False and not enable_mixed_moe_lora_format
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

    def apply_model(self, function):
        model = torch.nn.Module()
        model.compute_logits = None
        return [function(model)]

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
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: False)
    for name, found in (
        ("vllm", module),
        ("vllm.platforms", platforms),
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


# --- the adapter ----------------------------------------------------------------------------------


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
        platform = sys.modules["vllm.platforms"].current_platform
        patch.setattr(platform, "is_cpu", lambda: True)
        VLLM(policy)  # its build for CPUs


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


def test_the_in_process_engine_is_left_alone(folder):
    policy = load_policy(folder)
    assert policy.engine is None and sampling.generate(policy, PROMPTS[:1], [[1]], max_new=4)


@pytest.mark.parametrize("holes", [[], [1, 3]])
def test_ids_without_a_token_are_neither_sampled_nor_counted(holes):
    """Behind the tokenizer's last token, and between its tokens."""
    model = types.SimpleNamespace(compute_logits=lambda hidden: hidden.clone())
    vllm_engine._leave_out(model, rows=4, holes=holes)
    logits = model.compute_logits(torch.ones(2, 6))
    left = [i for i in range(4) if i not in holes]
    assert torch.isfinite(logits).sum() == 2 * len(left)
    torch.testing.assert_close(
        logits.softmax(-1)[:, left], torch.full((2, len(left)), 1 / len(left))
    )
