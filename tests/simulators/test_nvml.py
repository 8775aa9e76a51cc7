from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpuqueue.simulators import nvml
from gpuqueue.simulators.card import GpuIsLost, SimulatedCard
from gpuqueue.simulators.nvml import FUNCTIONS, RemoteCard, install, simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from tests.processes import LONGEST_S

GIB = 2**30


@pytest.fixture
def card() -> SimulatedCard:
    return SimulatedCard()


@pytest.fixture
def handle(card: SimulatedCard) -> Iterator[object]:
    with simulated_nvml(card):
        pynvml.nvmlInit()
        yield pynvml.nvmlDeviceGetHandleByIndex(0)


def test_pynvml_reads_what_the_card_is(card: SimulatedCard, handle: object) -> None:
    assert pynvml.nvmlDeviceGetCount() == 1
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA GeForce RTX 2060 SUPER"
    assert pynvml.nvmlDeviceGetUUID(handle) == card.uuid
    assert pynvml.nvmlSystemGetDriverVersion() == nvml.DRIVER_VERSION


def test_memory_is_read_in_both_versions(card: SimulatedCard, handle: object) -> None:
    card.allocate("gemma", 4 * GIB)
    first = pynvml.nvmlDeviceGetMemoryInfo(handle)
    second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)

    assert (first.total, first.free, first.used) == (card.total_bytes, card.free_bytes, card.used_bytes)
    assert (second.total, second.free, second.reserved) == (card.total_bytes, card.free_bytes, card.reserved_bytes)
    assert second.used == 4 * GIB
    assert second.reserved + second.used + second.free == second.total


def test_a_memory_structure_of_an_unknown_version_is_refused(handle: object) -> None:
    with pytest.raises(pynvml.NVMLError) as raised:
        pynvml.nvmlDeviceGetMemoryInfo(handle, version=0x03000028)
    assert raised.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_health_is_read_idle_and_busy(card: SimulatedCard, handle: object) -> None:
    def health() -> tuple[int, int, int, int]:
        return (
            pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            pynvml.nvmlDeviceGetPowerUsage(handle),
            pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        )

    assert health() == (0, 41, 14_500, pynvml.nvmlClocksEventReasonGpuIdle)
    with card.computing("job 1"):
        assert health() == (97, 66, 163_500, 0)


def test_processes_are_listed_with_their_memory(card: SimulatedCard, handle: object) -> None:
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    card.allocate("gemma", GIB)
    card.take(1000)

    listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)

    assert [(process.pid, process.usedGpuMemory) for process in listed] == [(4001, GIB), (4000, 1000)]
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle) == []


