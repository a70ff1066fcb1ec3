"""What a GGUF file says of a model, held against the model that transformers made of it.

transformers applies some keys of the metadata, drops the others and whatever tensors it has no
place for, and fills its configuration with defaults. So every key of the architecture is compared
with the configuration: equal, without effect, or refused by its name. One that is not known here is
refused too.

    check_file(fields)                          before the weights are read
    check_model(fields, net, tokenizer)         the metadata
    check_tensors(tensors, net, report)          the weights
    cut_digits(fields, tokenizer)               the one thing that is put right
"""

from __future__ import annotations

import math
from typing import Any

from workbench.core import WorkbenchError, refuse_if

# Told by the shapes of the tensors too, all of which must fit; or needed by nobody.
_HARMLESS = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "ssm.inner_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "shortconv.l_cache",
]
# Of a key: the names that it may have in a configuration.
_NAMES = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_epsilon": "layer_norm_eps norm_epsilon layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps norm_eps layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "attention.clamp_kqv": "clip_qkv",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale",
    "expert_count": "num_experts num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "use_parallel_residual": "use_parallel_residual",
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "conv_kernel linear_conv_kernel_dim",
    "ssm.state_size": "state_size linear_key_head_dim",
    "ssm.time_step_rank": "time_step_rank linear_num_value_heads",
    "ssm.group_count": "linear_num_key_heads",
}
_ROPE_NAMES = {
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_theta",
    "rope.dimension_sections": "mrope_section",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# What changes nothing in a model whose configuration has no such place; 0 of anything else.
_WITHOUT_EFFECT = {
    "attention.causal": (True,),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1),  # a softmax
}
_OTHER_FILES = ("adapter.", "clip.", "controlvector.", "diffusion.", "imatrix.", "xielu.")
# How a byte-level vocabulary cuts text before it merges: as GPT-2 does (and where no way is named);
# the same, with each digit by itself.
_AS_GPT2 = (
    None,
    *["default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
)
_DIGITS = ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"]


def check_file(fields: dict[str, Any]) -> None:
    """Raises WorkbenchError for a file that is no whole model, or cuts text in an unknown way."""
    kind, parts = fields.get("general.type", "model"), fields.get("split.count", 1)
    refuse_if(kind != "model", f"general.type is {kind!r}: it is no language model")
    refuse_if(parts > 1, f"split.count is {parts}: its parts must be merged into one file")
    other = next((key for key in fields if key.startswith(_OTHER_FILES)), None)
    refuse_if(other, f"{other} changes the model, and is not applied")
    cut = fields.get("tokenizer.ggml.pre")
    refuse_if(
        fields.get("tokenizer.ggml.model") == "gpt2" and cut not in _known_cuts(),
        f"tokenizer.ggml.pre is {cut!r}, a way to cut text that is not known here; a newer "
        "transformers may know it",
    )


def _known_cuts() -> set[str | None]:
    known = {*_AS_GPT2, *_DIGITS}
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # an older transformers
        return known
    return known | set(GGUF_PRE_TOKENIZER_SPLITS)


def cut_digits(fields: dict[str, Any], tokenizer) -> None:
    """Each digit by itself, where the file says so: transformers cuts as GPT-2 does."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if fields.get("tokenizer.ggml.pre") in _DIGITS:
        cuts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(cuts)


def check_config(fields: dict[str, Any], config, tokenizer) -> None:
    """Raises WorkbenchError, with the key's name, for metadata that the model does not follow."""
    arch = fields["general.architecture"]
    said = {k.removeprefix(f"{arch}."): v for k, v in fields.items() if k.startswith(f"{arch}.")}
    head = _head(said)
    wrong = []
    for key, value in (said | _absent(arch, config, head) | said).items():
        if key not in _HARMLESS and not _follows(config, key, value, head):
            wrong.append(f"{arch}.{key} is {value!r}" if key in said else f"no {arch}.{key}")
    refuse_if(wrong, f"{', '.join(wrong[:5])}: the model made of it would not follow that")
    if fields.get("tokenizer.ggml.model") == "llama":
        prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
        refuse_if(
            tokenizer.tokenize("a")[0].startswith("\u2581") != prefix,
            f"tokenizer.ggml.add_space_prefix is {prefix}, and is not applied",
        )


def _head(said: dict[str, Any]) -> int | None:
    """The width of a head, by the file; None where it has none, or one for each layer."""
    width, heads = said.get("embedding_length"), said.get("attention.head_count")
    whole = isinstance(width, int) and isinstance(heads, int) and heads
    return said.get("attention.key_length") or (width // heads if whole else None)


def _absent(arch: str, config, head: int | None) -> dict[str, Any]:
    """What llama.cpp takes for the keys that a file has not."""
    if not getattr(config, "rope_parameters", None):
        return {}
    absent = {"rope.freq_base": 10000.0, "rope.scaling.type": "none"}
    absent["attention.sliding_window"] = 4096 if arch == "gemma2" else 0
    if head:
        absent["attention.key_length"] = head
    if hasattr(config, "query_pre_attn_scalar"):
        largest = (arch, config.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62))
        width = config.hidden_size // config.num_attention_heads if largest else config.head_dim
        absent["attention.scale"] = width**-0.5
    return absent


def _follows(config, key: str, value: Any, head: int | None) -> bool:
    """Is it so in the configuration? Or without effect?"""
    place = _place(config, key, head)
    if key == "attention.sliding_window":  # a window that nothing is longer than is none
        longest = config.max_position_embeddings
        return min(value or longest, longest) == min(place or longest, longest)
    if key == "rope.scaling.type":
        return place == ("default" if value == "none" else value)
    if place is None:
        values = value if isinstance(value, list) else [value]
        return all(number in _WITHOUT_EFFECT.get(key, (0,)) for number in values)
    if isinstance(value, list) and not isinstance(place, list):  # of each layer; 0: it has none
        return set(value) - {0} == {place} and (0 not in value or hasattr(config, "layer_types"))
    if isinstance(value, (str, list)) or isinstance(place, (str, list)):
        return value == place
    return math.isclose(value, place, rel_tol=1e-6)


def _place(config, key: str, file_head: int | None) -> Any:
    """What the configuration has for a key; None for nothing."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if key in ("attention.key_length", "attention.value_length"):
        return getattr(config, "global_head_dim", None) or head
    if key in ("attention.key_length_swa", "attention.value_length_swa"):
        return head
    if key == "attention.scale":
        scale = getattr(config, "query_pre_attn_scalar", None) or head
        return getattr(config, "attention_multiplier", scale**-0.5)
    if key == "attention.sliding_window_pattern":
        layers = getattr(config, "layer_types", None)
        return layers and [kind == "sliding_attention" for kind in layers]
    if key.startswith("rope."):
        return _rope_place(config, key, file_head or head)
    names = (getattr(config, name, None) for name in _NAMES.get(key, "").split())
    return next((value for value in names if value is not None), None)


def _rope_place(config, key: str, head: int) -> Any:
    rope = getattr(config, "rope_parameters", None) or {}
    layers = "sliding_attention" if key.endswith("_swa") else "full_attention"
    rope = rope.get(layers, {} if key.endswith("_swa") else rope)
    if key.startswith("rope.dimension_count"):
        share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
        return getattr(config, "rotary_dim", None) or int(head * (share or 1.0))
    return rope.get(_ROPE_NAMES.get(key))


def check_tensors(tensors: dict[str, Any], net, report: dict[str, Any]) -> None:
    """Raises WorkbenchError, with its name, for a weight that the file lacks, that does not fit, or
    that nothing reads.
    """
    for name, written, wanted in report["mismatched_keys"]:
        shapes = f"{list(written)}, and the rest asks for {list(wanted)}"
        raise WorkbenchError(f"its weight {name} has the shape {shapes}")
    absent, unread = set(report["missing_keys"]), set(report["unexpected_keys"])
    names = _read_names(net)
    if names:
        present = {name for name in tensors if not _all_ones(name, tensors[name])}
        tied = {"output.weight"} if net.config.get_text_config().tie_word_embeddings else set()
        absent |= names - present - tied
        unread |= present - names
    if absent:
        raise WorkbenchError(f"it lacks {len(absent)} of its weights, such as {min(absent)}")
    if unread:
        raise WorkbenchError(f"{len(unread)} of its tensors have no place, such as {min(unread)}")


def _all_ones(name: str, tensor) -> bool:
    """Factors of the rotary frequencies that change none."""
    return name.startswith("rope_f") and bool((tensor == 1).all())


def _read_names(net) -> set[str]:
    """The tensors that transformers reads into this model; none where its report says so itself."""
    from transformers import modeling_gguf_pytorch_utils as loader

    arch = net.config.get_text_config().model_type
    table = loader.TENSOR_PROCESSORS
    processor = table.get(arch.replace("_", ""), table.get(arch, loader.TensorProcessor))()
    try:
        names = loader.get_gguf_hf_weights_map(net, processor)
    except NotImplementedError:  # of a newer kind
        return set()
    return {name if name.endswith((".weight", ".bias")) else f"{name}.weight" for name in names}
