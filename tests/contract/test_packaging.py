"""What is installed is complete: the wheel, the wheel built from the sdist, and the editable checkout all migrate a new file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = "import sys, gpuqueue; gq = gpuqueue.GPUQueue(sys.argv[1]); gq.pause('default'); gq.close(); print(gpuqueue.__file__)"


def build(source: Path, out: Path, kind: str) -> Path:
    """Build a distribution from a copy, so that no build folder is left in the checkout."""
    subprocess.run(["uv", "build", f"--{kind}", "--out-dir", str(out), str(source)], check=True, capture_output=True)
    (built,) = [path for path in out.iterdir() if path.suffix in (".whl", ".gz")]
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("gpuqueue", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def opens_a_new_database(python_path: Path | None, database: Path) -> str:
    environment = {"PYTHONPATH": str(python_path)} if python_path else {}
    ran = subprocess.run(
        [sys.executable, "-c", OPEN, str(database)], cwd=database.parent, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the distributions, and is not on the path here")
def test_the_wheel_has_every_module_and_migrates(source: Path, tmp_path: Path) -> None:
    wheel = build(source, tmp_path / "wheel", "wheel")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpuqueue").rglob("*.py")}
    migrations = {f"gpuqueue/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "migrations").rglob("*.py")}
    assert modules | migrations | {"gpuqueue/py.typed", "gpuqueue/migrations/script.py.mako"} <= packed
    assert not any(name.startswith(("tests/", "migrations/")) for name in packed)
    assert opens_a_new_database(tmp_path / "installed", tmp_path / "queue.db").startswith(str(tmp_path))


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the distributions, and is not on the path here")
def test_a_wheel_built_from_the_sdist_migrates(source: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, tmp_path / "wheel", "wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert opens_a_new_database(tmp_path / "installed", tmp_path / "queue.db").startswith(str(tmp_path))


def test_the_checkout_migrates(tmp_path: Path) -> None:
    assert opens_a_new_database(None, tmp_path / "queue.db").startswith(str(ROOT))
