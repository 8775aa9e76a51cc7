"""Owns building gpuqueue and installing it into environments of their own, as those who use it do; checks nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import LONGEST_S, started

ROOT = Path(__file__).parents[2]
NOT_PARTS_OF_A_CHECKOUT = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "*.db*")
UNREACHABLE = ("error sending request", "Failed to fetch", "client error (Connect)")
DEMO_KEYS = {"completed", "failed", "lost", "realtime", "batch", "rfa", "gpu", "outage"}  # of `gpuqueue demo --json`
# Nothing of the checkout, and of the tests' own environment, is to be found through these.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GPUQUEUE_", "VIRTUAL_ENV"))}


def uv(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run uv and return what it printed; asks the package index only for what its cache lacks.

    Skips the test where uv, or what it needs, cannot be had.
    """
    program = shutil.which("uv")
    if program is None:
        pytest.skip("uv builds and installs the distributions, and is not on the path")
    for more in (["--offline"], []):
        ran = subprocess.run(
            [program, *more, *map(str, arguments)],
            cwd=cwd,
            env={**ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        if ran.returncode == 0:
            return ran.stdout
    if any(words in ran.stderr for words in UNREACHABLE):
        pytest.skip(f"uv's cache lacks what `uv {arguments[0]}` needs, and the package index cannot be reached")
    raise AssertionError(f"uv {' '.join(map(str, arguments))}: {ran.stderr}")


def copy_of_the_checkout(folder: Path) -> Path:
    """Copy what belongs to the project, so that nothing is built in the checkout."""
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_PARTS_OF_A_CHECKOUT)))


def build(kind: str, checkout: Path, folder: Path) -> Path:
    """Build the wheel or the sdist of a checkout."""
    uv("build", f"--{kind}", "--out-dir", folder, cwd=checkout)
    (built,) = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    return built


@dataclass(frozen=True)
class Environment:
    """A virtual environment with gpuqueue's dependencies, and gpuqueue as it was installed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, checkout: Path, *what: str | Path, python: Path = Path(sys.executable)) -> Environment:
        """Make one of the locked dependencies, and install `what` there."""
        only_dependencies = ("--locked", "--no-dev", "--no-install-project")
        uv("sync", *only_dependencies, "--python", python, cwd=checkout, UV_PROJECT_ENVIRONMENT=str(folder))
        made = cls(folder)
        uv("pip", "install", "--no-deps", "--python", made.program("python"), *what, cwd=checkout)
        uv("pip", "check", "--python", made.program("python"), cwd=checkout)
        return made

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    @contextmanager
    def start(self, name: str, *arguments: str | Path, cwd: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start a program of this environment, outside of any checkout; a warning is an error."""
        with started(
            [self.program(name), *map(str, arguments)],
            cwd=cwd,
            env={**ENVIRONMENT, "PYTHONWARNINGS": "error", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            yield process

    def run(self, name: str, *arguments: str | Path, cwd: Path) -> str:
        """Run a program that must succeed and have nothing to complain of; returns what it printed."""
        with self.start(name, *arguments, cwd=cwd) as process:
            return output(process)


def output(process: subprocess.Popen[str]) -> str:
    """Wait for a program that must succeed and have nothing to complain of; returns what it printed."""
    printed, complaints = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, complaints) == (0, ""), f"{complaints}{printed}"
    return printed
