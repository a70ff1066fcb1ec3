"""One object of choices: the panel and the parameters cell set the same fields, what is chosen is
what trains, and nonsense is a sentence before anything is loaded.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import types
from dataclasses import fields, replace

import pytest
from anywidget import _util as of_anywidget

from workbench.app import choices, cli, colab, memory, train
from workbench.app.choices import PRESETS, Choices, choose
from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.evaluation.metrics import Evaluation
from workbench.methods import METHODS
from workbench.model.loading import source_of
from workbench.paths import ORGANISM
from workbench.records import read_run
from workbench.tasks.math import Math
from workbench.tasks.rows import Rows
from workbench.training.run import fit
from workbench.viz.answers import answers_html
from workbench.viz.live import LiveRun

ROWS = [{"question": f"{n} + 1 =", "answer": str(n + 1)} for n in range(60)]
OTHER = {
    "model": "other/model",
    "data": "words",
    "method": "sdpo",
    "memory": "full",
    "steps": 3,
    "prompts": 5,
    "k": 6,
    "new": 7,
    "lr": 0.5,
    "rank": 8,
    "rows": 9,
    "checkpointing": True,
    "teacher": "other/teacher",
    "seed": 11,
}


def last(text: str, answer: str) -> float:
    return float(text.split()[-1:] == [answer])


@pytest.fixture
def nothing_loads(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(choices, "load_policy", refuse)


# ---- one object, set in three ways


def test_the_panel_the_parameters_and_python_set_the_same_object():
    pytest.importorskip("ipywidgets")
    assert set(OTHER) == {field.name for field in fields(Choices)} - {"reward"}
    by_parameters = choose("cpu", **OTHER)
    by_panel, by_python = choose("cpu"), choose("cpu")
    assert by_panel.box and by_python.box
    for name, value in OTHER.items():
        assert getattr(PRESETS["cpu"], name) != value
        by_panel._controls.by_name[name].value = value
        assert by_panel == choose("cpu", **{n: OTHER[n] for n in list(OTHER)} | _untouched(name))
        setattr(by_python, name, value)
    assert by_parameters == by_panel == by_python != PRESETS["cpu"]
    shown = {name: control.value for name, control in by_python._controls.by_name.items()}
    assert shown == OTHER, "the panel follows"
    assert choose("cpu") == PRESETS["cpu"], "what a preset says is nobody's to change"


def _untouched(last_set: str) -> dict:
    """The preset's values of the fields after one, in the order in which they are set."""
    names = list(OTHER)
    return {n: getattr(PRESETS["cpu"], n) for n in names[names.index(last_set) + 1 :]}


def test_none_leaves_what_suits_the_machine():
    for name, preset in PRESETS.items():
        assert choose(name, model=None, steps=None) == preset
    assert choose("t4", steps=5) == replace(PRESETS["t4"], steps=5)
    assert choose(model=ORGANISM / "3m").model == str(ORGANISM / "3m")


@pytest.mark.parametrize(
    "room, name", [(("this machine", 200.0), "cpu"), (("T4", 14.7), "t4"), (("A100", 39.4), "a100")]
)
def test_the_preset_is_that_of_the_machine(monkeypatch, room, name):
    monkeypatch.setattr(choices, "_room", lambda: room)
    assert choose() == PRESETS[name]


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("method", "ppo", "method is one of cast, "),
        ("method", "GRPO", "not 'GRPO'"),
        ("method", ["grpo"], "method is one of"),
        ("memory", "8bit", "memory is one of full, lora, qlora, not '8bit'"),
        ("steps", 0, "steps is a whole number from 1, not 0"),
        ("steps", True, "steps is a whole number"),
        ("k", 2.5, "k is a whole number from 1, not 2.5"),
        ("prompts", "4", "prompts is a whole number from 1, not '4'"),
        ("new", -1, "new is a whole number from 0"),
        ("seed", None, "seed is a whole number"),
        ("lr", math.nan, "lr is a number above 0"),
        ("lr", -1e-4, "lr is a number above 0"),
        ("lr", "1e-4", "lr is a number above 0"),
        ("model", " ", "no model is named"),
        ("model", 3, "no model is named"),
        ("data", "", "no data are named"),
        ("data", None, "no data are named"),
        ("teacher", None, "teacher is a name, or empty"),
        ("checkpointing", "yes", "checkpointing is True or False"),
        ("reward", 1.0, "reward is a function"),
        ("modle", "x", "there is no choice 'modle'; there are model, data"),
    ],
)
def test_nonsense_is_a_sentence_and_changes_nothing(name, value, sentence):
    chosen = choose("cpu")
    with pytest.raises(WorkbenchError, match=sentence) as caught:
        setattr(chosen, name, value)
    assert "\n" not in str(caught.value) and chosen == PRESETS["cpu"]
    if value is not None:
        with pytest.raises(WorkbenchError, match=sentence):
            choose("cpu", **{name: value})


