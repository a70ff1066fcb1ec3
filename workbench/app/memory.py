"""Will it fit?

The peak memory of a training step on a GPU, part by part, from a model's configuration alone.

    predict(net, method, mode, ...) -> {part: bytes}      net: the model without its weights, from
                                                          ``skeleton``
    measure(learner, method, task) -> bytes               one real step on the GPU that is there
    report(model, methods, ...) -> text                   every method, full, LoRA and QLoRA, and
                                                          the smallest of four GPUs that it fits

Weights, gradients, optimiser and copies are counted. What the backward pass keeps is counted too,
not estimated: the model runs without storage (PyTorch's meta device), and every tensor that
autograd saves is added up. What is left to a rule is the cache of the sampler and the tensors that
live for a moment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from workbench.core import Method, WorkbenchError
from workbench.model.learner import peft_adapter
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
# completions that a method's longest prompt holds beside the question
PREFIX = {"tapo": 2, "sdpo": 1}


def skeleton(model: str | Path) -> nn.Module:
    """The model on the meta device: shapes without numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    source = source_of(model)
    ALL_ATTENTION_FUNCTIONS.register("counted", _attention)
    try:
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(source),
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
    *,
    rank: int = 16,
    prompt: int = 200,
    new: int = 512,
    rows: int = 8,
    prompts: int = 16,
    checkpointing: bool = False,
    eight_bit: bool = False,
    bf16: bool = True,
) -> dict[str, float]:
    """Bytes at the peak of one step, by part; ``"peak"`` is their total, where sampling and
    training take turns.

    ``mode``: "full" (fp32), "lora" or "qlora" (frozen weights in bf16, or 4 bits). ``prompt``,
    ``new``: tokens of a prompt and of a completion. ``rows``: rollouts in a micro-batch. ``bf16``:
    the GPU computes in it, else frozen weights are fp32 where they are not 4 bits. A method's
    teacher network is taken to be the same model, frozen.
    """
    wide = 2 if bf16 and mode != "full" else 4
    net = copy.deepcopy(net).to(torch.bfloat16 if wide == 2 else torch.float32)
    linear = sum(
        m.weight.numel()
        for name, m in net.named_modules()
        if isinstance(m, nn.Linear) and m is not net.get_output_embeddings()
    )
    count = sum(p.numel() for p in net.parameters())
    weights = wide * (count - linear) + (NF4 if mode == "qlora" else wide) * linear
    expert = weights if mode != "full" else (2 if bf16 else 4) * count
    if mode == "full":
        net.requires_grad_(True)
    else:
        net = peft_adapter(net, rank)
        for p in net.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    distil = method.distil
    parts = {
        "weights": weights,
        "adapter": 0 if mode == "full" else 4 * trained,
        "gradients": 4 * trained,
        "optimiser": (2 if eight_bit else 8) * trained,
        "reference": 4 * trained,
        "teacher": 4 * trained if distil and distil.teacher == "teacher" else 0,
        "expert": expert if getattr(method, "teacher", "") == "expert" else 0,
    }
    inner = net.get_base_model() if hasattr(net, "get_base_model") else net
    config = inner.config
    name = type(method).__name__.lower()
    longest = prompt + new * PREFIX.get(name, 0)
    head = inner.get_output_embeddings().weight
    saved = activations(inner, rows, prompt + new, checkpointing)
    momentary = 4 * 4 * max(CHUNK_ELEMENTS, len(head)) + 3 * 4 * rows * new * head.shape[1]
    reading = 0 if distil is None else 12 * wide * rows * (longest + new) * config.hidden_size
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    together = min(ROWS, prompts * getattr(method, "k", 8))
    cache = (
        2
        * 2
        * config.num_hidden_layers
        * together
        * heads
        * size
        * wide
        * ((longest if name == "tapo" else prompt) + new)
    )
    parts |= {
        "activations": saved + momentary + reading,
        "sampling": cache + 4 * 4 * together * len(head),
    }
    static = sum(parts[name] for name in parts if name not in ("activations", "sampling"))
    return parts | {"peak": static + max(parts["activations"], parts["sampling"]) + CONTEXT}


def activations(net: nn.Module, rows: int, length: int, checkpointing: bool = False) -> int:
    """Bytes that the backward pass of a [rows, length] batch keeps, up to the last hidden state.

    With checkpointing: each layer's input, and what one layer keeps while it is made again.
    """
    layers = net.config.num_hidden_layers
    if checkpointing:
        one, two = (_kept(_with_layers(net, n), rows, length) for n in (1, 2))
        return (two - one) + layers * rows * length * net.config.hidden_size * net.dtype.itemsize
    if layers <= 2:
        return _kept(net, rows, length)
    one, two = (_kept(_with_layers(net, n), rows, length) for n in (1, 2))
    return one + (layers - 1) * (two - one)


def _with_layers(net: nn.Module, n: int) -> nn.Module:
    """The model with its first n layers only: they are alike, so two tell about all."""
    decoder = net.get_decoder()
    cut = copy.copy(decoder)
    cut._modules = decoder._modules | {"layers": decoder.layers[:n]}
    return cut


def _kept(decoder: nn.Module, rows: int, length: int) -> int:
    own = {p.untyped_storage()._cdata for p in decoder.parameters()}
    found: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that no other gets its address
        return tensor

    alive: list = []
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(input_ids=ids, use_cache=False)
    return sum(found.values())


def measure(learner, method: Method, task, rows: int = 8, prompts: int = 16) -> int:
    """Bytes at the peak of one real step on this GPU.

    Completions end where the model ends them, so it may be less than predicted for ``max_new``.
    """
    from workbench.training.update import update

    torch.cuda.reset_peak_memory_stats()
    update(method, learner, task, task.problems("train", prompts, 0), (0, 0), rows=rows)
    return torch.cuda.max_memory_allocated()


def report(model: str | Path, methods: Sequence[str], *, rank: int = 16, **sizes) -> str:
    """A table: the smallest GPU that a step fits, and GiB at its peak there.

    ``sizes``: as in ``predict``.
    """
    import pandas as pd

    from workbench.methods import find

    net = skeleton(model)
    rows = {}
    for name in methods:
        rows[name] = {}
        for mode in MODES:
            peaks = {
                bf16: predict(net, find(name)(), mode, rank=rank, bf16=bf16, **sizes)["peak"]
                / 2**30
                for bf16 in (True, False)
            }
            gpu = next((gpu for gpu, (free, bf16) in GPUS.items() if peaks[bf16] <= free), "")
            rows[name][mode if mode == "full" else f"{mode} r={rank}"] = (
                f"{peaks[GPUS[gpu][1] if gpu else True]:.1f}  {gpu or 'more than 80 GB'}"
            )
    return pd.DataFrame(rows).T.to_string()
