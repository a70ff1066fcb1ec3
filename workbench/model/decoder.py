"""Any causal LM, decoded by its own forward pass and cache; and whether that is right.

Decoder    rows that grow by one token a step
check      one pass of each kind that the workbench makes, against plain forward passes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench.core import WorkbenchError, first_line, refuse_if, refuse_on
from workbench.model import families, llama
from workbench.model.llama_states import completion_states
from workbench.model.policy import Policy
from workbench.model.scores import capped

# Largest difference from plain forward passes, as a share of what another context does to the same
# log-probabilities: a model of any scale is judged by what its cache is there for.
CLOSE = 0.01
EXACT = 1e-4  # of llama.py's own code, where the model's forward pass can do without it
# In 16 bits rounding alone comes, of 47 families of random weights, to at most .041 in bf16 (median
# .004) and .004 in fp16 (.001); of SmolLM2 to .053 and .007. Seven times that is let through, in
# units of the type's resolution.
CLOSE_IN_HALF = 38
STEPS = 3  # tokens of the check that are written after its prompts


class Decoder:
    """Rows that grow by one token a step.

    Where padding would enter a state that a layer keeps, all prompts are equally long.
    """

    def __init__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], copies: Sequence[int], max_new: int
    ):
        from transformers import DynamicCache

        device = policy.device
        rows = [torch.tensor(prompt, device=device) for prompt in prompts]
        # padded on the left, so that every row's next token is at the same place
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        ids = pad(rows, padding_value=policy.pad_id)
        real = pad(list(map(torch.ones_like, rows)))
        self.policy, self.padded, self.cache = (
            policy,
            not bool(real.all()),
            # Unsloth's own forward passes give and take pairs of keys and values
            None if policy.makes_cache else DynamicCache(config=policy.base.config),
        )
        state = self._forward(ids, real, (real.cumsum(-1) - 1).clamp(min=0))
        spread = torch.repeat_interleave(
            torch.arange(len(prompts), device=device), torch.tensor(copies, device=device)
        )
        self.state, self.real = state[spread], real[spread]
        self._keep_cache(spread)

    def _forward(self, ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        output = self.policy.decoder(
            input_ids=ids,
            attention_mask=real if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        if self.policy.makes_cache:
            self.cache = output.past_key_values
        return self.policy.scaled(output.last_hidden_state[:, -1])

    def step(self, token: Tensor) -> None:
        """Append one token to each row."""
        self.real = torch.cat([self.real, self.real.new_ones(len(token), 1)], dim=1)
        self.state = self._forward(token[:, None], self.real, self.real.sum(-1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.state, self.real = self.state[rows], self.real[rows]
        self._keep_cache(rows)

    def _keep_cache(self, rows: Tensor) -> None:
        if isinstance(self.cache, tuple):
            self.cache = tuple(tuple(part[rows] for part in layer) for layer in self.cache)
        else:
            self.cache.reorder_cache(rows)


# ---- the check -----------------------------------------------------------------------------------


@torch.no_grad()
def check(policy: Policy) -> None:
    """Refuses models whose tokens would be scored or written wrongly.

    Two rows of different beginnings and one end are read side by side, as training does, and
    written step by step, as sampling does, and compared with plain forward passes. Where only
    padding on the left is in the way, ``policy.pads_left`` is set.

    Raises WorkbenchError, saying in a sentence what is wrong.
    """
    # a foreign forward pass fails in its own ways
    with refuse_on(Exception, f"{policy.name} cannot be run here", why=True):
        _check(policy)


def _check(policy: Policy) -> None:
    policy.logits = policy.find_logits(families.logit_forms(policy.base.config))
    refuse_if(
        policy.logits.cap and len(policy.holes),
        f"{policy.name} caps its logits, and {len(policy.holes)} ids of its tokenizer have no "
        "token: they cannot be kept from being sampled",
    )
    rows = [policy.probe, policy.probe[4:]]
    plain = _logp(policy, [policy.hidden(row[None])[0] for row in rows])
    policy.fast = llama.supported(policy, len(policy.probe)) and _fast(policy, rows, plain)
    if policy.fast:
        return
    refuse_if(
        not _same(policy, _side_by_side(policy, rows), plain),
        f"{policy.name} reads a row otherwise when a longer one is beside it, so it cannot be "
        "trained in batches",
    )
    for pads_left in sorted({policy.pads_left, False}, reverse=True):
        policy.pads_left = pads_left
        try:
            written, fault = _step_by_step(policy, rows), "its logits are others"
        except Exception as error:
            written, fault = None, f"it fails ({first_line(error)})"
        if written is not None and _same(policy, written, plain):
            return
    raise WorkbenchError(
        f"{policy.name} cannot be sampled from here: read step by step, with a cache, {fault}"
    )


def _fast(policy: Policy, rows: Sequence[Tensor], plain: Tensor) -> bool:
    """Whether llama.py writes, and on a CPU llama_states.py reads, as the forward passes do."""
    prompts, last = zip(*((row[:-STEPS].tolist(), row[-STEPS:].tolist()) for row in rows))
    try:
        passes = [_written(policy, rows, partial(llama.Decoder, llama.Weights.of(policy)))]
        if policy.device.type == "cpu":
            states = completion_states(policy, prompts, [[*ids, ids[0]] for ids in last])
            passes.append(_logp(policy, states.split(STEPS + 1)))
    except Exception:  # layers that are not what their family's name says
        return False
    return all(_same(policy, logp, plain, EXACT) for logp in passes)


def _logp(policy: Policy, states: Sequence[Tensor]) -> Tensor:
    """[rows, STEPS + 1, V] log-probabilities after each prompt and each of its steps."""
    last = torch.stack([row[-STEPS - 1 :] for row in states])
    logits = torch.nn.functional.linear(last, policy.head).float()
    logp = capped(logits, policy.logits.cap).log_softmax(-1)
    return logp.index_fill(-1, policy.holes, 0.0)


def _same(policy: Policy, logp: Tensor, plain: Tensor, close: float = CLOSE) -> bool:
    """Whether they differ by little, of what the rows' different beginnings make of one end."""
    eps = max(torch.finfo(dtype).eps for dtype in policy.dtypes)
    half = eps > 1e-4
    effect = (plain[0] - plain[1]).square().mean().sqrt()
    rounding = (1 if half else 4) * eps * plain.square().mean().sqrt()
    close = CLOSE_IN_HALF * eps if half else close
    return bool((logp - plain).square().mean().sqrt() <= close * effect + rounding)


