"""Defines the demo's tasks without a GPU, which write reminders and distribution letters as files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task

RECIPIENTS = ("architect", "engineer", "contractor")


def reminder(rfa_id: int) -> str:
    """Return the text of the reminder of one request for approval."""
    return f"Request for approval {rfa_id} is still waiting for your answer.\n"


def covering_letter(rfa_id: int, recipient: str) -> str:
    """Return the text of the letter with a request for approval to one recipient."""
    return f"To the {recipient}: request for approval {rfa_id}, for your records.\n"


def send_reminder(rfa_id: int, folder: str) -> list[str]:
    """Write one reminder; returns the files' names."""
    return [_write(Path(folder) / f"reminder-{rfa_id}.txt", reminder(rfa_id))]


def distribute(rfa_id: int, folder: str) -> list[str]:
    """Write a letter to each recipient; returns the files' names."""
    letters = {name: covering_letter(rfa_id, name) for name in RECIPIENTS}
    return [_write(Path(folder) / f"rfa-{rfa_id}-{name}.txt", letter) for name, letter in letters.items()]


@dataclass(frozen=True, slots=True)
class RfaTasks:
    """The tasks as registered with one queue object."""

    send_reminder: Task[..., Any]
    distribute: Task[..., Any]


def register(gq: GPUQueue) -> RfaTasks:
    """Register the tasks; the demo and its worker process both do this."""
    return RfaTasks(
        send_reminder=gq.task(queue="rfa-reminders", max_attempts=5)(send_reminder),
        distribute=gq.task(queue="rfa-distribution", max_attempts=5)(distribute),
    )


def expected_files(rfa_id: int, task: str) -> dict[str, str]:
    """Return what a job must have written: {file name: content}."""
    if task == send_reminder.__name__:
        return {f"reminder-{rfa_id}.txt": reminder(rfa_id)}
    return {f"rfa-{rfa_id}-{name}.txt": covering_letter(rfa_id, name) for name in RECIPIENTS}


def _write(file: Path, content: str) -> str:
    # Renamed into place, so that no half-written file is read and a second attempt writes the same one.
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, file)
    return file.name
