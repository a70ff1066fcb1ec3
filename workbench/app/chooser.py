"""The controls of a panel of choices: ipywidgets, each bound to one field of a Choices.

Apart from ``choices.py``, which works without ipywidgets.
"""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from workbench.core import WorkbenchError
from workbench.viz.display import hiding
from workbench.viz.texts import escape

STYLE = {"style": {"description_width": "17em"}, "layout": w.Layout(width="36em")}
# any other name may be typed
SUGGESTED = {
    "model": ("smollm2", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"),
    "data": ("math:gsm8k", "gym:chain_sum,min_digits=1,max_digits=1,think=false", "words"),
    "teacher": ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-1.7B"),
}
ACROSS = 2  # controls in a row


class Controls:
    """``box`` is the panel. A value that is refused is said below the controls, and the choice
    stays as it was.
    """

    _refreshing = False  # setting a control is not a user's doing

    def __init__(self, choices):
        self.choices = choices
        self.by_name = {name: self._control(name, label) for name, label in choices.labels.items()}
        self.style, self.said = w.HTML(), w.HTML()
        controls = list(self.by_name.values())
        places = range(0, len(controls), ACROSS)
        rows = [w.HBox(controls[place : place + ACROSS]) for place in places]
        self.box = w.VBox([self.style, *rows, self.said])
        self.refresh()

    def panel(self, twin: str) -> w.VBox:
        """The box, in place of the static copy that has this id."""
        self.style.value = f"<style>{hiding(twin)}</style>"
        return self.box

    def _control(self, name: str, label: str) -> w.Widget:
        value, how = getattr(self.choices, name), {"description": label, **STYLE}
        if name in self.choices.one_of:
            control = w.Dropdown(options=self.choices.one_of[name], **how)
        elif name in self.choices.least:
            control = w.BoundedIntText(min=self.choices.least[name], max=10**6, **how)
        elif isinstance(value, bool):
            control = w.Checkbox(indent=True, **how)
        elif isinstance(value, float):
            control = w.BoundedFloatText(min=0, max=1, step=1e-5, **how)
        else:
            control = w.Combobox(options=SUGGESTED[name], continuous_update=False, **how)
        control.observe(lambda change: self._choose(name, change["new"]), names="value")
        return control

    def _choose(self, name: str, value: Any) -> None:
        if self._refreshing:
            return
        try:
            setattr(self.choices, name, value.strip() if isinstance(value, str) else value)
        except WorkbenchError as error:
            still = escape(self.choices.shown(name))
            self.said.value = f"<b>{escape(str(error))}. It is still {still}.</b>"

    def refresh(self) -> None:
        """Show the present choices, and whether the method can do with them."""
        self._refreshing = True
        try:
            for name, control in self.by_name.items():
                value = getattr(self.choices, name)
                text = isinstance(control, w.Combobox)
                in_memory = text and not isinstance(value, str)
                if in_memory:
                    control.placeholder = self.choices.shown(name)
                control.value = "" if in_memory else value
        finally:
            self._refreshing = False
        try:
            self.choices.by()
            self.said.value = ""
        except WorkbenchError as error:
            self.said.value = f"<b>{escape(str(error))}.</b>"
