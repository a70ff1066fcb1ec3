"""Compose a correction of a wrong rollout, and see what training on it would do, before training.

    kept tokens of the wrong rollout    verbatim ids, the mistake included
    transition                          "Wait, "
    continuation                        a correct sibling's, yours, or the policy's own
                                        (TAPO, arXiv 2606.18844)
    end of turn

The kept part keeps its token ids; only what is new is tokenised. Everything here is a function of
plain values: workbench/viz/composer.py binds controls to them, and workbench/corrections/buffer.py
keeps what was composed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.core import Group, Problem, Rollout, Task, WorkbenchError, refuse_if
from workbench.model.policy import Policy
from workbench.rollouts.reconstructions import TRANSITION, Construction, Pair, construct
from workbench.spans import Spans, common_prefix, shared_steps, step_texts

_ANSWER = re.compile(
    r"\\boxed\s*\{\s*[^{}\s]"
    r"|####[ \t]*\S"
    r"|\b[Aa]nswer\b(?:[ \t]+is\b)?:?[ \t]*[^\s:]"
    r"|^A:[ \t]*\S",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Composition:
    """A correction in the making.

    ``authors``: who wrote prefix, transition and continuation: a policy's name, "sibling", "user",
    "template".
    """

    problem: Problem
    source: Rollout  # the wrong rollout
    keep: int  # how many of its tokens are kept
    prefix: str  # what those say
    transition: str
    continuation: str
    reference: str = ""  # the correct solution that it follows; "" when it follows none
    diagnosis: str = ""  # words about the mistake; kept with the correction, never trained on
    authors: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.prefix + self.transition + self.continuation


def called(policy: Policy) -> str:
    """The policy's name without the folders of the machine that it lies on."""
    return Path(policy.name).name if Path(policy.name).is_absolute() else policy.name


def keep_through(policy: Policy, rollout: Rollout, token: int) -> int:
    """How many tokens to keep so that the step which holds ``token`` stays whole: the mistake
    remains, to be taken back, as in TAPO.
    """
    layout = Spans(rollout, policy.decode)
    refuse_if(
        not 0 <= token < len(rollout.completion_ids),
        f"there is no token {token}: the rollout has 0 to {len(rollout.completion_ids) - 1}",
    )
    step = layout.step_of(token)
    return layout.tokens_through(step) if step < len(layout.steps) else layout.written


def compose(
    policy: Policy,
    group: Group,
    source: int,
    keep: int,
    *,
    transition: str = TRANSITION,
    reference: int | None = None,
    continuation: str | None = None,
) -> Composition:
    """The first ``keep`` tokens of rollout ``source``, the transition, and then ``continuation`` or
    the rest of a correct sibling's solution.

    ``reference`` is the sibling (None: the nearest). Its solution is taken up where the kept part
    leaves it: at that character when the kept part is a beginning of it, else at the first step
    that the kept part does not have right. After a whole step the transition begins a new line.
    Raises WorkbenchError for a point outside the rollout or inside a character, a source that is
    correct, or a reference that is not.
    """
    rollout = wrong_rollout(group, source)
    layout = Spans(rollout, policy.decode)
    refuse_if(
        not 0 <= keep <= layout.written,
        f"the point is outside the rollout: 0 to {layout.written} of its tokens can be "
        f"kept, not {keep}",
    )
    prefix = policy.decode(rollout.completion_ids[:keep])
    refuse_if(
        not layout.text.startswith(prefix),
        "the point is inside a character that takes several tokens: move it by one",
    )
    author, right = "user", ""
    if continuation is None:
        author, right = "sibling", _right(policy, group, source, reference).text
        continuation = rest_of(right, prefix)
    if not prefix.strip():
        transition = ""  # there is nothing to take back
    elif transition and keep == layout.written and not prefix.endswith("\n"):
        transition = "\n" + transition
    authors = {"prefix": called(policy), "transition": "template", "continuation": author}
    return Composition(
        group.problem, rollout, keep, prefix, transition, continuation, right, authors=authors
    )


def rest_of(solution: str, prefix: str) -> str:
    """What is left of a correct solution for somebody who has written ``prefix``."""
    if solution.startswith(prefix):
        return solution[len(prefix) :]
    steps = step_texts(solution)
    return "".join(steps[shared_steps(step_texts(prefix), steps) :])


def wrong_rollout(group: Group, i: int) -> Rollout:
    refuse_if(
        not 0 <= i < len(group.rollouts),
        f"there is no rollout {i}: the group has 0 to {len(group.rollouts) - 1}",
    )
    refuse_if(
        group.rollouts[i].verdict.correct, f"rollout {i} is correct: there is nothing to correct"
    )
    return group.rollouts[i]


def _right(policy: Policy, group: Group, source: int, reference: int | None) -> Rollout:
    """The correct sibling ``reference``; else the one that shares the most leading steps with the
    wrong rollout ``source``.
    """
    right = group.places(correct=True)
    if reference is not None:
        refuse_if(
            reference not in right,
            f"rollout {reference} is no correct reference; "
            f"{', '.join(map(str, right)) or 'none'} of this group would be",
        )
        return group.rollouts[reference]
    refuse_if(
        not right,
        "no rollout of this group is correct: write the continuation yourself, or "
        "sample more rollouts",
    )
    lines = [Spans(rollout, policy.decode).lines for rollout in group.rollouts]
    nearest = max(right, key=lambda i: shared_steps(lines[source], lines[i]))
    return group.rollouts[nearest]


