"""The composer's panel: each control does what its function does, the static twin escapes what
models write, and a view's click moves the point.
"""

from __future__ import annotations

import asyncio
import re

import pytest
import toys
from test_compose import RIGHT, TASK, WRONG
from test_readings import group_of
from test_view import WIDGET, displayed

from workbench.core import Inspection, WorkbenchError
from workbench.corrections import editor
from workbench.corrections.buffer import load
from workbench.corrections.editor import CorrectionEditor
from workbench.methods.grpo import GRPO
from workbench.viz import composer_controls
from workbench.viz.composer import Composer, draft_html

w = pytest.importorskip("ipywidgets")


@pytest.fixture(scope="module")
def desk():
    policy = toys.tiny_policy()
    return CorrectionEditor(
        policy,
        TASK,
        group_of(policy, RIGHT, WRONG, "47+85=122\nWait, " + RIGHT, "9"),
        {"GRPO": GRPO(k=5)},
    )


def control(panel, description: str):
    def walk(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    return next(x for x in walk(panel.box) if getattr(x, "description", None) == description)


def test_it_begins_at_the_first_error_of_the_first_wrong_rollout(desk):
    panel = Composer(desk)
    assert panel.choice["source"] == 1 and panel.choice["token"] == 10
    assert panel.composition == desk.compose(1, 10) and panel.draft.verdict.correct


def test_each_control_does_what_its_function_does(desk):
    panel = Composer(desk)
    control(panel, "point: token").value = 4  # as the view counts, from 1
    assert panel.composition == desk.compose(1, 3)
    control(panel, "keep its whole step").value = False
    assert panel.composition == desk.compose(1, 3, whole_step=False)
    control(panel, "reference").value = 2
    assert panel.composition == desk.compose(1, 3, whole_step=False, reference=2)
    control(panel, "continuation").value = "132-29=103\nAnswer 104"
    assert (
        panel.composition.continuation.endswith("104")
        and panel.composition.authors["continuation"] == "user"
        and not panel.draft.verdict.correct
    )
    control(panel, "transition").value = "⏎Wait, "
    assert panel.composition.transition == "\nWait, "
    control(panel, "diagnosis").value = "no borrow"
    assert panel.composition.diagnosis == "no borrow" and "no borrow" in panel.to_html()
    control(panel, "Start again").click()
    assert (
        panel.composition == desk.compose(1, 3, whole_step=False, reference=2)
        and control(panel, "diagnosis").value == ""
    )
    # "9" and the end of the turn: the point moves into it
    control(panel, "wrong rollout").value = 3
    assert (
        panel.choice["token"] == 1
        and control(panel, "point: token").max == 2
        and panel.composition.source.text == "9"
    )


def test_the_preview_follows(desk):
    panel = Composer(desk)
    shown = panel.box.children[-1]
    assert "The grader accepts it" in shown.value
    control(panel, "continuation").value = "Answer 1"
    assert "The grader rejects it" in shown.value
    control(panel, "continuation").value = ""
    assert "Not a correction yet: the reconstruction is empty" in shown.value


def test_what_cannot_be_made_says_why_and_changes_nothing(desk):
    panel = Composer(desk)
    before = panel.composition
    control(panel, "Let the policy write").click()  # a random model does not know the format
    assert panel.composition == before and "none of 4 outputs" in panel.box.children[-1].value
    panel.begin(token=999)
    assert (
        panel.composition == before
        and "there is no token 999" in panel.message
        and panel.choice["token"] == 10
    )
    with pytest.raises(WorkbenchError, match="nothing to correct"):
        Composer(CorrectionEditor(desk.policy, TASK, group_of(desk.policy, RIGHT)))


def test_an_edit_reads_the_correction_alone(desk, monkeypatch):
    """Reading the whole group again took 40 seconds an edit on a model of 135M."""
    rows = []
    real = editor.token_stats
    monkeypatch.setattr(
        editor, "token_stats", lambda *a, **k: rows.append(len(a[2])) or real(*a, **k)
    )
    monkeypatch.setattr(editor, "realised_credit", lambda *a: pytest.fail("nobody asked"))
    panel = Composer(desk)
    control(panel, "continuation").value = "Answer 1"
    assert rows == [1, 1]


def test_credit_is_shown_when_asked_for_and_goes_with_the_next_edit(desk):
    panel = Composer(desk)
    assert "GRPO credit" not in panel.box.children[-1].value
    control(panel, "Credit by method").click()
    assert "GRPO credit" in panel.box.children[-1].value
    control(panel, "continuation").value = "Answer 1"
    assert "GRPO credit" not in panel.box.children[-1].value


def test_work_shows_a_sign_and_disables_the_buttons(desk, monkeypatch):
    panel = Composer(desk)
    seen = []
    buttons, shown = panel._controls.buttons, panel._controls.shown
    monkeypatch.setattr(
        panel.editor.__class__,
        "reconstruct",
        lambda *a, **k: (
            seen.append((panel._controls.busy.value, [b.disabled for b in buttons]))
            or seen.append(shown._dom_classes)
            or panel.composition
        ),
    )
    control(panel, "Let the policy write").click()
    assert "working" in seen[0][0] and seen[0][1] == [True] * 4
    assert "wb-stale" in seen[1], "what is shown meanwhile is of the correction before"
    assert panel._controls.busy.value == "" and not any(b.disabled for b in buttons)
    assert "wb-stale" not in shown._dom_classes


def test_typing_counts_when_it_pauses(desk):
    """A letter at a time; the model reads the last of them alone."""

    async def type_(panel, text):
        for end in range(1, len(text) + 1):
            control(panel, "continuation").value = text[:end]
            await asyncio.sleep(0.01)
        assert panel.composition.continuation != text and "waiting" in panel._controls.busy.value
        await asyncio.sleep(composer_controls.PAUSE + 0.3)

    panel = Composer(desk)
    asyncio.run(type_(panel, "Answer 1"))
    assert panel.composition.continuation == "Answer 1" and panel._controls.busy.value == ""


def test_save(desk, tmp_path):
    panel = Composer(desk, tmp_path / "buffer.jsonl")
    control(panel, "Save").click()
    control(panel, "continuation").value = ""
    control(panel, "Save").click()
    assert "Not saved: the reconstruction is empty" in panel.message
    [saved] = load(tmp_path / "buffer.jsonl")
    assert saved.rollout.text == desk.compose(1, 10).text
    nowhere = Composer(desk)
    nowhere.save()
    assert "no buffer" in nowhere.message


def test_a_click_in_the_view_moves_the_point(desk):
    from workbench.viz.view import TokenView

    view = TokenView(
        Inspection(desk.group, {}), lambda token: desk.policy.tokenizer.decode([token])
    )
    panel = Composer(desk, view=view)
    view.selected = 1
    view.failure_point = 22
    assert panel.choice["token"] == 22 and panel.composition == desk.compose(1, 22)
    view.selected = 0  # a correct rollout: nothing to correct there
    view.failure_point = 2
    assert panel.choice["source"] == 1


def test_the_static_twin(desk):
    page = draft_html(Composer(desk).draft)
    assert (
        "<script" not in page
        and "prefix: tiny · transition: template · continuation: sibling" in page
    )
    assert "log of the OOD weight" in page and "GRPO credit" not in page
    with_credit = draft_html(Composer(desk).draft, with_credit=True)
    assert "GRPO credit" in with_credit and "correction" in with_credit
    ids = re.search(r"<code>([\d ]+)</code>", page)[1].split()
    assert tuple(map(int, ids)) == Composer(desk).draft.rollout.completion_ids
    static, live = displayed(Composer(desk))
    assert "<section" in static["text/html"] and "model_id" in live[WIDGET]


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "</pre></style><img src=x onerror=alert(1)>",
        "\u202egnp",
        "Answer 1</section>",
    ],
)
def test_text_is_always_escaped(desk, hostile):
    panel = Composer(desk)
    for parts in (
        {"continuation": hostile},
        {"diagnosis": hostile, "continuation": f"{hostile}\nAnswer 1"},
    ):
        panel.edit(**parts)
        page = panel.to_html()
        assert "<script" not in page and "<img" not in page and "\u202e" not in page
        assert page.count("</section>") == page.count("<section") and page.count(
            "</pre>"
        ) == page.count("<pre>")


