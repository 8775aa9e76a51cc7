"""The names that plugins are written with are public, and plugins and their tests use no others."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import gpuqueue
from gpuqueue import plugins
from gpuqueue.contract import details, events, hookspecs


def named_in_annotations() -> set[str]:
    """The classes that the hooks and their details name, which gpuqueue itself defines."""
    nodes = [
        node for module in (details, events, hookspecs) for node in ast.walk(ast.parse(Path(inspect.getfile(module)).read_text()))
    ]
    known = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpuqueue.")
        for alias in node.names
    } | {name for name in vars(hookspecs) if name.endswith("Details")}
    annotations = [node.annotation for node in nodes if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation]
    annotations += [node.returns for node in nodes if isinstance(node, ast.FunctionDef) and node.returns]
    return {node.id for root in annotations for node in ast.walk(root) if isinstance(node, ast.Name)} & known


def test_what_hooks_get_and_answer_is_public() -> None:
    found = named_in_annotations()
    assert {"QueueHoldDetails", "Hold", "Reading", "Executor", "Retry"} <= found
    assert found <= {*plugins.__all__, *gpuqueue.__all__}


@pytest.mark.parametrize("module", [gpuqueue, plugins], ids=lambda module: module.__name__)
def test_every_public_name_is_there_once_and_in_order(module: object) -> None:
    names = list(module.__all__)  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


PLUGINS = Path(__file__).parents[2] / "plugins"
PUBLIC = {"gpuqueue", "gpuqueue.plugins"}


def imported_from(path: Path) -> set[str]:
    """The modules of gpuqueue that a file imports, or imports from."""
    tree = ast.parse(path.read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in named if name == "gpuqueue" or name.startswith("gpuqueue.")}


MODULES = sorted({*PLUGINS.glob("*/*.py"), *PLUGINS.glob("*/gpuqueue_*/**/*.py")})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_plugin_imports_public_names_only(path: Path) -> None:
    assert imported_from(path) <= PUBLIC


def test_a_plugins_imports_are_seen() -> None:
    assert {name for path in MODULES for name in imported_from(path)} == PUBLIC


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*/tests/*.py")), ids=lambda path: path.name)
def test_a_plugins_tests_use_what_is_shipped_for_tests_only(path: Path) -> None:
    used = imported_from(path)
    assert {name for name in used if not name.startswith("gpuqueue.testing")} <= PUBLIC
