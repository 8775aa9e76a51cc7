"""What is said of a card that nothing here can read."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuqueue.devices.remote import BudgetDevice
from gpuqueue.domain import DeviceSettings, Reading

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def test_a_card_without_a_driver_has_no_figures_and_is_not_lost() -> None:
    device = BudgetDevice(DeviceSettings("gpu0", budget_bytes=5 * 10**9), now=lambda: NOON)

    assert device.read() == Reading(at=NOON)


def test_its_readings_are_of_the_moment_they_are_asked_for() -> None:
    before = datetime.now(UTC)

    at = BudgetDevice(DeviceSettings("gpu0", budget_bytes=1)).read().at

    assert before <= at <= datetime.now(UTC)
