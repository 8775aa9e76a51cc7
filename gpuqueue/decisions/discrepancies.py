"""Reports where the driver, Ollama and the queue disagree about a card, with advice; asks none of them.

Each check is a function of what was seen, so it can be tested on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpuqueue.decisions.policies.residents import CONTEXT_BYTES, TOLERANCE_BYTES
from gpuqueue.devices.owners import Owner
from gpuqueue.domain.device import DeviceProcess, Reading, Resident
from gpuqueue.domain.estimates import VRAM, get
from gpuqueue.domain.memory import FRESH_S, available
from gpuqueue.domain.model_health import SPILL_BYTES, memory_key
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import taken_bytes
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.domain.view import Backend, DeviceView, Reservation, View

LOADING_S = 60.0  # an attempt that started more recently may still be loading its model
SHOWN_PROCESSES = 3

What = Literal[
    "card_lost",
    "reading_old",
    "another_card",
    "budget_above_card",
    "others_hold_memory",
    "budget_not_free",
    "model_not_reserved",
    "model_loading",
    "model_not_loaded",
    "model_spilled",
    "model_elsewhere",
    "model_larger",
    "ollama_differs",
    "settings_differ",
]


class Discrepancy(NamedTuple):
    """One disagreement and how to resolve it."""

    what: What
    detail: str
    advice: str


@dataclass(frozen=True, slots=True)
class CardSight:
    """What the driver, Ollama and the queue report about one card, all asked at nearly the same time."""

    device: DeviceView  # the newest reading and models; its reservations were read last
    read_here: bool = False  # the reading is from this process, else the one that a worker published
    published: Reading | None = None  # a worker's last reading of the card
    asked_here: bool = False  # the models are what Ollama told this process, else what a worker last saw
    ollamas: tuple[str, ...] = ()  # the backends that run on it
    reserved_before: tuple[Reservation, ...] = ()  # the reservations as they were before anything was asked
    owners: Mapping[int, Owner] = field(default_factory=dict)  # {pid: owner}

    @property
    def name(self) -> str:
        return self.device.settings.name

    def owner(self, process: DeviceProcess) -> Owner:
        return self.owners.get(process.pid, "unknown")


class OllamaSight(NamedTuple):
    """What a worker last saw of an Ollama, and its answer to this process; `residents` is None when it does not answer."""

    noted: Backend
    residents: tuple[Resident, ...] | None
    error: str = ""


def discrepancies(cards: Sequence[CardSight], ollamas: Sequence[OllamaSight], view: View) -> list[Discrepancy]:
    """List every disagreement, grouped by card."""
    found: list[Discrepancy] = []
    for card in cards:
        for check in OF_CARDS:
            found += check(card, view)
        found += model_elsewhere(card, cards, view)
    found += model_larger(cards, view)
    for ollama in ollamas:
        found += ollama_differs(ollama, view)
    return [*found, *settings_differ(view)]


# --- the card ---


def card_lost(card: CardSight, _view: View) -> Iterator[Discrepancy]:
    reading = card.device.reading
    if reading is not None and reading.lost is not None:
        where = "" if card.read_here else " where the worker runs"
        yield Discrepancy(
            "card_lost",
            f"{card.name} is configured but cannot be read{where}: {reading.lost}",
            "check nvidia-smi and dmesg there; jobs for it wait until it can be read again",
        )


def reading_old(card: CardSight, view: View) -> Iterator[Discrepancy]:
    reading = card.device.reading
    if reading is not None and reading.total_bytes is not None and reading.age_s(view.now) > FRESH_S:
        yield Discrepancy(
            "reading_old",
            f"{card.name} cannot be read from here, and a worker last read it {_age(reading, view)} ago; the values above may be "
            "outdated",
            f"{'check the log of the worker' if view.workers else 'start a worker'} on the machine with the card",
        )


def another_card(card: CardSight, view: View) -> Iterator[Discrepancy]:
    """A worker's reading of the card differs from the reading here."""
    here, there = card.device.reading, card.published
    if not card.read_here or here is None or here.lost is not None or there is None or there.age_s(view.now) > FRESH_S:
        return
    if there.lost is not None:
        said = f"the worker cannot read it: {there.lost}"
        advice = "check what is different for the worker, such as its user or its container, and restart it"
    elif there.total_bytes is None:
        said = "the worker does not see it and relies on the budget alone"
        advice = "give the worker access to the driver and the card, for example run its container with --gpus"
    elif (here.name, here.total_bytes) != (there.name, there.total_bytes):
        said = f"the worker's {card.name} is {_card(there)}, the one here is {_card(here)}"
        advice = 'name the card by its UUID, as `nvidia-smi -L` lists it: [gpu] device = "GPU-…"'
    else:
        return
    yield Discrepancy("another_card", f"{card.name} can be read here, but {said}", advice)


