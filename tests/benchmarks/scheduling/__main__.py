"""The command `python -m tests.benchmarks.scheduling`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.benchmarks.scheduling.hours import HOURS
from tests.benchmarks.scheduling.percentiles import percentile
from tests.benchmarks.scheduling.play import SCHEMES, Played, play

SEEDS = (1, 2, 3, 4, 5)
Case = tuple[str, str, bool, int]  # hour, scheme, prompt cache, seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scheduling", description=__doc__)
    parser.add_argument("--hour", action="append", choices=tuple(HOURS), help="only this hour")
    parser.add_argument("--scheme", action="append", choices=tuple(SCHEMES), help="only this scheme")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N", help="only the first N seeds")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    asked = parser.parse_args()
    hours, schemes, seeds = asked.hour or list(HOURS), asked.scheme or list(SCHEMES), SEEDS[: asked.seeds]
    cases = [(hour, scheme, cache, seed) for hour in hours for scheme in schemes for cache in (False, True) for seed in seeds]
    with ProcessPoolExecutor(asked.processes) as processes:
        found = dict(zip(cases, processes.map(_play, cases), strict=True))
    print(f"{'the worst of ' + str(len(seeds)) + ' seeds':28}{'without the prompt cache':>34}{'with it':>34}")
    print(f"{'':28}" + f"{'wait p95':>10}{'max':>8}{'useful':>8}{'loads':>8}" * 2)
    for hour in hours:
        print(f"\n{hour}: {HOURS[hour].about}")
        for scheme in schemes:
            rows = [[found[hour, scheme, cache, seed] for seed in seeds] for cache in (False, True)]
            print(f"  {SCHEMES[scheme].title:26}" + "".join("".join(_cells(row)) for row in rows))
    return 0


def _play(case: Case) -> Played:
    logging.disable(logging.CRITICAL)  # at the end of an hour jobs are still running
    hour, scheme, prompt_cache, seed = case
    return play(HOURS[hour], SCHEMES[scheme], seed=seed, prompt_cache=prompt_cache)


def _cells(row: list[Played]) -> Iterator[str]:
    yield f"{max(percentile(played.waits_s, 95) for played in row):>10.2f}"
    yield f"{max(max(played.waits_s) for played in row):>8.1f}"
    yield f"{min(played.useful for played in row):>8.3f}"
    yield f"{max(played.loads for played in row):>8}"


if __name__ == "__main__":
    sys.exit(main())