def test_the_memory_of_a_process_may_be_unknown(card: SimulatedCard) -> None:
    card.allocate("gemma", GIB)
    with simulated_nvml(card, process_memory_known=False):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert [process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [None]


def test_several_cards_are_found_by_index_and_by_uuid() -> None:
    cards = [SimulatedCard(name="first", uuid="GPU-1"), SimulatedCard(name="second", uuid="GPU-2", total_bytes=GIB)]
    with simulated_nvml(cards):
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 2
        for by in (pynvml.nvmlDeviceGetHandleByIndex(1), pynvml.nvmlDeviceGetHandleByUUID("GPU-2")):
            assert pynvml.nvmlDeviceGetName(by) == "second"
            assert pynvml.nvmlDeviceGetMemoryInfo(by).total == GIB
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-3")
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetHandleByIndex(2)


def test_a_lost_card_says_so_and_a_found_one_reads_again(card: SimulatedCard, handle: object) -> None:
    card.lost = True
    for read in (pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetComputeRunningProcesses):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            read(handle)
    card.lost = False
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == card.total_bytes


def test_without_a_driver_init_fails(card: SimulatedCard) -> None:
    with simulated_nvml(card, driver_loaded=False), pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_before_init_and_after_shutdown_nothing_answers(card: SimulatedCard) -> None:
    with simulated_nvml(card):
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetCount()
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlShutdown()
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetMemoryInfo(handle)
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlShutdown()


@pytest.mark.parametrize("name", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo_v2"])
def test_an_old_driver_lacks_a_function(card: SimulatedCard, name: str) -> None:
    with simulated_nvml(card, missing_functions=[name]):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            if name == "nvmlDeviceGetPowerUsage":
                pynvml.nvmlDeviceGetPowerUsage(handle)
            else:
                pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == card.total_bytes


def test_a_function_nobody_has_is_not_found(handle: object) -> None:
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetFanSpeed(handle)


def test_a_function_that_never_was_cannot_be_missing(card: SimulatedCard) -> None:
    with (
        pytest.raises(ValueError, match=r"unknown NVML functions: nvmlNonsense\. Simulated are: nvmlInitWithFlags"),
        simulated_nvml(card, missing_functions=["nvmlNonsense"]),
    ):
        pass


def test_every_function_can_be_called_through_pynvml(card: SimulatedCard, handle: object) -> None:
    library = pynvml.nvmlLib
    assert {name for name in FUNCTIONS if callable(getattr(library, name))} == set(FUNCTIONS)
    assert pynvml.nvmlErrorString(999) == "Error 999"


def test_the_real_library_is_back_after_the_block(card: SimulatedCard) -> None:
    before = (pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount)
    with pytest.raises(ZeroDivisionError), simulated_nvml(card):
        pynvml.nvmlInit()
        inner = pynvml.nvmlLib
        with simulated_nvml(SimulatedCard(name="inner")):
            pynvml.nvmlInit()
            assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == "inner"
        assert pynvml.nvmlLib is inner
        assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == card.name
        raise ZeroDivisionError

    assert (pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache), pynvml._nvmlLib_refcount) == before


def test_a_card_in_another_process_reads_the_same() -> None:
    with OllamaSimulator(speed=100) as ollama:
        ollama.card.allocate("gemma", GIB)
        remote = RemoteCard(ollama.url)
        assert remote.reading() == ollama.card.reading()

        restore = install(ollama.url)
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(ollama.card.uuid)
            assert pynvml.nvmlDeviceGetMemoryInfo(handle).free == ollama.card.free_bytes
            ollama.card.lost = True
            with pytest.raises(pynvml.NVMLError_GpuIsLost):
                pynvml.nvmlDeviceGetMemoryInfo(handle)
        finally:
            restore()


def test_a_card_in_another_process_outlasts_an_outage_of_its_ollama() -> None:
    with OllamaSimulator(speed=100) as ollama:
        remote = RemoteCard(ollama.url)
        remote.reading()
        ollama.go_away()
        assert remote.reading().uuid == ollama.card.uuid


def test_a_kept_reading_is_given_again() -> None:
    with OllamaSimulator(speed=100) as ollama:
        remote, kept = RemoteCard(ollama.url), RemoteCard(ollama.url, cache_s=1000)
        first = kept.reading()
        remote.reading()
        ollama.card.take(5)
        assert kept.reading() is first
        assert remote.reading().used_bytes == first.used_bytes + 5


def test_a_card_whose_simulator_is_gone_is_lost() -> None:
    with OllamaSimulator(speed=100) as ollama:
        url = ollama.url
    with pytest.raises(GpuIsLost, match="cannot read the card of the simulator"):
        RemoteCard(url).reading()
    with simulated_nvml(RemoteCard(url)):
        pynvml.nvmlInit()
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))


PROGRAM = """
import subprocess
import sys
import pynvml
pynvml.nvmlInit()
print(__name__, sys.argv[1:], pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
sys.exit(3)
"""


def test_the_launcher_runs_a_program_with_the_card_installed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with OllamaSimulator(speed=100) as ollama:
        command = [sys.executable, "-m", "gpuqueue.simulators.nvml", "--card", ollama.url, "-m", "program", "worker", "--json"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S)
        assert (ran.returncode, ran.stdout) == (3, f"__main__ ['worker', '--json'] {ollama.card.uuid}\n"), ran.stderr


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "required: --card, -m"),
        (["--card", "nonsense", "-m", "gpuqueue", "worker"], "'nonsense' is not the address of a simulator"),
    ],
)
def test_the_launcher_refuses_wrong_arguments(wrong: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = pynvml.nvmlLib
    with pytest.raises(SystemExit) as ended:
        nvml.main(wrong)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert pynvml.nvmlLib is before
