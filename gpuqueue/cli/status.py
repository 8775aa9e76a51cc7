"""Shows what is going on now: the command `status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from gpuqueue.cli.rendering import heading, in_terminal, print_json, print_table, say, terminal_width
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import service_shape, status_shape
from gpuqueue.client.queue import GPUQueue
from gpuqueue.decisions.evaluation import known_holds
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.estimates import left_s
from gpuqueue.domain.explanation import Expectation
from gpuqueue.domain.job import State
from gpuqueue.domain.moments import clock, since, until
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.domain.view import Backend, DeviceView, Reservation, ServiceInfo, View

REFRESH_S = 1.0
ALWAYS_SHOWN = (State.AVAILABLE, State.RUNNING)


@click.command(short_help="Show queues, what holds them, workers and devices.")
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@pass_session
def status(session: Session, as_json: bool, watch: bool) -> None:
    """Show the queues, what holds each and until when, the workers, the devices and the backends.

    \b
    Keys: at, database,
      queues: [{name, gpu, concurrency, served, counts: {STATE: number},
        paused: {by, reason, at, until} or null,
        holds: [{reason, detail, until, advice}],
        expected_end, expected_end_earliest, expected_end_latest
          (of the jobs waiting now; null: not known)}],
      workers: [{id, host, pid, queues (null: all), started_at, expires_at,
        parts: [{name, alive, busy_s (null: it waits for work),
          last_at}]}],
      devices: [{name, budget_bytes, margin_bytes, max_models, slots,
        keep_warm_s, reserved_bytes,
        reading: {at, card, total_bytes, free_bytes, utilisation_percent,
          temperature_c, power_w, lost} or null,
        residents: [{model, size_bytes, vram_bytes}],
        reservations: [{job_id, queue, model, reserved_bytes, running,
          worker, expected_rest_s (null: not known)}]}],
      backends: [{name, url, available (null: not checked yet), checked_at,
        away_since, retry_at, error}],
      services: [{name, worker (null: no worker runs it), since,
        noted_at, says (its status, as its plugin documents)}].
    Datetimes are ISO 8601 in UTC, sizes are bytes.
    """
    gq = session.existing_queue()
    if not watch:
        _show(session, gq, as_json)
        return
    if as_json or not in_terminal():
        raise UsageError("--watch needs a terminal and cannot be combined with --json")
    import threading

    never = threading.Event()
    while not never.wait(REFRESH_S):
        click.clear()
        _show(session, gq, as_json=False)


def _show(session: Session, gq: GPUQueue, as_json: bool) -> None:
    view, counts = gq.view(), gq.counts()
    holds = known_holds(view, gq.plugins)
    if as_json:
        shape = status_shape(view, database=str(gq.database), counts=counts, holds=holds, expected=gq.expectations())
        print_json({**shape, "services": [service_shape(item) for item in gq.services()]})
        return
    click.echo(f"database: {gq.database}")
    _show_queues(counts, sorted(view.queues))
    _show_holds(session, view, counts, holds)
    _show_expected(gq.expectations(), view)
    click.echo(heading("Workers"))
    for worker in view.workers:
        serves = "all queues" if worker.queues is None else ", ".join(worker.queues)
        say(f"  {worker.id} serves {serves}; on {worker.host} since {clock(worker.started_at, now=view.now)}")
        if worker.troubles:
            say(click.style(f"    cannot do its work: {'; '.join(worker.troubles)}", fg="red"))
            click.echo("    → restart it")
    if not view.workers:
        click.echo(f"  none. Start one: {session.worker_command('')}")
    if view.devices:
        click.echo(heading("Devices"))
        for device in view.devices.values():
            _show_device(device, view)
    if view.backends:
        click.echo(heading("Backends"))
        for backend in view.backends.values():
            say(f"  {backend.name} at {shown_url(backend.url)}: {_availability(backend, view)}")
    services = gq.services()
    if services:
        click.echo(heading("Services"))
    for service in services:
        runs = f"on {service.worker_id}" if service.worker_id else click.style("no worker runs it", fg="yellow")
        noted = f" ({since(service.noted_at, now=view.now)})" if service.noted_at else ""
        say(f"  {service.name}, {runs}: {_worded_status(service)}{noted}")


def _worded_status(service: ServiceInfo) -> str:
    error = service.status.get("error")
    if error:
        return click.style(str(error), fg="red")
    known = [f"{key} {value}" for key, value in service.status.items() if isinstance(value, str | int | float) and key != "state"]
    return ", ".join([str(service.status.get("state", "running")), *known])


def _show_queues(counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    click.echo()
    states = [state for state in State if state in ALWAYS_SHOWN or any(counts.get(name, {}).get(state) for name in names)]
    needed = max((len(name) for name in names), default=5) + sum(len(state) + 2 for state in states)
    if in_terminal() and needed > terminal_width():
        # A table would be too wide; lines can be folded.
        for name in names:
            found = [f"{counts[name][state]} {state}" for state in states if counts.get(name, {}).get(state)]
            say(f"{name}: {', '.join(found) or 'empty'}")
        return
    rows = [[name, *(str(counts.get(name, {}).get(state, 0) or "-") for state in states)] for name in names]
    print_table({"queue": "left", **{str(state): "right" for state in states}}, rows)


def _show_holds(
    session: Session, view: View, counts: Mapping[str, Mapping[str, int]], holds: Mapping[str, Sequence[Hold]]
) -> None:
    lines = []
    for name, queue in view.queues.items():
        for hold in holds.get(name, ()):
            lines.append(f"  {name}: {hold.detail}{until(hold.until, now=view.now)}")
            if hold.advice:
                lines.append(f"    → {session.advice(hold.advice, name)}")
        waiting_count = counts.get(name, {}).get(State.AVAILABLE, 0)
        if waiting_count and not queue.served:
            lines.append(f"  {name}: no worker serves it, {waiting_count} waiting")
            lines.append(f"    → {session.worker_command(name)}")
    if lines:
        click.echo(heading("Held"))
        for line in lines:
            if "→" in line:
                click.echo(line)
            else:
                say(line)


def _show_expected(expectations: Mapping[str, Expectation], view: View) -> None:
    words = {name: expected.worded_end(now=view.now) for name, expected in expectations.items()}
    if any(words.values()):
        click.echo(heading("Expected"))
    for name, ends in words.items():
        if ends:
            say(f"  {name}: the jobs waiting now are done {ends}")


def _show_device(device: DeviceView, view: View) -> None:
    """Print one device: its memory, the loaded models and the reservations."""
    settings, reading = device.settings, device.reading
    say(
        f"  {settings.name}: {format_size(device.reserved_bytes)} of {format_size(settings.budget_bytes)} budget reserved, "
        f"{format_size(settings.margin_bytes)} margin"
    )
    if reading is None:
        say("    memory: unknown (no worker has read the card yet)")
    elif reading.lost:
        say(click.style(f"    LOST: {reading.lost}", fg="red"))
    elif reading.total_bytes is None or reading.free_bytes is None:
        say("    memory: unknown (no driver where the worker runs; relying on the budget alone)")
    else:
        free = f"{format_size(reading.free_bytes)} of {format_size(reading.total_bytes)} free"
        card = f"{reading.name}: " if reading.name else ""
        say(f"    {card}{', '.join([free, *condition(reading)])} ({since(reading.at, now=view.now)})")
    for resident in device.residents:
        spilled = resident.size_bytes - resident.vram_bytes
        on_cpu = f", {format_size(spilled)} of it outside the card" if spilled > 0 else ""
        say(f"    loaded: {resident.model}, {format_size(resident.size_bytes)}{on_cpu}")
    for item in device.reservations:
        what = "is running" if item.running else "has ended"
        model = f" with {item.model}" if item.model else ""
        after = rest(item, view) if item.running else ", waiting for its memory to be released"
        say(f"    job {item.job_id} ({item.queue}) {what}{model}, {format_size(item.reserved_bytes)} reserved{after}")


def condition(reading: Reading) -> list[str]:
    """Format the figures of a card other than its memory, as far as known: `97 % busy`, `62 °C`, `140 W`."""
    figures = []
    if reading.utilisation_percent is not None:
        figures.append(f"{reading.utilisation_percent} % busy")
    if reading.temperature_c is not None:
        figures.append(f"{reading.temperature_c} °C")
    if reading.power_w is not None:
        figures.append(f"{reading.power_w:.0f} W")
    return figures


def rest(item: Reservation, view: View) -> str:
    """Format how much longer a running job is expected to take: `, done in about 5s`, or nothing."""
    rest_s = left_s(view.estimates, item, view.now) if item.running else None
    return "" if rest_s is None else f", done in about {format_duration(max(1, round(rest_s)))}"


def _availability(backend: Backend, view: View) -> str:
    if backend.available:
        if backend.checked_at is None:
            return "not checked yet"
        return click.style("available", fg="green") + f" (checked {since(backend.checked_at, now=view.now)})"
    away = f" for {format_duration((view.now - backend.since).total_seconds())}" if backend.since else ""
    again = f"; next check at {clock(backend.retry_at, now=view.now)}" if backend.retry_at else ""
    return click.style(f"unavailable{away}", fg="red") + f": {backend.error}{again}"
