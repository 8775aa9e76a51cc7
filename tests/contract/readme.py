"""Generates documentation from the code: parts of README.md, and the pages named below.

`python -m tests.contract.readme` rewrites them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gpuqueue.cli import main
from gpuqueue.cli.app import COMMANDS
from gpuqueue.config.initial import initial_toml
from gpuqueue.contract import details, hookspecs
from gpuqueue.contract import events as hook_events
from gpuqueue.domain.answers import CleanUp, Demand, Hold, Limits, Placement, Preemption, Wait
from gpuqueue.domain.transitions import ONLY_IN, TRANSITIONS, Change
from gpuqueue.logs import EVENTS
from tests.contract.test_layers import FLOORS, PACKAGE

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HELPS = ROOT / "gpuqueue" / "cli" / "README.md"
HOOKS = ROOT / "plugins" / "HOOKS.md"
HOUSE = ROOT / "gpuqueue" / "README.md"
STATES = ROOT / "gpuqueue" / "docs" / "states.md"
COLUMNS = "80"
SHOWN_AS = {"Client": "GPUQueue"}  # as `gpuqueue.plugins` binds it


def first_sentence(docstring: str | None) -> str:
    """Return what a module does, in one line."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    return text.removeprefix("Owns ").split(";")[0].split(". ")[0].rstrip(".")


HOUSE_PAGE = """\
# The house

The folders of the package are the floors of a house. A file imports only from lower floors or from its own folder; this holds
for every kind of import, including those for types only. Imports form no cycles. `tests/contract/test_layers.py` lists the
floors and enforces this. This file is generated: `uv run python -m tests.contract.readme`.

Floors, lowest first: {floors}.
"""


def house() -> str:
    """Return every folder with its rule, lowest floor first, and every file with what it does."""
    floors = " < ".join(", ".join(f"`{_shown(room)}`" for room in floor) for floor in FLOORS)
    parts = [HOUSE_PAGE.format(floors=floors)]
    for room in (room for floor in FLOORS for room in floor):
        path = PACKAGE / room
        if not path.is_dir():
            parts.append(f"## {_shown(room)}\n\n{_whole(path.with_suffix('.py'))}\n")
            continue
        for folder in sorted({file.parent for file in path.rglob("*.py")}):
            files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py" and _docstring(file)]
            init = folder / "__init__.py"
            rule = _whole(init) if init.exists() and _docstring(init) else ""
            if not files and not rule:
                continue
            lines = [f"| `{file.name}` | {first_sentence(_docstring(file))} |" for file in files]
            table = "\n".join(["| file | what it does |", "| --- | --- |", *lines]) + "\n" if lines else ""
            parts.append("\n\n".join(filter(None, [f"## {folder.relative_to(PACKAGE)}/", rule, table])).rstrip("\n") + "\n")
    return "\n".join(parts)


def _shown(room: str) -> str:
    return f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py"


def _docstring(file: Path) -> str | None:
    return ast.get_docstring(ast.parse(file.read_text()))


