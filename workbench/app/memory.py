"""Will it fit?

The peak memory of a training step on a GPU, part by part, from a model's configuration alone.

    predict(net, method, mode, sizes) -> {part: bytes}    net: ``skeleton``, a model without weights
    measure(learner, method, task)    -> bytes            one real step on the GPU that is there
    report(net, methods, sizes)       -> text             each method, full, LoRA and QLoRA, and the
                                                          smallest of four GPUs that it fits

Weights, gradients, optimiser and copies are counted. What the backward pass keeps is counted too,
not estimated: the model runs without storage (PyTorch's meta device), and every tensor that
autograd saves, or the sampler's cache, is added up. What is left to a rule are the tensors that
live for a moment.

On a T4, which has 14.6 GiB and computes in fp16, GRPO on the shape of Qwen2.5-1.5B (200 + 512
tokens) takes 9.0 GiB with LoRA and 7.2 with QLoRA under --checkpointing, 25.8 and 24.0 without it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from workbench.core import Method, WorkbenchError, first_line
from workbench.model.adapters import peft_adapter
from workbench.model.families import decoder, text_config
from workbench.model.loading import auto_class, source_of, why_not_loaded
from workbench.model.scores import CHUNK_ELEMENTS
from workbench.rollouts.sampling import ROWS

# GiB that a process finds free. All compute in 16 bits, the T4 in fp16, the others in bf16.
GPUS = {"T4": 14.6, "L4": 22.0, "A100 40 GB": 39.4, "A100 / H100 80 GB": 79.1}
CONTEXT = 0.6 * 2**30  # what CUDA itself and its libraries take
MODES = ("full", "lora", "qlora")
# bytes a weight: 4 bits, an 8-bit scale for 64 of them, a 32-bit scale for 256 of those
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class StepSizes:
    """What a training step is made of."""

    prompt: int = 200  # tokens of a prompt
    new: int = 512  # tokens of a completion
    rows: int = 8  # rollouts in a micro-batch
    prompts: int = 16  # problems
    rank: int = 16  # of the adapter
    checkpointing: bool = False  # activations made again in the backward pass
    eight_bit: bool = False  # AdamW's moments


def skeleton(model: str | Path) -> nn.Module:
    """The model on the meta device: shapes without numbers.

    Raises WorkbenchError where there is no such model.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    source = source_of(model)
    ALL_ATTENTION_FUNCTIONS.register("counted", _attention)
    ALL_EXPERTS_FUNCTIONS.register("counted", _experts)
    errors = []
    # some families have a table of their own, and keep more than a fused kernel would
    for attention in ("counted", "sdpa", "eager"):
        try:
            return _shapes(source, attention)
        except Exception as error:  # a foreign configuration fails in its own ways
            errors.append(error)
    raise WorkbenchError(why_not_loaded(model, errors[0])) from errors[0]


