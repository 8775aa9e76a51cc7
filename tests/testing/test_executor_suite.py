"""The suite for executors: gpuqueue's own pass it, and each of its tests finds the fault that it is there for."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from typing import Any

import pytest

from gpuqueue import current_job
from gpuqueue.contract.executor import AttemptContext
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import BackendUnavailable, ExecutionError
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.executors.callables import CallableExecutor, CoroutineExecutor
from gpuqueue.executors.ollama import Chat, Embed, Generate
from gpuqueue.executors.processes import Children, ProcessExecutor
from gpuqueue.testing import RecordedAttempt
from gpuqueue.testing.attempts import Bench
from gpuqueue.testing.executors import ExecutorSuite
from gpuqueue.testing.waiting import DEADLINE_S
from tests.executors.isolated_functions import speak_on

GEMMA = "gemma4:e4b"


async def speak_on_later(times: int, fails: bool = False) -> int:
    for number in range(times):
        current_job().emit(f"{number} ")
        await asyncio.sleep(0.001)
    if fails:
        raise LookupError("no more")
    return times


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- gpuqueue's own ---


class Speaking(ExecutorSuite):
    arguments = {"times": 3}
    endless = {"times": 1_000_000}
    failing = {"times": 3, "fails": True}
    emits = True


class TestPlainFunctions(Speaking):
    def make_executor(self):
        return CallableExecutor(speak_on)


class TestCoroutines(Speaking):
    def make_executor(self):
        return CoroutineExecutor(speak_on_later)


class TestProcesses(Speaking):
    def make_executor(self):
        self.children = Children()
        return ProcessExecutor(self.children, {}, module=speak_on.__module__, name="speak_on", lease_s=30, limit_bytes=10**6)

    def close_executor(self, executor):
        self.children.close()


class OnOllama(ExecutorSuite):
    """Each verb on a simulated Ollama; its result has more than the text, and all of it is JSON."""

    kind: Any = Generate
    failing = {"model": "never-heard-of", "prompt": "Hello"}
    emits = True
    backend = "ollama"
    placement = Placement("gpu0", 4_500_000_000)

    @pytest.fixture
    def executor(self, ollama_server):
        return self.kind(BackendSettings(url=ollama_server.url), {})

    def make_executor_without_backend(self):
        return self.kind(BackendSettings(url=closed_port()), {})


class TestGenerate(OnOllama):
    arguments = {"model": GEMMA, "prompt": "Hello", "options": {"num_predict": 3}}
    endless = {"model": GEMMA, "prompt": "Hello", "options": {"num_predict": 1_000_000}}


class TestChat(OnOllama):
    kind = Chat
    messages = [{"role": "user", "content": "Hello"}]
    arguments = {"model": GEMMA, "messages": messages, "options": {"num_predict": 3}}
    endless = {"model": GEMMA, "messages": messages, "options": {"num_predict": 1_000_000}}
    failing = {"model": "never-heard-of", "messages": messages}


class TestEmbed(OnOllama):
    kind = Embed
    arguments = {"model": "nomic-embed-text", "input": "Hello"}
    failing = {"model": "never-heard-of", "input": "Hello"}
    emits = False


# --- what each test finds ---


class Faulty:
    """Does what it should, but for one fault."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.attempts = 0

    def run(self, context: AttemptContext) -> Any:
        arguments = context.lease.arguments
        self.attempts += 1
        if self.fault == "leaves a thread":
            threading.Thread(target=let_go.wait, args=(20,), name="forgotten", daemon=True).start()
        if self.fault == "leaves a socket":
            kept.append(socket.socket())
        if self.fault == "breaks" and self.attempts > 1:
            raise RuntimeError("it is broken now")
        if "fails" in arguments:
            raise {"undocumented": Undocumented("odd"), "silent": Undocumented("")}.get(self.fault, ValueError("wrong"))
        while "endless" in arguments and self.fault != "ends by itself":
            if self.fault == "says nothing":
                let_go.wait(DEADLINE_S)
            elif self.fault == "swallows":
                try:
                    context.check()
                except BaseException:
                    return None
            elif self.fault == "fails when it is interrupted":
                try:
                    context.check()
                except BaseException as stop:
                    raise RuntimeError("interrupted") from stop
            else:
                context.check()
            time.sleep(0.001)
        if self.fault != "does not emit":
            context.emit("hello")
        return {1, 2} if self.fault == "not json" else {"text": "hello"}


