"""workbench export: a policy as one plain model, and as a GGUF file that says the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_adapters import logps, save_adapter, save_base
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from workbench.app.cli import main
from workbench.model.batch import rescore
from workbench.model.loading import load_policy
from workbench.model.policy import Policy
from workbench.rollouts.sampling import sample_groups
from workbench.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}
for numbers, name in {r"\p{N}": "qwen2", r"\p{N}{1,3}": "llama-bpe"}.items():
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words + numbers + rest), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    SPLITS[name] = pre_tokenizers.Sequence([split, bytes_only])


def byte_level(split) -> Tokenizer:
    """A byte-level tokenizer with a few merges and four control tokens."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("Ġ", "+"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocabulary, merges))
    tok.pre_tokenizer, tok.decoder = split, decoders.ByteLevel()
    tok.add_special_tokens(["<|end|>", "<|user|>", "<|system|>", "<|assistant|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )


def save_byte_level(folder: Path, family: str, split=SPLITS["gpt-2"], **options) -> Path:
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 272,  # three rows more than the tokenizer has
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "eos_token_id": 261,
        "pad_token_id": 261,
        "bos_token_id": None,
    }
    config = getattr(transformers, f"{family}Config")(**sizes | options)
    net = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    net.save_pretrained(folder)
    byte_level(split).save_pretrained(folder)
    return folder


def some_rollouts(policy: Policy):
    [group] = sample_groups(policy, TASK, TASK.problems("train", 1, 0), 2, (0,))
    return group.rollouts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype, close", [("bf16", 0.3), ("fp16", 0.05), ("fp32", 2e-4)])
def test_a_merged_model_in_plain_files(dtype, close, tmp_path, capsys):
    """It says what model and adapter said, within the rounding to 16 bits; tokenizer and chat
    template come along, and plain transformers reads it in the type that was asked for.
    """
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a", r=4, use_rslora=True)
    out = tmp_path / "out"
    words = ["export", str(base), "--adapter", str(adapter), "--out", str(out), "--dtype", dtype]
    assert main(words) == 0 and f"is in {out}" in capsys.readouterr().out
    policy, plain = load_policy(base, adapter=adapter), load_policy(out)
    rollouts = some_rollouts(policy)
    np.testing.assert_allclose(logps(plain, rollouts), logps(policy, rollouts), atol=close)
    assert plain.prompt_ids(TASK.problems("test", 1, 0)[0].messages) == policy.prompt_ids(
        TASK.problems("test", 1, 0)[0].messages
    )
    written = json.loads((out / "config.json").read_text())["dtype"]
    assert {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype] == written
    assert not list(out.glob("adapter*")) and sorted(p.name for p in tmp_path.iterdir()) == [
        "a",
        "base",
        "out",
    ]


@pytest.mark.parametrize(
    "family, options",
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"tie_word_embeddings": False, "rope_theta": 50_000.0}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Qwen3", {"head_dim": 128}),  # all have it, and transformers reads no other
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gguf_file_says_the_same(family, options, dtype, tmp_path, monkeypatch):
    """Written, read again by transformers, and compared with the folder beside it, token for token:
    weights, sizes, tokenizer and chat template.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    split = SPLITS["qwen2" if "Qwen" in family else "llama-bpe"]
    model = save_byte_level(tmp_path / "model", family, split, **options)
    out = tmp_path / "out"
    assert main(["export", str(model), "--out", str(out), "--dtype", dtype, "--gguf"]) == 0
    folder, file = load_policy(out), load_policy(out / "gguf" / "out.gguf")
    problem = TASK.problems("test", 1, 0)[0]
    assert folder.prompt_ids(problem.messages) == file.prompt_ids(problem.messages)
    text = "12 + 7, the sum:\n19 théâtre"
    assert folder.completion_ids(text) == file.completion_ids(text)
    rollouts = some_rollouts(folder)
    for one, two in zip(rescore(folder, rollouts), rescore(file, rollouts), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("name", SPLITS)
def test_what_gguf_says_of_the_tokenizer(name, tmp_path):
    import gguf

    model = save_byte_level(tmp_path / "model", "Llama", SPLITS[name])
    assert main(["export", str(model), "--out", str(tmp_path / "out"), "--gguf"]) == 0
    fields = gguf.GGUFReader(tmp_path / "out" / "gguf" / "out.gguf").fields
    contents = {name: field.contents() for name, field in fields.items()}
    assert contents["tokenizer.ggml.pre"] == name and contents["llama.vocab_size"] == 272
    kinds = contents["tokenizer.ggml.token_type"]
    assert kinds[0] == gguf.TokenType.NORMAL and kinds[261:265] == [gguf.TokenType.CONTROL] * 4
    assert kinds[265:] == [gguf.TokenType.UNUSED] * 7
    assert contents["tokenizer.ggml.merges"][0] == "1 2"
    assert contents["tokenizer.chat_template"] == TEMPLATE


ODD = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(False)]
)


@pytest.mark.parametrize(
    "family, split, options, why",
    [
        ("Llama", ODD, {}, "with this tokenizer"),
        ("Llama", None, {"attention_bias": True}, "with biases"),
        ("Llama", None, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope scal"),
        ("Llama", None, {"hidden_act": "gelu"}, "activation gelu"),
        ("Mistral", None, {}, "the family mistral"),
    ],
)
def test_what_gguf_files_are_not_written_for(family, split, options, why, tmp_path, capsys):
    model = save_byte_level(tmp_path / "model", family, split or SPLITS["gpt-2"], **options)
    assert main(["export", str(model), "--out", str(tmp_path / "out"), "--gguf"]) == 2
    sentence = capsys.readouterr().err
    assert why in sentence and "convert_hf_to_gguf.py" in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing half-written


def test_the_organism_has_no_gguf_tokenizer(tmp_path, capsys):
    model = save_base("llama", tmp_path / "base")
    assert main(["export", str(model), "--out", str(tmp_path / "out"), "--gguf"]) == 2
    assert "with this tokenizer" in capsys.readouterr().err


def test_push(tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append(("create", name, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            if repo_id == "me/refused":
                raise RuntimeError("403 Forbidden\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    base = save_base("llama", tmp_path / "base")
    assert main(["export", str(base), "--out", str(tmp_path / "a"), "--push", "me/mine"]) == 0
    assert calls[0] == ("create", "me/mine", True) and "model.safetensors" in calls[1][2]
    capsys.readouterr()
    assert main(["export", str(base), "--out", str(tmp_path / "b"), "--push", "me/refused"]) == 2
    err = capsys.readouterr().err
    assert "is written, but could not be pushed to me/refused: 403 Forbidden\n" in err


def test_what_export_refuses(tmp_path, capsys):
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a", r=2)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"plan": {}, "model": str(base)}))
    out = ["--out", str(tmp_path / "out")]

    capsys.readouterr()

    def refused(*words: str) -> str:
        assert main(["export", *map(str, words)]) == 2
        assert not (tmp_path / "out").exists()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "is there already" in refused(base, "--out", base)
    assert "has left neither" in refused(run, *out)
    shutil.copytree(adapter, run / "adapter")
    assert "leave --adapter out" in refused(run, "--adapter", adapter, *out)
    assert "it is an adapter" in refused(adapter, *out)
    assert main(["export", str(run), *out]) == 0
    policy = load_policy(base, adapter=adapter)
    rollouts = some_rollouts(policy)
    merged = logps(load_policy(tmp_path / "out"), rollouts)
    assert np.abs(merged - logps(policy, rollouts)).max() < 0.3
    huge = tiny.policy(num_hidden_layers=1)
    with torch.no_grad():
        huge.model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    huge.model.save_pretrained(tmp_path / "huge")
    huge.tokenizer.save_pretrained(tmp_path / "huge")
    capsys.readouterr()
    assert (
        main(["export", str(tmp_path / "huge"), "--out", str(tmp_path / "h"), "--dtype", "fp16"])
        == 2
    )
    assert "not all finite in float16" in capsys.readouterr().err and not (tmp_path / "h").exists()
