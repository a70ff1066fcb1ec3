"""The nouns of the workbench and the three verbs of a method.

Data only: no maths, no model, no I/O.

    problems --sample--> groups of rollouts --credit--> credits --collate--> batch
    batch --score--> scores --loss--> update

``sample``, ``credit`` and ``loss`` are the method's; ``collate``, ``score`` and ``update`` are
ours. Everything a method says about a token is three numbers, its *channels*:

    pg    -pg_t * (clipped) rho_t    policy gradient: GRPO's advantage, OPD's log-ratio, ...
    nll   nll_t * (-log pi(y_t))     imitation: SFT, expert prefixes, ...
    kl    kl_t * D(pi || q)          distillation toward a teacher's next-token distribution

Each channel has its own denominator. A zero leaves the token out of that term and of its
denominator.
"""

from __future__ import annotations

import hashlib
import math
import re
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # torch takes a second to import; the nouns need only its name
    from torch import Tensor

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Origin = Literal["policy", "guided", "expert", "correction", "edited"]
CHANNELS = ("pg", "nll", "kl")
# A length to divide losses by (``constant``) that is the task's response budget; and that of the
# default task, for a loss without a task.
FROM_TASK, LENGTH = -1, 80


class WorkbenchError(Exception):
    """Something the user can mend, said in one sentence.

    The command line prints it and exits with 2.
    """


def refuse_if(problem: object, sentence: str) -> None:
    """Raises WorkbenchError with the sentence where there is a problem."""
    if problem:
        raise WorkbenchError(sentence)


@contextmanager
def refuse_on(
    kinds: type[Exception] | tuple[type[Exception], ...], sentence: str, why: bool = False
) -> Iterator[None]:
    """Raises WorkbenchError with the sentence for an error of these kinds in its with block.

    ``why``: with what the error says, too.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except kinds as error:
        raise WorkbenchError(f"{sentence}: {reason(error)}" if why else sentence) from error


def needed(module: str, sentence: str) -> Any:
    """A module that may be missing. Raises WorkbenchError with the sentence where it is."""
    with refuse_on(ImportError, sentence):
        return import_module(module)


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal, with a sentence on what became of the work."""

    def __init__(self, text: str, number: int = signal.SIGINT):
        super().__init__(text)
        self.number = number


def first_line(error: Exception) -> str:
    """What an error says first, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: Exception) -> str:
    """What the system says of a file, or the first line."""
    return getattr(error, "strerror", None) or first_line(error)


# what a terminal obeys or cannot show: control characters, overrides of the writing direction,
# halves of surrogates
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text of a file for a terminal: what a terminal would obey is written out, as \\x1b is."""
    return _OBEYED.sub(lambda match: ascii(match[0])[1:-1], text)


@dataclass(frozen=True)
class Problem:
    """One question.

    ``messages`` is the plain prompt; ``solutions`` are expert solutions, best first.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    solutions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of two files' problems that have one id, each has its own."""
        return repr((self.id, self.messages))


@dataclass(frozen=True)
class Verdict:
    """What the task's grader says of one completion.

    ``feedback`` is words for the policy ("" when correct). A reward of NaN: nobody knows, because
    there was nothing to grade it by.
    """

    reward: float
    correct: bool
    feedback: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return not math.isnan(self.reward)

    @property
    def mark(self) -> str:
        return ("✓" if self.correct else "✗") if self.known else "?"

    @property
    def words(self) -> str:
        return f"reward {self.reward:g}" if self.known else "verdict unknown"


class Step(NamedTuple):
    """One written step of a completion: characters ``start:end`` of its text (the line break
    included).
    """

    index: int
    start: int
    end: int


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt.

    ``completion_ids`` ends with the end-of-turn token when ``finished``; ``logprobs`` are the
    sampler's log-probabilities of those tokens (nats, at the policy's temperature, NaN where they
    are not known and for the first ``borrowed`` tokens, which the policy did not write).
    ``source``: of a reconstruction, the place in its group of the rollout that it rewrites.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    verdict: Verdict
    origin: Origin = "policy"
    borrowed: int = 0
    finished: bool = True
    source: int | None = None

    def __post_init__(self):
        if not self.completion_ids or not self.prompt_ids:
            raise ValueError("a rollout needs at least one prompt token and one completion token")
        if len(self.logprobs) != len(self.completion_ids):
            raise ValueError(
                f"{len(self.logprobs)} log-probs for {len(self.completion_ids)} completion tokens"
            )
        if not 0 <= self.borrowed <= len(self.completion_ids):
            raise ValueError(
                f"borrowed={self.borrowed} is outside the completion of "
                f"{len(self.completion_ids)} tokens"
            )


