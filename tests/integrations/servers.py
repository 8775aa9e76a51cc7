"""Owns starting real servers in tests: a process, the address that it says it listens on, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from gpuqueue.testing.queues import foreign_variables
from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.integrations.server_events import Heard, heard
from tests.processes import kill, started

ADDRESS = re.compile(r"http://127\.0\.0\.1:[0-9]+")
SERVES_S = 1800.0  # the tests of a whole module


@contextmanager
def serving(*module_and_arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run `python -m …` in a folder until the block ends; yields the address on which it listens.

    An argument PORT becomes a free port, for servers that cannot choose one themselves.
    """
    words = [_free_port() if word == "PORT" else word for word in module_and_arguments]
    with serving_command([sys.executable, "-u", "-m", *words], folder=folder, environment=environment) as address:
        yield address


@contextmanager
def serving_command(command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The same for a command."""
    said: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if ADDRESS.search(line):
                listening.set()
        listening.set()

    environment = {**environment_in(folder), **(environment or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with started(command, cwd=folder, env=environment, longest_s=SERVES_S, **pipes) as process:
        reading = threading.Thread(target=read)
        reading.start()
        try:
            assert listening.wait(DEADLINE_S), "".join(said)
            found = ADDRESS.search("".join(said))
            assert found, "".join(said)
            wait_until(lambda: _accepts(found[0]), "the server to listen")  # uvicorn's master speaks before its processes listen
            yield found[0]
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DEADLINE_S)
            kill(process)
            reading.join()
    assert "Traceback" not in "".join(said), "".join(said)


def environment_in(folder: Path) -> dict[str, str]:
    """This process's variables without those that would configure a queue or an application, for a program in a folder."""
    foreign = {*foreign_variables(), "FLASK_APP"}
    return {**{name: value for name, value in os.environ.items() if name not in foreign}, "PYTHONPATH": str(folder)}


def _accepts(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=DEADLINE_S):
        return True
    return False


def _free_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


@contextmanager
def listening(address: str, after: str | None = None) -> Iterator[Iterator[Heard]]:
    """Listen to the events at an address as a browser does; it leaves at the end of the block."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with httpx.stream("GET", address, headers=headers, timeout=DEADLINE_S) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield heard(answer.iter_lines())
