"""The page of the thermal plugin is true: its files are those that it shows, and its quick start runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import LONGEST_S, started

ROOT = Path(__file__).parents[2]
THERMAL = ROOT / "plugins" / "gpuqueue-thermal"
PAGE = THERMAL / "README.md"
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", "fresh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the quick start touches, so that it leaves nothing in the checkout."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "uv.lock"):
        shutil.copy(ROOT / name, copy)
    for name in ("gpuqueue", "migrations", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_COPIED)
    return copy


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)


@pytest.mark.skipif(shutil.which("uv") is None, reason="the quick start is for uv, which is not on the path here")
def test_the_quick_start_runs_and_prints_what_the_page_says(checkout: Path) -> None:
    (commands,) = blocks("bash")
    (printed,) = blocks("text")
    unset = ("VIRTUAL_ENV", "PYTHONPATH", "GPUQUEUE_CONFIG", "GPUQUEUE_DATABASE", "GPUQUEUE_THERMAL_LIMIT")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    with started(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=checkout / "plugins" / THERMAL.name,
        env={**environment, "TMPDIR": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as ran:
        output, _ = ran.communicate()
    assert ran.returncode == 0, output
    for line in printed.splitlines():
        assert line in output.splitlines(), output
    assert re.search(r"=+ \d+ passed in ", output), output
    assert "skipped" not in output


@pytest.mark.parametrize("name", ["gpuqueue_thermal.py", "pyproject.toml", "tests/test_suite.py"])
def test_the_files_are_those_on_the_page(name: str) -> None:
    shown = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)
    assert shown, f"the page does not show {name}"
    whole = (THERMAL / name).read_text()
    own, _, of_the_workspace = whole.partition("\n# In gpuqueue's own repository")
    assert shown[1].rstrip() == own.rstrip()
    assert bool(of_the_workspace) == (name == "pyproject.toml")


def test_the_situations_are_as_many_as_the_page_says() -> None:
    from gpuqueue.testing.situations import SITUATIONS

    assert len(SITUATIONS) == 14
    assert "in fourteen situations" in PAGE.read_text()


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the distributions, and is not on the path here")
def test_gpuqueues_own_distributions_have_nothing_of_its_plugins(checkout: Path) -> None:
    command = ["uv", "build", "--package", "gpuqueue", "--out-dir", "out"]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True, timeout=LONGEST_S)
    (wheel,), (sdist,) = (list((checkout / "out").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as packed:
        names = [*archive.namelist(), *packed.getnames()]
    assert "gpuqueue/testing/policies.py" in names
    assert [name for name in names if "thermal" in name or "plugins/" in name] == []
