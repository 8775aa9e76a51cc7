"""An option means the same in the file and in code: what one refuses, the other does, and both name it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import Config, ConfigurationError, GPUQueue, Rate, UsageError, WindowRule, Worker
from gpuqueue.config.shared import settings_from_shared, shared_settings
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.testing.views import NOW

CARD = '[gpu]\nbudget = "5GB"\n[ollama]\n[queues.first]\n'
OPTIONS = {field.name: field.name.removesuffix("_s") for field in fields(QueueSettings) if field.name != "name"}


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


ODD: list[Any] = [
    *(True, False, 0, 1, 5, -1, 1_000_000, 1_000_001, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400),
    *(0.0, 0.5, 1.0, -1.0, 1e300, math.inf, -math.inf, math.nan),
    *("", " ", "1", "-1", "5m", "10/m", "low", "no", "yes", "none", "true", "first", "mail", "nobody", "UTC", "drain", "reject"),
    *("09:00-18:00", "25:00-26:00", "x" * 5000, "\0", "é", "../../etc/passwd"),
    *([], [""], [5], ["first"], ["mail"], ["first", "first"], ["09:00-18:00"], [[]], [True], [None], [{}], {}, {"at": 1}),
    *((), ("first",), {"first"}, b"5m", 1j, object, len, Unspeakable(), [Unspeakable()], "\ud800", ["\ud800"], 10**5000),
    *(timedelta(minutes=5), timedelta(days=-1), timedelta.max, NOW, datetime.max, Rate(1, 60.0), Rate(0, 60.0), Rate(1, 0.0)),
    *(Rate(1, math.nan), Rate("1", "m"), Rate(2**63, 1.0), Rate(True, 1.0)),  # type: ignore[arg-type]
    *(WindowRule("09:00-18:00"), [WindowRule("09:00-18:00")], [WindowRule("09:00-18:00", 1)], [WindowRule("9", 1)]),
    *([WindowRule("09:00-18:00", 0)], [WindowRule("09:00-18:00", rate=Rate(0, 1.0))], [WindowRule(5, 1)]),  # type: ignore[arg-type]
]


def in_toml(value: Any) -> str | None:
    """How the file says a value; None for what it cannot say."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**4000 else None
    if isinstance(value, list):
        items = [in_toml(item) for item in value]
        return None if None in items else f"[{', '.join(filter(None, items))}]"
    if isinstance(value, str) and value.isprintable():
        return json.dumps(value, ensure_ascii=False)
    return None


def answer(read: Callable[[], QueueSettings]) -> QueueSettings | str:
    try:
        return read()
    except UsageError as error:
        return f"refused: {error}"


def in_file(folder: Path, key: str, text: str) -> QueueSettings | str:
    file = folder / "gpuqueue.toml"
    file.write_text(f"{CARD}[queues.mail]\n{key} = {text}\n", encoding="utf-8")
    return answer(lambda: Config.load(file, environ={}).queues["mail"])


def in_code(config: Config, option: str, value: Any) -> QueueSettings | str:
    gq = GPUQueue(config=config, discover_plugins=False)
    found = answer(lambda: gq.queue("mail", **{option: value}))
    if isinstance(found, QueueSettings):
        shared = json.loads(json.dumps(shared_settings(gq.own_settings())))
        assert settings_from_shared(shared).queues["mail"] == found, "another worker reads the same"
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_a_queue_takes_and_refuses_the_same_in_the_file_and_in_code(tmp_path: Path, option: str) -> None:
    file = tmp_path / "gpuqueue.toml"
    file.write_text(CARD, encoding="utf-8")
    config = Config.load(file, environ={})
    for value in ODD:
        code = in_code(config, option, value)
        if isinstance(code, str):
            assert f"queue 'mail': {option}" in code or "unknown queue" in code
        text = in_toml(value)
        is_worded_otherwise = (option.endswith("_s") or option == "rate") and isinstance(value, str)
        if text is not None and not is_worded_otherwise:
            said = in_file(tmp_path, OPTIONS[option], text)
            assert isinstance(said, str) if isinstance(code, str) else said == code, (text, said, code)


