"""States for training of the Llama family: a group's prompt once, and its completions after it.

completion_states    the last hidden state that predicts each completion token, with gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.model.llama import Rotation, live, split_heads
from workbench.model.policy import Policy

# attention weights of all layers together that are kept for the backward pass (about 200 MB with
# what goes with them)
KEPT = 2**24


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
    ids, positions, places, spans = _pack(prompts, completions, policy.device)
    rotation = Rotation.table(policy, int(positions.max()) + 1).at(positions)
    keep = heads * base.config.num_hidden_layers * sum(span.weights for span in spans) <= KEPT

    def through(module: nn.Module, x: Tensor) -> Tensor:
        layer = live(module)
        qk, v = split_heads(layer.attention, layer.qkv(x), heads + kv_heads)
        q, k = (rotation(qk) if layer.turned else qk).split([heads, kv_heads], dim=1)
        x = layer.out(x, _attention(q, k, v, spans, keep).flatten(1))
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        return layer.down(x, F.silu(gate) * up)

    again = policy.checkpointing and torch.is_grad_enabled()
    x = base.get_input_embeddings()(ids)
    for layer in base.model.layers:
        x = checkpoint(through, layer, x, use_reentrant=False) if again else through(layer, x)
    return policy.scaled(base.model.norm(x[places]))


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
