"""The shipped fixtures, as a plugin's author uses them: in a folder of their own, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpuqueue.plugins import Hold, hookimpl
from tests.processes import LONGEST_S

HOLDING = """\
import pytest
from gpuqueue.plugins import Hold, hookimpl

class Night:
    @hookimpl
    def configure(self, details):
        self.light = details.table.text("light", "", example='light = "moon"')

    @hookimpl
    def queue_hold(self, details):
        return Hold("night", f"by {self.light}") if details.queue.name == "mail" else None

@pytest.fixture
def gpuqueue_plugins():
    return {"night": Night()}

@pytest.fixture
def gpuqueue_toml():
    return '[night]\\nlight = "moon"\\n[queues.mail]\\n'

def test_it_holds(gpuqueue_db, run_worker_until_idle):
    gpuqueue_db.task(name="send", queue="mail")(print).enqueue()
    assert [reason.detail for reason in run_worker_until_idle(may_wait=True)[1].reasons] == ["by moon"]

def test_it_is_stuck(gpuqueue_db, run_worker_until_idle):
    gpuqueue_db.task(name="send", queue="mail")(print).enqueue()
    run_worker_until_idle()
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S)


@pytest.mark.parametrize("how", ["addopts", "conftest"])
def test_it_is_loaded_by_name_and_what_is_stuck_is_explained_without_a_traceback(pytester: pytest.Pytester, how: str) -> None:
    if how == "addopts":
        pytester.makeini("[pytest]\naddopts = -p gpuqueue.testing.pytest_plugin\nfilterwarnings = error\n")
    else:
        pytester.makeini("[pytest]\nfilterwarnings = error\n")
        pytester.makeconftest('pytest_plugins = ["gpuqueue.testing.pytest_plugin"]\n')
    pytester.makepyfile(HOLDING)
    ran = run_pytest(pytester.path)
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "1 job is unable to start:\nsend in mail, available: job 1: waiting\n  - night: by moon\n" in ran.stdout
    assert "Traceback" not in ran.stdout
    assert "idle.py" not in ran.stdout


def test_pytest_runs_that_do_not_ask_for_it_load_nothing_of_gpuqueue(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\ndef test_it():\n    assert not [name for name in sys.modules if name.startswith('gpuqueue')]\n"
    )
    ran = run_pytest(pytester.path)
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_fixtures_are_listed_with_what_they_are_for(pytester: pytest.Pytester) -> None:
    ran = run_pytest(pytester.path, "-p", "gpuqueue.testing.pytest_plugin", "--fixtures")
    for name in (
        "make_gpuqueue",
        "gpuqueue_db",
        "gpuqueue_eager",
        "gpuqueue_toml",
        "gpuqueue_plugins",
        "simulated_card",
        "ollama_server",
    ):
        described = ran.stdout.partition(f"\n{name} -- ")[2].splitlines()
        assert len(described) > 1, name
        assert described[1].startswith("    "), name
        assert "no docstring" not in described[1], name


# --- each fixture ---


def test_a_queue_object_sees_no_variable_but_the_tests_own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUQUEUE_DATABASE", str(pytester.path / "production.db"))
    monkeypatch.setenv("GPUQUEUE_WORKER_THREADS", "77")
    monkeypatch.setenv("OLLAMA_HOST", "production:1")
    pytester.makepyfile(
        "def test_it(gpuqueue_db, make_gpuqueue, monkeypatch, tmp_path):\n"
        "    monkeypatch.setenv('GPUQUEUE_WORKER_GRACE', '7s')\n"
        "    for gq in (gpuqueue_db, make_gpuqueue(), make_gpuqueue('[ollama]')):\n"
        "        assert gq.database == tmp_path / 'gpuqueue.db'\n"
        "        assert gq.config.worker.threads == 8\n"
        "    assert gq.config.backends[0].url == 'http://127.0.0.1:11434'\n"
        "    assert gq.config.worker.grace_s == 7\n"
    )
    ran = run_pytest(pytester.path, "-p", "gpuqueue.testing.pytest_plugin")
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert not (pytester.path / "production.db").exists()


def test_a_model_runs_on_the_simulated_card(make_gpuqueue, simulated_card, ollama_server, run_worker_until_idle):
    gq = make_gpuqueue(
        f'[gpu]\nbudget = "5GB"\n[ollama]\nurl = "{ollama_server.url}"\nsettle = "10ms"\n'
        '[models."gemma4:e4b"]\nvram = "4.5GB"\n[queues.ai]\ngpu = true\n'
    )
    job = gq.ollama.generate("gemma4:e4b", prompt="Hello", queue="ai", options={"num_predict": 3})
    assert run_worker_until_idle(gq) == {}
    assert job.result(timeout_s=0)["output_tokens"] == 3
    assert simulated_card.load_count == 1
    assert gq.view().devices["gpu0"].reading.name == simulated_card.name


def test_the_queue_object_is_closed_at_the_end(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "kept = []\n"
        "def test_one(gpuqueue_db):\n"
        "    gpuqueue_db.pause('default')\n"
        "    kept.append(gpuqueue_db)\n"
        "def test_two():\n"
        "    assert 'store' not in vars(kept[0])\n"
    )
    ran = run_pytest(pytester.path, "-p", "gpuqueue.testing.pytest_plugin")
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


def test_several_queue_objects_are_of_one_file(make_gpuqueue):
    class Always:
        @hookimpl
        def queue_hold(self, details):
            return Hold("always", "it is so")

    first, second = make_gpuqueue(), make_gpuqueue("[queues.mail]\n", plugins={"always": Always()})
    first.verb("one").enqueue()
    assert second.counts()["default"] == {"available": 1}
    assert (first.holds()["default"], [hold.reason for hold in second.holds()["default"]]) == ([], ["always"])
