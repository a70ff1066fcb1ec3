"""Ctrl-C and SIGTERM while a run is made: nothing that was learned is lost.

One process stops at once: until a step's first update its weights are those that the step before
left, and can be kept. After that, and where several processes must stop together, the signal waits
for the end of the step.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from workbench.core import Interrupted
from workbench.model import distributed
from workbench.model.learner import Learner
from workbench.model.shard import local

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """In its with block the signals that ask a process to end are asked of the run."""

    def __init__(self, learner: Learner):
        self.learner = learner
        self.asked = 0  # the number of the signal
        self._begun: tuple = ()
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        # elsewhere Python has no say in signals; one that is ignored (nohup) stays so
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = self.asked
        self.asked = number
        if distributed.size() == 1 and (again or self.intact()):
            raise KeyboardInterrupt
        if distributed.main() and not again:  # by the shortest way: printing may be under way
            os.write(2, b"workbench: stopping at the end of this step\n")

    def begin_step(self) -> None:
        """Raises KeyboardInterrupt, on all ranks, where one of them was asked to stop."""
        self._begun = self._state()
        self.asked = max(distributed.gather(self.asked))
        if self.asked:
            raise KeyboardInterrupt

    def intact(self) -> bool:
        """Whether the learner is as it was when the step began."""
        return self._begun == self._state()

    def _state(self) -> tuple:
        # Another set of weights may be lent to the network (Learner.weights): their places tell.
        places = [local(p).data_ptr() for p in self.learner.parameters]
        return self.learner.steps, places

    def stopped(self, step: int, steps: int) -> Interrupted:
        """What is said of a run that was stopped with ``step`` of ``steps`` made, and kept."""
        number = signal.Signals(self.asked or signal.SIGINT)
        return Interrupted(
            f"stopped by {number.name} with {step} of {steps} steps made: the run goes on from "
            "there with --resume (in Python resume=True)",
            number,
        )
