"""A policy from a folder, a hub id or a GGUF file, and a peft adapter on it.

The ways in which loading fails, said in one sentence each.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError
from torch import nn

from workbench.core import WorkbenchError, first_line, refuse_if, refuse_on
from workbench.model import adapters, decoder, distributed, families, gguf, templates
from workbench.model.policy import Policy
from workbench.records import check_seal

# bitsandbytes misses a kernel for CPUs with bf16 instructions, and says so to every reader of a
# notebook. It has no backward pass and is not used here (``_keep_gradients``).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_NO_HUB = (
    "the hub cannot be reached, and {model} is not in its cache: name a folder or a GGUF file, or "
    "smollm2"
)
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
    EOFError,
    UnpicklingError,
    struct.error,
)


def load_policy(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    frozen: bool = False,
    four_bit: bool = False,
    unsloth: bool = False,
    template: Mapping | None = None,
) -> Policy:
    """Load a causal LM by folder, hub id, GGUF file or ``smollm2`` (gguf.py).

    ``adapter``: the folder of a peft adapter on it (adapters.py); the tokenizer and its chat
    template are those beside it, where it has some. ``device``: CUDA where there is one, else the
    CPU. ``frozen``: its weights will not be trained, so they may be in 16 bits, and are on a GPU
    (``half_type``). ``four_bit``: NF4 with double quantisation (bitsandbytes), for LoRA only. Else
    fp32. ``unsloth``: through Unsloth's own kernels, for LoRA on CUDA only. ``template``: options
    of its chat template; None: those of the run that the model or adapter came out of, if any.

    Raises WorkbenchError, saying why in a sentence, where there is no such model or adapter.
    """
    distributed.start()
    source = source_of(model)
    about = {} if adapter is None else adapters.read_config(Path(adapter), model, unsloth=unsloth)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(device, may_be_half=(frozen or four_bit) and not adapters.whole_weights(about))
    loader = import_unsloth() if unsloth else None
    if isinstance(source, Path):
        check_seal(source)
    more = {"quantization_config": _nf4(device), "device_map": {"": device}} if four_bit else {}
    try:
        if loader:
            net, tokenizer = _through_unsloth(loader, source, device, dtype, four_bit)
        else:
            net, tokenizer = _from_pretrained(model, source, adapter, dtype=dtype, **more)
    except UNREADABLE as error:
        raise WorkbenchError(why_not_loaded(model, error)) from error
    if adapter is not None:
        net = adapters.load_adapter(net, Path(adapter), model)
    net.requires_grad_(False).eval()
    _keep_gradients(net)
    if not four_bit and not unsloth:
        net.to(device)
    policy = Policy(net, tokenizer, str(model), template)
    policy.unsloth, policy.adapter = unsloth, str(adapter or "")
    templates.settle(policy, adapter, model)
    decoder.check(policy)
    return policy


def _dtype(device: str, may_be_half: bool) -> torch.dtype:
    """Of weights; on a CPU they stay in fp32."""
    on_gpu = torch.device(device).type != "cpu"
    return (half_type(device) if may_be_half and on_gpu else None) or torch.float32


def half_type(device: str) -> torch.dtype | None:
    """The 16-bit type that a device computes in; None where it has none.

    fp16 on a GPU without bf16 (T4, V100); on a CPU bf16 where it has the instructions, without
    which it is five times slower than fp32.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    if kind != "cuda":
        return None
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def _keep_gradients(net: nn.Module) -> None:
    """bitsandbytes packs 4-bit weights for CPUs with bf16 instructions in a form that has no
    backward pass: the adapters would silently get wrong gradients (tests/test_loading.py).
    """
    for layer in net.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _from_pretrained(
    model: str | Path, source: str | Path, adapter: str | Path | None, **how
) -> tuple[nn.Module, object]:
    """The network and its tokenizer, through transformers."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading and writing files, between those of the work
    beside = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    own = {"trust_remote_code": False}  # code in a model's folder is never run
    tokenizer = AutoTokenizer.from_pretrained(adapter if beside else source, **own)
    loader = auto_class(AutoConfig.from_pretrained(source, **own))
    net, report = loader.from_pretrained(source, output_loading_info=True, **own, **how)
    refuse_if(
        getattr(net, "_hf_peft_config_loaded", False),  # transformers' own way to apply one
        f"{model} is an adapter, or holds one: name the model that it is for, and it with "
        "--adapter",
    )
    missing = report["missing_keys"]
    if missing:  # transformers fills them with random numbers
        raise WorkbenchError(
            f"the model {model} lacks {len(missing)} of its weights, such as {min(missing)}"
        )
    return net, tokenizer


def _through_unsloth(
    loader, source: str | Path, device: str, dtype: torch.dtype, four_bit: bool
) -> tuple[nn.Module, object]:
    """What it would do unasked is switched off.

    Rows are cut at ``max_seq_length``, 2,048 if it is not named, and where a model is shorter its
    rotary embedding is stretched to it: the adapter would then be one for another model. Layers
    are computed again in the backward pass (here ``Policy.checkpointing`` says whether), and the
    embedding goes to the CPU where the longest row might not fit.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return loader.from_pretrained(
        str(source),
        dtype=dtype,
        load_in_4bit=four_bit,
        trust_remote_code=False,
        max_seq_length=families.context(config),
        use_gradient_checkpointing=False,
        offload_embedding=False,
        device_map={"": device},
    )