def budget_above_card(card: CardSight, _view: View) -> Iterator[Discrepancy]:
    settings, reading = card.device.settings, card.device.reading
    total_bytes = None if reading is None else reading.total_bytes
    if total_bytes is not None and settings.budget_bytes + settings.margin_bytes > total_bytes:
        yield Discrepancy(
            "budget_above_card",
            f"{card.name}: budget + margin ({format_size(settings.budget_bytes)} + {format_size(settings.margin_bytes)}) exceeds "
            f"the card's {format_size(total_bytes)}",
            "lower [gpu] budget or margin; no worker starts until then",
        )


# --- memory ---


def others_hold_memory(card: CardSight, view: View) -> Iterator[Discrepancy]:
    """Other programs hold more than the margin for them."""
    reading, settings = _fresh(card, view), card.device.settings
    if reading is None or reading.total_bytes is None or reading.free_bytes is None:
        return
    # The memory of a job without a model may be in any process, such as a server that it calls.
    lent_bytes = sum(item.reserved_bytes for item in card.device.reservations if not item.model)
    listed = reading.processes or ()
    if listed and all(process.used_bytes is not None for process in listed):
        own_bytes = _held(process for process in listed if card.owner(process) == "gpuqueue")
        others = [process for process in listed if card.owner(process) in ("other", "unknown")]
        held_bytes = _held(others) - max(0, lent_bytes - own_bytes)
        largest = sorted(others, key=lambda process: -(process.used_bytes or 0))[:SHOWN_PROCESSES]
        who = f"other programs hold {format_size(held_bytes)}: {', '.join(map(_program, largest))}"
    else:
        # Without a list, what is left over is theirs; a runner takes more than Ollama lists, and the driver keeps some too.
        residents = card.device.residents
        loaded = {full_name(item.model) for item in residents}
        awaited_bytes = taken_bytes(item for item in card.device.reservations if full_name(item.model) not in loaded)
        known_bytes = _bytes(residents) + awaited_bytes + CONTEXT_BYTES * (1 + len(residents))
        held_bytes = reading.total_bytes - reading.free_bytes - known_bytes
        who = f"other programs hold about {format_size(max(0, held_bytes))}, but the driver does not list them"
    if held_bytes > settings.margin_bytes:
        yield Discrepancy(
            "others_hold_memory",
            f"{card.name}: {who}; the margin for them is {format_size(settings.margin_bytes)}",
            "stop programs you do not need, or raise [gpu] margin and lower budget by the same amount",
        )


def budget_not_free(card: CardSight, view: View) -> Iterator[Discrepancy]:
    """The budget admits a job that does not fit in the card's free memory."""
    device = card.device
    loaded = {full_name(item.model) for item in device.residents}
    if any(not item.running or full_name(item.model) not in loaded for item in device.reservations):
        return  # what is reserved may be in use already, or not yet: it cannot be told
    left_bytes = device.settings.budget_bytes - device.reserved_bytes
    available_bytes = available(device, "")
    if _fresh(card, view) is None or available_bytes is None:
        return
    room_bytes = max(0, available_bytes - device.settings.min_free_bytes)
    if room_bytes < left_bytes:
        yield Discrepancy(
            "budget_not_free",
            f"{card.name}: {format_size(left_bytes)} of the budget is free, but the card has room for only "
            f"{format_size(room_bytes)} (min_free is {format_size(device.settings.min_free_bytes)}); a larger job waits",
            "check which process holds the memory, or lower [gpu] budget",
        )


