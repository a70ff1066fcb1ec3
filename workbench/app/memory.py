"""Will it fit?

The peak memory of a training step on a GPU, part by part, from a model's configuration alone.

    predict(net, method, mode, sizes) -> {part: bytes}    net: ``skeleton``, a model without weights
    measure(learner, method, task)    -> bytes            one real step on the GPU that is there
    report(model, methods, ...)       -> text             each method, full, LoRA and QLoRA, and the
                                                          smallest of four GPUs that it fits

Weights, gradients, optimiser and copies are counted. What the backward pass keeps is counted too,
not estimated: the model runs without storage (PyTorch's meta device), and every tensor that
autograd saves is added up. What is left to a rule is the cache of the sampler and the tensors that
live for a moment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from workbench.core import Method, WorkbenchError
from workbench.model.adapters import peft_adapter
from workbench.model.loading import source_of, why_not_loaded
from workbench.model.scores import CHUNK_ELEMENTS
from workbench.rollouts.sampling import ROWS

# GiB that a process finds free, and whether it computes in bf16.
GPUS = {
    "T4": (14.6, False),
    "L4": (22.0, True),
    "A100 40 GB": (39.4, True),
    "A100 / H100 80 GB": (79.1, True),
}
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
    """The model on the meta device: shapes without numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    source = source_of(model)
    ALL_ATTENTION_FUNCTIONS.register("counted", _attention)
    try:
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(source, trust_remote_code=False),
                dtype=torch.float32,
                attn_implementation="counted",
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WorkbenchError(why_not_loaded(model, error)) from error
    return net.eval().requires_grad_(False)


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, and a number for each head and
    token. There is no way back: it is only counted.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return out


def _attention(module, query, key, value, attention_mask, **_):
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


def predict(
    net: nn.Module,
    method: Method,
    mode: str,
    sizes: StepSizes,
    *,
    bf16: bool = True,
) -> dict[str, float]:
    """Bytes at the peak of one step, by part; ``"peak"`` is their total, where sampling and
    training take turns.

    ``mode``: "full" (fp32), "lora" or "qlora" (frozen weights in bf16, or 4 bits). ``bf16``: the
    GPU computes in it, else frozen weights are fp32 where they are not 4 bits. A method's teacher
    network is taken to be the same model, frozen.
    """
    wide = 2 if bf16 and mode != "full" else 4
    net = copy.deepcopy(net).to(torch.bfloat16 if wide == 2 else torch.float32)
    static = _static(net, method, mode, sizes, wide, bf16)
    parts = static | {
        "activations": _training(net, method, sizes, wide),
        "sampling": _sampling(net, method, sizes, wide),
    }
    busy = max(parts["activations"], parts["sampling"])
    return parts | {"peak": sum(static.values()) + busy + CONTEXT}


def _static(
    net: nn.Module, method: Method, mode: str, sizes: StepSizes, wide: int, bf16: bool
) -> dict[str, float]:
    """What stays from step to step: weights, what is trained of them, and copies.

    Makes ``net`` trainable as ``mode`` says.
    """
    head = net.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in net.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    count = sum(p.numel() for p in net.parameters())
    weights = wide * (count - linear) + (NF4 if mode == "qlora" else wide) * linear
    frozen = weights
    if mode == "full":
        net.requires_grad_(True)
        frozen = (2 if bf16 else 4) * count
    else:
        # the adapter's layers are put into the net itself
        for parameter in peft_adapter(net, sizes.rank).parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
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
    return kept + logits + states + 12 * wide * sizes.rows * length * net.config.hidden_size


def _sampling(net: nn.Module, method: Method, sizes: StepSizes, wide: int) -> float:
    """The sampler's cache of keys and values, and its logits."""
    config = net.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    together = min(ROWS, sizes.prompts * getattr(method, "k", 8))
    length = sizes.prompt + sizes.new * (1 + method.prompt_growth)
    a_token = 2 * 2 * config.num_hidden_layers * heads * size * wide
    logits = 4 * 4 * together * len(net.get_output_embeddings().weight)
    return a_token * together * length + logits


def activations(net: nn.Module, rows: int, length: int, checkpointing: bool = False) -> int:
    """Bytes that the backward pass of a [rows, length] batch keeps, up to the last hidden state.

    With checkpointing: each layer's input, and what one layer keeps while it is made again.
    """
    layers = net.config.num_hidden_layers
    if layers <= 2 and not checkpointing:
        return _saved(net, rows, length)
    one = _saved(_with_layers(net, 1), rows, length)
    a_layer = _saved(_with_layers(net, 2), rows, length) - one
    if checkpointing:
        return a_layer + layers * rows * length * net.config.hidden_size * net.dtype.itemsize
    return one + (layers - 1) * a_layer


def _with_layers(net: nn.Module, n: int) -> nn.Module:
    """The model with its first n layers only: they are alike, so two tell about all."""
    decoder = net.get_decoder()
    cut = copy.copy(decoder)
    cut._modules = decoder._modules | {"layers": decoder.layers[:n]}
    return cut


def _saved(decoder: nn.Module, rows: int, length: int) -> int:
    """Bytes that autograd saves in one forward pass, each storage once, parameters left out."""
    parameters = {p.untyped_storage()._cdata for p in decoder.parameters()}
    storages = {}  # by address; held, so that no other gets it

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(input_ids=ids, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def measure(learner, method: Method, task, rows: int = 8, prompts: int = 16) -> int:
    """Bytes at the peak of one real step on this GPU.

    Completions end where the model ends them, so it may be less than predicted for ``max_new``.
    """
    from workbench.training.update import update

    torch.cuda.reset_peak_memory_stats()
    update(method, learner, task, task.problems("train", prompts, 0), (0, 0), rows=rows)
    return torch.cuda.max_memory_allocated()


def report(model: str | Path, methods: Sequence[str], **sizes) -> str:
    """A table: the smallest GPU that a step fits, and GiB at its peak there.

    ``sizes``: the fields of ``StepSizes``.
    """
    import pandas as pd

    from workbench.methods import find

    net = skeleton(model)
    sizes = StepSizes(**sizes)
    rows = {}
    for name in methods:
        rows[name] = {}
        for mode in MODES:
            column = mode if mode == "full" else f"{mode} r={sizes.rank}"
            rows[name][column] = _smallest(net, find(name)(), mode, sizes)
    return pd.DataFrame(rows).T.to_string()


def _smallest(net: nn.Module, method: Method, mode: str, sizes: StepSizes) -> str:
    """GiB at the peak, and the smallest GPU that has them."""
    peaks = {
        bf16: predict(net, method, mode, sizes, bf16=bf16)["peak"] / 2**30 for bf16 in (True, False)
    }
    for gpu, (free, bf16) in GPUS.items():
        if peaks[bf16] <= free:
            return f"{peaks[bf16]:.1f}  {gpu}"
    return f"{peaks[True]:.1f}  more than 80 GB"