@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        ("timeout_s", "5m", "must be a number of seconds; write timeout_s=300"),
        ("retry_every_s", "never", "must be a number of seconds; write retry_every_s="),
        ("rate", "10/m", "must be a Rate; write rate=Rate(count=10, per_s=60.0)"),
        ("windows", "09:00-18:00", "must be a list of WindowRule"),
        ("priority", "low", "must be an integer"),
        ("gpu", "no", "must be true or false"),
        ("max_attempts", 2**63, "must be at most 1000000"),
    ],
)
def test_what_is_written_as_in_the_file_is_refused_with_what_to_write(option: str, value: Any, right: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        GPUQueue("queue.db", discover_plugins=False).queue("mail", **{option: value})
    assert str(refused.value).startswith(f"queue 'mail': {option} = ")
    assert right in str(refused.value)


def test_an_option_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"queue 'mail': unknown option 'timeout' \(did you mean 'timeout_s'"):
        GPUQueue("queue.db", discover_plugins=False).queue("mail", timeout=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["", " ", 5, None, b"mail", "\ud800", ["mail"], True])
def test_a_queue_needs_a_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="a queue's name must be a non-empty string"):
        GPUQueue("queue.db", discover_plugins=False).queue(name)


def test_a_queue_that_is_changed_keeps_what_is_not_given() -> None:
    gq = GPUQueue("queue.db", discover_plugins=False)
    first = gq.queue("mail", rate=Rate(10, 60.0), timeout_s=5, windows=(WindowRule("09:00-18:00", 1, Rate(1, 2.0)),), priority=3)
    assert gq.queue("mail", timeout_s=None, concurrency=2) == QueueSettings(
        "mail", concurrency=2, rate=first.rate, windows=first.windows, priority=3
    )


def test_a_gpu_queue_in_code_has_the_backend_that_one_in_the_file_has(tmp_path: Path) -> None:
    file = tmp_path / "gpuqueue.toml"
    file.write_text(f"{CARD}[queues.mail]\ngpu = true\n", encoding="utf-8")
    gq = GPUQueue(config=Config.load(file, environ={}), discover_plugins=False)
    assert gq.queue("other", gpu=True).backend == gq.own_settings().queues["mail"].backend == "ollama"
    assert gq.queue("mail", backend="none").backend == ""
    assert gq.queue("mail", concurrency=1).backend == ""
    with pytest.raises(ConfigurationError, match="queue 'ai': backend is 'ollama': no Ollama is configured"):
        GPUQueue("queue.db", discover_plugins=False).queue("ai", backend="ollama")
    with pytest.raises(ConfigurationError, match="no card is configured"):
        GPUQueue("queue.db", discover_plugins=False).queue("ai", gpu=True)


# --- the options of jobs ---

JOB_OPTIONS = ("delay", "at", "priority", "queue", "max_attempts", "timeout", "expires_in", "vram", "device", "fallback", "tags")
TASK_OPTIONS = ("name", "retry_on", "discard_on", "backoff", "isolate", "preemptible")


@pytest.mark.parametrize("option", JOB_OPTIONS)
def test_a_jobs_option_is_refused_by_name_or_its_job_can_be_shown(make_queue: Callable[..., GPUQueue], option: str) -> None:
    gq = make_queue()
    task = gq.task(name="work")(top_level)
    for name in ("first", "mail"):
        gq.queue(name)
    stored = []
    for value in ODD:
        try:
            handle = task.using(**{option: value}).enqueue()  # type: ignore[misc]
        except UsageError as error:
            assert option in str(error)
        else:
            assert str(handle.explain())
            stored.append(handle.id)
    assert [job.id for job in gq.jobs(limit=len(ODD))] == stored[::-1]


