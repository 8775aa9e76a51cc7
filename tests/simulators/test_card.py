from __future__ import annotations

import threading

import pytest

from gpuqueue.simulators.card import CardProcess, GpuIsLost, OutOfMemory, ReadableCard, Release, SimulatedCard
from gpuqueue.testing.waiting import DEADLINE_S


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def card(clock: Clock) -> SimulatedCard:
    return SimulatedCard(total_bytes=1000, reserved_bytes=100, release_delay_s=(2.0, 2.0), speed=2.0, clock=clock)


def test_used_and_free_memory_add_up_to_the_card(card: SimulatedCard) -> None:
    card.allocate("a", 300)
    card.take(50)

    assert (card.used_bytes, card.free_bytes, card.total_bytes) == (450, 550, 1000)
    assert (card.held_bytes("a"), card.held_bytes("b"), card.other_bytes) == (300, 0, 50)


def test_more_than_is_free_is_refused_and_changes_nothing(card: SimulatedCard) -> None:
    card.allocate("a", 300)

    with pytest.raises(OutOfMemory, match="b asked for 601 bytes, but only 600 of 1000 are free"):
        card.allocate("b", 601)

    card.allocate("b", 600)
    assert card.free_bytes == 0


def test_freed_memory_comes_back_after_the_delay_at_the_cards_speed(card: SimulatedCard, clock: Clock) -> None:
    card.allocate("a", 900)

    assert card.free("a") == 1.0
    assert (card.free_bytes, card.returning_bytes, card.returned_in_s) == (0, 900, 1.0)
    assert card.processes() == ()

    clock.now_s += 0.75
    assert (card.free_bytes, card.returned_in_s) == (0, 0.25)
    clock.now_s += 0.25
    assert (card.free_bytes, card.returning_bytes, card.returned_in_s) == (900, 0, 0.0)


def test_each_release_comes_back_at_its_own_time(card: SimulatedCard, clock: Clock) -> None:
    card.allocate("a", 100)
    card.allocate("b", 200)
    card.free("a", delay_s=2.0)
    card.free("b", delay_s=6.0)

    clock.now_s += 1.0
    assert card.returning_bytes == 200
    assert card.returned_in_s == 2.0
    clock.now_s += 2.0
    assert card.returning_bytes == 0


def test_freeing_what_holds_nothing_is_no_unload(card: SimulatedCard) -> None:
    assert card.free("nobody") == 0.0
    assert card.report()["unloads"] == 0


def test_another_program_takes_and_gives_at_once(card: SimulatedCard) -> None:
    card.take(800)
    with pytest.raises(OutOfMemory, match="101 bytes, but only 100 are free"):
        card.take(101)
    with pytest.raises(ValueError, match="holds 800 bytes and cannot release 801"):
        card.give(801)
    card.give(700)

    assert (card.other_bytes, card.free_bytes) == (100, 800)


def test_processes_are_listed_in_their_order_with_the_other_program_last(card: SimulatedCard) -> None:
    card.take(10)
    card.allocate("a", 20)
    card.allocate("b", 30, name="trainer")
    card.allocate("a", 5)

    assert card.processes() == (
        CardProcess(4001, "ollama", 25),
        CardProcess(4002, "trainer", 30),
        CardProcess(4000, "another program", 10),
    )


def test_the_peak_counts_memory_that_is_still_coming_back_but_not_other_programs(card: SimulatedCard, clock: Clock) -> None:
    card.take(100)
    card.allocate("a", 300)
    card.free("a")
    card.allocate("b", 400)
    clock.now_s += 10
    card.free("b")

    assert card.peak_bytes == 700


def test_computations_of_two_requests_at_once_are_an_overlap(card: SimulatedCard) -> None:
    with card.computing("gemma#1", request="job 1"):
        assert card.computing_now == ("job 1",)
        with card.computing("nomic#2", request="job 2"):
            assert card.computing_now == ("job 1", "job 2")
        with card.computing("nomic#2", request="job 3"):
            pass

    assert card.overlap_count == 2
    assert card.computing_now == ()


def test_one_request_may_compute_twice_and_one_may_follow_another(card: SimulatedCard) -> None:
    with card.computing("a", request="job 1", kind="load"), card.computing("b", request="job 1"):
        pass
    with card.computing("c"):
        pass

    assert card.overlap_count == 0


