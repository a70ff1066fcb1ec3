"""The token view: look at a group token by token, live in a notebook, and as a page, a picture or a
table without one.

    view = TokenView(inspection, policy)    # or a Group, a recorded run, several
    view                                                     # live, or static HTML
    view.failure_point, view.span, view.selected             # what a click chose, or you set
    view.on_change(lambda view: ..., "failure_point")

Only the live view needs anywidget; without it a notebook shows the static HTML. The browser gets
all numbers once (``view_data.py``); view.js and view.css beside this file do the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.core import Group, Inspection, WorkbenchError, needed, refuse_if
from workbench.records import Run
from workbench.viz import display, html, style, tokens
from workbench.viz.display import FEWER
from workbench.viz.layers import Values, all_layers, channel_of, step_of
from workbench.viz.png import group_png
from workbench.viz.texts import Decode, text_of, visible
from workbench.viz.tokens import Layer, Token
from workbench.viz.view_data import group_data

HERE = Path(__file__).parent
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
    Run, or a sequence of Inspections, Groups or ``run.groups``. ``decode``: the policy (or its
    tokenizer), or a function from a token id to its text.

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
        decode: Decode,
        *,
        layers: Mapping[str, Sequence[Sequence[float]]] = {},
        layer: str | None = None,
        beside: str | int | None = None,
    ):
        self._decode = decode
        self._twin = display.twin_id()
        single = isinstance(source, (Inspection, Group))
        items = [source] if single else source.groups if isinstance(source, Run) else source
        titled = [_inspection(item, layers) for item in items]
        refuse_if(not titled, "there is no group to show")
        self._titles, self.inspections = zip(*titled)
        self.layers = list(map(all_layers, self.inspections))
        self._callbacks: list[tuple[Callable[[TokenView], Any], tuple[str, ...]]] = []
        self._state: dict[str, Any] = {
            "group": 0,
            "layer": self._first_layer(0),
            "beside": None,
            "selected": 0,
            "failure_point": None,
            "span": None,
        }
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

    def _change(self, **changes) -> None:
        before, state = self._state, {**self._state, **changes}
        forgotten = {"failure_point": None, "span": None}
        if state["group"] != before["group"]:
            state |= {"selected": 0, "beside": None, **forgotten, **changes}
        if state["selected"] != before["selected"]:
            state |= {**forgotten, **changes}
        self._state = state = self._checked(**state)
        if "widget" in self.__dict__:
            self._show(state)
        changed = {name for name in state if state[name] != before[name]}
        for callback, names in self._callbacks:
            if changed and (not names or changed.intersection(names)):
                callback(self)

    def _checked(self, group, layer, beside, selected, failure_point, span) -> dict:
        """The state, where every part of it is inside the data; WorkbenchError otherwise."""
        group = _inside("group", group, len(self.inspections))
        rollouts, layers = self.inspections[group].group.rollouts, self.layers[group]
        if layer not in layers:
            refuse_if(
                group == self._state["group"],
                f"there is no layer {layer!r}; there are {', '.join(layers)}",
            )
            layer = self._first_layer(group)
        refuse_if(
            isinstance(beside, str) and beside not in layers,
            f"there is no layer {beside!r} to put beside; there are {', '.join(layers)}",
        )
        if beside is not None and not isinstance(beside, str):
            beside = _inside("beside", beside, len(rollouts))
        selected = _inside("selected", selected, len(rollouts))
        size = len(rollouts[selected].completion_ids)
        if failure_point is not None:
            failure_point = _inside("failure_point", failure_point, size)
        return {
            "group": group,
            "layer": layer,
            "beside": beside,
            "selected": selected,
            "failure_point": failure_point,
            "span": None if span is None else _span(span, size, selected),
        }

    # ---- live ------------------------------------------------------------------------------------

    @cached_property
    def widget(self):
        """The live widget (an ``anywidget``), to put into other widgets.

        Raises WorkbenchError without anywidget.
        """
        widget = _widget_class()(data=self.data(), twin=self._twin, **self._state)
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
        """What the browser gets, as JSON.

        ``texts`` are all token texts made visible, which the rest names by their place in that
        list.
        """
        texts: dict[str, int] = {}

        def place(shown: str) -> int:
            return texts.setdefault(shown, len(texts))

        @cache
        def likeliest(token: int) -> int:
            return place(visible(text_of(token, self._decode)))

        groups = []
        for number, inspection in enumerate(self.inspections):
            rows, wrong = self._rows(number), self._wrong(number)
            layers = self._layers(number)
            data = group_data(inspection, rows, layers, wrong, place, likeliest)
            groups.append({"title": self._titles[number], **data})
        return {
            "levels": style.LEVELS,
            "faint": style.FAINT,
            "texts": list(texts),
            "groups": groups,
        }

    def _rows(self, number: int) -> list[list[Token]]:
        group = self.inspections[number].group
        return tokens.tokens(group, [()] * len(group.rollouts), self._decode)

    def _wrong(self, number: int) -> list[int | None]:
        """The first wrong step of each rollout, where the task's truth is known and has one."""
        inspection = self.inspections[number]
        rollouts = inspection.group.rollouts
        return list(map(step_of, inspection.first_errors or [None] * len(rollouts), rollouts))

    def _layers(self, number: int) -> list[Layer]:
        return [Layer.of(channel_of(name), v) for name, v in self.layers[number].items()]

    def _layer(self, name: str) -> Layer:
        layers = self.layers[self.group]
        refuse_if(name not in layers, f"there is no layer {name!r}; there are {', '.join(layers)}")
        return Layer.of(channel_of(name), layers[name])

    # ---- static: the group shown -----------------------------------------------------------------

    def to_html(self, path: str | Path | None = None, *, layers: Sequence[str] = ()) -> str | None:
        """The group as HTML that works without a script, the current layer first and the others
        behind buttons.

        ``layers``: only those. ``path``: write it there, as a page, and say what it weighs.
        """
        names = layers or sorted(self.layers[self.group], key=lambda name: name != self.layer)
        figure = html.layers_html(
            self.inspections[self.group].group,
            [self._layer(name) for name in names],
            self._decode,
            marks=self._marks(),
        )
        if path is None:
            return figure
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>Token view</title>{figure}</html>\n"
        )
        smaller = f"layers=[{self.layer!r}]" if len(names) > 1 else FEWER
        display.write(path, page.encode(), smaller)
        return None

    def _marks(self) -> dict[tuple[int, int], str]:
        """Words on the tokens of the group shown, by (rollout, token)."""
        marks = {}
        for i, (row, wrong) in enumerate(zip(self._rows(self.group), self._wrong(self.group))):
            selected = i == self.selected
            start, end = self.span or (0, 0)
            for token in row:
                words = {
                    "failure point": selected and token.index == self.failure_point,
                    "first wrong step": token.step == wrong,
                    "span": selected and start <= token.index < end,
                }
                if any(words.values()):
                    marks[i, token.index] = ", ".join(word for word in words if words[word])
        return marks

    def to_png(self, path: str | Path | None = None) -> bytes | None:
        """The group in the current layer as a PNG, drawn by matplotlib.

        ``path``: write it there, and say what it weighs.
        """
        group = self.inspections[self.group].group
        image = group_png(group, self._layer(self.layer), self._decode, self._marks())
        if path is None:
            return image
        display.write(path, image, FEWER)
        return None

    def to_frame(self) -> pd.DataFrame:
        """One row a token of every group: where it is, its text, and its number in each layer."""
        frames = []
        for number, inspection in enumerate(self.inspections):
            rows, wrong = self._rows(number), self._wrong(number)
            for i, rollout in enumerate(inspection.group.rollouts):
                place = {
                    "group": number,
                    "problem": inspection.group.problem.id,
                    "rollout": i,
                    "reward": rollout.verdict.reward,
                    "origin": rollout.origin,
                }
                frame = pd.DataFrame(rows[i])[["step", "index", "id", "text"]].assign(**place)
                frame["first_wrong_step"] = frame["step"] == wrong[i]
                for name, values in self.layers[number].items():
                    frame[name] = np.asarray(values[i], float)
                frames.append(frame.rename(columns={"index": "token"}))
        table = pd.concat(frames, ignore_index=True)
        return table[[*place, *table.columns.difference(place, sort=False)]]

    def __repr__(self) -> str:
        group = self.inspections[self.group].group
        count = len(group.rollouts)
        return f"TokenView of {group.problem.id!r}: {count} rollouts, layer {self.layer!r}"

    def _static(self) -> str:
        rollouts = self.inspections[self.group].group.rollouts
        small = sum(len(rollout.completion_ids) for rollout in rollouts) <= STATIC_TOKENS
        return self.to_html(layers=() if small else (self.layer,))

    def _ipython_display_(self) -> None:
        display.show(repr(self), self._static(), self._twin, lambda: self.widget, WorkbenchError)


