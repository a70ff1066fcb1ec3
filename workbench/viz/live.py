"""A run as it is trained, in a notebook: the curve, the newest group, tokens a second, time left,
and patience.

    fit(method, learner, task, plan, out, writers=[LiveRun(plan.steps)])
    fit(method, learner, task, plan, out, writers=[LiveRun(plan.steps, stop_after=3)])

To stop is to interrupt, as the notebook's own stop button does: there is a checkpoint to resume
from, the policy of the best evaluation stays in ``best``, and ``fit`` gives the run back.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import suppress

from workbench.core import Group, StepRecord
from workbench.viz.markup import escape
from workbench.viz.style import LIGHT

WIDTH, HEIGHT = 480, 80  # of the curve, pixels
SHOWN = 4  # rollouts of the newest group
LONGEST = 600  # characters of each


class LiveRun:
    """A writer for ``fit``. ``steps``: how many there will be.

    ``stop_after``: stop after so many evaluations in a row that are no better than the best before;
    0: never.
    """

    def __init__(self, steps: int, stop_after: int = 0):
        self.steps, self.stop_after = steps, stop_after
        self.asked = False
        self.curve: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        self.newest: Group | None = None
        self._began: float | None = None
        self._tokens = 0.0
        self._area = None

    def stop(self, *_) -> None:
        """Ask the run to stop; it does so before its next step."""
        self.asked = True

    def write(self, record: StepRecord) -> None:
        """Add a step, and draw."""
        now = time.monotonic()
        if self._began is None:  # the first step also loads and compiles: it is no measure
            self._began, self._first = now, record.step
        else:
            self._tokens += record.metrics.get("generated", 0.0)
        self.curve.append((record.step, record.metrics["correct"]))
        averages = [record.metrics.get(name) for name in ("eval_avg", "final_eval_avg")]
        self.evaluations += [(record.step, average) for average in averages if average is not None]
        self.newest = record.groups[-1] if record.groups else self.newest
        self._show(self.html(now - self._began))
        last = record.step + 1 >= self.steps
        if (self.asked or self._enough()) and not last:
            self.asked = False
            signal.raise_signal(signal.SIGINT)  # what Ctrl-C does: fit keeps what was made

    def _enough(self) -> bool:
        averages = [average for _, average in self.evaluations]
        before = averages[: -self.stop_after] if self.stop_after else []
        return bool(before) and max(averages[-self.stop_after :]) <= max(before)

    def html(self, seconds: float) -> str:
        """What is shown: it needs no script, and what a model wrote is text."""
        step, correct = self.curve[-1]
        words = [f"step {step + 1} of {self.steps}", f"correct {correct:.2f}"]
        if self.evaluations:
            words.append("avg@k on validation {1:.3f} (step {0})".format(*self.evaluations[-1]))
        since = step - self._first
        if since and seconds > 0:
            words.append(f"{self._tokens / seconds:,.0f} tokens a second")
            words.append(f"{_clock(seconds / since * (self.steps - step - 1))} left")
        return f"<p>{' · '.join(words)}</p>{self._svg()}{_group(self.newest)}"

    def _svg(self) -> str:
        """Right answers of each step as a line, evaluations as points; 0 to 1 from below."""

        def place(step: int, value: float) -> tuple[float, float]:
            return step / max(self.steps - 1, 1) * WIDTH, (1 - value) * HEIGHT

        line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in self.curve)
        dots = "".join(
            '<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*place(*point))
            for point in self.evaluations
            if math.isfinite(point[1])
        )
        return (
            f'<svg viewBox="-4 -4 {WIDTH + 8} {HEIGHT + 8}" width="{WIDTH}" role="img" '
            f'aria-label="share of right answers by step" fill="{LIGHT.down_line}">'
            f'<polyline points="{line}" fill="none" stroke="{LIGHT.up_line}"/>{dots}</svg>'
        )

    def _show(self, html: str) -> None:
        with suppress(ImportError):  # outside a notebook there is nothing to draw on
            from IPython import get_ipython
            from IPython.display import HTML, display

            if get_ipython() is None:
                return
            if self._area is None:
                self._area = display(HTML(html), display_id=True)
            else:
                self._area.update(HTML(html))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _group(group: Group | None) -> str:
    if group is None:
        return ""
    question = escape(group.problem.messages[-1]["content"][:LONGEST])
    texts = ""
    for rollout in group.rollouts[:SHOWN]:
        text = escape(rollout.text[:LONGEST])
        texts += f"<pre><b>{rollout.verdict.mark}</b> {text}</pre>"
    return f"<p><b>The newest group.</b> {question}</p>{texts}"
