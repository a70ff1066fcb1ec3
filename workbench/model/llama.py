"""The Llama family, without the parts of a general implementation that a rollout does not need.

    Weights, Decoder     decoding
    completion_states    states for training

The weights stay in the Hugging Face modules; these functions read them there at every call, with
the LoRA adapter that is active. Whatever they do not cover (another family, biases, quantised
layers, DoRA, ...) goes through the model's own forward pass: see ``supported``.

What is gained. In both, a group's prompt is computed once and its K completions attend to it, so no
row carries a copy of it and nothing is padded in the matrix products. Decoding merges adapter, norm
and scale into one matrix for query, key and value and one for gate and up: about 20 kernels a
layer, where the general path has about 60.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.model.policy import Policy, effective_weight

# parameters; above, merged copies of the weights cost more memory than the saved kernels are worth
LARGEST = 10**9
# attention weights of all layers together that training keeps for its backward pass (about 200 MB
# with what goes with them)
KEPT = 2**24


def supported(policy: Policy) -> bool:
    """Whether the functions here compute exactly what the model's own forward pass does."""
    base = policy.base
    config = base.config
    if (
        not policy.gathered
        or policy.makes_cache
        or config.model_type != "llama"
        or config.hidden_act != "silu"
        or config.attention_bias
        or config.mlp_bias
        or config.rope_parameters["rope_type"] not in ("default", "linear", "llama3")
        or base.num_parameters() > LARGEST
    ):
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


