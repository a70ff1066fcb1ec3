"""The token view: look at a group token by token, live in a notebook, and as a page, a picture or a
table without one.

    view = TokenView(inspection, policy.tokenizer_decode)      # or a Group, a recorded run, or
        several of them
    view                                                       # live where anywidget is, static
        HTML everywhere else
    view.failure_point, view.span, view.selected               # what a click chose; setting them
        moves the display
    view.on_change(lambda view: ..., "failure_point")

Only the live view needs anywidget. The browser gets all numbers once, as plain lists, and all text
already made visible (heat.visible); view.js and view.css beside this file do the rest.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.core import Group, Inspection, TokenStats, WorkbenchError
from workbench.records import Run, write_atomic
from workbench.viz import tokens
from workbench.viz.layers import all_layers, channel_of, step_of
from workbench.viz.png import group_png
from workbench.viz.tokens import Layer

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
# a notebook's static copy of a larger group holds the layer shown, not all of them
STATIC_TOKENS = 3000


class _Synced:
    """An attribute that Python and the browser both set."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, view, owner=None):
        return self if view is None else view._state[self.name]

    def __set__(self, view, value):
        view._change(**{self.name: value})


class TokenView:
    """``source``: an Inspection, a Group (with ``layers``: name -> one array of [T] a rollout), a
    Run, or a sequence of Inspections, Groups or ``run.groups``. ``decode`` turns a token id into
    text.

    Setting an attribute updates the display; a value outside the data is refused with a
    WorkbenchError. Another group or rollout forgets the failure point and the span.
    """

    group = _Synced()  # which group of the source is shown
    layer = _Synced()  # the layer that colours the tokens
    # a second pane: the name of another layer, the number of another rollout, or None
    beside = _Synced()
    selected = _Synced()  # a rollout of the group
    failure_point = _Synced()  # a token of that rollout, or None
    span = _Synced()  # (start, end) of tokens of that rollout, without the end; or None

    def __init__(
        self,
        source: Inspection | Group | Run | Sequence,
        decode: Callable[[int], str],
        *,
        layers: Mapping[str, Sequence[Sequence[float]]] = {},
        layer: str | None = None,
        beside: str | int | None = None,
    ):
        self._decode, self._titles, self.inspections = cache(decode), [], []
        single = isinstance(source, (Inspection, Group))
        for item in [source] if single else source.groups if isinstance(source, Run) else source:
            title, inspection = _inspection(item, layers)
            self._titles.append(title)
            self.inspections.append(inspection)
        if not self.inspections:
            raise WorkbenchError("there is no group to show")
        self.layers = [all_layers(inspection) for inspection in self.inspections]
        self._callbacks: list[tuple[Callable[[TokenView], Any], tuple[str, ...]]] = []
        self._state: dict[str, Any] = dict(
            group=0,
            layer=self._first_layer(0),
            beside=None,
            selected=0,
            failure_point=None,
            span=None,
        )
        self._change(layer=layer or self.layer, beside=beside)

    def _first_layer(self, group: int) -> str:
        names = list(self.layers[group])
        return next((name for name in names if name.endswith("credit")), names[0])

    # ---- state: what is shown and chosen ---------------------------------------------------------

    def on_change(self, callback: Callable[[TokenView], Any], *names: str) -> None:
        """Call ``callback(view)`` whenever one of ``names`` (of any attribute, if none is given)
        has changed, from Python or by hand.
        """
        self._callbacks.append((callback, names))

    def _change(self, **new) -> None:
        old, state = self._state, {**self._state, **new}
        if state["group"] != old["group"]:
            state = {
                **state,
                "selected": 0,
                "beside": None,
                "failure_point": None,
                "span": None,
            } | new
        if state["selected"] != old["selected"]:
            state = {**state, "failure_point": None, "span": None} | new
        self._state = state = self._checked(state)
        changed = [name for name in state if state[name] != old[name]]
        if "widget" in self.__dict__:
            self._show(state)
        for callback, names in self._callbacks:
            if changed and (not names or set(names) & set(changed)):
                callback(self)

    def _checked(self, state: dict) -> dict:
        group = _inside("group", state["group"], len(self.inspections))
        rollouts, layers = self.inspections[group].group.rollouts, self.layers[group]
        layer, beside = state["layer"], state["beside"]
        if layer not in layers:
            if group == self._state["group"]:
                raise WorkbenchError(f"there is no layer {layer!r}; there are {', '.join(layers)}")
            layer = self._first_layer(group)
        if isinstance(beside, str) and beside not in layers:
            raise WorkbenchError(
                f"there is no layer {beside!r} to put beside; there are {', '.join(layers)}"
            )
        if beside is not None and not isinstance(beside, str):
            beside = _inside("beside", beside, len(rollouts))
        selected = _inside("selected", state["selected"], len(rollouts))
        size, point, span = (
            len(rollouts[selected].completion_ids),
            state["failure_point"],
            state["span"],
        )
        point = None if point is None else _inside("failure_point", point, size)
        if span is not None:
            start, end = _pair(span)
            if not 0 <= start < end <= size:
                raise WorkbenchError(
                    f"span ({start}, {end}) is not a part of the {size} tokens of rollout "
                    f"{selected}"
                )
            span = (start, end)
        return dict(
            group=group,
            layer=layer,
            beside=beside,
            selected=selected,
            failure_point=point,
            span=span,
        )

    # ---- live ------------------------------------------------------------------------------------

    @cached_property
    def widget(self):
        """The live widget (an ``anywidget``), to put into other widgets.

        Raises WorkbenchError without anywidget.
        """
        widget = _widget_class()(data=self.data(), **self._state)
        widget.observe(lambda _: self._from_browser(), list(self._state))
        return widget

    def _from_browser(self) -> None:
        """All traits at once: a click changes several, and each is told on its own."""
        try:
            self._change(**{name: getattr(self.widget, name) for name in self._state})
        except WorkbenchError:
            self._show(self._state)

    def _show(self, state: dict) -> None:
        with self.widget.hold_sync(), self.widget.hold_trait_notifications():
            for name, value in state.items():
                setattr(self.widget, name, value)

    def data(self) -> dict:
        """What the browser gets, as JSON:

        ``texts`` are all token texts made visible, which the rest names by their place in that
        list.
        """
        texts: dict[str, int] = {}
        groups = [self._group_data(number, texts) for number in range(len(self.inspections))]
        return {
            "levels": tokens.LEVELS,
            "faint": tokens.FAINT,
            "texts": list(texts),
            "groups": groups,
        }

    def _group_data(self, number: int, texts: dict[str, int]) -> dict:
        inspection, rows = self.inspections[number], self._rows(number)
        place = lambda token: texts.setdefault(tokens.visible(self._decode(int(token))), len(texts))  # noqa: E731
        wrong, rollouts = self._wrong(number), []
        for i, (rollout, row) in enumerate(zip(inspection.group.rollouts, rows)):
            sides = {
                side: _side(readings[i], place)
                for side in ("student", "teacher")
                if (readings := getattr(inspection, side)) and readings[i] is not None
            }
            rollouts.append(
                {
                    "reward": rollout.verdict.reward,
                    "correct": rollout.verdict.correct,
                    "origin": rollout.origin,
                    "borrowed": rollout.borrowed,
                    "finished": rollout.finished,
                    "wrong": wrong[i],
                    "ids": [t.id for t in row],
                    "texts": [place(t.id) for t in row],
                    "sides": sides,
                    "starts": [
                        t.index for t in row if not t.index or t.step > row[t.index - 1].step
                    ],
                }
            )
        layers = [
            {
                "name": layer.channel.name,
                "unit": layer.channel.unit,
                "up": layer.channel.up,
                "down": layer.channel.down,
                "signed": layer.channel.signed,
                "robust": _short([layer.limit])[0],
                "max": _short([_largest(layer)])[0],
                "values": [_short(v) for v in layer.values],
            }
            for layer in self._painted(number)
        ]
        messages = [
            [m["role"], tokens.visible(m["content"])] for m in inspection.group.problem.messages
        ]
        return {
            "title": self._titles[number],
            "messages": messages,
            "layers": layers,
            "rollouts": rollouts,
        }

    def _rows(self, number: int) -> list[list[tokens.Token]]:
        group = self.inspections[number].group
        return tokens.tokens(group, [()] * len(group.rollouts), self._decode)

    def _wrong(self, number: int) -> list[int | None]:
        """The first wrong step of each rollout, where the task's truth is known and there is one."""
        inspection, rows = self.inspections[number], self._rows(number)
        errors = inspection.first_errors or [None] * len(rows)
        return [
            step_of(error, rollout, row)
            for error, rollout, row in zip(errors, inspection.group.rollouts, rows)
        ]

    def _painted(self, number: int, only: str | None = None) -> list[Layer]:
        return [
            Layer(
                channel_of(name), values, tokens.robust_limit(float(v) for of in values for v in of)
            )
            for name, values in self.layers[number].items()
            if only in (None, name)
        ]

    # ---- static: the group shown -----------------------------------------------------------------

    def to_html(self, path: str | Path | None = None) -> str:
        """The group as HTML that works without a script, the current layer first and the others
        behind buttons. ``path``: also write it as a page.
        """
        html = self._html(
            sorted(self._painted(self.group), key=lambda layer: layer.channel.name != self.layer)
        )
        if path is not None:
            write_atomic(
                Path(path),
                '<!doctype html><html lang="en"><meta charset="utf-8"><title>Token '
                f"view</title>{html}</html>\n",
            )
        return html

    def _html(self, layers: Sequence[Layer]) -> str:
        return tokens.layers_html(
            self.inspections[self.group].group, layers, self._decode, marks=self._marks()
        )

    def _marks(self) -> dict[tuple[int, int], str]:
        words: dict[tuple[int, int], list[str]] = {}
        for i, (row, wrong) in enumerate(zip(self._rows(self.group), self._wrong(self.group))):
            for token in row:
                chosen = {
                    "failure point": i == self.selected and token.index == self.failure_point,
                    "first wrong step": token.step == wrong,
                    "span": i == self.selected
                    and self.span is not None
                    and self.span[0] <= token.index < self.span[1],
                }
                words[i, token.index] = [name for name, holds in chosen.items() if holds]
        return {where: ", ".join(names) for where, names in words.items() if names}

    def to_png(self, path: str | Path | None = None) -> bytes:
        """The group in the current layer as a PNG, drawn by matplotlib.

        ``path``: also write it there.
        """
        (layer,) = self._painted(self.group, self.layer)
        image = group_png(self.inspections[self.group].group, layer, self._decode, self._marks())
        if path is not None:
            write_atomic(Path(path), image)
        return image

    def to_frame(self) -> pd.DataFrame:
        """One row a token of every group: where it is, its text, and its number in each layer."""
        rows = []
        for number, inspection in enumerate(self.inspections):
            wrong = self._wrong(number)
            for i, (rollout, row) in enumerate(zip(inspection.group.rollouts, self._rows(number))):
                fixed = {
                    "group": number,
                    "problem": inspection.group.problem.id,
                    "rollout": i,
                    "reward": rollout.verdict.reward,
                    "origin": rollout.origin,
                }
                rows += [
                    {
                        **fixed,
                        "step": t.step,
                        "token": t.index,
                        "id": t.id,
                        "text": t.text,
                        "first_wrong_step": t.step == wrong[i],
                        **{
                            name: float(values[i][t.index])
                            for name, values in self.layers[number].items()
                        },
                    }
                    for t in row
                ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        group = self.inspections[self.group].group
        return (
            f"TokenView of {group.problem.id!r}: {len(group.rollouts)} rollouts, layer "
            f"{self.layer!r}"
        )

    def _repr_mimebundle_(self, **_) -> dict:
        """The live view and its static twin: a notebook saved without widget state shows the twin."""
        size = sum(len(r.completion_ids) for r in self.inspections[self.group].group.rollouts)
        bundle = {
            "text/plain": repr(self),
            "text/html": self.to_html()
            if size <= STATIC_TOKENS
            else self._html(self._painted(self.group, self.layer)),
        }
        with suppress(WorkbenchError):
            bundle[WIDGET] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.widget.model_id,
            }
        return bundle


