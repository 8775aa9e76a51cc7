"""The installed package's types: what an application may write has them, and what it may not is reported on its line."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys

import pytest

import gpuqueue
from tests.contract.installation import ENVIRONMENT, ROOT, Environment

FILES = ROOT / "tests" / "typing"
REPORTED = re.compile(r"^(?P<file>[a-z]+\.py):(?P<line>\d+): error: (?P<message>.*)$")


@pytest.fixture(scope="module")
def reported(installed: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """What `mypy --strict` reports where gpuqueue is installed and no checkout is near: {file: [(line, message)]}."""
    folder = tmp_path_factory.mktemp("application")
    found: dict[str, list[tuple[int, str]]] = {}
    for name in ("api.py", "wrong.py"):
        shutil.copy(FILES / name, folder)
        found[name] = []
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", installed.program("python")]
    ran = subprocess.run(
        [*command, *found],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stderr
    for line in ran.stdout.splitlines():
        if match := REPORTED.match(line):
            found[match["file"]].append((int(match["line"]), match["message"]))
    return found


def test_the_application_has_the_types_that_it_says(reported: dict[str, list[tuple[int, str]]]) -> None:
    assert reported["api.py"] == []


def test_each_wrong_use_is_reported_on_its_line_and_nothing_else_is(reported: dict[str, list[tuple[int, str]]]) -> None:
    expected = []
    for number, line in enumerate((FILES / "wrong.py").read_text().splitlines(), start=1):
        expected += [(number, words.strip()) for words in line.split("  # E: ")[1:] if not line.startswith('"""')]
    assert len(expected) > 30
    left = list(reported["wrong.py"])
    missing = []
    for number, words in expected:
        match = next(((at, message) for at, message in left if at == number and words in message), None)
        if match is None:
            missing.append((number, words))
        else:
            left.remove(match)
    assert (missing, left) == ([], [])


def test_the_application_uses_every_public_name() -> None:
    tree = ast.parse((FILES / "api.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(gpuqueue.__all__) - used == set()
