"""How the ranks of a run hold what is trained: each all of it, or each an N-th.

The first is ``Replicated``, the second ``Sharded`` (PyTorch's FSDP2).

Sharded are the weights, also those of a frozen base under an adapter, gradients, the optimiser's
moments, the copy of the start (the reference) and the EMA teacher. An expert, which is another
frozen model, is not. What a rank has beyond its N-th:

    sampling, re-reading, evaluation    the whole weights, inside ``gathered``: ranks have unequal
                                        amounts of this work and cannot wait for each other
    training                            one layer's weights at a time, and the embeddings', gathered
                                        by all ranks together for each pass
    a checkpoint, the saved policy      on rank 0 one whole copy in the CPU's memory: any number of
                                        processes can go on with it, sharded or not

So a GPU must have room for the weights once (loading takes it, too), not for gradients, moments and
copies.

In training all ranks go through the same passes: one with fewer micro-batches makes idle ones, and
whether there is a teacher to read or a gradient to make is decided by all (``any``). Gradients are
added up and not averaged, because the denominators are already those of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.core import refuse_if
from workbench.model import distributed
from workbench.model.policy import Policy

# ---- tensors of which this rank may hold a part. Of all others these are the identity


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """``whole`` shared out as ``like`` is, if it is one number for each of its."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gather_tree(tree: Any) -> Any:
    """The tensors of nested dicts, whole, on rank 0's CPU; elsewhere nothing in their place.

    All ranks call this together.
    """
    if isinstance(tree, dict):
        return {name: gather_tree(value) for name, value in tree.items()}
    if not isinstance(tree, DTensor):
        return tree
    whole = tree.detach().full_tensor()
    return whole.cpu() if distributed.main() else None


# ---- who holds what


class Replicated:
    """Every rank holds the whole policy."""

    def __init__(self, policy: Policy):
        self.policy = policy

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The policy's weights are all here: it can be sampled from."""
        yield

    @contextmanager
    def exchanged(self, parameters: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[None]:
        """The policy with other weights in the place of ``parameters``, by name."""
        before = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = other[name]
            yield
        finally:
            for name, p in parameters.items():
                p.data = before[name]

    def share(self, batches: list) -> tuple[list, list]:
        """This rank's micro-batches, and those that it goes through only to keep step."""
        return distributed.share(batches), []

    def any(self, here: bool) -> bool:
        """Whether it is so here, or on a rank that this one keeps step with."""
        return here

    def total(self, numbers: Tensor) -> Tensor:
        """Sums over this rank's parts -> sums over everything."""
        return numbers

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        distributed.sum_gradients(parameters)


class Sharded(Replicated):
    """Every rank holds an N-th of each weight of the policy.

    Raises WorkbenchError where that cannot be had.
    """

    def __init__(self, policy: Policy):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        how = "Unsloth" if policy.unsloth else "4 bits"
        refuse_if(
            policy.unsloth or getattr(policy.base, "is_quantized", False),
            f"{policy.name} cannot be sharded in {how}: load it without",
        )
        layers = _layers(policy)
        refuse_if(
            distributed.size() == 1,
            "sharding splits the policy over several processes, and there is one: "
            "start them with torchrun --nproc-per-node N",
        )
        # from now on each of them is there once
        distributed.agree(
            lambda: {"weights": distributed.fingerprint([*policy.model.parameters()])}
        )
        mesh = init_device_mesh(policy.device.type, (distributed.size(),))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        root = policy.decoder
        head = policy.base.get_output_embeddings()
        # The head is used as a matrix and not called, so it goes with the decoder (whose embeddings
        # it may be): there until the backward pass ends.
        root.add_module("sharded_head", head)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)
        del root.sharded_head
        super().__init__(policy)
        self.root = root
        self.parts = [*layers, root]
        for module in self.parts:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        policy.gathered = False

    def _gather(self) -> None:
        for module in self.parts:
            module.unshard()

    def _reshard(self) -> None:
        for module in self.parts:
            module.reshard()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All ranks enter together; until they leave, none waits for another."""
        self.root.set_reshard_after_forward(False)
        self._gather()
        self.policy.gathered = True
        try:
            yield
        finally:
            self.policy.gathered = False
            self.root.set_reshard_after_forward(True)
            self.root.set_reshard_after_forward(False, recurse=False)
            self._reshard()

    @contextmanager
    def exchanged(self, parameters: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[None]:
        """In place, because FSDP gathers from where the parts are.

        ``other`` holds the policy's own weights meanwhile.
        """

        @torch.no_grad()
        def exchange() -> None:
            self._reshard()
            for name, p in parameters.items():
                before = p.detach().clone()
                p.copy_(other[name])
                other[name].copy_(before)

        exchange()
        if self.policy.gathered:
            self._gather()
        try:
            yield
        finally:
            exchange()
        # not after an error: one that only this rank has must not wait for the others
        if self.policy.gathered:
            self._gather()

    def share(self, batches: list) -> tuple[list, list]:
        batches_here = distributed.share(batches)
        passes = math.ceil(len(batches) / distributed.size())  # of the rank with most
        return batches_here, batches[: passes - len(batches_here)]

    def any(self, here: bool) -> bool:
        return bool(self.total(torch.tensor(int(here))))

    def total(self, numbers: Tensor) -> Tensor:
        return distributed.total(numbers)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """FSDP has added them up. The weights change now: what is still gathered of them goes."""
        self._reshard()


def _layers(policy: Policy) -> list[nn.Module]:
    """The policy's layers, which are split one by one.

    Raises WorkbenchError where there is more to it than layers, embeddings and a head.
    """
    layers = policy.layers
    covered = {*policy.decoder.parameters(), *policy.base.get_output_embeddings().parameters()}
    refuse_if(
        not layers or set(policy.model.parameters()) - covered,
        f"{policy.name} cannot be sharded: it is not layers between embeddings and "
        "an output embedding",
    )
    return layers
