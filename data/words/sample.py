"""Makes sample.jsonl: what the warm start writes on a few validation problems, a group a line.

    python -m data.words.sample

For the notebooks, which read English attempts without minutes of sampling.
"""

from __future__ import annotations

from workbench.model.loading import load_policy
from workbench.paths import DATA
from workbench.records import dumps, group_to_dict, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.tasks import load_task

SAMPLE = DATA / "words" / "sample.jsonl"


def main() -> None:
    policy = load_policy("smollm2", adapter=DATA / "words" / "warm", frozen=True)
    task = load_task("words")
    groups = sample_groups(policy, task, task.problems("validation", 6, 0), 8, (0, "sample"))
    write_atomic(SAMPLE, "".join(dumps(group_to_dict(group)) + "\n" for group in groups))


if __name__ == "__main__":
    main()
