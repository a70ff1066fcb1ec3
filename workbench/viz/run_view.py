"""A browser over whole runs: steps on a slider, the groups of a step sorted and filtered, one
problem followed through training, two runs on the same problem.

    RunView("runs/check")                        # nothing but the folder
    RunView("runs/grpo", "runs/sdpo").to_html("runs.html")

In a notebook it is live: what a run that still trains has recorded comes into the view by itself,
also while a cell of the same notebook trains it. A page that was exported stays as it is.

The browser gets every group as one packed string and unpacks those that are looked at; of a group
it draws the rollouts in sight (run_view.js).
"""

from __future__ import annotations

import base64
import json
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from workbench.core import Group, WorkbenchError, needed, refuse_if
from workbench.records import Run, read_run, write_atomic
from workbench.viz import display, html, style
from workbench.viz.texts import Decode, escape, prose, table_row, text_of, visible
from workbench.viz.tokens import CREDIT, Layer

HERE = Path(__file__).parent
NONE = -(2**15)  # a token without a number
TABLE = 40  # rows of the static table
PAUSE = 1.0  # seconds between looks at a folder that may go on


class RunView:
    """``runs``: folders, or Runs. ``decode``: as for a TokenView; without it the tokenizer in the
    run's folder, or of the model that the run began with, is used.

    Raises WorkbenchError where there is no run, and where none of them kept a group.
    """

    def __init__(self, *runs: str | Path | Run, decode: Decode | None = None):
        self._sources, self._decode = runs, decode
        self._twin = display.twin_id()
        self.refresh()

    def refresh(self) -> RunView:
        """Read the folders again."""
        self._stamp = self._written()
        self.runs = [run if isinstance(run, Run) else read_run(run) for run in self._sources]
        refuse_if(
            not any(run.groups for run in self.runs),
            "there is no group to show: none of the runs has kept one yet",
        )
        self.__dict__.pop("data", None)
        if "widget" in self.__dict__:
            self.widget.data = self.data
        return self

    def _written(self) -> list:
        """When the folders' groups were last written, and how much of them there is."""
        folders = [Path(run) for run in self._sources if not isinstance(run, Run)]
        paths = [folder / "groups.jsonl" for folder in folders]
        stats = [path.stat() for path in paths if path.exists()]
        return [(stat.st_mtime_ns, stat.st_size) for stat in stats]

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the browser gets, as JSON; ``texts`` are named by their place in the list."""
        texts: dict[str, int] = {}
        items, metrics = [], []
        for number, run in enumerate(self.runs):
            pieces = _pieces(self._decode or _tokenizer(run), texts)
            metrics.append(_metrics(run))
            for step, group, credit in run.groups:
                items.append({"run": number, "step": step, **_item(group, credit, pieces)})
        return {
            "levels": style.LEVELS,
            "faint": style.FAINT,
            "unit": CREDIT.unit,
            "runs": [run.folder.name for run in self.runs],
            "metrics": metrics,
            "texts": list(texts),
            "items": items,
        }

    @cached_property
    def widget(self):
        """The live widget (an ``anywidget``). Raises WorkbenchError without anywidget."""
        widget = _widget_class()(data=self.data, twin=self._twin)
        # a thread: while a cell trains, nothing else of the kernel has its turn
        Thread(target=_follow, args=(weakref.ref(self), widget), daemon=True).start()
        return widget

    def to_html(self, path: str | Path | None = None) -> str:
        """A page that works without a kernel or a network; ``path``: also write it there."""
        # "<" cannot end the script element that the data stand in
        data = json.dumps(self.data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        code = (HERE / "run_view.js").read_text(encoding="utf-8")
        code = code.replace("export default", "const view =")
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>Runs</title><style>{_css()}</style>'
            f'<div id="runs"></div><script type="application/json" id="data">{data}</script>'
            f'<script type="module">{code}\nbrowse(document.getElementById("runs"), '
            'JSON.parse(document.getElementById("data").textContent));</script></html>\n'
        )
        if path is not None:
            write_atomic(Path(path), page)
        return page

    def __repr__(self) -> str:
        count = sum(len(run.groups) for run in self.runs)
        return f"RunView of {', '.join(run.folder.name for run in self.runs)}: {count} groups"

    def _static(self) -> str:
        """A table of the first groups, for who opens the notebook without a kernel."""
        head = ("run", "step", "problem", "right", "mean reward", "mean tokens")
        rows = [table_row("th", head)]
        for item in self.data["items"][:TABLE]:
            right = f"{item['right']} of {len(item['rollouts'])}"
            reward = "unknown" if item["reward"] is None else f"{item['reward']:.2f}"
            name, problem = escape(self.data["runs"][item["run"]]), escape(str(item["problem"]))
            cells = (name, str(item["step"]), problem, right, reward, f"{item['length']:.0f}")
            rows.append(table_row("td", cells))
        more = len(self.data["items"]) - TABLE
        note = f"<p>and {more} more: to_html(path) writes the browser.</p>" if more > 0 else ""
        return f"<table>{''.join(rows)}</table>{note}"

    def _ipython_display_(self) -> None:
        display.show(repr(self), self._static(), self._twin, lambda: self.widget, WorkbenchError)


def _follow(view: weakref.ref, widget) -> None:
    """Refresh a view when its folders have more, until it is closed or forgotten."""
    while view() is not None and widget.comm is not None:
        time.sleep(PAUSE)
        shown = view()
        # a folder that cannot be read now may be again
        with suppress(WorkbenchError, OSError):
            if shown is not None and shown._written() != shown._stamp:
                shown.refresh()
        del shown


def _metrics(run: Run) -> dict[int, dict[str, float]]:
    """What the bar says of a step: reward, right answers and avg@k, where they are."""
    names = [name for name in ("reward", "correct", "eval_avg") if name in run.metrics]
    rows = run.metrics[["step", *names]].to_dict("records") if names else []
    return {int(row.pop("step")): {n: v for n, v in row.items() if v == v} for row in rows}


# ---- tokens


def _tokenizer(run: Run) -> Decode | None:
    """Of the run's own model, or of the one that it began with."""
    from transformers import AutoTokenizer

    began = str(run.config.get("model") or "")
    root = HERE.parent.parent
    places = [run.folder / name for name in ("model", "best", "adapter")]
    for place in [*places, Path(began), root / began]:
        if (place / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(place, local_files_only=True)
    return None


def _pieces(decode: Decode | None, texts: dict[str, int]):
    """A function from a rollout to the places of its tokens' texts; without a tokenizer all of its
    text is at its first token.
    """

    def place(text: str) -> int:
        return texts.setdefault(_shown(text), len(texts))

    @cache
    def place_of(token: int) -> int:
        return place(text_of(token, decode))

    def places(rollout) -> list[int]:
        if decode is not None:
            return list(map(place_of, rollout.completion_ids))
        return [place(rollout.text)] + [place("")] * (len(rollout.completion_ids) - 1)

    return places


def _shown(text: str) -> str:
    """Spaces stay spaces; a line break is seen and breaks the line."""
    return "".join(c if c == " " else "⏎\n" if c == "\n" else visible(c) for c in text)


# ---- groups


def _item(group: Group, credit: Sequence[Sequence[float]], pieces) -> dict[str, Any]:
    rollouts = group.rollouts
    sizes = [len(rollout.completion_ids) for rollout in rollouts]
    values = [
        np.array(row, float) if len(row) == size else np.full(size, np.nan)
        for row, size in zip(credit, sizes)
    ]
    limit = Layer.of(CREDIT, values).limit
    about = {
        "problem": group.problem.id,
        "question": prose(group.problem.messages[-1]["content"]),
        "right": sum(rollout.verdict.correct for rollout in rollouts),
        "length": float(np.mean(sizes)),
        "entropy": _surprise(rollouts),
        "rollouts": [[len(r.completion_ids), r.verdict.mark, r.verdict.words] for r in rollouts],
        "limit": limit,
    }
    rewards = _rewards([rollout.verdict.reward for rollout in rollouts])
    return about | rewards | _packed([pieces(rollout) for rollout in rollouts], values, limit)


def _rewards(rewards: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation; None where a reward is not known."""
    mean, contrast = float(np.mean(rewards)), float(np.std(rewards))
    known = bool(np.isfinite(mean))
    return {"reward": mean if known else None, "contrast": contrast if known else None}


def _surprise(rollouts) -> float | None:
    """Nats a token that the sampler gave its own tokens: an estimate of its entropy."""
    logprobs = np.concatenate([np.array(rollout.logprobs, float) for rollout in rollouts])
    return float(-np.nanmean(logprobs)) if np.isfinite(logprobs).any() else None


def _packed(places: list[list[int]], values: list[np.ndarray], limit: float) -> dict[str, Any]:
    """All tokens of a group as two strings: places of their texts, and their numbers in parts of
    1/4096 of the scale's end, up to eight times that.
    """
    tokens, numbers = np.concatenate(places), np.concatenate(values)
    parts = np.clip(np.nan_to_num(numbers) / limit * 4096, NONE + 1, -NONE - 1).round()
    parts = np.where(np.isnan(numbers), NONE, parts)
    wide = bool(tokens.max() > 0xFFFF)
    return {
        "wide": wide,
        "tokens": _string(tokens.astype("<u4" if wide else "<u2")),
        "numbers": _string(parts.astype("<i2")),
    }


def _string(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _css() -> str:
    return html.css() + (HERE / "run_view.css").read_text(encoding="utf-8")


@cache
def _widget_class() -> type:
    missing = (
        "the live run view needs anywidget: pip install 'workbench[notebook]' "
        "(to_html works without it)"
    )
    anywidget, traitlets = needed("anywidget", missing), needed("traitlets", missing)

    class RunWidget(anywidget.AnyWidget):
        _esm = (HERE / "run_view.js").read_text(encoding="utf-8")
        _css = _css()
        data = traitlets.Dict().tag(sync=True)
        twin = traitlets.Unicode().tag(sync=True)

    return RunWidget