def _shapes(source: str | Path, attention: str) -> nn.Module:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    how = {"attn_implementation": attention, "experts_implementation": "counted"}
    with torch.device("meta"):
        net = auto_class(config).from_config(config, dtype=torch.float32, **how)
    # some look for it among the tokens, and some let nobody take it away
    vars(text_config(net.config))["pad_token_id"] = None
    return net.eval().requires_grad_(False)


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, and a number for each head and
    token. There is no way back: it is only counted.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(
            query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return out


def _attention(module, query, key, value, attention_mask, **_):
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


class _Experts(torch.autograd.Function):
    """What grouped products keep of the tokens that are sent to each expert: what goes into each
    matrix and what comes out; and the matrices, where they are made anew with an adapter.
    """

    @staticmethod
    def forward(ctx, hidden, sent, *matrices):
        width = sum(sum(matrix.shape[1:]) for matrix in matrices)
        ctx.save_for_backward(hidden.new_empty(sent, width), *matrices)
        return torch.empty_like(hidden)


def _experts(module, hidden, top_k_index, top_k_weights):
    names = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
    matrices = [getattr(module, name) for name in names if hasattr(module, name)]
    return _Experts.apply(hidden, top_k_index.numel(), *matrices)


def predict(net: nn.Module, method: Method, mode: str, sizes: StepSizes) -> dict[str, float]:
    """Bytes at the peak of one step, by part; ``"peak"`` is their total, where sampling and
    training take turns.

    ``mode``: "full" (fp32), "lora" or "qlora" (frozen weights in 16 bits, or 4). A method's teacher
    network is taken to be the same model, frozen.

    Raises WorkbenchError where a model cannot do without the numbers, or is no language model.
    """
    wide = 4 if mode == "full" else 2
    try:
        ready = _trainable(net, mode, sizes.rank, wide)
        static = _static(net, ready, method, mode, sizes, wide)
        parts = static | {
            "activations": _training(ready, method, sizes, wide),
            "sampling": _sampling(ready, method, sizes),
        }
    except Exception as error:  # a foreign model fails in its own ways
        raise WorkbenchError(
            f"the memory of a {type(net).__name__} cannot be counted, because it does not run "
            f"here without weights: {first_line(error)}"
        ) from error
    busy = max(parts["activations"], parts["sampling"])
    return parts | {"peak": sum(static.values()) + busy + CONTEXT}


@functools.lru_cache(maxsize=8)
def _trainable(net: nn.Module, mode: str, rank: int, wide: int) -> nn.Module:
    """A copy of which ``mode`` says what is trained, in numbers of ``wide`` bytes."""
    net = copy.deepcopy(net).to(torch.bfloat16 if wide == 2 else torch.float32)
    if mode == "full":
        return net.requires_grad_(True)
    # the adapter's layers are put into the net itself
    for parameter in peft_adapter(net, rank).parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return net


def _static(
    net: nn.Module,
    ready: nn.Module,
    method: Method,
    mode: str,
    sizes: StepSizes,
    wide: int,
) -> dict[str, float]:
    """What stays from step to step: weights, what is trained of them, and copies."""
    count = sum(p.numel() for p in net.parameters())
    weights = wide * count
    if mode == "qlora":
        weights += (NF4 - wide) * _in_four_bits(net)
    frozen = 2 * count if mode == "full" else weights
    trained = sum(p.numel() for p in ready.parameters() if p.requires_grad)
    averaged = method.distil is not None and method.distil.teacher == "teacher"
    return {
        "weights": weights,
        "adapter": 0 if mode == "full" else 4 * trained,
        "gradients": 4 * trained,
        "optimiser": (2 if sizes.eight_bit else 8) * trained,
        "reference": 4 * trained,
        "teacher": 4 * trained * averaged,
        "expert": frozen * method.needs_expert,
    }


def _in_four_bits(net: nn.Module) -> int:
    """Weights that transformers lets bitsandbytes keep in 4 bits: not the head, nor experts that
    are one tensor.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(net)
    return sum(
        module.weight.numel()
        for name, module in net.named_modules()
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, kept)
    )


def _training(net: nn.Module, method: Method, sizes: StepSizes, wide: int) -> float:
    """What one micro-batch's backward pass keeps, the tensors that live for a moment, and the
    states that a teacher's reading leaves.
    """
    vocabulary, width = net.get_output_embeddings().weight.shape
    kept = activations(net, sizes.rows, sizes.prompt + sizes.new, sizes.checkpointing)
    logits = 4 * 4 * max(CHUNK_ELEMENTS, vocabulary)
    states = 3 * 4 * sizes.rows * sizes.new * width
    if method.distil is None:
        return kept + logits + states
    length = sizes.prompt + sizes.new * (1 + method.teacher_prompt_growth)
    return kept + logits + states + 12 * wide * sizes.rows * length * width


def _sampling(net: nn.Module, method: Method, sizes: StepSizes) -> float:
    """The sampler's cache, and its logits."""
    together = min(ROWS, sizes.prompts * getattr(method, "k", 8))
    length = int(sizes.prompt + sizes.new * (1 + method.prompt_growth))
    logits = 4 * 4 * together * len(net.get_output_embeddings().weight)
    # a step appends by copying
    return 2 * together * _cached(net, length) + logits


@functools.lru_cache
def _cached(net: nn.Module, length: int) -> float:
    """Bytes that a row of so many tokens leaves in the cache: keys and values, or states."""
    from transformers import DynamicCache

    def of_layers(n: int) -> int:
        cache = DynamicCache(config=net.config)
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        _run(_with_layers(net, n), input_ids=ids, past_key_values=cache, use_cache=True)
        return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(vars(layer)))

    return _each_layer(net, of_layers)[0]


