"""Many processes, one run. torchrun (or accelerate launch) starts N copies of a program; this makes
them the *ranks* of one training run.

Every rank goes through the same steps with the same numbers, and holds the whole policy, or a part
of it (shard.py). What takes time is shared:

    tokens       spread    each rank samples and grades (or re-reads) its share, and all are given
                           everything
    gradients    share     each rank differentiates its share of the micro-batches, then
                           ``sum_gradients``: the same update everywhere
    files        main      one rank writes

So a method sees all groups of a step on every rank: what it counts, divides by or draws over the
whole batch is right, and it need not know of ranks. Samples come from coordinates, denominators
from the whole batch: N processes make the update of one, up to the rounding of sums.

With one process all of this is the identity. Nobody has to call ``start``: loading a policy or
making a learner does.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.core import WorkbenchError, refuse_if, refuse_on

Item, Result = TypeVar("Item"), TypeVar("Result")
JOIN = timedelta(minutes=5)  # how long to wait for the others at the start
# how long to wait for one that still runs. One that ended is noticed at once
TIMEOUT = timedelta(minutes=30)
LOST = "another process of this run has ended or hangs; where it said why is above"
# Of accelerate's settings for FSDP, those that change what is held where. (Others say how to get
# there: prefetching, wrapping, state dicts.)
_FSDP = {
    "FSDP_SHARDING_STRATEGY": ("full_shard", "1"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
    "FSDP_OFFLOAD_PARAMS": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false",),
}
_INSTEAD = "start it with torchrun --nproc-per-node N -m workbench train ..."
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_store: dist.Store | None = None
_alone = False  # inside the work of ``spread``


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def main() -> bool:
    """Whether this rank writes files, shows progress and prints."""
    return rank() == 0


def start() -> None:
    """Join the other processes, if the launcher started some.

    They speak by NCCL between GPUs, one for each process, by gloo between CPUs.

    Raises WorkbenchError when what was asked for is not what is there: nothing goes on with fewer
    processes, or unsharded, without a word.
    """
    global _store
    refuse_fallbacks(os.environ)
    if size() > 1 or _count(os.environ, "WORLD_SIZE") <= 1:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        place = int(os.environ["LOCAL_RANK"])
        refuse_if(
            place >= torch.cuda.device_count(),
            f"process {place} (counted from 0) has no GPU of its own: this machine has "
            f"{torch.cuda.device_count()}, start no more processes on it",
        )
        torch.cuda.set_device(place)  # from now on "cuda" is this one
    asked = os.environ["WORLD_SIZE"]
    alone = f"the {asked} processes that were asked for did not find each other"
    with refuse_on((RuntimeError, ValueError), alone, why=True):
        _store, number, n = next(dist.rendezvous("env://", timeout=JOIN))
        dist.init_process_group(backend, store=_store, rank=number, world_size=n, timeout=TIMEOUT)
    # accelerate's: transformers would load the weights on the first rank alone
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    atexit.register(_leave)
    if not main():
        warnings.simplefilter("ignore")  # all go through the same steps: one warns for all


def _leave() -> None:
    """Part from the others; after an error the process only ends.

    They may be gone then, and to part from them could take for ever.
    """
    if not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "1")
    refuse_if(
        not text.isdecimal(), f"{name}={text} in the environment is not a number of processes"
    )
    return int(text)


def refuse_fallbacks(environment: Mapping[str, str]) -> None:
    """Raises WorkbenchError where a launcher was asked for what this process would not have.

    That is: several processes, sharding, or another precision.
    """
    if _count(environment, "WORLD_SIZE") > 1:
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            refuse_if(
                name not in environment,
                f"WORLD_SIZE asks for {environment['WORLD_SIZE']} processes, but {name} is "
                f"not set: {_INSTEAD}",
            )
    elif "WORLD_SIZE" not in environment:
        _refuse_single_process(environment)
    for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        refuse_if(
            environment.get(f"ACCELERATE_USE_{name}", "false").lower() == "true",
            f"accelerate launch was asked for {name}: here every process holds the whole "
            "policy, or by FSDP a part of it, so take --multi_gpu, --use_fsdp or torchrun",
        )
    for name, allowed in _FSDP.items():
        if fsdp(environment) and environment.get(name, allowed[0]).lower() not in allowed:
            raise WorkbenchError(
                f"accelerate launch was asked for {name}={environment[name]}: FSDP is done "
                f"here with {name}={allowed[0]} only"
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    refuse_if(
        precision != "no",
        f"accelerate launch was asked for mixed precision ({precision}): the policy is trained "
        "in the precision that it was loaded in, so take --mixed_precision no",
    )


def _refuse_single_process(environment: Mapping[str, str]) -> None:
    """Raises WorkbenchError where this process believes that it is the only one, and is not."""
    # accelerate launch --num_processes N without GPUs starts one process and gives it an address
    # but no rank
    refuse_if(
        "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment,
        "accelerate launch was asked for several processes and started one (it does so without "
        f"GPUs): {_INSTEAD}",
    )
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):  # mpirun and srun
        count = _count(environment, name)
        refuse_if(
            count > 1,
            f"{name} says that there are {count} processes, but not how they find each other: "
            f"{_INSTEAD}",
        )


def fsdp(environment: Mapping[str, str]) -> bool:
    """Whether accelerate launch was asked to shard the policy (shard.py)."""
    return environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


# ---- what ranks tell each other


@refuse_on(RuntimeError, LOST)
def gather(value: Any) -> list:
    """Every rank's ``value``, in order of rank. Raises WorkbenchError when a rank is gone."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def agree(facts: Callable[[], dict[str, Any]]) -> None:
    """Raises WorkbenchError, naming the facts, where a rank has other ones.

    With one process they are not even computed.
    """
    first, *others = gather(facts() if size() > 1 else {})
    different = [name for name in first if any(other.get(name) != first[name] for other in others)]
    refuse_if(
        different,
        f"the {size()} processes have different {' and '.join(different)}: they need "
        "the same command, code and files",
    )


