"""The command line: a thin face on the package.

Each command is a module with ``add_arguments(parser)`` and ``main(args)``, imported when it is
asked for. Bad input is one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module

from workbench.core import Interrupted, WorkbenchError, printable, refuse_if

COMMANDS = {  # in which module it is, and what it does
    "tour": (
        "workbench.app.tour",
        "Watch the embedded model learn by GRPO, and read the page that it leaves.",
    ),
    "train": (
        "workbench.app.train",
        "Train a model with a method on a task; leaves a run directory.",
    ),
    "eval": (
        "workbench.app.evaluate",
        "Measure avg@k, pass@k, length and an interval on held-out problems.",
    ),
    "compare": ("workbench.app.compare", "Put runs side by side."),
    "rollouts": (
        "workbench.app.rollouts",
        "Look at rollouts from elsewhere (TRL, verl, prime-rl, your own file), and hand them on.",
    ),
    "export": (
        "workbench.app.export",
        "Write a policy as one plain model in 16 bits, its adapter merged; GGUF, hub.",
    ),
    "study": (
        "workbench.studies.grid",
        "Make the comparison's runs: every method, several seeds; what is there already is kept.",
    ),
    "cold-start": (
        "workbench.app.cold_start",
        "Teach a policy TAPO's format on lessons that it writes itself.",
    ),
    "discover": (
        "workbench.studies.discovery",
        "Test-time self-distillation on hard questions, beside best-of-k and multi-turn.",
    ),
    "reflection": (
        "workbench.evaluation.reflection",
        "Measure how often a policy reflects, and what comes of it: DSR, ERR, recovery.",
    ),
    "locators": (
        "workbench.studies.locator_table",
        "Failure-point locators against the task's truth.",
    ),
    "credit": (
        "workbench.studies.credit_table",
        "How right each method's number on a token is: its credit against the true one.",
    ),
    "lead": (
        "workbench.studies.teacher_lead",
        "Will self-distillation work here? How much better the policy is when it reads the hint.",
    ),
    "rescue": (
        "workbench.studies.teacher_rescue",
        "How often a teacher completes a wrong attempt's beginning correctly.",
    ),
    "claims": (
        "workbench.studies.claims",
        "What the papers claim, and what the records say of it.",
    ),
    "doctor": (
        "workbench.app.doctor",
        "Report the environment, and which parts will work here; with --model, on which GPU a "
        "training step will fit.",
    ),
}
# what tasks/sandbox/outside.py and its processes look for
NO_EXECUTE = "WORKBENCH_NO_EXECUTE"
TOGETHER = ("train", "eval")  # what torchrun may start in several processes
LAST_CHECKPOINT = "interrupted; a training run goes on from its last checkpoint with --resume"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, printable(f"{self.prog}: {message}; {self.prog} --help says more\n"))


def parser(words: Sequence[str]) -> Parser:
    """The parser for a command line; of its commands only the one that is asked for has its
    arguments.
    """
    top = Parser(
        "workbench",
        description="See, compare and change how language models learn from their own mistakes.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in words[:1]:
            import_module(module).add_arguments(command)
            command.add_argument(
                "--no-execute",
                action="store_true",
                help="run no program that a model wrote: tasks that need it are refused "
                f"(also: {NO_EXECUTE}=1)",
            )
    return top


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    args = parser(words).parse_args(words)
    module, _ = COMMANDS[args.command]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch, which distributed.py needs, takes a second to import
    together = os.environ.get("WORLD_SIZE", "1") != "1"
    executes_nothing = os.environ.get(NO_EXECUTE, "")
    try:
        refuse_if(
            together and args.command not in TOGETHER,
            f"workbench {args.command} runs in one process: start it without torchrun",
        )
        if args.no_execute:
            os.environ[NO_EXECUTE] = "1"
        with _terminated_in_a_sentence(), redirect_stdout(_Printable(sys.stdout)):
            import_module(module).main(args)
    except WorkbenchError as error:
        _say(str(error), together)
        return 2
    except KeyboardInterrupt as stop:
        _say(str(stop) or LAST_CHECKPOINT, together)
        return 128 + getattr(stop, "number", signal.SIGINT)
    finally:
        os.environ[NO_EXECUTE] = executes_nothing
    return 0


def _say(sentence: str, together: bool) -> None:
    """On stderr; of several processes the first that ends says why."""
    if together:
        from workbench.model import distributed

        if not distributed.first_to_fail():
            return
    print(f"workbench: {printable(sentence)}", file=sys.stderr)


class _Printable:
    """A stream in which words of files are words: a terminal obeys none of them."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextmanager
def _terminated_in_a_sentence() -> Iterator[None]:
    def interrupt(number, frame):
        raise Interrupted(LAST_CHECKPOINT, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