# --- models ---


def model_not_reserved(card: CardSight, view: View) -> Iterator[Discrepancy]:
    """A model is loaded that no job uses and that is not kept, warm or for a job that waits while another model is used."""
    device = card.device
    if device.settings.max_models > 1 and any(item.settings.gpu and item.waiting_count for item in view.queues.values()):
        return
    reserved = {full_name(item.model) for item in (*card.reserved_before, *device.reservations)}
    for resident in device.residents:
        if resident.vram_bytes and full_name(resident.model) not in reserved and not kept_warm(device, resident):
            yield Discrepancy(
                "model_not_reserved",
                f"{resident.model} is loaded on {card.name} with {format_size(resident.vram_bytes)}, but no job has reserved it",
                "another program uses this Ollama, or did: send its requests through the queue, or give it its own Ollama. "
                f"`ollama stop {resident.model}` unloads the model",
            )


def kept_warm(device: DeviceView, resident: Resident) -> bool:
    """Say whether the queue itself may have left a model loaded because of `keep_warm`."""
    is_last = full_name(resident.model) == full_name(device.model)
    return device.settings.keep_warm_s != 0 and (is_last or device.settings.max_models > 1)


def model_not_loaded(card: CardSight, view: View) -> Iterator[Discrepancy]:
    """A job is running with a model that Ollama does not list."""
    if not card.asked_here:
        return
    before = {(item.job_id, item.lease) for item in card.reserved_before if item.running}
    loaded = {full_name(resident.model) for resident in card.device.residents}
    for item in card.device.reservations:
        if not item.model or not item.running or (item.job_id, item.lease) not in before or full_name(item.model) in loaded:
            continue
        ran_s = _ran_s(item, view)
        job = f"job {item.job_id} ({item.queue}) reserved {format_size(item.reserved_bytes)} of {card.name} for {item.model}"
        if ran_s < LOADING_S:
            yield Discrepancy("model_loading", f"{job}, which is not loaded yet", "wait a moment and check again")
        else:
            yield Discrepancy(
                "model_not_loaded",
                f"{job} {format_duration(round(ran_s))} ago, but the model is not loaded: it is still loading, or was unloaded "
                "while the job runs",
                f"check `ollama ps` and Ollama's log; `gpuqueue cancel {item.job_id}` stops the job",
            )


def model_spilled(card: CardSight, _view: View) -> Iterator[Discrepancy]:
    for resident in card.device.residents:
        outside_bytes = resident.size_bytes - resident.vram_bytes
        if outside_bytes > SPILL_BYTES:
            yield Discrepancy(
                "model_spilled",
                f"{format_size(outside_bytes)} of {resident.model} ({format_size(resident.size_bytes)}) did not fit on "
                f"{card.name}: Ollama runs that part on the CPU, which is several times slower",
                'free memory on the card, use a smaller num_ctx or model, or refuse spilled models with on_spill = "wait" or '
                '"fail" in [models.NAME]',
            )


def model_elsewhere(card: CardSight, cards: Sequence[CardSight], view: View) -> Iterator[Discrepancy]:
    """Ollama's models are larger than the card's used memory: Ollama runs on another card."""
    reading = _fresh(card, view)
    if reading is None or reading.total_bytes is None or reading.free_bytes is None:
        return
    used_bytes = reading.total_bytes - reading.free_bytes
    listed_bytes = _bytes(card.device.residents)
    if used_bytes + TOLERANCE_BYTES >= listed_bytes or any(_ran_s(item, view) < LOADING_S for item in card.device.reservations):
        return
    models = ", ".join(resident.model for resident in card.device.residents if resident.vram_bytes)
    seen = [
        f"{other.name} has {_program(process)}"
        for other in cards
        for process in (other.device.reading.processes if other.device.reading else None) or ()
        if other is not card and process.name and process.name.startswith(("ollama", "llama-server"))
    ]
    where = f"; {', '.join(seen)}" if seen else ""
    yield Discrepancy(
        "model_elsewhere",
        f"according to {' and '.join(card.ollamas) or 'Ollama'}, {models} holds {format_size(listed_bytes)}, but only "
        f"{format_size(used_bytes)} of {card.name} is in use: it runs on another card, or is still loading{where}",
        "find its process with nvidia-smi; then correct `device` in its [[ollama]] or in [gpu], or give that Ollama this card "
        "with CUDA_VISIBLE_DEVICES",
    )


