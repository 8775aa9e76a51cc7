"""The parts of the real-time run of the scheduling benchmark that need no time: traces, configuration, figures and checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.config.loading import Config
from gpuqueue.simulators.card import Computation, Release
from gpuqueue.simulators.ollama import Served
from gpuqueue.simulators.ollama.answers import as_text, token_count
from tests.benchmarks.scheduling.percentiles import percentile
from tests.benchmarks.scheduling.real_time import generate, traces
from tests.benchmarks.scheduling.real_time.__main__ import main
from tests.benchmarks.scheduling.real_time.measure import Interval, JobTimes, Run, figures, overtaken_s, read_recording
from tests.benchmarks.scheduling.real_time.results import Bounds, checks, tables, worded
from tests.benchmarks.scheduling.real_time.schemes import BASELINE, CONTINUE, FCFS, ORIGINAL, PREEMPT, SCHEMES
from tests.benchmarks.scheduling.real_time.stage import Recording, job_number, messages
from tests.benchmarks.scheduling.real_time.traces import BATCH, REALTIME, Arrival, Trace

GEMMA, QWEN = "gemma4:e4b", "qwen3:4b"
SMALL = Trace("small", "Two jobs.", 60.0, 120.0, (Arrival(0.0, BATCH, GEMMA, 110, 110), Arrival(1.0, REALTIME, GEMMA, 110, 55)))


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (75, 3.0), (95, 4.0), (99, 4.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_seen(percent: float, expected: float) -> None:
    assert percentile([3.0, 1.0, 4.0, 2.0], percent) == expected


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@pytest.mark.parametrize("name", traces.names())
def test_the_committed_traces_are_what_the_generator_makes(name: str) -> None:
    assert (traces.FOLDER / f"{name}.json").read_text(encoding="utf-8") == generate.text(generate.TRACES[name]())


def test_the_traces_are_one_hour_of_work_for_one_card_with_a_quarter_of_realtime_at_most() -> None:
    found = [traces.read(name) for name in traces.names()]
    assert sum(trace.length_s for trace in found) == 3600
    for trace in found:
        assert 1.0 <= trace.work_s / trace.length_s <= 1.05
        assert 0.0 < trace.only(REALTIME).work_s <= 0.25 * trace.length_s
    assert [trace.models for trace in found] == [(GEMMA,), (GEMMA, QWEN)]


@pytest.mark.parametrize(
    ("arrivals", "words"),
    [
        ([[0.0, "people", GEMMA, 1, 1]], "unknown queue or model"),
        ([[0.0, BATCH, "other", 1, 1]], "unknown queue or model"),
        ([[1.0, BATCH, GEMMA, 1, 1], [0.0, BATCH, GEMMA, 1, 1]], "behind a later one"),
        ([[0.0, BATCH, GEMMA, 0, 1]], "does not fit"),
        ([[0.0, BATCH, GEMMA, 8000, 400]], "does not fit"),
    ],
)
def test_a_trace_that_makes_no_sense_is_refused(arrivals: list[list[object]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        traces.parsed("wrong", {"about": "", "length_s": 60, "affinity_s": 1, "arrivals": arrivals})


def test_a_trace_can_be_cut_and_taken_apart() -> None:
    assert SMALL.shorter(0.5).arrivals == SMALL.arrivals[:1]
    assert SMALL.shorter(100.0) is SMALL
    assert SMALL.only(REALTIME).arrivals == SMALL.arrivals[1:]
    with pytest.raises(ValueError, match="traces: one-model, two-models"):
        traces.read("three")


def test_a_request_has_the_tokens_of_its_trace_and_the_number_of_its_job() -> None:
    said = messages(17, SMALL.arrivals[0])
    assert token_count(as_text(said)) == 110
    assert job_number(Served("POST", "/api/chat", {"messages": said}, 200, False)) == 17
    for other in (None, {}, {"messages": []}, {"messages": [{"content": "warm up"}]}):
        assert job_number(Served("POST", "/api/chat", other, 200, False)) is None


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.runner == "worker"])
@pytest.mark.parametrize("trace", traces.names())
def test_each_scheme_of_a_worker_is_a_configuration_whose_durations_are_the_cards(name: str, trace: str, tmp_path: Path) -> None:
    found, file = traces.read(trace), tmp_path / "gpuqueue.toml"
    file.write_text(SCHEMES[name].toml(found, url="http://127.0.0.1:1", speed=10.0))
    config = Config.load(file, environ={})

    assert config.devices[0].affinity_s == (0.0 if name == FCFS else found.affinity_s / 10)
    assert {model.resume for model in config.models.values()} == {"continue" if name == CONTINUE else "restart"}
    assert set(config.queues) == ({"all"} if name == FCFS else {REALTIME, BATCH})
    if SCHEMES[name].is_gpuqueue:
        batch = config.queues[BATCH]
        assert (batch.yield_mode, batch.yields_to, batch.min_run_s) == (SCHEMES[name].yield_mode, (REALTIME,), 0.1)


def recording() -> Recording:
    """A batch job that makes room after one second of writing, at twice the speed, and a load before the trace."""
    body = [{"messages": messages(number, arrival)} for number, arrival in enumerate(SMALL.arrivals)]
    return Recording(
        began_s=100.0,
        served=(
            Served("POST", "/api/chat", body[0], 200, True, "a", 55),
            Served("POST", "/api/chat", body[1], 200, False, "b", 55),
            Served("GET", "/api/ps", None, 200, False),
            Served("POST", "/api/chat", body[0], 200, False, "c", 110),
        ),
        computed=(
            Computation("gemma4:e4b#1", "z", "load", 90.0, 91.0),
            Computation("gemma4:e4b#2", "a", "load", 100.0, 100.5),
            Computation("gemma4:e4b#2", "a", "prompt", 100.5, 100.6),
            Computation("gemma4:e4b#2", "a", "decode", 100.6, 101.1),
            Computation("gemma4:e4b#2", "a", "generate", 100.5, 101.1),
            Computation("gemma4:e4b#2", "b", "prompt", 101.5, 101.6),
            Computation("gemma4:e4b#2", "b", "decode", 101.6, 102.1),
            Computation("gemma4:e4b#2", "c", "prompt", 102.5, 102.6),
            Computation("gemma4:e4b#2", "c", "decode", 102.6, 103.6),
        ),
        released=(Release("gemma4:e4b#1", 1, 95.0, 96.0), Release("gemma4:e4b#2", 1, 104.0, 105.0)),
        peak_bytes=5_000_000_007,
        overlap_count=0,
        other_cores=0.5,
    )


def test_the_figures_of_a_run_come_from_the_cards_record() -> None:
    run = read_recording(recording(), SMALL, speed=2.0)

    assert [(item.kind, item.queue) for item in run.intervals] == [
        ("load", BATCH),
        ("prompt", BATCH),
        ("decode", BATCH),
        ("prompt", REALTIME),
        ("decode", REALTIME),
        ("prompt", BATCH),
        ("decode", BATCH),
        ("unload", ""),
    ]
    assert run.jobs[1].wait_s == pytest.approx(2.0)
    assert run.jobs[1].ttft_s == pytest.approx(2.2 + 1 / 55)
    found = figures(run, SMALL, None)
    assert found["loads"] == 1
    assert found["makespan_s"] == found["span_s"] == pytest.approx(7.2)
    assert (found["wasted_tokens"], found["preemptions"], found["over_budget_bytes"]) == (55, 1, 7)
    assert found["decoding_fraction"] == pytest.approx((0.2 + 1.0 + 0.2 + 1.0 + 0.2 + 2.0) / 7.2)
    assert found["useful_fraction"] == pytest.approx((110 / 55 + 0.1 + 55 / 55 + 0.1) / 7.2)


def test_the_excess_is_taken_job_by_job() -> None:
    run = read_recording(recording(), SMALL, speed=2.0)
    alone = Run((), {0: replace(run.jobs[1], read_s=1.5, first_token_s=2.0)}, 0, 0)
    found: Any = figures(run, SMALL, alone)

    assert found["excess_wait_s"]["p50"] == pytest.approx(2.0 - 0.5)
    assert found["excess_first_token_s"]["p50"] == pytest.approx(2.2 + 1 / 55 - 1.0)


def test_being_passed_over_is_counted_from_the_first_that_goes_before_without_the_realtime_work() -> None:
    trace = replace(SMALL, arrivals=tuple(Arrival(0.0, BATCH, GEMMA, 1, 1) for _ in range(4)))
    began = {0: 0.0, 1: 100.0, 2: 10.0, 3: 60.0}
    jobs = {number: JobTimes(0.0, at_s, at_s, at_s, at_s, 1, 1) for number, at_s in began.items()}
    people = Interval(20.0, 30.0, "decode", GEMMA, 9, REALTIME)

    assert overtaken_s(Run((people,), jobs, 0, 0), trace) == 40.0
    in_order = {number: replace(job, turned_to_s=float(number)) for number, job in jobs.items()}
    assert overtaken_s(Run((), in_order, 0, 0), trace) == 0.0


def made_up(**changes: object) -> dict[str, object]:
    three = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    return {
        **dict.fromkeys(("wait_s", "first_token_s", "excess_wait_s"), three),
        **{"realtime_count": 5, "makespan_s": 100.0, "loads": 4, "decoding_fraction": 0.9, "useful_fraction": 0.9},
        **{
            "wasted_tokens": 0,
            "peak_bytes": 4_000_000_000,
            "over_budget_bytes": 0,
            "overlaps": 0,
            "overtaken_s": 0.0,
            "other_cores": 0.5,
        },
        **changes,
    }


def judged(**changed: dict[str, object]) -> list[str]:
    """The checks that fail when some schemes' figures are others than good ones."""
    good = {name: made_up() for name in SCHEMES}
    good[ORIGINAL] = made_up(excess_wait_s={"p50": 9.0, "p95": 50.0, "p99": 60.0})
    good[FCFS] = made_up(loads=8)
    rows = {name: {**found, **changed.get(name, {})} for name, found in good.items()}
    found = checks({"two-models": rows}, {"two-models": Bounds(load_s=1.5, affinity_s=120.0)}, two_models="two-models")
    return [worded(item) for item in found if item.holds is False]


