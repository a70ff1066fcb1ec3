"""GGUF files: loaded as they were written, or refused by the name of what would be lost."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from workbench.core import WorkbenchError
from workbench.model.loading import load_policy

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"


def net(family: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, 0.0, 0.3)
    return model


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp keeps a Llama's queries and keys: the halves of a head interleaved."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors(model, arch: str) -> dict[str, np.ndarray]:
    """A model's weights under their names in a GGUF file, as llama.cpp keeps them."""
    config = model.config
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    named = {}
    for key, value in model.state_dict().items():
        if key.endswith("experts.gate_up_proj"):
            block = f"blk.{key.split('.')[2]}"
            gate, up = (
                value.numpy().copy().reshape(len(value), 2, -1, value.shape[-1]).swapaxes(0, 1)
            )
            named |= {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}
            continue
        key = key if key.endswith((".weight", ".bias")) else f"{key}.weight"
        stem, _, suffix = key.rpartition(".")
        if names.get_name(stem) is None:  # Gemma's output is its embedding
            continue
        name, weight = f"{names.get_name(stem)}.{suffix}", value.numpy()
        if arch == "llama" and "attn_q." in name:
            weight = permuted(weight, config.num_attention_heads)
        if arch == "llama" and "attn_k." in name:
            weight = permuted(weight, config.num_key_value_heads)
        if arch.startswith("gemma") and "norm" in name:
            weight = weight + 1
        named[name] = np.ascontiguousarray(weight)
    return named


