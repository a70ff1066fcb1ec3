"""Files that would hang, flood or break whoever reads them: each is one sentence, soon, in bounded
memory.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from base64 import b64encode
from pathlib import Path

import pytest

from workbench.core import WorkbenchError
from workbench.tasks import load_task, loading

ROOT = Path(__file__).parents[2]
GOOD = b'{"question": "1+1?", "answer": 2}\n'
MEMORY = 700 << 20  # bytes of address space over what the imports take
SOON = 60.0  # seconds, on a machine that does much else
POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")

PROBE = """
import resource, sys
from workbench.tasks import load_task, math, code, mcq, tools
from workbench.core import WorkbenchError
if sys.platform == "linux":
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + {memory}, -1))
try:
    load_task({name!r})
except WorkbenchError as error:
    print(error)
"""


def said(name: str) -> str:
    """What a process of little memory and time says of a task's name."""
    program = PROBE.format(memory=MEMORY, name=name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=SOON,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr[-2000:]
    return done.stdout


def refused(name: str) -> str:
    with pytest.raises(WorkbenchError) as caught:
        load_task(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 6000
    return sentence


# --- what is no file ------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def random_bytes(path: Path) -> None:
    path.symlink_to("/dev/urandom")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def loop_of_two(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("none")


def under_a_file(path: Path) -> None:
    path.write_bytes(GOOD)


NO_FILES = [pipe, link_to_a_pipe, endless, random_bytes, folder, loop, loop_of_two, nowhere]


@POSIX
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.jsonl.gz", "p.parquet"])
def test_what_is_no_file_is_not_waited_for(make, name, tmp_path):
    make(tmp_path / name)
    sentence = refused(f"math:{tmp_path / name}")
    assert sentence.startswith(f"could not read the problem file {tmp_path / name}: ")


@POSIX
@pytest.mark.parametrize("form", ["{}", "math:{}", "mcq:{}", "tools:{}", "code:{}"])
def test_no_task_waits_for_a_pipe(form, tmp_path):
    pipe(tmp_path / "p.jsonl")
    assert "it is a pipe or a device, not a file" in refused(form.format(tmp_path / "p.jsonl"))


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 5000 + ".jsonl", "\udcff/none.jsonl"])
def test_a_name_that_no_file_has(name):
    assert "could not read the problem file" in refused(name)


def test_a_path_through_a_file(tmp_path):
    (tmp_path / "p").write_bytes(GOOD)
    assert "could not read the problem file" in refused(str(tmp_path / "p" / "q.jsonl"))


# --- what is too much -----------------------------------------------------------------------------


MB = 1 << 20
# in gzip files of many members: so many bytes before, a block again and again, and after
BOMBS = {
    "zeros": (b"", bytes(MB), 2400, b""),
    "blank lines": (b"", b"\n" * MB, 1500, b""),
    "records": (b"", GOOD * (1 << 15), 150, b""),
    "brackets": (b'{"answer": 1, "question": [', b"[],{}," * (1 << 17), 400, b"0]}\n"),
    "small lists": (b"", b"[]\n" * (1 << 18), 400, b""),
    "one text": (b'{"answer": 1, "question": "', b"x" * MB, 1000, b'"}\n'),
    "emoji": (b'{"answer": 1, "question": "', "😀".encode() * (MB // 4), 300, b'"}\n'),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.json.GZ"])
def test_a_bomb_does_not_go_off(bomb, name, tmp_path):
    before, block, times, after = BOMBS[bomb]
    data = gzip.compress(before) + gzip.compress(block, 9) * times + gzip.compress(after)
    (tmp_path / name).write_bytes(data)
    assert len(data) < 8 * MB
    assert "p.json" in said(f"math:{tmp_path / name}")


def test_a_small_bomb_does_not_go_off(tmp_path, monkeypatch):
    """The same with small bounds, in no time."""
    monkeypatch.setattr(loading, "UNPACKED", 1 << 16)
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b'{"question": "' + b"x" * (1 << 18) + b'"}\n', 9))
    assert "line 2 is too much" in refused(f"math:{path}")
    path.write_bytes(gzip.compress(GOOD + b"[" + b"[]," * 10_000 + b"0]\n", 9))
    assert "line 2 is mostly brackets and numbers, and too many of them" in refused(f"math:{path}")
    path.write_bytes(gzip.compress(b"[]\n" * 10_000))
    assert "mostly brackets" in refused(f"mcq:{path}") or "line" in refused(f"mcq:{path}")
    path.write_bytes(gzip.compress(GOOD))
    assert len(load_task(f"math:{path}")._problems) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("p.jsonl", 3 << 29), ("p.json", 3 << 29)])
