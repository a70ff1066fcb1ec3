"""The teacher of the second study's block 11: the organism's teacher, trained on larger numbers.

    python -m data.organism.build.teacher_26        some five minutes of one core

The teacher that arithmetic.py makes learns with numbers up to 20, and with numbers up to 26 it is
right about every second time. This one has read 100 x 64 solutions of such problems more, of the
training split. It is measured with the study: `workbench study --only base`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from data.organism.build.common import save
from workbench.methods.sft import SFT
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.paths import ORGANISM
from workbench.studies.arms import TASK
from workbench.tasks import load_task
from workbench.training.run import TrainConfig, fit

PLAN = TrainConfig(steps=100, prompts=64, seed=0, eval_every=50, eval_problems=200)
OPTIMIZER = OptimConfig(lr=3e-4, warmup=10, schedule="cosine")


def main(out: Path = ORGANISM / "teacher-26") -> None:
    torch.set_num_threads(1)
    policy = load_policy(ORGANISM / "teacher")
    with tempfile.TemporaryDirectory() as work:
        fit(SFT(), Learner(policy, OPTIMIZER), load_task(TASK), PLAN, Path(work) / "run")
        trained = load_policy(Path(work) / "run" / "model")
        save(trained.model, trained.tokenizer, out)


if __name__ == "__main__":
    main()
