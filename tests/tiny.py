"""Tiny models with random weights, made in a few milliseconds, for tests."""

import torch

from data.organism.build.common import tokenizer
from workbench.model.policy import Policy

# of models for the engines: vLLM's attention on CPUs has no smaller head
ENGINE_SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def policy(
    family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **options
) -> Policy:
    """A policy with sharp, varied distributions: weights large enough that a wrong position or a
    wrong key shows in the log-probs.
    """
    import transformers

    names = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "smollm3": "SmolLM3",
        "olmo2": "Olmo2",
        "gpt_neox": "GPTNeoX",
        "phi": "Phi",
    }
    torch.manual_seed(seed)
    tok = tokenizer()
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    if family != "gpt_neox":
        sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
    if family == "qwen3":
        sizes["head_dim"] = 8  # by default its heads are wide
    config = getattr(transformers, names[family] + "Config")(**sizes | options)
    model = (
        getattr(transformers, names[family] + "ForCausalLM")(config)
        .to(dtype)
        .eval()
        .requires_grad_(False)
    )
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            weight.normal_(0.0, 0.3)
    return Policy(model, tok, family)


def shake_adapter(model, name: str = "default", seed: int = 1) -> None:
    """Give an adapter's B, zero at the start, random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if f"lora_B.{name}." in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
