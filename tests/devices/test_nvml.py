"""Reading a card through the real `pynvml`, with a driver's library of the test's own beneath it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pynvml
import pytest

from gpuqueue.contract.hookspecs import RegisterDevicesDetails
from gpuqueue.devices.nvml import REOPEN_S, Devices, NvmlDevice, open_device
from gpuqueue.devices.remote import BudgetDevice
from gpuqueue.domain.device import DeviceProcess, Reading
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import forks

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
UUID = "GPU-5e1f0c1a-2060-5afe-c0de-000000000000"
SETTINGS = DeviceSettings("gpu0", budget_bytes=5 * 10**9)


class Library:
    """A driver with one card: counts its calls, and fails those in `failing` with their error numbers."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []
        self.initialised = 0
        self.free_bytes = 6_000_000_000
        self.processes: list[tuple[int, int | None]] = []
        self.second_init = threading.Event()
        self.init_s = 0.0

    def __getattr__(self, symbol: str) -> Callable[..., int]:
        if not symbol.startswith("nvml"):
            raise AttributeError(symbol)

        # pynvml sets attributes on what it finds, so it must be a plain function.
        def call(*arguments: Any) -> int:
            self.calls.append(symbol)
            if symbol in self.failing:
                return self.failing[symbol]
            if self.initialised <= 0 and symbol != "nvmlInitWithFlags":
                return int(pynvml.NVML_ERROR_UNINITIALIZED)
            return self._answer(symbol, arguments)

        return call

    def _answer(self, symbol: str, arguments: tuple[Any, ...]) -> int:
        match symbol:
            case "nvmlInitWithFlags":
                # Stays here until a second thread comes in, which is to be kept out.
                if self.calls.count(symbol) == 1:
                    self.second_init.wait(self.init_s)
                else:
                    self.second_init.set()
                self.initialised += 1
            case "nvmlShutdown":
                self.initialised -= 1
            case "nvmlDeviceGetHandleByIndex_v2":
                if arguments[0].value != 0:
                    return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            case "nvmlDeviceGetHandleByUUID":
                if arguments[0].value != UUID.encode():
                    return int(pynvml.NVML_ERROR_NOT_FOUND)
            case "nvmlDeviceGetName":
                arguments[1].value = b"NVIDIA GeForce RTX 2060 SUPER"
            case "nvmlDeviceGetMemoryInfo" | "nvmlDeviceGetMemoryInfo_v2":
                memory = arguments[1]._obj
                memory.total, memory.free, memory.used = 8_589_934_592, self.free_bytes, 2_589_934_592
            case "nvmlDeviceGetUtilizationRates":
                arguments[1]._obj.gpu = 97
            case "nvmlDeviceGetTemperature":
                arguments[2]._obj.value = 66
            case "nvmlDeviceGetPowerUsage":
                arguments[1]._obj.value = 163_500
            case "nvmlDeviceGetComputeRunningProcesses_v3" | "nvmlDeviceGetGraphicsRunningProcesses_v3":
                return self._list_processes(symbol, arguments)
            case "nvmlSystemGetProcessName":
                if arguments[0].value == 8:
                    return int(pynvml.NVML_ERROR_NOT_FOUND)
                arguments[1].value = b"/usr/bin/blender"
            case _:
                return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return 0

    def _list_processes(self, symbol: str, arguments: tuple[Any, ...]) -> int:
        count, infos = arguments[1]._obj, arguments[2]
        processes = self.processes if "Compute" in symbol else self.processes[:1]
        if infos is None:
            count.value = len(processes)
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE) if processes else 0
        count.value = len(processes)
        for info, (pid, used) in zip(infos, processes, strict=False):
            info.pid = pid
            info.usedGpuMemory = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value if used is None else used
        return 0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    library = Library()
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    yield library


def a_device(settings: DeviceSettings = SETTINGS, clock: Callable[[], float] = lambda: 0.0) -> NvmlDevice:
    return NvmlDevice(settings, now=lambda: NOON, monotonic=clock)


