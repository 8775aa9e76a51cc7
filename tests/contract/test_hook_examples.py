"""Every hook's example runs as it stands: its plugin in a real queue, with a simulated card and Ollama, and what it asserts."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpuqueue import GPUQueue, JobHandle, Worker, current_job, hookimpl, plugins
from gpuqueue.cli import main
from gpuqueue.contract.hookspecs import EVENT_NAMES, HOOK_NAMES
from gpuqueue.domain.explanation import Explanation
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.store.sqlite import claims
from gpuqueue.testing import run_until_idle, wait_until
from gpuqueue.testing.queues import QueueMaker
from tests.contract.readme import HOOKS, example_of, hook_functions, hooks_page, kind_of

TOML = """\
[gpu]
budget = "5GB"
[ollama]
url = "{url}"
connect = "2m"
probe_every = "100ms"
[queues.mail]
[queues.train]
gpu = true
backend = "none"
[queues.ai]
gpu = true
retry_every = "1s"
when_unavailable = "retry"
"""


def send() -> str:
    return "sent"


def learn() -> str:
    return "learnt"


def fail() -> None:
    raise ValueError("as the example wants it")


def report() -> None:
    current_job().progress(0.5, note="half")


def stay() -> None:
    """Go on until asked to stop, the first time."""
    while current_job().id not in _stayed:
        try:
            current_job().check()
        except BaseException:
            _stayed.add(current_job().id)
            raise
        _pause.wait(0.01)


_stayed: set[int] = set()
_pause = threading.Event()


def run(gq: GPUQueue) -> dict[int, Explanation]:
    return run_until_idle(gq, may_wait=True)


def claim_and_die(gq: GPUQueue, job: JobHandle, *, worker: str) -> None:
    """Leave a job running under a worker of another host, whose lease is so short that it is silent at once."""
    now_us = gq.now_us()
    gq.store.workers.register(
        worker,
        host="elsewhere",
        pid=1,
        runtime_dir="/nowhere",
        queues=None,
        digest="",
        expires_at_us=now_us - 1,
        now_us=now_us - 1,
    )
    gq.store.engine.writer.run(lambda connection: connection.execute(claims.TAKE, (worker, now_us, job.id)) and None)


def command_line(*words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(words) == 0
    return printed.getvalue()


class Beside:
    """A plugin beside the one of an example, that notes what it gets in the same hook and passes."""

    def __init__(self, hook: str) -> None:
        self.got: list[object] = []
        setattr(self, hook, hookimpl(lambda details: self.got.append(details)))


@pytest.fixture
def beside() -> dict[str, object]:
    """The plugins beside the one of an example, none unless a test adds some: {name: plugin}."""
    return {}


@pytest.fixture
def stage(
    beside: dict[str, object],
    make_queue: QueueMaker,
    simulated_card: SimulatedCard,
    ollama_server: OllamaSimulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, Any]]:
    """The names that examples may use beside those of `gpuqueue.plugins`."""
    for name in ("EVERY_S", "READING_EVERY_S", "RETENTION_EVERY_S"):
        monkeypatch.setattr(f"gpuqueue.worker.maintenance.{name}", 0.05)
    _stayed.clear()

    def queue_with(plugin: object, toml: str = "") -> GPUQueue:
        gq = make_queue(TOML.format(url=ollama_server.url) + toml, plugins={"example": plugin, **beside})
        for function, queue in ((send, "mail"), (fail, "mail"), (report, "mail"), (learn, "train"), (stay, "train")):
            gq.task(name=function.__name__, queue=queue, preemptible=function is stay)(function)
        run(gq)
        return gq

    def install(plugin: object) -> None:
        module = ModuleType("example_of_a_plugin")
        vars(module).update({"example": plugin, **beside})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        info = tmp_path / "example-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
        entries = "".join(f"{name} = {module.__name__}:{name}\n" for name in ("example", *beside))
        (info / "entry_points.txt").write_text(f"[gpuqueue]\n{entries}")
        monkeypatch.syspath_prepend(str(tmp_path))

    return {
        **{name: getattr(plugins, name) for name in plugins.__all__},
        "Worker": Worker,
        "card": simulated_card,
        "claim_and_die": claim_and_die,
        "command_line": command_line,
        "install": install,
        "ollama": ollama_server,
        "queue_with": queue_with,
        "run": run,
        "until": wait_until,
    }


FUNCTIONS = dict(hook_functions())


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_an_example_runs_and_what_it_asserts_is_so(name: str, beside: dict[str, object], stage: dict[str, Any]) -> None:
    beside["beside"] = plugin = Beside(name)
    example = example_of(FUNCTIONS[name])
    exec(compile(example, f"the example of {name}", "exec"), stage)
    kind = kind_of(FUNCTIONS[name])
    assert plugin.got
    assert [details for details in plugin.got if not isinstance(details, kind)] == []


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_an_example_fails_without_its_hook(name: str, stage: dict[str, Any]) -> None:
    example = example_of(FUNCTIONS[name])
    without = example.replace(f"    @hookimpl\n    def {name}(self, details):", "    def of_no_hook(self, details):")
    assert without != example
    stage["run"] = lambda gq: run_until_idle(gq, may_wait=True, timeout_s=1.0)
    stage["until"] = lambda condition: wait_until(condition, timeout_s=0.5)
    with pytest.raises((AssertionError, AttributeError, LookupError, TimeoutError, plugins.ConfigurationError)):
        exec(compile(without, f"the example of {name}, without it", "exec"), stage)


def test_the_page_of_the_hooks_is_that_of_the_code() -> None:
    assert HOOKS.read_text() == hooks_page(), "run: uv run python -m tests.contract.readme"


def test_the_page_has_every_hook_with_what_it_gets() -> None:
    page = HOOKS.read_text()
    assert [name for name in HOOK_NAMES if f"\n### {name}\n" not in page] == []
    assert "`queue: QueueSettings`" in page
    assert page.count("```python\n") == len(HOOK_NAMES)
    assert [name for name in EVENT_NAMES if f"{name}(details: Event) -> None" not in page] == []
