"""The command line: each command does its work, and bad input is one sentence, exit code 2, and
nothing written.
"""

import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import toys
from safetensors import SafetensorError

from workbench import records
from workbench.app.cli import COMMANDS, main
from workbench.core import WorkbenchError
from workbench.model import learner
from workbench.paths import ORGANISM, RECORDS
from workbench.records import read_run

MODEL = str(ORGANISM / "0.4m")
SMALL = ["--steps", "2", "--set", "prompts=2", "k=2", "eval_problems=2", "eval_samples=2"]
QUESTIONS = "".join(
    json.dumps({"question": f"{'1+' * n}1", "answer": str(n + 1), "split": split}) + "\n"
    for n, split in enumerate(["train"] * 4 + ["validation"] * 2)
)


@pytest.fixture
def files(tmp_path):
    """What the words of a test's command line stand for."""

    def question(**more):
        return json.dumps({"question": "1+1", "answer": "2", **more})

    texts = {
        "good": QUESTIONS,
        "empty": "",
        "torn": question() + '\n{"question": "1+',
        "no_answer": '{"question": "1+1"}',
        "unreadable": question() + "\n" + question(answer="\\frac{1}{"),
        "few": question(split="train") + "\n",
        "long": QUESTIONS
        + json.dumps({"question": "1+" * 300 + "1", "answer": "301", "split": "validation"}),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "file").write_text("")
    untold = toys.saved(toys.tiny_policy(), tmp_path / "untold")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = untold / name
        if path.exists() and name.endswith("json"):
            path.write_text(
                json.dumps(
                    {k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}
                )
            )
        else:
            path.unlink(missing_ok=True)
    return tmp_path


TRAIN = ["train", "grpo", "--model", MODEL, *SMALL]


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "nonsense", "--model", MODEL], "there is no method 'nonsense'"),
        ([*TRAIN, "--task", "nonsense"], "there is no task 'nonsense'"),
        (["train", "grpo", "--model", "no/such/folder"], "no/such/folder"),
        (["train", "grpo", "--model", "{}/untold", "--task", "arithmetic"], "no chat template"),
        ([*TRAIN, "k=1"], "k must be 2 or more, not 1"),
        ([*TRAIN, "colour=red"], "GRPO has no such option"),
        ([*TRAIN, "prompts"], "GRPO has no such option"),
        ([*TRAIN, "prompts=many"], "prompts"),
        ([*TRAIN, "prompts=0"], "prompts must be 1 or more, not 0"),
        ([*TRAIN, "--task", "{}/absent.jsonl"], "absent.jsonl"),
        ([*TRAIN, "--task", "{}/empty.jsonl"], "is empty"),
        ([*TRAIN, "--task", "{}/torn.jsonl"], "torn.jsonl, line 2"),
        ([*TRAIN, "--task", "{}/no_answer.jsonl"], 'needs an "answer"'),
        (
            [*TRAIN, "--task", "{}/unreadable.jsonl"],
            "line 2 has the answer '\\\\frac{1}{', which cannot be read",
        ),
        ([*TRAIN, "--task", "{}/few.jsonl"], "1 problems in its train split, 2 wanted"),
        (
            [*TRAIN, "--task", "{}/good.jsonl"],
            "4 tokens and 512 new ones do not fit the model's context of 512",
        ),
        (
            [*TRAIN, "eval_problems=3", "--task", "{}/long.jsonl:max_new=16"],
            "long:7: its prompt of ",
        ),
        ([*TRAIN, "--steps", "0"], "argument --steps: '0' is not a whole number of 1 or more"),
        ([*TRAIN, "--colour", "red"], "unrecognized arguments: --colour red"),
        ([*TRAIN, "--lora", "2", "--resume", "--out", "{}/used"], "used"),
        ([*TRAIN, "--out", "{}/used"], "already holds a run"),
        ([*TRAIN, "--out", "{}/file"], "{}/file"),
        ([*TRAIN, "--out", "/proc/run"], "/proc/run"),
        ([*TRAIN, "--out", ""], "argument --out: it is empty"),
        (["eval", "--model", MODEL, "--adapter", "{}"], "adapter"),
        (
            ["eval", "--model", MODEL, "--temperature", "-1"],
            "'-1' is not a temperature of 0 or more",
        ),
        (["compare", "{}/nowhere"], "nowhere"),
        (["tour", "--out", "{}"], "{}"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, said, files, capsys):
    words = [word.replace("{}", str(files)) for word in words]
    if words[:1] == ["train"] and "--out" not in words:
        words += ["--out", str(files / "run")]
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    try:
        code = main(words)
    except SystemExit as error:  # argparse
        code = error.code
    out, error = capsys.readouterr()
    assert code == 2 and out == ""
    # a bar that transformers draws
    [sentence] = [
        line for line in error.splitlines() if line.strip() and "Loading weights" not in line
    ]
    assert sentence.startswith("workbench") and said.replace("{}", str(files)) in sentence
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before
    assert not (files / "run").exists()


