"""A plugin of the old form, installed, works as before for one version, and the log says what to change."""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuqueue import Worker
from gpuqueue.cli import main
from gpuqueue.testing import run_until_idle
from gpuqueue.testing.queues import QueueMaker
from tests.processes import LONGEST_S

TOML = '[gpu]\nbudget = "5GB"\n[ollama]\nurl = "http://127.0.0.1:9"\n[queues.train]\ngpu = true\nbackend = "none"\n'
LATER = ". The old form stops working in the next version of gpuqueue"
EXECUTORS = "in register_executors, but details is now an object with backends, models and devices; write details."
DEVICES = "in register_devices, but details is now an object with devices and backends; write details."
COMMANDS = "in register_commands, but details is now an object with cli; write details.cli."

OLD = """\
from datetime import UTC, datetime
import click
from gpuqueue import hookimpl
from gpuqueue.plugins import Reading

class Shout:
    def __init__(self, found):
        self.found = found

    def run(self, context):
        return context.lease.arguments["text"].upper() + self.found

class Still:
    def read(self):
        return Reading(at=datetime.now(UTC), name="a still card", total_bytes=8 * 10**9, free_bytes=7 * 10**9)

@hookimpl
def register_executors(details):
    backends = [backend.name for backend in details["backends"]]
    return {"shout": Shout(f" {backends} {len(details['models'])} {details.get('devices', ())[0].name} {details.get('cards')}")}

@hookimpl
def register_devices(details):
    return {device.name: Still() for device in dict(details)["devices"]}

@hookimpl
def register_commands(details):
    details.add_command(click.Command("hello", callback=lambda: click.echo("hello")))

    @details.group("greet")
    def greet():
        pass

    @greet.command("again")
    def again():
        click.echo("hello again")
"""
NEW = (
    OLD.replace('details["backends"]', "details.backends")
    .replace("details['models']", "details.models")
    .replace("details.get('devices', ())", "details.devices")
    .replace("details.get('cards')", "None")
    .replace('dict(details)["devices"]', "details.devices")
    .replace("details.add", "details.cli.add")
    .replace("details.group", "details.cli.group")
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a distribution with the plugin `shout`, as pip would."""

    def install(source: str) -> None:
        module = f"shout_{uuid.uuid4().hex}"
        info = tmp_path / "shout-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gpuqueue]\nshout = {module}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)

    return install


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(
            OLD,
            [
                f"plugin 'shout' uses details as a mapping {DEVICES}devices{LATER}",
                f"plugin 'shout' uses details['backends'] {EXECUTORS}backends{LATER}",
            ],
            id="old",
        ),
        pytest.param(NEW, [], id="new"),
    ],
)
def test_its_executors_and_devices_work_and_it_is_warned_once_for_each_hook(
    install: Callable[[str], None], make_queue: QueueMaker, caplog: pytest.LogCaptureFixture, source: str, expected: list[str]
) -> None:
    install(source)
    gq = make_queue(TOML, discover_plugins=True)
    job = gq.verb("shout").enqueue(text="hey")
    run_until_idle(gq)
    assert job.result(timeout_s=0) == "HEY ['ollama'] 0 gpu0 None"
    assert gq.view().devices["gpu0"].reading.name == "a still card"
    assert [said for said in warnings(caplog) if "'shout'" in said] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(OLD, f"Warning: plugin 'shout' uses details.add_command {COMMANDS}add_command{LATER}\n", id="old"),
        pytest.param(NEW, "", id="new"),
    ],
)
def test_its_commands_work_and_the_command_line_prints_the_warning(
    install: Callable[[str], None], capsys: pytest.CaptureFixture[str], source: str, expected: str
) -> None:
    install(source)
    assert main(["hello"]) == 0
    assert capsys.readouterr() == ("hello\n", expected)
    assert main(["greet", "again"]) == 0
    assert capsys.readouterr() == ("hello again\n", expected)


def test_a_shell_that_completes_a_word_shows_no_warning(
    install: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(OLD)
    for name, value in {"_GPUQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": "gpuqueue hel", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    ran = subprocess.run([sys.executable, "-m", "gpuqueue"], capture_output=True, text=True, check=True, timeout=LONGEST_S)
    assert (ran.stdout, ran.stderr) == ("plain,hello\n", "")


@pytest.mark.parametrize(
    ("hook", "reads"),
    [
        ("register_executors", "details['cards']"),
        ("register_executors", "details.cards"),
        ("register_commands", "details.hello"),
    ],
)
def test_what_was_never_there_is_not_there_now(
    install: Callable[[str], None], make_queue: QueueMaker, caplog: pytest.LogCaptureFixture, hook: str, reads: str
) -> None:
    install(f"from gpuqueue import hookimpl\n@hookimpl\ndef {hook}(details):\n    {reads}\n")
    if hook == "register_commands":
        main(["--help"])
        assert "has no attribute 'hello'" in caplog.text
    else:
        with pytest.raises(Exception, match=r"plugin 'shout' failed in register_executors: (KeyError|AttributeError): .*cards"):
            Worker(make_queue(TOML, discover_plugins=True)).start()
    assert "old form" not in caplog.text