def test_good_figures_hold() -> None:
    assert judged() == []


@pytest.mark.parametrize(
    ("scheme", "change", "words"),
    [
        (PREEMPT, {"overlaps": 1}, "gpuqueue preempt: no overlap, nothing above the budget: 1 overlaps"),
        ("drain", {"over_budget_bytes": 9}, "gpuqueue drain: no overlap, nothing above the budget: 0 overlaps, 9 bytes above"),
        ("drain", {"overtaken_s": 121.0}, "affinity bound: passed over for 121.0 s, the bound is 120 s"),
        (PREEMPT, {"excess_wait_s": {"p95": 3.6}}, "one model load + 2 s: 3.60 s of 3.50 s"),
        (ORIGINAL, {"excess_wait_s": {"p95": 19.0}}, "a tenth of the original scheme's: 2.00 s, a tenth of 19.00 s is 1.90 s"),
        (PREEMPT, {"useful_fraction": 0.85}, "at least 0.95 ×"),
        (CONTINUE, {"useful_fraction": 0.88}, "at least 0.98 ×"),
        (FCFS, {"loads": 7}, "4 loads, half of 7 is 3.5"),
    ],
)
def test_each_promise_that_is_broken_is_named_with_its_figures(scheme: str, change: dict[str, object], words: str) -> None:
    (failed,) = judged(**{scheme: change})
    assert failed.startswith("✗ two-models") and words in failed


def test_what_was_not_run_is_not_judged() -> None:
    rows = {"one-model": {BASELINE: made_up()}}
    found = list(checks(rows, {"one-model": Bounds(1.5, 120.0)}, two_models="two-models"))
    assert found and all(item.holds is None for item in found)


def test_the_tables_fit_a_terminal_and_name_every_scheme() -> None:
    printed = tables("small", "Two jobs.", {name: made_up() for name in SCHEMES})
    assert max(map(len, printed.splitlines())) <= 80
    assert all(printed.count(scheme.title) >= 2 for scheme in SCHEMES.values())
    assert "Other work took 0.5 to 0.5 of this machine's cores" in printed


@pytest.mark.parametrize("arguments", [["--speed", "31"], ["--minutes", "0"], ["--scheme", "lifo"], ["--trace", "three"]])
def test_a_wrong_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_short_run_goes_from_the_command_to_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--minutes", "2.1", "--trace", "one-model", "--scheme", "baseline", "--speed", "30"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["one-model"]["baseline"]["realtime_count"] == 1
