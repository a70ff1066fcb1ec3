"""A tiny random model of each family, made from its configuration class in some milliseconds.

``FAMILIES``: what is right; ``REFUSED``: what cannot be decoded here. Four layers, so that a
family's kinds of layer all occur; windows and chunks of 8 tokens, shorter than the prompts.
"""

from functools import lru_cache

import torch

from data.organism.build.common import tokenizer
from workbench.model.policy import Policy

WINDOW = 8
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "tie_word_embeddings": True,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
LATENT = {  # MLA
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
WINDOWED = GROUPED | {"sliding_window": WINDOW, "layer_types": SLIDING}
NO_GROUPS = {"num_attention_heads": 4}
FAMILIES = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED | MOE | {"num_experts": 4},
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "ministral": WINDOWED,
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": WINDOWED | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 4.0},
    "gemma3_text": WINDOWED | {"final_logit_softcapping": 3.0},
    "gemma3n_text": WINDOWED
    | {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": WINDOWED | {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
    "olmo2": GROUPED,
    "olmo3": WINDOWED,
    "phi3": GROUPED,
    "smollm3": GROUPED | {"no_rope_layer_interval": 2},
    "gpt_oss": WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": GROUPED | {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "hyperclovax": GROUPED | {"logits_scaling": 0.3},
    "minicpm3": LATENT | {"dim_model_base": 16},
    "cohere": GROUPED | {"logit_scale": 0.5},
    "cohere2": WINDOWED | {"logit_scale": 0.5},
    "nanochat": GROUPED | {"final_logit_softcapping": 3.0},
    "glm4": GROUPED,
    "exaone4": WINDOWED,
    "deepseek_v3": LATENT
    | MOE
    | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "llama4_text": GROUPED
    | {
        "attention_chunk_size": WINDOW,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 0, 1],
    },
    "qwen3_5_text": GROUPED | DELTA | {"layer_types": HYBRID},
    "qwen3_next": GROUPED
    | DELTA
    | MOE
    | {"layer_types": HYBRID, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "lfm2": GROUPED
    | {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_bias": True},
    "falcon_h1": GROUPED | MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "nemotron_h": GROUPED
    | MOE
    | {
        "layers_block_type": ["mamba", "attention", "mamba", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    "bamba": GROUPED | MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": GROUPED
    | MAMBA
    | {
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "logits_scaling": 4.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
    "jamba": GROUPED
    | {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "mpt": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "xglm": {"ffn_dim": 48, "init_std": 0.3},
    "biogpt": {},
    "bart": {
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "init_std": 0.3,
    },
}
TEXT = GROUPED | {"max_position_embeddings": 96}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
WRAPPED = {  # the text model of each, and the tower beside it
    "gemma3": (WINDOWED | {"max_position_embeddings": 96}, VISION),
    "mistral3": (TEXT | {"sliding_window": None}, VISION | {"head_dim": 8}),
    "qwen2_5_vl": (
        TEXT | {"rope_parameters": ROPE},
        QWEN_VISION | {"out_hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3_vl": (
        TEXT | {"rope_parameters": ROPE},
        QWEN_VISION | {"out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "llama4": (FAMILIES["llama4_text"], VISION | {"vision_output_dim": 16}),
    "gemma4": (
        FAMILIES["gemma4_text"] | {"max_position_embeddings": 96},
        VISION | {"head_dim": 8, "num_key_value_heads": 2},
    ),
    "qwen3_5": (
        FAMILIES["qwen3_5_text"]
        | {"max_position_embeddings": 96, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
        QWEN_VISION | {"out_hidden_size": 32, "num_position_embeddings": 16},
    ),
}
REFUSED = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32},
    "minimax": GROUPED | {"num_local_experts": 4, "block_size": 8},
    "recurrent_gemma": GROUPED | {"lru_width": 32, "attention_window_size": WINDOW},
    "openai-gpt": {},
}


def config(family: str, **options):
    """The configuration of a tiny model. Raises KeyError where transformers lacks the family."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tok = tokenizer()
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    kind = CONFIG_MAPPING[family]
    if family in WRAPPED:
        text, vision = WRAPPED[family]
        sizes = SIZES | text | ends | options
        made = kind(text_config=sizes, vision_config=vision, tie_word_embeddings=True)
        return made
    own = (FAMILIES | REFUSED)[family]
    return kind(**SIZES | ends | own | options)


@lru_cache
def model(family: str, seed: int = 0):
    """Random weights, large and uneven enough that a wrong position, key or state shows."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    made = config(family)
    torch.manual_seed(seed)
    causal = type(made) in AutoModelForCausalLM._model_mapping
    loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    net = loader.from_config(made, dtype=torch.float32).eval().requires_grad_(False)
    for name, weight in net.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.uniform_(0.5, 1.5)
        elif name.endswith("bias") or "sinks" in name:
            weight.normal_(0.0, 0.3)
    return net


def policy(family: str, seed: int = 0) -> Policy:
    from copy import deepcopy

    return Policy(deepcopy(model(family, seed)), tokenizer(), family)