def reconstruct(
    policy: Policy,
    task: Task,
    group: Group,
    source: int,
    *,
    reference: int | None = None,
    tries: int = 4,
    seed: int = 0,
) -> Composition:
    """Let the policy write the correction in TAPO's format, from the question, the wrong rollout
    and a correct sibling, as ``reconstructions.construct`` does for training.

    What it copied of the rollout, token by token, is the kept part; the diagnosis is its analysis.
    The first of ``tries`` outputs that TAPO would train on counts. Raises WorkbenchError when there
    is none, saying why they were dropped, and for a task without a synthesis prompt.
    """
    rollout = wrong_rollout(group, source)
    right = _right(policy, group, source, reference)
    outputs: list[Construction] = []
    for attempts in (range(1), range(1, tries)):  # somebody waits, and most first ones are usable
        pairs = [Pair(group.problem, rollout, right, attempt) for attempt in attempts]
        outputs += construct(policy, task, pairs, (seed, "reconstruct", source))
        usable = [output for output in outputs if output.rollout is not None]
        if usable:
            text = usable[0].rollout.text
            composition = of_text(policy, group.problem, rollout, text, author=called(policy))
            return replace(composition, reference=right.text, diagnosis=usable[0].analysis)
    reasons = Counter(output.dropped for output in outputs)
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
    raise WorkbenchError(
        f"none of {tries} outputs of the policy is a usable analysis and reconstruction "
        f"({why}): try another seed, or write it yourself"
    )


def of_text(
    policy: Policy, problem: Problem, source: Rollout, text: str, author: str = "user"
) -> Composition:
    """A whole corrected text: as much of the source as it begins with is kept with its token ids,
    the rest is the continuation.
    """
    layout = Spans(source, policy.decode)
    shared = common_prefix(layout.text, text)
    keep = sum(start < shared for start in layout.starts[: layout.written])
    # the last token says more than the text does
    while not text.startswith(policy.decode(source.completion_ids[:keep])):
        keep -= 1
    prefix = policy.decode(source.completion_ids[:keep])
    authors = {"prefix": called(policy), "continuation": author}
    return Composition(problem, source, keep, prefix, "", text[len(prefix) :], authors=authors)


def edit(composition: Composition, **parts: str) -> Composition:
    """Other words for ``transition``, ``continuation`` or ``diagnosis``; they are the user's from
    then on.
    """
    changed = {name: text for name, text in parts.items() if text != getattr(composition, name)}
    authors = {**composition.authors, **dict.fromkeys(changed, "user")}
    return replace(composition, **changed, authors=authors)


def to_rollout(policy: Policy, task: Task, composition: Composition) -> Rollout:
    """The correction as training would see it: the source's own prompt and kept ids, the tokens of
    what is new, the end of the turn; graded.

    None of it counts as written by the policy under this prompt (``borrowed``: all), whoever wrote
    the words: there are no sampler's log-probs. Raises WorkbenchError when there is no
    reconstruction, no final answer in it, a control token, no way to tokenise it, or no room for
    it.
    """
    refuse_if(
        not composition.continuation.strip(),
        "the reconstruction is empty: write what comes after the point",
    )
    refuse_if(
        not _ends_with_answer(composition),
        "the reconstruction has no final answer: end it with one, such as \\boxed{18} or Answer 18",
    )
    prompt = composition.source.prompt_ids
    kept_ids = composition.source.completion_ids[: composition.keep]
    new = composition.transition + composition.continuation
    ids = _tokens(policy, kept_ids, composition.prefix, new)
    ids += policy.end
    refuse_if(
        len(prompt) + len(ids) > policy.context,
        f"the prompt and the correction have {len(prompt) + len(ids)} tokens, "
        f"more than the model's context of {policy.context}",
    )
    return Rollout(
        prompt,
        ids,
        (float("nan"),) * len(ids),
        composition.text,
        task.grade(composition.problem, policy.opening(prompt) + composition.text),
        origin="edited" if "user" in composition.authors.values() else "correction",
        borrowed=len(ids),
    )


def _ends_with_answer(composition: Composition) -> bool:
    """Is the last final answer of the text (at least the end of it) in the new part?

    The kept part may hold a wrong one.
    """
    answers = list(_ANSWER.finditer(composition.text))
    if not answers:
        return False
    rest_of_line = composition.text[answers[-1].end() :].partition("\n")[0]
    return len(composition.prefix) < answers[-1].end() + len(rest_of_line)


def _tokens(policy: Policy, kept_ids: tuple[int, ...], prefix: str, new: str) -> tuple[int, ...]:
    """The kept ids and those of the new text.

    A tokenizer that puts a space before a text of its own reads the two together.
    """
    if policy.foreign(new):
        unknown = "".join(dict.fromkeys(filter(policy.foreign, new)))
        what = f"{unknown!r}, which the tokenizer does not know"
        raise WorkbenchError(
            f"the reconstruction holds {what if unknown else 'a control token of the tokenizer'}"
        )
    for head, text in ((kept_ids, new), ((), prefix + new)):
        ids = head + policy.text_ids(text)
        if ids[: len(kept_ids)] == kept_ids and policy.decode(ids) == prefix + new:
            return ids
    raise WorkbenchError(
        "the tokenizer does not give this text back when it is cut here: keep through the "
        "end of a step instead"
    )
