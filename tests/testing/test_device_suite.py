"""The suite for devices: passed by the devices there are, and each of its tests finds what it is there to find."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from gpuqueue.contract.hookspecs import RegisterDevicesDetails, hookimpl
from gpuqueue.devices.nvml import Devices
from gpuqueue.devices.remote import BudgetDevice
from gpuqueue.domain.device import DeviceProcess, Reading
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.testing.devices import DeviceSuite, what_is_wrong_with
from gpuqueue.testing.queues import queue_maker

# --- the devices there are ---


class TestNvml(DeviceSuite):
    def make_plugin(self) -> object:
        return Devices()

    @pytest.fixture(autouse=True)
    def card(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("gpuqueue.devices.nvml.REOPEN_S", 0.05)
        self.simulated = SimulatedCard()
        with simulated_nvml(self.simulated):
            yield

    def lose_card(self) -> None:
        self.simulated.lost = True

    def bring_card_back(self) -> None:
        self.simulated.lost = False


class Budgets:
    @hookimpl
    def register_devices(self, details: RegisterDevicesDetails) -> Mapping[str, BudgetDevice]:
        return {settings.name: BudgetDevice(settings) for settings in details.devices}


class TestBudget(DeviceSuite):
    reads_memory: ClassVar[bool] = False

    def make_plugin(self) -> object:
        return Budgets()


# --- what each test finds ---

RIGHT = Reading(at=datetime(2026, 3, 2, tzinfo=UTC), name="a card", total_bytes=8, free_bytes=5)
LOST = Reading(at=RIGHT.at, lost="it fell off the bus")


class Card:
    """A device that reads what the test says."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read


@pytest.fixture
def suite_of(tmp_path):
    """`suite_of(read, lost=None, back=None)` is the suite over devices that read so, and the queue object of its tests."""
    with queue_maker(tmp_path) as make:

        def suite(read: Callable[[], Any], *, lost: Callable[[], Any] = lambda: LOST, names: Any = None) -> tuple[Any, Any]:
            card = Card(read)

            class Kind:
                @hookimpl
                def register_devices(self, details):
                    return {name: card for name in names or [settings.name for settings in details.devices]}

            class Suite(DeviceSuite):
                def lose_card(self) -> None:
                    card.read = lost

                def bring_card_back(self) -> None:
                    card.read = read

            return Suite(), make(f'{DeviceSuite.gpu}[queues.train]\ngpu = true\nbackend = "none"\n', plugins={"tested": Kind()})

        yield suite


def now_reading(**figures: Any) -> Reading:
    return replace(RIGHT, at=datetime.now(UTC), **{"total_bytes": 8 * 10**9, "free_bytes": 5 * 10**9, **figures})


def test_a_right_device_passes(suite_of):
    suite, gq = suite_of(now_reading)
    tests = [getattr(suite, name) for name in vars(DeviceSuite) if name.startswith("test_")]
    for test in tests:
        suite.bring_card_back()
        test(**({"device": suite._one(gq)} if "device" in inspect.signature(test).parameters else {}), queue_object=gq)
    assert len(tests) == 12


def test_a_plugin_that_gives_nothing_or_what_is_not_configured_is_found(suite_of):
    suite, gq = suite_of(now_reading, names=["gpu7"])
    with pytest.raises(AssertionError, match=r"\['gpu7'\], which \[gpu\] does not configure"):
        suite.test_it_gives_the_configured_devices_and_no_others(gq)
    suite.name = "yielding"
    with pytest.raises(AssertionError, match="returned no device: is @hookimpl missing"):
        suite.test_it_gives_the_configured_devices_and_no_others(gq)


def test_a_device_that_raises_is_found(suite_of):
    def fail() -> Reading:
        raise OSError("the driver is away")

    suite, gq = suite_of(now_reading, lost=fail)
    with pytest.raises(OSError, match="the driver is away"):
        suite.test_a_lost_card_is_told_by_the_reading(suite._one(gq), gq)
    suite, gq = suite_of(fail)
    with pytest.raises(OSError, match="the driver is away"):
        suite.test_a_card_that_is_not_there_raises_nothing(gq)


