"""The correction composer as a panel.

It only binds controls to a correction editor (workbench/corrections/editor.py), which does
everything and works without it.

    panel = Composer(editor, "corrections.jsonl", view)      # view: a TokenView of the same group,
                                                             # a click there moves the point here
    panel                                                    # live, or static HTML
    panel.composition, panel.draft, panel.to_html()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from workbench.core import Group, WorkbenchError, refuse_if
from workbench.viz import display
from workbench.viz.html import layers_html
from workbench.viz.layers import channel_of
from workbench.viz.texts import escape, table_row
from workbench.viz.tokens import Channel, Layer, marked

WEIGHT = Channel(
    "log of the OOD weight",
    "log w = log-prob + entropy, nats; w from 0.01 to 10",
    "the policy's own kind of token",
    "TAPO holds it back",
)
LOGPROB = Channel("log-prob", "nats, under the plain prompt", "", "less likely")
CELL = "padding:.1em .6em;text-align:right;border-bottom:1px solid #8886"


def draft_html(draft, with_credit: bool = False) -> str:
    """A draft as HTML that needs no script: the verdict, who wrote what, and every token with its
    weight; ``with_credit``: also its credit by each method, and what changes for the group.
    """
    composition, rollout = draft.composition, draft.rollout
    authors = composition.authors.items()
    writers = " · ".join(f"{part}: {name}" for part, name in authors if getattr(composition, part))
    head = f"<p><b>{escape(_verdict(draft))}</b><br>{escape(writers)}</p>"
    if composition.diagnosis:
        head += f"<p>diagnosis (not trained on): {escape(composition.diagnosis)}</p>"
    if rollout is None:
        return f'<section class="wb-draft">{head}<pre>{escape(composition.text)}</pre></section>'
    ids = " ".join(map(str, rollout.completion_ids))
    credits = draft.credits if with_credit else {}
    return (
        f'<section class="wb-draft">{head}{_tokens(draft, credits)}{_credits(draft, credits)}'
        f"<details><summary>{len(rollout.completion_ids)} token ids, all trained on, after "
        f"{len(rollout.prompt_ids)} prompt tokens that are not</summary>"
        f"<code>{ids}</code></details></section>"
    )


def _verdict(draft) -> str:
    if draft.rollout is None:
        return f"✗ Not a correction yet: {draft.why_not}."
    if not draft.verdict.known:
        return f"? Nobody knows whether it is right. {draft.verdict.feedback}"
    if draft.verdict.correct:
        return f"✓ The grader accepts it: reward {draft.verdict.reward:g}."
    return f"✗ The grader rejects it: reward {draft.verdict.reward:g}. {draft.verdict.feedback}"


def _tokens(draft, credits: Mapping[str, Sequence[np.ndarray]]) -> str:
    """The correction's tokens, with their weight, their log-prob and their credit by method."""
    table = draft.table[draft.table.trained]
    columns = {WEIGHT: np.log(table.w).to_numpy(), LOGPROB: table["log-prob"].to_numpy()}
    for name, rows in credits.items():
        columns[channel_of(f"{name} credit")] = rows[-1]
    layers = [Layer.of(channel, [column]) for channel, column in columns.items()]
    marks = {}
    for t, part in enumerate(table.part):
        if part in ("transition", "continuation"):
            marks[0, t] = part
    group = Group(draft.desk.group.problem, (draft.rollout,))
    return layers_html(group, layers, draft.desk.policy, ["correction"], marks)


def _credits(draft, credits: Mapping[str, Sequence[np.ndarray]]) -> str:
    """A table: mean realised credit of each rollout, the correction last, by each method."""
    if not credits:
        return ""
    rollouts = draft.group.rollouts
    heads = [escape(f"{name} credit") for name in credits]
    rows = table_row("th", ["rollout", "reward", *heads], CELL)
    for i, rollout in enumerate(rollouts):
        # as the token view counts them
        label = "correction" if rollout is rollouts[-1] else str(i + 1)
        means = [marked(float(by_rollout[i].mean())) for by_rollout in credits.values()]
        rows += table_row("td", [label, f"{rollout.verdict.reward:g}", *means], CELL)
    return (
        "<p>The group with the correction in it. Mean realised credit of a token, if this "
        "is the whole batch:</p>"
        f'<table style="border-collapse:collapse">{rows}</table>'
    )


class Composer:
    """``editor``: the group and what can be done with it.

    ``buffer``: the file that Save appends to. ``view``: a TokenView to follow.
    """

    def __init__(self, editor, buffer: str | Path | None = None, view=None):
        self.editor, self.buffer, self.message = editor, buffer, ""
        self.twin = display.twin_id()
        refuse_if(
            not editor.wrong(),
            "every rollout of this group is correct: there is nothing to correct",
        )
        source = editor.wrong()[0]
        error = editor.task.first_error(editor.group.problem, editor.group.rollouts[source].text)
        self.choice = {
            "source": source,
            "token": error.start if error else 0,
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
        choices = {**self.choice, **choice}
        source = choices["source"]
        if "token" not in choice and 0 <= source < len(self.editor.group.rollouts):
            last = len(self.editor.group.rollouts[source].completion_ids) - 1
            choices["token"] = min(choices["token"], last)
        self._try(lambda: self.editor.compose(**choices), choices)

    def edit(self, **parts: str) -> None:
        """Other words for transition, continuation or diagnosis."""
        self._set(self.editor.edit(self.composition, **parts))

    def write(self, seed: int = 0) -> None:
        """Let the policy write it."""
        source, reference = self.choice["source"], self.choice["reference"]
        self._try(
            lambda: self.editor.reconstruct(source, reference=reference, seed=seed), self.choice
        )

    def credit(self) -> None:
        """Show what each method would say of the correction: a pass each over the whole group."""
        self.with_credit = True
        self._show()

    def save(self) -> None:
        try:
            refuse_if(
                self.buffer is None, "there is no buffer to save to: Composer(editor, buffer=FILE)"
            )
            self.draft.save(self.buffer)
            self.message = f"Saved to {Path(self.buffer).name}."
        except WorkbenchError as error:
            self.message = f"Not saved: {error}."
        self._show()

    def _try(self, compose: Callable, choice: Mapping) -> None:
        """A composition that cannot be made leaves everything as it was, and says why."""
        try:
            composition = compose()
        except WorkbenchError as error:
            if not hasattr(self, "composition"):
                raise
            self.message = f"{error}."
            self._show()
        else:
            self.choice = dict(choice)
            self._set(composition)

    def _set(self, composition) -> None:
        self.composition, self.message, self.with_credit = composition, "", False
        self.draft = self.editor.draft(composition)
        self._show()

    def _follow(self, view) -> None:
        if view.selected in self.editor.wrong() and view.failure_point is not None:
            self.begin(source=view.selected, token=view.failure_point)

    # ---- what is shown

    def to_html(self) -> str:
        note = f"<p>{escape(self.message)}</p>" if self.message else ""
        return note + draft_html(self.draft, self.with_credit)

    def _ipython_display_(self) -> None:
        text = f"Composer({_verdict(self.draft)})"
        display.show(text, self.to_html(), self.twin, lambda: self.box, ImportError)

    @cached_property
    def _controls(self):
        from workbench.viz.composer_controls import Controls

        return Controls(self)

    @property
    def box(self):
        """The live panel, an ``ipywidgets.VBox``."""
        return self._controls.box

    def _show(self) -> None:
        if "_controls" in self.__dict__:
            self._controls.refresh()