def test_a_point_that_is_not_there_leaves_everything_as_it_was_and_says_why(desk):
    composer = Composer(desk)
    before, source = composer.composition, composer.choice["source"]
    for choice, message in (
        ({"source": 99}, "there is no rollout 99"),
        ({"token": 10_000}, "there is no token 10000"),
        ({"token": -1}, "there is no token -1"),
        ({"reference": 99}, "rollout 99 is no correct reference"),
    ):
        composer.begin(**choice)
        assert (
            message in composer.message
            and composer.composition == before
            and composer.choice["source"] == source
        )


def test_a_widget_of_ipywidgets_7_is_shown_and_a_pair_keeps_its_metadata():
    """Colab has ipywidgets 7, whose widgets have no ``_repr_mimebundle_``; anywidget's returns a
    pair, by whose metadata Colab finds its widget manager.
    """
    from types import SimpleNamespace

    from workbench.viz.display import _bundle

    kind = "application/vnd.jupyter.widget-view+json"
    data, metadata = _bundle(SimpleNamespace(model_id="abc"))
    assert data[kind]["model_id"] == "abc" and metadata == {}
    pair = ({kind: {"model_id": "x"}}, {kind: {"colab": {"custom_widget_manager": {"url": "u"}}}})
    assert _bundle(SimpleNamespace(_repr_mimebundle_=lambda: pair)) == pair
