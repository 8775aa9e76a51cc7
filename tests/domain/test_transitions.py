"""The table of transitions keeps its own promises."""

from __future__ import annotations

import pytest

from gpuqueue.domain import transitions
from gpuqueue.domain.job import FINISHED, WAITING, State
from gpuqueue.domain.transitions import ONLY_IN, TRANSITIONS, Change, Transition

STEPS = [pytest.param(move, source, id=f"{move.name} from {source}") for move in TRANSITIONS for source in move.sources]
EACH = [pytest.param(move, id=move.name) for move in TRANSITIONS]


def test_the_table_has_every_transition_once() -> None:
    defined = [value for value in vars(transitions).values() if isinstance(value, Transition)]
    assert defined == list(TRANSITIONS)
    assert len({move.name for move in TRANSITIONS}) == len(TRANSITIONS)


@pytest.mark.parametrize(("move", "source"), STEPS)
def test_leaving_a_state_takes_away_what_only_it_has(move: Transition, source: State) -> None:
    for column, states in ONLY_IN.items():
        if source in states and move.target not in states:
            assert move.sets.get(column, "kept") in (None, 0), f"`{column}` outlives {source}"


@pytest.mark.parametrize("move", EACH)
def test_a_transition_writes_nothing_that_its_target_may_not_have(move: Transition) -> None:
    for column, states in ONLY_IN.items():
        if move.target not in states:
            assert move.sets.get(column) in (None, 0), f"`{column}` is no column of {move.target} jobs"


@pytest.mark.parametrize("move", EACH)
def test_a_job_that_finishes_is_given_its_time(move: Transition) -> None:
    assert (move.sets.get("finished_at") is Change.NOW) is (move.target in FINISHED)


@pytest.mark.parametrize(("move", "source"), STEPS)
def test_the_counters_follow_a_job_into_and_out_of_its_end(move: Transition, source: State) -> None:
    counted = {state: count for state, count in move.counted(source).items() if count}
    assert counted == {state: (state == move.target) - (state == source) for state in FINISHED if state in (source, move.target)}


@pytest.mark.parametrize(
    "move",
    [
        move
        for move in TRANSITIONS
        if move.name in ("snooze", "snooze over", "release", "preempt") or move.name.startswith("rescue")
    ],
    ids=lambda move: move.name,
)
def test_an_attempt_that_did_not_fail_by_itself_is_given_back(move: Transition) -> None:
    assert move.sets["attempt"] is Change.ONE_LESS


def test_a_job_that_made_room_says_how_often() -> None:
    assert transitions.PREEMPT.sets["preemptions"] is Change.ONE_MORE


def test_a_retry_by_a_person_starts_anew() -> None:
    sets = transitions.MANUAL_RETRY.sets
    assert (sets["attempt"], sets["crashes"], sets["error"], sets["expires_at"]) == (0, 0, None, None)


@pytest.mark.parametrize("move", [transitions.CLAIM, transitions.PLACE], ids=lambda move: move.name)
def test_a_new_attempt_has_said_nothing_yet(move: Transition) -> None:
    assert [move.sets.get(name, "kept") for name in ("progress", "progress_note", "output_tokens")] == [None, None, 0]


@pytest.mark.parametrize("move", EACH)
def test_a_lease_number_only_grows_and_grows_with_each_claim_and_rescue(move: Transition) -> None:
    grows = move.target is State.RUNNING or move.name.startswith("rescue") or move is transitions.REPAIR
    assert move.sets.get("lease") is (Change.ONE_MORE if grows else None)


@pytest.mark.parametrize("move", EACH)
def test_only_a_claim_reserves_and_no_transition_releases(move: Transition) -> None:
    reserves = {"device", "reserved_bytes"} <= move.sets.keys()
    assert reserves is (move is transitions.PLACE)
    assert not reserves or move.sets["device"] is move.sets["reserved_bytes"] is Change.GIVEN


def test_every_job_can_reach_every_end_and_a_completed_one_stays() -> None:
    leads_to = {state: {move.target for move in TRANSITIONS if state in move.sources} for state in State}
    for start in (move.target for move in TRANSITIONS if not move.sources):
        reached: set[State] = set()
        ahead = {start}
        while ahead:
            reached |= ahead
            ahead = {target for state in ahead for target in leads_to[state]} - reached
        assert reached == set(State) - {State.SCHEDULED} | {start}, "only a new job is scheduled"
    assert leads_to[State.COMPLETED] == set()
    for state in WAITING:
        assert {State.CANCELLED, State.DISCARDED} <= leads_to[state], "a person, or time, ends what waits"