def model_larger(cards: Sequence[CardSight], view: View) -> Iterator[Discrepancy]:
    """A model takes more memory than its configured vram."""
    for settings in view.models.values():
        seen = [
            resident.size_bytes
            for card in cards
            for resident in card.device.residents
            if full_name(resident.model) == full_name(settings.name)
        ]
        observed_bytes = max([*seen, int(get(view.estimates, VRAM, memory_key(settings.name, view)) or 0)])
        if observed_bytes > settings.vram_bytes + TOLERANCE_BYTES:
            # Rounded up to one decimal; rounded down it would be too little again.
            vram = f"{math.ceil(observed_bytes / 10**8) / 10:g}GB"
            yield Discrepancy(
                "model_larger",
                f"{settings.name} takes {format_size(observed_bytes)}, but its configured vram is "
                f"{format_size(settings.vram_bytes)}; once a job has measured that, the queue reserves the larger size",
                f'set [models."{settings.name}"] vram = "{vram}", or a smaller num_ctx in its options',
            )


# --- backends and workers ---


def ollama_differs(ollama: OllamaSight, view: View) -> Iterator[Discrepancy]:
    """An Ollama answers this process but not the workers, or the other way round."""
    noted = ollama.noted
    answers = ollama.residents is not None
    if not view.workers or noted.checked_at is None or noted.available == answers:
        return
    asked = f"{format_duration(max(0, round((view.now - noted.checked_at).total_seconds())))} ago"
    if answers:
        yield Discrepancy(
            "ollama_differs",
            f"{noted.name} answers here, but was unavailable to the workers {asked}: {noted.error}",
            "workers check again on their own; if this persists, that url is another address on their machine or container",
        )
    else:
        yield Discrepancy(
            "ollama_differs",
            f"{noted.name} answered the workers {asked}, but does not answer here: {ollama.error}",
            "if the workers run on another machine or in a container, 127.0.0.1 is another address there; "
            "the models above are those a worker saw",
        )


def settings_differ(view: View) -> Iterator[Discrepancy]:
    by_digest: dict[str, list[str]] = {}
    for worker in view.workers:
        by_digest.setdefault(worker.digest, []).append(worker.id)
    if len(by_digest) > 1:
        groups = " | ".join(", ".join(ids) for ids in by_digest.values())
        yield Discrepancy(
            "settings_differ",
            f"workers run with different settings, so each uses its own budgets and queues: {groups}",
            "restart the workers that still have the old settings",
        )


OF_CARDS = (
    card_lost,
    reading_old,
    another_card,
    budget_above_card,
    others_hold_memory,
    budget_not_free,
    model_not_reserved,
    model_not_loaded,
    model_spilled,
)


def _fresh(card: CardSight, view: View) -> Reading | None:
    """Return the reading, None when it is lost or too old."""
    reading = card.device.reading
    return reading if reading is not None and reading.lost is None and reading.age_s(view.now) <= FRESH_S else None


def _ran_s(item: Reservation, view: View) -> float:
    return 0.0 if item.started_at is None else (view.now - item.started_at).total_seconds()


def _age(reading: Reading, view: View) -> str:
    return format_duration(round(reading.age_s(view.now)))


def _card(reading: Reading) -> str:
    return f"{reading.name or 'a card'} ({format_size(reading.total_bytes or 0)})"


def _program(process: DeviceProcess) -> str:
    size = "" if process.used_bytes is None else f", {format_size(process.used_bytes)}"
    return f"{process.name or 'a program'} (pid {process.pid}{size})"


def _held(processes: Iterator[DeviceProcess] | Sequence[DeviceProcess]) -> int:
    return sum(process.used_bytes or 0 for process in processes)


def _bytes(residents: Sequence[Resident]) -> int:
    return sum(resident.vram_bytes for resident in residents)
