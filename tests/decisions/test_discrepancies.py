"""Where the driver, Ollama and the queue disagree: each check by itself, and what it says to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gpuqueue.decisions.discrepancies import CardSight, Discrepancy, OllamaSight, discrepancies
from gpuqueue.domain.device import DeviceProcess, Reading, Resident
from gpuqueue.domain.estimates import VRAM, model_key
from gpuqueue.domain.settings import ModelSettings
from gpuqueue.domain.view import DeviceView, Estimate, Reservation, View, WorkerInfo
from gpuqueue.testing.views import GB, GPU0, MODELS, NOW, backend, reservation, view

GEMMA = Resident("gemma4:e4b", 4_500_000_000, 4_500_000_000)
MARGIN = replace(GPU0, margin_bytes=3 * GB)
RUNNER = DeviceProcess(4001, 4_700_000_000, "ollama")
GAME = DeviceProcess(77, 3_200_000_000, "game")
WORKER = WorkerInfo("w", "desk", 1, None, NOW, NOW, "digest", True)
IDLE_BYTES = 300_000_000  # what the driver keeps of an idle card
LONG_AGO = NOW - timedelta(minutes=5)


def reading(used_bytes: int = IDLE_BYTES, **changes: Any) -> Reading:
    """A reading of a card of 8.6 GB, in which processes are listed."""
    total_bytes = 8_600_000_000
    figures: dict[str, Any] = {"name": "RTX", "total_bytes": total_bytes, "processes": ()}
    return Reading(NOW, **{**figures, "free_bytes": total_bytes - used_bytes, **changes})


def card(*reservations: Reservation, residents: tuple[Resident, ...] = (), **changes: Any) -> CardSight:
    """A card that is read here and whose Ollama is asked here; nothing disagrees on it."""
    read = changes.pop("reading", reading())
    settings = changes.pop("settings", MARGIN)
    device = DeviceView(settings, read, residents, reservations, model=changes.pop("model", ""))
    sight = CardSight(device, read_here=True, published=read, asked_here=True, ollamas=("ollama",), reserved_before=reservations)
    return replace(sight, **changes)


def running(*, job_id: int = 7, model: str = "gemma4:e4b", bytes: int = 4_500_000_000, since: Any = LONG_AGO) -> Reservation:
    return replace(reservation(job_id, model=model, bytes=bytes), started_at=since)


def seen(
    *cards: CardSight, ollama: OllamaSight | None = None, workers: tuple[WorkerInfo, ...] = (WORKER,), **changes: Any
) -> Any:
    """What disagrees."""
    now: View = replace(view(devices=tuple(item.device for item in cards)), workers=workers, **changes)
    return discrepancies(cards, [ollama] if ollama else [], now)


def codes(found: list[Discrepancy]) -> list[str]:
    return [item.what for item in found]


def only(found: list[Discrepancy]) -> Discrepancy:
    assert len(found) == 1, found
    return found[0]


# --- nothing disagrees ---

BUSY = card(
    running(),
    residents=(GEMMA,),
    reading=reading(4_800_000_000, processes=(RUNNER,)),
    owners={4001: "ollama"},
)


@pytest.mark.parametrize(
    "quiet",
    [
        card(),
        BUSY,
        card(reservation(running=False)),
        card(reading=None, published=None, read_here=False, asked_here=False),
        card(reading=Reading(NOW), published=Reading(NOW), read_here=False),
        card(reading=Reading(LONG_AGO), published=Reading(LONG_AGO), read_here=False),
        card(running(model="", bytes=4 * GB), reading=reading(4 * GB, processes=(DeviceProcess(9, 4 * GB, "python"),))),
    ],
    ids=["idle", "busy", "cleaning up", "never seen", "on another host", "there long ago", "a job without a model"],
)
def test_nothing_disagrees_about_a_card_that_does_what_is_asked(quiet: CardSight) -> None:
    assert seen(quiet, ollama=OllamaSight(backend(), ())) == []


# --- the card ---


def test_a_card_that_is_lost_is_named_with_the_reason() -> None:
    lost = Reading(NOW, lost="the card fell off the bus")
    found = only(seen(card(reading=lost, published=lost)))
    assert found.what == "card_lost"
    assert "gpu0 is configured but cannot be read: the card fell off the bus" in found.detail
    assert "where the worker runs" in only(seen(card(reading=lost, read_here=False))).detail


@pytest.mark.parametrize(("workers", "advice"), [((), "start a worker"), ((WORKER,), "log of the worker")])
def test_a_workers_reading_that_is_old_says_so_and_how_old(workers: Any, advice: str) -> None:
    old = replace(reading(), at=NOW - timedelta(hours=2))
    found = only(seen(card(reading=old, read_here=False), workers=workers))
    assert found.what == "reading_old"
    assert "2h ago" in found.detail
    assert advice in found.advice
    assert seen(card(reading=replace(old, at=NOW - timedelta(seconds=9)), read_here=False)) == []


@pytest.mark.parametrize(
    ("published", "said"),
    [
        (reading(name="RTX 4090", total_bytes=24 * GB), "the worker's gpu0 is RTX 4090 (24 GB), the one here is RTX (8.6 GB)"),
        (Reading(NOW), "the worker does not see it and relies on the budget alone"),
        (Reading(NOW, lost="no permission"), "the worker cannot read it: no permission"),
    ],
)
def test_a_worker_that_reads_another_card_under_the_same_name_is_seen(published: Reading, said: str) -> None:
    found = only(seen(card(published=published)))
    assert found.what == "another_card"
    assert said in found.detail
    # What no worker has said for long is said by the age of the reading, where that is all there is.
    assert seen(card(published=replace(published, at=NOW - timedelta(hours=1)))) == []


def test_a_budget_that_with_its_margin_is_more_than_the_card_is_named_with_the_figures() -> None:
    found = only(seen(card(settings=replace(MARGIN, margin_bytes=4 * GB))))
    assert found.what == "budget_above_card"
    assert "(5 GB + 4 GB) exceeds the card's 8.6 GB" in found.detail


# --- memory ---


def test_other_programs_that_hold_more_than_the_margin_are_named_with_their_memory() -> None:
    busy = reading(IDLE_BYTES + 3_200_000_000, processes=(GAME,))
    small = replace(MARGIN, budget_bytes=4 * GB)
    found = seen(card(reading=busy, owners={77: "other"}, settings=small))
    assert only(found).what == "others_hold_memory"
    assert "other programs hold 3.2 GB: game (pid 77, 3.2 GB)" in found[0].detail
    assert "3 GB" in found[0].detail
    assert seen(card(reading=busy, owners={77: "other"}, settings=replace(small, margin_bytes=4 * GB))) == []


def test_what_a_worker_and_the_runner_hold_is_not_counted_as_others() -> None:
    ours = DeviceProcess(9, 3_100_000_000, "python")
    both = reading(IDLE_BYTES + 3_200_000_000, processes=(replace(RUNNER, used_bytes=100_000_000), ours))
    quiet = card(reading=both, owners={4001: "ollama", 9: "gpuqueue"}, settings=replace(MARGIN, budget_bytes=4 * GB))
    assert seen(quiet) == []
    assert codes(seen(replace(quiet, owners={4001: "ollama", 9: "unknown"}))) == ["others_hold_memory"]


def test_the_memory_of_a_job_without_a_model_may_be_in_any_process() -> None:
    server = DeviceProcess(9, 4_500_000_000, "vllm")
    lent = running(model="", bytes=2 * GB)
    unreserved = card(reading=reading(4_800_000_000, processes=(server,)), owners={9: "other"})
    assert "others_hold_memory" in codes(seen(unreserved))
    assert seen(replace(unreserved, device=replace(unreserved.device, reservations=(lent,)))) == []


@pytest.mark.parametrize("processes", [None, (), (replace(GAME, used_bytes=None), RUNNER)], ids=["none", "empty", "no memory"])
def test_without_the_processes_memory_what_is_left_over_is_others(processes: Any) -> None:
    settings = replace(MARGIN, budget_bytes=2 * GB)
    full = card(residents=(GEMMA,), reading=reading(8_500_000_000, processes=processes), settings=settings, model="gemma4:e4b")
    assert "others_hold_memory" not in codes(seen(full))
    found = seen(card(reading=reading(4_500_000_000, processes=processes), settings=replace(settings, margin_bytes=GB)))
    assert found[0].what == "others_hold_memory"
    assert "about" in found[0].detail
    reserved = running(bytes=3 * GB)
    awaited = card(reserved, reading=reading(4_500_000_000, processes=processes), settings=replace(settings, margin_bytes=GB))
    assert "others_hold_memory" not in codes(seen(awaited))


def test_a_budget_that_the_card_has_no_memory_for_says_what_still_fits() -> None:
    found = seen(card(reading=reading(4_600_000_000), settings=replace(MARGIN, margin_bytes=0, min_free_bytes=GB)))
    assert only([item for item in found if item.what == "budget_not_free"])
    detail = next(item.detail for item in found if item.what == "budget_not_free")
    assert "5 GB of the budget is free, but the card has room for only 3 GB (min_free is 1 GB); a larger job waits" in detail


def test_memory_that_a_loaded_model_would_leave_counts_as_free_and_an_old_reading_says_nothing() -> None:
    warm = replace(MARGIN, keep_warm_s=60)
    kept = card(residents=(GEMMA,), reading=reading(4_800_000_000, processes=(RUNNER,)), settings=warm, model="gemma4:e4b")
    assert seen(replace(kept, owners={4001: "ollama"})) == []
    full = reading(8 * GB)
    assert "budget_not_free" in codes(seen(card(reading=full)))
    assert codes(seen(card(reading=replace(full, at=LONG_AGO), read_here=False))) == ["reading_old"]


def test_while_a_model_loads_or_leaves_nobody_can_tell_what_is_free() -> None:
    full = reading(8 * GB, processes=(RUNNER,))
    leaving, loading = reservation(running=False), running(since=NOW)
    for item, residents in ((leaving, ()), (leaving, (GEMMA,)), (loading, ())):
        assert "budget_not_free" not in codes(seen(card(item, residents=residents, reading=full, owners={4001: "ollama"})))
    assert "budget_not_free" in codes(seen(card(loading, residents=(GEMMA,), reading=full, owners={4001: "ollama"})))


# --- models ---


def test_a_model_that_no_job_has_reserved_is_another_programs() -> None:
    found = only(seen(replace(BUSY, device=replace(BUSY.device, reservations=()), reserved_before=())))
    assert found.what == "model_not_reserved"
    assert "gemma4:e4b is loaded on gpu0 with 4.5 GB" in found.detail
    assert "ollama stop gemma4:e4b" in found.advice


def test_a_model_whose_job_ended_while_it_was_looked_at_is_no_disagreement() -> None:
    assert seen(replace(BUSY, device=replace(BUSY.device, reservations=()))) == []


def test_two_names_of_one_model_are_one_model() -> None:
    named = card(
        running(model="nomic-embed-text", bytes=500_000_000),
        residents=(Resident("nomic-embed-text:latest", 500_000_000, 500_000_000),),
        reading=reading(IDLE_BYTES + 600_000_000),
    )
    assert seen(named) == []


@pytest.mark.parametrize(
    ("settings", "last", "expected"),
    [
        (replace(MARGIN, keep_warm_s=60), "gemma4:e4b", []),
        (replace(MARGIN, keep_warm_s=60), "nomic-embed-text", ["model_not_reserved"]),
        (replace(MARGIN, keep_warm_s=60, max_models=2), "nomic-embed-text", []),
        (replace(MARGIN, keep_warm_s="auto"), "gemma4:e4b", []),
        (MARGIN, "gemma4:e4b", ["model_not_reserved"]),
    ],
)
def test_a_model_that_is_kept_warm_is_as_it_should_be(settings: Any, last: str, expected: list[str]) -> None:
    read = reading(4_800_000_000, processes=(RUNNER,))
    assert codes(seen(card(residents=(GEMMA,), reading=read, settings=settings, model=last, owners={4001: "ollama"}))) == expected


def test_a_model_that_computes_on_the_cpu_alone_takes_nothing_of_the_card() -> None:
    on_cpu = card(residents=(replace(GEMMA, vram_bytes=0),))
    assert codes(seen(on_cpu)) == ["model_spilled"]


def test_a_job_whose_model_is_not_loaded_yet_is_told_from_one_that_lost_it() -> None:
    young, old = card(running(since=NOW - timedelta(seconds=5))), card(running())
    assert "wait a moment" in only(seen(young)).advice
    assert codes(seen(young)) == ["model_loading"]
    lost = only(seen(old))
    assert lost.what == "model_not_loaded"
    assert "job 7 (ai-batch) reserved 4.5 GB of gpu0 for gemma4:e4b 5m ago" in lost.detail
    assert "gpuqueue cancel 7" in lost.advice
    assert seen(replace(old, reserved_before=())) == [], "it began while it was looked at"
    ended = replace(old, device=replace(old.device, reservations=(reservation(running=False),)))
    assert seen(ended) == [], "it ended while it was looked at, and its model is gone"
    assert seen(replace(old, asked_here=False)) == [], "what a worker saw may be older than the job"


def test_a_model_that_spilled_is_named_with_what_is_outside() -> None:
    spilled = replace(GEMMA, vram_bytes=3_000_000_000)
    found = only(seen(replace(BUSY, device=replace(BUSY.device, residents=(spilled,)))))
    assert found.what == "model_spilled"
    assert "1.5 GB of gemma4:e4b (4.5 GB) did not fit on gpu0" in found.detail
    little = replace(GEMMA, vram_bytes=GEMMA.size_bytes - 1_000_000)
    assert seen(replace(BUSY, device=replace(BUSY.device, residents=(little,)))) == []


def test_an_ollama_that_computes_on_another_card_is_found_by_the_memory_that_is_not_used() -> None:
    empty = card(running(), residents=(GEMMA,), reading=reading())
    other = card(
        settings=replace(MARGIN, name="gpu1"),
        reading=reading(3_000_000_000, processes=(replace(RUNNER, used_bytes=2_700_000_000),)),
        owners={4001: "ollama"},
    )
    found = only(seen(empty, other))
    assert found.what == "model_elsewhere"
    assert "according to ollama, gemma4:e4b holds 4.5 GB, but only 300 MB of gpu0 is in use" in found.detail
    assert "gpu1 has ollama (pid 4001, 2.7 GB)" in found.detail
    loading = replace(empty, device=replace(empty.device, reservations=(running(since=NOW),)))
    assert seen(loading) == []


@pytest.mark.parametrize("from_where", ["Ollama now", "a job before"])
def test_a_model_that_takes_more_than_is_configured_says_what_to_write(from_where: str) -> None:
    options = {"num_ctx": 4096}
    models = {"gemma4:e4b": ModelSettings("gemma4:e4b", 4_000_000_000, options)}
    if from_where == "Ollama now":
        found = only(seen(BUSY, models=models))
    else:
        found = only(
            seen(card(), models=models, estimates={(VRAM, model_key("gemma4:e4b", options)): Estimate(4_520_000_000, 3)})
        )
    assert found.what == "model_larger"
    assert 'vram = "4.' in found.advice
    assert ('vram = "4.6GB"' in found.advice) == (from_where == "a job before")
    assert seen(BUSY, models=MODELS) == []


# --- who asks ---


@pytest.mark.parametrize(
    ("sight", "said"),
    [
        (
            OllamaSight(backend(available=False, error="connection refused"), ()),
            "was unavailable to the workers 0 s ago: connection refused",
        ),
        (OllamaSight(backend(), None, "no route"), "answered the workers 0 s ago, but does not answer here: no route"),
    ],
)
def test_an_ollama_that_answers_only_here_or_only_to_the_workers_is_seen(sight: OllamaSight, said: str) -> None:
    found = only(seen(card(), ollama=sight))
    assert found.what == "ollama_differs"
    assert said in found.detail
    assert seen(card(), ollama=sight, workers=()) == []
    assert seen(card(), ollama=sight._replace(noted=replace(sight.noted, checked_at=None))) == []


def test_workers_with_different_settings_are_grouped() -> None:
    others = (WORKER, replace(WORKER, id="v"), replace(WORKER, id="x", digest="other"))
    found = only(seen(card(), workers=others))
    assert found.what == "settings_differ"
    assert "w, v | x" in found.detail
