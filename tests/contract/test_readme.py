"""The README tells the truth: its generated parts equal the code, and its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import Worker
from gpuqueue.config.initial import initial_toml
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.contract.readme import HOUSE, README, house, with_generated_parts
from tests.processes import LONGEST_S


def test_the_generated_parts_are_those_of_the_code() -> None:
    text = README.read_text()
    assert text == with_generated_parts(text), "run: uv run python -m tests.contract.readme"
    assert HOUSE.read_text() == house(), "run: uv run python -m tests.contract.readme"


SNIPPET = re.compile(r"(?:<!-- file: (\S+) -->\n)?```python\n(.*?)```", flags=re.S)
SAID = """\
Answer to
reminded 9
Dear Ana, …
Dear Ben, …
approved
reminded 10
"""


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each snippet as it stands, in its order; those that name a file are that file of the application."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    snippets = SNIPPET.findall(README.read_text())
    for file, snippet in snippets:
        if file:
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(snippet)
    card = SimulatedCard(speed=50)
    names: dict[str, Any] = {}
    with ExitStack() as leaving, OllamaSimulator(card) as ollama:
        text = initial_toml(
            timezone="UTC", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB", ollama_url=ollama.url
        )
        Path("gpuqueue.toml").write_text(text.replace("[ollama]", '[ollama]\nsettle = "10ms"'))
        gq = import_module("myapp").gq
        import_module("letters")
        leaving.callback(gq.close)
        leaving.enter_context(Worker(gq))  # as `gpuqueue worker --app myapp:gq` does beside the application
        for file, snippet in snippets:
            if not file:
                exec(snippet, names)
        names["engine"].dispose()
        leaving.callback(names["cool"].close)
        render = import_module("letters").render
        assert render.enqueue(rfa_id=7).result(timeout_s=DEADLINE_S) == "rfa-7.pdf"
    printed = capsys.readouterr().out
    assert [line for line in SAID.splitlines() if line not in printed] == []


def test_the_tests_of_the_readme_pass(tmp_path: Path) -> None:
    """As an application's own, beside its module and what `gpuqueue init` writes."""
    for file, snippet in SNIPPET.findall(README.read_text()):
        if file in ("myapp.py", "conftest.py", "test_reminders.py"):
            (tmp_path / file).write_text(snippet)
    text = initial_toml(timezone="UTC", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB")
    (tmp_path / "gpuqueue.toml").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert not (tmp_path / "gpuqueue.db").exists(), "the tests made jobs in the application's own file"
