"""Every file stands on one floor of the house and imports only from lower floors or its own folder; no files form a circle.

Imports for type checking, inside functions and by `import_module` count like all others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gpuqueue"

# The floors, lowest first; rooms of one floor do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("domain",),
    ("config", "simulators"),
    ("contract",),
    ("devices", "executors", "store", "logs"),
    ("decisions",),
    ("client",),
    ("worker", "plugins"),
    ("__init__", "backoff", "testing"),
    ("cli",),
    ("__main__", "integrations"),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MOST_ROOMS, MOST_FLOORS = 20, 11


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module names, in whatever way it imports them."""
    for name in imported_names((PACKAGE / f"{module}.py").read_text()):
        if name == "gpuqueue" or name.startswith("gpuqueue."):
            yield _file(name.split(".")[1:])


def imported_names(text: str) -> Iterator[str]:
    """The dotted names that a file imports, or gives as texts to what imports them later; loggers have names of their own."""
    tree = ast.parse(text)
    loggers = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_logger(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loggers:
            match = re.fullmatch(r"(?:from )?(gpuqueue(?:\.\w+)+)(?: import .*|:\w+)?", node.value, re.DOTALL)
            if match and _is_module(match[1].split(".")[1:]):
                yield match[1]


def unreadable_imports(text: str) -> list[str]:
    """The imports by a computed name, which nobody can hold against the floors."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    by_name = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] in ("import_module", "__import__")]
    return [ast.unparse(call) for call in by_name if not (len(call.args) == 1 and isinstance(call.args[0], ast.Constant))]


def _is_logger(call: ast.Call) -> bool:
    return ast.unparse(call.func).endswith("getLogger") and bool(call.args)


def _is_module(parts: list[str]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _file(parts: list[str]) -> str:
    """The file that a dotted name means: a module, a package, or something defined in one of them."""
    while parts:
        if PACKAGE.joinpath(*parts).with_suffix(".py").exists():
            return "/".join(parts)
        if PACKAGE.joinpath(*parts, "__init__.py").exists():
            return "/".join((*parts, "__init__"))
        parts = parts[:-1]
    return "__init__"


def problem(module: str, imported: str) -> str | None:
    """Why this import does not belong there, or None."""
    mine, theirs = module.split("/")[0], imported.split("/")[0]
    if mine == theirs:
        return None
    if theirs not in FLOOR_OF:
        return f"{imported} stands on no floor"
    if FLOOR_OF[theirs] < FLOOR_OF[mine]:
        return None
    return f"{module} (floor {FLOOR_OF[mine] + 1}) imports {imported} (floor {FLOOR_OF[theirs] + 1})"


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, if any do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("module", modules())
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(module: str) -> None:
    assert module.split("/")[0] in FLOOR_OF, f"give {module} a floor in this table"
    assert [found for imported in imports(module) if (found := problem(module, imported))] == []


# What they import is no file of this package, or named in a table of this file's.
COMPUTED = ("__init__", "executors/child", "integrations/django/__init__", "cli/session", "simulators/nvml")


@pytest.mark.parametrize("module", [module for module in modules() if module not in COMPUTED])
def test_a_file_imports_by_names_that_can_be_read(module: str) -> None:
    assert unreadable_imports((PACKAGE / f"{module}.py").read_text()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    # A package's __init__ that a file reaches only on its way to a neighbour is not what it imports.
    assert circle({module: set(imports(module)) - {module} for module in modules()}) == []


def test_the_top_of_the_package_is_a_short_list() -> None:
    rooms = {module.split("/")[0] for module in modules()}
    assert rooms == set(FLOOR_OF)
    assert len(rooms) <= MOST_ROOMS
    assert len(FLOORS) <= MOST_FLOORS


# Each has a plain name now, such as wakeups, liveness, inspection, discrepancies, ClaimRules and QueueContext.
OLD_NAMES = {
    "bell", "life", "looking", "twins", "disagreements", "lessons", "models_seen",
    "Gate", "Room", "keep_out", "let_in", "Surroundings", "beside",
}  # fmt: skip


def test_nothing_is_named_by_an_old_name() -> None:
    found = [(module, name) for module in modules() for name in _names(module) if name in OLD_NAMES]
    assert found == []


def _names(module: str) -> Iterator[str]:
    """The names of a module and of everything that it defines."""
    yield from module.split("/")
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def test_the_check_sees_one_wrong_import() -> None:
    assert problem("client/queue", "worker/worker")
    assert problem("store/store", "devices/nvml")
    assert problem("domain/job", "config/table")
    assert problem("simulators/card", "config/table")
    assert problem("worker/boot", "plugins")
    assert problem("store/store", "nowhere")
    assert not problem("client/handle", "decisions/view")
    assert not problem("store/store", "store/sqlite/jobs")
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


def test_the_check_reads_every_kind_of_import() -> None:
    text = (
        "import gpuqueue.client.queue\n"
        "from gpuqueue.domain import units\n"
        "if TYPE_CHECKING:\n    from gpuqueue.worker import Worker\n"
        'def later():\n    import_module("gpuqueue.cli.app")\n'
        'COMMAND = "from gpuqueue.executors.child import main; main()"\n'
        'logger = logging.getLogger("gpuqueue.plugins")\n'
    )
    assert unreadable_imports('import_module("gpuqueue." + name)') and unreadable_imports("__import__(name)")
    assert set(imported_names(text)) == {
        "gpuqueue.client.queue",
        "gpuqueue.domain.units",
        "gpuqueue.worker.Worker",
        "gpuqueue.cli.app",
        "gpuqueue.executors.child",
    }
