"""What models wrote to the same questions, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.core import Group
from workbench.viz.texts import escape, table_row

LONGEST = 600  # characters of an answer
CELL = "text-align:left;vertical-align:top"


def answers_html(shown: int = 4, **columns: Sequence[Group]) -> str:
    """A table: a question a row, and a column for each of ``columns``, such as ``before=groups,
    after=groups``, with the first ``shown`` answers and their verdicts. Over each, how many of all
    are right.

    Raises ValueError where the columns are not of the same questions.
    """
    rows = list(zip(*columns.values(), strict=True))
    heads = [f"{name}: {_right(groups)}" for name, groups in columns.items()]
    lines = table_row("th", ["question", *map(escape, heads)], CELL)
    for groups in rows:
        if len({group.problem.id for group in groups}) > 1:
            raise ValueError("these are answers to different questions")
        question = escape(groups[0].problem.messages[-1]["content"][:LONGEST])
        cells = [_text(question), *(_answers(group, shown) for group in groups)]
        lines += table_row("td", cells, CELL)
    return f"<table>{lines}</table>"


def _right(groups: Sequence[Group]) -> str:
    verdicts = [rollout.verdict.correct for group in groups for rollout in group.rollouts]
    return f"{sum(verdicts)} of {len(verdicts)} right"


def _answers(group: Group, shown: int) -> str:
    texts = []
    for rollout in group.rollouts[:shown]:
        text = rollout.text if len(rollout.text) <= LONGEST else f"{rollout.text[:LONGEST]} …"
        texts.append(_text(f"<b>{rollout.verdict.mark}</b> {escape(text)}"))
    return "".join(texts)


def _text(html: str) -> str:
    return f'<div style="white-space:pre-wrap;margin-bottom:.3em">{html}</div>'