def test_a_loss_that_is_not_told_is_found(suite_of):
    suite, gq = suite_of(now_reading, lost=now_reading)
    with pytest.raises(AssertionError, match="the card is lost, but the reading is Reading"):
        suite.test_a_lost_card_is_told_by_the_reading(suite._one(gq), gq)
    suite, gq = suite_of(lambda: LOST)
    with pytest.raises(AssertionError, match="the card cannot be read: it fell off the bus"):
        suite.test_a_reading_is_right(suite._one(gq), gq)


def test_a_reading_that_is_kept_is_found(suite_of):
    suite, gq = suite_of(lambda: RIGHT)
    with pytest.raises(AssertionError, match="at must be the time of the reading"):
        suite.test_each_reading_is_of_its_moment(suite._one(gq), gq)


def test_memory_that_is_promised_and_not_read_is_found(suite_of):
    suite, gq = suite_of(lambda: now_reading(total_bytes=None, free_bytes=None))
    with pytest.raises(AssertionError, match="reads_memory is True, but the reading is"):
        suite.test_a_reading_is_right(suite._one(gq), gq)


def test_a_thread_that_goes_on_is_found(suite_of, monkeypatch, make_gate):
    monkeypatch.setattr(
        "gpuqueue.testing.leftovers.wait_until", lambda condition: condition() or (_ for _ in ()).throw(AssertionError)
    )
    gate = make_gate()

    def read() -> Reading:
        threading.Thread(target=gate.pass_through, name="poller").start()
        return now_reading()

    suite, gq = suite_of(read)
    with pytest.raises(pytest.fail.Exception, match="left behind: thread poller"):
        suite.test_it_leaves_no_thread_and_no_connection_behind(gq)


def test_a_suite_without_a_plugin_says_what_to_write():
    with pytest.raises(NotImplementedError, match="DeviceSuite must define the plugin to test: def make_plugin"):
        DeviceSuite().make_plugin()
    with pytest.raises(pytest.skip.Exception, match="needs a card that can be lost"):
        DeviceSuite().lose_card()


@pytest.mark.parametrize(
    ("reading", "wrong"),
    [
        (RIGHT, ""),
        (LOST, ""),
        (replace(RIGHT, utilisation_percent=100, temperature_c=-3, power_w=0.5, processes=(DeviceProcess(7, None),)), ""),
        (None, "must return a Reading"),
        (replace(RIGHT, at=datetime(2026, 3, 2)), "aware"),
        (replace(RIGHT, at=RIGHT.at + timedelta(hours=9)), "in the future"),
        (replace(RIGHT, name=" "), "name"),
        (replace(RIGHT, total_bytes=8.0), "integer numbers of bytes"),  # type: ignore[arg-type]
        (replace(RIGHT, free_bytes=-1), "integer numbers of bytes"),
        (replace(RIGHT, free_bytes=None), "both known"),
        (replace(RIGHT, free_bytes=9), "free_bytes (9) must not exceed total_bytes (8)"),
        (replace(RIGHT, utilisation_percent=101), "utilisation_percent"),
        (replace(RIGHT, utilisation_percent=True), "utilisation_percent"),
        (replace(RIGHT, temperature_c=41.5), "temperature_c"),  # type: ignore[arg-type]
        (replace(RIGHT, power_w=float("nan")), "power_w"),
        (replace(LOST, lost=""), "lost must say why"),
        (replace(RIGHT, lost="gone"), "of a lost card must be None"),
        (replace(RIGHT, processes=[]), "tuple of DeviceProcess"),  # type: ignore[arg-type]
        (replace(RIGHT, processes=(DeviceProcess(7, -1),)), "used_bytes"),
        (replace(RIGHT, processes=(DeviceProcess("7", 1),)), "pid"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_reading_is_told_from_a_right_one(reading, wrong):
    found = what_is_wrong_with(reading, RIGHT.at + timedelta(hours=1))
    assert bool(found) == bool(wrong)
    assert wrong in found


def test_an_absent_card_has_settings_that_none_has():
    from gpuqueue.testing.devices import ABSENT

    assert isinstance(ABSENT, DeviceSettings) and ABSENT.name.startswith("GPU-")