class _Rotation(NamedTuple):
    """Rotary position embedding: cos and sin by position.

    The sin of the first half is negated, so that one swap of halves serves both.
    """

    cos: Tensor  # [positions, d]
    sin: Tensor

    @classmethod
    def table(cls, policy: Policy, positions: int) -> _Rotation:
        numbers = torch.arange(positions, device=policy.device)
        cos, sin = policy.base.model.rotary_emb(policy.head, numbers[None])
        first, second = sin[0].chunk(2, dim=-1)
        return cls(cos[0], torch.cat([-first, second], dim=-1))

    def at(self, positions: Tensor) -> _Rotation:
        """Made to broadcast over heads: [N, 1, d]."""
        return _Rotation(self.cos[positions, None], self.sin[positions, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [N, heads, d]."""
        return x * self.cos + x.roll(x.shape[-1] // 2, -1) * self.sin


# ---- decoding ------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """One layer's weights, I the MLP's inner size."""

    # [(heads + 2 kv_heads) d, D] with the norm's weight and the attention's scale in it
    qkv: Tensor
    out: Tensor  # [D, heads d]
    gate_up: Tensor  # [2 I, D] with the norm's weight in it
    down: Tensor  # [D, I]


@dataclass(frozen=True)
class Weights:
    """The policy's weights as they are now, merged for decoding."""

    policy: Policy
    embedding: Tensor  # [V, D]
    layers: tuple[_Layer, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, policy: Policy) -> Weights:
        layers = []
        for layer in policy.base.model.layers:
            q, k, v, out, gate, up, down = map(effective_weight, _projections(layer))
            qkv = torch.cat([q * layer.self_attn.scaling, k, v]) * layer.input_layernorm.weight
            gate_up = torch.cat([gate, up]) * layer.post_attention_layernorm.weight
            layers.append(_Layer(qkv, out, gate_up, down))
        embedding = effective_weight(policy.base.get_input_embeddings())
        return cls(policy, embedding, tuple(layers))


class Decoder:
    """Rows that grow by one token a step.

    Rows of one prompt share its keys and values; each has its own for what it wrote.
    """

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
        self.eps = config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.d = policy.base.model.layers[0].self_attn.head_dim
        sizes = torch.tensor([len(prompt) for prompt in prompts], device=device)
        rows = torch.arange(len(prompts), device=device)
        self.group = torch.repeat_interleave(rows, torch.tensor(copies, device=device))
        self.start = sizes[self.group]
        self.rotation = _Rotation.table(policy, int(sizes.max()) + max_new)
        # what each row wrote: keys and values, [layers, 2, B, kv_heads, max_new, d]
        shape = len(weights.layers), 2, len(self.group), self.kv_heads, max_new, self.d
        self.own = torch.empty(shape, dtype=policy.head.dtype, device=device)
        self.written = 0
        self._arrange()
        hidden = self._read(prompts, sizes)
        self.state = hidden[rows, sizes - 1][self.group]  # [B, D] predicts the next token

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
        t = self.written
        rotation = self.rotation.at(self.start + t)
        turning = self.heads + self.kv_heads  # of a token's vectors: queries and keys
        x = F.embedding(token, self.weights.embedding)
        for layer, prompt, own in zip(self.weights.layers, self.prompt, self.own):
            qkv = F.linear(self._normed(x), layer.qkv).view(len(token), -1, self.d)
            turned = rotation(qkv[:, :turning])
            own[0, :, :, t] = turned[:, self.heads :]
            own[1, :, :, t] = qkv[:, turning:]
            mixed = self._attend(turned[:, : self.heads], prompt, own[:, :, :, : t + 1])
            x = torch.addmm(x, mixed, layer.out.T)
            gate, up = F.linear(self._normed(x), layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), layer.down.T)
        self.written += 1
        self.state = self.policy.base.model.norm(x)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.eps)  # its weight is in the next matrix

    def _attend(self, q: Tensor, prompt: tuple[Tensor, Tensor], own: Tensor) -> Tensor:
        """[B, heads d] of [B, heads, d] queries: each row attends to its prompt and to its own."""
        q = q.unflatten(1, (self.kv_heads, -1))  # [B, kv_heads, r, d]
        r, p = q.shape[2], prompt[0].shape[2]
        to_prompt = self._to_slots(q) @ prompt[0].transpose(-1, -2)
        if self.bias is not None:
            to_prompt += self.bias[:, None, None]
        to_own = q @ own[0].transpose(-1, -2)
        weights = torch.cat([self._to_rows(to_prompt, r), to_own], dim=-1).softmax(-1)
        mixed = weights[..., p:] @ own[1]
        mixed += self._to_rows(self._to_slots(weights[..., :p]) @ prompt[1], r)
        return mixed.flatten(1)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending), and the prompts that no row is left of."""
        own = self.own.new_empty(*self.own.shape[:2], len(rows), *self.own.shape[3:])
        own[..., : self.written, :] = self.own[:, :, rows, :, : self.written]
        self.own = own
        self.start, self.state = self.start[rows], self.state[rows]
        left, self.group = torch.unique(self.group[rows], return_inverse=True)
        if len(left) < self.n_groups:
            self.prompt = [(keys[left], values[left]) for keys, values in self.prompt]
            self.bias = None if self.bias is None else self.bias[left]
        self._arrange()


# ---- states for training -------------------------------------------------------------------------


def completion_states(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Tensor:
    """[sum of completion lengths, D] the last hidden state that predicts each completion token.

    Row after row, with gradient. Tokens are packed, group after group: a prompt, then all but the
    last token of each of its completions.
    """
    base = policy.base
    heads = base.config.num_attention_heads
    kv_heads = base.config.num_key_value_heads
    d = base.model.layers[0].self_attn.head_dim
    ids, positions, places, spans = _pack(prompts, completions, policy.device)
    rotation = _Rotation.table(policy, int(positions.max()) + 1).at(positions)
    keep = heads * base.config.num_hidden_layers * sum(span.weights for span in spans) <= KEPT

    def through(layer: nn.Module, x: Tensor) -> Tensor:
        q, k, v, out, gate, up, down = _projections(layer)
        qkv = _product(layer.input_layernorm(x), q, k, v).unflatten(-1, (-1, d))
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
        q, k = rotation(qk).split([heads, kv_heads], dim=1)
        x = x + out(_attention(q, k, v, spans, keep).flatten(1))
        gate, up = _product(layer.post_attention_layernorm(x), gate, up).chunk(2, dim=-1)
        return x + down(F.silu(gate) * up)

    again = policy.checkpointing and torch.is_grad_enabled()
    x = base.get_input_embeddings()(ids)
    for layer in base.model.layers:
        x = checkpoint(through, layer, x, use_reentrant=False) if again else through(layer, x)
    return base.model.norm(x[places])


def _pack(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, list[_Span]]:
    """N packed tokens and their positions, the place of the token before each completion token (row
    after row), and a span for each group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    ids, positions, spans = [], [], []
    places: dict[int, list[int]] = {}
    for prompt, rows in groups.items():
        ids += prompt
        positions += range(len(prompt))
        last = len(ids) - 1
        lengths = [len(completions[row]) - 1 for row in rows]
        for row, n in zip(rows, lengths):
            places[row] = [last, *range(len(ids), len(ids) + n)]
            ids += completions[row][:n]
            positions += range(len(prompt), len(prompt) + n)
        spans.append(_Span.of(len(prompt), lengths, device))
    in_order = [place for row in range(len(prompts)) for place in places[row]]
    packed = (torch.tensor(numbers, device=device) for numbers in (ids, positions, in_order))
    return *packed, spans


