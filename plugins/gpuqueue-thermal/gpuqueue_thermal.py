"""Holds gpuqueue's GPU queues while a card is hotter than its limit; running jobs are not stopped."""

from __future__ import annotations

from datetime import timedelta

from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl

HOT = "hot"
STALE = timedelta(minutes=1)  # an older reading says nothing about the present


class Thermal:
    """Holds a GPU queue when a card is above `limit` °C, until every card has cooled to `resume` °C."""

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        table = details.table
        table.expect(["limit", "resume"])
        self.limit_c = table.integer("limit", 83, minimum=1)
        self.resume_c = table.integer("resume", self.limit_c - 5)
        if self.resume_c > self.limit_c:
            raise table.error(f"resume must be at most limit ({self.limit_c}), not {self.resume_c}")

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        view, queue = details.view, details.queue
        is_held = HOT in view.queues[queue.name].noted_reasons
        allowed_c = self.resume_c if is_held else self.limit_c
        for name, card in view.devices.items() if queue.gpu else ():
            reading = card.reading
            if reading is None or reading.temperature_c is None or view.now - reading.at > STALE:
                continue
            if reading.temperature_c > allowed_c:
                limits = f"above {self.limit_c} °C nothing starts until it has cooled to {self.resume_c} °C"
                return Hold(HOT, f"{name} is at {reading.temperature_c} °C; {limits}")
        return None
