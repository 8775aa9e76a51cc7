"""Every message that the product can print stands in messages.txt, and what it really prints is found there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gpuqueue
from gpuqueue import GPUQueue, Worker
from gpuqueue.cli import main
from gpuqueue.domain.errors import GPUQueueError, JobFailed
from tests.contract.message_forms import words
from tests.contract.message_sources import BY_FILE, FINDINGS, HOLDS, LEFT_OUT_FILES, collected
from tests.contract.messages import COMMAND, MESSAGES, ROOT, messages, messages_like, page, sources

TOML = """\
database = "jobs.db"
[queues.mail]
[queues.shut]
pause = ["00:00-24:00"]
"""


def test_the_file_is_that_of_the_source() -> None:
    assert MESSAGES.read_text() == page(), f"run: {COMMAND}"


def test_the_files_and_the_classes_that_the_collector_names_exist() -> None:
    assert [path for path in (*LEFT_OUT_FILES, *BY_FILE) if not (ROOT / path).exists()] == []
    source = "\n".join(path.read_text() for path in sources())
    assert [name for name in sorted(HOLDS | FINDINGS) if f"class {name}" not in source] == []


# --- the collector ---

PLANTED = '''
class Wrong(ValueError):
    def __init__(self, id):
        super().__init__(f"the thing {id} is wrong")

class Table:
    def error(self, problem) -> Wrong:
        return Wrong(f"{self.where}: {problem}, sorry")

def _name(job):
    return f"job {job.id}"

def everything(name, count, table):
    """This docstring is no message."""
    why = " because of rain" if count else ""
    message = f"{_name(count)} stops{why}"
    tell(logger, logging.INFO, "job_stopped", message)
    logger.warning("the worker %s has %d jobs left", name, count)
    click.echo("this is " + "printed at once")
    click.confirm("do you want this?")
    yield Hold("wet", f"it rains{until}")
    yield Check(OK, "weather", "the sun shines", "go out now")
    connection.execute("select nothing from jobs")
    if name == "never shown to people":
        raise table.error("this is not a table")
    assert name, "no name is given"
    raise KeyError(f"there is no {name!r}; there are {', '.join(names) or 'none at all'}")

@click.command(short_help="Do it all.")
def do_it():
    """Do all of it, one by one.

    Keys: left, out.
    """
    return "a sentence that stands alone"
'''


def test_each_way_to_say_something_is_collected_once_and_in_its_kind() -> None:
    found = [(message.kind, message.name, message.text) for message in collected({"gpuqueue/planted.py": PLANTED})]
    assert found == [
        ("error", "Wrong", "the thing {id} is wrong"),
        ("log", "info job_stopped", "job {job.id} stops⟨ because of rain|⟩"),
        ("log", "warning", "the worker {name} has {count} jobs left"),
        ("output", "", "this is printed at once"),
        ("question", "", "do you want this?"),
        ("hold", "wet", "it rains{until}"),
        ("finding", "ok weather", "the sun shines"),
        ("finding", "ok weather →", "go out now"),
        ("error", "Wrong", "{where}: this is not a table, sorry"),
        ("error", "AssertionError", "no name is given"),
        ("error", "KeyError", "there is no {name}; there are ⟨{names}|none at all⟩"),
        ("help", "", "Do it all."),
        ("help", "do_it", "Do all of it, one by one."),
        ("other", "", "a sentence that stands alone"),
    ]


TELLING = re.compile(r".*Error|UsageError|Hold|Wait|Check|Discrepancy|echo|confirm|say|note|warning|info|error|exception")


def told_literally() -> Iterator[tuple[str, str]]:
    """Yield the pieces of text of errors, holds, findings, log and output, found in another way than the collector's."""
    for path in sources():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if name in LEFT_OUT_FILES or not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if TELLING.fullmatch(called):
                for argument in node.args:
                    pieces = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                    texts = [piece.value for piece in pieces if isinstance(piece, ast.Constant) and isinstance(piece.value, str)]
                    yield from ((name, text) for whole in texts for text in re.split("%[sdr]|%g", whole) if len(text.split()) > 2)


def test_no_piece_of_a_message_is_missing() -> None:
    pieces = list(told_literally())
    assert len(pieces) > 500
    said = "\n".join(words(message.parts) for message in messages())
    assert [(path, text) for path, text in pieces if text not in said] == []


DIALECT = (
    "was not had",
    "its time to be useful",
    "what is to stay free",
    "gets back the memory",
    "were waited",
    "rising any more",
    "the job goes on",
    "never came to this",
    "owns whose",
    "owns which",
    "one worker of all",
    "nobody may be there",
    "anew",
    "for ever",
)


