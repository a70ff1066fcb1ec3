"""The Llama family, without the parts of a general implementation that a rollout does not need.

    supported           whether a policy is one
    live, split_heads, Rotation    what its layers do, but for attention itself
    Weights, Decoder    decoding

The weights stay in the Hugging Face modules; these functions, and those of llama_states.py, read
them there at every call, with the LoRA adapter that is active. Whatever they do not cover (another
family, a window that a row outgrows, ...) goes through the model's own forward pass.

What is gained. In both, a group's prompt is computed once and its K completions attend to it, so no
row carries a copy of it and nothing is padded in the matrix products. Decoding merges adapter, norm
and scale into one matrix for query, key and value and one for gate and up: about 20 kernels a
layer, where the general path has about 60. On a GPU a step is captured once and replayed as one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.core import first_line
from workbench.model.policy import Policy, effective_weight

# Llama, and what differs from it in biases, norms of queries and keys, norms behind a block in
# place of before it, and layers without positions.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2")
# how positions are scaled, where that is the same for all rows
SCALINGS = ("default", "linear", "llama3", "yarn")
# parameters; above, merged copies of the weights cost more memory than the saved kernels are worth
LARGEST = 10**9
NARROWEST = 64  # written tokens that a step of fixed size attends to at least


def supported(policy: Policy, longest: int = 0) -> bool:
    """Whether the functions here compute what the model's own forward pass does, of rows of up to
    ``longest`` tokens.
    """
    config = policy.base.config
    return (
        policy.fast
        and policy.gathered
        and not policy.makes_cache
        and config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in SCALINGS
        and longest <= (_window(config) or longest)
        and (policy.device.type == "cuda" or _mergeable(policy))
    )


def _window(config) -> int:
    """How many tokens the layers that look back least see; 0 for all."""
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    return (getattr(config, "sliding_window", None) or 0) * ("sliding_attention" in types)


def _mergeable(policy: Policy) -> bool:
    """Whether adapters, norms and matrices can be made one, exactly and in little memory."""
    base = policy.base
    if base.num_parameters() > LARGEST:
        return False
    embedding = base.get_input_embeddings()
    # (the other wrappers of peft know their weight)
    if not (hasattr(embedding, "original_module") or _plain(embedding)):
        return False
    return all(_plain(module) for layer in base.model.layers for module in _projections(layer))


def _projections(layer: nn.Module) -> tuple[nn.Module, ...]:
    """Query, key, value and output of the attention; gate, up and down of the MLP."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    )