def _inspection(item, layers: Mapping) -> tuple[str, Inspection]:
    """(title, inspection) of one thing to show; the values of a run hold nothing for a rollout
    that has no numbers.
    """
    if isinstance(item, Inspection):
        return item.group.problem.id, item
    step, group, values = (None, item, None) if isinstance(item, Group) else item
    layers = layers if values is None else {"credit": values}
    title = group.problem.id if step is None else f"step {step}: {group.problem.id}"
    return title, Inspection(group, _arrays(group, layers))


def _arrays(group: Group, layers: Mapping) -> dict[str, Values]:
    """Each layer as one [T] array a rollout; NaN where it holds None or nothing at all."""
    sizes = [len(rollout.completion_ids) for rollout in group.rollouts]
    arrays = {}
    for name, values in layers.items():
        numbers = [
            np.array(v, float) if len(v) else np.full(t, np.nan) for v, t in zip(values, sizes)
        ]
        refuse_if(
            len(values) != len(sizes) or list(map(len, numbers)) != sizes,
            f"layer {name!r} does not have one number for each token of the group's rollouts",
        )
        arrays[name] = tuple(numbers)
    return arrays


def _inside(name: str, value: Any, size: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise WorkbenchError(f"{name} is a number from 0 to {size - 1}, not {value!r}") from None
    refuse_if(not 0 <= value < size, f"{name} {value} is outside 0 to {size - 1}")
    return value


def _span(span: Any, size: int, selected: int) -> tuple[int, int]:
    try:
        start, end = map(operator.index, span)
    except (TypeError, ValueError):
        raise WorkbenchError(f"span is (start, end) or None, not {span!r}") from None
    refuse_if(
        not 0 <= start < end <= size,
        f"span ({start}, {end}) is not a part of the {size} tokens of rollout {selected}",
    )
    return start, end


@cache
def _widget_class() -> type:
    missing = (
        "the live token view needs anywidget: pip install 'workbench[notebook]' "
        "(to_html, to_png and to_frame work without it)"
    )
    anywidget, traitlets = needed("anywidget", missing), needed("traitlets", missing)

    class TokenWidget(anywidget.AnyWidget):
        _esm = (HERE / "view.js").read_text(encoding="utf-8")
        _css = html.css() + (HERE / "view.css").read_text(encoding="utf-8")
        data = traitlets.Dict().tag(sync=True)
        twin = traitlets.Unicode().tag(sync=True)
        group = traitlets.Int(0).tag(sync=True)
        layer = traitlets.Unicode().tag(sync=True)
        beside = traitlets.Any(None, allow_none=True).tag(sync=True)
        selected = traitlets.Int(0).tag(sync=True)
        failure_point = traitlets.Int(None, allow_none=True).tag(sync=True)
        span = traitlets.Any(None, allow_none=True).tag(sync=True)

    return TokenWidget
