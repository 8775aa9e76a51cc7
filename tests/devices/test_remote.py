"""What is said of a card that nothing here can read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gpuqueue.devices.remote import BudgetDevice, runs_here
from gpuqueue.domain.device import Reading
from gpuqueue.domain.settings import DeviceSettings

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def test_a_card_without_a_driver_has_no_figures_and_is_not_lost() -> None:
    device = BudgetDevice(DeviceSettings("gpu0", budget_bytes=5 * 10**9), now=lambda: NOON)

    assert device.read() == Reading(at=NOON)


def test_its_readings_are_of_the_moment_they_are_asked_for() -> None:
    before = datetime.now(UTC)

    at = BudgetDevice(DeviceSettings("gpu0", budget_bytes=1)).read().at

    assert before <= at <= datetime.now(UTC)


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://localhost:11434", "http://[::1]:11434"])
def test_a_loopback_address_is_this_machine(url: str) -> None:
    assert runs_here(url)


@pytest.mark.parametrize("url", ["http://192.0.2.7:11434", "http://no-such-host.invalid:11434"])
def test_an_address_that_cannot_be_bound_is_another_machine(url: str) -> None:
    assert not runs_here(url)
