"""Simulates NVML under the real `pynvml`, with readings of simulated cards; never used unless installed by name.

`simulated_nvml(card)` serves tests of one process. `python -m gpuqueue.simulators.nvml --card URL -m MODULE …` runs a
program in a process whose NVML shows the card of an Ollama simulator in another process.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import runpy
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pynvml  # type: ignore[import-untyped]  # ships no types

from gpuqueue.simulators.card import CardProcess, CardReading, GpuIsLost, ReadableCard

__all__ = ["FUNCTIONS", "RemoteCard", "install", "simulated_nvml"]

DRIVER_VERSION = "580.65.06"
_READ_LIMIT_S = 2.0
_NOT_AVAILABLE = 2**64 - 1
_SUCCESS = 0
_UNINITIALIZED = 1
_INVALID_ARGUMENT = 2
_NOT_SUPPORTED = 3
_NOT_FOUND = 6
_INSUFFICIENT_SIZE = 7
_DRIVER_NOT_LOADED = 9
_GPU_IS_LOST = 15
_ARGUMENT_VERSION_MISMATCH = 25
_MEMORY_V2 = 0x02000028
_GPU_IDLE = 0x1
_FIRST_HANDLE = 0x1000


class RemoteCard:
    """The card of an Ollama simulator in another process, read through `GET /simulator/card`.

    url: the simulator's address. Readings go to its control address, so they outlast an outage of Ollama.
    cache_s: real seconds for which a reading is kept; 0 asks each time.
    """

    def __init__(self, url: str, *, cache_s: float = 0.0) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not the address of a simulator; expected http://host:port")
        self._url = url.rstrip("/")
        self._cache_s = cache_s
        self._lock = threading.Lock()
        self._kept: tuple[float, CardReading] | None = None

    def reading(self) -> CardReading:
        """Return the card's state now.

        Raises: GpuIsLost if the simulator does not answer within 2 s.
        """
        with self._lock:
            if self._kept is not None and time.monotonic() - self._kept[0] < self._cache_s:
                return self._kept[1]
        answer = self._ask()
        with self._lock:
            self._url = str(answer.get("control_url", self._url))
            reading = CardReading(
                name=answer["name"],
                uuid=answer["uuid"],
                total_bytes=answer["total_bytes"],
                reserved_bytes=answer["reserved_bytes"],
                used_bytes=answer["used_bytes"],
                free_bytes=answer["free_bytes"],
                temperature_c=answer["temperature_c"],
                utilisation_percent=answer["utilisation_percent"],
                power_w=answer["power_w"],
                lost=answer["lost"],
                processes=tuple(CardProcess(**process) for process in answer["processes"]),
            )
            self._kept = (time.monotonic(), reading)
            return reading

    def _ask(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self._url}/simulator/card", timeout=_READ_LIMIT_S) as answer:
                read: dict[str, Any] = json.load(answer)
                return read
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise GpuIsLost(f"cannot read the card of the simulator at {self._url}: {error}") from error


class _Library:
    """Takes the place of pynvml's loaded library; unknown attributes are missing symbols, as in an old driver."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)


