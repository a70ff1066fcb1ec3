"""A policy: a causal LM with its tokenizer, and all that the workbench asks of the two.

How one is loaded is in loading.py; what trains it in learner.py; how its tokens are scored in
batch.py and written in rollouts/sampling.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core import Message, WorkbenchError
from workbench.model import families
from workbench.model.scores import capped


class Policy:
    """Any Hugging Face causal LM whose logits are its last hidden state times its output embedding,
    perhaps scaled and soft-capped.

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
        return families.decoder(self.base)

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
        return families.context(self.base.config)

    @cached_property
    def pads_left(self) -> bool:
        """Whether padding on the left leaves a row as it is alone, so that prompts of different
        lengths can be read together with a cache.
        """
        return not families.recurrent(self.base.config)

    @cached_property
    def logits(self) -> families.LogitForm:
        """What becomes of the products of last hidden states and head.

        Of what the configuration may mean, the one that gives the model's own logits. Raises
        WorkbenchError where none does.
        """
        forms = families.logit_forms(self.base.config)
        return forms[0] if len(forms) == 1 else self.find_logits(forms)

    @torch.no_grad()
    def find_logits(self, forms: Sequence[families.LogitForm]) -> families.LogitForm:
        """The one of ``forms`` that makes the model's logits of its states. Raises WorkbenchError
        where none does.
        """
        ids = self.probe[None, :4]
        logits = self.base(input_ids=ids, use_cache=False).logits.float()
        states = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        errors = []
        for scale, cap in forms:
            products = nn.functional.linear(states * scale, self.head).float()
            made = capped(products, cap)[..., : logits.shape[-1]]
            errors.append(float((made - logits[..., : made.shape[-1]]).abs().max()))
        least = min(errors) if len(self.head) <= logits.shape[-1] else math.inf
        exact = 1e-5 if self.head.dtype in (torch.float32, torch.float64) else 1e-2
        if not least <= exact * float(logits.abs().max()):
            raise WorkbenchError(
                f"{self.name} does something to its logits after the output embedding that its "
                "configuration does not name, so its tokens cannot be scored"
            )
        return forms[errors.index(least)]

    @property
    def probe(self) -> Tensor:
        """[12] token ids from the middle of the vocabulary, where no control tokens are."""
        rows = len(self.head)
        middle = torch.arange(12, device=self.device) * max(1, rows // 64)
        return (middle + rows // 3) % rows

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

        Raises WorkbenchError where the chat template refuses it.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        # the template's own: "System role not supported", "Conversation roles must alternate", ...
        except TemplateError as error:
            raise WorkbenchError(
                f"the chat template of {self.name} refuses this prompt: {error}"
            ) from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, with the end-of-turn token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, self.tokenizer.eos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without the end-of-turn token."""
        ids = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def hidden(self, input_ids: Tensor, **inputs) -> Tensor:
        """[B, S, D] last hidden states, ``scaled``."""
        with self._checkpointed():
            output = self.decoder(input_ids=input_ids, use_cache=False, **inputs)
        return self.scaled(output.last_hidden_state)

    def scaled(self, hidden: Tensor) -> Tensor:
        """States whose products with the head are the logits, but for the cap."""
        scale = self.logits.scale
        return hidden if scale == 1 else hidden * scale

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """transformers makes activations again only in layers in training mode.

        They are told so for this pass; what they do then, dropout, they do as outside training.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = []
        if self.checkpointing and torch.is_grad_enabled():
            modules = self.decoder.modules()
            layers = [m for m in modules if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(_again, layer)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False


def _again(layer: nn.Module, function, *inputs):
    """A layer's forward pass that keeps its inputs alone. Both times it is not in training mode:
    some layers ask for that themselves where they drop out.
    """
    layer.training = False
    try:
        return checkpoint(function, *inputs, use_reentrant=False)
    finally:
        layer.training = True
