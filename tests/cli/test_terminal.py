"""How it looks: readable at 40, 60 and 80 columns, coloured in a terminal alone, and never drawn in a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.cli.rendering import folded
from tests.cli.terminal import screens, shown
from tests.processes import LONGEST_S

WIDTHS = (40, 60, 80)
MESSAGE = "RuntimeError: 550 5.1.1 the mailbox of the distribution list is unavailable"
READS = (["status"], ["jobs"], ["job", "1"], ["explain", "1"], ["plugins"], ["gpu"], ["logs", "1"], ["db", "version"])


@pytest.fixture
def filled(configured: Path) -> Iterator[Path]:
    """Job 1 failed with a long message, job 2 completed, job 3 asks for a model with a long name."""
    with GPUQueue.from_config("gpuqueue.toml") as gq:

        @gq.task(name="send", queue="mail", max_attempts=1)
        def send(fails: bool) -> None:
            if fails:
                raise RuntimeError(MESSAGE.removeprefix("RuntimeError: "))

        send.enqueue(fails=True)
        send.enqueue(fails=False)
        Worker(gq, queues=["mail"], burst=True).run()
        gq.ollama.embed("nomic-embed-text", input="x", queue="ai-batch")
        gq.pause("mail", reason="the mail server moves to another building, which takes all day", until="30m", by="me")
    return configured


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def words(text: str) -> list[str]:
    return without_colours(text).split()


def is_one_thing(line: str) -> bool:
    """A command, a path, an argument or a line of code is copied whole: it is left to the terminal to break it."""
    return len(line.split()) <= 2 or any(sign in line for sign in ("→", "gpuqueue", "arguments:"))


@pytest.mark.parametrize("columns", WIDTHS)
def test_no_word_is_broken_and_nothing_is_drawn(filled: Path, columns: int) -> None:
    for argv, screen in zip(READS, screens(filled, READS, columns=columns), strict=True):
        assert screen.endswith("\n0"), argv
        prose = without_colours(screen).partition("Traceback")[0]
        too_long = [line for line in prose.splitlines() if len(line) > columns and not is_one_thing(line)]
        assert too_long == [], argv
        assert not set("─│┌┐└┘━┃╭╰") & set(screen)


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_row_of_a_table_keeps_all_its_cells(filled: Path, columns: int) -> None:
    _, screen = shown(filled, "jobs", columns=columns)
    found = words(screen)
    for word in ["3", "2", "1", "available", "completed", "discarded", "ai-batch", "ollama.embed", "nomic-embed-text", "1/1"]:
        assert word in found
    assert " ".join(found).count(MESSAGE) == 1


def test_at_80_columns_the_jobs_are_a_table_with_what_is_long_below(filled: Path) -> None:
    _, screen = shown(filled, "jobs", columns=80)
    heading, *lines = without_colours(screen).splitlines()
    assert re.fullmatch(r"id  state +queue +task +attempt +enqueued", heading)
    assert re.match(r" 3  available  ai-batch  ollama.embed", lines[0])
    position = next(number for number, line in enumerate(lines) if "discarded" in line)
    assert [line for line in lines[position + 1 :] if line.startswith("    RuntimeError: 550")]


def test_with_room_the_prose_is_a_column(filled: Path) -> None:
    _, screen = shown(filled, "jobs", columns=200)
    (line,) = [line for line in without_colours(screen).splitlines() if "discarded" in line]
    assert line.endswith(MESSAGE)


def test_prose_is_folded_with_its_indentation(filled: Path) -> None:
    _, screen = shown(filled, "status", columns=40)
    held = without_colours(screen).partition("Held\n")[2]
    assert re.search(r"  mail: .*\n    .*\n    ", held)
    assert "the mail server moves to another building, which takes all day) until" in " ".join(held.split())


def test_the_doctors_advice_is_folded_between_words_and_its_commands_are_whole(filled: Path) -> None:
    (filled / "jobs.db").chmod(0o644)
    _, screen = shown(filled, "doctor", columns=40)
    advice = "         → if it runs elsewhere, change\n           [ollama] url in the\n           configuration\n"
    assert advice in screen
    assert f"         → chmod 600 {filled / 'jobs.db'}\n" in screen


def test_colours_are_for_a_terminal_that_wants_them(filled: Path) -> None:
    assert "\x1b[31mdiscarded" in shown(filled, "jobs")[1]
    assert "\x1b" not in "".join(screens(filled, READS, environ={"NO_COLOR": "1"}))
    error = shown(filled, "job", 99)[1]
    assert "\x1b[31m" in error
    assert "\x1b" not in shown(filled, "job", 99, environ={"NO_COLOR": "1"})[1]


def test_a_pipe_gets_one_line_for_each_row_however_narrow_the_terminal_is(
    filled: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = run("jobs").out
    assert len(out.splitlines()) == 4
    assert MESSAGE in out
    assert "the mail server moves to another building, which takes all day) until" in run("status").out
    assert "\x1b" not in out


def test_columns_stand_under_each_other_whatever_letters_take_two_places(configured: Path) -> None:
    code = (
        "from gpuqueue.cli import rendering; rendering.in_terminal = lambda: True\n"
        "rendering.print_table({'name': 'left', 'n': 'right'}, [['日本', '1'], ['abcd', '22']])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONGEST_S)
    assert ran.stdout.splitlines() == ["name   n", "日本   1", "abcd  22"]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 7, "one two\n  three"),
        ("  one two three", 9, "  one two\n  three"),
        ("one /a/long/path/that/fits/nowhere two", 10, "one\n  /a/long/path/that/fits/nowhere\n  two"),
        ("short", 40, "short"),
        ("", 40, ""),
        ("\x1b[1mone two\x1b[0m three", 7, "\x1b[1mone two\x1b[0m\n  three"),
        ("日本 日本 日本", 9, "日本 日本\n  日本"),
    ],
)
def test_folding(text: str, width: int, expected: str) -> None:
    assert folded(text, width, hang=2) == expected
