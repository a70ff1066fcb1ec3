"""The controls of the correction composer (workbench/viz/composer.py): ipywidgets, each bound to
one of its functions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import ipywidgets as w


def panel(composer) -> tuple[w.VBox, Callable[[], None]]:
    """(the panel, a function that shows the composer's present state in it).

    Rollouts are named as in the token view, from 1.
    """
    rollouts, wide = composer.desk.group.rollouts, w.Layout(width="98%")
    right = [i for i, r in enumerate(rollouts) if r.verdict.correct]
    named = {"style": {"description_width": "7em"}}
    source = w.Dropdown(
        options=[(f"rollout {i + 1}", i) for i in composer.desk.wrong()],
        description="wrong rollout",
        **named,
    )
    token = w.IntSlider(
        min=0, description="point: token", continuous_update=False, layout=wide, **named
    )
    whole = w.Checkbox(description="keep its whole step", indent=False)
    reference = w.Dropdown(
        options=[("nearest", None), *((f"rollout {i + 1}", i) for i in right)],
        description="reference",
        **named,
    )
    transition = w.Text(description="transition", continuous_update=False, **named)
    continuation = w.Textarea(
        description="continuation", continuous_update=False, rows=6, layout=wide, **named
    )
    diagnosis = w.Text(description="diagnosis", continuous_update=False, layout=wide, **named)
    again, write, save = (
        w.Button(description=text) for text in ("Start again", "Let the policy write", "Save")
    )
    shown = w.HTML()
    choices = {"source": source, "token": token, "whole_step": whole, "reference": reference}
    parts = {"continuation": continuation, "diagnosis": diagnosis}
    busy, seeds = [], count()

    def refresh() -> None:
        busy.append(True)  # setting a control is not a user's doing
        try:
            token.max = max(token.max, len(rollouts[composer.choice["source"]].completion_ids) - 1)
            for name, control in choices.items():
                control.value = composer.choice[name]
            token.max = len(rollouts[composer.choice["source"]].completion_ids) - 1
            transition.value = composer.composition.transition.replace("\n", "⏎")
            for name, control in parts.items():
                control.value = getattr(composer.composition, name)
            shown.value = composer.to_html()
        finally:
            busy.pop()

    def bind(control, act: Callable[[object], None]) -> None:
        control.observe(lambda change: None if busy else act(change["new"]), "value")

    for name, control in choices.items():
        bind(control, lambda value, name=name: composer.begin(**{name: value}))
    for name, control in parts.items():
        bind(control, lambda value, name=name: composer.edit(**{name: value}))
    bind(transition, lambda value: composer.edit(transition=value.replace("⏎", "\n")))
    again.on_click(lambda _: composer.begin())
    write.on_click(lambda _: composer.write(next(seeds)))
    save.on_click(lambda _: composer.save())
    refresh()
    rows = [
        w.HBox([source, reference]),
        w.HBox([token]),
        w.HBox([whole, transition]),
        continuation,
        diagnosis,
        w.HBox([again, write, save]),
        shown,
    ]
    return w.VBox(rows), refresh
