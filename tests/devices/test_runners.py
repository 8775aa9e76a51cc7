"""For how many requests at once an Ollama was started, by its variables and by its runners' command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuqueue.devices.runners import OllamaProcess, ollamas_here

Line = list[str]


def process(proc: Path, pid: int, line: Line, *, parent: int = 1, environment: dict[str, str] | None = None) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in line))
    (folder / "stat").write_text(f"{pid} ({''.join(line[:1])}) S {parent} 1 1")
    if environment is not None:
        (folder / "environ").write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in environment.items()))


@pytest.mark.parametrize(
    ("line", "slots"),
    [
        (["llama-server", "-m", "blob", "-c", "8192", "-np", "2"], 2),
        (["/usr/bin/ollama", "runner", "--model", "blob", "--parallel", "4", "--port", "1"], 4),
        (["llama-server", "--parallel=3"], 3),
        (["llama-server", "-np"], None),
        (["llama-server", "-np", "many"], None),
    ],
)
def test_a_runners_command_line_tells_its_slots(tmp_path: Path, line: Line, slots: int | None) -> None:
    process(tmp_path, 10, ["/usr/local/bin/ollama", "serve"])
    process(tmp_path, 11, line, parent=10)
    (tmp_path / "self").mkdir()
    assert ollamas_here(tmp_path) == [OllamaProcess(10, None, None, {} if slots is None else {11: slots})]


def test_only_what_an_ollama_started_is_its_runner(tmp_path: Path) -> None:
    process(tmp_path, 10, ["ollama", "serve"])
    process(tmp_path, 11, ["llama-server", "-np", "8"], parent=1)
    process(tmp_path, 12, ["ollama", "run", "gemma4:e4b"])
    process(tmp_path, 2, [])
    assert ollamas_here(tmp_path) == [OllamaProcess(10, None, None, {})]


@pytest.mark.parametrize(
    ("environment", "port", "num_parallel"),
    [
        ({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_HOST": "0.0.0.0:11500"}, 11500, 4),
        ({"HOME": "/root"}, 11434, None),
        ({"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_HOST": "127.0.0.1"}, 11434, None),
    ],
)
def test_the_servers_variables_tell_its_port_and_what_it_was_started_for(
    tmp_path: Path, environment: dict[str, str], port: int, num_parallel: int | None
) -> None:
    process(tmp_path, 10, ["ollama", "serve"], environment=environment)
    assert ollamas_here(tmp_path) == [OllamaProcess(10, port, num_parallel, {})]


def test_without_proc_nothing_is_found(tmp_path: Path) -> None:
    assert ollamas_here(tmp_path / "proc") == []
