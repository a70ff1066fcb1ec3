"""Processes that compare answers, each of which can be killed: a computer algebra system given
``10^{10^{10}}`` never comes back by itself.

    Pool("math").ask({"gold": "1/2", "given": "0.5"}) -> {"same": True}, or None when it took too
    long

Threads may ask at the same time. A process is started when one is needed and kept; none outlives
its parent by more than a job's time limit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

from workbench.core import WorkbenchError, refuse_if

# of processor time, for one job: a machine that is busy with something else changes no reward
SECONDS = 5.0
SLACK = 6.0  # times as long on the wall's clock; then it is killed whatever it is doing
TRIES = 2  # of a job whose process is killed by others
START = 120.0  # seconds that a process may take to be ready, on a machine with much else to do

# of the environment, for where libraries are; what else is there (tokens, keys) stays here
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR", "SYSTEMROOT")
# How a process ends that is out of time (``worker.timers``), and one that its job broke.
_TIMED_OUT = frozenset(["SIGPROF", "SIGALRM"])
_CRASHED = frozenset(["SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGSYS"])


class Pool:
    """At most as many processes as there are processors, each with one job at a time.

    ``kind``: the jobs, by their name in ``worker.KINDS``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Begin without processes.

        After a fork the child does so: the old ones are its parent's.
        """
        self._places = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._idle: list[subprocess.Popen] = []

    def ask(self, job: dict, seconds: float = SECONDS) -> dict | None:
        """What the worker says of the job; None when it was out of time (``seconds`` of processor
        time, or ``SLACK`` times as long in all); {"error": ...} when the job broke it.

        A process that others killed (a machine short of memory, somebody's ``kill``) has said
        nothing of the job: another is asked. Raises WorkbenchError if that is killed too, or if no
        process starts.
        """
        limits = [seconds, SLACK * seconds + 1]
        for _ in range(TRIES):
            with self._places:
                line, ended_by = self._try({**job, "limits": limits}, SLACK * seconds)
            if line.endswith("\n"):
                return self._reply(line)
            if ended_by in _TIMED_OUT:
                return None
            if ended_by in _CRASHED:
                return {"error": ended_by}
        raise WorkbenchError(
            f"the process that grades answers ({self.kind}) was killed from outside, "
            f"{TRIES} times ({ended_by}); is the machine short of memory?"
        )

    def _reply(self, line: str) -> dict:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        refuse_if(
            not isinstance(reply, dict),
            f"the process that grades answers ({self.kind}) made no sense",
        )
        return reply

    def _try(self, job: dict, wall: float) -> tuple[str, str]:
        """(the reply's line, how the process ended where there is none)"""
        worker = self._worker()
        late = threading.Event()
        killer = threading.Timer(wall, lambda: (late.set(), worker.kill()))
        killer.start()
        line = ""
        try:
            line = self._exchange(worker, job)
        finally:
            killer.cancel()
            killer.join()
            if line.endswith("\n") and not late.is_set() and worker.poll() is None:
                self._idle.append(worker)
            else:
                self._bury(worker)
        return line, "SIGALRM" if late.is_set() else _ending(worker.returncode)

    @staticmethod
    def _exchange(worker: subprocess.Popen, job: dict) -> str:
        try:
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line.endswith("\n"):  # it ends: how, is known only then
                worker.wait(timeout=SLACK)
            return line
        except (OSError, ValueError, subprocess.TimeoutExpired):  # it is dead
            return ""

    def _worker(self) -> subprocess.Popen:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return self._start()
            if worker.poll() is None:
                return worker
            self._bury(worker)  # died while it had nothing to do

    def _start(self) -> subprocess.Popen:
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from workbench.tasks.verify.worker "
            f"import main; main({self.kind!r})"
        )
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # A session of its own: Ctrl-C is for the parent, which ends its workers by closing their
        # standard input.
        worker = subprocess.Popen(
            [sys.executable, "-B", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        killer = threading.Timer(START, worker.kill)
        killer.start()
        line = worker.stdout.readline()
        killer.cancel()
        if line.strip() != "ready":
            self._bury(worker)
            raise WorkbenchError(
                f"the process that grades answers ({self.kind}) did not start: "
                f"{line.strip() or f'exit status {worker.returncode}'}"
            )
        return worker

    @staticmethod
    def _bury(worker: subprocess.Popen) -> None:
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(OSError):  # what was left to write has no reader
                pipe.close()

    def close(self) -> None:
        while self._idle:
            self._bury(self._idle.pop())


def _ending(status: int | None) -> str:
    """How a process ended: the signal's name, where one ended it."""
    if status is None or status >= 0:
        return f"exit status {status}"
    return signal.Signals(-status).name