def test_a_file_of_holes(name, size, tmp_path):
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)
    assert "p.json" in said(f"math:{tmp_path / name}")


def test_a_file_that_is_too_large(tmp_path):
    for name in ("p.jsonl", "p.json", "p.jsonl.gz", "p.parquet"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
        assert "it is larger than 2 GB" in refused(f"math:{tmp_path / name}")


def record_with(private: bytes) -> str:
    columns = {"question_id": "a", "question_content": "b", "public_test_cases": "[]"}
    return json.dumps({**columns, "private_test_cases": b64encode(private).decode()})


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [b"\0", b"[],", b'"",'])
def test_a_record_that_unpacks_to_gigabytes(pattern, tmp_path):
    packer = zlib.compressobj(1)
    private = packer.compress(b"\x80\x04X\x00\x00\x00\x7f[")
    for _ in range(300):
        private += packer.compress(pattern * MB)
    (tmp_path / "p.jsonl").write_text(record_with(private + packer.flush()))
    assert "line 1 cannot be read" in said(f"code:{tmp_path / 'p.jsonl'}")


@pytest.mark.parametrize(
    "line",
    [
        b'{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b', "answer": 1}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 1_000_000,
        b'{"question": "a", "answer": ' + b"9" * 100_000 + b"}",
        b'{"question": "a", "answer": 1e' + b"9" * 100_000 + b"}",
        b'{"question": "' + b"\\" * 100_001,
        b'"' * 1_000_001,
    ],
    ids=["lists", "objects", "brackets", "number", "exponent", "backslashes", "quotes"],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_deep_and_long_lines(line, name, tmp_path):
    (tmp_path / name).write_bytes(GOOD + line + b"\n")
    sentence = refused(f"math:{tmp_path / name}")
    assert "line 2" in sentence


