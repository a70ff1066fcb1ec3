"""Compositions: what is kept is verbatim, what is new is tokenised alone, what cannot be trained on
says why, and the buffer survives a kill.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import toys
from test_graded_solutions import chat
from test_readings import group_of
from test_spans import byte_level

from workbench.core import Group, Rollout, TokenStats, Verdict, WorkbenchError
from workbench.corrections import compose as composing
from workbench.corrections.buffer import append, groups, load
from workbench.corrections.compose import (
    compose,
    edit,
    keep_through,
    of_text,
    reconstruct,
    rest_of,
    to_rollout,
)
from workbench.corrections.editor import CorrectionEditor, ood_weights
from workbench.corrections.replay import Replay
from workbench.methods.grpo import GRPO
from workbench.methods.sft import SFT
from workbench.model.learner import Learner, OptimConfig
from workbench.model.policy import Policy
from workbench.rollouts import reconstructions
from workbench.rollouts.sampling import Sample
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update

TASK = Arithmetic(steps=2)
PROBLEM = TASK.problem("47+85-29")
RIGHT = PROBLEM.solutions[0]  # 47+85=132, 132-29=103, Answer 103
WRONG = "47+85=132\n132-29=113\nAnswer 113"


@pytest.fixture
def group(tiny_policy) -> Group:
    return group_of(tiny_policy, WRONG, "47+85=122\nWait, " + RIGHT, RIGHT)


def composed(policy, group, token=15, **options):
    return compose(policy, group, 0, keep_through(policy, group.rollouts[0], token), **options)


# ---- composing


def test_the_mistake_is_kept_and_taken_back(tiny_policy, group):
    made = composed(tiny_policy, group)
    assert made.text == "47+85=132\n132-29=113\nWait, 132-29=103\nAnswer 103"
    assert made.keep == 21 and made.prefix == "47+85=132\n132-29=113\n" and made.reference == RIGHT
    assert made.authors == {"prefix": "tiny", "transition": "template", "continuation": "sibling"}
    rollout = to_rollout(tiny_policy, TASK, made)
    assert rollout.completion_ids[:21] == group.rollouts[0].completion_ids[:21]  # verbatim
    assert (
        tiny_policy.decode(rollout.completion_ids) == rollout.text == made.text
        and rollout.completion_ids[-1] in tiny_policy.stop_ids
    )
    assert (
        rollout.prompt_ids == group.rollouts[0].prompt_ids
        and rollout.verdict.correct
        and rollout.origin == "correction"
    )
    assert rollout.borrowed == len(rollout.completion_ids) and all(
        map(math.isnan, rollout.logprobs)
    )


@pytest.mark.parametrize(
    "keep, text",
    [
        (0, RIGHT),  # nothing to take back
        # a right prefix: the sibling goes on from there
        (10, "47+85=132\nWait, 132-29=103\nAnswer 103"),
        (17, "47+85=132\n132-29=Wait, 103\nAnswer 103"),  # also in the middle of a step
        (18, "47+85=132\n132-29=1Wait, 03\nAnswer 103"),
        # no longer a beginning of it: the step is made again
        (19, "47+85=132\n132-29=11Wait, 132-29=103\nAnswer 103"),
        (25, WRONG + "\nWait, 132-29=103\nAnswer 103"),  # the whole attempt: a line of its own
    ],
)
def test_where_the_sibling_is_taken_up(tiny_policy, group, keep, text):
    assert compose(tiny_policy, group, 0, keep).text == text


def test_a_silent_correction_has_no_transition(tiny_policy, group):
    made = compose(tiny_policy, group, 0, 18, transition="")
    assert made.text == RIGHT and to_rollout(tiny_policy, TASK, made).verdict.correct


def test_points_and_steps(tiny_policy, group):
    rollout = group.rollouts[0]  # 10 tokens, 11 tokens, "Answer ", 1, 1, 3, the end of the turn
    assert [keep_through(tiny_policy, rollout, t) for t in (0, 9, 10, 20, 21, 24, 25)] == [
        10,
        10,
        21,
        21,
        25,
        25,
        25,
    ]
    for token in (-1, 26):
        sentence = f"there is no token {token}: the rollout has 0 to 25"
        with pytest.raises(WorkbenchError, match=sentence):
            keep_through(tiny_policy, rollout, token)
    for keep in (-1, 26):  # the end of the turn cannot be kept
        with pytest.raises(
            WorkbenchError,
            match=f"outside the rollout: 0 to 25 of its tokens can be kept, not {keep}",
        ):
            compose(tiny_policy, group, 0, keep)


def test_the_nearest_sibling_unless_another_is_named(tiny_policy, group):
    assert composed(tiny_policy, group).reference == RIGHT
    assert composed(tiny_policy, group, reference=1).reference == group.rollouts[1].text
    for wrong in (0, 3, -1):
        with pytest.raises(
            WorkbenchError,
            match=f"rollout {wrong} is no correct reference; 1, 2 of this group would be",
        ):
            composed(tiny_policy, group, reference=wrong)
    with pytest.raises(WorkbenchError, match="rollout 2 is correct"):
        compose(tiny_policy, group, 2, 3)
    with pytest.raises(WorkbenchError, match="there is no rollout 7"):
        compose(tiny_policy, group, 7, 3)
    alone = group_of(tiny_policy, WRONG)
    with pytest.raises(WorkbenchError, match="no rollout of this group is correct"):
        composed(tiny_policy, alone)
    own = composed(tiny_policy, alone, continuation="132-29=103\nAnswer 103")
    assert (
        to_rollout(tiny_policy, TASK, own).verdict.correct
        and own.authors["continuation"] == "user"
        and own.reference == ""
    )


def test_rest_of_a_solution():
    assert rest_of("a 1\nb 2\nc 3", "a 1\nb 3\n") == "b 2\nc 3"
    assert rest_of("a 1\nb 2\nc 3", "so a 1\nb") == "b 2\nc 3"  # other words, the same number
    assert rest_of("a 1", "") == "a 1" and rest_of("a 1", "a 1") == ""


def test_edits_are_the_users(tiny_policy, group):
    made = composed(tiny_policy, group)
    changed = edit(made, transition="Wait, ", continuation="132-29=103\nAnswer 104")
    # the transition is as it was
    assert changed.authors == {**made.authors, "continuation": "user"}
    rollout = to_rollout(tiny_policy, TASK, changed)
    assert rollout.origin == "edited" and not rollout.verdict.correct and rollout.verdict.feedback
    noted = edit(made, diagnosis="forgot the borrow")
    assert (
        noted.text == made.text
        and to_rollout(tiny_policy, TASK, noted).completion_ids
        == to_rollout(tiny_policy, TASK, made).completion_ids
    )


# ---- what cannot be trained on


@pytest.mark.parametrize(
    "continuation, message",
    [
        ("", "the reconstruction is empty"),
        (" \n ", "the reconstruction is empty"),
        ("132-29=103", "no final answer"),
        ("132-29=103\nAnswer ", "no final answer"),
        ("Answer 103<|end|>", "control token"),
        ("<|user|>Answer 103", "control token"),
        ("é Answer 103 🙂é", "holds 'é🙂', which the tokenizer does not know"),
    ],
)
def test_illegal_compositions_say_why(tiny_policy, group, continuation, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        to_rollout(tiny_policy, TASK, edit(composed(tiny_policy, group), continuation=continuation))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        r"so \boxed{103}",
        "Final Answer: 103",
        "the answer is 103",
        "#### 103",
        "so\nA: 103",
        "Answer 103",
    ],
)
def test_what_counts_as_a_final_answer(tiny_policy, group, text):
    assert to_rollout(tiny_policy, TASK, edit(composed(tiny_policy, group), continuation=text))


def test_the_wrong_answer_that_was_kept_is_no_final_answer(tiny_policy, group):
    whole = compose(tiny_policy, group, 0, 25)
    with pytest.raises(WorkbenchError, match="no final answer"):
        to_rollout(tiny_policy, TASK, edit(whole, continuation="132-29=103"))
    # but the end of an answer is one: Answer 1|03
    ended = compose(tiny_policy, group, 0, 23, transition="", continuation="03")
    assert to_rollout(tiny_policy, TASK, ended).text.endswith("Answer 103")


def test_too_long_for_the_context(group):
    policy = toys.tiny_policy(context=60)
    made = composed(policy, group)
    size = len(to_rollout(policy, TASK, made).completion_ids) + len(group.rollouts[0].prompt_ids)
    long = edit(made, continuation=made.continuation + "\n" * (61 - size))
    with pytest.raises(WorkbenchError, match="61 tokens, more than the model's context of 60"):
        to_rollout(policy, TASK, long)


def test_a_tokenizer_that_puts_a_space_before_a_text_of_its_own():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {
        w: i
        for i, w in enumerate(["<unk>", "<|end|>", "▁the", "▁answer", "▁is", "▁3", "▁4", "▁no"])
    }
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoders.Metaspace(prepend_scheme="always"),
    )
    policy = Policy(None, chat(core), "spaced")
    kept = tuple(policy.tokenizer("the answer is")["input_ids"])
    assert composing._tokens(policy, kept, "the answer is", " no 4") == (
        *kept,
        words["▁no"],
        words["▁4"],
    )
    with pytest.raises(WorkbenchError, match="does not give this text back"):
        composing._tokens(policy, kept, "the answer is", "  no")


def test_byte_level_tokens_are_kept_verbatim():
    policy = Policy(None, chat(byte_level()), "bytes")
    ids = policy.completion_ids("the dog’s 12")[:-1]
    assert composing._tokens(policy, ids, "the dog’s 12", " and é 13")[: len(ids)] == ids
    source = Rollout(
        (1,), ids, (0.0,) * len(ids), "the dog’s 12", Verdict(0.0, False), finished=False
    )
    inside = next(t for t in range(len(ids)) if policy.decode(ids[:t]).endswith("\ufffd"))
    for keep in range(len(ids) + 1):
        if keep == inside or keep == inside + 1:  # ’ is three bytes, each its own token here
            with pytest.raises(WorkbenchError, match="inside a character"):
                compose(policy, Group(PROBLEM, (source,)), 0, keep, continuation="Answer 13")
        else:
            made = compose(policy, Group(PROBLEM, (source,)), 0, keep, continuation="Answer 13")
            assert of_text(
                policy, PROBLEM, source, made.text
            ).keep == keep and made.prefix == policy.decode(ids[:keep])


# ---- written by the policy


WRAP = "<analysis>borrowed wrongly</analysis><reconstruction>{}</reconstruction>".format
OUTPUTS = [
    "no tags",
    WRAP("47+85=132\nReflect."),
    WRAP("47+85=132\n132-29=113\nWait, 132-29=103\nAnswer 103"),
    WRAP("Answer 103"),  # cut off
]


@pytest.fixture
def writes(monkeypatch):
    """``writes(outputs)``: what the policy will write, in turn; gives the seeds that it is asked
    with.
    """

    def writes(outputs: list[str]) -> list[int]:
        asked = []

        def written(policy, prompts, seeds, **_):
            texts = [policy.tokenizer.decode(ids) for ids in prompts]
            assert all(RIGHT in text and WRONG in text for text in texts)
            some = outputs[len(asked) :][: len(prompts)]
            asked.extend(seed for row in seeds for seed in row)
            ends = [text != OUTPUTS[3] for text in some]
            return [[Sample(policy.completion_ids(text), (), end)] for text, end in zip(some, ends)]

        monkeypatch.setattr(reconstructions, "generate", written)
        return asked

    return writes


def test_the_policys_own_reconstruction(tiny_policy, group, writes):
    """What training would drop is not offered for editing either."""
    asked = writes(OUTPUTS)
    made = reconstruct(tiny_policy, TASK, group, 0, reference=2)
    assert len(set(asked)) == 4
    assert (made.keep, made.diagnosis, made.reference) == (21, "borrowed wrongly", RIGHT)
    assert made.authors == {"prefix": "tiny", "continuation": "tiny"}
    assert made.continuation.startswith("Wait, ")
    rollout = to_rollout(tiny_policy, TASK, made)
    assert rollout.verdict.correct and rollout.origin == "correction"
    assert "borrowed" not in rollout.text
    asked = writes(OUTPUTS[2:])
    assert reconstruct(tiny_policy, TASK, group, 0, reference=2) == made
    assert len(asked) == 1, "where the first is usable nobody waits for others"


def test_why_no_reconstruction_of_the_policy_is_usable(tiny_policy, group, writes):
    writes(["", *OUTPUTS[1:2], "", *OUTPUTS[3:]])
    words = r"none of 4 outputs .*\(2 unparsed, 1 injected, 1 truncated\): try another seed"
    with pytest.raises(WorkbenchError, match=words):
        reconstruct(tiny_policy, TASK, group, 0)
    writes([""])
    with pytest.raises(WorkbenchError, match=r"none of 1 outputs .*\(1 unparsed\)"):
        reconstruct(tiny_policy, TASK, group, 0, tries=1)
    with pytest.raises(WorkbenchError, match="has no synthesis prompt"):
        reconstruct(tiny_policy, toys.FirstCharacter(), group, 0)


@pytest.mark.parametrize(
    "text, keep",
    [
        (WRONG + "\nWait, no\nAnswer 1", 25),
        ("47+85=133\nAnswer 1", 8),
        ("Answer 103", 0),
        (WRONG, 25),
    ],
)
def test_a_whole_text_keeps_what_it_begins_with(tiny_policy, group, text, keep):
    made = of_text(tiny_policy, PROBLEM, group.rollouts[0], text)
    assert (made.keep, made.text, made.transition) == (keep, text, "")


# ---- looking at it


def test_weights_of_two_outcomes():
    # METHODS section 3: p = .9 -> 1.25; .5 -> 1.00; .3 -> .55; .1 -> .14; .01 -> .011
    p = np.array([0.9, 0.5, 0.3, 0.1, 0.01])
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    reading = TokenStats((1,), np.log(p), entropy, *(np.zeros(5),) * 3)
    np.testing.assert_allclose(ood_weights(reading), [1.25, 1.00, 0.55, 0.14, 0.011], atol=6e-3)
    extreme = TokenStats((1,), np.array([-50.0, 0.0]), np.array([0.0, 9.0]), *(np.zeros(2),) * 3)
    assert ood_weights(extreme).tolist() == [0.01, 10.0]


def test_the_desk_shows_what_training_would_see(tiny_policy, group):
    desk = CorrectionEditor(tiny_policy, TASK, group, {"GRPO": GRPO(k=4), "SFT": SFT()})
    draft = desk.draft(composed(tiny_policy, group))
    table, rollout = draft.table, draft.rollout
    assert tuple(table.id) == rollout.prompt_ids + rollout.completion_ids
    assert (
        table.trained.sum() == len(rollout.completion_ids)
        and not table.trained[: len(rollout.prompt_ids)].any()
    )
    for part, text in (
        ("prefix", draft.composition.prefix),
        ("transition", "Wait, "),
        ("continuation", draft.composition.continuation),
    ):
        assert "".join(table.token[table.part == part]) == text
    assert list(table.part)[-1] == "end" and table.w.isna().sum() == len(rollout.prompt_ids)
    ids = torch.tensor([table.id.tolist()])
    logp = (
        tiny_policy.model(ids)
        .logits[0, :-1]
        .log_softmax(-1)
        .gather(-1, ids[0, 1:, None])[:, 0]
        .detach()
        .numpy()
    )
    np.testing.assert_allclose(
        table["log-prob"][len(rollout.prompt_ids) :], logp[len(rollout.prompt_ids) - 1 :], atol=1e-4
    )
    assert draft.group.rollouts == (*group.rollouts, rollout)
    # one wrong, three right: advantage 1/sqrt(3)
    np.testing.assert_allclose(draft.credits["GRPO"][-1], 3**-0.5, atol=1e-5)
    assert (draft.credits["SFT"][-1] == 1).all()


def test_an_illegal_draft_says_why_and_cannot_be_saved(tiny_policy, group, tmp_path):
    draft = CorrectionEditor(tiny_policy, TASK, group).draft(
        edit(composed(tiny_policy, group), continuation="")
    )
    assert draft.rollout is draft.verdict is None and "empty" in draft.why_not
    for use in (lambda: draft.table, lambda: draft.save(tmp_path / "buffer.jsonl")):
        with pytest.raises(WorkbenchError, match="empty"):
            use()
    assert not (tmp_path / "buffer.jsonl").exists()


# ---- the buffer


@pytest.fixture
def saved(tiny_policy, group, tmp_path):
    path = tmp_path / "new" / "buffer.jsonl"
    desk = CorrectionEditor(tiny_policy, TASK, group)
    first = edit(composed(tiny_policy, group), diagnosis="\u2028 <script> é")
    made = [first, composed(tiny_policy, group, token=3), composed(tiny_policy, group, reference=1)]
    return path, [desk.draft(composition).save(path) for composition in made]


def same(a, b) -> bool:
    """Equal, also where NaN stands for NaN."""
    return repr(a) == repr(b)


def test_what_is_saved_comes_back(tiny_policy, saved, group):
    path, corrections = saved
    found = load(path)
    assert (
        same(found, corrections)
        and found[0].composition.source.text == WRONG
        and found[0].policy == "tiny"
    )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert all(row["schema_version"] == 1 and row["rollout"]["verdict"]["correct"] for row in rows)
    [trained] = groups(found, tiny_policy)
    assert trained.problem == PROBLEM and [r.completion_ids for r in trained.rollouts] == [
        c.rollout.completion_ids for c in corrections
    ]


def test_training_reads_the_buffer(tiny_policy, saved):
    recorded = groups(load(saved[0]), tiny_policy)
    learner = Learner(tiny_policy, OptimConfig(lr=3e-3))
    nll = [
        update(Replay(SFT(), tuple(recorded)), learner, TASK, [], (0, step)).metrics["nll"]
        for step in range(6)
    ]
    assert nll[-1] < nll[0] - 0.2
    assert Replay(GRPO(beta=0.1), ()).needs_reference and not Replay(SFT(), ()).needs_reference
    assert Replay(SFT(), tuple(recorded)).sample(learner, TASK, [TASK.problem("1+1+1")], (0,)) == []


def test_another_tokenizers_buffer_is_refused(saved):
    other = Policy(None, chat(byte_level()), "other")
    with pytest.raises(WorkbenchError, match="was tokenised for tiny, not for other"):
        groups(load(saved[0]), other)


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_line_torn_by_a_kill_is_skipped_and_then_removed(saved, cut):
    path, corrections = saved
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = 3 if cut == 1 else 2  # without its line break alone the line is whole
    assert same(load(path), corrections[:kept])
    append(path, corrections[0])
    assert same(load(path), [*corrections[:kept], corrections[0]])


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ("{}", "it lacks: 'schema_version'"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "it lacks: 'problem'"),
        ("[" * 100_000, "is not a correction"),
    ],
)
def test_a_malformed_line_is_named(saved, line, message):
    path, _ = saved
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([lines[0], line, *lines[1:]]), encoding="utf-8")
    with pytest.raises(WorkbenchError, match=message) as caught:
        load(path)
    assert "line 2" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"keep": 999},
        {"prefix": "x"},
        {"continuation": None},
        {"keep": -1},
        {"source": {}},
        {"rollout": None},
    ],
)
def test_parts_that_do_not_fit_are_malformed(saved, change):
    path, _ = saved
    row = json.loads(path.read_text(encoding="utf-8").split("\n")[0]) | change
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(WorkbenchError, match="line 1 is not a correction"):
        load(path)


def test_no_buffer_yet_and_no_way_to_write(tmp_path, saved):
    assert load(tmp_path / "none.jsonl") == []
    with pytest.raises(WorkbenchError, match="could not read"):
        load(tmp_path)
    with pytest.raises(WorkbenchError, match="could not write"):
        append(tmp_path, saved[1][0])


def test_two_writers_at_once(saved, tmp_path):
    path = tmp_path / "shared.jsonl"
    # each append opens the file anew, so the locks are as between processes
    with ThreadPoolExecutor(2) as writers:
        list(writers.map(lambda i: [append(path, saved[1][i]) for _ in range(20)], (0, 1)))
    found = [repr(c) for c in load(path)]
    assert len(found) == 40 and all(found.count(repr(saved[1][i])) == 20 for i in (0, 1))
