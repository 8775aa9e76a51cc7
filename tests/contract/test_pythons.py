"""Every version of Python that gpuqueue claims runs the installed wheel: the demo, and a task of each kind through a worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.installation import DEMO_KEYS, ROOT, Environment, output
from tests.processes import LONGEST_S

CLASSIFIER = "Programming Language :: Python :: "
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLAIMED = [name.removeprefix(CLASSIFIER) for name in PROJECT["classifiers"] if name.startswith(f"{CLASSIFIER}3.")]


def find_python(version: str) -> Path | None:
    """Find a Python of this version: the one that runs the tests, or one on the path, or one of pyenv's."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [*(Path(folder) / name for folder in os.get_exec_path()), *sorted(pyenv.glob(f"{version}.*/bin/{name}"))]
    return next((path for path in candidates if path.is_file() and is_python(path, version)), None)


def is_python(path: Path, version: str) -> bool:
    """Say whether this runs; a shim does not when its version is switched off."""
    code = "import sqlite3, ssl, sys; print('%d.%d' % sys.version_info[:2])"
    ran = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False, timeout=LONGEST_S)
    return ran.stdout.strip() == version


class Playing:
    """The demos of all versions, begun at once because they mostly wait."""

    def __init__(self, wheel: Path, checkout: Path, installed: Environment, folder: Path, leaving: ExitStack) -> None:
        self.environments: dict[str, Environment] = {}
        self.demos: dict[str, subprocess.Popen[str]] = {}
        for version in CLAIMED:
            python = find_python(version)
            if python is None:
                continue
            is_own = python == Path(sys.executable)
            environment = installed if is_own else Environment.make(folder / version, checkout, wheel, python=python)
            self.environments[version] = environment
            self.demos[version] = leaving.enter_context(environment.start("gpuqueue", "demo", "--json", cwd=folder))


@pytest.fixture(scope="module")
def playing(wheel: Path, checkout: Path, installed: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playing]:
    with ExitStack() as leaving:
        yield Playing(wheel, checkout, installed, tmp_path_factory.mktemp("pythons"), leaving)


def expect_there_is_one(version: str, playing: Playing) -> None:
    if version not in playing.environments:
        pytest.skip(f"no Python {version} is on the path or in pyenv's folder")


@pytest.mark.parametrize("version", CLAIMED)
def test_this_python_runs_each_kind_of_task(version: str, playing: Playing, tmp_path: Path) -> None:
    expect_there_is_one(version, playing)
    application = shutil.copy(Path(__file__).with_name("installed_application.py"), tmp_path)
    assert playing.environments[version].run("python", application, cwd=tmp_path) == "11 12 13\n"


@pytest.mark.parametrize("version", CLAIMED)
def test_this_python_plays_the_demo(version: str, playing: Playing) -> None:
    expect_there_is_one(version, playing)
    assert json.loads(output(playing.demos[version])).keys() == DEMO_KEYS


def test_the_oldest_version_that_is_claimed_is_the_one_that_is_needed() -> None:
    assert PROJECT["requires-python"] == f">={CLAIMED[0]}"
