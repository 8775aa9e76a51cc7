"""What doctor says of reading models ahead: whether it happens, and who has the memory if not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.devices import host_memory
from gpuqueue.simulators.ollama import GEMMA4_E4B, OllamaSimulator
from gpuqueue.worker.page_cache import is_supported
from tests.cli.conftest import CONFIGURATION

pytestmark = pytest.mark.skipif(not is_supported, reason="this system gives no advice about its page cache")
Run = Callable[..., Any]


@pytest.fixture
def model(folder: Path) -> Iterator[Path]:
    """The file of gemma4:e4b, which the folder's Ollama has, and where this user may read it."""
    spec = replace(GEMMA4_E4B, folder=str(folder))
    Path(spec.file).write_bytes(b"GGUF")
    with OllamaSimulator(models=(spec,)) as ollama:
        (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url=ollama.url), encoding="utf-8")
        yield Path(spec.file)


def check(run: Run) -> Any:
    found = json.loads(run("doctor", "--json").out)["checks"]
    return next((item for item in found if item["check"] == "prefetch"), None)


def test_models_are_read_ahead_where_memory_is_available(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 16 * 10**9)
    found = check(run)
    assert "is read ahead; 16 GB of this host's memory is available, gemma4:e4b needs 13.09 GB" in found["detail"]
    assert found["mend"] is None


def test_who_uses_the_memory_is_named_where_it_is_short(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 13 * 10**9)
    found = check(run)
    assert found["level"] == "ok", "a load from the disk is slower, and nothing else"
    name = Path("/proc/self/comm").read_text().strip()
    assert found["detail"].startswith("off: 13 GB of this host's memory is available; gemma4:e4b (4.5 GB) needs 13.09 GB")
    assert f"{name} " in found["detail"]
    assert "the page cache " in found["detail"]
    assert "free memory" in found["mend"]


def test_a_file_that_cannot_be_found_is_named(run: Run, model: Path) -> None:
    model.unlink()
    assert f"{model} is not here, or hidden from this user" in check(run)["detail"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(run: Run, model: Path) -> None:
    model.chmod(0)
    assert f"cannot read {model}" in check(run)["detail"]


def test_nothing_is_said_where_it_is_switched_off(run: Run, folder: Path, model: Path) -> None:
    file = folder / "gpuqueue.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("[ollama]", "[ollama]\nprefetch = false"), encoding="utf-8")
    assert check(run) is None
