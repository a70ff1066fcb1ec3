"""A Llama, Qwen2 or Qwen3 model as a GGUF file, for llama.cpp, Ollama, LM Studio, ...

Names and metadata are those of llama.cpp's convert_hf_to_gguf.py. What it takes more of than is
written here (rope scaling, sliding windows, other families, SentencePiece) is refused: that script
converts the folder that ``workbench export`` writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workbench.core import needed, refuse_if

_FAMILIES = ("llama", "qwen2", "qwen3")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# how a byte-level tokenizer splits text before its merges -> llama.cpp's name for it
_SPLITS = {
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, "ByteLevel"): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _REST, "ByteLevel"): "qwen2",
    ("digits", "ByteLevel by words"): "smollm",
    ("ByteLevel by words",): "gpt-2",
}


def write_gguf(net: nn.Module, tokenizer, file: Path) -> None:
    """Matrices in the network's own type of numbers, vectors in fp32.

    Raises WorkbenchError where the model or its tokenizer cannot be written so.
    """
    gguf = needed("gguf", "writing GGUF needs the package gguf: pip install gguf")
    config = net.config
    _refuse(config)
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(file, config.model_type)
    # a file's tokenizer names every row of its embeddings: those that no token has are left out
    rows = min(config.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    _write_sizes(writer, config, net.dtype, rows)
    _write_tokenizer(writer, tokenizer, pieces, rows)
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in net.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        refuse_if(place is None, f"GGUF has no place for the weight {name}")
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            weight = _rotary_pairs(weight, config, ".k_proj." in name)
        by_token = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        writer.add_tensor(place, *_numbers(weight[:rows] if by_token else weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse(config) -> None:
    rope = config.get_text_config().rope_parameters or {}
    family = config.model_type
    refused = {
        f"the family {family}": family not in _FAMILIES,
        "rope scaling": rope.get("rope_type", "default") != "default",
        "sliding windows": bool(getattr(config, "use_sliding_window", False)),
        "biases": family == "llama" and (config.attention_bias or config.mlp_bias),
        f"the activation {getattr(config, 'hidden_act', '')}": config.hidden_act != "silu",
    }
    for what, is_refused in refused.items():
        refuse_if(
            is_refused,
            f"a GGUF file of a model with {what} is not written here: leave --gguf out, and "
            "give the folder to llama.cpp's convert_hf_to_gguf.py",
        )


def _write_sizes(writer, config, dtype: torch.dtype, rows: int) -> None:
    import gguf

    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_file_type(
        {
            torch.float32: gguf.LlamaFileType.ALL_F32,
            torch.float16: gguf.LlamaFileType.MOSTLY_F16,
            torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
        }[dtype]
    )
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(rows)


def _write_tokenizer(writer, tokenizer, pieces: dict, size: int) -> None:
    """``pieces``: its tokenizer.json. ``size``: rows of the embeddings."""
    import gguf

    split = _SPLITS.get(_steps(pieces["pre_tokenizer"]))
    refuse_if(
        pieces["model"]["type"] != "BPE" or split is None,
        "a GGUF file with this tokenizer is not written here (byte-level BPE as Llama 3, "
        "Qwen, SmolLM and GPT-2 have it is): leave --gguf out, and give the folder to "
        "llama.cpp's convert_hf_to_gguf.py",
    )
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, number in pieces["model"]["vocab"].items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for added in pieces["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    merges = [m if isinstance(m, str) else " ".join(m) for m in pieces["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name, number in {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(False)  # the chat template says where one is
    writer.add_chat_template(tokenizer.chat_template)


def _steps(splits: dict | None) -> tuple[str, ...]:
    """What a tokenizer.json's pre-tokenizer does, as ``_SPLITS`` has it."""
    if splits is None:
        return ()
    kind = splits["type"]
    if kind == "Sequence":
        return tuple(step for part in splits["pretokenizers"] for step in _steps(part))
    if kind == "Split" and not splits["invert"] and splits["behavior"] == "Isolated":
        return (splits["pattern"].get("Regex", ""),)
    if kind == "Digits" and splits["individual_digits"]:
        return ("digits",)
    if kind == "ByteLevel" and not splits["add_prefix_space"]:
        return ("ByteLevel by words" if splits["use_regex"] else kind,)
    return (f"another {kind}",)


def _rotary_pairs(weight: Tensor, config, of_keys: bool) -> Tensor:
    """llama.cpp turns neighbouring numbers of a Llama's heads, transformers the two halves."""
    heads = config.num_key_value_heads if of_keys else config.num_attention_heads
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape)


def _numbers(weight: Tensor) -> tuple:
    """The array, its shape and its type, as ``GGUFWriter.add_tensor`` takes them."""
    import gguf

    if weight.ndim < 2:
        weight = weight.float()
    if weight.dtype != torch.bfloat16:
        return (weight.cpu().numpy(),)
    bits = weight.cpu().contiguous().view(torch.int16).numpy().view(np.uint8)
    return bits, None, gguf.GGMLQuantizationType.BF16
