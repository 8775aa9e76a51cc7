"""Reads the cards and asks their Ollamas now, for comparison with what the workers last published; changes nothing.

Whatever cannot be asked from here is shown as a worker last saw it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpuqueue.client.queue import GPUQueue
from gpuqueue.decisions.discrepancies import CardSight, Discrepancy, OllamaSight, discrepancies
from gpuqueue.devices.nvml import NvmlDevice, open_device
from gpuqueue.devices.owners import kin_here, owner_of
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.endpoints import standing_on
from gpuqueue.domain.errors import ConfigurationError, ExecutionError
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.domain.view import View
from gpuqueue.executors.ollama_client import OllamaClient

ASK_S = 1.0  # for each Ollama


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of every card and every Ollama."""

    view: View  # read after the cards and the Ollamas had been asked
    cards: tuple[CardSight, ...]
    ollamas: tuple[OllamaSight, ...]

    def discrepancies(self) -> list[Discrepancy]:
        return discrepancies(self.cards, self.ollamas, self.view)


def look(gq: GPUQueue) -> Sight:
    """Read every card of this machine and ask every Ollama that can be reached from here."""
    before = gq.view()
    backends = gq.agreed_settings().backends
    said = {backend.name: _ask(backend) for backend in backends}
    readings = {name: _read(device.settings, backends) for name, device in before.devices.items()}
    # A job that starts or ends meanwhile must not look like a disagreement, so the rows are read before and after.
    view = gq.view()
    workers = [worker.pid for worker in view.workers if worker.host == socket.gethostname()]
    cards = []
    for name, device in view.devices.items():
        mine = standing_on(name, backends, device_count=len(view.devices))
        answers = [residents for backend in mine if (residents := said[backend.name][0]) is not None]
        asked_here = bool(mine) and len(answers) == len(mine)
        residents = tuple(resident for answer in answers for resident in answer) if asked_here else device.residents
        reading = readings.get(name)
        shown = device.reading if reading is None else reading
        cards.append(
            CardSight(
                device=replace(device, reading=shown, residents=residents),
                read_here=reading is not None,
                published=device.reading,
                asked_here=asked_here,
                ollamas=tuple(backend.name for backend in mine),
                reserved_before=before.devices[name].reservations if name in before.devices else (),
                owners={
                    process.pid: owner_of(
                        process,
                        workers=workers if reading is not None else (),
                        has_ollama=bool(mine),
                        kin_of=kin_here if reading is not None else lambda _process: (),
                    )
                    for process in (shown.processes if shown else None) or ()
                },
            )
        )
    ollamas = tuple(OllamaSight(view.backends[name], *answer) for name, answer in said.items() if name in view.backends)
    return Sight(view, tuple(cards), ollamas)


def _ask(backend: BackendSettings) -> tuple[tuple[Resident, ...] | None, str]:
    try:
        return OllamaClient(backend).residents(timeout_s=ASK_S), ""
    except (ExecutionError, ConfigurationError) as error:
        return None, str(error)


def _read(settings: DeviceSettings, backends: Sequence[BackendSettings]) -> Reading | None:
    """Read a card of this machine; None where only a worker can."""
    device = open_device(settings, [item for item in backends if item.device in ("", settings.name)])
    if not isinstance(device, NvmlDevice):
        return None
    try:
        return device.read()
    finally:
        device.close()
