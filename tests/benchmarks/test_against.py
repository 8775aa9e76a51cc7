"""The parts of the comparison with another commit that need no time: its figures, and what it is asked."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.against import SAMPLES, Ratios, base_commit, main, verdict

QUIET = Ratios(1.0, 0.01)


def test_the_commit_that_is_compared_with_is_named_in_full() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", base_commit())


def test_ratios_are_those_of_the_pairs() -> None:
    assert Ratios.of([2.0, 4.0, 6.0], [2.0, 2.0, 2.0]) == Ratios(2.0, 0.5)


@pytest.mark.parametrize(
    ("same", "other", "words"),
    [
        (QUIET, Ratios(0.5, 0.01), "within"),
        (QUIET, Ratios(1.029, 0.2), "within"),
        (QUIET, Ratios(1.04, 0.2), "slower by 4.0%"),
        (Ratios(1.0, 0.05), Ratios(1.04, 0.01), "within"),
        (Ratios(0.95, 0.01), Ratios(1.04, 0.01), "within"),
        (Ratios(0.95, 0.05), Ratios(1.06, 0.01), "slower by 6.0%"),
    ],
)
def test_slower_is_what_the_machine_itself_does_not_explain(same: Ratios, other: Ratios, words: str) -> None:
    assert verdict(same, other) == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["HEAD", "--pairs", "2", "lifo"], "there is no lifo"),
        (["pickup", "HEAD"], "there is no HEAD"),
        (["--pairs", "1"], "two or more"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert words in capsys.readouterr().err


def test_a_commit_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-commit", *SAMPLES]) == 2
    assert "no-such-commit" in capsys.readouterr().err
