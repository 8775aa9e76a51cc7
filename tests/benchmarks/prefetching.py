"""Measures what reading a model's file into the page cache before its load is worth, and what it costs meanwhile.

Run as `python -m tests.benchmarks.prefetching FOLDER`, with a folder on the disk that holds the models. Two files of random
bytes are written there and deleted afterwards; --size is that of each.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from gpuqueue.worker.page_cache import give_way, read_ahead
from tests.pages import cached, evict

CHUNK = 8 << 20
COPY = 1 << 20  # what a loader copies at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=float, default=3.5, help="of each file, in GB")
    parser.add_argument("--pairs", type=int, default=6, help="at least 2")
    options = parser.parse_args()
    size = int(options.size * 1e9)
    with _file(options.folder / "model.bin", size) as model, _file(options.folder / "other.bin", size) as other:
        _gain(model, size, options.pairs)
        _cost(model, other, options.pairs)


def _gain(model: Path, size: int, pairs: int) -> None:
    for name, load in (("read", read), ("mmap", touch)):
        ratios = []
        for number in range(pairs):
            times: dict[str, float] = {}
            reading_s = busy_s = 0.0
            for state in ("cold", "prefetched") if number % 2 else ("prefetched", "cold"):
                evict(model)
                assert cached(model) < 0.01, cached(model)
                if state == "prefetched":
                    busy_s = -time.process_time()
                    reading_s = seconds(lambda: prefetch(model))
                    busy_s += time.process_time()
                    assert cached(model) > 0.99, cached(model)
                times[state] = seconds(lambda load=load: load(model))  # type: ignore[misc]
            ratios.append(times["cold"] / times["prefetched"])
            _show(
                load=name,
                **times,
                ratio=ratios[-1],
                prefetching=reading_s,
                of_it_cpu=busy_s,
                cold_gb_per_s=size / 1e9 / times["cold"],
            )
        # A disk may be slower just after it was read: the first of a pair has the advantage.
        _show(load=name, median_ratio=median(ratios), cold_first=median(ratios[1::2]), cold_second=median(ratios[::2]))


def _cost(model: Path, other: Path, pairs: int) -> None:
    """How many times as long work of others takes beside the prefetch: on every processor, and reading another cold file."""
    for name, work in (("spinning", _spin_everywhere), ("reading", lambda: read(other))):
        ratios = []
        for number in range(pairs):
            times = {}
            for state in ("alone", "beside") if number % 2 else ("beside", "alone"):
                evict(model)
                evict(other)
                if state == "alone":
                    times[state] = seconds(work)
                else:
                    again = multiprocessing.Process(target=_prefetch_for_ever, args=(model,), daemon=True)
                    again.start()
                    times[state] = seconds(work)
                    again.kill()
                    again.join()
            ratios.append(times["beside"] / times["alone"])
            _show(work=name, **times, ratio=ratios[-1])
        _show(work=name, median_ratio=median(ratios), beside_first=median(ratios[::2]), beside_second=median(ratios[1::2]))


def prefetch(path: Path) -> None:
    for _ in read_ahead(path, may_hold=lambda _: True):
        pass


def _prefetch_for_ever(path: Path) -> None:
    give_way()
    while True:
        prefetch(path)
        evict(path)


def read(path: Path) -> None:
    buffer = bytearray(COPY)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def touch(path: Path) -> None:
    """As a loader that maps the file: it asks for the pages, then copies them in order."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        pages.madvise(mmap.MADV_WILLNEED)
        for at in range(0, len(pages), COPY):
            pages[at : at + COPY]


def _spin_everywhere() -> None:
    spinning = [multiprocessing.Process(target=_spin) for _ in range(os.cpu_count() or 1)]
    for process in spinning:
        process.start()
    for process in spinning:
        process.join()


def _spin() -> None:
    for _ in range(40_000_000):
        pass


def seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


@contextmanager
def _file(path: Path, size: int) -> Iterator[Path]:
    try:
        with open(path, "wb") as file:
            for at in range(0, size, CHUNK):
                file.write(os.urandom(min(CHUNK, size - at)))
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _show(**figures: Any) -> None:
    print(json.dumps({name: round(item, 2) if isinstance(item, float) else item for name, item in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
    sys.exit()
