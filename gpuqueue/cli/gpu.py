"""Shows each card as the driver, Ollama and the queue report it: the command `gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gpuqueue.cli.rendering import heading, print_json, print_table, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import device_shape, model_shape, resident_shape
from gpuqueue.cli.status import condition, rest
from gpuqueue.domain.device import Resident
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.model_health import ModelHealth, health
from gpuqueue.domain.models import full_name
from gpuqueue.domain.moments import iso, since
from gpuqueue.domain.units import format_size
from gpuqueue.domain.view import View

if TYPE_CHECKING:
    from gpuqueue.cli.cards_now import Sight
    from gpuqueue.decisions.discrepancies import CardSight, OllamaSight

Row = tuple[str, str, str]
WHOSE = {
    "ollama": "Ollama's runner",
    "gpuqueue": "a worker, or a job in its own process",
    "other": "another program",
    "unknown": "owner unknown",
}


@click.command(short_help="Show each GPU as driver, Ollama and queue report it.")
@json_option
@pass_session
def gpu(session: Session, as_json: bool) -> None:
    """Show what the driver, Ollama and the queue report about each GPU, and where they disagree.

    A card of this machine is read now, and an Ollama that can be reached from here is asked now. All other figures are what a
    worker last saw, and are marked as such.

    \b
    Keys: at, database,
      devices: [{name, budget_bytes, margin_bytes, max_models, slots,
        keep_warm_s, reserved_bytes,
        reading: {at, card, total_bytes, free_bytes, utilisation_percent,
          temperature_c, power_w, lost} or null,
        residents: [{model, size_bytes, vram_bytes}],
        reservations: [{job_id, queue, model, reserved_bytes, running,
          worker, expected_rest_s (null: not known)}],
        read_here (false: a worker published the reading),
        processes (null: the driver does not list them): [{pid, name,
          used_bytes, owner ("ollama", "gpuqueue", "other" or "unknown")}]
          or null,
        residents_from ("ollama": asked now, "worker": last seen by one)}],
      backends: [{name, url, answers (here, now), error,
        residents (empty if it does not answer):
          [{model, size_bytes, vram_bytes}]}],
      models: [{name, health ("unknown", "missing", "too_large", "spills"
        or "fits"), needed_bytes, detail}],
      disagreements: [{what ("card_lost", "reading_old", "another_card",
        "budget_above_card", "others_hold_memory", "budget_not_free",
        "model_not_reserved", "model_loading", "model_not_loaded",
        "model_spilled", "model_elsewhere", "model_larger",
        "ollama_differs" or "settings_differ"), detail, advice}].
    Datetimes are ISO 8601 in UTC, sizes are bytes, null is unknown.
    """
    gq = session.existing_queue()
    from gpuqueue.cli.cards_now import look

    seen = look(gq)
    if as_json:
        print_json({"at": iso(seen.view.now), "database": str(gq.database), **_shape(seen)})
        return
    if not seen.cards:
        click.echo('no GPU is configured: add [gpu] with budget = "5GB" to the configuration, or create one with `gpuqueue init`')
        return
    for card in seen.cards:
        _show_card(card, seen)
    for ollama in seen.ollamas:
        if not any(ollama.noted.name in card.ollamas for card in seen.cards):
            loaded = ", ".join(_model(resident) for resident in ollama.residents or ()) or "nothing"
            said = f"has {loaded} loaded" if ollama.residents is not None else f"does not answer from here: {ollama.error}"
            say(f"{ollama.noted.name} at {shown_url(ollama.noted.url)} (not tied to a device) {said}")
    models = _models(seen.view)
    if models:
        click.echo(heading("Models"))
    for found in models.values():
        colour = {"fits": "green", "unknown": None}.get(found.state, "red")
        say(f"  {click.style(found.state.replace('_', ' '), fg=colour)}: {found.detail}")
    _show_disagreements(seen)


def _show_disagreements(seen: Sight) -> None:
    found = seen.discrepancies()
    if not found:
        say(f"\n{click.style('no disagreements', fg='green')}")
        return
    click.echo(heading("Disagreements"))
    for item in found:
        say(f"  {click.style(item.what.replace('_', ' '), fg='yellow')}: {item.detail}")
        say(f"    → {item.advice}", hang=6)


def _show_card(card: CardSight, seen: Sight) -> None:
    reading = card.device.reading
    said = f": {reading.name}" if reading is not None and reading.name else ""
    say(click.style(f"{card.name}{said}", bold=True))
    rows = [*_driver_rows(card, seen.view), *_ollama_rows(card, seen), *_queue_rows(card, seen.view)]
    print_table({"source": "left", "memory": "right", "details": "prose"}, rows)


def _driver_rows(card: CardSight, view: View) -> Iterator[Row]:
    reading = card.device.reading
    if reading is None:
        yield "driver", "unknown", "the card is not in this machine, and no worker has read it yet"
        return
    when = "now" if card.read_here else f"read by a worker {since(reading.at, now=view.now)}"
    if reading.lost is not None:
        yield "driver", "LOST", f"{reading.lost} ({when})"
        return
    if reading.total_bytes is None or reading.free_bytes is None:
        yield (
            "driver",
            "unknown",
            f"no driver can read the card, here or where the worker runs; relying on the budget alone ({when})",
        )
        return
    used_bytes = reading.total_bytes - reading.free_bytes
    said = ", ".join([f"{format_size(reading.free_bytes)} free", *condition(reading)])
    yield "driver", format_size(used_bytes), f"used of {format_size(reading.total_bytes)}, {said} ({when})"
    if reading.processes is None:
        yield "", "", "the driver does not list processes"
    for process in reading.processes or ():
        size = "unknown" if process.used_bytes is None else format_size(process.used_bytes)
        yield f"process {process.pid}", size, f"{process.name or 'no name'}: {WHOSE[card.owner(process)]}"


def _ollama_rows(card: CardSight, seen: Sight) -> Iterator[Row]:
    from gpuqueue.decisions.discrepancies import kept_warm

    source = ", ".join(card.ollamas) or "models"
    if not card.ollamas and not card.device.residents:
        return
    when = "now"
    if not card.asked_here:
        mine = [ollama for ollama in seen.ollamas if ollama.noted.name in card.ollamas and ollama.residents is None]
        errors = [ollama.error for ollama in mine]
        if card.published is None and not card.device.residents:
            yield source, "unknown", "; ".join(["no worker has checked yet what is loaded", *errors])
            return
        when = "; ".join(["as last seen by a worker", *errors])
    for resident in card.device.residents:
        warm = "kept warm" if kept_warm(card.device, resident) and not _is_reserved(card, resident) else ""
        said = ", ".join(filter(None, [f"{resident.model} is loaded", _outside(resident), warm]))
        yield source, format_size(resident.vram_bytes), f"{said} ({when})"
    if not card.device.residents:
        yield source, "0 B", f"nothing is loaded ({when})"


def _is_reserved(card: CardSight, resident: Resident) -> bool:
    return any(full_name(item.model) == full_name(resident.model) for item in card.device.reservations)


def _outside(resident: Resident) -> str:
    outside_bytes = resident.size_bytes - resident.vram_bytes
    return f"{format_size(outside_bytes)} more outside the card" if outside_bytes > 0 else ""


def _queue_rows(card: CardSight, view: View) -> Iterator[Row]:
    settings = card.device.settings
    said = f"reserved of a {format_size(settings.budget_bytes)} budget, {format_size(settings.margin_bytes)} margin"
    yield "queue", format_size(card.device.reserved_bytes), said
    for item in card.device.reservations:
        model = f" with {item.model}" if item.model else ""
        what = f"running{model}{rest(item, view)}" if item.running else f"ended{model}; waiting for its memory to be released"
        yield f"job {item.job_id}", format_size(item.reserved_bytes), f"{item.queue}: {what}"


def _model(resident: Resident) -> str:
    return f"{resident.model} ({format_size(resident.vram_bytes)})"


def _models(view: View) -> dict[str, ModelHealth]:
    """Return the health of each configured or fallback model, as the first queue that uses models sees it."""
    queues = [item.settings for item in view.queues.values() if item.settings.gpu]
    names = dict.fromkeys([*view.models, *(name for queue in queues for name in queue.fallback)])
    return {name: health(name, queues[0], view) for name in names} if queues else {}


def _shape(seen: Sight) -> dict[str, Any]:
    return {
        "devices": [_card_shape(card, seen.view) for card in seen.cards],
        "backends": [_ollama_shape(ollama) for ollama in seen.ollamas],
        "models": [model_shape(name, found) for name, found in _models(seen.view).items()],
        "disagreements": [item._asdict() for item in seen.discrepancies()],
    }


def _card_shape(card: CardSight, view: View) -> dict[str, Any]:
    listed = None if card.device.reading is None else card.device.reading.processes
    return {
        **device_shape(card.device, view),
        "read_here": card.read_here,
        "processes": None
        if listed is None
        else [
            {"pid": process.pid, "name": process.name, "used_bytes": process.used_bytes, "owner": card.owner(process)}
            for process in listed
        ],
        "residents_from": "ollama" if card.asked_here else "worker",
    }


def _ollama_shape(ollama: OllamaSight) -> dict[str, Any]:
    return {
        "name": ollama.noted.name,
        "url": shown_url(ollama.noted.url),
        "answers": ollama.residents is not None,
        "error": ollama.error or None,
        "residents": [resident_shape(resident) for resident in ollama.residents or ()],
    }
