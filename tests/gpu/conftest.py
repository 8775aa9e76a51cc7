"""Owns what the tests on a real NVIDIA card need, and the reasons why they are skipped where it is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml  # type: ignore[import-untyped]  # it ships no types
import pytest

from gpuqueue.devices.nvml import NvmlDevice
from gpuqueue.domain.device import Reading
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.units import format_size
from tests.gpu.cuda import LIBRARY
from tests.processes import LONGEST_S, started

SIZE_BYTES = 2**30  # what a test takes
NOISE_BYTES = 128 * 2**20  # what other programs of the machine, such as its display, may take or give meanwhile
NEEDED_BYTES = 4 * SIZE_BYTES
START_S = 120.0  # until a program has its memory: the first use of a card, or of PyTorch, can take long
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Card:
    """A card of this machine, read as a worker reads it, and as `nvidia-smi` does."""

    index: int
    uuid: str
    device: NvmlDevice = field(repr=False)

    def read(self) -> Reading:
        reading = self.device.read()
        assert reading.lost is None, reading.lost
        return reading

    @property
    def free_bytes(self) -> int:
        free_bytes = self.read().free_bytes
        assert free_bytes is not None
        return free_bytes

    def nvidia_smi(self, *fields: str) -> list[str]:
        """Ask nvidia-smi for some of the card's figures; "[N/A]" and the like are what it does not have."""
        (row,) = self._ask(f"--query-gpu={','.join(fields)}")
        return row

    def programs(self) -> dict[int, str]:
        """Ask nvidia-smi which programs compute there: {pid: MiB}."""
        return {int(pid): used for pid, used in self._ask("--query-compute-apps=pid,used_gpu_memory")}

    def _ask(self, query: str) -> list[list[str]]:
        command = ["nvidia-smi", f"--id={self.uuid}", query, "--format=csv,noheader,nounits"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return [[word.strip() for word in line.split(",")] for line in ran.stdout.splitlines() if line.strip()]


@pytest.fixture(scope="module", autouse=True)
def cards() -> Iterator[list[Card]]:
    """Every card of this machine; without one, everything here is skipped."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            pytest.skip("no NVIDIA card can be read: libnvidia-ml, which comes with the NVIDIA driver, is not installed here")
        if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            pytest.skip("no NVIDIA card can be read: libnvidia-ml is here, but the NVIDIA driver is not loaded")
        raise
    with ExitStack() as stack:
        stack.callback(pynvml.nvmlShutdown)
        count = pynvml.nvmlDeviceGetCount()
        if not count:
            pytest.skip("no NVIDIA card can be read: the NVIDIA driver is loaded, but it has no card")
        found = []
        for index in range(count):
            uuid = str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
            device = NvmlDevice(DeviceSettings(uuid, budget_bytes=1))
            stack.callback(device.close)
            found.append(Card(index, uuid, device))
        yield found


@pytest.fixture
def card(cards: list[Card]) -> Card:
    """The first card."""
    return cards[0]


@pytest.fixture
def nvidia_smi() -> None:
    """Skips a test where nvidia-smi is missing, which comes with the driver, but not into every container."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("nvidia-smi is not on the PATH, so there is nothing to compare the readings with")


@pytest.fixture
def cuda(card: Card) -> None:
    """Skips a test where CUDA is missing, or the card is too full to take anything on it."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        pytest.skip(f"{LIBRARY} is not here; a container gets it with NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    if card.free_bytes < NEEDED_BYTES:
        pytest.skip(f"the card has {format_size(card.free_bytes)} free, and {format_size(NEEDED_BYTES)} are needed")


@pytest.fixture(scope="session")
def torch_is_missing() -> str:
    """Why PyTorch cannot take memory on a card here; empty when it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed here"
    # In a process of its own: what it warns of would be an error in this one.
    command = [sys.executable, "-c", "import torch; print(torch.version.cuda)"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    if ran.returncode:
        return f"PyTorch cannot be imported: {ran.stderr.strip().splitlines()[-1]}"
    return "PyTorch is built without CUDA here" if ran.stdout.strip() == "None" else ""


@pytest.fixture(params=["driver", "PyTorch"])
def how(request: pytest.FixtureRequest, cuda: None) -> str:
    """How memory is taken: through the driver's own library and, where it is installed, through PyTorch."""
    name: str = request.param
    if name == "PyTorch" and (missing := request.getfixturevalue("torch_is_missing")):
        pytest.skip(missing)
    return name


@dataclass(frozen=True)
class Program:
    """A program that holds memory on the card."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def take_memory(card: Card, cuda: None, tmp_path: Path, until: Callable[..., Any]) -> Iterator[Callable[..., Program]]:
    """Start programs that no queue knows of, each of which takes memory on the card; all are ended at the end."""
    files = (tmp_path / f"other-{number}" for number in itertools.count())
    with ExitStack() as leaving:

        def start(size_bytes: int, how: str = "driver") -> Program:
            file = next(files)
            command = [sys.executable, "-m", "tests.gpu.other_program", str(file), str(size_bytes), how]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card.uuid}
            pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = leaving.enter_context(started(command, env=environment, cwd=ROOT, **pipes))
            until(lambda: file.exists() or process.poll() is not None, "the program's memory", timeout_s=START_S)
            assert file.exists(), process.communicate()[1]
            return Program(process)

        yield start