# --- what is no text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, message",
    [
        (b'{"question": "\xff", "answer": 1}', "line 2: byte 0xff at column 15 is not UTF-8"),
        (b'{"question": "\xc0\xaf", "answer": 1}', "line 2: byte 0xc0 at column 15"),
        (b'{"question": "\xed\xa0\x80", "answer": 1}', "line 2: byte 0xed at column 15"),
        (b'{"question": "\xe9t\xe9", "answer": 1}', "line 2: byte 0xe9 at column 15"),
        (b'{"question": "a\0b", "answer": 1}', "line 2 is not JSON"),
        (b"\0" * 1000, "line 2 is not JSON"),
        (b"\xef\xbb\xbf" + GOOD, "line 2 is not JSON"),
        (b"\x1f\x8b\x08\0\0\0", "line 2: byte 0x8b"),
        (b"PAR1\x15\x04", "line 2 is not JSON"),
        (b"\x93NUMPY\x01", "line 2: byte 0x93"),
        (b"<html><script>alert(1)</script>", "line 2 is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "line 2 is not JSON"),
        (b"question,answer", "line 2 is not JSON"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "math:{}", "mcq:{}", "tools:{}", "code:{}"])
def test_bytes_that_are_no_text_are_named_with_their_line(form, data, message, tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\n" + data + b"\n")
    sentence = refused(form.format(tmp_path / "p.jsonl"))
    assert message in sentence and "p.jsonl" in sentence and sentence.isprintable()


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused(codec, tmp_path):
    (tmp_path / "p.jsonl").write_bytes(GOOD.decode().encode(codec))
    assert "line 1" in refused(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD * 2,
        GOOD.replace(b"\n", b"\r\n") * 2,
        b"\n\r\n  \n\t\n" + GOOD * 2 + b"\n\n",
        (GOOD * 2).rstrip(b"\n"),
        (b'{"question": "a\xe2\x80\xa8b", "answer": 1}\n') * 2,
        (b'{"question": "\\ud83d\\ude00", "answer": 1}\n') * 2,
    ],
    ids=["mark", "CRLF", "blank lines", "no last end", "U+2028", "a pair"],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.jsonl.gz"])
def test_what_is_odd_and_right_is_read(data, name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert len(loading.read(str(tmp_path / name))) == 2


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(GOOD)[:-4],
        gzip.compress(GOOD)[:20],
        gzip.compress(GOOD)[:-8] + bytes(8),
        gzip.compress(GOOD) + b"rubbish",
        GOOD,
        b"\x1f\x8b",
    ],
    ids=["no length", "half", "another sum", "rubbish after it", "not packed", "a head"],
)
def test_damaged_gzip(data, tmp_path):
    (tmp_path / "p.jsonl.gz").write_bytes(data)
    assert "p.jsonl.gz" in refused(f"math:{tmp_path / 'p.jsonl.gz'}")


# --- parquet --------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict, **options) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return f"math:{path}"


def test_nested_columns(tmp_path):
    path = tmp_path / "p.parquet"
    nested = [{"text": "1+1?"}]
    assert "record 1 has a question" in refused(parquet(path, {"question": nested, "answer": [1]}))
    assert "record 1 has an answer" in refused(parquet(path, {"question": ["a"], "answer": [[1]]}))
    messages = [[{"role": "user", "content": "1+1?"}]]
    truth = [{"ground_truth": "2", "style": "rule"}]
    [problem] = load_task(parquet(path, {"prompt": messages, "reward_model": truth}))._problems
    assert problem.answer == "2" and problem.messages[0]["content"] == "1+1?"


@pytest.mark.parametrize("answer", [True, None, float("nan"), float("inf"), b"2"])
def test_values_of_parquet_that_are_no_answers(answer, tmp_path):
    name = parquet(tmp_path / "p.parquet", {"question": ["a"], "answer": [answer]})
    assert "record 1 has " in refused(name)


def test_text_of_parquet_that_is_no_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    text = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    name = parquet(tmp_path / "p.parquet", {"question": text, "answer": [1, 2]})
    assert "could not read the problem file" in refused(name)


def test_a_date_out_of_range(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    dates = pyarrow.array([2**60], pyarrow.timestamp("ms"))
    name = parquet(tmp_path / "p.parquet", {"question": ["a"], "answer": ["1"], "day": dates})
    assert "could not read the problem file" in refused(name)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_damaged_parquet(data, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(data)
    assert "could not read the problem file" in refused(f"math:{tmp_path / 'p.parquet'}")


@pytest.mark.slow
def test_a_column_of_one_value_written_in_a_few_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    words = pyarrow.DictionaryArray.from_arrays([0] * 2_000_000, ["x" * 1000])
    table = pyarrow.table({"question": words, "answer": pyarrow.array([1] * 2_000_000)})
    writer.write_table(table, tmp_path / "p.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "p.parquet").stat().st_size < 1 << 20
    assert "unpacks to more" in said(f"math:{tmp_path / 'p.parquet'}")


# --- dials ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "arithmetic:steps=５",
        "arithmetic:steps=٣",
        "arithmetic:largest=９９",
        "math:{},max_new=１２",
        "math:{},max_new=1２",
        "code:{},seconds=２.５",
        "{}:max_new=６４",
        "{}:max_new=-1",
        "{}:max_new=1e3",
        "math:{},max_new=nan",
        "code:{},seconds=inf",
        "code:{},seconds=nan",
        "code:{},seconds=-1",
        "code:{},memory_mb=0",
        "mcq:{},split=ｔｅｓｔ",
    ],
)
def test_dials_that_are_no_numbers(name, tmp_path):
    (tmp_path / "p.jsonl").write_bytes(GOOD)
    refused(name.format(tmp_path / "p.jsonl"))
