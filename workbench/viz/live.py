"""A run as it is trained, in a notebook: curves, the newest group, warnings, tokens a second, time
left, and a button that stops it.

    fit(method, learner, task, plan, out, writers=[LiveRun()])

To stop is to interrupt, as the notebook's own stop button does: there is a checkpoint to resume
from, the policy of the best evaluation stays in ``best``, the policy so far is saved, and ``fit``
gives the run back. In JupyterLab and Notebook 7 the button interrupts through the page's own
connection to the kernel, for a cell that runs takes no messages from widgets where the kernel has
no subshells. VS Code and Colab give a widget no such connection: there the button says which one
of theirs to press.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from workbench.core import Group, StepRecord
from workbench.viz.style import LIGHT
from workbench.viz.texts import escape

WIDTH, HEIGHT = 300, 60  # of a curve, pixels
SHOWN = 4  # rollouts of the newest group
LONGEST = 600  # characters of each
CURVES = {"correct": (0.0, 1.0), "length": (0.0, None), "entropy": (0.0, None)}


class LiveRun:
    """A writer for ``fit``."""

    def __init__(self):
        self.steps = 0
        self.warning = ""
        self.curves: dict[str, list[tuple[int, float]]] = {name: [] for name in CURVES}
        self.evaluations: list[tuple[int, float]] = []
        self.newest: Group | None = None
        self._began: float | None = None
        self._tokens = 0.0
        self._area = self._button = None

    def stop(self) -> None:
        """Ask the run to stop."""
        signal.raise_signal(signal.SIGINT)  # what Ctrl-C does: fit keeps what was made

    def begin(self, plan) -> None:
        """``fit`` says how many steps there will be."""
        self.steps = plan.steps
        self._show("<p>The first step …</p>")
        if self._area is not None:
            # without anywidget there is none: a notebook has a stop button of its own
            with suppress(ImportError):
                from IPython.display import display

                self._button = display(_button_class()(), display_id=True)

    def write(self, record: StepRecord) -> None:
        """Add a step, and draw."""
        now = time.monotonic()
        if self._began is None:  # the first step also loads and compiles: it is no measure
            self._began, self._first = now, record.step
        else:
            self._tokens += record.metrics.get("generated", 0.0)
        for name, points in self.curves.items():
            if math.isfinite(record.metrics.get(name, math.nan)):
                points.append((record.step, record.metrics[name]))
        averages = [record.metrics.get(name) for name in ("eval_avg", "final_eval_avg")]
        self.evaluations += [(record.step, average) for average in averages if average is not None]
        self.newest = record.groups[-1] if record.groups else self.newest
        self._page = self.html(record.step, now - self._began)
        self._show(self.warning + self._page)

    def warn(self, words: str) -> None:
        """Shown at the top from now on."""
        self.warning = f"<p><b>{escape(words)}</b></p>"

    def end(self) -> None:
        """The run is over: what stays in the notebook needs no kernel."""
        if self._button is not None:
            self._button.update({"text/plain": ""}, raw=True)
        if self._began is not None:
            self._show(self.warning + self._page)

    def html(self, step: int, seconds: float) -> str:
        """What is shown: it needs no script, and what a model wrote is text."""
        words = [f"step {step + 1} of {self.steps}"]
        if self.evaluations:
            words.append("avg@k on validation {1:.3f} (step {0})".format(*self.evaluations[-1]))
        since = step - self._first
        if since and seconds > 0:
            words.append(f"{self._tokens / seconds:,.0f} tokens a second")
            words.append(f"{_clock(seconds / since * (self.steps - step - 1))} left")
        curves = "".join(map(self._curve, CURVES))
        return f"<p>{' · '.join(words)}</p>{curves}{_group(self.newest)}"

    def _curve(self, name: str) -> str:
        """One metric of each step as a line, from 0 below; evaluations as points on ``correct``."""
        points = self.curves[name]
        if not points:
            return ""
        low, high = CURVES[name]
        high = high or max(value for _, value in points) or 1.0

        def place(step: int, value: float) -> tuple[float, float]:
            return step / max(self.steps - 1, 1) * WIDTH, (high - value) / (high - low) * HEIGHT

        dots = self.evaluations if name == "correct" else ()
        label = f"{name} {points[-1][1]:.3g}"
        return (
            f'<span style="display:inline-block;margin-right:1em">{label}<br>'
            f'<svg viewBox="-4 -4 {WIDTH + 8} {HEIGHT + 8}" width="{WIDTH}" role="img" '
            f'aria-label="{name} by step" fill="{LIGHT.down_line}">'
            f'<polyline points="{_line(map(place, *zip(*points)))}" fill="none" '
            f'stroke="{LIGHT.up_line}"/>{_dots(place(*dot) for dot in dots)}</svg></span>'
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


def _line(places) -> str:
    return " ".join("{:.1f},{:.1f}".format(*place) for place in places)


def _dots(places) -> str:
    return "".join('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*place) for place in places)


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


@cache
def _button_class() -> type:
    import anywidget

    class StopButton(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("stop.js").read_text(encoding="utf-8")

    return StopButton
