"""``workbench rollouts``: look at rollouts that somebody else wrote, and hand them on.

workbench rollouts completions/ --model MODEL                     what is in it
workbench rollouts mine.jsonl --model MODEL --html page.html      tokens, credit, failure points
workbench rollouts runs/check --model MODEL --to dpo --out dpo.jsonl
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from workbench.app.arguments import add, positive, switch
from workbench.core import Group, WorkbenchError, first_line, refuse_if

READERS = {
    "--model": {"required": True, "metavar": "MODEL", "help": "whose tokenizer, and who reads"},
    "--task": {"metavar": "NAME", "help": "what grades them, where the file has no rewards"},
}
PAGE = {
    "--html": {"type": Path, "metavar": "F", "help": "write a page with the first groups"},
    "--groups": {"type": positive, "default": 4, "help": "how many of them"},
    "--methods": {"default": "grpo,sdpo", "help": "whose credit the page shows"},
}
EXPORT = {
    "--locators": switch("score the failure-point locators on the steps that the file labels"),
    "--to": {"metavar": "FORM", "help": "sft, completions, tokens, dpo, verl or groups"},
    "--out": {"type": Path, "metavar": "F", "help": "where to: a .jsonl or .parquet file"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help=".jsonl, .parquet, or a folder")
    for arguments in (READERS, PAGE, EXPORT):
        add(parser, arguments)


def main(args: argparse.Namespace) -> None:
    from workbench.exchange.export import export_groups
    from workbench.exchange.external import load_rollouts
    from workbench.model.loading import load_policy
    from workbench.records import refuse_unwritable
    from workbench.tasks import load_task

    refuse_if(
        (args.to is None) != (args.out is None),
        "--to and --out go together: the form, and the file to write",
    )
    for path in filter(None, (args.html, args.out)):
        refuse_unwritable(path)
    task = load_task(args.task) if args.task else None
    policy = load_policy(args.model, frozen=True)
    groups = load_rollouts(args.file, policy, task)
    print(summary(groups))
    if args.html:
        _write_page(args, policy, groups)
    if args.locators:
        print(scores(policy, groups))
    if args.out:
        print(f"{export_groups(groups, args.out, args.to, policy)} rows in {args.out}")


def summary(groups) -> str:
    """One line: how many, and how they were judged."""
    marks = Counter(r.verdict.mark for group in groups for r in group.rollouts)
    return (
        f"{len(groups)} questions, {sum(marks.values())} rollouts: {marks['✓']} right, "
        f"{marks['✗']} wrong, {marks['?']} of unknown verdict"
    )


def scores(policy, groups) -> str:
    """A table: how often each locator names the step that people labelled as the first wrong one.

    Raises WorkbenchError where no attempt has such a label.
    """
    from workbench.inspection.locators import (
        Case,
        Chance,
        Divergence,
        SteepestDrop,
        SustainedNegative,
        Truth,
    )
    from workbench.inspection.readings import inspect_group
    from workbench.studies.locator_table import MEASURES, score
    from workbench.viz.page import plain_table

    cases = []
    for group in groups:
        errors = [groups.task.first_error(group.problem, r.text) for r in group.rollouts]
        if any(errors):
            inspection = inspect_group(policy, group, groups.task)
            wrong = [i for i, error in enumerate(errors) if error is not None]
            cases += [Case(inspection, i, policy.decode) for i in wrong]
    refuse_if(not cases, "--locators needs steps that are labelled, and no attempt has any")
    truths, rows = Truth().locate(cases), []
    for locator in (SteepestDrop(), SustainedNegative(), Divergence(), Chance()):
        rates = score(locator.locate(cases), truths)
        cells = ["{:.1%} [{:.1%}, {:.1%}]".format(*rates[measure]) for measure in MEASURES]
        rows.append([locator.name, *cells])
    text = plain_table(["locator", *MEASURES.values()], rows)
    return f"{len(cases)} labelled wrong attempts, 95 % intervals\n{text}"


def _write_page(args: argparse.Namespace, policy, groups) -> None:
    from workbench.methods import find
    from workbench.viz.display import write
    from workbench.viz.page import Section, page

    methods = {name.upper(): find(name)() for name in args.methods.split(",")}
    sections = [
        Section(group.problem.id, _section(policy, group, groups.task, methods))
        for group in groups[: args.groups]
    ]
    text = page(f"Rollouts of {args.file.name}", summary(groups), sections)
    write(args.html, text.encode(), "fewer --groups")


def _section(policy, group: Group, task, methods) -> str:
    """The tokens with each method's credit, and where the locators find the failure point.

    A method that cannot credit the group is left out, and why is said.
    """
    from workbench.inspection.locators import Divergence, SteepestDrop, locate
    from workbench.inspection.readings import inspect_group
    from workbench.viz.page import paragraphs
    from workbench.viz.view import TokenView

    credited, notes = {}, []
    for name, method in methods.items():
        try:
            inspect_group(policy, group, task, {name: method})
            credited[name] = method
        except WorkbenchError as error:
            notes.append(f"No credit by {name}: {first_line(error)}.")
    inspection = inspect_group(policy, group, task, credited)
    located = locate(inspection, policy.decode, [SteepestDrop(), Divergence()])
    for i, findings in located.items():
        steps = [f"{name}: step {f.candidates[0].step + 1}" for name, f in findings.items() if f[0]]
        notes.append(f"Rollout {i + 1}, failure point by {', '.join(steps) or 'no locator'}.")
    return TokenView(inspection, policy).to_html() + paragraphs(*notes)