def test_train_eval_and_compare(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TRAIN, "--lora", "2", "--out", str(run)]) == 0
    # the same model, written otherwise
    assert (
        main(
            [
                *TRAIN,
                "--lora",
                "2",
                "--steps",
                "3",
                "--resume",
                "--model",
                MODEL + "/",
                "--out",
                str(run),
            ]
        )
        == 0
    )
    assert len(read_run(run).metrics) == 3
    capsys.readouterr()
    measure = ["eval", "--model", MODEL, "--problems", "4", "--samples", "2"]
    found = {}
    for name, more in {"base": [], "trained": ["--adapter", str(run / "adapter")]}.items():
        assert main([*measure, *more, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert (
            0 <= found[name]["low"] <= found[name]["avg"] <= found[name]["high"] <= 1
            and found[name]["length"] > 1
        )
    assert main(measure) == 0
    assert f"{found['base']['avg']:.3f}" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["compare", str(run), "--html", str(page)]) == 0
    assert "GRPO" in capsys.readouterr().out and "<svg" in page.read_text()


def test_runs_of_one_name_are_told_apart(tmp_path, capsys, monkeypatch):
    runs = [tmp_path / seed / "grpo" for seed in ("s1", "s2")]
    for number, run in enumerate(runs):
        shutil.copytree(RECORDS / f"grpo-3m-seed{number}", run)
    page = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "--html", str(page)]) == 0
    said, drawn = capsys.readouterr().out, page.read_text()
    for run in runs:
        assert str(run) in said and drawn.count(str(run)) >= 2  # in the table and beside its line
    monkeypatch.chdir(runs[0])
    assert main(["compare", "."]) == 0
    assert "grpo GRPO" in " ".join(capsys.readouterr().out.split())


def test_tour_and_doctor(tmp_path, capsys, monkeypatch):
    from workbench.app import tour

    monkeypatch.setattr(tour, "tour", lambda out, **how: print(out, sorted(how.items())))
    assert main(["tour", "--out", "page.html", "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "('seed', 0), ('steps', 3)" in said and "('model', 'data/organism/3m')" in said
    assert main(["doctor"]) == 0
    assert f"{torch.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", "tour", "train", "eval", "compare", "study", "doctor"])
def test_help_everywhere(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*([command] if command else []), "--help"])
    assert ended.value.code == 0 and "usage: workbench" in capsys.readouterr().out


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom workbench.app.cli import main\n"
        "for words in ([], ['tour'], ['train'], ['eval'], ['compare'], ['study'], ['doctor']):\n"
        "    try:\n        main([*words, '--help'])\n    except SystemExit:\n        pass\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.count("usage: workbench") == 7 and ran.stdout.splitlines()[-1] == "False"


def test_every_command_is_a_module_with_arguments_and_a_main():
    for module, text in COMMANDS.values():
        assert text.endswith(".") and callable(import_module(module).add_arguments)
        assert callable(import_module(module).main)


def test_a_disk_that_is_full_when_the_policy_is_saved(tmp_path, capsys, monkeypatch):
    """safetensors has an error of its own for it."""

    def full(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(learner.Learner, "save", full)
    assert main([*TRAIN, "eval_every=0", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith("workbench: could not write the trained policy to ")
        and "No space left on device" in said
    )
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("command", ["credit", "lead", "rescue", "locators", "discover"])
@pytest.mark.parametrize("place", ["below a file", "a folder"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command, place, tmp_path, monkeypatch, capsys
):
    """And what is there stays: hours of sampling must not end in a traceback."""
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "record.json" if place == "below a file" else tmp_path / "folder"
    if place == "a folder":
        for folder in (out, out / "locators.json"):
            folder.mkdir()
    module = import_module(COMMANDS[command][0])
    monkeypatch.setattr(module, "load_policy", lambda *_, **__: pytest.fail("it began to work"))
    if command == "discover":  # a record that is there is gone on with
        with pytest.raises(WorkbenchError, match="could not write"):
            module._opened(out, {}) if place == "below a file" else records.refuse_unwritable(out)
        return
    models = ["--model", "3m", "--teacher", "3m"] if command == "rescue" else []
    assert main([command, *models, "--out", str(out)]) == 2
    assert main(["rollouts", "no.jsonl", "--model", "3m", "--html", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line[:27] for line in said] == ["workbench: could not write "] * 2
    assert (tmp_path / "file").read_text() == "mine"