@dataclass(frozen=True)
class Group:
    """One problem with the rollouts sampled for it.

    ``notes``: counts of what happened while sampling (added up over groups in the metrics);
    ``generated`` among them are tokens that the policy wrote and that are in no rollout.
    """

    problem: Problem
    rollouts: tuple[Rollout, ...]
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def own(self) -> tuple[Rollout, ...]:
        """The rollouts that the policy wrote alone; all, where it wrote none alone."""
        return tuple(r for r in self.rollouts if r.origin == "policy") or self.rollouts

    @classmethod
    def from_texts(
        cls,
        problem: Problem,
        texts: Sequence[str],
        policy: Any,
        verdicts: Sequence[Verdict | float] | None = None,
    ) -> Group:
        """Texts that somebody wrote, tokenised by ``policy``; its log-probs are not known.

        ``verdicts``: of each text, or its reward (above 0: correct); without them they are unknown.
        Raises WorkbenchError where there are not as many.
        """
        verdicts = [math.nan] * len(texts) if verdicts is None else verdicts
        refuse_if(
            len(verdicts) != len(texts) or not texts,
            f"{len(texts)} texts and {len(verdicts)} verdicts are no group",
        )
        prompt, rollouts = policy.prompt_ids(problem.messages), []
        for text, verdict in zip(texts, verdicts):
            ids = policy.completion_ids(text)
            if policy.decode(ids) != text:
                warnings.warn(f"{text[:40]!r} does not come back from its tokens", stacklevel=2)
            if not isinstance(verdict, Verdict):
                verdict = Verdict(float(verdict), verdict > 0)
            rollouts.append(Rollout(prompt, ids, (math.nan,) * len(ids), text, verdict))
        return cls(problem, tuple(rollouts))

    def places(self, correct: bool) -> list[int]:
        """Which of its rollouts are right, or which are wrong."""
        return [i for i, r in enumerate(self.rollouts) if r.verdict.correct == correct]

    @property
    def rewards(self) -> np.ndarray:
        """[K] rewards, in rollout order.

        Raises WorkbenchError where one is not known: nothing is learned from it.
        """
        unknown = [i for i, r in enumerate(self.rollouts) if not r.verdict.known]
        if unknown:
            raise WorkbenchError(
                f"the verdict on rollout {unknown[0]} of {self.problem.id!r} is unknown: there was "
                "no reward and nothing to grade it by"
            )
        return np.array([rollout.verdict.reward for rollout in self.rollouts], float)

    @property
    def has_contrast(self) -> bool:
        """False when all rewards are equal: then a group-relative advantage is 0 everywhere."""
        return bool(np.ptp(self.rewards) > 0)


@dataclass(frozen=True)
class Credit:
    """What a method says each completion token of one rollout is worth.

    Each channel is [T], T = len(completion_ids). ``teacher_prompt_ids`` is the prompt under which a
    teacher re-scores the same completion (``kl`` channel). ``weight`` and ``notes`` are numbers of
    the whole rollout that the method's own ``loss`` and ``diagnose`` read, and nobody else.
    """

    rollout: Rollout
    pg: np.ndarray
    nll: np.ndarray
    kl: np.ndarray
    teacher_prompt_ids: tuple[int, ...] | None = None
    weight: float = 0.0
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name in CHANNELS:
            if getattr(self, name).shape != (len(self.rollout.completion_ids),):
                raise ValueError(
                    f"channel {name} has shape {getattr(self, name).shape}, "
                    f"the completion has {len(self.rollout.completion_ids)} tokens"
                )

    @classmethod
    def of(
        cls, rollout: Rollout, *, pg: Any = 0.0, nll: Any = 0.0, kl: Any = 0.0, **more: Any
    ) -> Credit:
        """Numbers are spread over the completion, arrays of [T] are taken as they are."""
        size = len(rollout.completion_ids)
        channels = [
            np.broadcast_to(np.asarray(value, np.float32), (size,)).copy()
            for value in (pg, nll, kl)
        ]
        return cls(rollout, *channels, **more)


