"""A policy: a causal LM with its tokenizer, and all that the workbench asks of the two.

How one is loaded is in loading.py; what trains it in learner.py; how its tokens are scored in
batch.py and written in rollouts/sampling.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core import Message, WorkbenchError, first_line


class Policy:
    """Any Hugging Face causal LM whose logits are its last hidden state times its output embedding.

    Raises WorkbenchError where the tokenizer has no chat template.
    """

    engine = None  # who writes its tokens: None, sampling.py itself, or a vllm.VLLM
    unsloth = False  # loaded by Unsloth, which then also makes the adapter
    # training keeps one state a layer and makes the others again: less memory, a third more time
    checkpointing = False
    # False: its weights are split over ranks (shard.py), and are only here while the modules'
    # forward passes gather them
    gathered = True

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or getattr(model.config, "_name_or_path", "")
        if not tokenizer.chat_template:
            raise WorkbenchError(
                f"{self.name or 'the model'} has no chat template: take an instruction-tuned "
                "model, or set tokenizer.chat_template"
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def base(self) -> nn.Module:
        """The transformers model, inside peft's wrapper if there is one.

        Its adapter layers stay active.
        """
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> nn.Module:
        """The layers: token ids to last hidden states, without the head."""
        return self.base.get_decoder()

    @property
    def head(self) -> Tensor:
        """[V, D] output embedding."""
        return self.base.get_output_embeddings().weight

    @property
    def trains_in_fp32(self) -> bool:
        """Weights in fp32, and no other engine.

        They can all be trained, and sampler and trainer give a token the same log-prob but for
        rounding.
        """
        return (
            self.engine is None
            and self.head.dtype in (torch.float32, torch.float64)
            and not getattr(self.base, "is_quantized", False)
        )

    @property
    def context(self) -> int:
        """Longest prompt + completion, in tokens."""
        return getattr(self.model.config, "max_position_embeddings", 0) or 2**31

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the tokenizer's and those of the generation config."""
        config = getattr(self.base, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        several = listed if isinstance(listed, (list, tuple)) else [listed]
        return frozenset({*several, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.stop_ids)

    def need_gathered(self) -> None:
        """Raises WorkbenchError where the weights are split: ranks would wait for each other, and
        not all would come.
        """
        if not self.gathered:
            raise WorkbenchError(
                f"{self.name} is sharded: sample from it, and read with it, inside `with "
                "learner.gathered():`"
            )

    def prompt_ids(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """Token ids of the conversation with the assistant's header, ready to be continued.

        Raises WorkbenchError where the chat template refuses it, fails, or makes nothing of it.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        # the template's own: "System role not supported", "Conversation roles must alternate", ...
        # or any: it is a program
        except Exception as error:
            raise WorkbenchError(
                f"the chat template of {self.name} refuses this prompt: {first_line(error)}"
            ) from error
        if not ids:
            raise WorkbenchError(f"the chat template of {self.name} makes an empty prompt")
        return ids

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, with the end-of-turn token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, self.tokenizer.eos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without the end-of-turn token."""
        ids = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def hidden(self, input_ids: Tensor, **inputs) -> Tensor:
        """[B, S, D] last hidden states."""
        with self._checkpointed():
            return self.decoder(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """transformers makes activations again only in layers in training mode.

        They are told so for this pass; what is inside them, dropout, is not.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = []
        if self.checkpointing and torch.is_grad_enabled():
            modules = self.decoder.modules()
            layers = [m for m in modules if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False
