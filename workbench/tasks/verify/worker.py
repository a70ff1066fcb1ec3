"""The inside of ``pool.Pool``: a process that reads jobs and answers each, a JSON object a line.

Some of reasoning-gym's scorers evaluate a model's text as Python; ``expressions.py`` lets only
inert text reach those. Should more get through, then where the system has seccomp (Linux on x86-64
or ARM64) the process can start nothing, reach no network, signal nobody and write no file before it
reads its first job; what it says is a number, with its job's own.
"""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import signal
import sys
from collections.abc import Callable

MEMORY = 4 << 30  # bytes of address space


def math_jobs() -> Callable[[dict], dict]:
    """{gold, given} -> {same}; {gold} -> {read: can it be parsed?}.

    The parser of LaTeX alone: that of expressions evaluates them.
    """
    import logging

    from workbench.tasks.verify import algebra

    logging.disable(logging.WARNING)  # that its own time limits, which no thread can have, are off

    def job(asked: dict) -> dict:
        if "given" in asked:
            return {"same": bool(algebra.same(asked["gold"], asked["given"]))}
        algebra.read(asked["gold"])
        return {"read": True}

    job({"gold": r"\frac{1}{2}x^2", "given": "x^2/2"})  # the first time is slow
    return job


def gym_jobs() -> Callable[[dict], dict]:
    """{id, dataset, options, entry, answer} -> {id, score}.

    ``options`` and ``entry`` are pickled by the parent.
    """
    import reasoning_gym

    made = {}

    def job(asked: dict) -> dict:
        key = asked["dataset"], asked["options"]
        if key not in made:
            made[key] = reasoning_gym.create_dataset(
                asked["dataset"], **pickle.loads(base64.b64decode(asked["options"]))
            )
        score = float(
            made[key].score_answer(asked["answer"], pickle.loads(base64.b64decode(asked["entry"])))
        )
        return {"id": asked["id"], "score": score if math.isfinite(score) else 0.0}

    return job


KINDS = {"math": math_jobs, "gym": gym_jobs}


def lock() -> None:
    """No new process, no network, no change to any file, no more than ``MEMORY``; as much of it as
    this system has.
    """
    from workbench.tasks.sandbox.layers import filter_code, limit, resource, seccomp

    if resource is not None:  # else Windows
        limit("AS", MEMORY)
        seccomp(filter_code(read_only=True))


def timers(processor: float, wall: float) -> None:
    """This process ends after so many seconds, by signals that nothing handles.

    0: never. The second is for when the parent, who also looks, is gone.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, processor)
        signal.setitimer(signal.ITIMER_REAL, wall)


def main(kind: str) -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    try:
        job = KINDS[kind]()
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=replies)
        return
    lock()
    print("ready", file=replies)
    for line in sys.stdin:
        asked = json.loads(line)
        timers(*asked["limits"])
        try:
            reply = job(asked)
        # MemoryError, RecursionError, whatever a library raises for nonsense
        except BaseException as error:
            reply = {"error": type(error).__name__}
        timers(0, 0)
        print(json.dumps(reply), file=replies)