def test_an_unknown_preset_is_a_sentence():
    with pytest.raises(WorkbenchError, match="there are cpu, t4, a100"):
        choose("tpu")


def test_the_panel_says_what_is_wrong_and_what_still_holds():
    pytest.importorskip("ipywidgets")
    chosen = choose("cpu", model="<b>mine")
    assert chosen.box
    controls = chosen._controls
    controls.by_name["model"].value = "  "
    assert chosen.model == "<b>mine" and "no model is named" in controls.said.value
    assert "still &lt;b&gt;mine" in controls.said.value
    controls.by_name["model"].value = " smollm2 "
    assert chosen.model == "smollm2" and controls.said.value == ""
    controls.by_name["method"].value = "kd"
    assert chosen.method == "kd" and "name one as the teacher" in controls.said.value
    controls.by_name["teacher"].value = "a/teacher"
    assert controls.said.value == "" and chosen.by().needs_expert


def test_rows_are_named_in_the_panel_and_replaced_by_a_name():
    pytest.importorskip("ipywidgets")
    chosen = choose("cpu", data=ROWS)
    assert chosen.box and "60 rows in memory" in repr(chosen) and "question" not in repr(chosen)
    control = chosen._controls.by_name["data"]
    assert control.value == "" and control.placeholder == "60 rows in memory"
    chosen._controls.by_name["steps"].value = 3
    assert chosen.data == ROWS
    control.value = "words"
    assert chosen.data == "words"


# ---- data


def test_data_of_every_kind(tmp_path, monkeypatch):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    named = choose("cpu", data="gym:chain_sum,max_new=16").task()
    assert (named.name, named.max_new) == ("gym", 16)
    assert choose("cpu", data="gym:chain_sum,max_new=16", new=9).task().max_new == 9
    assert choose("cpu", data="words", new=9).task().max_new == 9
    plain = choose("cpu", data=file).task()
    assert isinstance(plain, Math) and plain.plain and plain.max_new == 512
    assert choose("cpu", data=file, new=9).task().max_new == 9
    assert choose("cpu", data=f"{file}:max_new=8").task().max_new == 8
    assert choose("cpu", data=f"{file}:max_new=8", new=9).task().max_new == 9
    whole = choose("cpu", data=f"{file}:split=train", new=9).task()
    assert (whole.split, whole.max_new) == ("train", 9)
    assert choose("cpu", data=str(tmp_path / "mine.json"), new=9).task().max_new == 9
    asked = []
    monkeypatch.setattr(choices, "load_task", lambda *name, **dials: asked.append((*name, dials)))
    choose("cpu", data="owner/name").task()
    choose("cpu", data="owner/name", new=9).task()
    choose("cpu", data="owner/name", new=9, reward=last).task()
    named, longer, rewarded = asked
    assert named == ("math:owner/name", {}) and longer == ("math:owner/name,max_new=9", {})
    assert rewarded == ("owner/name", {"reward": last, "max_new": 9})


def test_rows_and_a_reward(tmp_path):
    task = choose("cpu", data=ROWS, reward=last, new=9).task()
    assert isinstance(task, Rows) and task.max_new == 9
    [problem] = task.problems("train", 1, 0)
    assert task.grade(problem, f"it is {problem.answer}").reward == 1
    assert task.grade(problem, "it is x").reward == 0
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert choose("cpu", data=tmp_path / "mine.jsonl", reward=last).task().reward is last
    assert choose("cpu", data=ROWS).task().reward is None