def test_the_record_has_every_computation_and_the_time_the_card_was_busy(card: SimulatedCard, clock: Clock) -> None:
    with card.computing("a", request="job 1", kind="load"):
        clock.now_s += 2
        with card.computing("b", request="job 2"):
            clock.now_s += 1
    clock.now_s += 10
    with pytest.raises(ZeroDivisionError), card.computing("c"):
        clock.now_s += 4
        raise ZeroDivisionError
    card.allocate("a", 100)
    card.free("a")
    card.note_spill()

    assert [(entry.owner, entry.request, entry.kind) for entry in card.compute_log] == [
        ("b", "job 2", "compute"),
        ("a", "job 1", "load"),
        ("c", "c", "compute"),
    ]
    assert (card.compute_log[1].started_s, card.compute_log[1].ended_s) == (1000.0, 1003.0)
    assert card.report() == {
        "overlaps": 1,
        "peak_bytes": 100,
        "total_bytes": 1000,
        "loads": 1,
        "unloads": 1,
        "spills": 1,
        "busy_s": 7.0,
    }


def test_parts_of_a_computation_are_listed_beside_it_and_counted_once(card: SimulatedCard, clock: Clock) -> None:
    with card.computing("a", request="job 1", kind="generate"):
        with card.part("a", request="job 1", kind="prompt"):
            clock.now_s += 1
        with pytest.raises(ZeroDivisionError), card.part("a", request="job 1", kind="decode"):
            clock.now_s += 2
            raise ZeroDivisionError

    assert [(entry.kind, entry.started_s, entry.ended_s) for entry in card.compute_log] == [
        ("prompt", 1000.0, 1001.0),
        ("decode", 1001.0, 1003.0),
        ("generate", 1000.0, 1003.0),
    ]
    assert (card.report()["busy_s"], card.overlap_count) == (3.0, 0)


def test_the_record_says_what_was_freed_and_when_it_was_back(card: SimulatedCard, clock: Clock) -> None:
    card.allocate("a", 300)
    clock.now_s += 5
    card.free("a")
    card.free("nobody")

    assert card.release_log == (Release("a", 300, 1005.0, 1006.0),)


def test_the_busy_time_grows_while_something_computes(card: SimulatedCard, clock: Clock) -> None:
    with card.computing("a"):
        clock.now_s += 3
        assert card.report()["busy_s"] == 3.0


def test_a_busy_card_reads_hotter_than_an_idle_one(card: SimulatedCard) -> None:
    idle = card.reading()
    with card.computing("a"):
        busy = card.reading()

    assert (idle.utilisation_percent, busy.utilisation_percent) == (0, 97)
    assert busy.temperature_c > idle.temperature_c
    assert busy.power_w > idle.power_w


def test_a_card_may_be_made_as_hot_as_a_test_needs(card: SimulatedCard) -> None:
    card.temperature_c = 91
    with card.computing("a"):
        assert card.reading().temperature_c == 91
    assert card.reading().temperature_c == 91


def test_a_reading_is_whole(card: SimulatedCard) -> None:
    card.allocate("a", 300)
    reading = card.reading()

    assert isinstance(card, ReadableCard)
    assert (reading.total_bytes, reading.reserved_bytes, reading.used_bytes, reading.free_bytes) == (1000, 100, 400, 600)
    assert (reading.name, reading.uuid, reading.lost) == (card.name, card.uuid, False)
    assert reading.processes == card.processes()


def test_a_lost_card_computes_and_allocates_nothing_but_can_be_read(card: SimulatedCard) -> None:
    card.lost = True

    with pytest.raises(GpuIsLost, match=card.uuid):
        card.allocate("a", 1)
    with pytest.raises(GpuIsLost), card.computing("a"):
        pass
    assert card.reading().lost
    assert card.report()["busy_s"] == 0


def test_the_same_seed_gives_the_same_delays() -> None:
    def delays(seed: int) -> list[float]:
        card = SimulatedCard(seed=seed)
        for owner in "abc":
            card.allocate(owner, 1)
        return [card.free(owner) for owner in "abc"]

    assert delays(1) == delays(1)
    assert delays(1) != delays(2)
    assert all(0.5 <= delay_s <= 1.5 for delay_s in delays(3))


def test_threads_that_compete_never_get_more_than_the_card_has() -> None:
    card = SimulatedCard(total_bytes=1000, reserved_bytes=0, release_delay_s=(0, 0))
    start = threading.Barrier(8, timeout=DEADLINE_S)

    def compete(name: str) -> None:
        start.wait()
        for _ in range(200):
            try:
                card.allocate(name, 400)
            except OutOfMemory:
                continue
            with card.computing(name):
                card.free(name)

    threads = [threading.Thread(target=compete, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert card.peak_bytes <= 800
    assert (card.free_bytes, card.computing_now) == (1000, ())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"speed": 0}, "speed must be greater than 0"),
        ({"reserved_bytes": -1}, "reserved_bytes"),
        ({"total_bytes": 10, "reserved_bytes": 11}, "reserved_bytes"),
        ({"release_delay_s": (2.0, 1.0)}, "release_delay_s"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SimulatedCard(**wrong)  # type: ignore[arg-type]
