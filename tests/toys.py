"""Small things that several tests share: a tiny policy, hand-made rollouts, and tasks whose optimum
is known.
"""

from __future__ import annotations

import argparse
import weakref
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.core import Group, Problem, Rollout, Scores, Verdict
from workbench.model.policy import Policy

QUESTION = Problem("q", ({"role": "user", "content": "1+1"},), "2")


def tiny_policy(seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 1024) -> Policy:
    from transformers import LlamaConfig, LlamaForCausalLM

    from data.organism.build.common import tokenizer

    tok = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return Policy(LlamaForCausalLM(config).eval(), tok, "tiny")


def saved(policy: Policy, folder: Path) -> Path:
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def command(module, *words: str) -> None:
    """A subcommand of the command line, by itself."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.main(parser.parse_args(words))


def rollout(
    length: int, reward: float = 0.0, *, prompt: int = 3, seed: int = 0, logprobs=None
) -> Rollout:
    """Random tokens: only their number and the reward matter to a loss."""
    ids = np.random.default_rng((seed, length, prompt)).integers(6, 100, prompt + length).tolist()
    return Rollout(
        tuple(ids[:prompt]),
        tuple(ids[prompt:]),
        tuple(logprobs or [-1.0] * length),
        "?",
        Verdict(reward, reward > 0),
    )


def group(lengths, rewards, problem: Problem = QUESTION, seed: int = 0) -> Group:
    return Group(
        problem,
        tuple(
            rollout(n, r, prompt=2 + i % 3, seed=seed + i)
            for i, (n, r) in enumerate(zip(lengths, rewards, strict=True))
        ),
    )


def scores_of(batch, tables) -> Scores:
    """Scores for a batch from [T] tensors by rollout: {"logp": {id(rollout): tensor}, "reference":
    ..., "old": ...} (missing: None).
    """

    def spread(table):
        rows = [
            torch.cat([t := table[id(credit.rollout)], t.new_zeros(batch.mask.shape[1] - len(t))])
            for credit in batch.credits
        ]
        return torch.stack(rows)

    logp = spread(tables["logp"])
    reference = spread(tables["reference"]) if "reference" in tables else None
    return Scores(logp, torch.zeros_like(logp.detach()), reference)


@dataclass(frozen=True)
class FirstCharacter:
    """Reward 1 iff the completion starts with one of ``wanted`` (``inverted``: iff it does not).

    Known optimum: probability 1 (0) on them.
    """

    wanted: str = "7"
    inverted: bool = False
    max_new: int = 1

    name = "first character"

    def problems(self, split, n, seed):
        rng = Random(seed)
        return [
            Problem(
                f"p{i}",
                ({"role": "user", "content": str(rng.randrange(100))},),
                self.wanted,
                (self.wanted[0],),
            )
            for i in range(n)
        ]

    def grade(self, problem, text):
        right = (text[:1] in self.wanted and text != "") != self.inverted
        return Verdict(float(right), right)

    def first_error(self, problem, text):
        return None

    def reprompt(self, problem, *, solution="", attempt="", feedback=""):
        return problem.messages


# Half of the characters a random model writes: groups nearly always have contrast, and every update
# has a gradient.
HALF = "".join(chr(c) for c in range(32, 127, 2))


class Memory(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, and the most that were alive at one
    moment, each storage counted once.
    """

    largest = alive = peak = 0

    def __init__(self):
        super().__init__()
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, len(storage) // tensor.element_size()
            self.largest = max(self.largest, tensor.numel())
            if key not in self.known:
                self.known[key], self.alive = (
                    weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size)),
                    self.alive + size,
                )
                self.peak = max(self.peak, self.alive)
        return made

    def _gone(self, key: int, size: int) -> None:
        del self.known[key]
        self.alive -= size
