"""An application's own command line: every command works with its queue object and speaks of the program that it is."""

from __future__ import annotations

import click
import pytest

from gpuqueue import GPUQueue, hookimpl
from gpuqueue.cli import main
from gpuqueue.cli.session import AppSession
from gpuqueue.plugins import RegisterCommandsDetails


class Greeting:
    @hookimpl
    def register_commands(self, details: RegisterCommandsDetails) -> None:
        @details.cli.command("greet")
        def greet() -> None:
            click.echo("good morning")


@pytest.fixture
def own(tmp_path, monkeypatch, capfd):
    """Run words on the command line `flask gpuqueue` of an application whose queue is nowhere configured but in code."""
    monkeypatch.chdir(tmp_path)
    gq = GPUQueue(tmp_path / "app.db", plugins=[Greeting()], discover_plugins=False)

    @gq.task(name="send", queue="mail")
    def send(to: str) -> str:
        return f"sent to {to}"

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(words, session=AppSession(gq, "flask", "gpuqueue"))
        said = capfd.readouterr()
        return status, said.out, said.err

    return run


def test_a_job_of_the_applications_task_is_stored_explained_and_run(own):
    status, out, err = own("submit", "mail", "--task", "send", "--arg", "to=Ana")
    assert (status, out) == (0, "1\n")
    assert "flask gpuqueue worker" in err
    assert "--app" not in err
    assert own("pause", "mail")[1].rstrip().endswith("flask gpuqueue resume mail")
    own("resume", "mail")
    assert own("worker", "--burst")[0] == 0
    status, out, _ = own("job", "1")
    assert status == 0 and "sent to Ana" in out


def test_its_plugins_bring_their_commands(own):
    assert own("greet") == (0, "good morning\n", "")
    assert "greet" in own("--help")[1]


def test_its_help_calls_it_by_its_name(own):
    assert own("--help")[1].startswith("Usage: flask gpuqueue ")


@pytest.mark.parametrize(
    "words",
    [("--database", "other.db", "status"), ("--config", "other.toml", "status"), ("worker", "--app", "other:gq")],
)
def test_it_works_with_no_other_queue(own, tmp_path, words):
    status, _, err = own(*words)
    assert status == 2
    assert "remove --" in err
    assert not (tmp_path / "other.db").exists()
