"""The controls of the correction composer: ipywidgets, each bound to one of its functions.

Apart from ``composer.py``, which works without ipywidgets.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import ipywidgets as w

NAMED = {"style": {"description_width": "7em"}}
WIDE = {"layout": w.Layout(width="98%"), **NAMED}


class Controls:
    """``box`` is the panel. Rollouts are named as in the token view, from 1."""

    def __init__(self, composer):
        self.composer = composer
        self.rollouts = composer.editor.group.rollouts
        self._refreshing = False
        self.choices = self._choices()  # what a correction is composed from
        self.parts = {  # its words
            "continuation": w.Textarea(continuous_update=False, rows=6, **WIDE),
            "diagnosis": w.Text(continuous_update=False, **WIDE),
        }
        self.transition = w.Text(description="transition", continuous_update=False, **NAMED)
        self.shown = w.HTML()
        for name, control in self.parts.items():
            control.description = name
        self._bind()
        self.box = self._box()
        self.refresh()

    def _choices(self) -> dict[str, w.Widget]:
        names = [(f"rollout {i + 1}", i) for i in range(len(self.rollouts))]
        right = [names[i] for i, rollout in enumerate(self.rollouts) if rollout.verdict.correct]
        wrong = [names[i] for i in self.composer.editor.wrong()]
        source = w.Dropdown(options=wrong, description="wrong rollout", **NAMED)
        token = w.IntSlider(min=0, description="point: token", continuous_update=False, **WIDE)
        whole_step = w.Checkbox(description="keep its whole step", indent=False)
        right = [("nearest", None), *right]
        reference = w.Dropdown(options=right, description="reference", **NAMED)
        return {
            "source": source,
            "token": token,
            "whole_step": whole_step,
            "reference": reference,
        }

    def _bind(self) -> None:
        composer = self.composer
        for name, control in self.choices.items():
            self._on(control, lambda value, name=name: composer.begin(**{name: value}))
        for name, control in self.parts.items():
            self._on(control, lambda value, name=name: composer.edit(**{name: value}))
        self._on(self.transition, lambda value: composer.edit(transition=value.replace("⏎", "\n")))

    def _on(self, control: w.Widget, act: Callable[[object], None]) -> None:
        """Call ``act`` with the control's new value when a user has changed it."""
        control.observe(
            lambda change: None if self._refreshing else act(change["new"]), names="value"
        )

    def _box(self) -> w.VBox:
        seeds = count()
        buttons = []
        for text, act in (
            ("Start again", self.composer.begin),
            ("Let the policy write", lambda: self.composer.write(next(seeds))),
            ("Save", self.composer.save),
        ):
            button = w.Button(description=text)
            button.on_click(lambda _, act=act: act())
            buttons.append(button)
        source, token, whole_step, reference = self.choices.values()
        rows = [[source, reference], [token], [whole_step, self.transition]]
        return w.VBox([*map(w.HBox, rows), *self.parts.values(), w.HBox(buttons), self.shown])

    def refresh(self) -> None:
        """Show the composer's present state."""
        composer, slider = self.composer, self.choices["token"]
        last = len(self.rollouts[composer.choice["source"]].completion_ids) - 1
        self._refreshing = True  # setting a control is not a user's doing
        try:
            slider.max = max(slider.max, last)  # the old token may still be beyond the new end
            for name, control in self.choices.items():
                control.value = composer.choice[name]
            slider.max = last
            self.transition.value = composer.composition.transition.replace("\n", "⏎")
            for name, control in self.parts.items():
                control.value = getattr(composer.composition, name)
            self.shown.value = composer.to_html()
        finally:
            self._refreshing = False