def first_to_fail() -> bool:
    """Is this the first rank to end with an error?

    That one says why; where one fails the others do, too.
    """
    atexit.unregister(_leave)
    try:
        return _store is None or _store.add("failed", 1) == 1
    except RuntimeError:  # the launcher is gone, and the store with it
        return True


# ---- what they share


def share(items: Sequence[Item]) -> list[Item]:
    """This rank's part: every N-th, so that a list in order of size is dealt out evenly."""
    return list(items[rank() :: size()])


def spread(items: Sequence[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """``work(items)``, a result for each item, done by all ranks together: each works on its share,
    and all return all results in order.

    All ranks must call this with the same items. Inside ``work`` there is nothing to share any
    more. A WorkbenchError of one rank is raised on all.
    """
    global _alone
    if size() == 1 or _alone:
        return work(list(items))
    results, failure = [], ""
    _alone = True
    try:
        results = work(share(items))
    except WorkbenchError as error:
        failure = str(error)
    finally:
        _alone = False
    call = (work.__qualname__, len(items))
    calls, failures, parts = zip(*gather((call, failure, results)))
    for failure in filter(None, failures):
        raise WorkbenchError(failure)
    whereabouts = " and ".join(f"{n} items in {name}" for name, n in sorted(set(calls)))
    refuse_if(len(set(calls)) > 1, f"the processes have come apart: {whereabouts}")
    return [parts[i % size()][i // size()] for i in range(len(items))]


@refuse_on(RuntimeError, LOST)
def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """The sum over all ranks in every ``grad``.

    One that no rank has stays None, as it would in one process.
    """
    if size() == 1:
        return
    present = [p.grad is not None for p in parameters]
    device = parameters[0].device
    counts = total(torch.tensor(present, dtype=torch.int32, device=device))
    shared = [p for p, ranks in zip(parameters, counts.tolist()) if ranks]
    for p in shared:
        if p.grad is None:  # this rank had no micro-batch that touches it
            p.grad = torch.zeros_like(p)
    for handle in [dist.all_reduce(p.grad, async_op=True) for p in shared]:
        handle.wait()


@refuse_on(RuntimeError, LOST)
def total(numbers: Tensor) -> Tensor:
    """``numbers``, which becomes the sum over all ranks."""
    dist.all_reduce(numbers)
    return numbers


def fingerprint(tensors: Iterable[Tensor]) -> list[int]:
    """The sum of each tensor's bits, read as whole numbers: exact, in any order, on any device."""
    bits = (tensor.detach().contiguous().view(_BITS[tensor.element_size()]) for tensor in tensors)
    return torch.stack([numbers.sum(dtype=torch.int64) for numbers in bits]).tolist()
