"""Provides the tests that every device returned by a plugin's `register_devices` must pass; plugin authors subclass them.

from gpuqueue.testing.devices import DeviceSuite

class TestRocm(DeviceSuite):
    def make_plugin(self) -> object:
        return Rocm()

    def lose_card(self) -> None: ...
    def bring_card_back(self) -> None: ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.device import Device
from gpuqueue.contract.hookspecs import RegisterDevicesDetails
from gpuqueue.domain.device import DeviceProcess, Reading
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.testing.idle import run_until_idle
from gpuqueue.testing.leftovers import nothing_left_behind
from gpuqueue.testing.queues import foreign_variables, queue_maker
from gpuqueue.testing.waiting import wait_until

__all__ = ["DeviceSuite"]

ABSENT = DeviceSettings("GPU-00000000-0000-0000-0000-000000000000", budget_bytes=1, index=97)
QUEUES = '[queues.train]\ngpu = true\nbackend = "none"\n'
THREADS = 8


class DeviceSuite:
    """Subclass it, define how to make the plugin and how to lose its card, and pytest runs these tests on it.

    `name` is the name the plugin is registered under, `toml` its section of the configuration, and `gpu` the section `[gpu]`
    with a card that exists.
    """

    name: ClassVar[str] = "tested"
    toml: ClassVar[str] = ""
    gpu: ClassVar[str] = '[gpu]\nbudget = "1GB"\n'
    reads_memory: ClassVar[bool] = True  # whether its readings include the card's memory

    def make_plugin(self) -> object:
        """Make the plugin; called for each test."""
        raise NotImplementedError(f"{type(self).__name__} must define the plugin to test: def make_plugin(self): return …")

    def lose_card(self) -> None:
        """Make the card unreadable, as after a crash of its driver."""
        pytest.skip("needs a card that can be lost: define lose_card(self) and bring_card_back(self)")

    def bring_card_back(self) -> None:
        """Make the lost card readable again."""
        raise NotImplementedError(f"{type(self).__name__} loses its card: define bring_card_back(self) to make it readable again")

    def close_device(self, device: Device) -> None:
        """Release what the device keeps between readings; by default calls its `close()`, if it has one."""
        close = getattr(device, "close", None)
        if callable(close):
            close()

    # --- registering ---

    def test_it_gives_the_configured_devices_and_no_others(self, queue_object: GPUQueue) -> None:
        configured = {device.name for device in queue_object.config.devices}
        given = self._given(queue_object, *queue_object.config.devices)
        assert given, f"{self.name} returned no device: is @hookimpl missing on register_devices?"
        assert set(given) <= configured, f"{self.name} returned {sorted(set(given) - configured)}, which [gpu] does not configure"

    def test_a_card_that_is_not_there_raises_nothing(self, queue_object: GPUQueue) -> None:
        for device in self._given(queue_object, ABSENT).values():
            _assert_right(device.read(), queue_object.now())
            self.close_device(device)

    # --- reading ---

    def test_a_reading_is_right(self, device: Device, queue_object: GPUQueue) -> None:
        reading = device.read()
        _assert_right(reading, queue_object.now())
        assert reading.lost is None, f"the card cannot be read: {reading.lost}"
        assert (reading.total_bytes is not None) == self.reads_memory, (
            f"reads_memory is {self.reads_memory}, but the reading is {reading}"
        )

    def test_each_reading_is_of_its_moment(self, device: Device, queue_object: GPUQueue) -> None:
        before = queue_object.now()
        first, second = device.read(), device.read()
        assert before - timedelta(seconds=1) <= first.at, "at must be the time of the reading; this one is older"
        assert first.at <= second.at

    def test_it_is_read_from_several_threads(self, device: Device, queue_object: GPUQueue) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            readings = list(threads.map(lambda _: device.read(), range(5 * THREADS)))
        for reading in readings:
            _assert_right(reading, queue_object.now())

    # --- losing it ---

    def test_a_lost_card_is_told_by_the_reading(self, device: Device, queue_object: GPUQueue) -> None:
        device.read()
        self.lose_card()
        for _ in range(3):
            reading = device.read()
            _assert_right(reading, queue_object.now())
            assert reading.lost, f"the card is lost, but the reading is {reading}"

    def test_a_card_that_comes_back_is_read_again(self, device: Device, queue_object: GPUQueue) -> None:
        self.lose_card()
        device.read()
        self.bring_card_back()
        wait_until(lambda: device.read().lost is None, "the card is readable again")
        self.test_a_reading_is_right(device, queue_object)

    def test_a_card_that_is_lost_at_the_start_is_read_when_it_comes_back(self, queue_object: GPUQueue) -> None:
        self.lose_card()
        device = self._one(queue_object)
        _assert_right(device.read(), queue_object.now())
        self.bring_card_back()
        wait_until(lambda: device.read().lost is None, "the card is readable again")
        self.close_device(device)

    # --- what it leaves behind ---

    def test_a_closed_device_raises_nothing(self, device: Device, queue_object: GPUQueue) -> None:
        device.read()
        self.close_device(device)
        self.close_device(device)
        _assert_right(device.read(), queue_object.now())

    def test_it_leaves_no_thread_and_no_connection_behind(self, queue_object: GPUQueue) -> None:
        with nothing_left_behind():
            device = self._one(queue_object)
            device.read()
            self.close_device(device)
            del device

    # --- at work ---

    def test_a_worker_runs_jobs_on_it_and_tells_what_it_read(self, queue_object: GPUQueue) -> None:
        job = queue_object.task(name="learn", queue="train", vram="10MB")(_learn).enqueue()
        run_until_idle(queue_object)
        assert job.result(timeout_s=0) == 7
        told = [device.reading for device in queue_object.view().devices.values() if device.reading is not None]
        assert told, "the worker published no reading to other processes"
        _assert_right(told[0], queue_object.now())
        assert (told[0].total_bytes is not None) == self.reads_memory

    def test_a_workers_jobs_wait_for_a_lost_card(self, queue_object: GPUQueue) -> None:
        job = queue_object.task(name="learn", queue="train", vram="10MB")(_learn).enqueue()
        self.lose_card()
        explanation = run_until_idle(queue_object, may_wait=True)[job.id]
        assert "device_lost" in [reason.reason for reason in explanation.reasons], str(explanation)
        self.bring_card_back()
        wait_until(lambda: not run_until_idle(queue_object, may_wait=True), "the job finishes after the card came back")
        assert job.result(timeout_s=0) == 7

    # --- how it is tested ---

    @pytest.fixture
    def queue_object(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GPUQueue]:
        """A queue object with the plugin, the card in `gpu`, and a queue `train` for it."""
        for name in foreign_variables():
            monkeypatch.delenv(name)
        with queue_maker(tmp_path) as make:
            yield make(f"{self.gpu}{QUEUES}{self.toml}\n", plugins={self.name: self.make_plugin()})

    @pytest.fixture
    def device(self, queue_object: GPUQueue) -> Iterator[Device]:
        """The device of one test."""
        device = self._one(queue_object)
        yield device
        self.close_device(device)

    def _given(self, gq: GPUQueue, *settings: DeviceSettings) -> Mapping[str, Device]:
        details = RegisterDevicesDetails(settings, gq.config.backends)
        given: Mapping[str, Device] | None = gq.plugins.ask(self.name, "register_devices", details)
        return given or {}

    def _one(self, gq: GPUQueue) -> Device:
        given = self._given(gq, *gq.config.devices)
        assert given, f"{self.name} returned no device"
        return next(iter(given.values()))


def what_is_wrong_with(reading: Any, now: datetime) -> str:
    """Say what is wrong with a reading, "" if nothing is."""
    if not isinstance(reading, Reading):
        return "read() must return a Reading"
    if not isinstance(reading.at, datetime) or reading.at.utcoffset() is None:
        return "at must be an aware datetime"
    if reading.at > now:
        return f"at is {reading.at - now} in the future"
    if reading.name is not None and not (isinstance(reading.name, str) and reading.name.strip()):
        return "name must be a non-empty string, or None"
    total, free = reading.total_bytes, reading.free_bytes
    if not all(value is None or (_is_whole(value) and value >= 0) for value in (total, free)):
        return "total_bytes and free_bytes must be integer numbers of bytes, or None"
    if (total is None) != (free is None):
        return "total_bytes and free_bytes must be both known or both None"
    if total is not None and free is not None and free > total:
        return f"free_bytes ({free}) must not exceed total_bytes ({total})"
    use = reading.utilisation_percent
    if use is not None and not (_is_whole(use) and 0 <= use <= 100):
        return "utilisation_percent must be an integer from 0 to 100, or None"
    if reading.temperature_c is not None and not _is_whole(reading.temperature_c):
        return "temperature_c must be an integer, or None"
    if reading.power_w is not None and not (_is_number(reading.power_w) and reading.power_w >= 0):
        return "power_w must be a number of at least 0, or None"
    if reading.lost is not None and not (isinstance(reading.lost, str) and reading.lost.strip()):
        return "lost must say why the card cannot be read, or be None"
    if reading.lost is not None and total is not None:
        return "total_bytes and free_bytes of a lost card must be None"
    return "" if reading.processes is None else _what_is_wrong_with_processes(reading.processes)


def _what_is_wrong_with_processes(processes: Any) -> str:
    if not isinstance(processes, tuple) or not all(isinstance(process, DeviceProcess) for process in processes):
        return "processes must be a tuple of DeviceProcess, or None"
    sizes = [process.used_bytes for process in processes]
    if not all(_is_whole(process.pid) for process in processes) or not all(
        size is None or (_is_whole(size) and size >= 0) for size in sizes
    ):
        return "a process must have an integer pid, and used_bytes as an integer or None"
    return ""


def _assert_right(reading: Any, now: datetime) -> None:
    wrong = what_is_wrong_with(reading, now)
    assert not wrong, f"wrong reading {reading!r}: {wrong}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _learn() -> int:
    return 7
