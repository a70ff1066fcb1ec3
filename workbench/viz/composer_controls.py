"""The controls of the correction composer: ipywidgets, each bound to one of its functions.

Apart from ``composer.py``, which works without ipywidgets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

import ipywidgets as w

from workbench.viz.display import hiding

PAUSE = 0.7  # seconds without a key after which a text counts as written
STYLE = {"style": {"description_width": "7em"}}
WIDE = {"layout": w.Layout(width="98%"), **STYLE}


class Controls:
    """``box`` is the panel. Rollouts and tokens are named as in the token view, from 1."""

    _refreshing = False  # setting a control is not a user's doing
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, composer):
        self.composer = composer
        self.rollouts = composer.editor.group.rollouts
        self.choices = self._choices()  # what a correction is composed from
        self.parts = {  # its words
            "transition": w.Text(description="transition", **STYLE),
            "continuation": w.Textarea(description="continuation", rows=6, **WIDE),
            "diagnosis": w.Textarea(description="diagnosis", rows=3, **WIDE),
        }
        self.buttons = self._buttons()
        self.busy = w.HTML()
        self.shown = w.HTML()
        source, token, whole_step, reference = self.choices.values()
        transition, *texts = self.parts.values()
        self.box = w.VBox(
            [
                w.HTML(f"<style>{hiding(composer.twin)}.wb-stale{{opacity:.35}}</style>"),
                w.HBox([source, reference]),
                w.HBox([token]),
                w.HBox([whole_step, transition]),
                *texts,
                w.HBox([*self.buttons, self.busy]),
                self.shown,
            ]
        )
        self._bind()
        self.refresh()

    def _choices(self) -> dict[str, w.Widget]:
        names = [(f"rollout {i + 1}", i) for i in range(len(self.rollouts))]
        right = [names[i] for i, rollout in enumerate(self.rollouts) if rollout.verdict.correct]
        wrong = [names[i] for i in self.composer.editor.wrong()]
        return {
            "source": w.Dropdown(options=wrong, description="wrong rollout", **STYLE),
            "token": w.IntSlider(
                min=1, value=1, description="point: token", continuous_update=False, **WIDE
            ),
            "whole_step": w.Checkbox(description="keep its whole step", indent=False),
            "reference": w.Dropdown(
                options=[("nearest", None), *right], description="reference", **STYLE
            ),
        }

    def _buttons(self) -> list[w.Button]:
        seeds = count()
        acts = {
            "Start again": self.composer.begin,
            "Let the policy write": lambda: self.composer.write(next(seeds)),
            "Credit by method": self.composer.credit,
            "Save": self.composer.save,
        }
        buttons = []
        for name, act in acts.items():
            button = w.Button(description=name)
            button.on_click(lambda _, act=act: self._work(act))
            buttons.append(button)
        return buttons

    def _bind(self) -> None:
        """Every control calls its function when a user has changed it; a text does when the typing
        pauses.
        """
        for name, control in self.choices.items():
            self._on(control, lambda value, name=name: self._choose(name, value))
        for name, control in self.parts.items():
            self._on(control, lambda value, name=name: self._typed(name, value))

    def _on(self, control: w.Widget, act: Callable[[object], None]) -> None:
        control.observe(lambda change: self._refreshing or act(change["new"]), names="value")

    def _choose(self, name: str, value) -> None:
        value -= name == "token" and 1
        self._work(lambda: self.composer.begin(**{name: value}))

    def _typed(self, name: str, text: str) -> None:
        text = text.replace("⏎", "\n") if name == "transition" else text
        self._busy("waiting for the end of your words …")
        self._later(lambda: self._work(lambda: self.composer.edit(**{name: text})))

    def _later(self, act: Callable[[], None]) -> None:
        """After a pause in which nothing else was typed; at once where no event loop runs."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, act)
        except RuntimeError:
            act()

    def _work(self, act: Callable[[], object]) -> None:
        """Do it with a sign that something is being done, and nothing else to press meanwhile."""
        self._busy("working …")
        for button in self.buttons:
            button.disabled = True
        try:
            act()
        finally:
            for button in self.buttons:
                button.disabled = False
            self._busy("")

    def _busy(self, words: str) -> None:
        self.busy.value = f"<span class='wb-busy'>⏳ {words}</span>" if words else ""
        mark = self.shown.add_class if words else self.shown.remove_class
        mark("wb-stale")  # of what was composed before

    def refresh(self) -> None:
        """Show the composer's present state."""
        composer, slider = self.composer, self.choices["token"]
        last = len(self.rollouts[composer.choice["source"]].completion_ids)
        self._refreshing = True
        try:
            slider.max = max(slider.max, last)  # the old token may still be beyond the new end
            for name, control in self.choices.items():
                control.value = (
                    composer.choice[name] + 1 if name == "token" else composer.choice[name]
                )
            slider.max = last
            for name, control in self.parts.items():
                text = getattr(composer.composition, name)
                control.value = text.replace("\n", "⏎") if name == "transition" else text
            self.shown.value = composer.to_html()
        finally:
            self._refreshing = False