def _norms(layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Before and after attention, before and after the MLP; an identity where there is none."""
    none = nn.Identity()
    if hasattr(layer, "input_layernorm"):
        return layer.input_layernorm, none, layer.post_attention_layernorm, none
    return none, layer.post_attention_layernorm, none, layer.post_feedforward_layernorm


def _plain(module: nn.Module) -> bool:
    """A linear layer, or an embedding, of plain weights, perhaps with ordinary LoRA adapters, not
    merged.
    """
    plain = (nn.Linear, nn.Embedding)
    if type(module) in plain:
        return True
    return (
        type(getattr(module, "base_layer", None)) in plain
        and hasattr(module, "lora_A")
        and not module.lora_variant
        and not module.merged
        and not any(module.lora_bias.values())
    )


def split_heads(attention: nn.Module, qkv: Tensor, turning: int) -> tuple[Tensor, Tensor]:
    """[N, turning, d] queries and keys, normed where a family does that, and values, from their
    [N, n] products.
    """
    d = attention.head_dim
    qk, v = qkv.split([turning * d, qkv.shape[-1] - turning * d], dim=-1)
    if hasattr(attention, "q_norm"):
        parts = qk.split([qk.shape[-1] - v.shape[-1], v.shape[-1]], dim=-1)
        pairs = zip((attention.q_norm, attention.k_norm), parts)
        # over a head, or over all of them: as long as the norm's weight is
        qk = torch.cat(
            [norm(x.unflatten(-1, (-1, len(norm.weight)))).flatten(-2) for norm, x in pairs], dim=-1
        )
    return qk.unflatten(-1, (-1, d)), v.unflatten(-1, (-1, d))


def product(x: Tensor, *modules: nn.Module) -> Tensor:
    """Several linear layers of one input, side by side; without adapters, as one product."""
    if all(type(module) is nn.Linear for module in modules):
        bias = _side_by_side([module.bias for module in modules])
        return F.linear(x, torch.cat([module.weight for module in modules]), bias)
    return torch.cat([module(x) for module in modules], dim=-1)


def _side_by_side(biases: Sequence[Tensor | None]) -> Tensor | None:
    return None if biases[0] is None else torch.cat(list(biases))


class Rotation(NamedTuple):
    """Rotary position embedding: cos and sin by position.

    The sin of the first half is negated, so that one swap of halves serves both.
    """

    cos: Tensor  # [positions, d]
    sin: Tensor

    @classmethod
    def table(cls, policy: Policy, positions: int) -> Rotation:
        numbers = torch.arange(positions, device=policy.device)
        weight = policy.base.model.norm.weight
        cos, sin = policy.base.model.rotary_emb(weight, numbers[None])
        first, second = sin[0].to(weight.dtype).chunk(2, dim=-1)
        return cls(cos[0].to(weight.dtype), torch.cat([-first, second], dim=-1))

    def at(self, positions: Tensor) -> Rotation:
        """Made to broadcast over heads: [N, 1, d]."""
        return Rotation(self.cos[positions, None], self.sin[positions, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [N, heads, d]."""
        return x * self.cos + x.roll(x.shape[-1] // 2, -1) * self.sin


# ---- decoding ------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """What one layer does with [B, D] states, but for attention itself."""

    attention: nn.Module
    scale: float  # of queries, where it is not in the matrix
    turned: bool  # whether queries and keys know their position
    qkv: Callable[[Tensor], Tensor]  # states -> [B, (heads + 2 kv_heads) d]
    out: Callable[[Tensor, Tensor], Tensor]  # states, [B, heads d] -> states
    gate_up: Callable[[Tensor], Tensor]  # states -> [B, 2 I], I the MLP's inner size
    down: Callable[[Tensor, Tensor], Tensor]  # states, [B, I] -> states


@dataclass(frozen=True)
class Weights:
    """The policy's weights as they are now: merged for decoding, or the modules themselves."""

    policy: Policy
    embed: Callable[[Tensor], Tensor]
    layers: tuple[Layer, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, policy: Policy) -> Weights:
        embedding = policy.base.get_input_embeddings()
        if not _mergeable(policy):
            return cls(policy, embedding, tuple(map(live, policy.base.model.layers)))
        eps = policy.base.config.rms_norm_eps
        layers = tuple(_merged(layer, eps) for layer in policy.base.model.layers)
        return cls(policy, partial(F.embedding, weight=effective_weight(embedding)), layers)


def live(layer: nn.Module) -> Layer:
    """By its own modules, whatever they are."""
    q, k, v, out, gate, up, down = _projections(layer)
    before, after, before_mlp, after_mlp = _norms(layer)
    return Layer(
        *_positions(layer),
        lambda x: product(before(x), q, k, v),
        lambda x, mixed: x + after(out(mixed)),
        lambda x: product(before_mlp(x), gate, up),
        lambda x, inner: x + after_mlp(down(inner)),
    )


def _merged(layer: nn.Module, eps: float) -> Layer:
    """With the weight of a norm before a block, and the attention's scale, in the matrices."""
    modules = _projections(layer)
    q, k, v, out, gate, up, down = map(effective_weight, modules)
    biases = [module.bias for module in modules]
    attention, scale, turned = _positions(layer)
    if not hasattr(attention, "q_norm"):
        q, scale = q * scale, 1.0
        biases[0] = None if biases[0] is None else biases[0] * attention.scaling
    before, after, before_mlp, after_mlp = _norms(layer)
    return Layer(
        attention,
        scale,
        turned,
        _into([q, k, v], biases[:3], before, eps),
        _onto(out, biases[3], after),
        _into([gate, up], biases[4:6], before_mlp, eps),
        _onto(down, biases[6], after_mlp),
    )


def _positions(layer: nn.Module) -> tuple[nn.Module, float, bool]:
    attention = layer.self_attn
    return attention, attention.scaling, bool(getattr(attention, "use_rope", True))


def _into(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], norm: nn.Module, eps: float
) -> Callable[[Tensor], Tensor]:
    """A block's first products, side by side."""
    weight, bias = torch.cat(list(weights)), _side_by_side(biases)
    if isinstance(norm, nn.Identity):
        return lambda x: F.linear(x, weight, bias)
    weight = weight * norm.weight
    return lambda x: F.linear(F.rms_norm(x, x.shape[-1:], None, eps), weight, bias)


def _onto(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> Callable:
    """A block's last product, added to what went in."""
    if not isinstance(norm, nn.Identity):
        return lambda x, y: x + norm(F.linear(y, weight, bias))
    return lambda x, y: torch.addmm(x if bias is None else x + bias, y, weight.T)


class Decoder:
    """Rows that grow by one token a step.

    Rows of one prompt share its keys and values; each has its own for what it wrote. A step of
    fixed size reads, of that, more than is written, and hides it: so it is the same kernels at the
    same addresses for many steps, which a GPU is told once (``_Captured``).
    """

    captures = True  # False once it failed

    def __init__(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        copies: Sequence[int],
        max_new: int,
    ):
        policy = weights.policy
        config = policy.base.config
        device = policy.device
        self.weights = weights
        self.policy = policy
        self.fixed = device.type == "cuda"
        self.captured: _Captured | None = None
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.d = policy.base.model.layers[0].self_attn.head_dim
        sizes = torch.tensor([len(prompt) for prompt in prompts], device=device)
        rows = torch.arange(len(prompts), device=device)
        self.group = torch.repeat_interleave(rows, torch.tensor(copies, device=device))
        self.start = sizes[self.group]
        self.rotation = Rotation.table(policy, int(sizes.max()) + max_new)
        # what each row wrote: keys and values, [layers, 2, B, kv_heads, max_new, d]
        shape = len(weights.layers), 2, len(self.group), self.kv_heads, max_new, self.d
        self.own = torch.zeros(shape, dtype=policy.base.model.norm.weight.dtype, device=device)
        self.written = 0
        # [max_new] to the weights of written tokens: -inf for those that are not yet
        self.unwritten = self.own.new_full((max_new,), -torch.inf)
        self._arrange()
        hidden = self._read(prompts, sizes)
        # [B, D] predicts the next token
        self.state = policy.scaled(hidden[rows, sizes - 1][self.group])

    def _read(self, prompts: Sequence[Sequence[int]], sizes: Tensor) -> Tensor:
        """[G, P, D] states of the prompts, whose keys and values are kept."""
        from transformers import DynamicCache

        # padded on the right: causal attention never looks there
        tensors = [torch.tensor(prompt, device=sizes.device) for prompt in prompts]
        ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        cache = DynamicCache(config=self.policy.base.config)
        output = self.policy.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        self.prompt = [(layer.keys, layer.values) for layer in cache.layers]  # [G, kv_heads, P, d]
        pads = torch.arange(ids.shape[1], device=sizes.device) >= sizes[:, None]
        self.bias = None  # [G, P] to the weights of a prompt's tokens: -inf for those that pad it
        if bool(pads.any()):
            self.bias = torch.zeros_like(pads, dtype=self.own.dtype).masked_fill(pads, -torch.inf)
        return output.last_hidden_state

    def _arrange(self) -> None:
        """Say which row sits in which slot.

        Attention to the prompts is dense over G x (most rows of a group) slots.
        """
        counts = torch.bincount(self.group)
        index = torch.arange(len(self.group), device=self.group.device)
        width = int(counts.max())
        first = counts.cumsum(0) - counts  # [G] the first row of each group
        self.slot = self.group * width + index - first[self.group]
        self.row = index.new_zeros(len(counts) * width).index_copy(0, self.slot, index)
        self.dense = len(self.row) == len(self.slot)

    def _to_slots(self, x: Tensor) -> Tensor:
        """[B, kv_heads, r, n] by row -> [G, kv_heads, slots r, n] by prompt."""
        x = x if self.dense else x[self.row]
        return x.unflatten(0, (self.n_groups, -1)).transpose(1, 2).flatten(2, 3)

    def _to_rows(self, x: Tensor, r: int) -> Tensor:
        """The other way."""
        x = x.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1)
        return x if self.dense else x[self.slot]

    @property
    def n_groups(self) -> int:
        return len(self.prompt[0][0])

    def step(self, token: Tensor) -> None:
        """Append one token to each row."""
        self.written += 1
        place = torch.full((1,), self.written - 1, device=token.device)
        if not self.fixed:
            self.state = self._next(token, place, self.written)
            return
        widest = max(NARROWEST, 1 << (self.written - 1).bit_length())
        width = min(widest, len(self.unwritten))
        if token.device.type == "cuda" and Decoder.captures:
            self._capture(token, place, width)
        self.state = (self.captured or self._next)(token, place, width)

    def _capture(self, token: Tensor, place: Tensor, width: int) -> None:
        """Unless it is there; with one warning where it cannot be."""
        if self.captured is not None and self.captured.width == width:
            return
        self.captured = None  # its memory is free again
        try:
            self.captured = _Captured(self._next, token, place, width)
        except RuntimeError as error:
            Decoder.captures = False
            warnings.warn(
                "sampling is slower than it could be: its steps cannot be captured on this GPU "
                f"({first_line(error)})",
                stacklevel=2,
            )

    def _next(self, token: Tensor, place: Tensor, width: int) -> Tensor:
        """[B, D] states after a token at this [1] place of the first ``width`` written ones."""
        rotation = self.rotation.at(self.start + place)
        turning = self.heads + self.kv_heads  # of a token's vectors: queries and keys
        self.unwritten.index_fill_(0, place, 0.0)
        hidden = self.unwritten[:width] if self.fixed else None
        x = self.weights.embed(token)
        for layer, prompt, own in zip(self.weights.layers, self.prompt, self.own):
            qk, v = split_heads(layer.attention, layer.qkv(x), turning)
            qk = rotation(qk) if layer.turned else qk
            own[0].index_copy_(2, place, qk[:, self.heads :, None])
            own[1].index_copy_(2, place, v[:, :, None])
            q = qk[:, : self.heads] * layer.scale
            x = layer.out(x, self._attend(q, prompt, own[:, :, :, :width], hidden))
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            x = layer.down(x, F.silu(gate).mul_(up))
        return self.policy.scaled(self.policy.base.model.norm(x))

    def _attend(
        self, q: Tensor, prompt: tuple[Tensor, Tensor], own: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """[B, heads d] of [B, heads, d] queries: each row attends to its prompt and to its own."""
        q = q.unflatten(1, (self.kv_heads, -1))  # [B, kv_heads, r, d]
        r, p = q.shape[2], prompt[0].shape[2]
        to_prompt = self._to_slots(q) @ prompt[0].transpose(-1, -2)
        if self.bias is not None:
            to_prompt += self.bias[:, None, None]
        to_own = q @ own[0].transpose(-1, -2)
        if hidden is not None:
            to_own += hidden
        weights = torch.cat([self._to_rows(to_prompt, r), to_own], dim=-1).softmax(-1)
        mixed = weights[..., p:] @ own[1]
        mixed += self._to_rows(self._to_slots(weights[..., :p]) @ prompt[1], r)
        return mixed.flatten(1)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending), and the prompts that no row is left of."""
        self.captured = None
        own = self.own.new_zeros(*self.own.shape[:2], len(rows), *self.own.shape[3:])
        own[..., : self.written, :] = self.own[:, :, rows, :, : self.written]
        self.own = own
        self.start, self.state = self.start[rows], self.state[rows]
        left, self.group = torch.unique(self.group[rows], return_inverse=True)
        if len(left) < self.n_groups:
            self.prompt = [(keys[left], values[left]) for keys, values in self.prompt]
            self.bias = None if self.bias is None else self.bias[left]
        self._arrange()


class _Captured:
    """A step that a GPU was told once: the same kernels again, on new numbers in the same memory.

    Saves the time in which Python would launch them one by one.
    """

    def __init__(self, step: Callable, token: Tensor, place: Tensor, width: int):
        self.width = width
        self.token, self.place = token.clone(), place.clone()
        side = torch.cuda.Stream()  # once outside the capture: libraries set themselves up
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(self.token, self.place, width)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.state = step(self.token, self.place, width)

    def __call__(self, token: Tensor, place: Tensor, width: int) -> Tensor:
        self.token.copy_(token)
        self.place.copy_(place)
        self.graph.replay()
        return self.state.clone()
