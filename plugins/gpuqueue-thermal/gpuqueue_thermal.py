"""Owns holding gpuqueue's GPU queues while a card is hotter than its limit; stops no job that runs, and changes no card."""

from __future__ import annotations

from datetime import timedelta

from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl

HOT = "hot"
STALE = timedelta(minutes=1)  # an older reading says nothing of now


class Thermal:
    """Holds a GPU queue above `limit` °C, and once it is held until every card has cooled to `resume` °C."""

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        table = details.table
        table.expect(["limit", "resume"])
        self.limit_c = table.integer("limit", 83, minimum=1)
        self.resume_c = table.integer("resume", self.limit_c - 5)
        if self.resume_c > self.limit_c:
            raise table.error(f"resume = {self.resume_c} is above limit = {self.limit_c}; a card resumes when it has cooled down")

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
