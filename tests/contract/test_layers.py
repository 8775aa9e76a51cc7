"""Every module stands in one layer and imports only from the layers before its own; the parts never import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gpuqueue"

# layer → modules and packages; a module is placed by its longest entry.
LAYERS: tuple[tuple[str, ...], ...] = (
    # 0 words
    (
        *("errors", "domain", "models", "units", "moments", "backoff", "verdicts", "windows", "rates"),
        *("settings", "estimates", "endpoints", "yielding", "replies"),
        *("config", "config_table", "config_sections", "config_plugins", "initial_config"),
    ),
    # 1 contracts
    (
        *("executors/__init__", "devices/__init__"),
        *("current_job", "hook_details", "hook_events", "hookspecs", "installed_plugins", "logs", "plugin_manager", "plugins"),
    ),
    # 2 parts
    ("store", "devices", "executors"),
    # 3 policies
    ("policies",),
    # 4 deciding
    ("view", "expectations", "decisions", "disagreements"),
    # 5 client
    (
        "twins",
        "options",
        "tasks",
        "declarations",
        "callers_transaction",
        "enqueueing",
        "model_tasks",
        "looking",
        "following",
        "handle",
        "timeline",
        "queue",
    ),
    # 6 running
    ("worker",),
    # 7 edges
    ("__init__", "__main__", "cli", "demo", "testing", "web", "integrations"),
)
PARTS = ("store", "devices", "executors")
# They stand apart, below everything: their own modules and the words only.
APART = "simulators"
MAY_USE_SIMULATORS = ("demo", "testing")


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def layer_of(module: str) -> int | None:
    """The layer of a module's path: `store/jobs` stands where `store` does."""
    parts = module.split("/")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    return None


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module names, also inside functions and for type checking."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name == "gpuqueue" or name.startswith("gpuqueue."):
                yield _resolved(name.split(".")[1:])


def imported_for_types_only(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("gpuqueue"):
                    found |= {_resolved(f"{inner.module}.{alias.name}".split(".")[1:]) for alias in inner.names}
    return found


def _resolved(parts: list[str]) -> str:
    """The file that a dotted name means: a module, a package, or something defined in one of them."""
    while parts:
        path = "/".join(parts)
        if (PACKAGE / f"{path}.py").exists():
            return path
        if (PACKAGE / path / "__init__.py").exists():
            return f"{path}/__init__"
        parts = parts[:-1]
    return "__init__"


def problems(module: str, imported: str) -> str | None:
    """Why this import breaks the layering, or None."""
    top, other = module.split("/")[0], imported.split("/")[0]
    if imported.startswith("migrations"):
        return None
    if top == APART or other == APART:
        if top == other or top in MAY_USE_SIMULATORS:
            return None
        if top == APART and layer_of(imported) == 0:
            return None
        return f"{module} imports {imported}: the simulators stand apart"
    mine, theirs = layer_of(module), layer_of(imported)
    assert mine is not None
    if theirs is None:
        return f"{imported} stands in no layer"
    if theirs > mine:
        return f"{module} (layer {mine}) imports {imported} (layer {theirs})"
    is_contract = layer_of(imported) == 1
    if top in PARTS and other in PARTS and top != other and not is_contract:
        return f"{module} imports {imported}: {' and '.join((top, other))} never import each other"
    return None


@pytest.mark.parametrize("module", modules())
def test_a_module_stands_in_a_layer_and_imports_only_from_its_own_and_those_before(module: str) -> None:
    assert module.startswith(f"{APART}/") or layer_of(module) is not None, f"place {module} in a layer of this table"
    for_types = imported_for_types_only(module)
    broken = [
        problem
        for imported in imports(module)
        # The package's own face, and names that only a type checker follows, are known to every layer.
        if imported not in for_types and (problem := problems(module, imported)) is not None
    ]
    assert broken == []


def test_the_check_sees_a_break() -> None:
    assert problems("queue", "worker/worker")
    assert problems("store/jobs", "devices/nvml")
    assert problems("executors/ollama", "store/jobs")
    assert problems("domain", "store/jobs")
    assert problems("worker/pool", "simulators/card")
    assert problems("simulators/card", "store/store")
    assert problems("store/jobs", "nowhere")
    assert not problems("handle", "policies/availability")
    assert not problems("devices/nvml", "devices/__init__")
    assert set(imports("queue")) >= {"config", "store/__init__", "store/queries", "looking"}


def test_the_table_names_nothing_twice() -> None:
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