def test_a_reading_has_every_figure_of_the_card(library: Library) -> None:
    assert a_device().read() == Reading(
        at=NOON,
        name="NVIDIA GeForce RTX 2060 SUPER",
        total_bytes=8_589_934_592,
        free_bytes=6_000_000_000,
        utilisation_percent=97,
        temperature_c=66,
        power_w=163.5,
        processes=(),
    )


def test_the_programs_on_the_card_are_named_with_what_they_hold(library: Library) -> None:
    library.processes = [(7, 3_000_000_000), (8, None)]
    assert a_device().read().processes == (DeviceProcess(7, 3_000_000_000, "blender"), DeviceProcess(8, None, None))


def test_a_driver_that_does_not_list_programs_is_not_lost(library: Library) -> None:
    library.failing["nvmlDeviceGetComputeRunningProcesses_v3"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    library.failing["nvmlDeviceGetGraphicsRunningProcesses_v3"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    reading = a_device().read()
    assert (reading.processes, reading.lost, reading.free_bytes) == (None, None, 6_000_000_000)


def test_a_card_is_found_by_its_uuid(library: Library) -> None:
    reading = a_device(DeviceSettings(UUID, budget_bytes=1, index=7)).read()

    assert reading.free_bytes == 6_000_000_000
    assert "nvmlDeviceGetHandleByIndex_v2" not in library.calls


def test_nvml_is_initialised_once_for_many_readings(library: Library) -> None:
    device = a_device()

    for _ in range(5):
        device.read()

    assert library.calls.count("nvmlInitWithFlags") == 1
    assert library.calls.count("nvmlDeviceGetHandleByIndex_v2") == 1


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_carries_no_handle_over(library: Library) -> None:
    device = a_device()
    device.read()
    ours, theirs = multiprocessing.Pipe()

    def read_in_child() -> None:
        library.calls.clear()
        lost = device.read().lost
        theirs.send((lost, library.calls[:3]))

    process = multiprocessing.get_context("fork").Process(target=read_in_child, daemon=True)
    process.start()
    assert ours.poll(60)
    assert ours.recv() == (None, ["nvmlShutdown", "nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2"])
    process.join(DEADLINE_S)
    library.calls.clear()
    device.read()
    assert "nvmlInitWithFlags" not in library.calls


@pytest.mark.parametrize(
    ("symbol", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilisation_percent"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetName", "name"),
    ],
)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN])
def test_a_figure_that_the_card_does_not_have_is_unknown_and_costs_no_other(
    library: Library, symbol: str, field: str, code: int
) -> None:
    library.failing[symbol] = code

    reading = a_device().read()

    assert getattr(reading, field) is None
    assert reading.free_bytes == 6_000_000_000
    assert reading.lost is None