@pytest.mark.parametrize(
    "data, more, sentence",
    [
        ("nothing/here.jsonl", {}, "could not read the problem file nothing/here.jsonl"),
        ("nothing.parquet", {}, "could not read the problem file nothing.parquet"),
        ("./nothing.json", {"reward": last}, "could not read the problem file nothing.json"),
        ("nonsense", {}, "there is no task 'nonsense'; there are arithmetic"),
        ("gym:nonsense", {}, "nonsense"),
        ("words:style=odd", {}, "style"),
        ("arithmetic", {"new": 5}, "has no option 'max_new'"),
        ("words", {"reward": last}, "the task words has a grader of its own"),
        ([], {}, "there are no rows"),
        (7, {}, "rows are dicts of columns"),
        ([{"question": "1 + 1 ="}], {}, "answer"),
    ],
)
def test_data_that_are_none_are_a_sentence(data, more, sentence):
    with pytest.raises(WorkbenchError, match=sentence) as caught:
        choose("cpu", data=data, **more).task()
    assert "\n" not in str(caught.value)


def test_few_rows_are_asked_again_where_none_are_held_out():
    few = choose("cpu", data=[dict(row, split="train") for row in ROWS[:5]])
    assert len(few.questions(few.task(), 4)) == 4
    many = choose("cpu", data=[dict(row, split="test") for row in ROWS] + ROWS[:0])
    assert {problem.meta["split"] for problem in many.questions(many.task())} == {"test"}
    with pytest.raises(WorkbenchError, match="6 wanted"):
        few.questions(few.task(), 6)


# ---- the method, the plan, the command


def test_every_method_has_the_answers_chosen_and_a_teacher_that_is_there(nothing_loads):
    chosen = choose("cpu", k=5)
    for name in METHODS:
        if name == "kd":
            with pytest.raises(WorkbenchError, match="kd learns from a stronger model"):
                chosen.by(name)
            continue
        method = chosen.by(name)
        assert type(method).__name__.lower() == name and not method.needs_expert
        assert not method.samples or getattr(method, "k", 5) == 5
    taught = choose("cpu", teacher="a/teacher")
    assert {name for name in METHODS if taught.by(name).needs_expert} == {"opd", "scope", "kd"}
    for name in ("kd", "opd"):
        with pytest.raises(WorkbenchError, match=f"{name} learns from a stronger model"):
            choose("cpu", method=name).learner()


def test_a_correction_needs_as_large_a_part_of_few_answers_as_of_many():
    eligible = {k: choose("cpu", k=k).by("tapo") for k in (4, 8, 16)}
    assert [(m.n_pos, m.n_neg) for m in eligible.values()] == [(1, 2), (2, 4), (4, 8)]
    with pytest.raises(WorkbenchError, match="k must be 2 or more, not 1"):
        choose("cpu", k=1).by("tapo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", memory.MODES)
def test_the_command_makes_the_same_run(method, mode, monkeypatch):
    chosen = choose("cpu", method=method, memory=mode, k=3, new=9, seed=4, rank=2, rows=5)
    chosen.checkpointing = mode == "lora"
    chosen.teacher = "a/teacher" if method in ("kd", "opd", "scope") else ""
    words = shlex.split(chosen.command("runs/it is mine"))
    args = cli.parser(words[1:]).parse_args(words[1:])
    by, optimizer, plan = train._settings(args)
    learners = []
    for module in (choices, sys.modules["workbench.model.loading"]):
        monkeypatch.setattr(module, "load_policy", _loaded)
    monkeypatch.setattr(choices, "Learner", lambda *a, **how: learners.append((a, how)))
    monkeypatch.setattr(
        sys.modules["workbench.model.learner"],
        "Learner",
        lambda *a, **how: learners.append((a, how)),
    )
    chosen.learner()
    train._learner(args, optimizer)
    (mine, how), (theirs, by_command) = learners
    assert by == chosen.by() and plan == chosen.plan() and mine == theirs
    assert by_command.pop("shard") is False and how == by_command
    assert args.task == choices.SUMS + ",max_new=9" and str(args.out) == "runs/it is mine"
    recorded = train._config(args, by, optimizer)
    assert chosen.config().items() <= recorded.items()


