"""Runs a Node script that tests talk to, one JSON object a line in each direction."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from gpuqueue.testing.waiting import DEADLINE_S
from mirror_scene.node_packages import SCRIPTS, installed_packages, node_binary

__all__ = ["NodeProcess"]


class NodeProcess:
    """One script that runs: what it said so far is in `lines`.

    Raises: NodeMissing where there is no Node to run it, or npm cannot bring what it reads with.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        command = [node_binary(), str(SCRIPTS / script), str(installed_packages()), *arguments]
        self.lines: list[dict[str, Any]] = []
        self._said = threading.Condition()
        self._silent = False  # it has said its last line
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 – closed with the process
        # The one of the session outlives the test that happens to start it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self._listener = threading.Thread(target=self._listen, name=f"node {script}", daemon=True)
        self._listener.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        """What it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def say(self, **words: Any) -> None:
        """Send it one line.

        Raises: BrokenPipeError when it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> bool:
        """Wait until the condition, looked at with each line, is true, or the script has ended; say whether it is true."""
        with self._said:
            self._said.wait_for(lambda: condition() or self._silent, timeout_s)
            return condition()

    def close(self) -> None:
        """End it, at once if it does not by itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._listener.join(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self.lines.append(json.loads(line))
                self._said.notify_all()
        with self._said:
            self._silent = True
            self._said.notify_all()