def _whole(file: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    return " ".join((_docstring(file) or "").split("\n\n")[0].split())


def hook_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield every hook with its name, in the order of the groups."""
    for group in hookspecs.SPECIFICATIONS:
        yield from ((name, hook) for name, hook in vars(group).items() if not name.startswith("_"))


def hooks() -> str:
    lines = ["| hook | |", "| --- | --- |"]
    lines += [f"| `{name}` | {' '.join(_said(hook).partition(chr(10) * 2)[0].split())} |" for name, hook in hook_functions()]
    return "\n".join(lines)


def _said(hook: object) -> str:
    return inspect.cleandoc(hook.__doc__ or "").partition("\nExample:\n")[0].rstrip()


def example_of(hook: object) -> str:
    """Return the example in a hook's docstring."""
    _, found, example = inspect.cleandoc(hook.__doc__ or "").partition("\nExample:\n")
    assert found, f"{hook} has no example"
    return textwrap.dedent(example).strip() + "\n"


def kind_of(hook: Callable[..., object]) -> type[Any]:
    """Return the class of what a hook gets."""
    kind: type[Any] = {**vars(details), **vars(hook_events)}[hook.__annotations__["details"].removesuffix("[Any]")]
    return kind


def _details(hook: Callable[..., object]) -> str:
    """Describe what a hook receives: the fields of its details."""
    kind = kind_of(hook)
    return f"`details` is a `{kind.__name__}`: {_fields(kind)}\n\n"


def _fields(kind: type[Any]) -> str:
    """Describe a class: its docstring, and its fields with their types and defaults."""
    told = []
    for name, (annotation, default) in _fields_of(kind).items():
        shown = f" = {default!r}" if default is None or isinstance(default, bool | int | float | str) else ""
        told.append(f"`{name}: {SHOWN_AS.get(annotation, annotation)}{shown}`")
    return f"{' '.join((inspect.getdoc(kind) or '').split())} Fields: {', '.join(told)}."


def _fields_of(kind: type[Any]) -> dict[str, tuple[str, Any]]:
    if dataclasses.is_dataclass(kind):
        return {field.name: (str(field.type), field.default) for field in dataclasses.fields(kind)}
    hints = {name: getattr(hint, "__forward_arg__", hint) for name, hint in kind.__annotations__.items()}
    return {name: (hints[name], kind._field_defaults.get(name, dataclasses.MISSING)) for name in kind._fields}


RETURNED = (Hold, Wait, Limits, Demand, Placement, Preemption, CleanUp)
PAGE = """\
# The hooks

Every hook of gpuqueue: when it is called, what it receives, what it returns, and what an exception does. A plugin is an object,
a class or a module. Its hooks are functions that have a hook's name, are marked with `hookimpl`, and take one argument,
`details`. Where one answer is wanted (`job_demand`, `place_job`, `order_candidates`, `attempt_failed`, `retention`), the plugin
registered last is called first, and the first answer that is not None counts: return None to pass. All names that a plugin
needs are in `gpuqueue.plugins`; `gpuqueue plugins new NAME` writes a plugin to start from.
This file is generated from the code: `uv run python -m tests.contract.readme`.

A test runs each example exactly as shown, with these names in addition to those of `gpuqueue.plugins`:

- `queue_with(plugin)` returns a queue object with that plugin, registered as `example`; a worker has run on it once. Queue
  `mail` has the tasks `send`, `report` and `fail`. Queue `train` has the tasks `learn` and `stay`, and runs on a simulated
  `card`; `stay` runs until it is preempted, the first time. Queue `ai` runs on the same card, with a simulated `ollama`.
- `run(gq)` runs a worker until no job can start, and returns why each remaining job waits. `until(condition)` waits for a
  condition. `Worker` is `gpuqueue.Worker`. `claim_and_die` leaves a job with a worker that died. `install` and `command_line` are
  for the commands of an installed plugin.
"""


def hooks_page() -> str:
    parts = [PAGE]
    for group in hookspecs.SPECIFICATIONS:
        parts.append(f"## {group.__name__}\n\n{inspect.getdoc(group)}\n")
        for name, hook in vars(group).items():
            if name.startswith("_"):
                continue
            notes = hook.__annotations__
            head = f"```text\n{name}(details: {notes['details'].removesuffix('[Any]')}) -> {notes['return']}\n```"
            example = f"```python\n{example_of(hook)}```"
            parts.append(f"### {name}\n\n{head}\n\n{_said(hook)}\n\n{_details(hook)}{example}\n")
    parts.append("## What hooks return\n\nA plugin that returns anything else fails.\n")
    parts += [f"### {kind.__name__}\n\n{_fields(kind)}\n" for kind in RETURNED]
    return "\n".join(parts)


def events() -> str:
    lines = ["| event | logged when | its own fields |", "| --- | --- | --- |"]
    for name, kind in EVENTS.items():
        lines.append(f"| `{name}` | {kind.when} | {', '.join(f'`{field}`' for field in kind.fields)} |")
    return "\n".join(lines)


def command_names() -> Iterator[tuple[str, click.Command]]:
    """Yield every command by its full name, a group's commands after the group."""
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
        "# The commands\n\nThe output of `gpuqueue COMMAND --help` for every command. This file is generated: "
        "`uv run python -m tests.contract.readme`.\n"
    ]
    for name in ["", *(name for name, _ in command_names())]:
        parts.append(f"## gpuqueue{' ' if name else ''}{name}\n\n```text\n{help_of(name)}```\n")
    return "\n".join(parts)


STATES_PAGE = """\
# The states of a job

A job is in one of seven states: `scheduled`, `available` and `retryable` jobs wait, `running` jobs are with a worker, and
`completed`, `cancelled` and `discarded` jobs have finished. This file is generated from the table in
`gpuqueue/domain/transitions.py`, which also generates the SQL statements: `uv run python -m tests.contract.readme`.
"""
WHAT_IT_SETS = """\
*given*: the caller passes the value, for example an attempt's error. *given or kept*: without a new value the old one stays.
Every column that a row does not name keeps its value. So `worker_id`, `started_at` and `progress` describe the latest attempt,
and `device` and `reserved_bytes` stay until that attempt's clean-up is verified, whatever state the job is in by then.

A transition into a finished state adds one to the queue's counter for that state; a transition out of it subtracts one.
"""


def states_page() -> str:
    parts = [STATES_PAGE, f"```mermaid\n{_diagram()}\n```\n", "## The transitions\n", _transitions(), "", WHAT_IT_SETS]
    parts.append("## Columns that only some states have\n")
    parts += [f"- `{column}`: {' and '.join(f'`{state}`' for state in states)}" for column, states in ONLY_IN.items()]
    return "\n".join(parts) + "\n"


def _diagram() -> str:
    """Draw the states with one arrow from each state to another, labelled with the names of all its transitions."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for move in TRANSITIONS:
        for source in move.sources or ("[*]",):
            arrows.setdefault((str(source), str(move.target)), []).append(move.name)
    lines = [f"    {source} --> {target} : {', '.join(names)}" for (source, target), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", *lines])


def _transitions() -> str:
    lines = ["| transition | from | to | when | what it sets |", "| --- | --- | --- | --- | --- |"]
    for move in TRANSITIONS:
        sources = ", ".join(f"`{source}`" for source in move.sources)
        sets = ", ".join(_said_of(column, change) for column, change in move.sets.items())
        lines.append(f"| {move.name} | {sources} | `{move.target}` | {move.when} | {sets} |")
    return "\n".join(lines)


def _said_of(column: str, change: Change | int | None) -> str:
    if change in (Change.ONE_MORE, Change.ONE_LESS):
        return f"`{column}` {change.value}"
    said = change.value if isinstance(change, Change) else "cleared" if change is None else change
    return f"`{column}` = {said}" if change == 0 or change is Change.AS_ENQUEUED else f"`{column}` {said}"


def configuration() -> str:
    text = initial_toml(timezone="Asia/Bangkok", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB")
    return f"```toml\n{text.strip()}\n```"


def with_generated_parts(text: str) -> str:
    """Return the README with its generated parts rewritten, each between its two markers."""
    generated = {
        "commands": commands(),
        "configuration": configuration(),
        "events": events(),
        "hooks": hooks(),
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
    HOOKS.write_text(hooks_page())
    HOUSE.write_text(house())
    STATES.write_text(states_page())
