"""The demo: what it prints for machines, what it judges, and what it leaves behind."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from gpuqueue import GPUQueue, State
from gpuqueue.cli import demo, main
from gpuqueue.cli.demo.display import Display
from gpuqueue.cli.demo.evidence import Evidence, Outage, checklist, holds, percentile, summary
from gpuqueue.cli.demo.recorder import BATCH, REALTIME, Replay
from gpuqueue.cli.demo.stage import evening_zone, scaled
from gpuqueue.config.initial import initial_toml
from gpuqueue.config.loading import Config
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import Event
from tests.cli.keys import compare, documented
from tests.history import History
from tests.processes import LONGEST_S, started

NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)
ANSWER = "AI service temporarily unavailable"
GOOD = Evidence(
    enqueued_count=5,
    completed_count=4,
    failed_count=1,
    expected_failed_count=1,
    mixed_up=(),
    checked_count=4,
    realtime_waits_s=[0.1, 0.3],
    first_piece_s=[0.2, 0.4],
    batch_completed_count=2,
    batch_beside_realtime_count=0,
    hold_counts={"yielding": 2, "paused": 1},
    paused_s=2.0,
    started_in_pause_count=0,
    realtime_in_pause_count=1,
    window_answer="at noon its window holds it until 18:00",
    most_running={REALTIME: 1, BATCH: 1},
    overlap_count=0,
    peak_bytes=4_500_000_000,
    budget_bytes=5_000_000_000,
    load_count=2,
    unload_count=2,
    left_bytes=0,
    spill_count=0,
    model_peak_count=1,
    reading_count=3,
    needs_readings=True,
    rfa_waits_s=[0.01],
    rfa_on_gpu_count=0,
    rfa_file_count=1,
    outage=Outage(
        realtime_answer=ANSWER,
        answered_after_s=0.1,
        batch_snoozed_count=1,
        attempts_spent_count=0,
        rfa_completed_count=1,
        recovered=True,
        recovered_after_s=0.5,
    ),
    overlaps_by="in the card's own record",
)
GOOD_OUTAGE = GOOD.outage
assert GOOD_OUTAGE is not None


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "gpuqueue.cli.demo", *arguments]


def test_the_scenario_holds_and_is_told_as_json(tmp_path: Path) -> None:
    ended = subprocess.run(
        command("--json", "--keep", str(tmp_path)), capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert {key: set(value) if isinstance(value, dict) else value for key, value in found.items()} == {
        "completed": 26,
        "failed": 1,  # the person who asked while the GPU was away
        "lost": 0,
        "realtime": {"wait_p50_s", "wait_p95_s"},
        "batch": {"completed", "holds"},
        "rfa": {"wait_p95_s"},
        "gpu": {"overlaps", "peak_bytes", "budget_bytes", "loads"},
        "outage": {"realtime_answer", "batch_snoozed", "recovered"},
    }
    assert found["batch"]["completed"] == 11
    assert found["batch"]["holds"].keys() >= {"paused", "yielding", "unavailable"}
    assert found["gpu"]["overlaps"] == 0
    assert 0 < found["gpu"]["peak_bytes"] <= found["gpu"]["budget_bytes"] == 5_000_000_000
    assert found["gpu"]["loads"] > 0
    assert found["outage"]["realtime_answer"] == ANSWER
    assert found["outage"]["batch_snoozed"] >= 1
    assert found["outage"]["recovered"] is True
    assert {file.name for file in tmp_path.iterdir()} >= {"gpuqueue.toml", "gpuqueue.db", "worker.log", "rfa"}
    with GPUQueue.from_config(tmp_path / "gpuqueue.toml") as gq:
        History(gq, is_kept=True).check(completed=[job.id for job in gq.jobs(state=State.COMPLETED)])


def test_ctrl_c_ends_the_worker_and_removes_the_files() -> None:
    with started(command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("configuration: "):
                file, _, told = line.removeprefix("configuration: ").partition(" (")
                folder = Path(file).parent
            if "completed in" in line:  # the worker works
                break
        assert folder.exists()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=LONGEST_S)
    assert running.returncode == 130
    assert errors == "interrupted; the worker was stopped\n"
    assert not folder.exists()
    assert told == "removed at the end; --keep FOLDER keeps it)\n"


def test_the_verdict_is_folded_in_a_terminal_and_in_a_pipe_each_evidence_is_one_line() -> None:
    checks = checklist(GOOD)
    longest = max((check.evidence for check in checks), key=len)

    def shown(*, is_terminal: bool) -> list[str]:
        out = io.StringIO()
        console = Console(file=out, width=60, force_terminal=is_terminal, color_system=None, legacy_windows=False)
        Display(console, title="", quiet=False).checklist(checks, 15.0, clock="Real times. " * 9)
        return out.getvalue().splitlines()

    piped = shown(is_terminal=False)
    assert len(longest) > 60
    assert f"  {longest}" in piped
    assert len(piped) == 2 * len(checks) + 1
    assert max(map(len, shown(is_terminal=True))) <= 60


def test_a_real_ollama_needs_a_model() -> None:
    with pytest.raises(UsageError, match="--ollama needs --model"):
        demo.run(json_output=True, ollama_url="http://127.0.0.1:1", model=None, keep=None)


def test_an_ollama_that_does_not_answer_is_said_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="nothing listens"):
        demo.run(json_output=True, ollama_url="http://127.0.0.1:1", model="gemma4:e4b", keep=None)


def test_a_folder_with_another_runs_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpuqueue.db").touch()
    with pytest.raises(UsageError, match="another run"):
        demo.run(json_output=True, ollama_url=None, model=None, keep=tmp_path)


def test_a_good_run_breaks_no_rule() -> None:
    assert [check.passed for check in checklist(GOOD)] == [True] * 7


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("Realtime pauses batch", replace(GOOD, batch_beside_realtime_count=1)),
        ("Realtime pauses batch", replace(GOOD, hold_counts={})),
        ("Batch pauses in working hours", replace(GOOD, started_in_pause_count=1)),
        ("Batch pauses in working hours", replace(GOOD, window_answer="")),
        ("One GPU job at a time", replace(GOOD, overlap_count=1)),
        ("One GPU job at a time", replace(GOOD, most_running={REALTIME: 1, BATCH: 2})),
        ("VRAM watched and within budget", replace(GOOD, peak_bytes=5_000_000_001)),
        ("VRAM watched and within budget", replace(GOOD, spill_count=1)),
        ("VRAM watched and within budget", replace(GOOD, left_bytes=4_500_000_000)),
        ("VRAM watched and within budget", replace(GOOD, model_peak_count=2)),
        ("VRAM watched and within budget", replace(GOOD, reading_count=0)),
        ("Fallback when the GPU is unavailable", replace(GOOD, outage=replace(GOOD_OUTAGE, realtime_answer="other words"))),
        ("Fallback when the GPU is unavailable", replace(GOOD, outage=replace(GOOD_OUTAGE, answered_after_s=2.1))),
        ("Fallback when the GPU is unavailable", replace(GOOD, outage=replace(GOOD_OUTAGE, batch_snoozed_count=0))),
        ("Fallback when the GPU is unavailable", replace(GOOD, outage=replace(GOOD_OUTAGE, attempts_spent_count=1))),
        ("Fallback when the GPU is unavailable", replace(GOOD, outage=replace(GOOD_OUTAGE, recovered=False))),
        ("RFA never uses the GPU", replace(GOOD, rfa_on_gpu_count=1)),
        ("RFA never uses the GPU", replace(GOOD, outage=replace(GOOD_OUTAGE, rfa_completed_count=0))),
        ("Nothing lost, nothing mixed up", replace(GOOD, completed_count=3)),
        ("Nothing lost, nothing mixed up", replace(GOOD, completed_count=3, failed_count=2)),
        ("Nothing lost, nothing mixed up", replace(GOOD, mixed_up=("the answer of job 3",))),
    ],
)
def test_a_broken_rule_is_named_and_fails_the_run(rule: str, broken: Evidence) -> None:
    checks = checklist(broken)
    assert [check.rule for check in checks if check.passed is False] == [rule]
    assert not holds(checks)
    assert demo.exit_status(checks) == 1


def test_an_outage_that_was_not_tried_breaks_nothing() -> None:
    checks = checklist(replace(GOOD, outage=None))
    assert [check.rule for check in checks if check.passed is None] == ["Fallback when the GPU is unavailable"]
    assert demo.exit_status(checks) == 0
    assert summary(replace(GOOD, outage=None))["outage"] is None


def test_a_percentile_is_one_of_the_values() -> None:
    values = [0.5, 0.1, 0.2, 0.4, 0.3]
    assert [percentile(values, percent) for percent in (1, 50, 95, 100)] == [0.1, 0.3, 0.5, 0.5]
    assert percentile([], 50) is None


def happened(number: int, name: str, job_id: int, queue: str, state: str, device: str | None = None) -> Event:
    return Event(number, NOON, name, job_id, queue, {"state": state, "attempt": 1, "device": device})


def test_the_replay_sees_a_batch_job_that_begins_beside_a_realtime_one() -> None:
    seen = Replay()
    seen.take(happened(1, "job_enqueued", 1, BATCH, "available"))
    seen.take(happened(2, "job_enqueued", 2, REALTIME, "available"))
    assert seen.batch_beside_realtime_count == 0
    seen.take(happened(3, "attempt_started", 1, BATCH, "running", "gpu0"))
    assert seen.batch_beside_realtime_count == 1


def test_the_replay_sees_two_jobs_on_the_gpu_and_a_file_job_there() -> None:
    seen = Replay()
    for job_id, queue in enumerate((REALTIME, "rfa-reminders"), start=1):
        seen.take(happened(job_id, "job_enqueued", job_id, queue, "available"))
    seen.take(happened(3, "attempt_started", 1, REALTIME, "running", "gpu0"))
    seen.take(happened(4, "attempt_started", 2, "rfa-reminders", "running", "gpu0"))
    assert (seen.gpu_overlap_count, seen.rfa_on_gpu_count) == (1, 1)
    seen.take(happened(5, "job_finished", 1, REALTIME, "completed", "gpu0"))
    assert seen.running == {2: "gpu0"}


def test_a_hold_is_counted_once_for_as_long_as_it_lasts() -> None:
    seen = Replay()
    for number, reasons in enumerate((["paused"], ["paused", "yielding"], ["yielding"], [], ["paused"])):
        name = "queue_held" if reasons else "queue_released"
        seen.take(Event(number, NOON, name, None, BATCH, {"reasons": reasons, "details": reasons}))
    assert seen.hold_counts == {"paused": 2, "yielding": 1}


@pytest.mark.parametrize("hour", range(24))
def test_the_demo_always_runs_in_the_evening(hour: int) -> None:
    now = datetime(2030, 1, 7, hour, 59, tzinfo=UTC)
    assert now.astimezone(ZoneInfo(evening_zone(now))).hour == 20


def test_what_the_demo_changes_in_inits_file_is_valid_and_all_that_differs(tmp_path: Path) -> None:
    toml = initial_toml(timezone="UTC", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB")
    file = tmp_path / "gpuqueue.toml"
    file.write_text(toml)
    before = Config.load(file, environ={})
    file.write_text(scaled(toml))
    after = Config.load(file, environ={})
    batch = replace(before.queues[BATCH], retry_every_s=3.0)
    assert after == replace(
        before,
        queues={**before.queues, BATCH: batch},
        backends=(replace(before.backends[0], probe_every_s=0.5),),
    )


def test_a_file_of_init_that_has_changed_is_noticed() -> None:
    with pytest.raises(ValueError, match="adapt what the demo replaces"):
        scaled("[ollama]\n")


def test_the_help_names_the_keys_of_the_summary(capfd: pytest.CaptureFixture[str]) -> None:
    def help_of(command: str) -> str:
        main([command, "--help"])
        return capfd.readouterr().out

    shape = documented(help_of, "demo")
    compare(shape, summary(GOOD))
    compare(shape, summary(replace(GOOD, outage=None)))
    assert shape.unseen() == []