def auto_class(config) -> type:
    """Who loads it: a language model, or one with other towers beside it, which are left alone."""
    import transformers

    alone = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if alone or type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def source_of(model: str | Path) -> str | Path:
    """What transformers loads: a folder, or a hub id as it is.

    Raises WorkbenchError for no name, and for a local folder or file that is not there.
    """
    refuse_if(
        not str(model).strip(), "no model is named: a folder, a GGUF file or a hub id is needed"
    )
    path = Path(model).expanduser()
    if str(model) == gguf.SMOLLM2 and not path.exists():
        return gguf.folder(gguf.smollm2())
    if path.suffix == ".gguf":
        refuse_if(not path.is_file(), f"there is no file {model}")
        return gguf.folder(path)
    named_as_path = str(model).startswith((".", "/", "~")) or path.parts[:1] == ("data",)
    looks_local = named_as_path or path.exists()
    if looks_local and (not (path / "config.json").is_file() or adapters.is_run(path)):
        raise WorkbenchError(f"there is no model in {model}: {_instead(path)}")
    if not looks_local:
        _refuse_without_hub(str(model))
    return path if looks_local else str(model)


def _refuse_without_hub(model: str) -> None:
    """At once, where transformers would try for half a minute: a name that no server can be asked
    for and that is not in the cache. (Behind a proxy only that asks, and it may know.)
    """
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        if getproxies() or isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
    except ValueError:  # no id of the hub: transformers says so
        return
    with refuse_on(OSError, _NO_HUB.format(model=model)):
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)


def _instead(folder: Path) -> str:
    """What to name where there is no model in ``folder``."""
    if (folder / "adapter_config.json").is_file():
        return "it is an adapter; name the model that it is for, and it with --adapter"
    if (folder / "adapter").is_dir():
        return f"this run trained an adapter; name its model, and {folder / 'adapter'} as --adapter"
    if adapters.is_run(folder):
        return f"it is a run, and its policy is {folder / 'model'}"
    return "a Hugging Face folder with a config.json is needed"


def import_unsloth():
    """Unsloth's loader. Raises WorkbenchError without a GPU, and where it cannot be imported.

    Importing it changes transformers, so it is done only when it is asked for, and before a model
    is loaded.
    """
    # the variable is its own, for tests: tools/engines.sh
    refuse_if(
        not torch.cuda.is_available() and os.environ.get("UNSLOTH_ALLOW_CPU") != "1",
        "Unsloth needs an NVIDIA GPU: leave --unsloth out, and the same run goes "
        "through transformers and peft",
    )
    missing = "Unsloth cannot be imported here (it wants constraints-gpu.txt)"
    with refuse_on(Exception, missing, why=True):
        from unsloth import FastLanguageModel
    return FastLanguageModel


def _nf4(device: str):
    """4 bits a weight, computed with in ``half_type``, or in fp32 where the device has none."""
    missing = "4-bit weights need the package bitsandbytes, which cannot be imported here"
    # not installed, or its library does not load on this machine
    with refuse_on(Exception, missing, why=True):
        import bitsandbytes  # noqa: F401
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half_type(device) or torch.float32,
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
        return _NO_HUB.format(model=model)
    if because_of(ValueError) and "trust_remote_code" in str(error):
        return (
            f"the model {model} comes with program code of its own, which is never run here: take "
            "one of an architecture that transformers has"
        )
    if because_of(UnpicklingError):
        return (
            f"the weights of {model} are damaged, or hold more than tensors: a .bin file may be a "
            "program, which is never run here; take one with safetensors"
        )
    return f"could not load the model {model}: {first_line(error)}"
