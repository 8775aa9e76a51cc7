"""Owns the command `python -m tests.benchmarks.scheduling.real_time`: what is run and printed; 1 when a must does not hold."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from tests.benchmarks.scheduling.real_time import agreement, traces
from tests.benchmarks.scheduling.real_time.measure import Run, figures, model_load_s, read_recording
from tests.benchmarks.scheduling.real_time.results import Bounds, checks, tables, worded
from tests.benchmarks.scheduling.real_time.schemes import BASELINE, SCHEMES
from tests.benchmarks.scheduling.real_time.stage import RunFailed, record

SPEED, MAX_SPEED = 15.0, 30.0
TWO_MODELS = "two-models"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    results: dict[str, dict[str, dict[str, object]]] = {}
    runs: dict[str, dict[str, Run]] = {}
    played = {name: traces.read(name) for name in asked.trace or traces.names()}
    if asked.minutes:
        played = {name: trace.shorter(asked.minutes * 60) for name, trace in played.items()}
    # Without the baseline nothing can be said of an excess.
    names = [name for name in SCHEMES if not asked.scheme or name in asked.scheme or name == BASELINE]
    try:
        for trace in played.values():
            results[trace.name], runs[trace.name] = {}, {}
            for name in names:
                scheme, began_s = SCHEMES[name], time.monotonic()
                own = trace if scheme.has_batch else trace.only(traces.REALTIME)
                run = read_recording(record(scheme, trace, speed=asked.speed), own, speed=asked.speed)
                runs[trace.name][name] = run
                results[trace.name][name] = figures(run, own, runs[trace.name][BASELINE])
                print(f"{trace.name}, {scheme.title}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    bounds = {
        name: Bounds(load_s=model_load_s(runs[name].values(), trace.only(traces.REALTIME).models[0]), affinity_s=trace.affinity_s)
        for name, trace in played.items()
    }
    found = list(checks(results, bounds, two_models=TWO_MODELS))
    for trace_name, ran in runs.items():
        for scheme in (SCHEMES[name] for name in ran if SCHEMES[name].runner == "worker" and SCHEMES[name].has_batch):
            span_s = max(job.ended_s for job in ran[scheme.name].jobs.values())
            found.append(agreement.check(trace_name, scheme, span_s, agreement.played(scheme, played[trace_name]).ended_s))
    if asked.json:
        held = [{"what": item.what, "holds": item.holds, "figures": item.figures} for item in found]
        print(json.dumps({"speed": asked.speed, "results": results, "checks": held}, indent=1))
    else:
        for name, rows in results.items():
            print(tables(name, played[name].about, rows), end="\n\n")
        print("\n".join(worded(item) for item in found))
    return 1 if any(item.holds is False for item in found) else 0


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scheduling.real_time",
        description="One hour of a simulated card under several schemes; about half an hour at the speed of 15.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--minutes", type=float, metavar="N", help="only the first N minutes of each trace, for a quick look")
    parser.add_argument("--scheme", action="append", choices=tuple(SCHEMES), help="only this scheme, beside the baseline")
    parser.add_argument("--trace", action="append", choices=traces.names(), help="only this trace")
    parser.add_argument("--speed", type=float, default=SPEED, metavar="N", help=f"of the card, at most {MAX_SPEED:g}")
    asked = parser.parse_args(arguments)
    if not 1 <= asked.speed <= MAX_SPEED:
        parser.error(f"--speed: from 1 to {MAX_SPEED:g}, not {asked.speed:g}; a faster card shows only what the worker takes")
    if asked.minutes is not None and asked.minutes <= 0:
        parser.error(f"--minutes: more than 0, not {asked.minutes:g}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
