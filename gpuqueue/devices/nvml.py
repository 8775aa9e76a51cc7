"""Reads NVIDIA cards through NVML, or falls back to the budget alone.

Never changes a card's settings.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import pynvml  # type: ignore[import-untyped]  # it ships no types

from gpuqueue.contract.device import Device
from gpuqueue.contract.hookspecs import RegisterDevicesDetails, hookimpl
from gpuqueue.devices.remote import BudgetDevice, runs_here
from gpuqueue.domain.device import DeviceProcess, Reading
from gpuqueue.domain.settings import BackendSettings, DeviceSettings

T = TypeVar("T")

REOPEN_S = 5.0  # between two attempts to initialise NVML again; each can take a second

_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_NO_CARD = (pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION)
_NO_VALUE = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)
_GONE = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
_ADVICE = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "the NVIDIA driver's libnvidia-ml is not installed here",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded; check nvidia-smi",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the card fell off the bus; check dmesg and restart the machine",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset the card or restart the machine",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated while the old version is running; restart the machine",
}


class NvmlDevice:
    """A card that NVML can read, chosen by its UUID if the settings' name is one, else by its index.

    NVML is initialised by the first reading and stays so. A lost card is opened again, at most every `REOPEN_S`.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._now = now
        self._monotonic = monotonic
        # NVML is thread-safe, but losing the card and opening it again is more than one call.
        self._lock = threading.Lock()
        self._initialised = False
        self._pid = 0  # of the process that initialised it
        self._handle: Any = None
        self._name: str | None = None
        self._has_memory_v2 = True
        self._lost: str | None = None
        self._reopen_at_s = float("-inf")

    def read(self) -> Reading:
        """Read the card; a figure that it does not have is None, and a failure is in the reading's `lost`."""
        with self._lock:
            if self._monotonic() < self._reopen_at_s:
                return Reading(at=self._now(), name=self._name, lost=self._lost)
            try:
                return self._read()
            # Not only NVMLError: NVMLLibraryMismatchError is not one, and a broken driver can raise OSError.
            except Exception as error:
                self._close()
                self._lost = _reason(error)
                self._reopen_at_s = self._monotonic() + REOPEN_S
                return Reading(at=self._now(), name=self._name, lost=self._lost)

    def open(self) -> None:
        """Initialise NVML and find the card. Raises: NVML's errors."""
        with self._lock:
            self._open()

    def close(self) -> None:
        """Shut down NVML; a later reading opens it again."""
        with self._lock:
            self._close()

    def _read(self) -> Reading:
        handle = self._open()
        memory = _optional(lambda: self._memory(handle), unless=None)
        use = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        celsius = _optional(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        milliwatts = _optional(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        processes = _processes(handle)
        self._lost = None
        return Reading(
            at=self._now(),
            name=self._name,
            total_bytes=None if memory is None else int(memory.total),
            free_bytes=None if memory is None else int(memory.free),
            utilisation_percent=None if use is None else int(use.gpu),
            temperature_c=None if celsius is None else int(celsius),
            power_w=None if milliwatts is None else milliwatts / 1000,
            processes=processes,
        )

    def _memory(self, handle: Any) -> Any:
        if self._has_memory_v2:
            try:
                return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            except pynvml.NVMLError as error:
                if error.value not in _NO_VALUE:
                    raise
                self._has_memory_v2 = False
        return pynvml.nvmlDeviceGetMemoryInfo(handle)

    def _open(self) -> Any:
        if self._initialised and self._pid != os.getpid():
            self._close()  # a handle inherited through a fork belongs to the parent
        if not self._initialised:
            pynvml.nvmlInit()
            self._initialised = True
            self._pid = os.getpid()
        if self._handle is None:
            if self.settings.name.startswith(("GPU-", "MIG-")):
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.settings.name)
            else:
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(self.settings.index)
            self._name = _optional(lambda: str(pynvml.nvmlDeviceGetName(self._handle)))
            self._has_memory_v2 = True
        return self._handle

    def _close(self) -> None:
        self._handle = None
        if self._initialised:
            self._initialised = False
            # NVML counts initialisations: other devices in this process keep theirs.
            with suppress(Exception):
                pynvml.nvmlShutdown()


def _processes(handle: Any) -> tuple[DeviceProcess, ...] | None:
    # A program that computes and draws is in both lists; in a container the pids are the host's, or missing.
    lists = [
        _listed(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        _listed(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)),
    ]
    if all(listed is None for listed in lists):
        return None
    found: dict[int, DeviceProcess] = {}
    for process in (process for listed in lists for process in listed or ()):
        used = process.usedGpuMemory
        found[process.pid] = DeviceProcess(int(process.pid), None if used is None else int(used), _name_of(process.pid))
    return tuple(found.values())


def _listed(ask: Callable[[], list[Any]]) -> list[Any] | None:
    try:
        return _optional(ask)
    except pynvml.NVMLError:
        raise
    except Exception:  # the driver is too old for the module's way to list processes; the card is not lost
        return None


def _name_of(pid: int) -> str | None:
    try:
        return os.path.basename(str(pynvml.nvmlSystemGetProcessName(pid))) or None
    except Exception:  # a process of another namespace, or an old driver
        return None


def open_device(settings: DeviceSettings, backends: Iterable[BackendSettings] = ()) -> Device:
    """Choose how to read a device: through NVML if this machine has a driver and the card, else by its budget alone.

    With a backend on another host the card is on that host, whatever this machine has: only the budget is known.
    A card on this machine that cannot be read now (lost, or its driver half updated) does not count as absent.
    """
    if not all(runs_here(backend.url) for backend in backends):
        return BudgetDevice(settings)
    device = NvmlDevice(settings)
    try:
        device.open()
    except pynvml.NVMLError as error:
        if error.value in (*_NO_DRIVER, *_NO_CARD):
            device.close()
            return BudgetDevice(settings)
    except Exception:
        # The library and its Python module do not match: the readings will report it.
        device.close()
    return device


class Devices:
    """Registers a device for each configured one."""

    @hookimpl
    def register_devices(self, details: RegisterDevicesDetails) -> Mapping[str, Device]:
        return {
            settings.name: open_device(settings, [item for item in details.backends if item.device in ("", settings.name)])
            for settings in details.devices
        }


def _optional(ask: Callable[[], T], unless: tuple[int, ...] | None = _GONE) -> T | None:
    """Return a figure, None if the card does not have it. Raises: errors in `unless`, or with None all other errors."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in _NO_VALUE or (unless is not None and error.value not in unless):
            return None
        raise


def _reason(error: Exception) -> str:
    # NVMLError can be neither hashed nor compared with others, so only its number is used.
    advice = _ADVICE.get(error.value) if isinstance(error, pynvml.NVMLError) else None
    return f"{error}: {advice}" if advice else f"{type(error).__name__}: {error}"
