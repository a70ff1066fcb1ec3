"""The controls of the correction composer: ipywidgets, each bound to one of its functions.

Apart from ``composer.py``, which works without ipywidgets.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import ipywidgets as w

NAMED = {"continuous_update": False, "style": {"description_width": "7em"}}
WIDE = {"layout": w.Layout(width="98%"), **NAMED}


class Controls:
    """``box`` is the panel. Rollouts are named as in the token view, from 1."""

    _refreshing = False  # setting a control is not a user's doing

    def __init__(self, composer):
        self.composer = composer
        self.rollouts = composer.editor.group.rollouts
        self.choices = self._choices()  # what a correction is composed from
        self.parts = {  # its words
            "continuation": w.Textarea(description="continuation", rows=6, **WIDE),
            "diagnosis": w.Text(description="diagnosis", **WIDE),
        }
        self.transition = w.Text(description="transition", **NAMED)
        self.shown = w.HTML()
        source, token, whole_step, reference = self.choices.values()
        self.box = w.VBox(
            [
                w.HBox([source, reference]),
                w.HBox([token]),
                w.HBox([whole_step, self.transition]),
                *self.parts.values(),
                w.HBox(self._buttons()),
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
            "source": w.Dropdown(options=wrong, description="wrong rollout", style=NAMED["style"]),
            "token": w.IntSlider(min=0, description="point: token", **WIDE),
            "whole_step": w.Checkbox(description="keep its whole step", indent=False),
            "reference": w.Dropdown(
                options=[("nearest", None), *right], description="reference", style=NAMED["style"]
            ),
        }

    def _buttons(self) -> list[w.Button]:
        seeds = count()
        again, write, save = (
            w.Button(description=text) for text in ("Start again", "Let the policy write", "Save")
        )
        again.on_click(lambda _: self.composer.begin())
        write.on_click(lambda _: self.composer.write(next(seeds)))
        save.on_click(lambda _: self.composer.save())
        return [again, write, save]

    def _bind(self) -> None:
        """Every control calls its function when a user has changed it."""
        begin, edit = self.composer.begin, self.composer.edit
        for name, control in self.choices.items():
            self._on(control, lambda value, name=name: begin(**{name: value}))
        for name, control in self.parts.items():
            self._on(control, lambda value, name=name: edit(**{name: value}))
        self._on(self.transition, lambda value: edit(transition=value.replace("⏎", "\n")))

    def _on(self, control: w.Widget, act: Callable[[object], None]) -> None:
        control.observe(lambda change: self._refreshing or act(change["new"]), names="value")

    def refresh(self) -> None:
        """Show the composer's present state."""
        composer, slider = self.composer, self.choices["token"]
        last = len(self.rollouts[composer.choice["source"]].completion_ids) - 1
        self._refreshing = True
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