def metadata(model) -> dict[str, object]:
    """What a converter writes of every model."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    experts = {}
    if hasattr(config, "moe_intermediate_size"):
        experts["expert_count"] = config.num_experts
        experts["expert_used_count"] = config.num_experts_per_tok
        experts["expert_feed_forward_length"] = config.moe_intermediate_size
    return experts | {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": head,
        "vocab_size": config.vocab_size,
    }


def write(file: Path, arch: str, keys: dict, weights: dict, vocabulary: dict | None = None) -> Path:
    """A GGUF file with these tensors and these keys of the architecture, and a byte-level
    tokenizer.
    """
    writer = gguf.GGUFWriter(file, arch)
    pieces = [*sorted(ByteLevel.alphabet()), "<|end|>", "ab", *(f"<|{i}|>" for i in range(62))]
    told = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 1] + [3] * 62,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.ggml.unknown_token_id": 258,
        "tokenizer.ggml.padding_token_id": 256,
        "tokenizer.chat_template": TEMPLATE,
    }
    told |= {f"{arch}.{key}" if "~" not in key else key[1:]: v for key, v in keys.items()}
    for key, value in (told | (vocabulary or {})).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(file: Path, *names: str) -> None:
    """In one sentence that has the names, and nothing is left behind."""
    with pytest.raises(WorkbenchError) as error:
        load_policy(file)
    sentence = str(error.value)
    assert "\n" not in sentence and all(name in sentence for name in names), sentence
    assert not list((file.parent / "cache").rglob("*.*"))


TWO_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768, "head_dim": 16}
FAMILIES = {
    "llama": ("Llama", {}, {"rope.freq_base": 500000.0}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 128}, {"attention.key_length": 128}),
    "qwen3moe": ("Qwen3Moe", MOE | {"norm_topk_prob": True}, {"attention.key_length": 16}),
    "phi3": ("Phi3", {}, {}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 16},
        {"attention.sliding_window": 16, "attention.key_length": 256},
    ),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 256, "rope_parameters": TWO_ROPES, "sliding_window": 16},
        {"attention.sliding_window": 16, "rope.freq_base": 1e6, "attention.key_length": 256},
    ),
}


# A sentencepiece vocabulary, of bytes and a few letters.
PIECES = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        *("<pad>", "<eos>", "<bos>", "<unk>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"\u2581ab12",
        *(f"<{number}>" for number in range(55)),
    ],
    "tokenizer.ggml.token_type": [3, 3, 3, 2, *([6] * 256), *([1] * 60)],
    "tokenizer.ggml.scores": [0.0] * 320,
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_file_is_the_model_that_was_written(arch, tmp_path):
    family, options, keys = FAMILIES[arch]
    if arch == "llama":
        options = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    model = net(family, **options)
    words = PIECES if arch.startswith("gemma") else None
    file = write(tmp_path / "a.gguf", arch, metadata(model) | keys, tensors(model, arch), words)
    policy = load_policy(file)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected, logits = model(input_ids=ids).logits, policy.model(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert policy.decode(policy.completion_ids("a b 12")) == "a b 12"


# Of an architecture: a key that says something else than the model that comes out of the file.
CHANGED = """
llama rope.scaling.type linear
llama rope.scaling.type yarn
llama rope.scaling.factor 4.0
llama rope.scaling.original_context_length 64
llama rope.scaling.attn_factor 1.2
llama rope.scaling.yarn_log_multiplier 0.1
llama rope.scale_linear 2.0
llama rope.dimension_count 8
llama rope.dimension_sections [8, 8]
llama rope.freq_base_swa 5e5
llama attention.key_length 32
llama attention.value_length 32
llama attention.sliding_window 16
llama attention.scale 0.5
llama attention.causal False
llama attention.clamp_kqv 8.0
llama attention.max_alibi_bias 8.0
llama attention.temperature_scale 0.1
llama attention.head_count_kv [2, 0]
llama attn_logit_softcapping 50.0
llama final_logit_softcapping 30.0
llama logit_scale 0.0625
llama embedding_scale 12.0
llama residual_scale 0.22
llama expert_count 8
llama expert_used_count 2
llama expert_gating_func 2
llama use_parallel_residual True
llama swiglu_clamp_exp [7.0, 7.0]
llama a_key_of_next_year 1
qwen2 attention.sliding_window 16
qwen3 attention.key_length 64
qwen3 rope.scaling.type yarn
qwen3moe expert_weights_norm False
qwen3moe expert_weights_scale 2.5
phi3 attention.sliding_window 16
gemma2 final_logit_softcapping 20.0
gemma2 attn_logit_softcapping 20.0
gemma2 attention.scale 0.25
gemma3 attention.sliding_window_pattern [False, False]
"""


@pytest.fixture(scope="module")
def written():
    """(keys, tensors) of each family, made once."""
    made = {}
    for arch, (family, options, keys) in FAMILIES.items():
        model = net(family, **options)
        made[arch] = metadata(model) | keys, tensors(model, arch)
    return made


@pytest.mark.parametrize("row", CHANGED.strip().splitlines())
def test_metadata_that_is_not_applied_is_refused_by_its_name(row, tmp_path, written):
    arch, key, value = row.split(" ", 2)
    value = value if value in ("linear", "yarn") else ast.literal_eval(value)
    keys, weights = written[arch]
    name = "num_key_value_heads" if key == "attention.head_count_kv" else f"{arch}.{key} is"
    refused(write(tmp_path / "a.gguf", arch, keys | {key: value}, weights), name)


HARMLESS = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scaling.finetuned": False,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.scale": 0.25,
    "attn_logit_softcapping": 0.0,
    "attention.causal": True,
    "attention.sliding_window": 4096,  # longer than the context
    "attention.head_count_kv": [2, 2],
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "tensor_data_layout": "Meta AI original pth",
    "~general.sampling.temp": 0.6,
    "~mradermacher.quantized_on": "yesterday",
    "~quantize.imatrix.chunks_count": 100,
    "~tokenizer.ggml.add_bos_token": False,
    "~tokenizer.ggml.fim_pre_token_id": 260,
}


def same_net(file, folder, plain):
    """The file holds the network of the plain one, weight for weight and logit for logit."""
    loaded, wanted = load_policy(file), load_policy(write(folder / "plain.gguf", "llama", *plain))
    pairs = zip(loaded.model.parameters(), wanted.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, wanted.model(tokens).logits)


def test_metadata_without_effect_is_not_refused(tmp_path, written):
    keys, weights = written["llama"]
    plain = keys | {"rope.freq_base": 10000.0}
    keys = plain | HARMLESS
    keys.pop("attention.head_count_kv")
    keys |= {"attention.head_count_kv": 2}
    same_net(write(tmp_path / "a.gguf", "llama", keys, weights), tmp_path, (plain, weights))


def test_what_a_key_that_is_not_there_means(tmp_path, written):
    """llama.cpp turns by 10,000 then, and by nothing else."""
    keys, weights = written["gemma3"]
    without = {key: value for key, value in keys.items() if key != "rope.freq_base"}
    refused(write(tmp_path / "a.gguf", "gemma3", without, weights), "no gemma3.rope.freq_base")
    keys, weights = written["gemma2"]
    small = net("Gemma2", head_dim=16, tie_word_embeddings=True, query_pre_attn_scalar=16)
    file = tmp_path / "b.gguf"
    keys = metadata(small) | {"attention.key_length": 16}
    refused(write(file, "gemma2", keys, tensors(small, "gemma2")), "gemma2.attention.scale")


@pytest.mark.parametrize(
    "name",
    ["output_norm.weight", "blk.1.attn_k.weight", "token_embd.weight", "blk.0.ffn_up.weight"],
)
def test_a_missing_tensor_is_named(name, tmp_path, written):
    keys, weights = written["llama"]
    rest = {key: weight for key, weight in weights.items() if key != name}
    refused(write(tmp_path / "a.gguf", "llama", keys, rest), "lacks")


def test_half_of_the_experts_is_not_the_experts(tmp_path, written):
    """transformers leaves zeros for the other half."""
    keys, weights = written["qwen3moe"]
    rest = {key: weight for key, weight in weights.items() if key != "blk.0.ffn_up_exps.weight"}
    refused(write(tmp_path / "a.gguf", "qwen3moe", keys, rest), "blk.0.ffn_up_exps.weight")


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.2.attn_q.weight", "blk.0.attn_sinks"]
)
def test_a_tensor_without_a_place_is_named(name, tmp_path, written):
    keys, weights = written["llama"]
    more = weights | {name: np.full(8, 2.0, np.float32)}
    refused(write(tmp_path / "a.gguf", "llama", keys, more), "no place", name)


def test_factors_of_one_turn_nothing(tmp_path, written):
    keys, weights = written["llama"]
    more = weights | {"rope_freqs.weight": np.ones(8, np.float32)}
    same_net(write(tmp_path / "a.gguf", "llama", keys, more), tmp_path, written["llama"])


def test_a_tensor_of_another_shape_is_named(tmp_path, written):
    keys, weights = written["llama"]
    more = weights | {"blk.0.ffn_down.weight": np.ones((64, 32), np.float32)}
    refused(write(tmp_path / "a.gguf", "llama", keys, more), "mlp.down_proj", "[64, 32]")


def test_a_file_that_ends_early_or_is_packed_otherwise(tmp_path, written):
    keys, weights = written["llama"]
    whole = write(tmp_path / "a.gguf", "llama", keys, weights).read_bytes()
    for end in (len(whole) // 2, len(whole) - 1000, 3000, 30):
        (tmp_path / "b.gguf").write_bytes(whole[:end])
        refused(tmp_path / "b.gguf", "b.gguf")
    name = b"blk.0.ffn_down.weight"
    kind = whole.index(name) + len(name) + 4 + 2 * 8
    (tmp_path / "c.gguf").write_bytes(whole[:kind] + b"\xf0\0\0\0" + whole[kind + 4 :])
    refused(tmp_path / "c.gguf", "c.gguf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.type", "adapter"),
        ("general.type", "mmproj"),
        ("split.count", 3),
        ("adapter.lora.alpha", 16.0),
        ("xielu.alpha_p", [1.0]),
        ("tokenizer.ggml.pre", "deepseek-llm"),
        ("tokenizer.ggml.pre", "a-cut-of-next-year"),
    ],
)
def test_another_kind_of_file_is_named(key, value, tmp_path, written):
    keys, weights = written["llama"]
    refused(write(tmp_path / "a.gguf", "llama", keys, weights, {key: value}), key)


def test_digits_are_cut_as_the_file_says(tmp_path, written):
    """Blanks before a digit stay together: as GPT-2 cuts, the last would go with the digit."""
    keys, weights = written["llama"]
    tokens = []
    for cut in ("smollm", "gpt-2"):
        file = write(tmp_path / f"{cut}.gguf", "llama", keys, weights, {"tokenizer.ggml.pre": cut})
        tokenizer = load_policy(file).tokenizer
        cuts = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
        tokens.append([piece.replace("\u0120", "_") for piece, _ in cuts])
    assert tokens == [["a", "__", "1", "2"], ["a", "_", "_12"]]
