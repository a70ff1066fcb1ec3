"""What of a reply is said aloud, for every way in which chat templates write thoughts."""

from __future__ import annotations

import time

import pytest

from workbench.thoughts import MARKS, said_aloud

HARMONY = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize("opening, closing", MARKS)
def test_a_thought_is_left_out_and_an_unfinished_one_leaves_nothing(opening, closing):
    assert said_aloud(f"{opening}\nHm.{closing}It is 4.") == "It is 4."
    assert said_aloud(f"\nHm.{closing}It is 4.") == "It is 4."  # the prompt opened it
    assert said_aloud(f"{opening}a{closing}It is {opening}b{closing}4.") == "It is 4."
    assert said_aloud(f"{opening}\nHm. It is 4.") == ""
    assert said_aloud(f"It is 4. {opening}Hm.") == ""
    assert said_aloud("It is 4.", prompt=f"<|assistant|>{opening}\n") == ""
    assert said_aloud(f"Hm.{closing}It is 4.", prompt=f"<|assistant|>{opening}\n") == "It is 4."
    assert said_aloud(f"{opening}{closing}") == ""


@pytest.mark.parametrize(
    "text, said",
    [
        ("It is 4.", "It is 4."),
        ("", ""),
        ("x < think > y", "x < think > y"),
        ("<think>I say <think> twice</think>4", "4"),
        ("<think>I close </think> in a thought, then </think>4", "4"),
        ("<think>of [THINK] and </thinking></think>4", "4"),
        ("<think>Hm.</think><response>4</response>", "4"),
        (
            "<|begin_of_thought|>Hm.<|end_of_thought|><|begin_of_solution|>4<|end_of_solution|>",
            "4",
        ),
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>4<|END_RESPONSE|>", "4"),
        ("<think>Hm.</think><answer>4</answer>", "<answer>4</answer>"),
        (HARMONY + "It is 4.<|return|>", "It is 4."),
        (HARMONY + "It is 4.", "It is 4."),
        ("<|channel|>analysis<|message|>Hm. It is 4.", ""),
        ("<|channel|>analysis<|message|>It is 4.<|end|><|start|>assistant", ""),
        ("Hm.<|end|><|start|>assistant<|channel|>final<|message|>4", "4"),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("analysisWe add.assistantfinalIt is 4.", "It is 4."),
        ("analysisWe add.", ""),
        ("analysis is a field of mathematics", "analysis is a field of mathematics"),
    ],
)
def test_what_is_said(text, said):
    assert said_aloud(text) == said


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<", "<|channel|>final<|message|>", "a</think>"]
)
def test_hostile_texts_take_no_time(piece):
    started = time.process_time()
    said_aloud(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 2
