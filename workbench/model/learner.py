"""A learner: a policy with an optimiser, a frozen reference and an EMA teacher.

With LoRA, policy, reference and teacher are one frozen base: the reference is the base with its
adapters off, the teacher a second adapter. The base may be kept in bf16, or in 4 bits a weight
(QLoRA, arXiv 2305.14314); the adapters are fp32 always. With full fine-tuning the reference is a
frozen copy of the weights as they were loaded, and the teacher one more, made when it is first
asked for.

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
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.core import WorkbenchError, first_line
from workbench.model import distributed, families
from workbench.model.loading import import_unsloth
from workbench.model.policy import Policy
from workbench.model.shard import Replicated, Sharded, gather_tree, local, part


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

    def __post_init__(self):
        finite = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf
        if not (finite and self.clip > 0 and 0 <= self.ema <= 1):
            raise WorkbenchError(
                "the optimiser takes lr and clip above 0, weight_decay of 0 or more, and "
                "ema from 0 to 1"
            )


class Learner:
    """The trainable policy.

    ``lora``: rank of the adapter to train (0: all weights). ``expert``: another, stronger policy to
    learn from. ``checkpointing``: keep one state a layer for the backward pass and make the others
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
        self.policy = policy
        self.settings = optimizer
        self.lora = lora
        self.expert = expert
        self.skipped = 0  # updates not made because a gradient was not finite
        if lora:
            policy.model = _with_adapter(policy, lora, seed)
            if shard:
                _add_teacher(policy.model)  # what is added later would not be split
        else:
            policy.model.requires_grad_(True)
        policy.model.eval()  # no dropout: the sampler and the trainer must agree
        policy.checkpointing = checkpointing
        self.placement = Sharded(policy) if shard else Replicated(policy)
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizer = _adamw(self.parameters, optimizer)
        self._teacher: dict[str, Tensor] | None = None  # made when it is first asked for
        self._start = {name: p.detach().clone() for name, p in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, by name: all weights, or the adapter's."""
        if self.lora:
            return _adapter_weights(self.policy.model, "default")
        return dict(self.policy.model.named_parameters())

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
        with self._exchanged(which):
            yield self.policy

    def _exchanged(self, which: str) -> AbstractContextManager:
        if which == "policy":
            return nullcontext()
        if which == "teacher":
            teacher = self._make_teacher()
            return self._teacher_adapter() if self.lora else self.placement.exchanged(teacher)
        if self.lora:
            return self.policy.model.disable_adapter()
        return self.placement.exchanged(self._start)

    @contextmanager
    def _teacher_adapter(self) -> Iterator[None]:
        self.policy.model.set_adapter("teacher", inference_mode=True)
        try:
            yield
        finally:
            self.policy.model.set_adapter("default")

    @torch.no_grad()
    def _make_teacher(self) -> dict[str, Tensor]:
        """The teacher's weights by name.

        It starts as the policy started, whenever it is first asked for; after that only
        ``update_teacher`` changes it.
        """
        if self._teacher is not None:
            return self._teacher
        if self.lora:
            _add_teacher(self.policy.model)
            self._teacher = _adapter_weights(self.policy.model, "teacher")
            for name, weight in self._teacher.items():
                weight.copy_(self._start[name])
        else:
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

    def step(self) -> float:
        """Add up over ranks, clip, update, clear.

        Returns the gradient norm before clipping; an update with a norm that is not finite is
        skipped and counted (on every rank: all have the same sum).
        """
        self.placement.sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
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
            trained = ".default." if self.lora else ""
            weights = {name: p for name, p in model.state_dict().items() if trained in name}
            weights = gather_tree(weights)
        if not distributed.main():
            return
        if self.lora:
            model.save_pretrained(folder, selected_adapters=["default"], state_dict=weights)
        else:
            model.save_pretrained(folder, state_dict=weights)
            self.policy.tokenizer.save_pretrained(folder)

    def state(self) -> dict:
        """Everything that training goes on from, bit for bit.

        Trainable weights, optimiser, teacher, counters. The tensors are the live ones; of a sharded
        policy whole copies, on rank 0, and all ranks call this.
        """
        return gather_tree(
            {
                "trainable": _detached(self._weights()),
                "optimiser": self.optimizer.state_dict(),
                "teacher": None if self._teacher is None else _detached(self._teacher),
                "skipped": self.skipped,
            }
        )

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Raises WorkbenchError when ``state`` is of another model or adapter."""
        weights = self._weights()
        saved = state["trainable"]
        if weights.keys() != saved.keys() or any(
            p.shape != saved[name].shape for name, p in weights.items()
        ):
            raise WorkbenchError(
                "the checkpoint belongs to another model (or another LoRA rank): its "
                "weights do not fit"
            )
        for name, p in weights.items():
            p.copy_(part(saved[name], p))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {}
        for i, tensors in state["optimiser"]["state"].items():
            moments[i] = {name: part(value, trained[i]) for name, value in tensors.items()}
        self.optimizer.load_state_dict(state["optimiser"] | {"state": moments})
        if state["teacher"] is not None:
            for name, weight in self._make_teacher().items():
                weight.copy_(part(state["teacher"][name], weight))
        self.skipped = state["skipped"]


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


def _refuse(
    policy: Policy, optimizer: OptimConfig, lora: int, expert: Policy | None, shard: bool
) -> None:
    """Raises WorkbenchError for what cannot be trained together."""
    if not lora and not policy.trains_in_fp32:
        raise WorkbenchError(
            f"{policy.name} was loaded with weights that cannot be trained (4 bits or "
            "bf16): train an adapter with lora"
        )
    if expert is not None and expert.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise WorkbenchError(
            f"the teacher {expert.name} has another vocabulary than {policy.name}: it "
            "cannot score its tokens"
        )
    if shard and optimizer.eight_bit:
        raise WorkbenchError(
            "the 8-bit optimiser cannot be sharded: AdamW's moments are split over the "
            "processes in fp32"
        )


def _adamw(parameters: list[Tensor], settings: OptimConfig) -> torch.optim.Optimizer:
    """AdamW on matrices with weight decay, on vectors (norms, biases) without."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if not settings.eight_bit:
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    try:
        import bitsandbytes
    except Exception as error:
        raise WorkbenchError(
            "the 8-bit optimiser needs the package bitsandbytes, which cannot be imported "
            f"here: {first_line(error)}"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, lr=settings.lr)


def _detached(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in weights.items()}


# ---- adapters: "default" is trained, "teacher" follows it


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


def peft_adapter(model: nn.Module, rank: int) -> nn.Module:
    """The model with a fresh LoRA adapter on every linear layer but the head, routers, other
    towers, and what Mamba's kernels pass by.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=families.with_adapter(model),
        exclude_modules=families.without_adapter(model) or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _adapter_weights(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The LoRA matrices of one adapter, keyed by their place in the model."""
    infix = f".{adapter}."
    return {name.replace(infix, "."): p for name, p in model.named_parameters() if infix in name}


def _add_teacher(model: nn.Module) -> None:
    """Give the model its second adapter, which is not trained, unless it has it."""
    if "teacher" not in model.peft_config:
        model.add_adapter("teacher", model.peft_config["default"])
        model.set_adapter("default")
