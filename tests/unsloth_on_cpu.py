"""Unsloth without a GPU: its own switch for tests, Triton's interpreter, and the calls to a device
that remain, answered.
"""

import contextlib
import os
import types

import torch

MEMORY = 8 << 30
DEVICE = types.SimpleNamespace(
    name="CPU", total_memory=MEMORY, major=8, minor=0, multi_processor_count=1
)
ANSWERS = {
    "get_device_properties": DEVICE,
    "get_device_capability": (8, 0),
    "mem_get_info": (MEMORY, MEMORY),
    "current_device": 0,
    "max_memory_reserved": 0,
    "memory_allocated": 0,
    "memory_reserved": 0,
    "synchronize": None,
    "empty_cache": None,
}


class NoDevice(contextlib.nullcontext):
    """``torch.cuda.device(...)``: nothing to switch to."""

    def __init__(self, *_):
        super().__init__()


class OneDevice:
    """A table with one entry, whatever the number of the device that asks: a CPU has none."""

    def __init__(self, value=None):
        self.value = value

    def __getitem__(self, _):
        return self.value

    def __setitem__(self, _, value):
        self.value = value

    def __len__(self):
        return 0


def start() -> None:
    """Import it. Everything that transformers makes afterwards is changed, as by any import."""
    os.environ.setdefault("UNSLOTH_ALLOW_CPU", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
    torch.cuda.device = NoDevice
    import unsloth
    from unsloth.models import llama

    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    llama.get_current_device = lambda: torch.device("cpu")
    tables = llama.LlamaRotaryEmbedding._init_rope_cache_state

    def one_device(self, dtype):
        tables(self, dtype)
        for name in ("multi_gpu_cos_cached", "multi_gpu_sin_cached", "_rope_cache_versions"):
            setattr(self, name, OneDevice())
        self._rope_rows_ready = OneDevice(0)

    llama.LlamaRotaryEmbedding._init_rope_cache_state = one_device
    return unsloth