def _loaded(model, *, adapter=None, unsloth=False, template=None, frozen=False, four_bit=False):
    assert adapter is None and not unsloth and not template
    return model, frozen, four_bit


def test_what_is_only_in_memory_has_no_command():
    for more in ({"data": ROWS}, {"data": "mine.jsonl", "reward": last}):
        assert choose("cpu", **more).command("x").startswith("# ")


# ---- will it fit


def test_what_does_not_fit_is_a_sentence_before_anything_is_loaded(monkeypatch, nothing_loads):
    chosen = choose("cpu", model=ORGANISM / "0.4m", data="words", memory="full")
    net = memory.skeleton(chosen.model)
    sizes = chosen._sizes(chosen.task())
    peaks = {
        mode: memory.predict(net, chosen.by(), mode, sizes)["peak"] / 2**30 for mode in memory.MODES
    }
    assert peaks["qlora"] < peaks["lora"] < peaks["full"]
    monkeypatch.setattr(choices, "_room", lambda: ("the T4 here", peaks["lora"] + 1e-4))
    with pytest.raises(WorkbenchError) as caught:
        chosen.will_it_fit(chosen.task())
    words = str(caught.value)
    assert f"takes {peaks['full']:.1f} GiB by full, and the T4 here has" in words
    assert "take lora (" in words and "or qlora (" in words and "\n" not in words
    chosen.memory = "lora"
    text = chosen.will_it_fit(chosen.task(), "sdpo")
    assert "sdpo" in text and "full" in text and text.endswith(".")
    monkeypatch.setattr(choices, "_room", lambda: ("the T4 here", 0.1))
    with pytest.raises(WorkbenchError, match="take a smaller model or shorter answers"):
        chosen.will_it_fit(chosen.task())


def test_the_size_of_a_prompt_is_that_of_the_data():
    long = [{"question": "word " * 600 + str(n), "answer": "1"} for n in range(60)]
    sizes = [choose("cpu", data=data, new=9)._sizes for data in (ROWS, long)]
    short, long = (size(of) for size, of in zip(sizes, _tasks(ROWS, long)))
    assert short.prompt < 100 and 900 < long.prompt < 1300 and short.new == long.new == 9


def _tasks(*data):
    return [choose("cpu", data=each, new=9).task() for each in data]


@pytest.mark.parametrize("model", ["./nothing", "nothing.gguf", "no/such-model", str(ORGANISM)])
def test_a_model_that_is_not_there_is_a_sentence(model, nothing_loads):
    chosen = choose("cpu", model=model, data="words")
    with pytest.raises(WorkbenchError) as caught:
        chosen.will_it_fit(chosen.task())
    assert "\n" not in str(caught.value) and model.split("/")[-1] in str(caught.value)


# ---- the whole way


@pytest.mark.parametrize("mode, method", [("lora", "grpo"), ("full", "sft"), ("lora", "scope")])
def test_before_training_after(tmp_path, mode, method):
    chosen = choose("cpu", model=ORGANISM / "0.4m", data="arithmetic", method=method, memory=mode)
    chosen.steps, chosen.lr = 2, 1e-2
    task, learner = chosen.task(), chosen.learner()
    before = chosen.answers(learner, task, 3)
    assert [len(group.rollouts) for group in before] == [4, 4, 4]
    assert before == chosen.answers(learner, task, 3)
    shown = LiveRun()
    out = tmp_path / "run"
    how = {"writers": [shown], "config": chosen.config(), "progress": False}
    fit(chosen.by(), learner, task, chosen.plan(), out, **how)
    after = chosen.answers(learner, task, 3)
    assert [g.problem for g in before] == [g.problem for g in after] and before != after
    run = read_run(out)
    assert len(run.metrics) == 2 and run.config["lora"] == (16 if mode == "lora" else 0)
    assert (out / ("adapter" if mode == "lora" else "model")).is_dir()
    assert (out / "adapter").is_dir() or source_of(out / "model")
    right = round(Evaluation.of(after).avg * 12)
    assert f"after: {right} of 12 right" in answers_html(before=before, after=after)