def _side_by_side(policy: Policy, rows: Sequence[Tensor]) -> Tensor:
    """As ``batch.states`` reads them: padded on the right, without a mask."""
    padded = pad_sequence(rows, batch_first=True, padding_value=policy.pad_id)
    hidden = policy.hidden(padded)
    return _logp(policy, [states[: len(row)] for states, row in zip(hidden, rows)])


def _step_by_step(policy: Policy, rows: Sequence[Tensor]) -> Tensor:
    """As the sampler writes them: two copies of each, of which one goes on after a step."""
    if not policy.pads_left and len(rows) > 1:
        return torch.cat([_step_by_step(policy, [row]) for row in rows])
    return _written(policy, rows, partial(Decoder, policy))


def _written(policy: Policy, rows: Sequence[Tensor], decoder: Callable) -> Tensor:
    engine = decoder([row[:-STEPS].tolist() for row in rows], [2] * len(rows), STEPS)
    tokens = torch.stack([row[-STEPS:] for row in rows]).repeat_interleave(2, 0)
    states = [engine.state[1::2]]
    for step in range(STEPS):
        engine.step(tokens[:, step])
        states.append(engine.state if step else engine.state[1::2])
        if step == 0:
            tokens = tokens[1::2]
            engine.keep(torch.arange(1, 2 * len(rows), 2, device=policy.device))
    return _logp(policy, torch.stack(states, dim=1))