class Undocumented(ExecutionError):
    code = ""


kept: list[socket.socket] = []
let_go = threading.Event()


@pytest.fixture(autouse=True)
def tidy():
    let_go.clear()
    yield
    let_go.set()
    while kept:
        kept.pop().close()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


class Suite(ExecutorSuite):
    endless = {"endless": True}
    failing = {"fails": True}
    emits = True
    backend = "shouter"

    def __init__(self, absent: Any = None) -> None:
        self.absent = absent

    def make_executor_without_backend(self):
        return self.absent


FAULTS = {
    "not json": ("test_its_result_is_json", "not JSON serializable"),
    "does not emit": ("test_what_it_says_goes_through_the_context", r"emits is True, but the attempt emitted \[\]"),
    "swallows": (
        "test_an_interruption_while_it_runs_ends_it",
        r"asked to stop \(cancelled\) and ended with None; it must let Atte",
    ),
    "fails when it is interrupted": (
        "test_an_interruption_before_it_begins_ends_it",
        r"ended with RuntimeError\('interrupted'\)",
    ),
    "ends by itself": ("test_an_interruption_while_it_runs_ends_it", "with the arguments `endless` ended by itself"),
    "says nothing": (
        "test_an_interruption_while_it_runs_ends_it",
        r"neither emitted anything nor checked .* Call context.check\(\)",
    ),
    "undocumented": ("test_a_failure_is_an_error_that_can_be_stored", "Undocumented"),
    "silent": ("test_a_failure_is_an_error_that_can_be_stored", "has no code or no message"),
    "breaks": ("test_it_runs_one_attempt_after_another", "it is broken now"),
    "leaves a thread": ("test_it_leaves_no_thread_and_no_connection_behind", "left behind: .*thread forgotten"),
    "leaves a socket": ("test_it_leaves_no_thread_and_no_connection_behind", "left behind: socket"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_found_by_the_test_for_it(bench, fault, monkeypatch):
    monkeypatch.setattr("gpuqueue.testing.executors.DEADLINE_S", 0.3)
    monkeypatch.setattr("gpuqueue.testing.waiting.wait_until.__defaults__", ("", 0.3))
    test, words = FAULTS[fault]
    given = {"executor": Faulty(fault), "bench": bench, "why": "cancelled"}
    function = getattr(Suite(), test)
    with pytest.raises((Exception, pytest.fail.Exception), match=f"(?s){words}"):
        function(**{name: given[name] for name in inspect.signature(function).parameters})


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (BackendUnavailable("nothing listens", backend="shouter"), None),
        (BackendUnavailable("nothing listens", backend="other"), "other"),
        (
            ConnectionRefusedError("nothing listens"),
            r"expected BackendUnavailable without its backend, not ConnectionRefusedError",
        ),
    ],
)
def test_an_absent_backend_must_be_told_by_its_name(bench, error, found):
    def fail(**arguments):
        raise error

    suite = Suite(CallableExecutor(fail))
    if found is None:
        suite.test_an_absent_backend_is_told_by_its_name(bench)
    else:
        with pytest.raises(AssertionError, match=found):
            suite.test_an_absent_backend_is_told_by_its_name(bench)


def test_a_suite_without_an_executor_says_what_to_write():
    with pytest.raises(NotImplementedError, match="ExecutorSuite must define the executor to test: def make_executor"):
        ExecutorSuite().make_executor()
    with pytest.raises(NotImplementedError, match="ExecutorSuite has a backend: define make_executor_without_backend"):
        ExecutorSuite().make_executor_without_backend()


# --- the attempt in a test's hands ---


def test_a_recorded_attempt_keeps_what_it_is_told():
    def work(name: str) -> str:
        job = current_job()
        job.progress(0.5, note="half")
        job.log("so far")
        job.emit("Hello ")
        job.emit(name)
        return f"{job.task} {job.queue} {job.attempt}/{job.max_attempts}"

    bench, attempt = Bench(), RecordedAttempt({"name": "Ana"}, task="greet", queue="mail", attempt=2, max_attempts=5)
    assert bench.start(CallableExecutor(work), attempt).result(timeout=DEADLINE_S) == ("greet mail 2/5", None)
    assert (attempt.emitted, attempt.logged, attempt.progressed) == (["Hello ", "Ana"], ["so far"], [(0.5, "half")])
    assert attempt.begun.is_set()
    bench.close()
