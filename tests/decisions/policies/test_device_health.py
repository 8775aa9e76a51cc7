"""What is held while devices cannot be read."""

from __future__ import annotations

from dataclasses import replace

from gpuqueue.contract.hookspecs import QueueHoldDetails
from gpuqueue.decisions.policies.device_health import DeviceHealth
from gpuqueue.domain.device import Reading
from gpuqueue.domain.view import DeviceView
from gpuqueue.testing.views import BATCH, GPU0, MAIL, NOW, REALTIME, view

HERE = DeviceView(GPU0, Reading(NOW))
LOST = DeviceView(replace(GPU0, name="gpu1"), Reading(NOW, lost="the card fell off the bus"))


def hold(queue, *devices):
    return DeviceHealth().queue_hold(QueueHoldDetails(queue, view(devices=devices), {}))


def test_a_queue_that_needs_a_device_is_held_while_all_are_lost():
    assert hold(BATCH, HERE) is None
    assert hold(BATCH, HERE, LOST) is None, "the other one works"
    assert hold(MAIL, LOST) is None
    assert hold(BATCH) is None, "that there is none is said elsewhere"
    assert hold(BATCH, DeviceView(GPU0)) is None, "nobody has read it yet"
    found = hold(BATCH, LOST)
    assert (found.reason, found.detail, found.refuse) == (
        "device_lost",
        "no device can be read: gpu1: the card fell off the bus",
        False,
    )


def test_a_rejecting_queue_refuses_meanwhile():
    found = hold(REALTIME, LOST)
    assert found.refuse
    assert found.detail == "AI service temporarily unavailable (gpu1: the card fell off the bus)"
