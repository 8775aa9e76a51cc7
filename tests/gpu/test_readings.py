"""Readings of a real card through NVML, beside what `nvidia-smi` says of it."""

from __future__ import annotations

import pytest

from gpuqueue.decisions.policies.residents import CONTEXT_BYTES
from gpuqueue.devices.nvml import NvmlDevice, open_device
from gpuqueue.devices.remote import BudgetDevice
from gpuqueue.domain.device import Reading
from gpuqueue.domain.settings import DeviceSettings
from tests.gpu.conftest import NOISE_BYTES, SIZE_BYTES

MIB = 2**20


def figure(text: str) -> float | None:
    """Read a figure of nvidia-smi; what the card does not have stands there in brackets, or as N/A."""
    return None if text.startswith(("[", "N/A")) else float(text)


def known(value: float | None) -> float:
    assert value is not None
    return value


@pytest.fixture(params=["index", "UUID"])
def reading(request, card):
    """A reading of the card, which is opened by its index or by its UUID."""
    name = card.uuid if request.param == "UUID" else f"gpu{card.index}"
    device = open_device(DeviceSettings(name, budget_bytes=1, index=card.index if request.param == "index" else 9999))
    assert isinstance(device, NvmlDevice)
    yield device.read()
    device.close()


def test_the_card_and_its_size_are_those_that_nvidia_smi_names(card, nvidia_smi, reading: Reading):
    name, uuid, total_mib = card.nvidia_smi("name", "uuid", "memory.total")
    assert reading.lost is None
    assert (reading.name, card.uuid) == (name, uuid)
    assert known(reading.total_bytes) == pytest.approx(float(total_mib) * MIB, abs=MIB)


def test_free_memory_is_what_nvidia_smi_says(card, nvidia_smi, reading: Reading):
    free_bytes = float(*card.nvidia_smi("memory.free")) * MIB
    low_bytes, high_bytes = sorted([known(reading.free_bytes), card.free_bytes])
    assert low_bytes - NOISE_BYTES <= free_bytes <= high_bytes + NOISE_BYTES
    assert 0 < high_bytes <= known(reading.total_bytes)


def test_the_temperature_is_what_nvidia_smi_says(card, nvidia_smi, reading: Reading):
    celsius = figure(*card.nvidia_smi("temperature.gpu"))
    if celsius is None:
        assert reading.temperature_c is None
    else:
        low_c, high_c = sorted([known(reading.temperature_c), known(card.read().temperature_c)])
        assert low_c - 3 <= celsius <= high_c + 3


def test_the_power_is_what_nvidia_smi_says_in_watts(card, nvidia_smi, reading: Reading):
    watts = figure(*card.nvidia_smi("power.draw"))
    if watts is None:
        assert reading.power_w is None
    else:  # it may double from one moment to the next, when the card wakes up
        low_w, high_w = sorted([known(reading.power_w), known(card.read().power_w)])
        assert low_w / 3 <= watts <= high_w * 3


def test_utilisation_is_a_percentage_where_nvidia_smi_has_one(card, nvidia_smi, reading: Reading):
    if figure(*card.nvidia_smi("utilization.gpu")) is None:
        assert reading.utilisation_percent is None
    else:
        assert 0 <= known(reading.utilisation_percent) <= 100


@pytest.mark.parametrize("name", ["gpu9999", "GPU-00000000-0000-0000-0000-000000000000"])
def test_a_card_that_is_not_there_has_its_budget_alone(name):
    device = open_device(DeviceSettings(name, budget_bytes=1, index=9999))
    assert isinstance(device, BudgetDevice)
    assert (device.read().free_bytes, device.read().lost) == (None, None)


def test_memory_that_a_program_takes_is_free_no_more_and_comes_back_at_its_end(card, take_memory, how, until):
    before_bytes = card.free_bytes
    program = take_memory(SIZE_BYTES, how)
    taken_bytes = before_bytes - card.free_bytes
    assert SIZE_BYTES - NOISE_BYTES <= taken_bytes <= SIZE_BYTES + CONTEXT_BYTES + NOISE_BYTES
    program.end()
    until(lambda: card.free_bytes >= before_bytes - NOISE_BYTES, "the memory's return")


def test_a_program_is_listed_with_what_it_holds_as_nvidia_smi_lists_it(card, nvidia_smi, take_memory, until):
    program = take_memory(SIZE_BYTES)
    seen = card.programs()
    listed = {process.pid: process for process in card.read().processes or ()}
    assert (program.pid in listed) == (program.pid in seen)  # in a container neither may know it
    if program.pid in listed:
        process, used_mib = listed[program.pid], figure(seen[program.pid])
        assert process.name is None or process.name.startswith("python")
        if used_mib is None:
            assert process.used_bytes is None
        else:
            assert known(process.used_bytes) == pytest.approx(used_mib * MIB, abs=MIB)
            assert known(process.used_bytes) >= SIZE_BYTES
    program.end()
    until(lambda: program.pid not in {process.pid for process in card.read().processes or ()}, "its end in the list")
