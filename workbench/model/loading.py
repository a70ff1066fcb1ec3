"""A policy from a folder, a hub id or a GGUF file, and a peft adapter on it.

The ways in which loading fails, said in one sentence each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from workbench.core import WorkbenchError, first_line
from workbench.model import decoder, distributed, gguf
from workbench.model.policy import Policy

# A damaged or foreign model fails in as many ways as there are files in it.
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    SafetensorError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
)
# either of them makes a folder with adapter_config.json an adapter
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def load_policy(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    frozen: bool = False,
    four_bit: bool = False,
    unsloth: bool = False,
) -> Policy:
    """Load a causal LM by folder, hub id, GGUF file or ``smollm2`` (gguf.py).

    ``adapter``: the folder of a peft adapter on it. ``device``: CUDA where there is one, else the
    CPU. ``frozen``: its weights will not be trained, so they may be bf16, and are where the device
    computes in it. ``four_bit``: NF4 with double quantisation (bitsandbytes), for LoRA only. Else
    fp32. ``unsloth``: through Unsloth's own kernels, for LoRA on CUDA only.

    Raises WorkbenchError, saying why in a sentence, where there is no such model or adapter.
    """
    distributed.start()
    source = source_of(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    may_be_half = (frozen or four_bit) and device != "cpu"
    half = may_be_half and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if half else torch.float32
    loader = import_unsloth() if unsloth else None
    more = {"quantization_config": _nf4(dtype), "device_map": {"": device}} if four_bit else {}
    try:
        if loader:
            net, tokenizer = loader.from_pretrained(str(source), dtype=dtype, load_in_4bit=four_bit)
        else:
            net, tokenizer = _from_pretrained(model, source, dtype=dtype, **more)
    except UNREADABLE as error:
        raise WorkbenchError(why_not_loaded(model, error)) from error
    if adapter is not None:
        net = _with_saved_adapter(net, adapter, model)
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
    decoder.check(policy)
    return policy


def _from_pretrained(model: str | Path, source: str | Path, **how) -> tuple[nn.Module, object]:
    """The network and its tokenizer, through transformers."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    loader = auto_class(AutoConfig.from_pretrained(source))
    net, report = loader.from_pretrained(source, output_loading_info=True, **how)
    missing = report["missing_keys"]
    if missing:  # transformers fills them with random numbers
        raise WorkbenchError(
            f"the model {model} lacks {len(missing)} of its weights, such as {min(missing)}"
        )
    return net, tokenizer


def auto_class(config) -> type:
    """Who loads it: a language model, or one with other towers beside it, which are left alone."""
    import transformers

    alone = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if alone or type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def _with_saved_adapter(net: nn.Module, adapter: str | Path, model: str | Path) -> nn.Module:
    from peft import PeftModel

    folder = Path(adapter)
    weights = any((folder / name).exists() for name in _ADAPTER_WEIGHTS)
    if not (folder / "adapter_config.json").exists() or not weights:
        raise WorkbenchError(
            f"there is no adapter in {adapter}: a folder with adapter_config.json and "
            "adapter_model.safetensors is needed"
        )
    try:
        return PeftModel.from_pretrained(net, str(adapter))
    except UNREADABLE as error:
        raise WorkbenchError(f"the adapter in {adapter} does not fit the model {model}") from error


def source_of(model: str | Path) -> str | Path:
    """What transformers loads: a folder, or a hub id as it is.

    Raises WorkbenchError for no name, and for a local folder or file that is not there.
    """
    if not str(model).strip():
        raise WorkbenchError("no model is named: a folder, a GGUF file or a hub id is needed")
    path = Path(model).expanduser()
    if str(model) == gguf.SMOLLM2 and not path.exists():
        return gguf.folder(gguf.smollm2())
    if path.suffix == ".gguf":
        if not path.is_file():
            raise WorkbenchError(f"there is no file {model}")
        return gguf.folder(path)
    named_as_path = str(model).startswith((".", "/", "~")) or path.parts[:1] == ("data",)
    looks_local = named_as_path or path.exists()
    if looks_local and not (path / "config.json").is_file():
        raise WorkbenchError(
            f"there is no model in {model}: a Hugging Face folder with a config.json is needed"
        )
    return path if looks_local else str(model)


def import_unsloth():
    """Unsloth's loader. Raises WorkbenchError without a GPU, and where it cannot be imported.

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
            f"Unsloth cannot be imported here (it wants constraints-gpu.txt): {first_line(error)}"
        ) from error
    return FastLanguageModel


def _nf4(dtype: torch.dtype):
    """4 bits a weight, computed with in bf16, or in fp32 where the hardware has no bf16."""
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # not installed, or its library does not load on this machine
        raise WorkbenchError(
            "4-bit weights need the package bitsandbytes, which cannot be imported here: "
            f"{first_line(error)}"
        ) from error
    from transformers import BitsAndBytesConfig

    # On a CPU without the instructions bf16 is five times slower than fp32.
    has_bf16 = dtype == torch.bfloat16
    if not torch.cuda.is_available():
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bf16 else torch.float32,
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

    def because_of(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if because_of(GatedRepoError):
        return (
            f"the model {model} is gated: accept its terms on its hub page, then log in with "
            "`hf auth login`"
        )
    if because_of(RepositoryNotFoundError):
        return (
            f"there is no model {model} on the hub (or it is private: log in with `hf auth "
            "login`), and no such folder here"
        )
    no_connection = any("ConnectError" in type(cause).__name__ for cause in causes)
    if no_connection or because_of(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError):
        return (
            f"the hub cannot be reached, and {model} is not in its cache: name a folder or a "
            "GGUF file, or smollm2"
        )
    return f"could not load the model {model}: {first_line(error)}"
