"""Processes that compare answers, each of which can be killed: a computer algebra system given
``10^{10^{10}}`` never comes back by itself.

    Pool("math").ask({"gold": "1/2", "given": "0.5"}) -> {"same": True}, or None when the process
    was killed or died

Threads may ask at the same time. A process is started when one is needed and kept; none outlives
its parent by more than a job's time limit.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import weakref

from workbench.core import WorkbenchError

# of processor time, for one job: a machine that is busy with something else changes no reward
SECONDS = 5.0
SLACK = 6.0  # times as long on the wall's clock; then it is killed whatever it is doing
START = 120.0  # seconds that a process may take to be ready, on a machine with much else to do

# of the environment, for where libraries are; what else is there (tokens, keys) stays here
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR", "SYSTEMROOT")

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """At most as many processes as there are processors, each with one job at a time.

    ``kind``: the jobs, by their name in ``worker.KINDS``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.forget()
        _pools.add(self)

    def forget(self) -> None:
        """Begin without processes.

        After a fork the child does so: the old ones are its parent's.
        """
        self._places = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._idle: list[subprocess.Popen] = []

    def ask(self, job: dict, seconds: float = SECONDS) -> dict | None:
        """What the worker says of the job; None when it was killed (after ``seconds`` of processor
        time, or ``SLACK`` times as long in all) or broke down.

        Raises WorkbenchError if no process starts.
        """
        with self._places:
            worker = self._worker()
            late = threading.Event()
            killer = threading.Timer(SLACK * seconds, lambda: (late.set(), worker.kill()))
            killer.start()
            try:
                line = self._exchange(worker, {**job, "limits": [seconds, SLACK * seconds + 1]})
            finally:
                killer.cancel()
                killer.join()
                ready = not late.is_set() and worker.poll() is None
                if not ready:
                    self._bury(worker)
            if not line.endswith("\n"):
                self._bury(worker)
                return None
            if ready:
                self._idle.append(worker)
            return json.loads(line)

    @staticmethod
    def _exchange(worker: subprocess.Popen, job: dict) -> str:
        try:
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
            return worker.stdout.readline()
        except (OSError, ValueError):  # it is dead
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
            try:
                pipe.close()
            except OSError:  # what was left to write has no reader
                pass

    def close(self) -> None:
        while self._idle:
            self._bury(self._idle.pop())


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [pool.forget() for pool in list(_pools)])
