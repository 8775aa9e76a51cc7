"""Whatever a task hands over, in whichever kind of runner and at whatever moment: its job ends, and no other notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuqueue import Discard, GPUQueue, Retry, Snooze, current_job
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.safe_text import forget_frames, safe_repr, safe_text, safe_trace
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.testing.idle import run_until_idle

CONFIGURATION = """
[gpu]
budget = "5GB"
margin = "1GB"
[queues.plain]
[queues.cards]
gpu = true
concurrency = 1
"""


class Mute:
    """An object with no text: each way to one raises."""

    def __init__(self, raises: BaseException) -> None:
        self._raises = raises

    def __str__(self) -> str:
        raise self._raises

    __repr__ = __str__


class MuteError(Exception):
    def __str__(self) -> str:
        return self.status  # type: ignore[attr-defined, no-any-return]


class BytesError(Exception):
    def __str__(self) -> str:
        text: Any = b"too many requests"
        return text  # type: ignore[no-any-return]


class LeavingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class NamelessMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class NamelessError(Exception, metaclass=NamelessMeta):
    pass


class NoReason(Discard):
    def __init__(self) -> None:
        Exception.__init__(self)


class LoudDict(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise SystemExit("no items")


class LoudList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        raise KeyboardInterrupt


class Shout(str):
    def isascii(self) -> bool:
        raise RuntimeError("no")

    def __str__(self) -> str:
        return self


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def raises(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def run() -> None:
        raise error()

    return run


def chained() -> BaseException:
    error = ValueError("a")
    error.__cause__ = KeyError("b")
    error.__cause__.__cause__ = error
    return error


FAR = datetime.max.replace(tzinfo=UTC)
ODD_TEXTS = ("", "\ud83d", "caf\udce9.pdf", "\x00", "x" * 100_000, "é" * 5000, "\r\n\x1b[31m")
ODD: dict[str, Callable[[], Any]] = {
    # errors
    "an error without a text": raises(MuteError),
    "an error that gives bytes": raises(BytesError),
    "an error that exits when shown": raises(LeavingError),
    "an error of a class without a name": raises(NamelessError),
    "an error of 18 MB": raises(lambda: ValueError("x" * 18_000_000)),
    "an error with half a character": raises(lambda: ValueError("\ud83d")),
    "an error that causes itself": raises(chained),
    "a group of errors": raises(lambda: ExceptionGroup("several", [MuteError(), BytesError()])),
    "SystemExit": raises(lambda: SystemExit("leaving")),
    "KeyboardInterrupt": raises(KeyboardInterrupt),
    "GeneratorExit": raises(GeneratorExit),
    "CancelledError": raises(asyncio.CancelledError),
    "MemoryError": raises(MemoryError),
    "RecursionError": raises(RecursionError),
    "StopIteration": raises(StopIteration),
    # verdicts
    "Discard of an error": raises(lambda: Discard(KeyError("order 7"))),  # type: ignore[arg-type]
    "Discard of something mute": raises(lambda: Discard(Mute(RuntimeError("no")))),  # type: ignore[arg-type]
    "Discard with a code that is no text": raises(lambda: Discard("no", code=7)),  # type: ignore[arg-type]
    "Discard with half a character": raises(lambda: Discard("\ud83d", code="\udce9")),
    "Discard without its parts": raises(NoReason),
    "Snooze for something mute": raises(lambda: Snooze("1h", reason=Mute(ValueError()), waiting_for=Mute(ValueError()))),  # type: ignore[arg-type]
    "Snooze until the end of times": raises(lambda: Snooze(until=FAR)),
    "Retry at the end of times": raises(lambda: Retry(at=FAR - timedelta(days=1), reason=["x"])),  # type: ignore[arg-type]
    "Retry after ages": raises(lambda: Retry(after=1e300)),
    # results
    "a result without JSON": lambda: object(),
    "a deep result": lambda: nested(100_000),
    "a result that raises": lambda: LoudDict(a=1),
    "a result that interrupts": lambda: LoudList([1]),
    "a result that is mute": lambda: {"a": Mute(SystemExit())},
    "a result with half a character": lambda: {"\ud83d": "\udce9"},
    "a result without numbers": lambda: [float("nan")],
    "figures that are none": lambda: {"output_tokens": [1], "load_s": "long", "generate_s": {}, "spilled_bytes": None},
    # output
    "odd words": lambda: [current_job().emit(text) for text in ODD_TEXTS] and None,
    "odd lines": lambda: [current_job().log(line) for line in (*ODD_TEXTS, Mute(SystemExit()), b"\xff", Shout("x"))] and None,
    "odd notes": lambda: [current_job().progress(0.5, note=note) for note in (*ODD_TEXTS, Mute(KeyError()))] and None,  # type: ignore[arg-type]
    "words that are no text": lambda: current_job().emit(Mute(ValueError("no"))),  # type: ignore[arg-type]
    "a text with methods of its own": lambda: current_job().emit(Shout("x")),
    "no fraction": lambda: current_job().progress(Mute(ValueError("no"))),  # type: ignore[arg-type]
}


@pytest.fixture
def gq(tmp_path: Any) -> Iterator[GPUQueue]:
    (tmp_path / "gpuqueue.toml").write_text(f'database = "sqlite:///{tmp_path}/q.db"\n{CONFIGURATION}')
    with simulated_nvml(SimulatedCard(speed=1000)):
        gq = GPUQueue.from_config(tmp_path / "gpuqueue.toml", discover_plugins=False)
        yield gq
        gq.close()


def kinds(gq: GPUQueue, run: Callable[[str], Any]) -> dict[str, Any]:
    """A task of each kind that runs in a worker's own process; each calls `run`."""

    @gq.task(queue="plain")
    def in_a_thread(what: str) -> Any:
        return run(what)

    @gq.task(queue="plain")
    async def on_the_loop(what: str) -> Any:
        return run(what)

    @gq.task(queue="cards", vram="1GB")
    def on_a_card(what: str) -> Any:
        return run(what)

    return {"thread": in_a_thread, "loop": on_the_loop, "card": on_a_card}