# ---- side by side


def group(problem: str, *texts: str) -> Group:
    made = [
        Rollout((1,), (1,), (-1.0,), text, Verdict(float(not i), not i))
        for i, text in enumerate(texts)
    ]
    return Group(Problem(problem, ({"role": "user", "content": f"{problem}?"},), "1"), tuple(made))


def test_answers_side_by_side():
    hostile = "</td><script>alert(1)</script>\u202e"
    before = [group("<i>a", "x", hostile), group("b", "y", "z", "w")]
    after = [group("<i>a", "n" * 5000), group("b", "p")]
    page = answers_html(2, before=before, after=after)
    assert "before: 2 of 5 right" in page and "after: 2 of 2 right" in page
    assert page.count("<tr>") == 3 and page.count("<td") == 6
    assert "<script" not in page and "<i>" not in page and "\u202e" not in page
    assert page.count("✓") == 4 and page.count("✗") == 2, "two answers of three"
    assert "n" * 601 not in page and "n" * 600 in page
    assert answers_html(before=before).count("<th") == 2


def test_answers_to_other_questions_are_not_put_side_by_side():
    with pytest.raises(ValueError, match="different questions"):
        answers_html(before=[group("a", "x")], after=[group("b", "x")])
    with pytest.raises(ValueError):
        answers_html(before=[group("a", "x")], after=[])


# ---- on Colab


@pytest.fixture
def output(monkeypatch):
    """A stand-in for google.colab.output: whose widgets are shown is known once it was enabled."""
    module = types.ModuleType("google.colab.output")
    module._widgets = types.SimpleNamespace(_installed_url=None)

    def enable_custom_widget_manager():
        module._widgets._installed_url = "https://example.org/manager.js"

    module.enable_custom_widget_manager = enable_custom_widget_manager
    of_anywidget.enable_custom_widget_manager_once.cache_clear()
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.output", module)
    yield module
    of_anywidget.enable_custom_widget_manager_once.cache_clear()


def test_the_set_up_lets_colab_show_widgets(output, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(colab, "install", lambda: [])
    assert output._widgets._installed_url is None
    colab.setup()
    assert output._widgets._installed_url and "[ ok ]" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["TokenView", "RunView", "stop button"])
def test_what_colab_gets_says_where_its_manager_is(output, monkeypatch, name):
    from IPython import display

    from workbench.paths import FIRST_STUDY
    from workbench.viz import live
    from workbench.viz.run_view import RunView
    from workbench.viz.view import TokenView

    sent = []
    monkeypatch.setattr(display, "display", lambda data, **how: sent.append((data, how)))
    if name == "TokenView":
        TokenView(group("a", "x"), str, layers={"credit": [[1.0]]})._ipython_display_()
        bundles = [(data, how["metadata"]) for data, how in sent if "metadata" in how]
    elif name == "RunView":
        RunView(FIRST_STUDY / "grpo-3m-seed0")._ipython_display_()
        bundles = [(data, how["metadata"]) for data, how in sent if "metadata" in how]
    else:
        bundles = [live._button_class()()._repr_mimebundle_()]
    kind = "application/vnd.jupyter.widget-view+json"
    [(_, metadata)] = [bundle for bundle in bundles if kind in bundle[0]]
    assert metadata[kind]["colab"]["custom_widget_manager"]["url"].endswith("manager.js")


def test_the_panel_shows_a_table_where_there_are_no_widgets(monkeypatch):
    from IPython import display

    sent = []
    monkeypatch.setattr(display, "display", lambda data, **how: sent.append(data))
    chosen = choose("cpu", data="words", teacher="</td><script>")
    chosen._ipython_display_()
    page = sent[0]["text/html"]
    assert "<th>data</th><td>words</td>" in page and "<script" not in page
    assert len(sent) == 2 and "application/vnd.jupyter.widget-view+json" in sent[1]
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "workbench.app.chooser")
    sent.clear()
    choose("cpu")._ipython_display_()
    assert len(sent) == 1 and "<th>model</th><td>smollm2</td>" in sent[0]["text/html"]
