"""What a configuration says, where it comes from, and how a wrong one is explained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.config.loading import Config, WorkerSettings, database_path, database_url
from gpuqueue.config.table import Table
from gpuqueue.domain.errors import ConfigurationError
from gpuqueue.domain.job import State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings

GB = 10**9
DAY_S = 86_400.0

SCENARIO = """
database = "sqlite:///gpuqueue.db"

[gpu]                         # several cards: [[gpu]] with device = "GPU-uuid" or index
budget = "5GB"
margin = "3GB"                # left to other programs; budget + margin must fit on the card (checked at start)
max_models = 1
keep_warm = "0s"              # release the memory after each job; or "5m", or "auto"

[ollama]
url = "http://127.0.0.1:11434"    # or set OLLAMA_HOST

[models."gemma4:e4b"]
vram = "4.5GB"
options = { num_ctx = 4096 }

[models.nomic-embed-text]
vram = "0.5GB"

[queues.ai-realtime]
gpu = true
concurrency = 1
when_unavailable = "reject"

[queues.ai-batch]
gpu = true
concurrency = 1
pause = ["09:00-18:00"]
timezone = "Asia/Bangkok"     # init writes the machine's zone
yields_to = ["ai-realtime"]
when_unavailable = "retry"
retry_every = "5m"

[queues.rfa-reminders]
[queues.rfa-distribution]
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "gpuqueue.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def load(path: Path | None, environ: dict[str, str] | None = None, **overrides: Any) -> Config:
    return Config.load(path, environ=environ or {}, **overrides)


def refused(path: Path | None, environ: dict[str, str] | None = None, **overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path, environ, **overrides)
    return str(caught.value)


def test_the_whole_scenario_is_read(write: Write) -> None:
    path = write(SCENARIO)
    assert load(path) == Config(
        database=f"sqlite:///{path.parent}/gpuqueue.db",
        devices=(DeviceSettings("gpu0", 5 * GB, margin_bytes=3 * GB, max_models=1, keep_warm_s=0.0),),
        backends=(BackendSettings(),),
        models={
            "gemma4:e4b": ModelSettings("gemma4:e4b", 4_500_000_000, {"num_ctx": 4096}),
            "nomic-embed-text": ModelSettings("nomic-embed-text", 500_000_000),
        },
        queues={
            "ai-realtime": QueueSettings("ai-realtime", gpu=True, concurrency=1, when_unavailable="reject", backend="ollama"),
            "ai-batch": QueueSettings(
                "ai-batch",
                gpu=True,
                concurrency=1,
                pause=("09:00-18:00",),
                timezone="Asia/Bangkok",
                yields_to=("ai-realtime",),
                when_unavailable="retry",
                retry_every_s=300.0,
                backend="ollama",
            ),
            "rfa-reminders": QueueSettings("rfa-reminders"),
            "rfa-distribution": QueueSettings("rfa-distribution"),
        },
        path=path,
    )


def test_an_empty_file_is_the_defaults(write: Write) -> None:
    path = write("")
    config = load(path)
    assert config == Config(database=f"sqlite:///{path.parent}/gpuqueue.db", path=path)
    assert config.synchronous == "normal"
    assert config.max_payload_bytes == 16 * 2**20
    assert config.worker == WorkerSettings(threads=8, lease_s=30.0, grace_s=30.0, max_crashes=3)
    assert config.retention == {
        State.COMPLETED: 7 * DAY_S,
        State.CANCELLED: 7 * DAY_S,
        State.DISCARDED: 30 * DAY_S,
    }


