"""The page about the states of a job is drawn from the table of transitions."""

from __future__ import annotations

import re

from gpuqueue.domain.job import State
from gpuqueue.domain.transitions import TRANSITIONS
from tests.contract.readme import STATES, states_page


def test_the_page_is_that_of_the_table() -> None:
    assert STATES.read_text() == states_page(), "run: uv run python -m tests.contract.readme"


def test_the_diagram_has_every_state_and_every_transition_from_each_of_its_sources() -> None:
    arrows = re.findall(r"^    (\S+) --> (\S+) : (.+)$", states_page(), re.MULTILINE)
    assert {state for source, target, _ in arrows for state in (source, target)} == {"[*]", *State}
    assert {(source, name, target) for source, target, names in arrows for name in names.split(", ")} == {
        (source, move.name, move.target) for move in TRANSITIONS for source in move.sources or ("[*]",)
    }
