"""A learner: a policy with an optimiser, a frozen reference and an EMA teacher.

The reference is a frozen copy of what is trained as it was at the start, and the teacher one more,
made when it is first asked for: of all weights, or with LoRA of the adapter's, on one frozen base
for all three. (A fresh adapter adds nothing, so there the reference is the base with its adapter
off.) The base may be kept in 16 bits, or in 4 bits a weight (QLoRA, arXiv 2305.14314); the
adapters are fp32 always. What becomes of an adapter that the policy was loaded with: adapters.py.

    OptimConfig      AdamW, and how fast the teacher follows
    Learner          what is trained; ``weights`` lends the network with another set of weights
    FrozenLearner    a policy that is only read, where a method asks for a learner

What a learner holds may be split over the processes of a run: see shard.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from workbench.core import WorkbenchError, refuse_if, refuse_on
from workbench.model import distributed, templates
from workbench.model.adapters import (
    has_adapter,
    merge,
    peft_adapter,
    refuse_untrainable,
    save_adapter,
    short,
    trained_weights,
)
from workbench.model.loading import import_unsloth
from workbench.model.loss_scale import LossScale
from workbench.model.policy import Policy
from workbench.model.shard import Replicated, Sharded, gather_tree, local, part
from workbench.options import check_choices
from workbench.records import seal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and how fast the teacher follows."""

    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.05  # the teacher's update rate u
    # AdamW's two moments in 8 bits a number (bitsandbytes, arXiv 2110.02861): 2 bytes a parameter
    # and not 8
    eight_bit: bool = False
    warmup: int = 0  # updates in which the rate rises from 0 to lr
    schedule: Literal["constant", "cosine"] = "constant"  # what it does then: cosine falls to 0

    def __post_init__(self):
        check_choices(self)
        finite = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf
        refuse_if(
            not (finite and self.clip > 0 and 0 <= self.ema <= 1 and self.warmup >= 0),
            "the optimiser takes lr and clip above 0, weight_decay and warmup of 0 or more, "
            "and ema from 0 to 1",
        )

    @property
    def scheduled(self) -> bool:
        return self.warmup > 0 or self.schedule != "constant"

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of an update, counted from 0, in a run of so many.

        The numbers of transformers' ``get_cosine_schedule_with_warmup`` (so the first update of a
        warm-up has rate 0), by updates as in verl: all optimiser steps of one have the same rate.
        """
        if update < self.warmup:
            return self.lr * update / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (update - self.warmup) / max(1, updates - self.warmup)
        return self.lr * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


class Learner:
    """The trainable policy.

    ``lora``: rank of the adapter to train (0: all weights); one that the policy was loaded with is
    trained further with the rank that it has, and merged first where all weights are trained.
    ``adapter_use`` says which. ``expert``: another, stronger policy to learn from.
    ``checkpointing``: keep one state a layer for the backward pass and make the others
    again. ``shard``: split everything that is trained, and a frozen base, over the processes
    (shard.py); so does accelerate launch --use_fsdp.

    Raises WorkbenchError where the policy cannot be trained so, or not be sharded.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimConfig = OptimConfig(),
        *,
        lora: int = 0,
        seed: int = 0,
        expert: Policy | None = None,
        checkpointing: bool = False,
        shard: bool = False,
    ):
        distributed.start()
        shard = shard or distributed.fsdp(os.environ)
        _refuse(policy, optimizer, lora, expert, shard)
        if expert is not None:
            templates.follow(expert, policy)
        self.adapter_use = _start_from_adapter(policy, lora)
        self.policy = policy
        self.settings = optimizer
        self.lora = lora
        self.expert = expert
        self.skipped = 0  # updates not made because a gradient was not finite
        self.steps = 0  # calls of ``step`` in this process
        self._fresh = bool(lora) and not self.adapter_use
        if self._fresh:
            policy.model = _with_adapter(policy, lora, seed)
        elif lora:
            trained_weights(policy.model)
        else:
            policy.model.requires_grad_(True)
        self._origin = _origin(policy.model, bool(lora))
        policy.model.eval()  # no dropout: the sampler and the trainer must agree
        policy.checkpointing = checkpointing
        self.placement = Sharded(policy) if shard else Replicated(policy)
        self._trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.parameters = list(self._trained.values())
        self.optimizer = _adamw(self.parameters, optimizer)
        self.loss_scale = LossScale() if torch.float16 in policy.dtypes else None
        self._teacher: dict[str, Tensor] | None = None  # made when it is first asked for
        self._start = {name: p.detach().clone() for name, p in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, by name: all weights, or the adapter's."""
        if not self.lora:
            return dict(self._trained)
        [adapter] = self.policy.model.active_adapters
        return {short(name, adapter): p for name, p in self._trained.items()}

    def gathered(self) -> AbstractContextManager[None]:
        """A with block in which a sharded policy's weights are all here, to sample and read with.

        All ranks enter it together.
        """
        return self.placement.gathered()

    # ---- other sets of weights on the same network

    @contextmanager
    def weights(self, which: str) -> Iterator[Policy]:
        """The policy with another set of weights, for the length of a with block.

        ``which``: ``"policy"``, ``"reference"`` (as loaded) or ``"teacher"`` (EMA).
        """
        memory = self.policy.memory if which == "policy" else None
        with self._exchanged(which), self.policy.remembering(memory):
            yield self.policy

    def _exchanged(self, which: str) -> AbstractContextManager:
        if which == "policy":
            return nullcontext()
        if which == "reference" and self._fresh:
            return self.policy.model.disable_adapter()
        weights = self._make_teacher() if which == "teacher" else self._start
        return self.placement.exchanged(self._weights(), weights)

    @torch.no_grad()
    def _make_teacher(self) -> dict[str, Tensor]:
        """The teacher's weights by name.

        It starts as the policy started, whenever it is first asked for; after that only
        ``update_teacher`` changes it.
        """
        if self._teacher is None:
            self._teacher = {name: weight.clone() for name, weight in self._start.items()}
        return self._teacher

    @torch.no_grad()
    def update_teacher(self) -> float:
        """theta' <- (1 - u) theta' + u theta, once per generation batch.

        SDPO, arXiv 2601.20802, section 2.3. Returns how far the teacher is behind now,
        |theta - theta'| / |theta - theta_0|: 1, it is where the policy started; 0, where the policy
        is.
        """
        teacher = self._make_teacher()
        policy = self._weights()
        squares = torch.zeros(2, device=self.policy.device)
        for name, weight in teacher.items():
            weight.lerp_(policy[name], self.settings.ema)
            behind = local(policy[name] - weight).float().square().sum()
            moved = local(policy[name] - self._start[name]).float().square().sum()
            squares += torch.stack([behind, moved])
        behind, moved = self.placement.total(squares)
        return float((behind / moved).sqrt()) if moved > 0 else 0.0

    # ---- updates

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def set_rate(self, update: int, updates: int) -> None:
        """The learning rate of the next update. It depends on nothing but these numbers."""
        for group in self.optimizer.param_groups if self.settings.scheduled else ():
            group["lr"] = self.settings.rate(update, updates)

    def backward(self, value: Tensor) -> None:
        """Add a loss's gradient, scaled where the pass goes through fp16, to those there are."""
        (value * self.loss_scale.value if self.loss_scale else value).backward()

    def step(self) -> float:
        """Add up over ranks, clip, update, clear.

        Returns the gradient norm before clipping; an update with a norm that is not finite is
        skipped and counted (on every rank: all have the same sum).
        """
        self.steps += 1
        self.placement.sum_gradients(self.parameters)
        if self.loss_scale:
            self.loss_scale.remove(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        if self.loss_scale:
            self.loss_scale.follow(math.isfinite(norm))
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def fingerprint(self) -> list[int]:
        """Equal where all weights are: the policy's, and its expert's."""
        parts = [local(p) for p in self.policy.model.parameters()]
        policy = self.placement.total(torch.tensor(distributed.fingerprint(parts))).tolist()
        if self.expert is None:
            return policy
        return policy + distributed.fingerprint(list(self.expert.model.parameters()))

    # ---- saving

    def save(self, folder: Path) -> None:
        """The policy in a form that plain transformers (or peft) loads.

        All ranks call it, one writes.
        """
        model = self.policy.model
        weights = None  # those in the model
        if not self.policy.gathered:
            weights = gather_tree(dict(self._trained) if self.lora else model.state_dict())
        if not distributed.main():
            return
        if self.lora:
            save_adapter(model, folder, weights)
        else:
            model.save_pretrained(folder, state_dict=weights)
        tokenizer = self.policy.tokenizer
        # one that came with the adapter goes on with it
        if not self.lora or str(tokenizer.name_or_path) == self.policy.adapter:
            tokenizer.save_pretrained(folder)
        seal(folder)

    def state(self) -> dict:
        """Everything that training goes on from, bit for bit.

        Trainable weights, optimiser, teacher, counters, loss scale, and of which weights all
        began. The tensors are the live ones; of a sharded policy whole copies, on rank 0, and all
        ranks call this.
        """
        state = {
            "trainable": _detached(self._weights()),
            "optimiser": self.optimizer.state_dict(),
            "teacher": None if self._teacher is None else _detached(self._teacher),
            "skipped": self.skipped,
            "origin": self._origin,
        }
        if self.lora and not self._fresh:  # the reference, were the adapter's folder to change
            state["start"] = _detached(self._start)
        if self.loss_scale:
            state["loss_scale"] = asdict(self.loss_scale)
        return gather_tree(state)

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Raises WorkbenchError when ``state`` is of another model or adapter."""
        weights = self._weights()
        saved = state["trainable"]
        shapes = {name: p.shape for name, p in weights.items()}
        begun_alike = ("start" in state) == (bool(self.lora) and not self._fresh)
        refuse_if(
            not begun_alike or shapes != {name: p.shape for name, p in saved.items()},
            "the checkpoint belongs to another model (or another LoRA rank, or one with "
            "another adapter to start from): its weights do not fit",
        )
        # in fp16 they are rounded otherwise; older ones do not say
        comparable = ("loss_scale" in state) == (self.loss_scale is not None)
        refuse_if(
            comparable and state.get("origin", self._origin) != self._origin,
            "the checkpoint belongs to another model: it was trained from other weights",
        )
        for name, p in weights.items():
            p.copy_(part(saved[name], p))
        for name, weight in state.get("start", {}).items():
            self._start[name].copy_(part(weight, self._start[name]))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {}
        for i, tensors in state["optimiser"]["state"].items():
            moments[i] = {name: part(value, trained[i]) for name, value in tensors.items()}
        self.optimizer.load_state_dict(state["optimiser"] | {"state": moments})
        if state["teacher"] is not None:
            for name, weight in self._make_teacher().items():
                weight.copy_(part(state["teacher"][name], weight))
        self.skipped = state["skipped"]
        if self.loss_scale and "loss_scale" in state:  # not where the run began on another GPU
            self.loss_scale = LossScale(**state["loss_scale"])


@dataclass(frozen=True)
class FrozenLearner:
    """A policy that is only read, where a method asks for a learner.

    Its policy, its reference and its teacher are one set of weights, which nobody trains.
    """

    policy: Policy
    expert: Policy | None = None

    @property
    def placement(self) -> Replicated:
        return Replicated(self.policy)

    @contextmanager
    def weights(self, which: str) -> Iterator[Policy]:
        yield self.policy


# ---- what a learner is made of


def _start_from_adapter(policy: Policy, lora: int) -> str:
    """What becomes of the adapter that the policy was loaded with; "" where there is none.

    It is merged where all weights are to be trained.
    """
    if not has_adapter(policy.model):
        return ""
    if not lora:
        merge(policy)
        return "merged into the weights"
    [name] = policy.model.active_adapters
    rank = policy.model.peft_config[name].r
    return f"trained further, rank {rank}" + (f" (not {lora})" if rank != lora else "")


def _refuse(
    policy: Policy, optimizer: OptimConfig, lora: int, expert: Policy | None, shard: bool
) -> None:
    """Raises WorkbenchError for what cannot be trained together."""
    refuse_if(
        not lora and not policy.trains_in_fp32,
        f"{policy.name} was loaded with weights that cannot be trained (4 or 16 "
        "bits): train an adapter with lora",
    )
    if lora and has_adapter(policy.model):
        refuse_untrainable(policy, shard)
    if expert is not None and expert.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise WorkbenchError(
            f"the teacher {expert.name} has another vocabulary than {policy.name}: it "
            "cannot score its tokens"
        )
    refuse_if(
        shard and optimizer.eight_bit,
        "the 8-bit optimiser cannot be sharded: AdamW's moments are split over the "
        "processes in fp32",
    )


def _origin(model: nn.Module, frozen: bool) -> list[int]:
    """Of which weights training began: those that an adapter is trained on, or all.

    Rounded as they may be where they are frozen; 4-bit ones left out.
    """
    weights = (p for p in model.parameters() if not (frozen and p.requires_grad))
    return distributed.fingerprint(p.bfloat16() for p in weights if p.is_floating_point())


def _adamw(parameters: list[Tensor], settings: OptimConfig) -> torch.optim.Optimizer:
    """AdamW on matrices with weight decay, on vectors (norms, biases) without."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if not settings.eight_bit:
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    missing = "the 8-bit optimiser needs the package bitsandbytes, which cannot be imported here"
    with refuse_on(Exception, missing, why=True):
        import bitsandbytes
    return bitsandbytes.optim.AdamW8bit(groups, lr=settings.lr)


def _detached(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in weights.items()}


def _with_adapter(policy: Policy, rank: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # the adapter's A is random
    if not policy.unsloth:
        return peft_adapter(policy.model, rank)
    named = policy.decoder.named_modules()
    linear = {name.rpartition(".")[2] for name, module in named if isinstance(module, nn.Linear)}
    return import_unsloth().get_peft_model(
        policy.model,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=sorted(linear),
        random_state=seed,
        use_gradient_checkpointing=False,
    )