def test_every_other_setting_is_read(write: Write) -> None:
    config = load(
        write(
            """
            synchronous = "full"
            max_payload = "1MiB"
            [ollama]
            url = "gpu-host:11434"
            connect = "500ms"
            first_token = "2m"
            gap = "10s"
            total = "1h"
            settle = "0s"
            release = 20
            probe_every = "1s"
            prefetch = false
            [worker]
            threads = 2
            lease = "10s"
            grace = "1m"
            max_crashes = 5
            log_format = "json"
            [retention]
            completed = "1d"
            discarded = "forever"
            [plugins]
            block = ["windows", "yielding"]
            [queues.default]
            max_attempts = 7
            timeout = "90s"
            priority = -3
            """
        )
    )
    assert config.synchronous == "full"
    assert config.max_payload_bytes == 2**20
    assert config.backends == (
        BackendSettings(
            url="http://gpu-host:11434",
            connect_s=0.5,
            first_token_s=120.0,
            gap_s=10.0,
            total_s=3600.0,
            settle_s=0.0,
            release_s=20.0,
            probe_every_s=1.0,
            prefetch=False,
        ),
    )
    assert config.worker == WorkerSettings(threads=2, lease_s=10.0, grace_s=60.0, max_crashes=5, log_format="json")
    assert config.retention == {State.COMPLETED: DAY_S, State.CANCELLED: 7 * DAY_S, State.DISCARDED: None}
    assert config.plugins_blocked == ("windows", "yielding")
    assert config.queues["default"] == QueueSettings("default", max_attempts=7, timeout_s=90.0, priority=-3)


def test_several_cards_are_named_by_index_or_uuid(write: Write) -> None:
    config = load(
        write(
            """
            [[gpu]]
            device = 1
            budget = "5GB"
            slots = 2
            [[gpu]]
            device = "0"
            budget = "6GB"
            [[gpu]]
            device = "GPU-8f5c2a4e-0000-1111-2222-333344445555"
            budget = 7000000000
            """
        )
    )
    assert config.devices == (
        DeviceSettings("gpu0", 6 * GB, index=0),
        DeviceSettings("gpu1", 5 * GB, slots=2, index=1),
        DeviceSettings("GPU-8f5c2a4e-0000-1111-2222-333344445555", 7 * GB, index=2),
    )


