"""A policy is a causal LM with its tokenizer; a learner is a policy with an optimiser, a frozen
reference and an EMA teacher.

With LoRA, policy, reference and teacher are one frozen base: the reference is the base with its
adapters off, the teacher a second adapter. The base may be kept in bf16, or in 4 bits a weight
(QLoRA, arXiv 2305.14314); the adapters are fp32 always. With full fine-tuning the reference is a
frozen copy of the weights as they were loaded, and the teacher one more, made when it is first
asked for.

What a learner holds may be split over the processes of a run (shard.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core import Message, WorkbenchError


class Policy:
    """Any Hugging Face causal LM whose logits are its last hidden state times its output embedding."""

    engine = None  # who writes its tokens: None, sampling.py itself, or a vllm.VLLM
    unsloth = False  # loaded by Unsloth, which then also makes the adapter
    # training keeps one state a layer and makes the others again: less memory, a third more time
    checkpointing = False
    # False: its weights are split over ranks (shard.py), and are only here while the modules'
    # forward passes gather them
    gathered = True

    def __init__(self, model: nn.Module, tokenizer, name: str = ""):
        self.model, self.tokenizer, self.name = (
            model,
            tokenizer,
            name or getattr(model.config, "_name_or_path", ""),
        )
        if not tokenizer.chat_template:
            raise WorkbenchError(
                f"{self.name or 'the model'} has no chat template: take an "
                "instruction-tuned model, "
                "or set tokenizer.chat_template"
            )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def base(self) -> nn.Module:
        """The transformers model, inside peft's wrapper if there is one (its adapter layers stay
        active).
        """
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> nn.Module:
        return self.base.get_decoder()

    @property
    def head(self) -> Tensor:
        """[V, D] output embedding."""
        return self.base.get_output_embeddings().weight

    @property
    def trains_in_fp32(self) -> bool:
        """Weights in fp32, and no other engine: they can all be trained, and sampler and trainer
        give a token the same log-prob but for rounding.
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
        """Tokens that end a turn: the tokenizer's end-of-sequence and those of the generation
        config.
        """
        config = getattr(self.base, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        listed = listed if isinstance(listed, (list, tuple)) else [listed]
        return frozenset(i for i in (*listed, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.stop_ids)

    def need_gathered(self) -> None:
        """Raises WorkbenchError where ranks would have to wait for each other, and would not all
        come.
        """
        if not self.gathered:
            raise WorkbenchError(
                f"{self.name} is sharded: sample from it, and read with it, inside `with "
                "learner.gathered():`"
            )

    def prompt_ids(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """Token ids of the conversation with the assistant's header, ready to be continued."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        # raised by the template itself: "System role not supported", "Conversation roles must
        # alternate", ...
        except TemplateError as error:
            raise WorkbenchError(
                f"the chat template of {self.name} refuses this prompt: {error}"
            ) from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, with the end-of-turn token."""
        return (
            *self.tokenizer(text, add_special_tokens=False)["input_ids"],
            self.tokenizer.eos_token_id,
        )

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

        again = self.checkpointing and torch.is_grad_enabled()
        layers = [
            module
            for module in self.decoder.modules()
            if again and isinstance(module, GradientCheckpointingLayer)
        ]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False
