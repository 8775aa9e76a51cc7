"""Formats what `top` shows: short numbers, times, states, and texts that fit a number of columns."""

from __future__ import annotations

from datetime import datetime

from rich.cells import cell_len, set_cell_size

from gpuqueue.cli.top_figures import DeviceFigures, Edge, JobFigures, QueueFigures, ServiceFigures
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.models import full_name
from gpuqueue.domain.moments import clock, since, until
from gpuqueue.domain.units import format_duration

CUT = "…"
OLD_S = 30.0  # an older report of a service is shown as old
CHANGES = {
    "pause begins": "next pause",
    "pause ends": "paused until",
    "limits begin": "next window limits",
    "limits end": "window limits until",
}


def one_line(text: str) -> str:
    """Turn any text into one line without characters that move the cursor or change colours."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Make a text exactly `width` columns wide: cut with `…`, or padded."""
    if width <= 0:
        return ""
    text = one_line(text)
    length = cell_len(text)
    if length > width:
        text = set_cell_size(text, width - 1) + CUT
        length = width
    padding = " " * (width - length)
    return padding + text if right else text + padding


def ending(text: str, width: int) -> str:
    """Cut a path at its start."""
    text = one_line(text)
    while text and cell_len(text) > width:
        text = CUT + text[2:] if text.startswith(CUT) else CUT + text[1:]
        if text == CUT:
            break
    return text if cell_len(text) <= width else ""


def number(count: int) -> str:
    """Format a count in at most five columns, zero as `-`."""
    if count < 100_000:
        return str(count) if count else "-"
    for unit, sign in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            amount = count / unit
            return f"{amount:.1f}{sign}" if amount < 99.95 else f"{int(amount)}{sign}"
    return str(count)


def length(seconds: float) -> str:
    """Format a duration in at most five columns: `7s`, `3m07`, `5h02`, `12d`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole}s"
    if whole < 6000:
        return f"{whole // 60}m{whole % 60:02d}"
    minutes = whole // 60
    return f"{minutes // 60}h{minutes % 60:02d}" if minutes < 6000 else f"{minutes // 1440}d"


def percent(progress: float) -> int:
    """Round down, so that only finished work is 100 %."""
    return int(min(1.0, max(0.0, progress)) * 100 + 1e-9)


def work(job: JobFigures) -> str:
    """Name a job's work in short: the last part of its task's name, and its model."""
    return f"{job.task.rpartition('.')[2] or job.task} {job.model}".rstrip()


def state_words(queue: QueueFigures, now: datetime) -> str:
    """Format a queue's state with its first reason, the most important first, because the end may be cut off."""
    if not queue.holds or queue.state == "no worker":
        return queue.state
    hold = queue.holds[0]
    end = "" if hold.until is None else f" until {_short_clock(hold.until, now)}"
    return f"{queue.state}{end}{' ' if hold.source == 'pause' else ': '}{_short_reason(hold)}"


def _short_clock(moment: datetime, now: datetime) -> str:
    """Format a time in this machine's zone, without naming the zone."""
    local, today = moment.astimezone(), now.astimezone()
    if abs((moment - now).total_seconds()) < 600:
        return f"{local:%H:%M:%S}"
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%a %H:%M}"


def _short_reason(hold: Hold) -> str:
    return one_line(hold.detail).removeprefix("paused ")  # as the state says already


def queue_sentence(queue: QueueFigures, now: datetime) -> str:
    """Describe the state of a queue in full."""
    reasons = "; ".join(f"{one_line(hold.detail)}{until(hold.until, now=now)}" for hold in queue.holds)
    if reasons and queue.state in ("paused", "no worker"):  # these reasons name the state
        return f"{queue.name}: {reasons}"
    return f"{queue.name}: {queue.state}" + (f"; {reasons}" if reasons else "")


def job_sentence(job: JobFigures, now: datetime) -> str:
    """Describe a job in full."""
    parts = [f"job {job.id} ({job.queue}): {one_line(f'{job.task} {job.model}')}"]
    if not job.is_running:
        reasons = "; ".join(f"{one_line(hold.detail)}{until(hold.until, now=now)}" for hold in job.waits_for)
        return f"{parts[0]} is next; {reasons or 'ready to start'}"
    if job.stopping:
        parts.append("asked to stop" if job.stopping == "cancelled" else "being preempted")
    if job.note:
        parts.append(one_line(job.note))
    parts.append(f"attempt {job.attempt} of {job.max_attempts}")
    if job.output_tokens:
        parts.append(f"{job.output_tokens} tokens")
    if job.left_s is not None:
        parts.append(f"done in about {format_duration(max(1, round(job.left_s)))}")
    if job.device:
        parts.append(f"on {job.device}")
    if job.worker_id:
        parts.append(f"worker {job.worker_id}")
    return ", ".join(parts)


def models_words(device: DeviceFigures) -> str:
    """Name the models of running jobs, and other loaded models."""
    used = {full_name(model) for model in device.models_in_use}
    idle = [one_line(model) for model in device.models if full_name(model) not in used]
    words = [f"{one_line(model)} in use" for model in device.models_in_use]
    if idle:
        words.append(f"{', '.join(idle)} loaded")
    return ", ".join(words) or "no model loaded"


def edge_sentence(edge: Edge, now: datetime) -> str:
    """Say when a window changes what a queue may do."""
    left = format_duration(max(0.0, (edge.at - now).total_seconds()))
    return f"{edge.queue}: {CHANGES[edge.change]} {clock(edge.at, now=now)} ({left} from now)"


def service_sentence(service: ServiceFigures, now: datetime) -> str:
    """Describe the state of a service."""
    if service.worker_id is None:
        return f"{service.name}: no worker runs it"
    if service.error:
        return f"{service.name}: {one_line(service.error)}"
    lag = "running" if service.lag_s is None else f"{format_duration(service.lag_s)} behind"
    is_old = service.noted_at is not None and (now - service.noted_at).total_seconds() > OLD_S
    old = f" (reported {since(service.noted_at, now=now)})" if service.noted_at is not None and is_old else ""
    return f"{service.name}: {lag}{old}, on {service.worker_id}"
