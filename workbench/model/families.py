"""What differs between families of models, read from their configurations.

text_config       the part of a configuration that describes the language model
context           the longest row whose numbers do not depend on the rows beside it
recurrent         whether a layer keeps a state that padding on the left would enter
logit_forms       what a family may do to the products of states and output embedding
decoder           the layers of a model, without its head and its other towers
with_adapter      what an adapter goes on, as peft names it
without_adapter   the linear layers that no adapter goes on
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

UNBOUNDED = 2**31
# numbers by which logits are multiplied, or divided
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# modules that choose the experts of a token
ROUTERS = {"router", "gate", "shared_expert_gate"}
# layers of a Mamba mixer whose weights its kernels read without calling them
_BYPASSED = {"out_proj", "dt_proj"}


class LogitForm(NamedTuple):
    """Logits are cap tanh(scale x / cap) of the products x (cap 0: scale x)."""

    scale: float = 1.0
    cap: float = 0.0


def text_config(config):
    """The language model's part of a configuration, which is all of it where there is no other."""
    return config.get_text_config(decoder=True)


def context(config) -> int:
    """Longest row, in tokens.

    Frequencies of rotary embeddings that are chosen by the longest row of a batch ("dynamic",
    "longrope") are the same for all rows up to the length that the model was first trained with:
    that is the bound then.
    """
    text = text_config(config)
    bounds = [*_lengths(text), *_rope_bounds(text)]
    return min(bounds, default=UNBOUNDED)


def _lengths(text) -> Iterator[int]:
    length = getattr(text, "max_position_embeddings", 0) or getattr(text, "max_seq_len", 0)
    if length:
        yield length


def _rope_bounds(text) -> Iterator[int]:
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind == "longrope" or "dynamic" in kind:
            original = rope.get("original_max_position_embeddings")
            yield from [original] if original else _lengths(text)


def recurrent(config) -> bool:
    """Whether a layer's cache is a state, and not only keys and values that a mask can hide."""
    from transformers import DynamicCache

    layers = DynamicCache(config=config).layers
    return any(hasattr(layer, "conv_states") for layer in layers)


def logit_forms(config) -> list[LogitForm]:
    """What the numbers in a configuration may mean, the likeliest first.

    Families differ (Granite divides by ``logits_scaling``, HyperCLOVA X multiplies with it), and a
    wrapper may leave out what its text model does: ``Policy.logits`` tries them.
    """
    text = text_config(config)
    factor, divisor, cap = (_product(text, names) for names in (_FACTORS, _DIVISORS, _CAPS))
    cap = cap if cap != 1 else 0.0
    scales = (factor / divisor, factor * divisor, 1.0)
    forms = [LogitForm(scale, bound) for bound in (cap, 0.0) for scale in scales]
    return list(dict.fromkeys(forms))


def _product(text, names: tuple[str, ...]) -> float:
    """Of the numbers that a configuration has under these names; 1 where there is none."""
    numbers = (getattr(text, name, None) for name in names)
    return math.prod(number for number in numbers if isinstance(number, (int, float)) and number)


def decoder(model: nn.Module) -> nn.Module:
    """Token ids to last hidden states: the layers, without the head and without other towers."""
    layers = model.get_decoder()
    while hasattr(layers, "lm_head"):  # Llama 4's is a whole language model
        layers = layers.model
    return layers


def with_adapter(model: nn.Module) -> str | list[str]:
    """All linear layers; of a mixture of experts by name, because peft would add the router to them
    whose experts are one tensor.
    """
    from peft.utils import transformers_weight_conversion as conversion

    kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    experts = conversion._MOE_TARGET_MODULE_MAPPING.get(kind)
    if not experts:
        return "all-linear"
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = {name.rpartition(".")[2] for name in linear - set(without_adapter(model))}
    return sorted((names | experts.keys()) - ROUTERS - {"lm_head"})


def without_adapter(model: nn.Module) -> list[str]:
    """Linear layers by name: of other towers, routers, and those that Mamba's kernels pass by.

    A router that moves makes sampler and trainer choose other experts for a token.
    """
    (place,) = (name for name, module in model.named_modules() if module is decoder(model))
    prefix = f"{place}." if place else ""
    mixers = {name for name, module in model.named_modules() if hasattr(module, "ssm_state_size")}
    names = []
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        bypassed = last in _BYPASSED and parent in mixers
        if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():
            continue
        if bypassed or not name.startswith(prefix) or ROUTERS & set(name.split(".")):
            names.append(name)
    return names
