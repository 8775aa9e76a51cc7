"""Owns what is generated from the code: parts of the README, and gpuqueue/cli/README.md.

`python -m tests.contract.readme` writes them anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import click

from gpuqueue import hookspecs
from gpuqueue.cli import main
from gpuqueue.cli.app import COMMANDS
from gpuqueue.initial_config import initial_toml
from gpuqueue.logs import EVENTS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HELPS = ROOT / "gpuqueue" / "cli" / "README.md"
COLUMNS = "80"


def first_sentence(docstring: str | None) -> str:
    """Return what a module owns, in one line."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    return text.removeprefix("Owns ").split(";")[0].rstrip(".")


def modules() -> str:
    lines = ["| module | owns |", "| --- | --- |"]
    for path in sorted((ROOT / "gpuqueue").rglob("*.py"), key=lambda path: (len(path.parts) > len(ROOT.parts) + 2, path)):
        name = path.relative_to(ROOT).as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if docstring and path.name not in ("__main__.py",) and name != "gpuqueue/__init__.py":
            lines.append(f"| `{name.removeprefix('gpuqueue/')}` | {first_sentence(docstring)} |")
    return "\n".join(lines)


def hooks() -> str:
    lines = ["| hook | |", "| --- | --- |"]
    for group in hookspecs.SPECIFICATIONS:
        for name, hook in vars(group).items():
            if not name.startswith("_"):
                lines.append(f"| `{name}` | {(hook.__doc__ or '').splitlines()[0]} |")
    return "\n".join(lines)


def events() -> str:
    lines = ["| event | told when | its own fields |", "| --- | --- | --- |"]
    for name, kind in EVENTS.items():
        lines.append(f"| `{name}` | {kind.when} | {', '.join(f'`{field}`' for field in kind.fields)} |")
    return "\n".join(lines)


def command_names() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words, those of a group after the group."""
    for command in COMMANDS:
        yield command.name or "", command
        if isinstance(command, click.Group):
            yield from ((f"{command.name} {name}", command.commands[name]) for name in sorted(command.commands))


def commands() -> str:
    lines = ["| command | |", "| --- | --- |"]
    lines += [f"| `{command.name}` | {command.get_short_help_str(limit=200)} |" for command in COMMANDS]
    return "\n".join(lines)


def help_of(command: str) -> str:
    """Return what `gpuqueue COMMAND --help` prints in a terminal of 80 columns."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(printed):
            assert main([*command.split(), "--help"]) == 0
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


def helps() -> str:
    parts = [
        "# The commands\n\nWhat `gpuqueue COMMAND --help` prints, for every command. This file is generated: "
        "`uv run python -m tests.contract.readme`.\n"
    ]
    for name in ["", *(name for name, _ in command_names())]:
        parts.append(f"## gpuqueue{' ' if name else ''}{name}\n\n```text\n{help_of(name)}```\n")
    return "\n".join(parts)


def configuration() -> str:
    text = initial_toml(timezone="Asia/Bangkok", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB")
    return f"```toml\n{text.strip()}\n```"


def with_generated_parts(text: str) -> str:
    """Return the README with its generated parts made anew, each between its two markers."""
    generated = {
        "commands": commands(),
        "configuration": configuration(),
        "events": events(),
        "hooks": hooks(),
        "modules": modules(),
    }
    for name, part in generated.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2] if end in rest else rest
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_generated_parts(README.read_text()))
    HELPS.write_text(helps())
