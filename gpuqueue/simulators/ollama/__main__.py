"""Runs `python -m gpuqueue.simulators.ollama`: reads arguments, prints the address, serves until stopped."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama.simulator import DEFAULT_MAX_LOADED, DEFAULT_MAX_QUEUE, OllamaSimulator

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _size(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS or float(match.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; use for example 8GB, 8GiB or a number of bytes")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 0 (any free port) to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuqueue.simulators.ollama",
        description="Serve a simulated Ollama on a simulated card until SIGTERM; the address is printed on one line.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=11434, help="port to listen on, 0 for any free one (11434)")
    parser.add_argument("--control-port", type=_port, default=0, help="port of the control endpoints (any free one)")
    parser.add_argument("--speed", type=_above_zero, default=1.0, help="how many times faster than a real card (1)")
    parser.add_argument("--vram", type=_size, default=_size("8GiB"), help="the card's memory, e.g. 8GB or 8GiB (8GiB)")
    parser.add_argument("--temperature", type=_count, help="the card's temperature in °C (rises with its work)")
    parser.add_argument("--max-loaded", type=_count, default=DEFAULT_MAX_LOADED, help=f"models at once ({DEFAULT_MAX_LOADED})")
    parser.add_argument("--max-queue", type=_count, default=DEFAULT_MAX_QUEUE, help=f"waiting requests ({DEFAULT_MAX_QUEUE})")
    parser.add_argument("--num-parallel", type=_count, default=1, help="requests of one model at once (1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of loading times and memory delays (0)")
    parser.add_argument("--port-file", help="write the port to this file once it listens")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns: the exit status: 0 if stopped, 1 if it cannot listen or write the port file; wrong arguments exit with 2.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        card = SimulatedCard(total_bytes=given.vram, speed=given.speed, seed=given.seed)
    except ValueError as wrong:
        parser.error(f"--vram is too small: {wrong}")
    card.temperature_c = given.temperature
    simulator = OllamaSimulator(
        card,
        host=given.host,
        port=given.port,
        control_port=given.control_port,
        max_loaded=given.max_loaded,
        max_queue=given.max_queue,
        num_parallel=given.num_parallel,
        seed=given.seed,
    )
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        simulator.start()
    except OSError as error:
        print(f"cannot listen on {given.host}:{given.port}: {error.strerror or error}; choose another --port", file=sys.stderr)
        return 1
    try:
        if given.port_file:
            _write_whole(given.port_file, f"{simulator.url.rpartition(':')[2]}\n")
        print(simulator.url, flush=True)
        ended.wait()
    except OSError as error:
        print(f"cannot write {given.port_file}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        simulator.stop()
    return 0


def _write_whole(path: str, text: str) -> None:
    # A reader that waits for the file must never see it half written.
    unfinished = f"{path}.{os.getpid()}"
    with open(unfinished, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
