"""Only the store knows the database: nothing else imports its libraries, sees a connection, or holds an SQL text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("sqlite3", "aiosqlite", "sqlalchemy", "django.db.connection", "gpuqueue.store.sqlite", "gpuqueue.store.tables")
# They are handed a connection that is not the queue's own.
HANDED = ("gpuqueue/client/callers_transaction.py", "gpuqueue/integrations/django/sqlite3/")
CALLS = ("cursor", "execute", "executemany", "executescript", "exec_driver_sql")
SQL = re.compile(
    r"\s*(SELECT\b.*\bFROM|INSERT( OR \w+)? INTO|REPLACE INTO|UPDATE \w+ SET|DELETE FROM|WITH \w+( \(.*\))? AS|PRAGMA \w+|"
    r"BEGIN( \w+)?$|COMMIT$|ROLLBACK|ATTACH |ALTER TABLE|(CREATE|DROP) (TABLE|INDEX|TRIGGER))",
    re.IGNORECASE | re.DOTALL,
)
FILES = sorted(
    name
    for path in [*(ROOT / "gpuqueue").rglob("*.py"), *(ROOT / "plugins").glob("*/gpuqueue_*/**/*.py")]
    if not (name := path.relative_to(ROOT).as_posix()).startswith(("gpuqueue/store/", *HANDED))
)


def touches(text: str) -> Iterator[str]:
    """What of a file's text belongs into the store."""
    tree = ast.parse(text)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = [node.value]
            if SQL.match(node.value):
                yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            if ast.unparse(node.func.value) not in ("super()", "pipe"):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and node.attr == "engine" and ast.unparse(node.value).endswith("store"):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        for name in names:
            if any(name == library or name.startswith(f"{library}.") for library in LIBRARIES):
                yield f"line {node.lineno}: import of {name}"


@pytest.mark.parametrize("file", FILES)
def test_a_file_outside_the_store_knows_no_database(file: str) -> None:
    assert list(touches((ROOT / file).read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import sqlite3",
        "from sqlalchemy.engine import Connection",
        "def later():\n    from gpuqueue.store.sqlite import queries",
        'import_module("sqlite3")',
        "import aiosqlite",
        "from django.db import connection",
        'NEXT = "SELECT id FROM jobs"',
        'NEXT = " select id from jobs"',
        'NEXT = "WITH next AS (VALUES (1)) SELECT * FROM next"',
        'NEXT = "REPLACE INTO jobs VALUES (1)"',
        'NEXT = "ALTER TABLE jobs ADD COLUMN x"',
        'f"UPDATE jobs SET {names}"',
        "connection.execute(statement)",
        "connection.executescript(statement)",
        "connection.cursor()",
        "gq.store.engine.writer.run(work)",
    ],
)
def test_the_check_sees_one_wrong_line(text: str) -> None:
    assert list(touches(text))
