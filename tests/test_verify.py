"""Final answers: found as a person would, compared exactly or by algebra, and nothing that a model
writes can hang or break the comparison.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workbench.core import WorkbenchError
from workbench.tasks import verify
from workbench.tasks.verify import check_gold, compare, final_answer, grade
from workbench.tasks.verify.answers import same as is_same
from workbench.tasks.verify.pool import Pool

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real records (../shared/data) are not here"
)
algebra = pytest.mark.skipif(
    not verify.find_spec("math_verify"), reason="math-verify is not installed"
)


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a} and \boxed{b{c}d}", "b{c}d"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{} so 4", "4"),
        (r"} \boxed{3} {", "3"),
        ("**Answer:** 12", "12"),
        ("**Final Answer: 12**", "12"),
        ("The answer is 5. It was easy to find 2.", "5"),
        ("The answer is $\\frac12$.", "$\\frac12$."),
        ("The answer is 3.5.", "3.5."),
    ],
)
def test_the_answer_is_found(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "gold, given, same",
    [
        (r"\frac{3}{2}", "1.5", True),
        (r"\frac32", r"\dfrac{3}{2}", True),
        (r"-\frac{1}{2}", "-0.5", True),
        (r"\frac{1}{3}", "0.333", False),
        ("18", "18 dollars", True),
        ("18", "18 eggs per day", True),
        ("5", "5 million", False),
        ("5", "5 or 6", False),
        (r"10 \text{ inches}", "10", True),
        ("10 cm", "10 inches", False),
        (r"90^\circ", "90", True),
        (r"\text{Evelyn}", "evelyn", True),
        ("east", "seat", False),
        ("east", "E", False),
        ("p - q", "p-q", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"11\sqrt2", r"11\sqrt{2}", True),
        ("1{,}000", "1000", True),
        ("\u22125", "-5", True),
        ("7", "", False),
        ("2", "2" * 3000, False),
        ("52_8", "52_9", False),
        ("52_8", "52_{8}", True),
        ("p - q", "-q + p", None),
        ("5", "x=5", True),
        (r"50\%", "0.5", True),
        ("3 4", "34", None),
        ("1/0", "0", None),
        ("18", "36/2 + 0", None),
    ],
)
def test_what_takes_no_algebra(gold, given, same):
    asked = []  # of the algebra, which says no
    verdict = is_same(gold, given, lambda *pair: asked.append(pair))
    assert (None if asked else verdict) is same


@algebra
@pytest.mark.parametrize(
    "gold, given, same",
    [
        ("p - q", "-q + p", True),
        ("5", "x=5", True),
        ("x=5", "5", True),
        (r"50\%", "0.5", True),
        ("1,-2", "-2,1", True),
        (r"\{2,3\}", "3,2", True),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}", True),
        ("6 - 5i", "-5i+6", True),
        ("2k+2", "2(k+1)", True),
        (r"\cot x", r"\frac{\cos x}{\sin x}", True),
        ("p - q", "q - p", False),
        ("5", "x=6", False),
        ("[1,2)", "(1,2]", False),
        ("(3,1)", "(1,3)", False),
        ("2k+2", "2k", False),
        ("18", "5, because 18", False),
    ],
)
def test_what_takes_algebra(gold, given, same):
    verdict = compare(gold, given)
    assert verdict.same == same and verdict.how in ("exact", "math-verify")


HOSTILE = {
    "braces": "{" * 100_000,
    "boxes": r"\boxed{" * 100_000,
    "closed boxes": r"\boxed{" * 50_000 + "1" + "}" * 50_000,
    "nul": "Answer: \x00\x00",
    "surrogate": "Answer: \ud800",
    "megabytes": "x" * 5_000_000,
    "digits": "1" * 1_000_000,
    "digits and a sign": "1" * 99_999 + "!",
    "blanks": "Answer:" + " " * 99_000,
    "markers": "####" * 25_000,
    "answers": "answer " * 20_000,
    "backslashes": "\\" * 99_999,
    "lines": "Answer:\n" * 12_000,
    "commas": "1," * 50_000,
    "text": r"\boxed{" + r"\text{" * 16_000 + "}" * 16_001,
    "dollars": "Answer: " + "$" * 90_000,
    "fractions": r"\boxed{" + r"\frac" * 400 + "}",
    "dots": "answer is " + ". " * 49_000,
    "blanks in a box": r"\boxed{5" + " " * 1200 + "x}",
    "lines in a box": r"\boxed{5" + "\n" * 1200 + "x}",
    "stars": "Answer: x " + "*" * 1200 + " 5",
    "taken back": r"\boxed{4}. Wait, no, it is 5" + " " * 90_000 + "x",
    "metres": r"\boxed{" + "5 m " * 490 + "}",
    "feet": r"\boxed{" + "5 feet " * 280 + "}",
    "one digit after another": r"\boxed{4} or so " + "1" * 90_000 + " =",
    "digits and blanks": r"\boxed{4} or so " + "1" * 40_000 + " " * 40_000 + "=",
    "bold answers": "answer" + "*" * 90_000,
    "alternatives": r"\boxed{4}" + ". " * 45_000 + "or",
    "conditions": "if " * 33_000 + "answer is 5",
    "and": r"\boxed{and}",
    "words": "Answer: " + "**is** " * 14_000,
    "code": r"\boxed{__import__('os').system('touch hacked')}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_graded_wrong_soon(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    verdict = grade("18", text)
    assert (
        not verdict.correct
        and verdict.reward == 0
        and verdict.feedback.encode()
        and len(verdict.feedback) < 400
    )
    assert time.process_time() - started < 3 and not list(tmp_path.iterdir())


# an integral that sympy looks for in vain
HANGS = {"gold": "x", "given": r"\int \sqrt{x^7+\sin x} dx"}


@algebra
def test_a_hung_comparison_is_killed_and_the_pool_goes_on():
    pool = Pool("math")
    assert pool.ask({"gold": "1/2", "given": "0.5"}) == {"same": True}
    [first] = pool._idle
    started = time.monotonic()
    assert pool.ask(HANGS, seconds=0.5) is None
    # that very process is dead
    assert time.monotonic() - started < 60 and first.poll() is not None and not pool._idle
    assert pool.ask({"gold": "1/2", "given": "0.5"}) == {"same": True}
    pool._idle[0].kill()
    pool._idle[0].wait()
    # one that died while idle is replaced
    assert pool.ask({"gold": "1/2", "given": "0.25"}) == {"same": False}
    [last] = pool._idle
    pool.close()
    assert last.poll() is not None


@algebra
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_others_kill_is_asked_again_and_then_an_error(monkeypatch, sign):
    pool = Pool("math")
    monkeypatch.setattr(verify, "_math", pool)
    exchange, victims = Pool._exchange, []

    def killed_first(worker, job):
        if len(victims) < deaths:
            victims.append(worker)
            worker.send_signal(sign)
        return exchange(worker, job)

    monkeypatch.setattr(Pool, "_exchange", staticmethod(killed_first))
    compare.cache_clear()
    deaths = 1
    assert grade("x+1", r"\boxed{1+x}").correct and len(victims) == 1
    deaths = 3
    with pytest.raises(WorkbenchError, match="was killed from outside, 2 times"):
        grade("x+2", r"\boxed{2+x}")
    deaths = 0
    assert grade("x+2", r"\boxed{2+x}").correct  # nothing wrong was remembered
    pool.close()


@algebra
def test_a_job_that_breaks_its_process_is_no_error(monkeypatch):
    pool = Pool("math")
    exchange = Pool._exchange

    def crashes(worker, job):
        worker.send_signal(signal.SIGSEGV)
        return exchange(worker, job)

    monkeypatch.setattr(Pool, "_exchange", staticmethod(crashes))
    assert pool.ask({"gold": "x", "given": "y"}) == {"error": "SIGSEGV"}
    pool.close()


@algebra
def test_a_killed_comparison_counts_as_wrong_and_says_so(monkeypatch):
    class Dead:
        def ask(self, job):
            return None

    monkeypatch.setattr(verify, "_math", Dead())
    verdict = grade("18", r"\boxed{10^{10^{10^{10}}}}")
    assert (verdict.reward, verdict.correct, verdict.parts) == (
        0.0,
        False,
        {"killed": 1.0},
    ) and "took more than 5 seconds" in verdict.feedback


@algebra
def test_threads_may_ask_at_the_same_time():
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(
                lambda i: compare(f"x+{i}", f"{i}+x" if i % 2 else f"{i}-x").same, range(40)
            )
        )
    assert found == [bool(i % 2) for i in range(40)]
    assert len(verify._math._idle) <= (os.cpu_count() or 1)


@algebra
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_processes_of_its_own():
    compare("a+b", "b+a")
    [*before] = verify._math._idle
    child = os.fork()
    if child == 0:
        os._exit(int(bool(verify._math._idle)))
    assert (
        os.waitpid(child, 0)[1] == 0
        and verify._math._idle == before
        and all(worker.poll() is None for worker in before)
    )


@algebra
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_no_process_outlives_its_parent():
    program = (
        "import os, sys; from workbench.tasks.verify.pool import Pool; p = Pool('math'); "
        "p.ask({'gold': 'x', 'given': 'x+0'}); "
        "print(p._idle[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    status = Path(f"/proc/{int(done.stdout)}/status")
    deadline = time.monotonic() + 20
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or "zombie" in status.read_text()


@algebra
def test_unreadable_gold_names_its_record():
    for gold in ("18", "1,000", r"\frac{1}{2}", "blue whale", "\u6771", r"x \in [1,2]", "p - q"):
        check_gold("file, line 1", gold)
    for gold in ("}{", r"\frac{}{}", "[", "x" * 3000 + "^2", "?!"):
        with pytest.raises(WorkbenchError, match=r"^file, line 7 has the answer .* cannot be read"):
            check_gold("file, line 7", gold)


def test_without_math_verify_numbers_and_words_are_graded_and_the_rest_is_said_once(monkeypatch):
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    compare.cache_clear()
    assert (
        compare("18", "18.0").same and not compare("18", "19").same and compare("blue", "Blue").same
    )
    check_gold("r", "18"), check_gold("r", "blue whale")
    with pytest.warns(UserWarning, match="math-verify is not installed"):
        assert compare("18", "9+9") == (False, "no math-verify")
    with pytest.raises(
        WorkbenchError, match="r has the answer 'x\\^2', which only math-verify can compare"
    ):
        check_gold("r", "x^2")
    compare.cache_clear()


def test_a_process_that_does_not_start_is_one_sentence(monkeypatch):
    with pytest.raises(WorkbenchError, match=r"did not start: KeyError: 'no such kind'$"):
        Pool("no such kind").ask({})
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(WorkbenchError, match=r"did not start: exit status 1$"):
        Pool("math").ask({})


# --- real records ---------------------------------------------------------------------------------


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


@needs_data
def test_the_600_labelled_solutions_are_graded_as_labelled():
    """Agreement 600 of 600: no exception to list."""
    graded = [
        (row, name, grade(final_answer(row["ground_truth"]), row[name]["solution"]).correct)
        for row in lines("gsm8k_graded_solutions_150.jsonl")
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    ]
    assert len(graded) == 600
    assert [
        (name, row["question"])
        for row, name, correct in graded
        if correct != row[name]["is_correct"]
    ] == []
    assert sum(correct for *_, correct in graded) == sum(
        row[name]["is_correct"] for row, name, _ in graded
    )


@needs_data
@algebra
def test_math500_answers_are_readable_and_equal_themselves_but_not_each_other():
    golds = list(dict.fromkeys(row["answer"] for row in lines("math500_100.jsonl")))
    for gold in golds:
        check_gold("math500", gold)
    assert all(compare(gold, gold) == (True, "exact") for gold in golds)
    assert not [(a, b) for a, b in itertools.pairwise(golds) if compare(a, b).same]
    assert all(grade(row["answer"], row["solution"]).correct for row in lines("math500_100.jsonl"))


@pytest.mark.parametrize("line", ["1\n", "[]\n", "null\n", "{\n", "1.0} {\n"])
def test_a_reply_that_is_no_object_is_one_sentence(line, monkeypatch):
    pool = Pool("math")
    monkeypatch.setattr(pool, "_try", lambda job, wall: (line, ""))
    with pytest.raises(WorkbenchError, match="made no sense"):
        pool.ask({"gold": "1", "given": "1"})
