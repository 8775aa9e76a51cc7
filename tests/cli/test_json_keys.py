"""Every `--json` prints exactly the keys that its help names, in that order, and no help names what is never printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue.cli.app import COMMANDS
from gpuqueue.cli.database import db
from gpuqueue.plugins import RegisterServicesDetails, Service, ServiceContext, hookimpl
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.cli.keys import Shape, compare, documented

Run = Callable[..., Any]
SENT = ["submit", "ai-realtime", "--model", "gemma4:e4b", "--prompt", "hello"]


class Mirror:
    """A service that says how far it is behind."""

    @hookimpl
    def register_services(self, details: RegisterServicesDetails) -> Mapping[str, Service]:
        def mirror(context: ServiceContext) -> None:
            context.note({"lag_s": 1.5})
            context.stopping.wait()

        return {"mirror": mirror}


@pytest.fixture
def filled(folder: Path, simulator: OllamaSimulator, until: Any, gate: Any) -> Iterator[GPUQueue]:
    """Jobs with everything that a job can have, a worker that runs one of them on a card, and a paused queue."""
    with simulated_nvml(simulator.card), GPUQueue.from_config("gpuqueue.toml", plugins=[Mirror()]) as gq:
        gq.queue("nightly", pause=["09:00-18:00"])

        @gq.task(name="fail", queue="mail", max_attempts=1)
        def fail() -> None:
            current_job().log("trying")
            raise RuntimeError("no")

        @gq.task(name="stay", queue="ai-realtime")
        def stay() -> None:
            gate.pass_through()

        gq.pause("held", reason="moves", until="1h", by="me")
        gq.enqueue("fail")
        with Worker(gq, queues=["mail", "ai-realtime"]) as worker:
            until(lambda: gq.job(1).state == "discarded")
            until(lambda: gq.view().devices["gpu0"].reading)
            until(lambda: any(service.status for service in gq.services()))
            yield gq
            gate.open()
            worker.stop(grace_s=0)


@pytest.fixture
def keys(run: Run, folder: Path) -> Callable[..., Shape]:
    """`keys(command, when)` reads what the help says."""

    def help_of(command: str) -> str:
        text: str = run(*command.split(), "--help").out
        return text

    return lambda command, when="": documented(help_of, command, when=when)


CASES: dict[tuple[str, str], list[list[Any]]] = {
    ("status", ""): [["status"]],
    ("gpu", ""): [["gpu"]],
    ("jobs", ""): [["jobs"], ["jobs", "--limit", 1]],
    ("job", ""): [["job", 1], ["job", 2]],
    ("explain", ""): [["explain", 3]],
    ("top", ""): [["top"]],
    ("doctor", ""): [["doctor"]],
    ("plugins", ""): [["plugins"]],
    ("pause", ""): [["pause", "mail"]],
    ("resume", ""): [["resume", "held"]],
    ("cancel", ""): [["cancel", 3]],
    ("cancel", "with --all"): [["cancel", "--all", "--queue", "ai-batch"]],
    ("retry", ""): [["retry", 1]],
    ("retry", "with --failed"): [["retry", "--failed"]],
    ("submit", ""): [["submit", "held", "--model", "m", "--prompt", "x"]],
    ("submit", "with --wait"): [[*SENT, "--wait"]],
    ("db path", ""): [["db", "path"]],
    ("db version", ""): [["db", "version"]],
    ("db upgrade", ""): [["db", "upgrade"]],
    ("db prune", ""): [["db", "prune"]],
}
# Their output is several objects, or needs preparations: they have tests of their own below, and the demo in test_demo.py.
ELSEWHERE = {
    ("logs", ""),
    ("submit", "with --follow, one object per line"),
    ("submit", "with --follow, the last line"),
    ("db check", ""),
    ("db backup", ""),
    ("db restore", ""),
    ("db vacuum", ""),
    ("demo", ""),
}
NEVER_HERE = {
    # An attempt and an error stand in other cases; the wait's job completes at once.
    ("submit", "with --wait"): [".error", ".attempts", ".attempts.error"],
    ("submit", ""): [".job.error"],
}


@pytest.mark.parametrize(("command", "when"), CASES, ids=[" ".join(case).strip() for case in CASES])
def test_the_keys_are_those_of_the_help(
    filled: GPUQueue, simulator: OllamaSimulator, run: Run, keys: Any, until: Any, command: str, when: str
) -> None:
    job = filled.ollama.generate("gemma4:e4b", prompt="x", queue="ai-realtime", options={"num_predict": 1})
    job.result(timeout_s=DEADLINE_S)
    filled.ollama.generate("gemma4:e4b", prompt="x", queue="held")
    if command == "status":
        until(lambda: all(worker.parts for worker in filled.view().workers), "the worker's first heartbeat")
    if command in ("status", "gpu"):
        until(lambda: not filled.view().devices["gpu0"].reservations)  # its clean-up has told what is loaded
        reserve(filled)
        load(simulator.url)
    shape = keys(command, when)
    for argv in CASES[command, when]:
        compare(shape, json.loads(run(*argv, "--json").out))
    assert shape.unseen() == NEVER_HERE.get((command, when), [])


def reserve(gq: GPUQueue) -> None:
    """Put a model and a reservation on the card, as a running job does, and let them stay while they are looked at."""
    gq.store.engine.writer.run(
        lambda connection: connection.execute(
            "UPDATE devices SET residents = ?", (json.dumps([{"model": "m", "size_bytes": 1, "vram_bytes": 1}]),)
        )
    )
    gq.store.engine.writer.run(
        lambda connection: connection.execute("UPDATE jobs SET device = 'gpu0', reserved_bytes = 5 WHERE id = 1")
    )


def load(url: str) -> None:
    """Load a model as another program does, which no job has reserved."""
    httpx.post(f"{url}/api/generate", json={"model": "gemma4:e4b", "keep_alive": -1}, timeout=DEADLINE_S).raise_for_status()


def test_the_lines_of_a_followed_submission(filled: GPUQueue, run: Run, keys: Any) -> None:
    *pieces, last = [json.loads(line) for line in run(*SENT, "--follow", "--json").out.splitlines()]
    assert pieces
    shape = keys("submit", "with --follow, one object per line")
    for piece in pieces:
        compare(shape, piece)
    compare(keys("submit", "with --follow, the last line"), last)


def test_the_lines_of_a_log(filled: GPUQueue, run: Run, keys: Any) -> None:
    entries = [json.loads(line) for line in run("logs", 1, "--json").out.splitlines()]
    assert [entry["kind"] for entry in entries] == ["line", "ended"]
    for entry in entries:
        compare(keys("logs"), entry)


def test_the_keys_of_checks_backups_restores_and_vacuums(configured: Path, run: Run, keys: Any) -> None:
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        gq.counts()
        gq.store.engine.writer.run(lambda connection: connection.execute("INSERT INTO counters VALUES ('mail', 'completed', 7)"))
    for command, argv in (
        ("db check", ["db", "check"]),
        ("db backup", ["db", "backup", "copy.db"]),
        ("db restore", ["db", "restore", "copy.db"]),
        ("db vacuum", ["db", "vacuum"]),
    ):
        shape = keys(command)
        compare(shape, json.loads(run(*argv, "--json").out))
        assert shape.unseen() == []


def found_commands() -> Iterator[tuple[str, click.Command]]:
    for command in COMMANDS:
        if isinstance(command, click.Group):
            yield from ((f"{command.name} {name}", inner) for name, inner in command.commands.items())
        else:
            yield command.name or "", command


ALL = list(found_commands())


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_a_command_names_its_keys_where_it_prints_json_and_a_test_compares_them(name: str, command: click.Command) -> None:
    has_json = any("--json" in parameter.opts for parameter in command.params)
    lines = [line.strip() for line in (command.help or "").splitlines()]
    named = [line.partition(":")[0].removeprefix("Keys").strip() for line in lines if line.startswith("Keys")]
    assert bool(named) == has_json
    assert {(name, when) for when in named} <= set(CASES) | ELSEWHERE


def test_every_command_that_reads_prints_json() -> None:
    without = [name for name, command in ALL if not any("--json" in option.opts for option in command.params)]
    assert without == ["init", "worker", "plugins new", "completion"]
    assert isinstance(db, click.Group)


def test_a_help_that_names_too_much_or_too_little_is_seen() -> None:
    def help_of(_command: str) -> str:
        return "Keys: a, b (x; y), c: [{d, e: {f} or null}], g: {STATE: number}. More."

    good = {"a": 1, "b": 2, "c": [{"d": 1, "e": None}, {"d": 1, "e": {"f": 1}}], "g": {"x": 1}}
    shape = documented(help_of, "x")
    compare(shape, {**good, "c": []})
    assert shape.unseen() == [".c", ".c.e"]
    compare(shape, good)
    assert shape.unseen() == []
    for wrong in (
        {**good, "h": 1},
        {key: value for key, value in good.items() if key != "b"},
        {**good, "a": {"z": 1}},
        {**good, "c": [{"d": 1}]},
        {**good, "c": [{"d": 1, "e": {"f": 1, "z": 1}}]},
        {**good, "c": None},
    ):
        with pytest.raises(AssertionError):
            compare(shape, wrong)