@pytest.mark.parametrize("kind", ["thread", "loop", "card"])
def test_odd_things_end_their_own_job_and_no_other(gq: GPUQueue, kind: str) -> None:
    task = kinds(gq, lambda what: ODD[what]() if what else "sound")[kind]
    odd, sound = {}, []
    for what in ODD:
        odd[what] = task.using(max_attempts=1).enqueue(what=what)
        sound.append(task.enqueue(what=""))
    run_until_idle(gq, may_wait=True)  # some are postponed, as they asked
    assert [job.refresh().state for job in sound] == ["completed"] * len(sound)
    stuck = {what: str(job.state) for what, job in odd.items() if job.refresh().state not in (*FINISHED, State.RETRYABLE)}
    assert not stuck
    assert not any(device.reservations for device in gq.view().devices.values())
    for job in odd.values():  # whatever it was, it can be shown
        assert str(job.record) and "".join(job.explain().lines()).encode()
        job.error is None or f"{job.error.code}{job.error.message}{job.error.traceback}".encode()


def test_the_texts_that_are_kept_are_bounded_and_tell_what_was_cut(gq: GPUQueue) -> None:
    job = kinds(gq, lambda what: ODD[what]())["thread"].using(max_attempts=1).enqueue(what="an error of 18 MB")
    run_until_idle(gq)
    assert len(job.refresh().error.message) < 5000 and "(18,000,000 characters)" in job.error.message
    assert len(job.error.traceback) < 10_000 and "in run" in job.error.traceback


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=4),
    max_leaves=8,
)
TEXT = st.text(st.characters())


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GPUQueue, dict[str, Any], dict[str, Any]]]:
    """A queue object and its tasks; each hands over what the test puts into the dict under its job's key."""
    folder = tmp_path_factory.mktemp("played")
    (folder / "gpuqueue.toml").write_text(f'database = "sqlite:///{folder}/q.db"\n{CONFIGURATION}')
    handed: dict[str, Any] = {}

    def run(what: str) -> Any:
        how, value = handed[what]
        job = current_job()
        if how == "result":
            return value
        if how == "progress":
            return job.progress(value)
        if how in ("log", "emit"):
            return getattr(job, how)(value)
        if how == "note":
            return job.progress(0.5, note=value)
        raise {"error": RuntimeError, "reason": Discard, "code": lambda code: Discard("no", code=code)}[how](value)

    with simulated_nvml(SimulatedCard(speed=1000)):
        gq = GPUQueue.from_config(folder / "gpuqueue.toml", discover_plugins=False)
        yield gq, kinds(gq, run), handed
        gq.close()


HOW = ("result", "progress", "log", "emit", "note", "error", "reason", "code")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(HOW), anything | TEXT), min_size=1, max_size=12), st.sampled_from(["thread", "loop"]))
def test_any_object_ends_its_own_job_and_no_other(played: Any, values: list[tuple[str, Any]], kind: str) -> None:
    gq, tasks, handed = played
    jobs = []
    for number, value in enumerate([*values, ("result", "sound")]):
        handed[str(number)] = value
        jobs.append(tasks[kind].using(max_attempts=1).enqueue(what=str(number)))
    run_until_idle(gq)
    assert all(job.refresh().state in FINISHED for job in jobs)
    assert jobs[-1].state == "completed"
    for job in jobs:
        str(job.error).encode()
        [line.message.encode() for line in job.logs()]


@given(anything | TEXT)
def test_a_safe_text_can_be_stored(value: Any) -> None:
    safe_text(value).encode()
    safe_repr(value).encode()


@pytest.mark.parametrize("error", [MuteError(), BytesError(), LeavingError(), NamelessError("x"), chained(), Mute(SystemExit())])
def test_no_object_keeps_from_being_worded(error: Any) -> None:
    assert safe_text(error)
    assert safe_repr(error)
    if isinstance(error, BaseException):
        assert safe_trace(error)
        forget_frames(error)
        assert error.__traceback__ is None