def _product(x: Tensor, *modules: nn.Module) -> Tensor:
    """Several linear layers of one input, side by side; without adapters, as one product."""
    if all(type(module) is nn.Linear for module in modules):
        return F.linear(x, torch.cat([module.weight for module in modules]))
    return torch.cat([module(x) for module in modules], dim=-1)


class _Span(NamedTuple):
    """The packed tokens of one group: P of the prompt, then those of K completions."""

    prompt: int
    lengths: list[int]
    # both None where all completions are equally long:
    pad: Tensor | None  # [K T] the packed token at each place of the completions padded to T tokens
    real: Tensor | None  # [sum of lengths] the padded place of each packed token

    @property
    def weights(self) -> int:
        """Attention weights of one head, padded."""
        widest = max(self.lengths)
        return self.prompt**2 + len(self.lengths) * widest * (self.prompt + widest)

    @classmethod
    def of(cls, prompt: int, lengths: list[int], device: torch.device) -> _Span:
        if len(set(lengths)) == 1:
            return cls(prompt, lengths, None, None)
        inside = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).flatten()
        pad = (inside.cumsum(0) - 1).clamp(min=0)
        real = inside.nonzero()[:, 0]
        return cls(prompt, lengths, pad.to(device), real.to(device))


def _attention(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[_Span], keep: bool) -> Tensor:
    """Causal attention inside each span.

    ``keep`` its weights for the backward pass. Else that makes them again, span by span: it takes
    twice the time of one that finds them, and no memory of the weights' size.
    """
    sizes = [span.prompt + sum(span.lengths) for span in spans]
    parts = zip(*(tensor.split(sizes) for tensor in (q, k, v)), spans)
    if keep:
        return torch.cat([_attend(*part) for part in parts])
    return torch.cat([checkpoint(_attend, *part, use_reentrant=False) for part in parts])


def _attend(q: Tensor, k: Tensor, v: Tensor, span: _Span) -> Tensor:
    """[n, heads, d] of the span's n tokens.

    The prompt attends to itself; completions attend to the prompt and each to itself.
    """
    kv_heads, d = k.shape[1:]
    q = q.unflatten(1, (kv_heads, -1)) * d**-0.5
    (qp, qc), (kp, kc), (vp, vc) = (
        tensor.split([span.prompt, len(tensor) - span.prompt]) for tensor in (q, k, v)
    )
    qp, kp, vp = qp.permute(1, 2, 0, 3), kp.transpose(0, 1), vp.transpose(0, 1)
    weights = (_rows(qp, kp.transpose(1, 2)) + _causal(qp)).softmax(-1)  # [kv_heads, r, P, P]
    prompt = _rows(weights, vp).permute(2, 0, 1, 3).flatten(1, 2)
    if not len(qc):
        return prompt
    if span.pad is not None:
        qc, kc, vc = qc[span.pad], kc[span.pad], vc[span.pad]
    n = len(span.lengths)
    qc = qc.unflatten(0, (n, -1)).permute(2, 0, 3, 1, 4).contiguous()  # [kv_heads, K, r, T, d]
    kc = kc.unflatten(0, (n, -1)).permute(2, 0, 1, 3)  # [kv_heads, K, T, d]
    vc = vc.unflatten(0, (n, -1)).permute(2, 0, 1, 3)
    to_own = _rows(qc, kc.transpose(2, 3)) + _causal(qc)
    to_prompt = _rows(qc, kp.transpose(1, 2))
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1)  # [kv_heads, K, r, T, P + T]
    mixed = _rows(weights[..., : span.prompt], vp) + _rows(weights[..., span.prompt :], vc)
    mixed = mixed.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1, 2)
    return torch.cat([prompt, mixed if span.real is None else mixed[span.real]])


def _rows(x: Tensor, y: Tensor) -> Tensor:
    """x @ y for y [*batch, m, n] and x [*batch, *rows, m].

    A key serves all heads, or all completions, of its group in one product.
    """
    batch = y.dim() - 2
    return (x.flatten(batch, -2) @ y).unflatten(batch, x.shape[batch:-1])


def _causal(q: Tensor) -> Tensor:
    n = q.shape[-2]
    return torch.full((n, n), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
