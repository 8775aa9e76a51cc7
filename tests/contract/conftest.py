"""Owns the distributions of this checkout, built once, and an environment with the wheel, which several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.installation import Environment, build, copy_of_the_checkout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout."""
    return copy_of_the_checkout(tmp_path_factory.mktemp("checkout") / "gpuqueue")


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def installed(wheel: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, for the Python that runs the tests."""
    return Environment.make(tmp_path_factory.mktemp("installed") / "environment", checkout, wheel)
