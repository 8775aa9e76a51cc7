"""The package's types: what an application may write has them, and what it may not is reported on its line."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import gpuqueue
from tests.contract.installation import ENVIRONMENT, ROOT, Environment
from tests.processes import LONGEST_S

FILES = ROOT / "tests" / "typing"
REPORTED = re.compile(r"^(?P<file>[a-z_]+\.py):(?P<line>\d+): error: (?P<message>.*)$")


@pytest.fixture(scope="module")
def reported(installed: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """What `mypy --strict` reports where gpuqueue is installed and no checkout is near: {file: [(line, message)]}."""
    return check(
        tmp_path_factory.mktemp("application"), "api.py", "wrong.py", options=["--python-executable", installed.program("python")]
    )


@pytest.fixture(scope="module")
def reported_of_web(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """The same beside the web frameworks, which only the tests' own environment has; it has the checkout."""
    return check(
        tmp_path_factory.mktemp("web"), "web.py", "web_wrong.py", options=["--follow-imports=silent"], MYPYPATH=str(ROOT)
    )


def check(folder: Path, *names: str, options: Sequence[str | Path], **environment: str) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        shutil.copy(FILES / name, folder)
        found[name] = []
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", *options, *found],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stderr
    for line in ran.stdout.splitlines():
        if match := REPORTED.match(line):
            found[match["file"]].append((int(match["line"]), match["message"]))
    return found


def expected_and_reported(name: str, reported: list[tuple[int, str]]) -> tuple[int, list[object], list[tuple[int, str]]]:
    """How much a file says will be reported, what of it is not, and what else is."""
    expected = []
    for number, line in enumerate((FILES / name).read_text().splitlines(), start=1):
        expected += [(number, words.strip()) for words in line.split("  # E: ")[1:] if not line.startswith('"""')]
    left = list(reported)
    missing: list[object] = []
    for number, words in expected:
        match = next(((at, message) for at, message in left if at == number and words in message), None)
        if match is None:
            missing.append((number, words))
        else:
            left.remove(match)
    return len(expected), missing, left


def test_the_application_has_the_types_that_it_says(reported: dict[str, list[tuple[int, str]]]) -> None:
    assert reported["api.py"] == []


def test_a_web_application_has_the_types_that_it_says(reported_of_web: dict[str, list[tuple[int, str]]]) -> None:
    assert reported_of_web["web.py"] == []


def test_each_wrong_use_is_reported_on_its_line_and_nothing_else_is(reported: dict[str, list[tuple[int, str]]]) -> None:
    count, missing, left = expected_and_reported("wrong.py", reported["wrong.py"])
    assert count > 30
    assert (missing, left) == ([], [])


def test_each_wrong_use_in_a_web_application_is_reported(reported_of_web: dict[str, list[tuple[int, str]]]) -> None:
    count, missing, left = expected_and_reported("web_wrong.py", reported_of_web["web_wrong.py"])
    assert count > 10
    assert (missing, left) == ([], [])


def test_the_application_uses_every_public_name() -> None:
    tree = ast.parse((FILES / "api.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(gpuqueue.__all__) - used == set()
