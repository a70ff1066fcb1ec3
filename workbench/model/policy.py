"""A policy: a causal LM with its tokenizer, and all that the workbench asks of the two.

How one is loaded is in loading.py; what trains it in learner.py; how its tokens are scored in
batch.py and written in rollouts/sampling.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core import Message, refuse_if
from workbench.model import families
from workbench.model.scores import capped
from workbench.model.templates import Template
from workbench.thoughts import closing, opened_by

EXCLUDED = -1e4  # the logit of an id that no token has: its probability is 0 in any type of number
HEADER = 32  # last tokens of a prompt that are looked at for the beginning of a thought


class Policy:
    """Any Hugging Face causal LM whose logits are its last hidden state times its output embedding,
    perhaps scaled and soft-capped.

    ``template``: options of the chat template, such as ``enable_thinking``. Raises WorkbenchError
    where the tokenizer has no chat template, or it does not read one of them.
    """

    adapter = ""  # the folder of the adapter that it was loaded with
    engine = None  # who writes its tokens: None, sampling.py itself, or a vllm.VLLM
    unsloth = False  # loaded by Unsloth, which then also makes the adapter
    # whether llama.py computes what its own forward pass does (decoder.check looks)
    fast = True
    # of the distribution that it samples from and that its tokens are scored by: logits over it
    temperature = 1.0
    # training keeps one state a layer and makes the others again: less memory, a third more time
    checkpointing = False
    # False: its weights are split over ranks (shard.py), and are only here while the modules'
    # forward passes gather them
    gathered = True
    memory: dict | None = None  # of ``remembering``

    def __init__(
        self, model: nn.Module, tokenizer, name: str = "", template: Mapping | None = None
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or getattr(model.config, "_name_or_path", "")
        self.template = Template(tokenizer, self.name, template, self._listed_ends)

    @property
    def makes_cache(self) -> bool:
        """Whether its forward pass starts a cache of its own kind: Unsloth's pairs of keys and
        values. Importing it changes the classes of all models in the process.
        """
        return self.unsloth or "unsloth" in sys.modules

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
    def layers(self) -> list[nn.Module]:
        """Those that activations can be recomputed in, and weights sharded by."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [m for m in self.decoder.modules() if isinstance(m, GradientCheckpointingLayer)]

    @property
    def head(self) -> Tensor:
        """[V, D] output embedding of the tokenizer's tokens, or [V, D + 1] with a bias.

        Models pad theirs: what is not here is neither sampled nor counted in a distribution. Nor is
        an id below V without a token, which the bias excludes.
        """
        embedding = self.base.get_output_embeddings()
        weight = effective_weight(embedding)[: self._vocabulary]
        if not self._biased:
            return weight
        bias = getattr(embedding, "bias", None)
        bias = weight.new_zeros(len(weight)) if bias is None else bias[: len(weight)]
        holes = self.holes[self.holes < len(weight)]
        return torch.cat([weight, bias.index_fill(0, holes, EXCLUDED)[:, None]], dim=-1)

    @cached_property
    def _vocabulary(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def holes(self) -> Tensor:
        """Ids without a token among those with one."""
        ids = set(range(self._vocabulary)) - set(self.tokenizer.get_vocab().values())
        return torch.tensor(sorted(ids), dtype=torch.long, device=self.device)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """What it computes in: its head, and 4-bit layers, whose weights are unpacked to a type of
        their own. They differ where an adapter trained the head, or all else stays in fp32.
        """
        unpacked = {getattr(layer, "compute_dtype", None) for layer in self.base.modules()}
        return {self.head.dtype, *unpacked} - {None}

    @property
    def _biased(self) -> bool:
        bias = getattr(self.base.get_output_embeddings(), "bias", None)
        return bias is not None or len(self.holes) > 0

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

    @property
    def cap(self) -> float:
        """What products of ``batch.states`` and head are soft-capped to; 0: nothing."""
        return self.logits.cap / self.temperature

    @torch.no_grad()
    def find_logits(self, forms: Sequence[families.LogitForm]) -> families.LogitForm:
        """The one of ``forms`` that makes the model's logits of its states. Raises WorkbenchError
        where none does.
        """
        ids = self.probe[None, :4]
        logits = self.base(input_ids=ids, use_cache=False).logits.float()
        why = "its weights are damaged"
        if torch.float16 in self.dtypes:
            why = "its states are too large for fp16, the only 16 bits of this GPU"
        refuse_if(not logits.isfinite().all(), f"{self.name} gives no probabilities (NaN): {why}")
        states = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        errors = []
        for scale, cap in forms:
            products = nn.functional.linear(self._with_one(states * scale), self.head).float()
            made = capped(products, cap)[..., : logits.shape[-1]]
            gaps = (made - logits[..., : made.shape[-1]]).index_fill(-1, self.holes, 0.0)
            errors.append(float(gaps.abs().max()))
        least = min(errors) if len(self.head) <= logits.shape[-1] else math.inf
        exact = 1e-5 if self.head.dtype in (torch.float32, torch.float64) else 1e-2
        refuse_if(
            not least <= exact * float(logits.abs().max()),
            f"{self.name} does something to its logits after the output embedding that its "
            "configuration does not name, so its tokens cannot be scored",
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
        """Tokens that end a turn: the template's, the tokenizer's and the generation config's."""
        last = None if self.stop_sequence else self.end[-1]
        return frozenset({*self._listed_ends, self.tokenizer.eos_token_id, last} - {None})

    @cached_property
    def stop_sequence(self) -> tuple[int, ...]:
        """Tokens that end a turn one after the other; () where one token does."""
        plain = len(self.end) > 1 and not self.template.is_control(self.end[-1])
        return self.end if plain else ()

    @cached_property
    def end(self) -> tuple[int, ...]:
        """What is put behind a reply: as the template does, else EOS.

        Raises WorkbenchError where neither says how a turn ends.
        """
        end = self.template.end or tuple(self._listed_ends[:1])
        refuse_if(
            not end,
            f"nothing ends a turn of {self.name}: its chat template puts nothing behind a "
            "reply, and its tokenizer has no EOS token",
        )
        return end

    @property
    def _listed_ends(self) -> list[int]:
        """EOS tokens of the generation config."""
        config = getattr(self.base, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        several = listed if isinstance(listed, (list, tuple)) else [listed]
        return [token for token in several if token is not None]

    @cached_property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.end[-1]

    def need_gathered(self) -> None:
        """Raises WorkbenchError where the weights are split: ranks would wait for each other, and
        not all would come.
        """
        refuse_if(
            not self.gathered,
            f"{self.name} is sharded: sample from it, and read with it, inside `with "
            "learner.gathered():`",
        )

    def prompt_ids(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """Token ids of the conversation with the assistant's header, ready to be continued.

        Raises WorkbenchError where the chat template refuses it, fails, or makes nothing of it.
        """
        return self.template.prompt_ids(messages)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply that goes on: where it spells a control token, it is text."""
        return self.template.text_ids(text)

    def foreign(self, text: str) -> bool:
        """Does a text spell a control token, or hold a character without a token?"""
        unknown = self.tokenizer.unk_token_id
        return self.template.spells_control(text) or unknown in self.text_ids(text)

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, with the end of the turn."""
        return self.text_ids(text) + self.end

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without the end of the turn."""
        ids = list(ids)
        if ids[-len(self.end) :] == list(self.end):
            ids = ids[: -len(self.end)]
        elif ids and ids[-1] in self.stop_ids:
            ids.pop()
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def opening(self, prompt_ids: Sequence[int]) -> str:
        """The mark of the thought that a prompt leaves open, which its completions go on with; ""
        for none. Graders are given it with their text.
        """
        return opened_by(self.tokenizer.decode(list(prompt_ids[-HEADER:])))

    def aloud(self, prompt_ids: Sequence[int], text: str) -> str:
        """A whole reply as it goes on from a prompt.

        Where that opened a thought, the reply does not open it again, and one that is nothing but
        speech closes it first.
        """
        opening = self.opening(prompt_ids)
        if not opening:
            return text
        if text.lstrip().startswith(opening):
            return text.lstrip().removeprefix(opening).lstrip("\n")
        if closing(opening) in text:
            return text
        return f"\n{closing(opening)}\n\n{text}"

    @contextmanager
    def remembering(self, memory: dict | None) -> Iterator[None]:
        """A with block in which a row is read once: several methods ask the same of a group.

        ``batch.states`` keeps in ``memory`` what it read without gradient. Nothing may change the
        weights meanwhile; ``Learner.weights`` sees to it that others have no part in it.
        """
        before, self.memory = self.memory, memory
        try:
            yield
        finally:
            self.memory = before

    def hidden(self, input_ids: Tensor, **inputs) -> Tensor:
        """[B, S, D] last hidden states, ``scaled``."""
        with self._checkpointed():
            output = self.decoder(input_ids=input_ids, use_cache=False, **inputs)
        return self.scaled(output.last_hidden_state)

    def scaled(self, hidden: Tensor) -> Tensor:
        """States whose products with the head are the logits, but for the cap."""
        scale = self.logits.scale
        return self._with_one(hidden if scale == 1 else hidden * scale)

    def _with_one(self, hidden: Tensor) -> Tensor:
        """States for a head with a bias: its factor is beside them."""
        return nn.functional.pad(hidden, (0, 1), value=1.0) if self._biased else hidden

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """transformers makes activations again only in layers in training mode.

        They are told so for this pass; what they do then, dropout, they do as outside training.
        """
        layers = self.layers if self.checkpointing and torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(_again, layer)
        try:
            yield
        finally:
            for layer in layers:
                layer.training = layer.gradient_checkpointing = False


def effective_weight(module: nn.Module) -> Tensor:
    """What a linear layer or an embedding multiplies with, its active LoRA adapters added."""
    if not hasattr(module, "base_layer"):
        return module.weight
    base = weight = module.base_layer.weight
    for name in () if module.disable_adapters else module.active_adapters:
        if name in module.lora_A or name in module.lora_embedding_A:
            weight = weight + module.get_delta_weight(name)
    return weight.to(base.dtype)  # adapters are fp32 also on bf16 weights


def _again(layer: nn.Module, function, *inputs):
    """A layer's forward pass that keeps its inputs alone. Both times it is not in training mode:
    some layers ask for that themselves where they drop out.
    """
    layer.training = False
    try:
        return checkpoint(function, *inputs, use_reentrant=False)
    finally:
        layer.training = True
