"""Holds or refuses the jobs of device queues while no device can be read; reads no device itself."""

from __future__ import annotations

from gpuqueue.contract.hookspecs import QueueHoldDetails, hookimpl
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import REFUSAL


class DeviceHealth:
    """Holds the queues that need a device while every device is lost; workers keep trying to read them."""

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        devices = list(details.view.devices.values())
        if not details.queue.gpu or not devices:
            return None
        lost = [(device.settings.name, device.reading.lost) for device in devices if device.reading and device.reading.lost]
        if len(lost) < len(devices):
            return None
        why = "; ".join(f"{name}: {reason}" for name, reason in lost)
        if details.queue.when_unavailable == "reject":
            return Hold("device_lost", f"{REFUSAL} ({why})", refuse=True, advice="gpuqueue doctor")
        return Hold("device_lost", f"no device can be read: {why}", advice="gpuqueue doctor")
