"""Fixtures: a tiny random Llama with the organism's tokenizer, so that no test needs a trained
checkpoint, a GPU or the network.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jaxtyping
import pytest

try:
    import beartype  # noqa: F401
except ImportError:
    pass
else:  # the shapes written in signatures are checked whenever a test runs them
    jaxtyping.install_import_hook("workbench.model.scores", "beartype.beartype")

import torch
import toys


@pytest.fixture
def tiny_policy():
    """A fresh 2-layer Llama, hidden 32, in memory; always with the same weights."""
    return toys.tiny_policy()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The same model in Hugging Face format. Read only."""
    return toys.saved(toys.tiny_policy(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
