"""The command `python -m tests.benchmarks.scheduling`; returns 1 when something that must hold does not."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.benchmarks.scheduling.checks import checks, of_expected
from tests.benchmarks.scheduling.expected import ask
from tests.benchmarks.scheduling.hours import HOURS
from tests.benchmarks.scheduling.percentiles import percentile
from tests.benchmarks.scheduling.play import SCHEMES, SHIPPED, Played, play

SEEDS = (1, 2, 3, 4, 5)
EXPECTED = ("S1", "S2", "S3")  # where the expected starts are compared with the true ones
Case = tuple[str, str, int]  # hour, scheme, seed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scheduling",
        description="Hours of people and batch work on one simulated card, in virtual time; gpuqueue as shipped comes first.",
    )
    parser.add_argument("--hour", action="append", choices=tuple(HOURS), help="only this hour")
    parser.add_argument("--scheme", action="append", choices=tuple(SCHEMES), help="only this scheme")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N", help="only the first N seeds")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    asked = parser.parse_args(arguments)
    hours, schemes, seeds = asked.hour or list(HOURS), asked.scheme or list(SCHEMES), SEEDS[: asked.seeds]
    cases = [(hour, scheme, seed) for hour in hours for scheme in schemes if SCHEMES[scheme].plays(HOURS[hour]) for seed in seeds]
    asking = [(hour, SHIPPED, True, seed) for hour in EXPECTED if hour in hours and SHIPPED in schemes for seed in seeds]
    found: dict[tuple[str, str, bool], list[Played]] = defaultdict(list)
    with ProcessPoolExecutor(asked.processes) as processes:
        answers = processes.map(ask, asking)
        for (hour, scheme, _), both in zip(cases, processes.map(_play, cases), strict=True):
            for cache, played in zip((False, True), both, strict=True):
                found[hour, scheme, cache].append(played)
        shown = {(case[0], case[3]): item for case, item in zip(asking, answers, strict=True)}
    print("\n".join(_tables(found, hours, schemes, len(seeds))))
    judged = [*checks(found), *(of_expected(shown) if shown else ())]
    print("\nchecks")
    print("\n".join(f"  {check.worded()}" for check in judged))
    return 0 if all(check.holds for check in judged) else 1


def _play(case: Case) -> tuple[Played, Played]:
    """Play an hour without the prompt cache and with it."""
    logging.disable(logging.CRITICAL)  # at the end of an hour jobs are still running
    gc.disable()  # a play's garbage is small
    hour, scheme, seed = case
    cached = play(HOURS[hour], SCHEMES[scheme], seed=seed, prompt_cache=True)
    # What the cache spared nothing is the same without it.
    without = play(HOURS[hour], SCHEMES[scheme], seed=seed, prompt_cache=False) if cached.spared_tokens else cached
    gc.collect()
    return without, cached


def _tables(
    found: dict[tuple[str, str, bool], list[Played]], hours: Sequence[str], schemes: Sequence[str], seed_count: int
) -> Iterator[str]:
    yield f"{'the worst of ' + str(seed_count) + ' seeds':28}{'without the prompt cache':>42}{'with it':>42}"
    yield f"{'':28}" + f"{'wait p95':>10}{'longest':>9}{'useful':>8}{'loads':>7}{'ended':>8}" * 2
    for hour in hours:
        yield f"\n{hour}: {HOURS[hour].about}"
        for scheme in schemes:
            rows = [found[hour, scheme, cache] for cache in (False, True) if (hour, scheme, cache) in found]
            if rows:
                yield f"  {SCHEMES[scheme].title:26}" + "".join("".join(_cells(row)) for row in rows)


def _cells(row: Sequence[Played]) -> Iterator[str]:
    yield f"{max(percentile(played.waits_s, 95) for played in row):>10.2f}"
    yield f"{max(max(played.waits_s) for played in row):>9.1f}"
    yield f"{min(played.useful for played in row):>8.3f}"
    yield f"{max(played.loads for played in row):>7}"
    yield f"{min(played.completed for played in row):>8}"


if __name__ == "__main__":
    sys.exit(main())
