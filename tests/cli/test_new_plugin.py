"""`gpuqueue plugins new`: what it writes, and what it refuses without having written anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_it_writes_a_distribution_and_says_what_comes_next(folder: Path, run: Run) -> None:
    ran = run("plugins", "new", "night-shift")
    made = folder / "gpuqueue-night-shift"
    written = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert written == {"pyproject.toml", "README.md", "gpuqueue_night_shift.py", "tests/test_suite.py", "tests/test_hold.py"}
    assert "next: cd gpuqueue-night-shift && python -m pip install" in ran.out
    assert 'night-shift = "gpuqueue_night_shift:NightShiftPlugin"' in (made / "pyproject.toml").read_text()


def test_it_writes_into_a_folder_that_is_empty_and_overwrites_none(folder: Path, run: Run) -> None:
    (folder / "my plugin").mkdir()
    assert "cd 'my plugin'" in run("plugins", "new", "night-shift", "--into", "my plugin").out
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for into in ("my plugin", "my plugin/README.md"):
        ran = run("plugins", "new", "other", "--into", into)
        assert (ran.status, ran.out) == (2, "")
        assert "already exists; nothing was written. Use another folder: --into FOLDER" in ran.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_made_is_an_error(folder: Path, run: Run) -> None:
    (folder / "file").touch()
    ran = run("plugins", "new", "other", "--into", "file/below")
    assert (ran.status, ran.out) == (2, "")
    assert "Not a directory. Use another folder: --into FOLDER" in ran.err


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Night Shift", "use up to 40 lowercase letters, digits and single hyphens, starting with a letter, for example n"),
        ("night_shift", "for example night-shift\n"),
        ("3d", "for example d\n"),
        ("..", "starting with a letter\n"),
        ("n" * 41, f"for example {'n' * 40}\n"),
        ("gpuqueue-night", "must not start with gpuqueue: 'gpuqueue-night'. Leave it out"),
        ("models", "[models] is a section of gpuqueue's own configuration"),
        ("windows", "gpuqueue has a built-in plugin 'windows'"),
        ("device-health", "gpuqueue has a built-in plugin 'device_health'"),
        ("thermal", "plugin 'thermal' is already installed (from gpuqueue-thermal)"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused(folder: Path, run: Run, name: str, wrong: str) -> None:
    ran = run("plugins", "new", name)
    assert (ran.status, ran.out) == (2, "")
    assert wrong in ran.err
    assert list(folder.iterdir()) == []


def test_the_lists_options_are_not_for_a_new_one(folder: Path, run: Run) -> None:
    ran = run("plugins", "--json", "new", "night")
    assert (ran.status, ran.out) == (2, "")
    assert "--app and --json apply to the list" in ran.err
