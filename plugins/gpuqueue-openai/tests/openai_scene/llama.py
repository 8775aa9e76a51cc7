"""Starts, ends and queries a real llama.cpp server in its own process; sends it no jobs.

Run as a program it is that process: it serves a model until it is ended, and prints its address.
"""

from __future__ import annotations

import importlib.util
import json
import select
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from gpuqueue.testing.waiting import DEADLINE_S

# From its template llama.cpp learns what a thought looks like in a model's answer: what is between <think> and </think>.
THINKING = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{%- endif %}"
    "{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{%- endif %}"
)
MEAN = 1  # of a text's tokens: its embedding


def is_installed() -> bool:
    """Say whether llama.cpp can be had here, without loading its hundred megabytes."""
    return importlib.util.find_spec("xllamacpp") is not None


class Llama:
    """A llama.cpp that serves one model; `url` is for `[openai] url`."""

    def __init__(self, model: Path, *, thinks: bool = False, api_key: str = "", embeds: bool = True) -> None:
        asked = {"model": str(model), "thinks": thinks, "api_key": api_key, "embeds": embeds}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asked)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        says, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
        self._address = self._process.stdout.readline().strip() if says else ""
        if not self._address:
            self.__exit__()
            raise AssertionError(f"llama.cpp did not start: exit status {self._process.returncode}")
        self.url = f"{self._address}/v1"

    def busy_count(self) -> int:
        """Ask how many requests it is computing now."""
        with urllib.request.urlopen(f"{self._address}/slots", timeout=DEADLINE_S) as answer:
            slots: list[dict[str, Any]] = json.load(answer)
        return sum(bool(slot["is_processing"]) for slot in slots)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve(asked: dict[str, Any]) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = asked["model"]
    parameters.model_alias = {Path(asked["model"]).stem}
    parameters.port = 0
    parameters.n_ctx, parameters.n_parallel = 4096, 4
    parameters.ctx_shift = True  # so that an answer without a limit never ends
    parameters.warmup = parameters.ui = False
    parameters.endpoint_slots = True
    parameters.cpuparams.n_threads = 1
    parameters.use_jinja, parameters.chat_template = True, THINKING if asked["thinks"] else "chatml"
    parameters.api_keys = [asked["api_key"]] if asked["api_key"] else []
    if asked["embeds"]:
        parameters.embedding, parameters.pooling_type = True, type(parameters.pooling_type)(MEAN)
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
