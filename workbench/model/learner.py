"""A learner: a policy with an optimiser, a frozen reference and an EMA teacher."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.core import WorkbenchError
from workbench.model import distributed
from workbench.model.loading import _first_line, _unsloth
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
        if not (
            0 < self.lr < math.inf
            and 0 <= self.weight_decay < math.inf
            and self.clip > 0
            and 0 <= self.ema <= 1
        ):
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
        if not lora and not policy.trains_in_fp32:
            raise WorkbenchError(
                f"{policy.name} was loaded with weights that cannot be trained (4 bits or "
                "bf16): train an adapter with lora"
            )
        self.policy, self.settings, self.lora, self.expert = policy, optimizer, lora, expert
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
        self.skipped = 0  # updates not made because a gradient was not finite
        if lora:
            policy.model = _with_adapter(policy, lora, seed)
            if shard:
                _teacher_adapter(policy.model)  # what is added later would not be split
        else:
            policy.model.requires_grad_(True)
        policy.model.eval()  # no dropout: the sampler and the trainer must agree
        policy.checkpointing = checkpointing
        self.placement = Sharded(policy) if shard else Replicated(policy)
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        decay = [
            {
                "params": [p for p in self.parameters if p.ndim > 1],
                "weight_decay": optimizer.weight_decay,
            },
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = _adamw([group for group in decay if group["params"]], optimizer)
        self._teacher: dict[str, Tensor] | None = None
        self._start = {name: p.detach().clone() for name, p in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, by name: all weights, or the adapter's."""
        return (
            _adapter_weights(self.policy.model, "default")
            if self.lora
            else dict(self.policy.model.named_parameters())
        )

    def gathered(self) -> AbstractContextManager[None]:
        """A with block in which a sharded policy's weights are all here, to sample and read with.

        All ranks enter it together.
        """
        return self.placement.gathered()

    # ---- other sets of weights on the same network

    @contextmanager
    def weights(self, which: str):
        """The policy with the weights of ``"policy"``, ``"reference"`` (as loaded) or ``"teacher"``
        (EMA), for the length of a with block.
        """
        if which == "policy":
            yield self.policy
            return
        if self.lora:
            if which == "teacher":
                self._make_teacher()
                with self._adapter("teacher"):
                    yield self.policy
            else:
                with self.policy.model.disable_adapter():
                    yield self.policy
            return
        with self.placement.exchanged(self._make_teacher() if which == "teacher" else self._start):
            yield self.policy

    @contextmanager
    def _adapter(self, name: str):
        model = self.policy.model
        trainable = [p for p in self.parameters if p.requires_grad]
        model.set_adapter(name)
        try:
            yield
        finally:
            model.set_adapter("default")
            _freeze_adapter(model, "teacher")  # set_adapter makes what it activates trainable
            for p in trainable:
                p.requires_grad_(True)

    def _make_teacher(self) -> dict[str, Tensor]:
        """The teacher starts as the policy started, whenever it is first asked for; after that only
        ``update_teacher`` changes it.
        """
        if self._teacher is None:
            if self.lora:
                _teacher_adapter(self.policy.model)
                self._teacher = _adapter_weights(self.policy.model, "teacher")
                with torch.no_grad():
                    for name, weight in self._teacher.items():
                        weight.copy_(self._start[name])
            else:
                self._teacher = {name: weight.clone() for name, weight in self._start.items()}
        return self._teacher

    @torch.no_grad()
    def update_teacher(self) -> float:
        """theta' <- (1 - u) theta' + u theta, once per generation batch (SDPO, arXiv 2601.20802,
        section 2.3). Returns how far the teacher is behind now, |theta - theta'| / |theta -
        theta_0|: 1, it is where the policy started; 0, where the policy is.
        """
        teacher = self._make_teacher()
        source = self._weights()
        distances = torch.zeros(2, device=self.policy.device)
        for name, weight in teacher.items():
            weight.lerp_(source[name], self.settings.ema)
            distances += torch.stack(
                [
                    local(source[name] - other).float().square().sum()
                    for other in (weight, self._start[name])
                ]
            )
        behind, moved = self.placement.total(distances)
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
        own = self.placement.total(
            torch.tensor(
                distributed.fingerprint([local(p) for p in self.policy.model.parameters()])
            )
        )
        return own.tolist() + (
            distributed.fingerprint(list(self.expert.model.parameters())) if self.expert else []
        )

    # ---- saving

    def save(self, folder: Path) -> None:
        """The policy in a form that plain transformers (or peft) loads.

        All ranks call it, one writes.
        """
        mine = ".default." if self.lora else ""
        weights = (
            None
            if self.policy.gathered
            else gather_tree(
                {name: p for name, p in self.policy.model.state_dict().items() if mine in name}
            )
        )
        if not distributed.main():
            return
        if self.lora:
            self.policy.model.save_pretrained(
                folder, selected_adapters=["default"], state_dict=weights
            )
        else:
            self.policy.model.save_pretrained(folder, state_dict=weights)
            self.policy.tokenizer.save_pretrained(folder)

    def state(self) -> dict:
        """Everything that training goes on from, bit for bit: trainable weights, optimiser,
        teacher, counters. The tensors are the live ones; of a sharded policy whole copies, on rank
        0, and all ranks call this.
        """
        plain = lambda weights: (
            None if weights is None else {name: p.detach() for name, p in weights.items()}
        )  # noqa: E731
        return gather_tree(
            {
                "trainable": plain(self._weights()),
                "optimiser": self.optimizer.state_dict(),
                "teacher": plain(self._teacher),
                "skipped": self.skipped,
            }
        )

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Raises WorkbenchError when ``state`` is of another model or adapter."""
        own, saved = self._weights(), state["trainable"]
        if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
            raise WorkbenchError(
                "the checkpoint belongs to another model (or another LoRA rank): its "
                "weights do not fit"
            )
        for name, p in own.items():
            p.copy_(part(saved[name], p))
        moments, places = (
            state["optimiser"]["state"],
            [p for group in self.optimizer.param_groups for p in group["params"]],
        )
        moments = {
            i: {name: part(value, places[i]) for name, value in of.items()}
            for i, of in moments.items()
        }
        self.optimizer.load_state_dict(state["optimiser"] | {"state": moments})
        if state["teacher"] is not None:
            for name, weight in self._make_teacher().items():
                weight.copy_(part(state["teacher"][name], weight))
        self.skipped = state["skipped"]


def _with_adapter(policy: Policy, rank: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # the adapter's A is random
    if policy.unsloth:
        linear = sorted(
            {
                name.rpartition(".")[2]
                for name, module in policy.decoder.named_modules()
                if isinstance(module, nn.Linear)
            }
        )
        return _unsloth().get_peft_model(
            policy.model,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=linear,
            random_state=seed,
            use_gradient_checkpointing=False,
        )
    return peft_adapter(policy.model, rank)


def peft_adapter(model: nn.Module, rank: int) -> nn.Module:
    """The model with a fresh LoRA adapter on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _adamw(groups: list[dict], settings: OptimConfig) -> torch.optim.Optimizer:
    if not settings.eight_bit:
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    try:
        import bitsandbytes
    except Exception as error:
        raise WorkbenchError(
            "the 8-bit optimiser needs the package bitsandbytes, which cannot be imported "
            f"here: {_first_line(error)}"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, lr=settings.lr)


def _adapter_weights(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The LoRA matrices of one adapter, keyed by their place in the model."""
    return {
        name.replace(f".{adapter}.", "."): p
        for name, p in model.named_parameters()
        if f".{adapter}." in name
    }


def _teacher_adapter(model: nn.Module) -> None:
    """Give the model a second adapter, unless it has it."""
    if "teacher" not in model.peft_config:
        model.add_adapter("teacher", model.peft_config["default"])
        model.set_adapter("default")
        _freeze_adapter(model, "teacher")


def _freeze_adapter(model: nn.Module, adapter: str) -> None:
    for p in _adapter_weights(model, adapter).values():
        p.requires_grad_(False)


@dataclass(frozen=True)
class FrozenLearner:
    """A learner that has not learned yet: its policy, its reference and its teacher are one set of
    weights, which nobody trains.
    """

    policy: Policy
    expert: Policy | None = None

    @property
    def placement(self) -> Replicated:
        return Replicated(self.policy)

    @contextmanager
    def weights(self, which: str) -> Iterator[Policy]:
        yield self.policy
