"""The correction composer as a panel.

It only binds controls to a desk (workbench/corrections/editor.py), which does everything and works
without it.

    panel = Composer(desk, "corrections.jsonl", view)   # view: a TokenView of the same group; a
                                                        click there moves the point here
    panel                                               # live where ipywidgets is, the static twin
                                                        everywhere else
    panel.composition, panel.draft, panel.to_html()
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np

from workbench.core import Group, WorkbenchError
from workbench.viz.tokens import CREDIT, Channel, Layer, layers_html, marked, robust_limit, visible

WIDGET = "application/vnd.jupyter.widget-view+json"
WEIGHT = Channel(
    "log of the OOD weight",
    "log w = log-prob + entropy, nats; w from 0.01 to 10",
    "the policy's own kind of token",
    "TAPO holds it back",
)
LOGPROB = Channel("log-prob", "nats, under the plain prompt", "", "less likely")
STYLE = "padding:.1em .6em;text-align:right;border-bottom:1px solid #8886"


def draft_html(draft) -> str:
    """A draft as HTML that needs no script: the verdict, who wrote what, every token with its
    weight and credit, and what changes for the group.
    """
    composition = draft.composition
    who = " · ".join(
        f"{part}: {author}"
        for part, author in composition.authors.items()
        if getattr(composition, part)
    )
    head = f"<p><b>{_prose(_verdict(draft))}</b><br>{_prose(who)}</p>"
    if composition.diagnosis:
        head += f"<p>diagnosis (not trained on): {_prose(composition.diagnosis)}</p>"
    if draft.rollout is None:
        return f'<section class="wb-draft">{head}<pre>{_prose(composition.text)}</pre></section>'
    ids = " ".join(map(str, draft.rollout.completion_ids))
    return (
        "<section "
        f'class="wb-draft">{head}{_tokens(draft)}{_credits(draft)}<details><summary>{len(draft.rollout.completion_ids)} token ids, all '
        f"trained on, after {len(draft.rollout.prompt_ids)} prompt tokens that are "
        f"not</summary><code>{ids}</code></details></section>"
    )


def _prose(text: str) -> str:
    """Escaped, with control and direction characters made visible, and white space as it is."""
    return escape("".join(c if c in " \n" else visible(c) for c in text))


def _verdict(draft) -> str:
    if draft.rollout is None:
        return f"✗ Not a correction yet: {draft.why_not}."
    if draft.verdict.correct:
        return f"✓ The grader accepts it: reward {draft.verdict.reward:g}."
    return f"✗ The grader rejects it: reward {draft.verdict.reward:g}. {draft.verdict.feedback}"


def _tokens(draft) -> str:
    table = draft.table[draft.table.trained]
    columns = [(WEIGHT, np.log(table.w)), (LOGPROB, table["log-prob"])]
    columns += [
        (Channel(name, CREDIT.unit, CREDIT.up, CREDIT.down), table[name])
        for name in table
        if name.endswith(" credit")
    ]
    layers = [
        Layer(channel, [values.to_numpy()], robust_limit(values)) for channel, values in columns
    ]
    decode = lambda token: draft.desk.policy.tokenizer.decode([token])  # noqa: E731
    marks = {
        (0, t): part for t, part in enumerate(table.part) if part in ("transition", "continuation")
    }
    return layers_html(
        Group(draft.desk.group.problem, (draft.rollout,)), layers, decode, ["correction"], marks
    )


def _credits(draft) -> str:
    """A table: mean realised credit of each rollout, the correction last, by each method."""
    layers = {
        name: values for name, values in draft.preview.layers.items() if name.endswith(" credit")
    }
    if not layers:
        return ""
    rollouts = draft.preview.group.rollouts
    head = "".join(
        f'<th style="{STYLE}">{escape(text)}</th>' for text in ("rollout", "reward", *layers)
    )
    rows = ""
    for i, rollout in enumerate(rollouts):
        # as the token view counts them
        name = str(i + 1) if i < len(rollouts) - 1 else "correction"
        cells = [
            name,
            f"{rollout.verdict.reward:g}",
            *(marked(float(values[i].mean())) for values in layers.values()),
        ]
        rows += (
            "<tr>" + "".join(f'<td style="{STYLE}">{escape(cell)}</td>' for cell in cells) + "</tr>"
        )
    return (
        "<p>The group with the correction in it. Mean realised credit of a token, if this "
        "is the whole batch:</p>"
        f'<table style="border-collapse:collapse"><tr>{head}</tr>{rows}</table>'
    )


class Composer:
    """``desk``: the group and what can be done with it.

    ``buffer``: the file that Save appends to. ``view``: a TokenView to follow.
    """

    def __init__(self, desk, buffer: str | Path | None = None, view=None):
        self.desk, self.buffer, self.message = desk, buffer, ""
        wrong = desk.wrong()
        if not wrong:
            raise WorkbenchError(
                "every rollout of this group is correct: there is nothing to correct"
            )
        errors = [desk.task.first_error(desk.group.problem, r.text) for r in desk.group.rollouts]
        start = errors[wrong[0]].start if errors[wrong[0]] else 0
        self.choice = {
            "source": wrong[0],
            "token": min(start, len(desk.group.rollouts[wrong[0]].completion_ids) - 1),
            "whole_step": True,
            "reference": None,
            "transition": "Wait, ",
        }
        self.begin()
        if view is not None:
            view.on_change(self._follow, "selected", "failure_point")

    # ---- what the controls do

    def begin(self, **choice) -> None:
        """Compose again from the group, with these choices changed: source, token, whole_step,
        reference, transition.
        """
        chosen = {**self.choice, **choice}
        if "token" not in choice and 0 <= chosen["source"] < len(self.desk.group.rollouts):
            chosen["token"] = min(
                chosen["token"], len(self.desk.group.rollouts[chosen["source"]].completion_ids) - 1
            )
        self._try(lambda: self.desk.compose(**chosen), chosen)

    def edit(self, **parts: str) -> None:
        """Other words for transition, continuation or diagnosis."""
        self._set(self.desk.edit(self.composition, **parts))

    def write(self, seed: int = 0) -> None:
        """Let the policy write it."""
        self._try(
            lambda: self.desk.reconstruct(
                self.choice["source"], reference=self.choice["reference"], seed=seed
            ),
            self.choice,
        )

    def save(self) -> None:
        try:
            if self.buffer is None:
                raise WorkbenchError("there is no buffer to save to: Composer(desk, buffer=FILE)")
            self.draft.save(self.buffer)
            self.message = f"Saved to {Path(self.buffer).name}."
        except WorkbenchError as error:
            self.message = f"Not saved: {error}."
        self._show()

    def _try(self, make, choice: Mapping) -> None:
        """A composition that cannot be made leaves everything as it was, and says why."""
        try:
            made = make()
        except WorkbenchError as error:
            if not hasattr(self, "composition"):
                raise
            self.message = f"{error}."
            self._show()
        else:
            self.choice = dict(choice)
            self._set(made)

    def _set(self, composition) -> None:
        self.composition, self.draft, self.message = composition, self.desk.draft(composition), ""
        self._show()

    def _follow(self, view) -> None:
        if view.selected in self.desk.wrong() and view.failure_point is not None:
            self.begin(source=view.selected, token=view.failure_point)

    # ---- what is shown

    def to_html(self) -> str:
        note = f"<p>{_prose(self.message)}</p>" if self.message else ""
        return note + draft_html(self.draft)

    def _repr_mimebundle_(self, **_) -> dict:
        bundle = {"text/plain": f"Composer({_verdict(self.draft)})", "text/html": self.to_html()}
        try:
            bundle[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        except ImportError:
            pass
        return bundle

    @cached_property
    def box(self):
        """The live panel, an ``ipywidgets.VBox``."""
        from workbench.viz.controls import panel

        made, self._refresh = panel(self)
        return made

    def _show(self) -> None:
        if "box" in self.__dict__:
            self._refresh()