class _Nvml:
    """NVML's functions over some cards; each answers with NVML's own return code."""

    def __init__(self, cards: Sequence[ReadableCard], *, driver_loaded: bool, process_memory_known: bool) -> None:
        self._cards = tuple(cards)
        self._driver_loaded = driver_loaded
        self._process_memory_known = process_memory_known
        self._lock = threading.Lock()
        self._initialised = 0

    def library(self, missing: Collection[str]) -> _Library:
        functions = {name: _plain(getattr(self, method)) for name, method in FUNCTIONS.items() if name not in missing}
        return _Library(functions)

    def init(self, _flags: object) -> int:
        if not self._driver_loaded:
            return _DRIVER_NOT_LOADED
        with self._lock:
            self._initialised += 1
        return _SUCCESS

    def shutdown(self) -> int:
        with self._lock:
            if self._initialised == 0:
                return _UNINITIALIZED
            self._initialised -= 1
        return _SUCCESS

    def error_string(self, code: int) -> bytes:
        return f"Error {code}".encode()

    def driver_version(self, text: Any, _length: object) -> int:
        if not self._initialised:
            return _UNINITIALIZED
        text.value = DRIVER_VERSION.encode()
        return _SUCCESS

    def process_name(self, pid: Any, text: Any, _length: object) -> int:
        if not self._initialised:
            return _UNINITIALIZED
        for card in self._cards:
            with suppress(GpuIsLost):
                for process in card.reading().processes:
                    if process.pid == _number(pid):
                        text.value = process.name.encode()
                        return _SUCCESS
        return _NOT_FOUND

    def count(self, count: Any) -> int:
        if not self._initialised:
            return _UNINITIALIZED
        _target(count).value = len(self._cards)
        return _SUCCESS

    def handle_by_index(self, index: Any, handle: Any) -> int:
        if not self._initialised:
            return _UNINITIALIZED
        if not 0 <= _number(index) < len(self._cards):
            return _INVALID_ARGUMENT
        return self._give_handle(_number(index), handle)

    def handle_by_uuid(self, uuid: Any, handle: Any) -> int:
        if not self._initialised:
            return _UNINITIALIZED
        wanted = (uuid.value if isinstance(uuid, ctypes.c_char_p) else uuid) or b""
        for index, card in enumerate(self._cards):
            try:
                if card.reading().uuid.encode() == wanted:
                    return self._give_handle(index, handle)
            except GpuIsLost:
                continue
        return _NOT_FOUND

    def _give_handle(self, index: int, handle: Any) -> int:
        ctypes.cast(ctypes.byref(_target(handle)), ctypes.POINTER(ctypes.c_void_p))[0] = _FIRST_HANDLE + index
        return _SUCCESS

    def _read(self, handle: Any) -> CardReading | int:
        if not self._initialised:
            return _UNINITIALIZED
        address = ctypes.cast(handle, ctypes.c_void_p).value or 0
        if not 0 <= address - _FIRST_HANDLE < len(self._cards):
            return _INVALID_ARGUMENT
        try:
            reading = self._cards[address - _FIRST_HANDLE].reading()
        except GpuIsLost:
            return _GPU_IS_LOST
        return _GPU_IS_LOST if reading.lost else reading

    def name(self, handle: Any, text: Any, _length: object) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        text.value = reading.name.encode()
        return _SUCCESS

    def uuid(self, handle: Any, text: Any, _length: object) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        text.value = reading.uuid.encode()
        return _SUCCESS

    def memory(self, handle: Any, memory: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        into = _target(memory)
        into.total, into.free, into.used = reading.total_bytes, reading.free_bytes, reading.used_bytes
        return _SUCCESS

    def memory_v2(self, handle: Any, memory: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        into = _target(memory)
        if into.version != _MEMORY_V2:
            return _ARGUMENT_VERSION_MISMATCH
        into.total, into.free, into.reserved = reading.total_bytes, reading.free_bytes, reading.reserved_bytes
        into.used = reading.used_bytes - reading.reserved_bytes
        return _SUCCESS

    def utilisation(self, handle: Any, rates: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        into = _target(rates)
        into.gpu = reading.utilisation_percent
        into.memory = reading.utilisation_percent // 2
        return _SUCCESS

    def temperature(self, handle: Any, sensor: Any, degrees: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        if _number(sensor) != 0:
            return _INVALID_ARGUMENT
        _target(degrees).value = reading.temperature_c
        return _SUCCESS

    def power(self, handle: Any, milliwatts: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        _target(milliwatts).value = round(reading.power_w * 1000)
        return _SUCCESS

    def clock_reasons(self, handle: Any, reasons: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        _target(reasons).value = 0 if reading.utilisation_percent else _GPU_IDLE
        return _SUCCESS

    def compute_processes(self, handle: Any, count: Any, infos: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        into = _target(count)
        given, needed = into.value, len(reading.processes)
        into.value = needed
        if infos is None or given < needed:
            return _INSUFFICIENT_SIZE if needed else _SUCCESS
        for place, process in enumerate(reading.processes):
            infos[place].pid = process.pid
            infos[place].usedGpuMemory = process.used_bytes if self._process_memory_known else _NOT_AVAILABLE
            infos[place].gpuInstanceId = infos[place].computeInstanceId = 0xFFFFFFFF
        return _SUCCESS

    def graphics_processes(self, handle: Any, count: Any, _infos: Any) -> int:
        reading = self._read(handle)
        if isinstance(reading, int):
            return reading
        _target(count).value = 0
        return _SUCCESS


FUNCTIONS: dict[str, str] = {
    "nvmlInitWithFlags": "init",
    "nvmlShutdown": "shutdown",
    "nvmlErrorString": "error_string",
    "nvmlSystemGetDriverVersion": "driver_version",
    "nvmlSystemGetProcessName": "process_name",
    "nvmlDeviceGetCount_v2": "count",
    "nvmlDeviceGetHandleByIndex_v2": "handle_by_index",
    "nvmlDeviceGetHandleByUUID": "handle_by_uuid",
    "nvmlDeviceGetName": "name",
    "nvmlDeviceGetUUID": "uuid",
    "nvmlDeviceGetMemoryInfo": "memory",
    "nvmlDeviceGetMemoryInfo_v2": "memory_v2",
    "nvmlDeviceGetUtilizationRates": "utilisation",
    "nvmlDeviceGetTemperature": "temperature",
    "nvmlDeviceGetPowerUsage": "power",
    "nvmlDeviceGetCurrentClocksEventReasons": "clock_reasons",
    "nvmlDeviceGetComputeRunningProcesses_v3": "compute_processes",
    "nvmlDeviceGetGraphicsRunningProcesses_v3": "graphics_processes",
}


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    # pynvml sets `restype` on what it gets, which a bound method refuses.
    def function(*arguments: Any) -> Any:
        return method(*arguments)

    return function


def _target(argument: Any) -> Any:
    """Return what `byref(x)` or `x` itself points at."""
    return getattr(argument, "_obj", argument)


def _number(argument: Any) -> int:
    return int(getattr(argument, "value", argument))


@contextmanager
def simulated_nvml(
    cards: ReadableCard | Sequence[ReadableCard],
    *,
    driver_loaded: bool = True,
    missing_functions: Collection[str] = (),
    process_memory_known: bool = True,
) -> Iterator[None]:
    """Put simulated NVML under `pynvml` for the block, and restore what was there.

    cards: one card, or several in the order of their index.
    driver_loaded: False makes `nvmlInit` raise DriverNotLoaded.
    missing_functions: names of C functions (see `FUNCTIONS`) that an old driver lacks; they raise FunctionNotFound.
    process_memory_known: False makes `usedGpuMemory` None, as under WDDM, WSL and in some containers.
    Inside, `pynvml.nvmlInit()` must still be called, as with the real library.
    Raises: ValueError for an unknown missing function.
    """
    restore = install(
        cards,
        driver_loaded=driver_loaded,
        missing_functions=missing_functions,
        process_memory_known=process_memory_known,
    )
    try:
        yield
    finally:
        restore()


def install(
    cards: str | ReadableCard | Sequence[ReadableCard],
    *,
    driver_loaded: bool = True,
    missing_functions: Collection[str] = (),
    process_memory_known: bool = True,
) -> Callable[[], None]:
    """Put simulated NVML under `pynvml` in this process; a string is the address of an Ollama simulator.

    The other arguments are those of `simulated_nvml`.
    Returns: a function that restores what was there.
    Raises: ValueError for an unknown missing function, or a wrong address.
    """
    unknown = sorted(set(missing_functions) - set(FUNCTIONS))
    if unknown:
        raise ValueError(f"unknown NVML functions: {', '.join(unknown)}. Simulated are: {', '.join(FUNCTIONS)}")
    nvml = _Nvml(_listed(cards), driver_loaded=driver_loaded, process_memory_known=process_memory_known)
    inside: Any = pynvml
    before = (inside.nvmlLib, dict(inside._nvmlGetFunctionPointer_cache), inside._nvmlLib_refcount)
    _replace(nvml.library(missing_functions), {}, 0)

    def restore() -> None:
        _replace(*before)

    return restore


def _listed(cards: str | ReadableCard | Sequence[ReadableCard]) -> tuple[ReadableCard, ...]:
    if isinstance(cards, str):
        return (RemoteCard(cards),)
    return (cards,) if isinstance(cards, ReadableCard) else tuple(cards)


def _replace(library: object, cache: dict[str, Any], refcount: int) -> None:
    inside: Any = pynvml
    with inside.libLoadLock:
        inside.nvmlLib = library
        inside._nvmlGetFunctionPointer_cache.clear()
        inside._nvmlGetFunctionPointer_cache.update(cache)
        inside._nvmlLib_refcount = refcount


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a Python program with simulated NVML installed, as `python -m MODULE` would; wrong arguments exit with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m gpuqueue.simulators.nvml",
        description="Run a program with the card of an Ollama simulator in place of a real one.",
    )
    parser.add_argument(
        "--card", required=True, metavar="URL", help="address of the Ollama simulator, e.g. http://127.0.0.1:11434"
    )
    parser.add_argument("-m", required=True, nargs=argparse.REMAINDER, metavar="MODULE", help="the program and its arguments")
    given = parser.parse_args(arguments)
    if not given.m:
        parser.error("-m needs the module to run, e.g. gpuqueue")
    try:
        install(given.card)
    except ValueError as wrong:
        parser.error(str(wrong))
    sys.argv = list(given.m)
    runpy.run_module(given.m[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
