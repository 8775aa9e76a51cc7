"""What a job needs of a device, and where it fits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.contract.hookspecs import JobDemandDetails, PlaceJobDetails
from gpuqueue.decisions.policies.vram import Memory
from gpuqueue.domain.answers import Demand, Placement
from gpuqueue.domain.device import DeviceProcess, Reading, Resident
from gpuqueue.domain.estimates import SHOWN, VRAM, model_key
from gpuqueue.domain.memory import devices_for
from gpuqueue.domain.view import DeviceView, Estimate
from gpuqueue.testing.views import BATCH, GB, GPU0, MODELS, NOW, backend, job, reservation, view

GEMMA = Demand(4_500_000_000, "gemma4:e4b")
NOMIC = Demand(500_000_000, "nomic-embed-text")
WIDE = replace(GPU0, slots=3, max_models=2)


@pytest.mark.parametrize(
    ("changes", "demand"),
    [
        ({}, GEMMA),
        ({"arguments": {"model": "nomic-embed-text:latest"}}, Demand(500_000_000, "nomic-embed-text:latest")),
        ({"arguments": {"model": "unsized"}}, Demand(5 * GB, "unsized")),
        ({"task": "app.train", "arguments": {"model": "gemma4:e4b"}}, Demand(5 * GB)),
    ],
    ids=["configured", "configured without its tag", "a model of unknown size", "a function"],
)
def test_a_job_needs_its_models_size_or_the_whole_budget(changes, demand):
    assert Memory().job_demand(JobDemandDetails(job(**changes), BATCH, view())) == demand


def place(demand, *devices):
    answer = Memory().place_job(PlaceJobDetails(job(), demand, BATCH, view(devices=devices)))
    return answer if isinstance(answer, Placement) else (answer.reason, answer.detail)


def test_an_idle_device_takes_what_its_budget_allows():
    assert place(GEMMA, DeviceView(GPU0)) == Placement("gpu0", 4_500_000_000)


@pytest.mark.parametrize(
    ("demand", "device", "reason", "said"),
    [
        (Demand(6 * GB), DeviceView(GPU0), "never_fits", "needs 6 GB; gpu0's budget is 5 GB. Raise [gpu] budget"),
        (NOMIC, DeviceView(GPU0, reservations=(reservation(),)), "device_busy", "gpu0 is running job 7 (ai-batch)"),
        (
            NOMIC,
            DeviceView(GPU0, reservations=(reservation(running=False),)),
            "clean_up",
            "waiting for job 7's memory on gpu0 to be released",
        ),
        (
            NOMIC,
            DeviceView(replace(WIDE, max_models=1), reservations=(reservation(),)),
            "max_models",
            "gpu0 is running gemma4:e4b and holds at most 1 model",
        ),
        (
            GEMMA,
            DeviceView(WIDE, reservations=(reservation(bytes=GB, model="other"),)),
            "vram",
            "needs 4.5 GB; 4 GB of gpu0's budget is free",
        ),
    ],
)
def test_a_job_that_does_not_fit_is_told_why(demand, device, reason, said):
    found = place(demand, device)
    assert found[0] == reason
    assert said in found[1]


def test_memory_that_is_not_seen_to_be_back_still_counts():
    assert place(NOMIC, DeviceView(WIDE, reservations=(reservation(bytes=4_800_000_000, running=False),)))[0] == "vram"


def test_several_jobs_share_a_device_that_has_slots_models_and_room():
    assert place(NOMIC, DeviceView(WIDE, reservations=(reservation(),))) == Placement("gpu0", 500_000_000)


def test_of_several_devices_the_first_with_room_is_taken():
    second = replace(GPU0, name="gpu1")
    assert place(GEMMA, DeviceView(GPU0, reservations=(reservation(),)), DeviceView(second)) == Placement("gpu1", 4_500_000_000)


def test_a_device_that_may_take_the_job_later_is_named_before_one_that_never_can():
    small = replace(GPU0, name="gpu1", budget_bytes=GB)
    assert place(GEMMA, DeviceView(small), DeviceView(GPU0, reservations=(reservation(),)))[0] == "device_busy"


def test_a_gpu_queue_without_a_device_says_so():
    assert place(GEMMA) == ("no_device", "queue 'ai-batch' has gpu = true, but no [gpu] is configured")


# --- sizes that were learned ---


def demand(estimates=None, models=MODELS, **changes):
    seen = replace(view(), estimates={key: Estimate(value, 3) for key, value in (estimates or {}).items()}, models=models)
    return Memory().job_demand(JobDemandDetails(job(**changes), BATCH, seen)).vram_bytes


KEY = model_key("gemma4:e4b")


def test_what_a_job_asks_for_itself_comes_first_then_what_was_seen_then_what_is_configured_then_the_description():
    learned = {(VRAM, KEY): 4.7e9, (SHOWN, KEY): 3e9}
    assert demand(learned, wanted_bytes=GB) == GB
    assert demand(learned) == 4_700_000_000
    assert demand({(SHOWN, KEY): 3e9}) == 4_500_000_000
    assert demand({(SHOWN, KEY): 3e9}, models={}) == 3 * GB
    assert demand({}, models={}) == 5 * GB


def test_a_size_holds_for_the_options_with_which_it_was_seen():
    large = {"gemma4:e4b": replace(MODELS["gemma4:e4b"], options={"num_ctx": 8192})}
    seen = {(VRAM, model_key("gemma4:e4b", {"num_ctx": 8192})): 4.9e9, (VRAM, KEY): 4.1e9}
    assert demand(seen, models=large) == 4_900_000_000
    assert demand(seen) == 4_100_000_000


def test_a_function_takes_what_it_asks_for():
    assert demand(task="app.train", wanted_bytes=2 * GB) == 2 * GB


# --- the card as it is ---

CARD = Reading(at=NOW, total_bytes=8 * GB, free_bytes=7 * GB)
MIN = GPU0.min_free_bytes


def on_card(demand=GEMMA, reading=CARD, device=GPU0, **rest):
    return place(demand, DeviceView(device, reading, **rest))


def test_a_job_starts_only_when_the_memory_is_really_free_and_a_little_stays_free():
    needed = GEMMA.vram_bytes + MIN
    assert on_card(reading=replace(CARD, free_bytes=needed)) == Placement("gpu0", GEMMA.vram_bytes)
    reason, detail = on_card(reading=replace(CARD, free_bytes=needed - 1))
    assert reason == "memory_taken"
    assert "needs 4.77 GB including the reserve; gpu0 has 4.77 GB free (read 0 s ago). Other programs hold 3.23 GB" in detail


def test_the_programs_that_hold_the_memory_are_named_the_largest_first():
    programs = (DeviceProcess(7, GB, "firefox"), DeviceProcess(8, 3 * GB, None), DeviceProcess(9, None, "unknown"))
    _, detail = on_card(reading=replace(CARD, free_bytes=GB, processes=programs))
    assert "Largest users: a program (pid 8, 3 GB), firefox (pid 7, 1 GB)" in detail


def test_what_of_the_model_is_loaded_already_needs_no_memory_and_what_is_in_the_way_will_be_evicted():
    mine = Resident("gemma4:e4b", GEMMA.vram_bytes, GEMMA.vram_bytes)
    other = Resident("llama3:8b", 4 * GB, 4 * GB)
    assert on_card(reading=replace(CARD, free_bytes=MIN), residents=(mine,)) == Placement("gpu0", GEMMA.vram_bytes)
    assert on_card(reading=replace(CARD, free_bytes=GB), residents=(other,)) == Placement("gpu0", GEMMA.vram_bytes)


def test_what_a_running_job_has_reserved_and_not_taken_yet_is_not_free():
    wide = replace(WIDE, budget_bytes=8 * GB)
    loading = reservation(bytes=4_500_000_000)
    assert on_card(NOMIC, device=wide, reservations=(loading,)) == Placement("gpu0", NOMIC.vram_bytes)
    reason, _ = on_card(NOMIC, replace(CARD, free_bytes=5 * GB), wide, reservations=(loading,))
    assert reason == "memory_taken"
    loaded = Resident("gemma4:e4b", 4_500_000_000, 4_500_000_000)
    few = replace(CARD, free_bytes=GB)
    assert on_card(NOMIC, few, wide, reservations=(loading,), residents=(loaded,)) == Placement("gpu0", NOMIC.vram_bytes)


def test_where_no_driver_can_say_what_is_free_or_said_so_long_ago_the_budget_is_trusted():
    assert on_card(reading=Reading(at=NOW)) == Placement("gpu0", GEMMA.vram_bytes)
    old = replace(CARD, at=NOW - timedelta(seconds=11), free_bytes=0)
    assert on_card(reading=old) == Placement("gpu0", GEMMA.vram_bytes)


def test_a_lost_card_takes_no_job_and_says_why():
    assert on_card(reading=Reading(at=NOW, lost="it fell off the bus")) == (
        "device_lost",
        "gpu0 cannot be read: it fell off the bus",
    )


# --- a device of one's choice ---


def choose(wanted, *devices):
    answer = Memory().place_job(PlaceJobDetails(job(wanted_device=wanted), GEMMA, BATCH, view(devices=devices)))
    return answer if isinstance(answer, Placement) else (answer.reason, answer.detail)


def test_a_job_may_name_its_device_or_a_label_of_several():
    first, second = DeviceView(GPU0), DeviceView(replace(GPU0, name="gpu1", labels=("fast",)))
    assert choose("gpu1", first, second) == choose("fast", first, second) == Placement("gpu1", GEMMA.vram_bytes)
    assert choose("slow", first, second) == ("no_device", "unknown device 'slow'. Devices: fast, gpu0, gpu1")


# --- several devices, several Ollamas ---


def two_cards(*backends, placement="pack", loaded=(), first=(), second=()):
    cards = (
        DeviceView(GPU0, reservations=first),
        DeviceView(replace(GPU0, name="gpu1", slots=2), residents=loaded, reservations=second),
    )
    ollamas = {item.name: item for item in backends or (backend(),)}
    return replace(view(devices=cards), backends=ollamas, placement=placement)


def order_of(seen, model="gemma4:e4b", wanted=None, queue=BATCH):
    return [device.settings.name for device in devices_for(wanted, model, queue, seen)]


def test_the_card_with_the_model_comes_first_then_the_fullest_or_the_emptiest():
    some = (reservation(bytes=GB),)
    assert order_of(two_cards(second=some)) == ["gpu1", "gpu0"], "packed"
    assert order_of(two_cards(second=some, placement="spread")) == ["gpu0", "gpu1"]
    loaded = (Resident("gemma4:e4b", GB, GB),)
    assert order_of(two_cards(loaded=loaded, second=some, placement="spread")) == ["gpu1", "gpu0"]
    assert order_of(two_cards(loaded=loaded, first=some), model="") == ["gpu0", "gpu1"], "a function needs no model"


def test_only_the_cards_of_the_queues_ollamas_are_asked():
    desk, tower = backend(name="desk", device="gpu0"), backend(name="tower", device="gpu1")
    assert order_of(two_cards(desk, tower)) == ["gpu0", "gpu1"]
    assert order_of(two_cards(desk, tower), queue=replace(BATCH, backend="tower")) == ["gpu1"]
    assert order_of(two_cards(desk)) == ["gpu0"], "no Ollama computes on the other"
    assert order_of(two_cards(desk), model="") == ["gpu0", "gpu1"]
    assert order_of(two_cards(desk, tower), wanted="gpu0", queue=replace(BATCH, backend="tower")) == []


def test_of_several_cards_each_says_why_it_has_no_room():
    desk = backend(name="desk", device="gpu0", available=False, error="nothing listens")
    tower = backend(name="tower", device="gpu1")
    full = (reservation(7), reservation(8))
    seen = two_cards(desk, tower, second=full)
    found = place_in(seen)
    assert (found.reason, found.detail) == (
        "device_busy",
        "gpu1 is running job 7 (ai-batch), job 8 (ai-batch); desk: nothing listens",
    )
    assert place_in(two_cards(desk, tower)) == Placement("gpu1", 4_500_000_000)


def test_an_ollama_that_is_away_is_named_only_where_another_is_there_because_else_the_queue_is_held():
    desk = backend(name="desk", device="gpu0", available=False, error="nothing listens")
    tower = backend(name="tower", device="gpu1", available=False, error="nothing listens")
    seen = two_cards(desk, tower, first=(reservation(7),), second=(reservation(8), reservation(9)))
    assert place_in(seen).reason == "device_busy"
    assert "unavailable" not in place_in(seen).detail


def place_in(seen):
    return Memory().place_job(PlaceJobDetails(job(), Demand(4_500_000_000, "gemma4:e4b"), BATCH, seen))