def _tensors(values: dict) -> list[torch.Tensor]:
    """Of a cache's layer: keys, values, and states, which are numbered."""
    tensors = []
    for value in values.values():
        tensors += _tensors(value) if isinstance(value, dict) else [value]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


@functools.lru_cache
def activations(net: nn.Module, rows: int, length: int, checkpointing: bool = False) -> int:
    """Bytes that the backward pass of a [rows, length] batch keeps, up to the last hidden state.

    With checkpointing: each layer's input, and what one layer keeps while it is made again.
    """
    total, largest = _each_layer(net, lambda n: _saved(_with_layers(net, n), rows, length))
    if not checkpointing:
        return total
    width = text_config(net.config).hidden_size
    return largest + len(_layers(net)) * rows * length * width * net.dtype.itemsize


def _each_layer(net: nn.Module, of_layers: Callable[[int], int]) -> tuple[int, int]:
    """What all layers take, and the largest of them, from what the first n take.

    Layers of one kind take the same: the first of each kind, beside the very first, is measured.
    """
    of_layers = functools.cache(of_layers)
    types = getattr(text_config(net.config), "layer_types", None) or ()
    kinds = [
        (tuple(p.shape for p in layer.parameters()), *types[i : i + 1])
        for i, layer in enumerate(_layers(net))
    ]
    first = {kind: kinds.index(kind, 1) for kind in kinds[1:]}
    takes = {kind: of_layers(i + 1) - of_layers(i) for kind, i in first.items()}
    total = of_layers(1) + sum(takes[kind] for kind in kinds[1:])
    return total, max(takes.values(), default=total)


def _layers(net: nn.Module) -> nn.ModuleList:
    """The stack, whatever a family calls it."""
    lists = [m for m in decoder(net).children() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len)


def _with_layers(net: nn.Module, n: int) -> nn.Module:
    """The decoder with its first n layers only."""
    stack = _layers(net)
    cut = copy.copy(decoder(net))
    cut._modules = {
        name: module[:n] if module is stack else module for name, module in cut._modules.items()
    }
    return cut


def _run(net: nn.Module, input_ids: torch.Tensor, **how) -> None:
    """A forward pass without storage."""
    # peft asks for its device's type, and there is none without storage
    with mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        try:
            net(input_ids=input_ids, **how)
        except AttributeError:  # MPT's own attention does without no mask
            rows, length = input_ids.shape
            mask = torch.zeros(rows, 1, length, length, device="meta")
            net(input_ids=input_ids, attention_mask=mask, **how)


def _saved(net: nn.Module, rows: int, length: int) -> int:
    """Bytes that autograd saves in one forward pass, each storage once, parameters left out."""
    parameters = {p.untyped_storage()._cdata for p in net.parameters()}
    storages = {}  # by address; held, so that no other gets it

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(net, input_ids=ids, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def measure(learner, method: Method, task, rows: int = 8, prompts: int = 16) -> int:
    """Bytes at the peak of one real step on this GPU.

    Completions end where the model ends them, so it may be less than predicted for ``max_new``.
    """
    from workbench.training.update import update

    torch.cuda.reset_peak_memory_stats()
    update(method, learner, task, task.problems("train", prompts, 0), (0, 0), rows=rows)
    return torch.cuda.max_memory_allocated()


def report(net: nn.Module, methods: Sequence[str], sizes: StepSizes) -> str:
    """A table: the smallest GPU that a step fits, and GiB at its peak there."""
    import pandas as pd

    from workbench.methods import find

    rows = {}
    for name in methods:
        rows[name] = {}
        for mode in MODES:
            column = mode if mode == "full" else f"{mode} r={sizes.rank}"
            rows[name][column] = _smallest(net, find(name)(), mode, sizes)
    return pd.DataFrame(rows).T.to_string()


def _smallest(net: nn.Module, method: Method, mode: str, sizes: StepSizes) -> str:
    """GiB at the peak, and the smallest GPU that has them."""
    peak = predict(net, method, mode, sizes)["peak"] / 2**30
    return f"{peak:.1f}  " + next((g for g in GPUS if peak <= GPUS[g]), "more than 80 GB")
