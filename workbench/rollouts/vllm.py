"""Who writes the tokens, on a CUDA GPU: vLLM, a second engine behind ``sampling.generate``, for a
policy with LoRA adapters.

    learner.policy.engine = VLLM(learner.policy)        or: workbench train METHOD --lora 16 --vllm
                                                        ...

The base weights are loaded once and never move. Before it samples, the engine looks whether the
adapter in force has changed, and only then saves it in peft's format and sends the folder. Each
change has a new number, name and path: vLLM holds adapters by number, and what it keeps of prompts
by name and path, so nothing of an older policy is left. The EMA teacher is sent so, too; the
reference is the base with none, or the adapter that the run started from.

vLLM's kernels are not the trainer's, and they round the adapter to 16 bits. So
``Policy.trains_in_fp32`` is false, and every update weighs the policy gradient by min(pi_trainer /
pi_sampler, 2) (training/update.py); ``gap_mean`` and ``gap_max`` show how far apart the two are.

What it cannot promise: a sample draws from its own seed whatever runs beside it, but the last bits
of its logits depend on that, and where one token tips, all after it differ. A run made twice,
resumed, or on another number of processes therefore has other tokens here and there.

Under torchrun each process has an engine of its own on its own GPU. They agree on the size of their
caches and then sample without each other.

Written for vLLM 0.32 and 0.33. Its build for CPUs runs the same code (``make test-vllm``,
tests/test_vllm.py); it has not yet run on a GPU.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from workbench.core import WorkbenchError, refuse_if
from workbench.model import distributed
from workbench.model.loading import source_of
from workbench.model.policy import Policy
from workbench.rollouts.sampling import Sample

MEMORY = 0.4  # vLLM's share of the GPU
# LoRA ranks that vLLM reserves room for; a smaller adapter fits as well
ROOMS = (8, 16, 32, 64, 128, 256, 320, 512)
_NO_GPU = "vLLM needs an NVIDIA GPU: leave --vllm out, and the workbench writes the tokens itself"


def names(*, lora: bool, four_bit: bool, unsloth: bool, sharded: bool):
    """What is used of vLLM:

    LLM, SamplingParams, LoRARequest. Raises WorkbenchError where it cannot run, or not for such a
    policy.
    """
    refuse_if(
        not lora,
        "vLLM is sent adapters, not all weights: add --lora R, the rank of the adapter to train",
    )
    refuse_if(
        four_bit,
        "vLLM does not load bitsandbytes' 4-bit weights, and others are not those that "
        "are trained: leave out --4bit or --vllm",
    )
    refuse_if(
        unsloth, "Unsloth and vLLM want different versions of torch: leave out --unsloth or --vllm"
    )
    refuse_if(
        sharded,
        "vLLM holds all weights on every GPU, which sharding is to avoid: leave out "
        "--shard or --vllm",
    )
    # Else vLLM starts a process of its own, which runs a script without a __main__ guard once more,
    # and under torchrun would not know its GPU.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
    except Exception as error:  # not installed, or built for another torch or CUDA
        if not torch.cuda.is_available():
            raise WorkbenchError(_NO_GPU) from error
        raise WorkbenchError(
            "vLLM cannot be imported here (it wants an environment of its own: README.md): "
            f"{_line(error)}"
        ) from error
    refuse_if(not torch.cuda.is_available() and not current_platform.is_cpu(), _NO_GPU)
    return LLM, SamplingParams, LoRARequest


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _room(configs: Iterable) -> int:
    """For the largest rank, which may be that of a mixture's experts: peft gives the one tensor
    that holds them all a rank of its own.
    """
    ranks = [rank for config in configs for rank in (config.r, *config.rank_pattern.values())]
    return next((room for room in ROOMS if room >= max(ranks)), max(ranks))


def _loaded(LLM, dtype: torch.dtype, options: dict):
    """In 16 bits: its LoRA kernels know no other.

    fp16 is nearer to fp32 than bf16 is, but vLLM refuses it for some families (Gemma 3).
    """
    if dtype == torch.bfloat16:
        return LLM(dtype=dtype, **options)
    try:
        return LLM(dtype=torch.float16, **options)
    except ValueError as error:
        if "does not support float16" not in str(error):
            raise
        return LLM(dtype=torch.bfloat16, **options)


def _refuse_unknown_experts(policy: Policy, llm) -> None:
    """vLLM leaves out, without a word, adapters of experts that it has under another name
    (Mixtral's ``block_sparse_moe.experts``).
    """
    wrapped = [n for n, module in policy.model.named_modules() if hasattr(module, "parameter_name")]
    experts = {_place(name.removesuffix(".base_layer")) for name in wrapped}
    [places] = llm.apply_model(_places)
    refuse_if(
        experts - places,
        f"vLLM has the experts of {policy.name} under another name, and would sample without "
        "their adapter: leave --vllm out",
    )


def _places(model: nn.Module) -> set[str]:
    return {_place(name) for name, _ in model.named_modules()}


def _place(name: str) -> str:
    """The last two names of a module's path: what is before them depends on the wrapper."""
    return ".".join(name.split(".")[-2:])


def _leave_out(model: nn.Module, rows: int, holes: Sequence[int]) -> None:
    """What is behind the tokenizer's last token, and the ids before it that have none, are neither
    sampled nor counted, as by ``policy.head``.
    """
    plain = model.compute_logits

    def compute_logits(*args, **options):
        logits = plain(*args, **options)
        if logits is not None:  # all ranks but one
            logits[..., rows:] = -math.inf
            logits[..., holes] = -math.inf
        return logits

    model.compute_logits = compute_logits


class VLLM:
    """vLLM on this process's GPU, for ``policy`` with whichever adapter is in force.

    ``memory``: vLLM's share of the GPU, for a second copy of the base weights and for its cache. It
    is held while the policy trains: the trainer has the rest. A GGUF file and smollm2 it loads from
    the folders that they are converted to. Raises WorkbenchError as ``names`` does, and where vLLM
    does not load the model or take the adapter's rank.
    """

    def __init__(self, policy: Policy, memory: float = MEMORY):
        adapters = getattr(policy.model, "peft_config", {})
        LLM, self._params, self._request = names(
            lora=bool(adapters),
            four_bit=getattr(policy.base, "is_quantized", False),
            unsloth=policy.unsloth,
            sharded=not policy.gathered,
        )
        # of a mixture's experts, in the form that peft saves them in: one tensor for all
        fused = any(config.target_parameters for config in adapters.values())
        options = {
            "model": str(source_of(policy.name)),
            "trust_remote_code": False,
            "enable_lora": True,
            "max_lora_rank": _room(adapters.values()),
            "enable_mixed_moe_lora_format": fused,
            "gpu_memory_utilization": memory,
            "max_model_len": -1,  # as long as fits
            "logprobs_mode": "raw_logprobs",  # before the temperature
            # The first takes its rank and its GPU from torchrun.
            "distributed_executor_backend": "external_launcher"
            if distributed.size() > 1
            else "uni",
        }
        try:
            self._llm = _loaded(LLM, policy.head.dtype, options)
        except Exception as error:  # a model fails in as many ways as there are files in it
            raise WorkbenchError(
                f"vLLM could not load {policy.name} with {memory:g} of the GPU's memory: "
                f"{_line(error)}"
            ) from error
        _refuse_unknown_experts(policy, self._llm)
        ids = {"rows": len(policy.head), "holes": policy.holes.tolist()}
        self._llm.apply_model(partial(_leave_out, **ids))
        self.policy, self._folder = policy, TemporaryDirectory(prefix="workbench-adapters-")
        self._sent: dict[str, tuple] = {}  # adapter: (its weights' fingerprint, vLLM's handle)
        self._number = 0

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[Sequence[int]],
        budgets: Sequence[int],
        temperature: float,
        top_p: float = 1.0,
    ) -> list[list[Sample]]:
        """What ``sampling.generate`` returns.

        ``budgets``: most new tokens, for each prompt. Raises WorkbenchError when they do not fit
        the cache.
        """
        rows = []
        for prompt, prompt_seeds, budget in zip(prompts, seeds, budgets):
            self._refuse_too_long(prompt, budget)
            rows += [(list(prompt), seed, budget) for seed in prompt_seeds]
        refuse_if(
            self.policy.stop_sequence,
            f"turns of {self.policy.name} end with several tokens, which vLLM is not asked to "
            "look for here: leave --vllm out",
        )
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt, _, _ in rows],
                [self._settings(seed, budget, temperature, top_p) for _, seed, budget in rows],
                use_tqdm=False,
                lora_request=self._adapter(),
            )
        except ValueError as error:  # it is on layers where vLLM has none
            raise WorkbenchError(f"vLLM does not take the adapter: {_line(error)}") from error
        written = iter(outputs)  # in the order of the prompts
        return [
            [self._sample(next(written).outputs[0]) for _ in prompt_seeds] for prompt_seeds in seeds
        ]

    def _refuse_too_long(self, prompt: Sequence[int], budget: int) -> None:
        room = self._llm.model_config.max_model_len
        refuse_if(
            len(prompt) + budget > room,
            f"a prompt of {len(prompt)} tokens and {budget} new ones do not fit the "
            f"{room} that vLLM has room for",
        )

    def _settings(self, seed: int, budget: int, temperature: float, top_p: float):
        """A request for each sample, with its own seed.

        Only the policy's stop tokens end a turn; ignore_eos leaves out what else vLLM knows.
        """
        return self._params(
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_tokens=budget,
            stop_token_ids=sorted(self.policy.stop_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )

    def _sample(self, output) -> Sample:
        ids = tuple(output.token_ids)
        return Sample(
            ids,
            tuple(at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)),
            ids[-1] in self.policy.stop_ids,
        )

    def _adapter(self):
        """vLLM's handle of the adapter in force, which is sent if it has changed; None where
        adapters are off.
        """
        from peft import get_peft_model_state_dict

        model = self.policy.model
        if not model.get_model_status().enabled:
            return None
        [name] = model.active_adapters
        plain = {"save_embedding_layers": False}  # else peft asks the hub about them each time
        now = distributed.fingerprint(
            list(get_peft_model_state_dict(model, adapter_name=name, **plain).values())
        )
        was, handle = self._sent.get(name, (None, None))
        if now != was:
            self._number += 1
            folder = Path(self._folder.name) / str(self._number)
            model.save_pretrained(folder, selected_adapters=[name], **plain)
            if handle is not None:
                # nobody samples from it again
                shutil.rmtree(folder.with_name(str(handle.lora_int_id)))
            handle = self._request(
                f"{name}-{self._number}",
                self._number,
                str(folder if name == "default" else folder / name),
                is_3d_lora_weight=bool(model.peft_config[name].target_parameters),
            )
            self._sent[name] = now, handle
        return handle