def _inspection(item, layers: Mapping) -> tuple[str, Inspection]:
    """(title, inspection) of one thing to show; the values of a run holds nothing for a rollout
    that has no numbers.
    """
    if isinstance(item, Inspection):
        return item.group.problem.id, item
    step, group, values = item if isinstance(item, tuple) else (None, item, None)
    if values is not None:
        layers = {"credit": values}
    blank = [np.full(len(r.completion_ids), np.nan) for r in group.rollouts]
    arrays = {}
    for name, values in layers.items():
        if len(values) != len(blank) or any(
            len(v) not in (0, len(b)) for v, b in zip(values, blank)
        ):
            raise WorkbenchError(
                f"layer {name!r} does not have one number for each token of the group's rollouts"
            )
        # None becomes NaN
        arrays[name] = tuple(np.array(v, float) if len(v) else b for v, b in zip(values, blank))
    return f"step {step}: {group.problem.id}" if step is not None else group.problem.id, Inspection(
        group, arrays
    )


def _inside(name: str, value: Any, size: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise WorkbenchError(f"{name} is a number from 0 to {size - 1}, not {value!r}") from None
    if not 0 <= value < size:
        raise WorkbenchError(f"{name} {value} is outside 0 to {size - 1}")
    return value


def _pair(span: Any) -> tuple[int, int]:
    try:
        start, end = map(operator.index, span)
    except (TypeError, ValueError):
        raise WorkbenchError(f"span is (start, end) or None, not {span!r}") from None
    return start, end


def _short(values) -> list[float | None]:
    """Four digits: what a reader sees, in a third of the bytes. JSON has no NaN."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]


def _side(reading: TokenStats, place: Callable[[int], int]) -> dict:
    return {
        "logprob": _short(reading.logprobs),
        "entropy": _short(reading.entropy),
        "rank": [int(r) for r in reading.rank],
        "top": [[place(token) for token in row] for row in reading.top_ids],
        "top_ids": np.asarray(reading.top_ids).tolist(),
        "top_logprob": [_short(row) for row in reading.top_logprobs],
    }


def _largest(layer: Layer) -> float:
    return float(
        max((abs(v) for of in layer.values for v in of if math.isfinite(v)), default=0) or 1
    )


@cache
def _widget_class() -> type:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise WorkbenchError(
            "the live token view needs anywidget: pip install 'workbench[notebook]' "
            "(to_html, to_png and to_frame work without it)"
        ) from error

    class TokenWidget(anywidget.AnyWidget):
        _esm = (HERE / "view.js").read_text(encoding="utf-8")
        _css = tokens.css() + (HERE / "view.css").read_text(encoding="utf-8")
        data = traitlets.Dict().tag(sync=True)
        group = traitlets.Int(0).tag(sync=True)
        layer = traitlets.Unicode().tag(sync=True)
        beside = traitlets.Any(None, allow_none=True).tag(sync=True)
        selected = traitlets.Int(0).tag(sync=True)
        failure_point = traitlets.Int(None, allow_none=True).tag(sync=True)
        span = traitlets.Any(None, allow_none=True).tag(sync=True)

    return TokenWidget
