"""workbench: see, compare and change how language models learn from their own mistakes.

Start at ``core.py`` (the nouns) and ``training.update`` (the loop). What notebooks use is here by
name, and is imported when it is first asked for: ``from workbench import GRPO, Learner, fit,
load_policy``.
"""

from importlib import import_module

_PLACES = {
    "workbench.training.update": ("update",),
    "workbench.model.learner": (
        "FrozenLearner",
        "OptimConfig",
        "Learner",
    ),
    "workbench.model.loading": ("load_policy",),
    "workbench.core": (
        "Batch",
        "Credit",
        "Group",
        "Loss",
        "Method",
        "Problem",
        "Rollout",
        "Scores",
        "Task",
        "Verdict",
        "WorkbenchError",
    ),
    "workbench.paths": ("DATA", "ORGANISM", "RECORDS", "ROOT"),
    "workbench.spans": ("Spans",),
    "workbench.records": ("read_run",),
    "workbench.model.policy": ("Policy",),
    "workbench.model.batch": ("collate", "rescore", "score"),
    "workbench.tasks": ("load_task",),
    "workbench.evaluation.metrics": ("evaluate",),
    "workbench.rollouts.sampling": ("generate", "sample_groups"),
    "workbench.exchange.external": ("load_rollouts",),
    "workbench.methods.grpo": ("GRPO",),
    "workbench.methods.kd": ("KD",),
    "workbench.methods.luffy": ("LUFFY",),
    "workbench.methods.opd": ("OPD",),
    "workbench.methods.scope": ("SCOPE",),
    "workbench.methods.sdpo": ("SDPO",),
    "workbench.methods.sft": ("SFT",),
    "workbench.methods.tapo": ("TAPO",),
    "workbench.methods.trapo": ("TRAPO",),
    "workbench.app.colab": ("setup",),
    "workbench.app.choices": ("choose",),
    "workbench.training.run": (
        "TrainConfig",
        "fit",
    ),
    "workbench.exchange.trackers": ("Tracker",),
    "workbench.inspection.readings": (
        "inspect_group",
        "token_stats",
    ),
    "workbench.inspection.credit": (
        "realised_credit",
        "comparable_rollouts",
        "credit_by_method",
    ),
    "workbench.inspection.locators": ("Divergence", "locate"),
    "workbench.corrections.replay": ("Replay", "WithCorrections"),
    "workbench.exchange.export": ("as_dataset", "export_corrections", "export_groups"),
    "workbench.viz.tokens": ("Channel",),
    "workbench.viz.html": ("group_html",),
    "workbench.viz.answers": ("answers_html",),
    "workbench.viz.live": ("LiveRun",),
    "workbench.viz.run_view": ("RunView",),
    "workbench.viz.view": ("TokenView",),
    "workbench.viz.composer": ("Composer",),
    "workbench.viz.png": ("credit_columns",),
    "workbench.viz.curves": ("learning_curves",),
    "workbench.viz.comparison": ("bands", "forest"),
}
_PLACE = {name: module for module, names in _PLACES.items() for name in names}
__all__ = sorted(_PLACE)


def __getattr__(name: str):
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
