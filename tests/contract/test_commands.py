"""The command line is documented as it is: every help is committed, every command is in the README, every example parses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click
import pytest

from gpuqueue.cli.app import COMMANDS
from tests.contract.readme import COLUMNS, HELPS, README, command_names, help_of, helps

NAMES = ["", *(name for name, _ in command_names())]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name or "gpuqueue")
def test_a_help_is_committed_character_for_character(name: str) -> None:
    block = f"## gpuqueue{' ' if name else ''}{name}\n\n```text\n{help_of(name)}```\n"
    assert block in HELPS.read_text(), "run: uv run python -m tests.contract.readme"


def test_the_committed_helps_have_nothing_else() -> None:
    assert HELPS.read_text() == helps(), "run: uv run python -m tests.contract.readme"


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name or "gpuqueue")
def test_a_help_fits_a_terminal_of_80_columns(name: str) -> None:
    assert [line for line in help_of(name).splitlines() if len(line) > int(COLUMNS)] == []


def test_every_command_is_in_the_table_of_the_readme() -> None:
    table = README.read_text().partition("<!-- commands -->")[2].partition("<!-- end of commands -->")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.M) == [command.name for command in COMMANDS]


# --- examples ---


def examples(text: str) -> Iterator[str]:
    """The command lines in a text: from `gpuqueue` and the name of a command or option to the line's or quotation's end."""
    known = "|".join(command.name or "" for command in COMMANDS)
    for match in re.finditer(rf"gpuqueue ((?:--\w|(?:{known})\b)[^`\n#>)…·]*)", text.replace("\\\n", " ")):
        yield match[1].strip().rstrip(",.;:")


def parse(words: Sequence[str]) -> None:
    """Parse a command line as `gpuqueue` does, running nothing. Raises: click.UsageError when it is wrong."""
    words = list(words)
    while words and words[0] in ("--config", "--database"):
        del words[:2]
    named = {command.name: command for command in COMMANDS}
    command = named[words.pop(0)]
    while isinstance(command, click.Group) and words:
        found = command.commands.get(words[0])
        if found is None:
            raise click.UsageError(f"there is no command {words[0]!r}")
        command = found
        words.pop(0)
    if not isinstance(command, click.Group):
        command.make_context(command.name, words)


def texts() -> Iterator[tuple[str, str]]:
    yield "README", re.sub(r"^\| `.*", "", README.read_text(), flags=re.M)
    yield from ((name or "gpuqueue", help_of(name).partition("\n")[2]) for name in NAMES)  # without its usage


FOUND = [(where, example) for where, text in texts() for example in examples(text)]


@pytest.mark.parametrize(("where", "example"), FOUND, ids=[f"{where}: {example}" for where, example in FOUND])
def test_an_example_parses(where: str, example: str) -> None:
    parse(shlex.split(example))


def test_the_examples_are_found_and_a_wrong_one_is_seen() -> None:
    found = {example for _, example in FOUND}
    assert 'submit ai-realtime --model gemma4:e4b --prompt "Hello" --follow' in found
    assert "completion bash" in found
    assert any(example.startswith("submit rfa-reminders --app") and "--task" in example for example in found)
    for wrong in ("jobs --sate running", "job twelve", "db backup", "db verify", "completion tcsh", "pause"):
        with pytest.raises(click.UsageError):
            parse(shlex.split(wrong))