@pytest.mark.parametrize("option", TASK_OPTIONS)
def test_a_tasks_option_is_refused_by_name_or_the_task_can_be_enqueued(make_queue: Callable[..., GPUQueue], option: str) -> None:
    gq = make_queue()
    for value in ODD:
        try:
            task = gq.task(**{option: value})(top_level)
        except UsageError as error:
            assert option in str(error)
        else:
            assert task.enqueue().task == task.name


@pytest.mark.parametrize("option", ["required", "optional"])
def test_the_arguments_of_a_verb_are_names(make_queue: Callable[..., GPUQueue], option: str) -> None:
    gq = make_queue()
    for value in ("text", 5, [5], [""], [["text"]], b"text", True, Unspeakable()):
        with pytest.raises(UsageError, match=f"{option} must be a list of non-empty strings"):
            gq.verb("render.page", **{option: value})  # type: ignore[arg-type]
    assert gq.verb("render.page", **{option: ("text",)}).signature.allowed in (None, {"text"})


def test_the_numbers_of_a_worker_are_checked(make_queue: Callable[..., GPUQueue]) -> None:
    gq = make_queue()
    for value in (0, -1, 2**63, True, "8", 1.5, math.nan, [8]):
        for option in ("threads", "max_jobs"):
            with pytest.raises(UsageError, match=f"{option} must be an integer"):
                Worker(gq, **{option: value})  # type: ignore[arg-type]
    for names in ("mail", 5, [5], [""]):
        with pytest.raises(UsageError, match="queues must be a list of non-empty strings"):
            Worker(gq, queues=names)  # type: ignore[arg-type]


# --- numbers and ids in reads ---

IDS: list[Any] = [0, -1, 2**63, -(2**63), 10**400, 10**5000, True, "1", "x", 1.0, math.nan, None, b"1", [1], Unspeakable()]


def test_an_id_that_no_job_can_have_is_refused_with_a_sentence(make_queue: Callable[..., GPUQueue]) -> None:
    gq = make_queue()
    for job_id in [*IDS, 2**63 - 1, 1]:
        for read in (gq.job, gq.explain):
            with pytest.raises(UsageError, match=r"unknown job|a job's id must be an integer, not"):
                read(job_id)


def test_a_number_that_a_read_cannot_use_is_refused_by_name(make_queue: Callable[..., GPUQueue]) -> None:
    gq = make_queue()
    job = gq.task(name="work")(top_level).enqueue()
    follower = gq.follow("mirror")
    numbers = [value for value in IDS if value not in (0, None)]
    with gq.read() as reader:
        reads: dict[str, Callable[[Any], Any]] = {
            "limit": lambda value: gq.jobs(limit=value),
            "after": lambda value: gq.jobs(after=value),
            "after ": lambda value: job.logs(after=value),
            "limit ": lambda value: follower.read(limit=value),
            "limit  ": lambda value: reader.entries("default", "available", limit=value),
            "event_id": follower.advance,
            "a job's id": lambda value: reader.records([value]),
        }
        for name, read in reads.items():
            for value in numbers:
                with pytest.raises(UsageError, match=f"{name.strip()} must be an integer"):
                    read(value)


def test_a_wait_is_a_number_of_seconds(make_queue: Callable[..., GPUQueue]) -> None:
    job = make_queue().task(name="work")(top_level).enqueue()
    for value in ("5m", math.nan, True, [1], timedelta(minutes=5), b"1"):
        for wait in (job.result, lambda value: list(job.stream(value)), lambda value: list(job.watch(value))):
            with pytest.raises(UsageError, match="timeout_s must be a number of seconds or None"):
                wait(value)
    for value in (0, -1, -math.inf, -(10**400)):
        with pytest.raises(TimeoutError):
            job.result(value)


def top_level() -> None: ...
