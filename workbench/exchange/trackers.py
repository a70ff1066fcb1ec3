"""A run's metrics in TensorBoard, trackio or W&B as well: one writer, chosen by name.

    fit(method, learner, task, plan, out, writers=[Tracker("wandb", out)])
    workbench train grpo ... --log tensorboard --log trackio

TensorBoard's files are in the run's folder. trackio and W&B keep theirs where their own settings
say (``TRACKIO_DIR``, ``WANDB_MODE=offline``, ``WANDB_PROJECT``). A run that is resumed goes on
under the name that it was begun with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

from workbench.core import StepRecord, needed, refuse_if
from workbench.records import write_atomic

MODULES = {
    "tensorboard": "torch.utils.tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
PROJECT = "workbench"


class Tracker:
    """A writer for ``fit``. Raises WorkbenchError where the package is not installed."""

    def __init__(self, name: str, out: str | Path):
        refuse_if(
            name not in MODULES, f"there is no tracker {name!r}; there are {', '.join(MODULES)}"
        )
        self._module = needed(MODULES[name], f"{name} is not installed: pip install {name}")
        self.name, self.out = name, Path(out)
        self._run = None

    def write(self, record: StepRecord) -> None:
        """Add a step; the first opens the run: by now its folder has been checked."""
        if self._run is None:
            self._run = self._opened(record.step)
        if self.name != "tensorboard":
            self._run.log(dict(record.metrics), step=record.step)
            return
        for name, value in record.metrics.items():
            self._run.add_scalar(name, value, record.step)
        self._run.flush()

    def end(self) -> None:
        """The run ends, or is interrupted."""
        if self._run is not None:
            self._run.close() if self.name == "tensorboard" else self._run.finish()
            self._run = None

    def _opened(self, step: int):
        if self.name == "tensorboard":  # what came after the checkpoint is made again
            return self._module.SummaryWriter(str(self.out / "tensorboard"), purge_step=step)
        config = json.loads((self.out / "config.json").read_text(encoding="utf-8"))
        name = self._known_as(step)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        about = {"project": project, "name": name, "config": config, "resume": "allow"}
        if self.name == "trackio":
            return self._module.init(**about, embed=False)
        return self._module.init(**about, id=name, dir=str(self.out))

    def _known_as(self, step: int) -> str:
        """The folder's name and a few letters, kept beside the run until it is begun again."""
        path = self.out / f"{self.name}.txt"
        if step == 0 or not path.exists():
            write_atomic(path, f"{self.out.name}-{uuid4().hex[:6]}")
        return path.read_text(encoding="utf-8")
