"""Pictures of the two paths: bar lengths, intervals and bands are the numbers, and nothing is
missing where there is nothing to draw.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import toys

from workbench.studies.teacher_rescue import Cell, Gap
from workbench.viz.figures.scope import LONGEST, along, differences, rescued, routing


def test_a_bar_is_the_weight_times_the_size_of_its_subset():
    group = toys.group([2, 3, 4], [1, 0, 0])
    texts = ["1+1=2\nAnswer 2", "$x^2", "9" * 99]
    a, b, c = (replace(r, text=text) for r, text in zip(group.rollouts, texts))
    left, right = routing([(a, 1.0, 1.25), (b, 0.3, 2.0), (c, 0.7, 1.5)]).axes
    assert [bar.get_width() for bar in left.patches] == [1.0] and [
        bar.get_width() for bar in right.patches
    ] == [0.6, 1.4]
    assert [text.get_text() for text in (*left.texts, *right.texts)] == ["1.250", "2.000", "1.500"]
    labels = [label.get_text() for axes in (left, right) for label in axes.get_yticklabels()]
    assert labels == ["1+1=2⏎Answer·2", "$x^2", "9" * (LONGEST - 1) + "…"]
    assert (
        right.get_xlim()[1] > 1.4
        and left.get_xlim() == right.get_xlim()
        and "weight × 2" in right.get_xlabel()
    )


def test_a_path_that_nobody_takes():
    left, right = routing([(toys.rollout(2, 1.0), 1.0, 1.5)]).axes
    assert left.patches and not right.patches and right.get_xlabel() == "no such rollout"


def test_a_line_for_each_ratio_with_its_interval():
    cells = [
        Cell(q, ratio, 5, 1.0 + q, 0.1 * q, 0.1 * q - 0.05, 0.1 * q + 0.1)
        for q in (2, 1, 4, 3)
        for ratio in (0.2, 0.8)
    ]
    figure = rescued({"one": cells, "two": cells[:2]})
    first = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["20% given", "80% given"]
    for bars in first.containers:
        line, _, [spans] = bars
        assert list(line.get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert spans.get_segments()[0][:, 1].tolist() == pytest.approx([0.05, 0.2])
    places = [list(bars[0].get_xdata()) for bars in first.containers]
    assert places[0] == pytest.approx([0.97, 1.97, 2.97, 3.97]) and places[1] == pytest.approx(
        [1.03, 2.03, 3.03, 4.03]
    )


def test_a_mark_is_filled_where_its_interval_leaves_out_zero():
    figure = differences(
        {
            "all": [
                Gap(0.2, 40, 0.3, 0.1, 0.5),
                Gap(0.4, 30, -0.1, -0.3, 0.1),
                Gap(0.6, 9, -0.4, -0.5, -0.2),
            ],
            "none": [],
        }
    )
    _, *drawn = figure.axes[0].lines
    spans, marks = drawn[::2], drawn[1::2]
    assert [list(span.get_ydata()) for span in spans] == [[0.1, 0.5], [-0.3, 0.1], [-0.5, -0.2]]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [
        False,
        True,
        False,
    ] and marks[0].get_color() != marks[2].get_color()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "20%\n40 paths",
        "40%\n30 paths",
        "60%\n9 paths",
    ]


def test_means_and_bands_over_the_seeds():
    seeds = [pd.DataFrame({"step": range(6), "x": values}) for values in ([1.0] * 6, [3.0] * 6)]
    axes = along({"a": seeds, "b": [pd.DataFrame({"step": range(6)})]}, "x", "title", "unit").axes[
        0
    ]
    [line] = axes.lines
    assert line.get_label() == "a" and list(line.get_ydata()) == [2.0] * 6
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 3.0)
    assert (
        along({"b": seeds[:0]}, "x", "title", "unit").axes[0].texts[0].get_text() == "no record yet"
    )


def test_drawing_needs_no_torch():
    code = "import sys, workbench.viz.figures.scope; print('torch' in sys.modules)"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "False\n"
