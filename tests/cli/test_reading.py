"""What the reading commands show, for people in a pipe and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.domain.answers import Demand

Run = Callable[..., Any]
ISO_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_status_of_a_fresh_configuration_names_the_database_and_every_queue(configured: Path, run: Run) -> None:
    ran = run("status")
    assert ran.status == 0
    assert f"database: {configured / 'jobs.db'}" in ran.out
    for queue in ("ai-realtime", "ai-batch", "held", "mail"):
        assert queue in ran.out
    assert "\x1b" not in ran.out
    assert f"gpuqueue --config {configured / 'gpuqueue.toml'} worker" in ran.out


def test_status_as_json_has_its_documented_keys(configured: Path, run: Run) -> None:
    found = json.loads(run("status", "--json").out)
    assert list(found) == ["at", "database", "queues", "workers", "devices", "backends", "services"]
    assert ISO_UTC.fullmatch(found["at"])
    held = next(queue for queue in found["queues"] if queue["name"] == "held")
    assert held["holds"][0]["reason"] == "window"
    assert set(held["counts"]) == {"scheduled", "available", "running", "retryable", "completed", "cancelled", "discarded"}
    assert found["devices"][0]["budget_bytes"] == 5 * 10**9
    assert found["backends"][0]["available"] is None
    help_text = run("status", "--help").out
    for key in (*found, *held, *found["backends"][0]):
        assert key in help_text


def test_a_pause_shows_who_why_and_until_when_and_is_lifted(configured: Path, run: Run) -> None:
    assert run("pause", "mail", "--reason", "server moves", "--until", "30m").status == 0
    ran = run("status")
    assert "server moves) until" in ran.out
    assert "gpuqueue resume mail" in ran.out
    paused = json.loads(run("status", "--json").out)["queues"][-1]["paused"]
    assert paused["reason"] == "server moves"
    assert ISO_UTC.fullmatch(paused["until"])
    assert "mail is resumed" in run("resume", "mail").out
    assert "mail was not paused" in run("resume", "mail").out


def test_advice_repeats_the_options_that_were_given(configured: Path, run: Run) -> None:
    run("--database", "other.db", "submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    ran = run("--database", "other.db", "explain", 1)
    assert f"--database {configured / 'other.db'}" in ran.out
    run("--database", "other.db", "pause", "mail")
    assert f"--database {configured / 'other.db'} resume mail" in run("--database", "other.db", "status").out


def test_a_job_is_shown_whole(configured: Path, run: Run, app: str) -> None:
    name = app.partition(":")[0]
    assert run("submit", "mail", "--app", app, "--task", f"{name}.send", "--arg", "to=a@b.c", "--tag", "t1").out == "1\n"
    run("submit", "mail", "--app", app, "--task", f"{name}.fail")
    assert run("worker", "--app", app, "--burst", "--queue", "mail").status == 0
    shown = json.loads(run("job", 1, "--json").out)
    assert shown["state"] == "completed"
    assert shown["result"] == "sent 1 to a@b.c"
    assert shown["tags"] == ["t1"]
    assert ISO_UTC.fullmatch(shown["finished_at"])
    text = run("job", 2).out
    assert "discarded" in text
    assert "the server said no" in text
    listed = json.loads(run("jobs", "--json", "--limit", 1).out)
    assert [job["id"] for job in listed["jobs"]] == [2]
    assert listed["next_after"] == 2
    assert json.loads(run("jobs", "--json", "--limit", 1, "--after", 2).out)["next_after"] is None
    assert "the server said no" in run("jobs", "--state", "discarded").out
    help_text = run("job", "--help").out
    for key in shown:
        assert key in help_text


def test_a_long_result_is_cut_unless_asked_for(configured: Path, run: Run, app: str) -> None:
    name = app.partition(":")[0]
    run("submit", "mail", "--app", app, "--task", f"{name}.send", "--arg", f"to={'x' * 5000}")
    run("worker", "--app", app, "--burst", "--queue", "mail")
    assert "x" * 5000 not in run("job", 1).out
    assert "--result" in run("job", 1).out
    assert "x" * 5000 in run("job", 1, "--result").out


def test_the_list_names_the_model_that_a_job_takes_where_its_own_is_not_to_be_had(configured: Path, run: Run) -> None:
    run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=large", "--arg", "prompt=x")
    assert "ollama.generate large  " in run("jobs").out
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        gq.store.jobs.set_demands([(1, Demand(10**9, "small"))], largest_bytes=5 * 10**9)
    assert "ollama.generate small  " in run("jobs").out


def test_explain_gives_every_reason_and_what_to_do(configured: Path, run: Run) -> None:
    run("submit", "held", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    ran = run("explain", 1)
    assert "no worker serves queue 'held'" in ran.out
    assert "paused at all times" in ran.out
    assert "start a worker: gpuqueue" in ran.out
    found = json.loads(run("explain", 1, "--json").out)
    assert list(found) == [
        *("job_id", "state", "at", "summary", "reasons", "position"),
        *("expected_start", "expected_start_earliest", "expected_start_latest"),
        *("expected_finish", "expected_finish_earliest", "expected_finish_latest", "advice", "text"),
    ]
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        in_python = str(gq.explain(1)).partition("  →")[0]
    assert found["text"] == ran.out.rstrip()
    assert found["text"].partition("  →")[0] == in_python, "the advice alone differs: at the terminal it names the files"
    assert {reason["reason"] for reason in found["reasons"]} == {"no_worker", "window"}


def test_several_jobs_are_cancelled_and_retried(configured: Path, run: Run) -> None:
    for _ in range(2):
        run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    assert run("cancel", 1, 99).status == 2
    assert json.loads(run("job", 1, "--json").out)["state"] == "available"
    assert run("cancel", 1, 2).status == 0
    assert run("cancel", 1).status == 1
    assert run("retry", 1).status == 0
    assert run("retry", 1).status == 2
    assert json.loads(run("job", 1, "--json").out)["state"] == "available"


def test_status_shows_a_worker_that_lives(configured: Path, run: Run) -> None:
    with GPUQueue.from_config("gpuqueue.toml") as gq, Worker(gq, queues=["mail"]) as worker:
        assert f"{worker.id} serves mail" in run("status").out
        found = json.loads(run("status", "--json").out)
        assert [item["id"] for item in found["workers"]] == [worker.id]
        assert found["workers"][0]["queues"] == ["mail"]


def test_every_plugin_is_listed_with_its_hooks(folder: Path, run: Run) -> None:
    found = {plugin["name"]: plugin for plugin in json.loads(run("plugins", "--json").out)["plugins"]}
    shape = {"kind": "default", "distribution": None, "version": None, "blocked": False}
    assert found["ordering"] == {"name": "ordering", "hooks": ["order_candidates"], **shape}
    assert "residents" in run("plugins").out


def test_blocked_plugins_are_listed_last_without_hooks(folder: Path, run: Run) -> None:
    (folder / "gpuqueue.toml").write_text('[plugins]\nblock = ["windows", "residents"]\n', encoding="utf-8")
    found = json.loads(run("plugins", "--json").out)["plugins"]
    assert [plugin["name"] for plugin in found if plugin["blocked"]] == ["windows", "residents"]
    assert [(plugin["name"], plugin["hooks"]) for plugin in found[-2:]] == [("windows", []), ("residents", [])]
    ran = run("plugins")
    assert ran.out.splitlines()[-1].split() == ["residents", "default", "blocked"]
    assert not ran.err


def test_the_plugins_of_an_application_are_listed_as_given(configured: Path, app: str, run: Run) -> None:
    module = configured / f"{app.partition(':')[0]}.py"
    text = module.read_text(encoding="utf-8").replace('("gpuqueue.toml")', '("gpuqueue.toml", plugins={"cool": object()})')
    module.write_text(text, encoding="utf-8")
    assert ["cool", "given"] in [line.split() for line in run("plugins", "--app", app).out.splitlines()]


def test_the_database_is_told_of_and_upgraded(configured: Path, run: Run) -> None:
    assert run("db", "path").out == f"{configured / 'jobs.db'}\n"
    assert run("db", "version").status == 2
    assert not (configured / "jobs.db").exists()
    (configured / "jobs.db").touch(mode=0o600)
    assert json.loads(run("db", "version", "--json").out)["version"] is None
    assert "upgraded from an empty file" in run("db", "upgrade").out
    assert json.loads(run("db", "version", "--json").out)["current"] is True
    assert "already" in run("db", "upgrade").out


@pytest.mark.parametrize("argv", [[], ["db"]])
def test_without_a_command_the_help_is_shown(folder: Path, run: Run, argv: list[str]) -> None:
    ran = run(*argv)
    assert "Usage:" in ran.out + ran.err


def test_a_terminal_too_narrow_for_a_table_loses_nothing(configured: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    monkeypatch.setattr("gpuqueue.cli.rendering.in_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    line = run("jobs").out.strip()
    for part in ("1", "available", "ai-batch", "ollama.generate m", "0/"):
        assert part in line
