"""A policy is a causal LM with its tokenizer; a learner is a policy with an optimiser, a frozen
reference and an EMA teacher.

With LoRA, policy, reference and teacher are one frozen base: the reference is the base with its
adapters off, the teacher a second adapter. The base may be kept in bf16, or in 4 bits a weight
(QLoRA, arXiv 2305.14314); the adapters are fp32 always. With full fine-tuning the reference is a
frozen copy of the weights as they were loaded, and the teacher one more, made when it is first
asked for.

What a learner holds may be split over the processes of a run (shard.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core import Message, WorkbenchError
from workbench.model import distributed
from workbench.model.shard import Replicated, Sharded, gather_tree, local, part


class Policy:
    """Any Hugging Face causal LM whose logits are its last hidden state times its output embedding."""

    engine = None  # who writes its tokens: None, sampling.py itself, or a vllm.VLLM
    unsloth = False  # loaded by Unsloth, which then also makes the adapter
    # training keeps one state a layer and makes the others again: less memory, a third more time
    checkpointing = False
    # False: its weights are split over ranks (shard.py), and are only here while the modules'
    # forward passes gather them
    gathered = True

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
        self.model, self.tokenizer, self.name = (
            model,
            tokenizer,
            name or getattr(model.config, "_name_or_path", ""),
        )
        if not tokenizer.chat_template:
            raise WorkbenchError(
                f"{self.name or 'the model'} has no chat template: take an "
                "instruction-tuned model, "
                "or set tokenizer.chat_template"
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def base(self) -> nn.Module:
        """The transformers model, inside peft's wrapper if there is one (its adapter layers stay
        active).
        """
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> nn.Module:
        return self.base.get_decoder()

    @property
    def head(self) -> Tensor:
        """[V, D] output embedding."""
        return self.base.get_output_embeddings().weight

    @property
    def trains_in_fp32(self) -> bool:
        """Weights in fp32, and no other engine: they can all be trained, and sampler and trainer
        give a token the same log-prob but for rounding.
        """
        return (
            self.engine is None
            and self.head.dtype in (torch.float32, torch.float64)
            and not getattr(self.base, "is_quantized", False)
        )

    @property
    def context(self) -> int:
        """Longest prompt + completion, in tokens."""
        return getattr(self.model.config, "max_position_embeddings", 0) or 2**31

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the tokenizer's end-of-sequence and those of the generation
        config.
        """
        config = getattr(self.base, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        listed = listed if isinstance(listed, (list, tuple)) else [listed]
        return frozenset(i for i in (*listed, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.stop_ids)

    def need_gathered(self) -> None:
        """Raises WorkbenchError where ranks would have to wait for each other, and would not all
        come.
        """
        if not self.gathered:
            raise WorkbenchError(
                f"{self.name} is sharded: sample from it, and read with it, inside `with "
                "learner.gathered():`"
            )

    def prompt_ids(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """Token ids of the conversation with the assistant's header, ready to be continued."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        # raised by the template itself: "System role not supported", "Conversation roles must
        # alternate", ...
        except TemplateError as error:
            raise WorkbenchError(
                f"the chat template of {self.name} refuses this prompt: {error}"
            ) from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, with the end-of-turn token."""
        return (
            *self.tokenizer(text, add_special_tokens=False)["input_ids"],
            self.tokenizer.eos_token_id,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without the end-of-turn token."""
        ids = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def hidden(self, input_ids: Tensor, **inputs) -> Tensor:
        """[B, S, D] last hidden states."""
        with self._checkpointed():
            return self.decoder(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """transformers makes activations again only in layers in training mode.

        They are told so for this pass; what is inside them, dropout, is not.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        again = self.checkpointing and torch.is_grad_enabled()
        layers = [
            module
            for module in self.decoder.modules()
            if again and isinstance(module, GradientCheckpointingLayer)
        ]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False


def load_policy(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    frozen: bool = False,
    four_bit: bool = False,
    unsloth: bool = False,
) -> Policy:
    """Load a causal LM by folder, hub id, GGUF file or ``smollm2`` (gguf.py), and a peft adapter on
    it.

    ``device``: CUDA where there is one, else the CPU. ``frozen``: its weights will not be trained,
    so they may be bf16, and are where the device computes in it. ``four_bit``: NF4 with double
    quantisation (bitsandbytes), for LoRA only. Else fp32. ``unsloth``: through Unsloth's own
    kernels, for LoRA on CUDA only.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    distributed.start()
    # A damaged or foreign model fails in as many ways as there are files in it.
    unreadable = (
        OSError,
        ValueError,
        RuntimeError,
        SafetensorError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
    )
    frozen = frozen or four_bit
    source, device = source_of(model), device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = (
        torch.bfloat16
        if frozen and device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float32
    )
    fast = _unsloth() if unsloth else None
    more = {"quantization_config": _nf4(dtype), "device_map": {"": device}} if four_bit else {}
    try:
        if fast:
            net, tokenizer = fast.from_pretrained(str(source), dtype=dtype, load_in_4bit=four_bit)
            loading = {"missing_keys": ()}  # it does not say
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
            net, loading = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **more
            )
    except unreadable as error:
        raise WorkbenchError(why_not_loaded(model, error)) from error
    if loading["missing_keys"]:  # transformers fills them with random numbers
        raise WorkbenchError(
            f"the model {model} lacks {len(loading['missing_keys'])} of its weights, such "
            f"as {min(loading['missing_keys'])}"
        )
    if adapter is not None:
        from peft import PeftModel

        files = {file.name for file in Path(adapter).iterdir()} if Path(adapter).is_dir() else set()
        if "adapter_config.json" not in files or not files & {
            "adapter_model.safetensors",
            "adapter_model.bin",
        }:
            raise WorkbenchError(
                f"there is no adapter in {adapter}: a folder with adapter_config.json and "
                "adapter_model.safetensors is needed"
            )
        try:
            net = PeftModel.from_pretrained(net, str(adapter))
        except unreadable as error:
            raise WorkbenchError(
                f"the adapter in {adapter} does not fit the model {model}"
            ) from error
    net.requires_grad_(False).eval()
    for layer in net.modules():
        # bitsandbytes packs 4-bit weights for CPUs with bf16 instructions in a form that has no
        # backward pass: the adapters would silently get wrong gradients (tests/test_loading.py).
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    if not four_bit and not unsloth:
        net.to(device)
    policy = Policy(net, tokenizer, str(model))
    policy.unsloth = unsloth
    _check_head(policy)
    return policy


def source_of(model: str | Path) -> str | Path:
    """What transformers loads: a folder, or a hub id as it is."""
    from workbench.model import gguf

    if not str(model).strip():
        raise WorkbenchError("no model is named: a folder, a GGUF file or a hub id is needed")
    path = Path(model).expanduser()
    if str(model) == gguf.SMOLLM2 and not path.exists():
        return gguf.folder(gguf.smollm2())
    if path.suffix == ".gguf":
        if not path.is_file():
            raise WorkbenchError(f"there is no file {model}")
        return gguf.folder(path)
    looks_local = (
        str(model).startswith((".", "/", "~")) or path.parts[:1] == ("data",) or path.exists()
    )
    if looks_local and not (path / "config.json").is_file():
        raise WorkbenchError(
            f"there is no model in {model}: a Hugging Face folder with a config.json is needed"
        )
    return path if looks_local else str(model)


def _unsloth():
    """Unsloth's loader.

    Importing it changes transformers, so it is done only when it is asked for, and before a model
    is loaded.
    """
    if not torch.cuda.is_available():
        raise WorkbenchError(
            "Unsloth needs an NVIDIA GPU: leave --unsloth out, and the same run goes "
            "through transformers and peft"
        )
    try:
        from unsloth import FastLanguageModel
    except Exception as error:
        raise WorkbenchError(
            f"Unsloth cannot be imported here (it wants constraints-gpu.txt): {_first_line(error)}"
        ) from error
    return FastLanguageModel


def _nf4(dtype: torch.dtype):
    """4 bits a weight, computed with in bf16 (fp32 on a GPU that has no bf16)."""
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # not installed, or its library does not load on this machine
        raise WorkbenchError(
            "4-bit weights need the package bitsandbytes, which cannot be imported here: "
            f"{_first_line(error)}"
        ) from error
    from transformers import BitsAndBytesConfig

    slow = torch.cuda.is_available() and dtype == torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if slow else torch.bfloat16,
    )


def why_not_loaded(model: str | Path, error: Exception) -> str:
    """Why a model could not be loaded, in one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"the model {model} is gated: accept its terms on its hub page, then log in with "
            "`hf auth login`"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f"there is no model {model} on the hub (or it is private: log in with `hf auth "
            "login`), and no such folder here"
        )
    if any(
        isinstance(cause, (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError))
        or "ConnectError" in type(cause).__name__
        for cause in causes
    ):
        return (
            f"the hub cannot be reached, and {model} is not in its cache: name a folder or a "
            "GGUF file, or smollm2"
        )
    return f"could not load the model {model}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@torch.no_grad()
def _check_head(policy: Policy) -> None:
    """Models that change their logits after the output embedding (soft-capping, scaling) would get
    wrong scores: refuse them.
    """
    ids = torch.arange(min(4, len(policy.head)), device=policy.device)[None]
    ours = torch.nn.functional.linear(policy.hidden(ids), policy.head)
    theirs = policy.base(input_ids=ids, use_cache=False).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-2, rtol=1e-2):
        raise WorkbenchError(
            f"{policy.name} changes its logits after the output embedding, which is not supported"
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and how fast the teacher follows."""

    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.05  # the teacher's update rate u
    # AdamW's two moments in 8 bits a number (bitsandbytes, arXiv 2110.02861): 2 bytes a parameter
    # and not 8
    eight_bit: bool = False

    def __post_init__(self):
        if not (
            0 < self.lr < math.inf
            and 0 <= self.weight_decay < math.inf
            and self.clip > 0
            and 0 <= self.ema <= 1
        ):
            raise WorkbenchError(
                "the optimiser takes lr and clip above 0, weight_decay of 0 or more, and "
                "ema from 0 to 1"
            )


class Learner:
    """The trainable policy.

    ``lora``: rank of the adapter to train (0: all weights). ``expert``: another, stronger policy to
    learn from. ``checkpointing``: keep one state a layer for the backward pass and make the others
    again. ``shard``: split everything that is trained, and a frozen base, over the processes
    (shard.py); so does accelerate launch --use_fsdp.

    Raises WorkbenchError where the policy cannot be trained so, or not be sharded.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimConfig = OptimConfig(),
        *,
        lora: int = 0,
        seed: int = 0,
        expert: Policy | None = None,
        checkpointing: bool = False,
        shard: bool = False,
    ):
        distributed.start()
        shard = shard or distributed.fsdp(os.environ)
        if not lora and not policy.trains_in_fp32:
            raise WorkbenchError(
                f"{policy.name} was loaded with weights that cannot be trained (4 bits or "
                "bf16): train an adapter with lora"
            )
        self.policy, self.settings, self.lora, self.expert = policy, optimizer, lora, expert
        if expert is not None and expert.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise WorkbenchError(
                f"the teacher {expert.name} has another vocabulary than {policy.name}: it "
                "cannot score its tokens"
            )
        if shard and optimizer.eight_bit:
            raise WorkbenchError(
                "the 8-bit optimiser cannot be sharded: AdamW's moments are split over the "
                "processes in fp32"
            )
        self.skipped = 0  # updates not made because a gradient was not finite
        if lora:
            policy.model = _with_adapter(policy, lora, seed)
            if shard:
                _teacher_adapter(policy.model)  # what is added later would not be split
        else:
            policy.model.requires_grad_(True)
        policy.model.eval()  # no dropout: the sampler and the trainer must agree
        policy.checkpointing = checkpointing
        self.placement = Sharded(policy) if shard else Replicated(policy)
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        decay = [
            {
                "params": [p for p in self.parameters if p.ndim > 1],
                "weight_decay": optimizer.weight_decay,
            },
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = _adamw([group for group in decay if group["params"]], optimizer)
        self._teacher: dict[str, Tensor] | None = None
        self._start = {name: p.detach().clone() for name, p in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, by name: all weights, or the adapter's."""
        return (
            _adapter_weights(self.policy.model, "default")
            if self.lora
            else dict(self.policy.model.named_parameters())
        )

    def gathered(self) -> AbstractContextManager[None]:
        """A with block in which a sharded policy's weights are all here, to sample and read with.

        All ranks enter it together.
        """
        return self.placement.gathered()

    # ---- other sets of weights on the same network

    @contextmanager
    def weights(self, which: str):
        """The policy with the weights of ``"policy"``, ``"reference"`` (as loaded) or ``"teacher"``
        (EMA), for the length of a with block.
        """
        if which == "policy":
            yield self.policy
            return
        if self.lora:
            if which == "teacher":
                self._make_teacher()
                with self._adapter("teacher"):
                    yield self.policy
            else:
                with self.policy.model.disable_adapter():
                    yield self.policy
            return
        with self.placement.exchanged(self._make_teacher() if which == "teacher" else self._start):
            yield self.policy

    @contextmanager
    def _adapter(self, name: str):
        model = self.policy.model
        trainable = [p for p in self.parameters if p.requires_grad]
        model.set_adapter(name)
        try:
            yield
        finally:
            model.set_adapter("default")
            _freeze_adapter(model, "teacher")  # set_adapter makes what it activates trainable
            for p in trainable:
                p.requires_grad_(True)

    def _make_teacher(self) -> dict[str, Tensor]:
        """The teacher starts as the policy started, whenever it is first asked for; after that only
        ``update_teacher`` changes it.
        """
        if self._teacher is None:
            if self.lora:
                _teacher_adapter(self.policy.model)
                self._teacher = _adapter_weights(self.policy.model, "teacher")
                with torch.no_grad():
                    for name, weight in self._teacher.items():
                        weight.copy_(self._start[name])
            else:
                self._teacher = {name: weight.clone() for name, weight in self._start.items()}
        return self._teacher

    @torch.no_grad()
    def update_teacher(self) -> float:
        """theta' <- (1 - u) theta' + u theta, once per generation batch (SDPO, arXiv 2601.20802,
        section 2.3). Returns how far the teacher is behind now, |theta - theta'| / |theta -
        theta_0|: 1, it is where the policy started; 0, where the policy is.
        """
        teacher = self._make_teacher()
        source = self._weights()
        distances = torch.zeros(2, device=self.policy.device)
        for name, weight in teacher.items():
            weight.lerp_(source[name], self.settings.ema)
            distances += torch.stack(
                [
                    local(source[name] - other).float().square().sum()
                    for other in (weight, self._start[name])
                ]
            )
        behind, moved = self.placement.total(distances)
        return float((behind / moved).sqrt()) if moved > 0 else 0.0

    # ---- updates

    def step(self) -> float:
        """Add up over ranks, clip, update, clear.

        Returns the gradient norm before clipping; an update with a norm that is not finite is
        skipped and counted (on every rank: all have the same sum).
        """
        self.placement.sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def fingerprint(self) -> list[int]:
        """Equal where all weights are: the policy's, and its expert's."""
        own = self.placement.total(
            torch.tensor(
                distributed.fingerprint([local(p) for p in self.policy.model.parameters()])
            )
        )
        return own.tolist() + (
            distributed.fingerprint(list(self.expert.model.parameters())) if self.expert else []
        )

    # ---- saving

    def save(self, folder: Path) -> None:
        """The policy in a form that plain transformers (or peft) loads.

        All ranks call it, one writes.
        """
        mine = ".default." if self.lora else ""
        weights = (
            None
            if self.policy.gathered
            else gather_tree(
                {name: p for name, p in self.policy.model.state_dict().items() if mine in name}
            )
        )
        if not distributed.main():
            return
        if self.lora:
            self.policy.model.save_pretrained(
                folder, selected_adapters=["default"], state_dict=weights
            )
        else:
            self.policy.model.save_pretrained(folder, state_dict=weights)
            self.policy.tokenizer.save_pretrained(folder)

    def state(self) -> dict:
        """Everything that training goes on from, bit for bit: trainable weights, optimiser,
        teacher, counters. The tensors are the live ones; of a sharded policy whole copies, on rank
        0, and all ranks call this.
        """
        plain = lambda weights: (
            None if weights is None else {name: p.detach() for name, p in weights.items()}
        )  # noqa: E731
        return gather_tree(
            {
                "trainable": plain(self._weights()),
                "optimiser": self.optimizer.state_dict(),
                "teacher": plain(self._teacher),
                "skipped": self.skipped,
            }
        )

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Raises WorkbenchError when ``state`` is of another model or adapter."""
        own, saved = self._weights(), state["trainable"]
        if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
            raise WorkbenchError(
                "the checkpoint belongs to another model (or another LoRA rank): its "
                "weights do not fit"
            )
        for name, p in own.items():
            p.copy_(part(saved[name], p))
        moments, places = (
            state["optimiser"]["state"],
            [p for group in self.optimizer.param_groups for p in group["params"]],
        )
        moments = {
            i: {name: part(value, places[i]) for name, value in of.items()}
            for i, of in moments.items()
        }
        self.optimizer.load_state_dict(state["optimiser"] | {"state": moments})
        if state["teacher"] is not None:
            for name, weight in self._make_teacher().items():
                weight.copy_(part(state["teacher"][name], weight))
        self.skipped = state["skipped"]


def _with_adapter(policy: Policy, rank: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # the adapter's A is random
    if policy.unsloth:
        linear = sorted(
            {
                name.rpartition(".")[2]
                for name, module in policy.decoder.named_modules()
                if isinstance(module, nn.Linear)
            }
        )
        return _unsloth().get_peft_model(
            policy.model,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=linear,
            random_state=seed,
            use_gradient_checkpointing=False,
        )
    return peft_adapter(policy.model, rank)


def peft_adapter(model: nn.Module, rank: int) -> nn.Module:
    """The model with a fresh LoRA adapter on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _adamw(groups: list[dict], settings: OptimConfig) -> torch.optim.Optimizer:
    if not settings.eight_bit:
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    try:
        import bitsandbytes
    except Exception as error:
        raise WorkbenchError(
            "the 8-bit optimiser needs the package bitsandbytes, which cannot be imported "
            f"here: {_first_line(error)}"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, lr=settings.lr)


def _adapter_weights(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The LoRA matrices of one adapter, keyed by their place in the model."""
    return {
        name.replace(f".{adapter}.", "."): p
        for name, p in model.named_parameters()
        if f".{adapter}." in name
    }


def _teacher_adapter(model: nn.Module) -> None:
    """Give the model a second adapter, unless it has it."""
    if "teacher" not in model.peft_config:
        model.add_adapter("teacher", model.peft_config["default"])
        model.set_adapter("default")
        _freeze_adapter(model, "teacher")


def _freeze_adapter(model: nn.Module, adapter: str) -> None:
    for p in _adapter_weights(model, adapter).values():
        p.requires_grad_(False)
