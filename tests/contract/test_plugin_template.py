"""The page of the plugins is true: `gpuqueue plugins new` writes a distribution that is built, installed and tested as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpuqueue.cli import plugin_template
from tests.contract.installation import ENVIRONMENT, UNREACHABLE, Environment, uv
from tests.processes import LONGEST_S

PAGE = Path(__file__).parents[2] / "plugins" / "README.md"
TEMPLATE = plugin_template.files("night-shift")


@pytest.fixture(scope="module")
def fresh(wheel: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with gpuqueue alone."""
    return Environment.make(tmp_path_factory.mktemp("fresh") / "environment", checkout, wheel)


def run(commands: str, environment: Environment, cwd: Path) -> str:
    """Run what a page says in an environment that is activated; asks the package index only for what uv's cache lacks."""
    activated = {
        **ENVIRONMENT,
        "VIRTUAL_ENV": str(environment.folder),
        "PATH": f"{environment.folder / 'bin'}:{ENVIRONMENT['PATH']}",
    }
    for offline in ("1", "0"):
        begun = cwd / f"offline-{offline}"
        begun.mkdir()
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=begun,
            env={**activated, "UV_OFFLINE": offline},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        if ran.returncode == 0:
            return ran.stdout
    if any(words in ran.stderr for words in UNREACHABLE):
        pytest.skip("uv's cache lacks what the page needs, and the package index cannot be reached")
    raise AssertionError(ran.stdout + ran.stderr)


@pytest.mark.skipif(shutil.which("uv") is None, reason="the page is for uv, which is not on the path here")
def test_a_new_plugin_is_installed_and_passes_its_tests_as_the_page_says(fresh: Environment, tmp_path: Path) -> None:
    page = PAGE.read_text()
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", page, flags=re.S | re.M)
    (printed,) = re.findall(r"^```text\n(.*?)^```$", page, flags=re.S | re.M)
    ran = run(commands, fresh, tmp_path)
    assert [line for line in printed.splitlines() if line not in ran.splitlines()] == [], ran
    assert re.search(r"^\d+ passed in |=+ \d+ passed in ", ran, flags=re.M), ran
    assert not re.search(r"skipped|warning", ran), ran


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the distributions, and is not on the path here")
def test_what_is_built_of_it_has_the_module_and_is_found_when_it_is_installed(fresh: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "shift"
    fresh.run("gpuqueue", "plugins", "new", "day-shift", "--into", folder, cwd=tmp_path)
    uv("build", "--out-dir", tmp_path / "dist", cwd=folder)
    (wheel,), (sdist,) = (list((tmp_path / "dist").glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as packed:
        assert "gpuqueue_day_shift.py" in archive.namelist()
        assert f"{sdist.name.removesuffix('.tar.gz')}/gpuqueue_day_shift.py" in packed.getnames()
    uv("pip", "install", "--no-deps", "--python", fresh.program("python"), wheel, cwd=tmp_path)
    assert "day-shift" in fresh.run("gpuqueue", "plugins", cwd=tmp_path)
    (tmp_path / "gpuqueue.toml").write_text('database = "q.db"\n[day-shift]\nhold = ["mail"]\n[queues.mail]\n')
    assert "[day-shift] hold lists mail" in fresh.run("gpuqueue", "status", cwd=tmp_path)


@pytest.mark.parametrize("name", ["x", "night-shift", "test", "none", "a1-2b", "plugin", "hold"])
def test_every_name_gives_files_that_are_right(name: str, tmp_path: Path) -> None:
    plugin_template.check_name(name)
    files = plugin_template.files(name)
    for path, text in files.items():
        assert not re.search(r"\b(MODULE|CLASS|DISTRIBUTION|VERSION|NAME)\b", text), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert [len(text.splitlines()) > 5 for text in files.values()] == [True] * 5


def test_its_page_names_all_its_files() -> None:
    page = TEMPLATE["README.md"]
    assert [path for path in TEMPLATE if path != "README.md" and path not in page] == []
