"""key=value to a frozen dataclass: what is read, whose it is, and what is said where it is not."""

import math
from dataclasses import dataclass
from typing import Literal

import pytest

from workbench.core import WorkbenchError
from workbench.options import check_choices, split_options, with_options

Shape = Literal["round", "square"]


@dataclass(frozen=True)
class Toy:
    size: int = 1
    weight: float = 1.0
    cap: float = math.inf
    soft: bool = False
    shape: Shape = "round"
    rank: Literal[1, 2] = 1

    def __post_init__(self):
        check_choices(self)


@dataclass(frozen=True)
class Other:
    size: int = 1
    rate: float = 0.5
    steps: int = 3


def test_a_value_is_read_as_the_type_of_its_default():
    assert with_options(Toy, [], "toy") == Toy()
    options = ["size=3", "weight=2", "cap=inf", "soft=True", "shape=square"]
    assert with_options(Toy, options, "toy") == Toy(3, 2.0, math.inf, True, "square")


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("colour=1", "toy has no option 'colour'; it has size, weight, cap, soft, shape, rank"),
        ("size", "toy has no option 'size'"),
        ("size=1.5", "toy: size=1.5 is not a whole number"),
        ("weight=inf", "toy: weight=inf is not a finite number"),
        ("weight=heavy", "toy: weight=heavy is not a finite number"),
        ("soft=yes", "toy: soft=yes is not true or false"),
        ("shape=oval", r"^Toy takes shape=round\|square, not oval$"),
    ],
)
def test_what_cannot_be_read_is_named(option, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        with_options(Toy, [option], "toy")


def test_an_option_is_the_first_dataclass_that_has_it():
    assert split_options(["rate=1", "size=2"], Toy, Other) == [["size=2"], ["rate=1"]]


@pytest.mark.parametrize("option", ["colour=1", "steps=4", "size"])
def test_an_option_of_nobody_is_named_with_all_that_there_are(option):
    sentence = (
        f"--set {option}: Toy has no such option; write KEY=VALUE with one of cap, rank, rate, "
        "shape, size, soft, weight$"
    )
    with pytest.raises(WorkbenchError, match=sentence):
        split_options([option], Toy, Other, fixed=("steps",))


@pytest.mark.parametrize("kind", [Toy, type("Heir", (Toy,), {})])
def test_choices_are_those_of_the_annotation(kind):
    assert kind(rank=2).rank == 2
    with pytest.raises(WorkbenchError, match=rf"^{kind.__name__} takes rank=1\|2, not 3$"):
        kind(rank=3)
