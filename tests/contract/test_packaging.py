"""What is built is complete and what is installed works: from the wheel, the sdist, an editable checkout, and with uvx."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest

import gpuqueue
from gpuqueue.store.sqlite import migrate
from tests.contract.installation import DEMO_KEYS, Environment, uv
from tests.old_files import make_old_file

OPEN = """
import json, sys, gpuqueue
with gpuqueue.GPUQueue(sys.argv[1], discover_plugins=False) as gq:
    print(json.dumps([gpuqueue.__file__, [[job.task, job.record.arguments] for job in gq.jobs()]]))
"""


def files_of_the_package(checkout: Path) -> set[str]:
    """Every file that must be installed, named as it is in the checkout; of what is there to be read only the documentation."""
    files = (path for folder in (checkout / "gpuqueue", checkout / "migrations") for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(checkout).as_posix() for path in files if path.suffix != ".md" or path.parent.name == "docs"}


def test_the_wheel_has_the_package_with_its_migrations_and_types_and_nothing_else(wheel: Path, checkout: Path) -> None:
    expected = {re.sub("^migrations/", "gpuqueue/migrations/", name) for name in files_of_the_package(checkout)}
    assert expected >= {
        "gpuqueue/py.typed",
        "gpuqueue/docs/states.md",
        "gpuqueue/migrations/env.py",
        "gpuqueue/migrations/script.py.mako",
    }
    described = f"gpuqueue-{gpuqueue.__version__}.dist-info"
    records = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected | {f"{described}/{name}" for name in records}
        assert archive.read(f"{described}/licenses/LICENSE") == (checkout / "LICENSE").read_bytes()


def test_the_sdist_has_what_the_package_is_built_from_and_nothing_else(sdist: Path, checkout: Path) -> None:
    folder = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {member.name.removeprefix(f"{folder}/") for member in archive.getmembers() if member.isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in packed if name.startswith("gpuqueue.egg-info/"))}
    given = {"LICENSE", "README.md", "pyproject.toml"}
    by_setuptools = {f"tests/{path.name}" for path in (checkout / "tests").glob("test*.py")}  # it takes these along unasked
    assert packed == files_of_the_package(checkout) | given | made | by_setuptools


def test_the_distribution_is_of_the_packages_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        described = message_from_bytes(archive.read(f"gpuqueue-{gpuqueue.__version__}.dist-info/METADATA"))
    assert described["Version"] == gpuqueue.__version__ == metadata.version("gpuqueue")
    assert described["License-Expression"] == "MIT"


# --- installing ---


@pytest.fixture(scope="module")
def old_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that a gpuqueue of the first schema version made, with one job."""
    path = tmp_path_factory.mktemp("old") / "old.db"
    make_old_file(path, "0001")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at, arguments) "
            "VALUES ('default', 'app.task', 'available', 0, 0, '{\"x\":1}')"
        )
    connection.close()
    return path


@pytest.fixture(params=["wheel", "sdist", "editable"])
def environment(request: pytest.FixtureRequest, checkout: Path, tmp_path: Path) -> Environment:
    """An environment in which gpuqueue was installed in one of the ways there are."""
    if request.param == "wheel":
        installed: Environment = request.getfixturevalue("installed")
        return installed
    what = ["--editable", checkout] if request.param == "editable" else [request.getfixturevalue("sdist")]
    return Environment.make(tmp_path / "environment", checkout, *what)


def schema_of(path: Path) -> str | None:
    connection = sqlite3.connect(path)
    found = migrate.version(connection)
    connection.close()
    return found


def test_what_is_installed_finds_its_migrations(
    environment: Environment, checkout: Path, old_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    old = Path(shutil.copy(old_file, tmp_path / "old.db"))
    assert schema_of(old) == "0001"
    found = {}
    for path in (tmp_path / "new.db", old):
        file, found[path.name] = json.loads(environment.run("python", "-I", "-c", OPEN, path, cwd=tmp_path))
        assert schema_of(path) == migrate.head()
        is_editable = request.node.callspec.params["environment"] == "editable"
        assert Path(file).is_relative_to(checkout if is_editable else environment.folder)
    assert found == {"new.db": [], "old.db": [["app.task", {"x": 1}]]}


# --- uvx ---


def uvx(project: Path, *arguments: str) -> str:
    return uv("tool", "run", "--python", sys.executable, "--from", ".", "gpuqueue", *arguments, cwd=project)


@pytest.fixture(scope="module", autouse=True)
def played_by_uvx(checkout: Path) -> Iterator[Future[str]]:
    """What the demo prints; it mostly waits, so it plays beside all the other tests of this file."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(uvx, checkout, "demo", "--json")


def test_uvx_runs_the_checkout_as_it_is_now(checkout: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(checkout, tmp_path / "gpuqueue"))
    assert gpuqueue.__version__ in uvx(project, "--version")
    (project / "gpuqueue" / "cli" / "__init__.py").write_text("def main() -> None:\n    print('changed')\n")
    assert uvx(project, "--version") == "changed\n"


def test_uvx_plays_the_demo_from_a_checkout(played_by_uvx: Future[str]) -> None:
    assert json.loads(played_by_uvx.result()).keys() == DEMO_KEYS