def test_an_old_driver_without_the_second_form_of_memory_is_asked_for_the_first(library: Library) -> None:
    library.failing["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    device = a_device()

    assert [device.read().free_bytes, device.read().free_bytes] == [6_000_000_000, 6_000_000_000]
    assert library.calls.count("nvmlDeviceGetMemoryInfo_v2") == 1


def test_a_card_whose_memory_nvml_cannot_tell_is_unknown_and_not_lost(library: Library) -> None:
    library.failing |= dict.fromkeys(
        ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"), int(pynvml.NVML_ERROR_NOT_SUPPORTED)
    )

    reading = a_device().read()

    assert (reading.total_bytes, reading.free_bytes, reading.lost) == (None, None, None)
    assert reading.temperature_c == 66


@pytest.mark.parametrize(
    "symbol",
    ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperature", "nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2"],
)
def test_a_card_that_fell_off_the_bus_is_lost_whichever_call_meets_it(library: Library, symbol: str) -> None:
    library.failing[symbol] = pynvml.NVML_ERROR_GPU_IS_LOST

    reading = a_device().read()

    assert reading.lost == "GPU is lost: the card fell off the bus; check dmesg and restart the machine"
    assert reading.free_bytes is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver was updated"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "reset the card"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_a_failure_of_the_driver_is_said_in_the_reading_and_never_raised(library: Library, code: int, words: str) -> None:
    library.failing["nvmlDeviceGetMemoryInfo_v2"] = code

    assert words in str(a_device().read().lost)


def test_a_module_that_does_not_fit_the_library_is_said_too_though_it_is_no_nvml_error(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mismatch() -> None:
        raise pynvml.NVMLLibraryMismatchError("Driver/library version mismatch")

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)

    assert a_device().read().lost == "NVMLLibraryMismatchError: Driver/library version mismatch"


def test_a_lost_card_is_looked_for_again_but_not_at_each_reading(library: Library) -> None:
    clock = Clock()
    device = a_device(clock=clock)
    device.read()
    library.failing["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert device.read().lost is not None

    library.failing.clear()
    clock.now_s += REOPEN_S / 2
    assert device.read().lost is not None
    assert library.calls.count("nvmlInitWithFlags") == 1
    clock.now_s += REOPEN_S
    found = device.read()

    assert (found.lost, found.free_bytes) == (None, 6_000_000_000)
    assert library.calls.count("nvmlInitWithFlags") == 2
    assert library.initialised == 1


def test_a_lost_card_keeps_its_name(library: Library) -> None:
    device = a_device()
    device.read()
    library.failing["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST

    assert device.read().name == "NVIDIA GeForce RTX 2060 SUPER"


def test_losing_one_card_leaves_nvml_to_the_others(library: Library) -> None:
    one, other = a_device(), a_device()
    one.read()
    other.read()
    library.failing["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST
    one.read()
    library.failing.clear()

    assert other.read().lost is None


def test_threads_that_read_at_once_initialise_nvml_once(library: Library) -> None:
    library.init_s = 0.1
    device = a_device()
    together = threading.Barrier(8, timeout=DEADLINE_S)
    readings: list[Reading] = []

    def read() -> None:
        together.wait()
        readings.append(device.read())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [reading.lost for reading in readings] == [None] * 8
    assert library.calls.count("nvmlInitWithFlags") == 1


def test_a_card_that_is_here_is_opened_through_nvml(library: Library) -> None:
    assert isinstance(open_device(SETTINGS), NvmlDevice)


def test_without_a_driver_only_the_budget_is_known(library: Library) -> None:
    for code in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
        library.failing["nvmlInitWithFlags"] = code
        assert isinstance(open_device(SETTINGS), BudgetDevice)


@pytest.mark.parametrize(
    "settings", [DeviceSettings("gpu1", budget_bytes=1, index=1), DeviceSettings("GPU-none", budget_bytes=1)]
)
def test_a_card_that_is_not_in_this_machine_has_only_its_budget_and_nvml_is_given_back(
    library: Library, settings: DeviceSettings
) -> None:
    assert isinstance(open_device(settings), BudgetDevice)
    assert library.initialised == 0


def test_a_card_that_is_lost_at_the_start_is_not_taken_for_an_absent_one(library: Library) -> None:
    library.failing["nvmlDeviceGetHandleByIndex_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST

    assert "GPU is lost" in str(open_device(SETTINGS).read().lost)


def test_the_plugin_registers_each_configured_device_under_its_name(library: Library) -> None:
    other = DeviceSettings("gpu1", budget_bytes=1, index=1)

    devices = Devices().register_devices(RegisterDevicesDetails((SETTINGS, other), ()))

    assert {name: type(device) for name, device in devices.items()} == {"gpu0": NvmlDevice, "gpu1": BudgetDevice}


def test_a_card_beside_which_ollama_runs_elsewhere_is_not_the_one_to_read() -> None:
    with simulated_nvml(SimulatedCard()):
        here, elsewhere = BackendSettings(url="http://127.0.0.1:1"), BackendSettings(url="http://192.0.2.7:1")
        local = Devices().register_devices(RegisterDevicesDetails((SETTINGS,), (here,)))[SETTINGS.name]
        remote = Devices().register_devices(RegisterDevicesDetails((SETTINGS,), (elsewhere,)))[SETTINGS.name]
    assert isinstance(local, NvmlDevice)
    assert isinstance(remote, BudgetDevice)