def test_every_message_is_in_plain_words() -> None:
    found = [
        (phrase, message.text) for message in messages() for phrase in DIALECT if re.search(rf"\b{phrase}\b", message.text, re.I)
    ]
    assert found == []


# --- what is really printed ---


def unknown(printed: str, *kinds: str) -> list[str]:
    """Return the lines that are no message."""
    return [line for line in printed.splitlines() if line.strip() and not messages_like(line, *kinds)]


def test_a_line_that_nothing_prints_is_no_message() -> None:
    assert messages_like("the moon is not configured here; write moon = 1") == []
    assert messages_like("there is no queue 'x'", "error") == []  # it is longer
    (found,) = messages_like("Error: Flask app shop already has a gpuqueue; call init_app once for each app", "error")
    assert (found.name, found.path) == ("UsageError", "gpuqueue/integrations/flask.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration and a job in each of its two queues, of which one is shut."""
    monkeypatch.chdir(tmp_path)
    for name in ("GPUQUEUE_CONFIG", "GPUQUEUE_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "gpuqueue.toml").write_text(TOML)
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        for queue in ("mail", "shut"):
            gq.task(queue=queue, name=f"{queue}.send")(lambda: None)
            gq.enqueue(f"{queue}.send")
    return tmp_path


def misuses(gq: GPUQueue) -> dict[str, Callable[[], object]]:
    @gq.task(queue="mail")
    def send(to: str) -> None: ...

    return {
        "unknown queue": lambda: gq.pause("mial"),
        "unknown task": lambda: gq.enqueue("sned"),
        "unknown job": lambda: gq.job(99).state,
        "unknown argument": lambda: send.enqueue(too="ana"),
        "missing argument": lambda: send.enqueue(),
        "unknown option": lambda: send.using(prority=1),
        "wrong option": lambda: send.using(priority="high"),
        "not JSON": lambda: send.enqueue(to=object()),
        "task twice": lambda: gq.task(queue="mail", name=send.name)(lambda: None),
        "wrong duration": lambda: send.using(delay="5 weeks"),
        "no current job": gpuqueue.current_job,
        "not retryable": lambda: gq.job(1).retry(),
    }


def test_errors_of_the_public_api_are_messages(folder: Path) -> None:
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        for situation, misuse in misuses(gq).items():
            with pytest.raises(GPUQueueError) as caught:
                misuse()
            assert messages_like(str(caught.value), "error"), f"{situation}: {caught.value}"


@pytest.mark.parametrize(
    "toml",
    [
        'databse = "jobs.db"',
        '[queues.mail]\nconcurrency = "two"',
        '[queues.mail]\npause = ["9-18h"]',
        "[queues.ai]\ngpu = true",
        "database = jobs.db",
        'database = ":memory:"',
    ],
)
def test_errors_of_the_configuration_are_messages(toml: str, folder: Path) -> None:
    (folder / "gpuqueue.toml").write_text(toml)
    with pytest.raises(GPUQueueError) as caught:
        GPUQueue.from_config("gpuqueue.toml")
    assert messages_like(str(caught.value), "error"), str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        "pause mial",
        "pause mail --until 2001-01-01",
        "cancel 99",
        "cancel --all",
        "retry",
        "retry 1",
        "submit mail",
        "submit mail --arg a=1",
        "db prune --state running",
        "worker --app nowhere:gq",
    ],
)
def test_errors_of_the_command_line_are_messages(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 2
    said = capsys.readouterr().err.strip()
    assert messages_like(said, "error"), said


@pytest.mark.parametrize(
    "command", ["pause mail", "resume mail", "resume shut", "cancel 1", "retry --failed", "db check", "explain 1", "explain 2"]
)
def test_output_of_the_command_line_is_messages(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    printed = capsys.readouterr().out
    assert printed
    assert unknown(printed, "output", "hold", "finding") == []


def test_what_doctor_finds_and_advises_is_messages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs.db").chmod(0o644)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "no worker serves it" in printed
    assert [line.split(":")[0] for line in unknown(printed)] == [
        f"ok       {only_figures}" for only_figures in ("python", "sqlite", "clock")
    ]


def test_what_a_worker_logs_is_messages(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="gpuqueue")
    with GPUQueue.from_config("gpuqueue.toml") as gq:

        @gq.task(queue="mail", name="mail.send", max_attempts=1)
        def send() -> None:
            raise ValueError("no post today")

        @gq.task(queue="shut", name="shut.send")
        def shut() -> None: ...

        with Worker(gq), pytest.raises(JobFailed):
            gq.job(1).result()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("gpuqueue")]
    assert any("no post today" in line for line in told)
    assert unknown("\n".join(told), "log") == []