@pytest.mark.parametrize(
    ("text", "backends", "backend"),
    [
        ("[queues.cpu]", 0, ""),
        ("[gpu]\nbudget = '5GB'", 0, None),
        ("[gpu]\nbudget = '5GB'\n[queues.cpu]\ngpu = true", 0, ""),
        ("[gpu]\nbudget = '5GB'\n[ollama]\n[queues.cpu]\ngpu = true", 1, "ollama"),
        ("[gpu]\nbudget = '5GB'\n[queues.cpu]\ngpu = true\nbackend = 'none'", 0, ""),
        ("[models.a]\nvram = '1GB'\n[queues.cpu]", 1, ""),
        ("[ollama]\n[queues.cpu]", 1, ""),
        ("[queues.cpu]\nbackend = 'ollama'", 1, "ollama"),
    ],
)
def test_there_is_an_ollama_where_something_needs_one(write: Write, text: str, backends: int, backend: str | None) -> None:
    config = load(write(text))
    assert len(config.backends) == backends
    if backend is not None:
        assert config.queues["cpu"].backend == backend


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("gpu-host:8080", "http://gpu-host:8080"),
        ("gpu-host", "http://gpu-host:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://gpu-host", "http://gpu-host"),
        ("https://gpu-host/ollama/", "https://gpu-host/ollama"),
        ("http://0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("::", "http://[::1]:11434"),
        ('"gpu-host:8080"', "http://gpu-host:8080"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(write: Write, address: str, url: str) -> None:
    assert load(write("[ollama]"), {"OLLAMA_HOST": address}).backends[0].url == url


def test_the_file_goes_before_ollama_host_and_our_variable_before_both(write: Write) -> None:
    path = write('[ollama]\nurl = "http://file:1"')
    environ = {"OLLAMA_HOST": "host:2"}
    assert load(path, environ).backends[0].url == "http://file:1"
    assert load(path, {**environ, "GPUQUEUE_OLLAMA_URL": "ours:3"}).backends[0].url == "http://ours:3"


@pytest.mark.parametrize("address", ["ftp://host", "host:port", "http://", "two words", "host:99999"])
def test_an_address_that_is_none_is_refused_by_the_name_of_its_variable(write: Write, address: str) -> None:
    message = refused(write("[ollama]"), {"OLLAMA_HOST": address})
    assert message.startswith("environment variable OLLAMA_HOST")
    assert repr(address) in message
    assert "http://127.0.0.1:11434" in message


def test_arguments_go_before_the_environment_and_that_before_the_file(write: Write) -> None:
    path = write('synchronous = "normal"\n[gpu]\nbudget = "5GB"\nmargin = "1GB"\n[worker]\nthreads = 2\nlease = "5s"')
    environ = {
        "GPUQUEUE_SYNCHRONOUS": "full",
        "GPUQUEUE_GPU_BUDGET": "6GB",
        "GPUQUEUE_WORKER_THREADS": "3",
        "GPUQUEUE_WORKER_LEASE": "6s",
        "GPUQUEUE_RETENTION_COMPLETED": "forever",
        "GPUQUEUE_MAX_PAYLOAD": "2MiB",
    }
    config = load(path, environ, worker={"threads": 4, "grace": timedelta(minutes=2), "lease": None})
    assert config.synchronous == "full"
    assert config.devices == (DeviceSettings("gpu0", 6 * GB, margin_bytes=GB),)
    assert config.worker == WorkerSettings(threads=4, lease_s=6.0, grace_s=120.0)
    assert config.retention[State.COMPLETED] is None
    assert config.max_payload_bytes == 2 * 2**20


def test_the_environment_speaks_of_the_first_card(write: Write) -> None:
    path = write('[[gpu]]\nbudget = "5GB"\n[[gpu]]\nbudget = "6GB"')
    config = load(path, {"GPUQUEUE_GPU_BUDGET": "1GB", "GPUQUEUE_GPU_SLOTS": "2"})
    assert [device.budget_bytes for device in config.devices] == [GB, 6 * GB]
    assert [device.slots for device in config.devices] == [2, 1]


def test_how_long_a_model_stays_is_a_duration_or_left_to_what_is_learned(write: Write) -> None:
    for text, expected in (("", 0.0), ("keep_warm = '5m'", 300.0), ("keep_warm = 'auto'", "auto")):
        (device,) = Config.load(write(GPU + text), environ={}).devices
        assert device.keep_warm_s == expected


@pytest.mark.parametrize(
    ("ollamas", "parallel"),
    [
        ("[ollama]\nurl = 'a'", [3]),
        ("[ollama]\nurl = 'a'\nnum_parallel = 2", [2]),
        ("[[ollama]]\nname = 'a'\nurl = 'a'\ndevice = 'gpu0'\n[[ollama]]\nname = 'b'\nurl = 'b'\ndevice = 'gpu1'", [1, 3]),
    ],
    ids=["as many as a card has slots", "as configured", "as its own card has"],
)
def test_an_ollama_serves_as_many_requests_of_a_model_at_once_as(write: Write, ollamas: str, parallel: list[int]) -> None:
    config = load(write(f"[[gpu]]\nbudget = '5GB'\n[[gpu]]\nbudget = '6GB'\nslots = 3\n{ollamas}"))
    assert [backend.num_parallel for backend in config.backends] == parallel


def test_the_environment_can_configure_a_card_alone() -> None:
    config = load(None, {"GPUQUEUE_GPU_BUDGET": "5GB", "GPUQUEUE_GPU_DEVICE": "1"})
    assert config.devices == (DeviceSettings("gpu1", 5 * GB, index=1),)


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(write: Write) -> None:
    path = write("[worker]\nthreads = 2\n[ollama]")
    environ = {"GPUQUEUE_WORKER_THREADS": "", "GPUQUEUE_DATABASE": "", "OLLAMA_HOST": ""}
    config = load(path, environ)
    assert config.worker.threads == 2
    assert config.backends == (BackendSettings(),)


def test_a_queue_can_be_given_as_an_argument(write: Write) -> None:
    config = load(write("[queues.a]\nconcurrency = 1"), queues={"a": {"priority": 5}, "b": {"concurrency": 2}})
    assert config.queues == {
        "a": QueueSettings("a", concurrency=1, priority=5),
        "b": QueueSettings("b", concurrency=2),
    }


@pytest.mark.parametrize(
    ("environ", "hints"),
    [
        ({"GPUQUEUE_GPU_BUDGT": "5GB"}, ["GPUQUEUE_GPU_BUDGT", "did you mean 'GPUQUEUE_GPU_BUDGET'?"]),
        ({"GPUQUEUE_WORKER_COLOUR": "red"}, ["GPUQUEUE_WORKER_COLOUR", "GPUQUEUE_WORKER_THREADS"]),
        ({"GPUQUEUE_WORKER_THREADS": "many"}, ['environment variable GPUQUEUE_WORKER_THREADS = "many": must be an integer']),
        ({"GPUQUEUE_WORKER_LEASE": "5x"}, ["environment variable GPUQUEUE_WORKER_LEASE", "'5x'"]),
        ({"GPUQUEUE_SYNCHRONOUS": "ful"}, ["environment variable GPUQUEUE_SYNCHRONOUS", "did you mean 'full'?"]),
        ({"GPUQUEUE_DATABASE": "mysql://host/db"}, ["environment variable GPUQUEUE_DATABASE", "not an SQLite file"]),
        ({"GPUQUEUE_WORKER_THREADS": "9" * 5000}, ["environment variable GPUQUEUE_WORKER_THREADS", "must be an integer"]),
        ({"GPUQUEUE_MAX_PAYLOAD": "2GB"}, ["environment variable GPUQUEUE_MAX_PAYLOAD", "must be at most 1 GB"]),
        (
            {"GPUQUEUE_GPU_BUDGET": "5"},
            ["environment variable GPUQUEUE_GPU_BUDGET", "without a unit is in bytes", '"5GB" or "5B"'],
        ),
        ({"GPUQUEUE_GPU_MARGIN": "1GB"}, ["environment variable GPUQUEUE_GPU", "budget is missing"]),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(environ: dict[str, str], hints: list[str]) -> None:
    message = refused(None, environ)
    for hint in hints:
        assert hint in message


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("GPUQUEUE_WROKER_THREADS", "GPUQUEUE_WORKER_THREADS"),
        ("GPUQUEUE_DATABSE", "GPUQUEUE_DATABASE"),
        ("GPUQUEUE_MAXPAYLOAD", "GPUQUEUE_MAX_PAYLOAD"),
        ("GPUQUEUE_SERVICE_HOST", None),
        ("GPUQUEUE_PORT_6379_TCP", None),
        ("GPUQUEUE_TRACEBACK", None),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours_is_refused(variable: str, right: str | None) -> None:
    config = load(None, {variable: "4"})
    if right is None:
        GPUQueue(config=config, discover_plugins=False)
    else:
        with pytest.raises(ConfigurationError, match=rf"unknown environment variable {variable} \(did you mean {right}\?\)"):
            GPUQueue(config=config, discover_plugins=False)
    GPUQueue(config=load(None, {variable: ""}), discover_plugins=False)


def test_a_section_that_may_be_a_plugins_is_kept_and_a_value_is_not(write: Write) -> None:
    tables = load(write("[thermal]\nlimit = 83"), thermal={"limit": 84}).plugin_tables
    table = tables.table_of("thermal", among=["thermal"])
    assert table.data() == {"limit": 84}
    assert table.error("no").args == (f"{write('')}: thermal: no",)
    assert "unknown setting 'thermal'" in refused(write("thermal = 83"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1.5", 1.5), (3, 3.0), (0, "at least 0.5"), (9.5, "at most 9"), ("x", "a number"), (True, "a number")],
)
def test_a_number_is_read_within_its_bounds(given: Any, expected: Any) -> None:
    table = Table({"n": given}, key="t", origin=str, is_text=isinstance(given, str))
    if isinstance(expected, float):
        assert table.number("n", None, minimum=0.5, maximum=9) == expected
    else:
        with pytest.raises(ConfigurationError, match=f"t.n = .*: must be {expected}"):
            table.number("n", None, minimum=0.5, maximum=9)
    assert table.number("other", 7.0) == 7.0


@pytest.mark.parametrize(
    ("is_text", "advice"),
    [
        (False, ["an integer, without quotes; write n = 1", "true or false, without quotes; write n = true"]),
        (True, ["an integer; write GPUQUEUE_T_N=1", "true or false; write GPUQUEUE_T_N=true"]),
    ],
)
def test_what_to_write_is_worded_for_the_place_that_a_wrong_value_came_from(is_text: bool, advice: list[str]) -> None:
    where = "environment variable GPUQUEUE_T_N" if is_text else "gpuqueue.toml: t.n"
    table = Table({"n": "abc"}, key="t", origin=lambda dotted: where, is_text=is_text)
    for read, words in zip((lambda: table.integer("n", 3), lambda: table.flag("n", False)), advice, strict=True):
        with pytest.raises(ConfigurationError) as caught:
            read()
        assert str(caught.value) == f'{where} = "abc": must be {words}'
    with pytest.raises(ConfigurationError, match="write GPUQUEUE_T_N=0.5" if is_text else "write n = 0.5"):
        table.number("n", 1.0, minimum=0.5)


def test_a_wrong_argument_is_refused_by_its_name(write: Write) -> None:
    assert "argument databse" in refused(None, databse="x.db")
    assert "did you mean 'database'?" in refused(None, databse="x.db")
    assert "argument worker.threads = 0" in refused(None, worker={"threads": 0})


GPU = '[gpu]\nbudget = "5GB"\n'


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ('databse = "x.db"', [": databse", "did you mean 'database'?"]),
        ('[gpu]\nbudgt = "5GB"', [": gpu.budgt", "did you mean 'budget'?"]),
        ("[gpu]", [": gpu: budget is missing", 'budget = "5GB"']),
        ("[[gpu]]\nbudget = '5GB'\n[[gpu]]\nmargin = '1GB'", ["gpu[1]: budget is missing"]),
        ("gpu = 5", ["gpu = 5", "a table, not a value", "[gpu]"]),
        ("[gpu]\nbudget = 0", [": gpu.budget = 0", 'budget = "5GB"']),
        ("[gpu]\nbudget = -1", [": gpu.budget", "cannot be negative"]),
        ('[gpu]\nbudget = "5,5GB"', [": gpu.budget", '"5.5GB"']),
        ('[gpu]\nbudget = "5G"', [": gpu.budget", '"5GB" (powers of 1000)']),
        ("[gpu]\nbudget = true", [": gpu.budget", "must be a size"]),
        (GPU + "slots = 0", [": gpu.slots = 0", "at least 1"]),
        (GPU + 'slots = "2"', [': gpu.slots = "2"', "must be an integer, without quotes"]),
        (GPU + "max_models = 1.5", [": gpu.max_models = 1.5", "must be an integer"]),
        (GPU + "max_models = true", [": gpu.max_models = true", "must be an integer"]),
        (GPU + "device = -1", [": gpu.device = -1", "index or UUID"]),
        (GPU + "device = ''", [": gpu.device", "index or UUID"]),
        (GPU + 'keep_warm = "5 minuts"', [": gpu.keep_warm", "'minuts'", "5m"]),
        (
            '[[gpu]]\nbudget = "5GB"\n[[gpu]]\ndevice = "gpu0"\nbudget = "5GB"',
            ["gpu[1]", "'gpu0' is already configured", "device ="],
        ),
        ("[ollama]\nurl = 5", [": ollama.url", "5 is not an Ollama address"]),
        ("[ollama]\nnum_parallel = 0", [": ollama.num_parallel = 0", "at least 1"]),
        ("[ollama]\nconnect = '0s'", [": ollama.connect", "must be greater than 0"]),
        ("[ollama]\nconect = '1s'", [": ollama.conect", "did you mean 'connect'?"]),
        ("[[worker]]\nthreads = 1", ["only [[gpu]] and [[ollama]] can be given more than once"]),
        ("[[ollama]]\nurl = 'h'\n[[ollama]]\nurl = 'i'", [": ollama[0]", "each needs its own name"]),
        ("[[ollama]]\nname = 'a'\nurl = 'h'\n[[ollama]]\nname = 'ollama'", [": ollama[1]", "other than 'ollama'"]),
        ("[[ollama]]\nname = 'a'\nurl = 'h'\n[[ollama]]\nname = 'a'\nurl = 'i'", ["the Ollama 'a' is already configured"]),
        ("[[ollama]]\nname = 'a'\nurl = 'h'\n[[ollama]]\nname = 'b'", [": ollama[1]: url is missing"]),
        ("[gpu]\nbudget = '1GB'\n[ollama]\ndevice = 'gpu1'", [': ollama.device = "gpu1"', "Devices: gpu0"]),
        ("[queues.a]\nbackend = 'desk'", [': queues.a.backend = "desk"', '"ollama", "none"']),
        ("placement = 'tight'", [': placement = "tight"', '"pack", "spread"']),
        ("[models]\na = 5", [": models.a = 5", "a table, not a value"]),
        ("[models.a]", [": models.a: vram is missing", 'vram = "4.5GB"']),
        ("[models.a]\nvram = 0", [": models.a.vram = 0", "must be greater than 0"]),
        ("[models.qwen2.5]\nvram = '1GB'", [": models.qwen2.5", '[models."qwen2.5"]']),
        ("[models.a]\nvram = '1GB'\noptions = 5", [": models.a.options = 5", "num_ctx"]),
        ("[models.a]\nvram = '1GB'\noptions = { when = 2025-01-01 }", [": models.a.options", "JSON"]),
        ("[models.a]\nvram = '1GB'\noptions = { x = nan }", [": models.a.options", "JSON"]),
        (
            GPU + '[models."big:70b"]\nvram = "40GB"',
            [': models."big:70b".vram = "40GB"', "the model fits no device", "5 GB (gpu0)"],
        ),
        ("[queues]\na = 1", [": queues.a = 1", "a table, not a value"]),
        ('[queues.""]', [": queues", "a name cannot be empty"]),
        ("[queues.a]\nconcurency = 1", [": queues.a.concurency", "did you mean 'concurrency'?"]),
        ("[queues.a]\nconcurrency = 0", [": queues.a.concurrency = 0", "gpuqueue pause a"]),
        ("[queues.a]\ngpu = true", [": queues.a: gpu = true", "[gpu]"]),
        ("[queues.a]\ngpu = 'yes'", [': queues.a.gpu = "yes"', "true or false"]),
        ("[queues.a]\nconcurrency = {x = 1}", [": queues.a.concurrency", "must be a value, not a table"]),
        ("[queues.a]\npause = '09:00-18:00'", [": queues.a.pause", 'pause = ["09:00-18:00"]']),
        ("[queues.a]\npause = [9]", [": queues.a.pause = [9]", "must be a list of strings"]),
        ("[queues.a]\npause = ['9-18']", [": queues.a.pause", "invalid window '9-18'", "mon-fri 09:00-18:00"]),
        ("[queues.a]\npause = ['09:00-09:00']", [": queues.a.pause", "use 00:00-24:00"]),
        ("[queues.a]\ntimezone = 'Asia/Bankok'", [": queues.a.timezone", "did you mean 'Asia/Bangkok'?"]),
        ("[queues.a]\ntimezone = 7", [": queues.a.timezone = 7", "must be a non-empty string"]),
        ("[queues.a]\nwhen_unavailable = 'rejct'", [": queues.a.when_unavailable", "did you mean 'reject'?"]),
        ("[queues.a]\nretry_every = '0s'", [": queues.a.retry_every", "must be greater than 0"]),
        ("[queues.a]\nmax_attempts = 0", [": queues.a.max_attempts = 0", "at least 1"]),
        ("[queues.a]\nbackend = 'olama'", [": queues.a.backend", "did you mean 'ollama'?"]),
        ("[queues.a]\nyields_to = ['a']", [": queues.a.yields_to", "cannot yield to itself"]),
        (
            "[queues.ai-batch]\nyields_to = ['ai-realtme']\n[queues.ai-realtime]",
            [": queues.ai-batch.yields_to", "did you mean 'ai-realtime'?", "ai-batch, ai-realtime"],
        ),
        (
            "[queues.a]\nyields_to = ['b']\n[queues.b]\nyields_to = ['d', 'c']\n[queues.c]\nyields_to = ['a']\n[queues.d]",
            [": queues.a.yields_to", "a → b → c → a"],
        ),
        ("[worker]\nthreads = 0", [": worker.threads = 0", "at least 1"]),
        ("[worker]\nlease = '0s'", [": worker.lease", "must be greater than 0"]),
        ("[worker]\nlease = inf", [": worker.lease", "must be a finite number"]),
        ("[worker]\nlese = '5s'", [": worker.lese", "did you mean 'lease'?"]),
        ("[retention]\ncompletd = '5d'", [": retention.completd", "did you mean 'completed'?"]),
        ("[retention]\ncompleted = 'ever'", [": retention.completed", 'or "forever"']),
        ("[plugins]\nblocked = []", [": plugins.blocked", "did you mean 'block'?"]),
        ("[plugins]\nblock = 'windows'", [": plugins.block", "must be a list of strings"]),
        ("synchronous = 'off'", [": synchronous", '"normal", "full"']),
        ("max_payload = '1XB'", [": max_payload", "'xb'"]),
        ("database = 5", [": database = 5", "sqlite:///gpuqueue.db"]),
        ("database = ':memory:'", [": database", "in memory"]),
        ("database = 'postgresql://host/db'", [": database", "not an SQLite file"]),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_key(write: Write, text: str, hints: list[str]) -> None:
    path = write(text)
    message = refused(path)
    assert message.startswith(str(path))
    for hint in hints:
        assert hint in message


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("[gpu]\nbudget = 5GB", ["line 2, column 11", "in: budget = 5GB", 'budget = "5GB"']),
        ("[models.gemma4:e4b]", ["line 1, column 15", '[models."gemma4:e4b"]']),
        ("a = 'x", ["end of document"]),
        ('[gpu]\nbudget = "5GB"\n[gpu]\nmargin = "1GB"', ["line 3", "is there twice", "Only [[gpu]] and [[ollama]]"]),
        ("[queues.a]\ngpu = true\ngpu = false", ["is there twice"]),
        ('gpu = { budget = "5GB" }\n[gpu]\nslots = 1', ["is there twice"]),
    ],
)
def test_broken_toml_is_shown_with_line_and_column(write: Write, text: str, hints: list[str]) -> None:
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path} is not valid TOML")
    for hint in hints:
        assert hint in message


def test_a_number_that_is_too_long_is_no_traceback(write: Write) -> None:
    assert "a number of too many digits" in refused(write("max_payload = " + "9" * 5000))


def test_a_byte_order_mark_is_no_error(write: Write) -> None:
    assert load(write("\ufeffsynchronous = 'full'")).synchronous == "full"


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    missing = refused(tmp_path / "none.toml")
    assert f"no configuration file at '{tmp_path}/none.toml'" in missing
    assert "gpuqueue init" in missing
    assert f"{str(tmp_path)!r} is a folder" in refused(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# caf\xe9")
    assert "is not UTF-8 text" in refused(latin)
    below_a_file = refused(latin / "gpuqueue.toml")
    assert "cannot be read: Not a directory" in below_a_file


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_forbidden_file_is_explained(write: Write) -> None:
    path = write("")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refused(path)


def test_a_database_is_relative_to_the_file_that_names_it(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = write('database = "data/jobs.db"')
    assert load(path).database == f"sqlite:///{tmp_path}/data/jobs.db"
    assert load(Path("../gpuqueue.toml")).database == f"sqlite:///{tmp_path}/data/jobs.db"
    assert load(path, {"GPUQUEUE_DATABASE": "env.db"}).database == f"sqlite:///{here}/env.db"
    assert load(path, {"GPUQUEUE_DATABASE": "env.db"}, database=Path("arg.db")).database == f"sqlite:///{here}/arg.db"
    assert load(path, database="data/jobs.db").database == f"sqlite:///{here}/data/jobs.db"
    assert load(None).database == f"sqlite:///{here}/gpuqueue.db"
    assert Config.default("x.db", environ={}).database == f"sqlite:///{here}/x.db"


def test_the_default_configuration_listens_to_the_environment(tmp_path: Path) -> None:
    config = Config.default(tmp_path / "x.db", environ={"GPUQUEUE_WORKER_THREADS": "2", "GPUQUEUE_DATABASE": "y.db"})
    assert config == Config(database=f"sqlite:///{tmp_path}/x.db", worker=WorkerSettings(threads=2))


def test_a_configuration_is_found_by_argument_variable_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config.find(None, {}) is None
    (tmp_path / "gpuqueue.toml").touch()
    assert Config.find(None, {}) == Path("gpuqueue.toml")
    assert Config.find(None, {"GPUQUEUE_CONFIG": "other.toml"}) == Path("other.toml")
    assert Config.find("given.toml", {"GPUQUEUE_CONFIG": "other.toml"}) == Path("given.toml")
    assert Config.find(None, {"GPUQUEUE_CONFIG": ""}) == Path("gpuqueue.toml")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("jobs.db", "/base/jobs.db"),
        (Path("jobs.db"), "/base/jobs.db"),
        ("../jobs.db", "/jobs.db"),
        ("/srv/jobs.db", "/srv/jobs.db"),
        ("sqlite:///jobs.db", "/base/jobs.db"),
        ("sqlite:////srv/jobs.db", "/srv/jobs.db"),
        ("sqlite+pysqlite:////srv/jobs.db", "/srv/jobs.db"),
        ("/srv/my jobs #1.db", "/srv/my jobs #1.db"),
    ],
)
def test_a_database_is_a_path_or_a_url(given: str | Path, path: str) -> None:
    url = database_url(given, relative_to="/base")
    assert url == f"sqlite:///{path}"
    assert database_path(url) == Path(path)
    assert database_url(url, relative_to="/elsewhere") == url


def test_a_database_may_be_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert database_url("~/jobs.db", relative_to="/base") == "sqlite:////home/ada/jobs.db"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (":memory:", "in memory"),
        ("sqlite://", "in memory"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite://jobs.db", "needs a third slash"),
        ("postgresql://host/jobs", "not an SQLite file"),
        ("sqlite:///jobs.db?mode=ro", "options after '?'"),
        ("file:jobs.db", "not a plain path"),
        ("", "does not name a file"),
    ],
)
def test_what_is_no_database_file_is_refused_with_the_reason(given: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        database_url(given, relative_to="/base")
    assert repr(given) in str(caught.value)
    assert hint in str(caught.value)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        database_url(tmp_path, relative_to="/")


def test_a_configuration_cannot_be_changed_but_replaced(write: Write) -> None:
    config = load(write(SCENARIO))
    assert replace(config, synchronous="full") != config
    with pytest.raises(AttributeError):
        config.synchronous = "full"  # type: ignore[misc]
