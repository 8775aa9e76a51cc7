"""Whose a process on a card is: by its ancestors where they can be seen, and else by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue.devices.owners import Kin, kin_here, owner_of
from gpuqueue.domain.device import DeviceProcess
from tests.processes import started

has_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc to look into")


def owner(process: DeviceProcess, *kin: Kin, workers: tuple[int, ...] = (), has_ollama: bool = True) -> str:
    return owner_of(process, workers=workers, has_ollama=has_ollama, kin_of=lambda _process: kin)


@pytest.mark.parametrize("name", ["ollama", "ollama_llama_server", "llama-server"])
def test_a_runner_is_known_by_its_name_where_its_ancestors_cannot_be_seen(name: str) -> None:
    assert owner(DeviceProcess(4001, 1, name)) == "ollama"
    assert owner(DeviceProcess(4001, 1, name), has_ollama=False) == "other"


def test_a_llama_server_that_no_ollama_started_is_another_programs() -> None:
    server = DeviceProcess(5, 1, "llama-server")
    assert owner(server, Kin(5, "llama-server"), Kin(4, "bash")) == "other"
    assert owner(server, Kin(5, "llama-server"), Kin(4, "ollama"), Kin(1, "systemd")) == "ollama"


def test_a_process_without_a_name_is_nobodys() -> None:
    assert owner(DeviceProcess(5, 1, None)) == "unknown"
    assert owner(DeviceProcess(5, None, "game")) == "other"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process of this one, as a worker has for isolated tasks."""
    with started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


@has_proc
def test_a_worker_and_what_it_started_are_ours(child: subprocess.Popen[str]) -> None:
    name = os.path.basename(os.path.realpath(sys.executable))
    for pid in (os.getpid(), child.pid):
        process = DeviceProcess(pid, 1, name)
        assert owner_of(process, workers={os.getpid()}, has_ollama=True, kin_of=kin_here) == "gpuqueue"
        assert owner_of(process, workers={1}, has_ollama=True, kin_of=kin_here) in ("other", "gpuqueue")
    assert [item.pid for item in kin_here(DeviceProcess(child.pid, 1, name))][:2] == [child.pid, os.getpid()]


@has_proc
def test_a_process_of_the_host_that_has_the_number_of_one_of_ours_is_not_taken_for_it() -> None:
    assert kin_here(DeviceProcess(os.getpid(), 1, "Xorg")) == []
    assert owner_of(DeviceProcess(os.getpid(), 1, "Xorg"), workers={os.getpid()}, has_ollama=True, kin_of=kin_here) == "other"
    assert kin_here(DeviceProcess(os.getpid(), 1, None)) == []


def test_names_with_spaces_and_brackets_are_read_and_what_is_not_there_is_nobody(tmp_path: Path) -> None:
    for pid, parent, name in ((7, 3, "a (very) odd name"), (3, 0, "ollama")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    assert kin_here(DeviceProcess(7, 1, "a (very) odd name"), tmp_path) == [Kin(7, "a (very) odd name"), Kin(3, "ollama")]
    assert kin_here(DeviceProcess(8, 1, "gone"), tmp_path) == []