def places_of(credits: Sequence[Credit], groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(group, rollout) of each credit: a method credits the very rollouts of its groups.

    Raises ValueError for a credit of a rollout that is in none of them.
    """
    rollouts = [(i, j, r) for i, group in enumerate(groups) for j, r in enumerate(group.rollouts)]
    places = []
    for credit in credits:
        place = [(i, j) for i, j, rollout in rollouts if rollout is credit.rollout]
        if not place:
            raise ValueError("a method credited a rollout that is in none of its groups")
        places += place[:1]
    return places


def rollouts_of(groups: Sequence[Group]) -> list[Rollout]:
    """All rollouts of the groups, in their order."""
    return [rollout for group in groups for rollout in group.rollouts]


@dataclass(frozen=True)
class TokenStats:
    """What one model, under one prompt, says of the completion of one rollout.

    T completion tokens; arrays of [T] and [T, k].

    ``top_ids`` are the k likeliest tokens at each place, most likely first, and ``top_logprobs``
    their log-probabilities (nats, temperature 1).
    """

    prompt_ids: tuple[int, ...]
    logprobs: np.ndarray
    entropy: np.ndarray
    rank: np.ndarray  # 1: the token was the model's first choice
    top_ids: np.ndarray
    top_logprobs: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """A group and everything known of its tokens: what the viewer draws and the locators read.

    Tuples run over the group's rollouts.

    ``layers`` are named numbers per token, one [T] array a rollout (NaN where there is none):
    realised credit of a method, a channel, delta, ... ``teacher`` is the self-teacher's reading of
    the same tokens, under a prompt that holds a solution or feedback; None where it had nothing to
    show.
    """

    group: Group
    layers: Mapping[str, tuple[np.ndarray, ...]]
    student: tuple[TokenStats, ...] = ()
    teacher: tuple[TokenStats | None, ...] = ()
    first_errors: tuple[Step | None, ...] = ()  # the task's truth, where it knows


@dataclass(frozen=True)
class Packed:
    """Prompts and their completions as right-padded tensors.

    B rows, S = longest prompt + completion, T = longest completion. ``gather[b, t]`` is the
    position in the row whose *next-token* distribution predicts completion token t: the one shift.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # ids of prompt and completion
    input_ids: Tensor  # [B, S] int64
    gather: Tensor  # [B, T] int64, positions into S
    targets: Tensor  # [B, T] int64, completion ids (0 where padded)
    mask: Tensor  # [B, T] bool, a real completion token


@dataclass(frozen=True)
class Batch(Packed):
    """Credited rollouts, packed: the whole batch of a step, or one of its micro-batches.

    ``places[b]`` is row b's place among the credits of the step. ``denominators`` and ``sequences``
    count over the whole batch also where this is a micro-batch:

        pg, nll, kl   tokens with a non-zero entry in the channel
        kl_right      those of ``kl`` in correct rollouts
        tokens        completion tokens
        others        completion tokens of rollouts that the policy did not write alone
    """

    channels: Mapping[str, Tensor]  # pg, nll, kl: [B, T] float
    sampler_logp: Tensor  # [B, T] the sampler's log-probs; NaN where borrowed, 0 where padded
    denominators: Mapping[str, float]
    sequences: int
    credits: tuple[Credit, ...]
    places: tuple[int, ...]
    # [B, T] log-probs before the first update on this batch; None while that update is this one
    old_logp: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Per completion token, [B, T], 0 where padded.

    ``logp``, ``entropy`` and ``divergence`` carry gradients.

    The last five are there for a method with ``distil``, and 0 on rollouts without a teacher's
    prompt.
    """

    logp: Tensor
    entropy: Tensor  # nats
    reference: Tensor | None = None  # log-prob under the frozen reference
    teacher: Tensor | None = None  # log-prob under the teacher's context and weights
    divergence: Tensor | None = None  # D_a(policy || teacher), nats
    # the divergence's own credit: the coefficient of grad log pi(y_t) in -grad divergence
    divergence_credit: Tensor | None = None
    # the policy's probability outside the k tokens that were compared
    tail_mass: Tensor | None = None
    teacher_entropy: Tensor | None = None  # nats


@dataclass(frozen=True)
class Loss:
    """``value`` is the scalar to differentiate and ``per_token`` [B, T] sums to it.

    ``credit`` [B, T] is the realised credit: the coefficient of grad log pi(y_t) in -grad value,
    times the number of completion tokens in the whole batch, so that a token mean shows the
    method's own number. Metrics are parts of whole-batch means: those of micro-batches add up.
    """

    value: Tensor
    per_token: Tensor
    credit: Tensor
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StepRecord:
    """What one update leaves behind: numbers for the curve, and whole groups with their credit."""

    step: int
    metrics: Mapping[str, float]
    groups: tuple[Group, ...] = ()
    credit: tuple[tuple[tuple[float, ...], ...], ...] = ()  # realised credit: group, rollout, token


@runtime_checkable
class Task(Protocol):
    """Problems, grading, and prompts that show a solution, an attempt or feedback."""

    name: str
    max_new: int  # longest completion, in tokens

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """n problems of train, validation or test: the same for the same seed."""

    def grade(self, problem: Problem, text: str) -> Verdict:
        """What a completion is worth. Never raises, whatever the text."""

    def first_error(self, problem: Problem, text: str) -> Step | None:
        """The first wrong step, where the task can tell."""

    def reprompt(
        self, problem: Problem, *, solution: str = "", attempt: str = "", feedback: str = ""
    ) -> tuple[Message, ...]:
        """The problem with what a teacher is shown beside it, as messages."""


@dataclass(frozen=True)
class Distil:
    """What the ``kl`` channel compares the policy pi with: a teacher q (arXiv 2601.20802).

    alpha     1: reverse KL, KL(pi || q); 0: forward KL, KL(q || pi); between, with
              m = (1 - alpha) pi + alpha q: (1 - alpha) KL(pi || m) + alpha KL(q || m)
    top_k     over the policy's k likeliest tokens and one bucket for the rest; 0: over all tokens
    teacher   whose weights read: the EMA "teacher"'s, the frozen "reference"'s, the "policy"'s own
              as they are now, the learner's "expert"'s (another network, same vocabulary), or
              "mixed": log q = (1 - trust) log reference + trust log policy, normalised
    clip      largest credit of any token of the vocabulary
    """

    alpha: float = 0.5
    top_k: int = 100
    teacher: Literal["teacher", "reference", "policy", "expert", "mixed"] = "teacher"
    trust: float = 0.01
    clip: float = math.inf


class Method(Protocol):
    """A paper: a frozen dataclass of its hyper-parameters with three verbs."""

    samples: bool = True  # does the policy write, as much as the task lets it?
    needs_reference: bool = False  # should ``score`` also give the frozen reference's log-probs?
    needs_expert: bool = False  # does it learn from another network, the learner's expert?
    takes_wrong: bool = True  # may a wrong correction join its groups (it is not imitated)?
    # the longest prompt, in completions beside the question: that the policy writes from; that
    # ``distil``'s teacher reads
    prompt_growth: int = 0
    teacher_prompt_growth: int = 0
    # should ``score`` also compare with a teacher, where a credit has a teacher's prompt?
    distil: Distil | None = None

    def for_task(self, task: Task) -> Method:
        """The method with what it leaves to the task: the length to divide by."""
        if getattr(self, "constant", 0) == FROM_TASK:
            return replace(self, constant=task.max_new)
        return self

    def sample(
        self, learner, task: Task, problems: list[Problem], seed: tuple[int, ...]
    ) -> list[Group]:
        """Attempts at each problem. ``seed``: coordinates, so that a step can be made again."""

    def credit(self, groups: list[Group], learner) -> list[Credit]:
        """What each token of each rollout is worth: numbers, without gradient."""

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The scalar to descend, and the weight that it gives each token's grad log p."""

    def diagnose(self, groups: Sequence[Group], credits: Sequence[Credit]) -> Mapping[str, float]:
        """More metrics of the step. None unless a method says otherwise."""
        return {}


def length_constant(constant: int) -> int:
    """A method's ``constant``, also where nobody told it the task."""
    return LENGTH if constant == FROM_TASK else constant


def coordinates(*where: int | str) -> int:
    """A 63-bit seed from coordinates such as (run seed, step, problem id, sample).

    Equal coordinates, equal draw, in any order of calls.
    """
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=8).digest(), "big") >> 1
