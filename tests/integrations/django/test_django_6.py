"""Django 6: its own tests of its tasks pass with gpuqueue's backends, but for those named, and the quick start runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gpuqueue.simulators.ollama import OllamaSimulator
from tests.contract.installation import ROOT, copy_of_the_checkout, uv
from tests.contract.test_pythons import find_python
from tests.contract.test_readme_django import play
from tests.contract.test_readme_web import ENVIRONMENT
from tests.integrations.django.djangos_suite import LEFT_OUT
from tests.processes import LONGEST_S

PYTHONS = ("3.13", "3.12")  # those that Django 6 runs on, as far as gpuqueue claims them
UNREACHABLE = ("Failed to establish a new connection", "Name or service not known", "Max retries exceeded", "Temporary failure")


@pytest.fixture(scope="module")
def django6(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with gpuqueue and the Django 6 that the lock names."""
    python = next((found for version in PYTHONS if (found := find_python(version)) is not None), None)
    if python is None:
        pytest.skip(
            f"Django 6 needs a newer Python than this one, {sys.version_info.major}.{sys.version_info.minor}; none was found"
        )
    checkout = copy_of_the_checkout(tmp_path_factory.mktemp("django6") / "gpuqueue")
    folder = checkout.parent / "environment"
    words = ("sync", "--locked", "--no-dev", "--extra", "django", "--python", python)
    uv(*words, cwd=checkout, UV_PROJECT_ENVIRONMENT=str(folder))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def djangos_tests(django6: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the same Django, from its source distribution."""
    ask = [django6, "-c", "import django; print(django.get_version())"]
    version = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=LONGEST_S).stdout.strip()
    folder = tmp_path_factory.mktemp("sdist")
    pip = ("tool", "run", "--python", django6.resolve(), "--from", "pip", "pip", "download", "--no-deps", "--no-binary", "django")
    try:
        uv(*pip, "--dest", folder, f"django=={version}", cwd=folder)
    except AssertionError as error:
        if any(words in str(error) for words in UNREACHABLE):
            pytest.skip(f"Django {version}'s source distribution cannot be fetched: the package index cannot be reached")
        raise
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        top = packed.name.removesuffix(".tar.gz")
        archive.extractall(folder, [one for one in archive if one.name.startswith(f"{top}/tests/tasks/")], filter="data")
    return folder / top / "tests"


def test_djangos_own_tests_of_its_tasks_pass(django6: Path, djangos_tests: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "integrations" / "django" / "djangos_suite.py"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GPUQUEUE_", "DJANGO_"))}
    ran = subprocess.run(
        [django6, script, djangos_tests, tmp_path], capture_output=True, text=True, timeout=300, check=False, env=inherited
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["failed"] == [], ran.stderr
    assert sorted(found["left_out"]) == sorted(LEFT_OUT), "each one that is named is there, and no other is left out"
    assert found["skipped"] == 0
    assert found["ran"] > 70


def test_the_quick_start_of_the_readme_runs_on_this_django_too(
    django6: Path, tmp_path: Path, ollama_server: OllamaSimulator
) -> None:
    play(tmp_path, OLLAMA_HOST=ollama_server.url, PATH=f"{django6.parent}:{ENVIRONMENT['PATH']}")
