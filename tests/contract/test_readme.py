"""The README tells the truth: its generated parts equal the code, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuqueue.initial_config import initial_toml
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from tests.contract.readme import README, with_generated_parts


def test_the_generated_parts_are_those_of_the_code() -> None:
    text = README.read_text()
    assert text == with_generated_parts(text), "run: uv run python -m tests.contract.readme"


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(snippets) == 4
    module, enqueueing, working, policy = snippets
    Path("myapp.py").write_text(module)
    card = SimulatedCard(speed=50)
    with OllamaSimulator(card) as ollama:
        text = initial_toml(
            timezone="UTC", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB", ollama_url=ollama.url
        )
        Path("gpuqueue.toml").write_text(text.replace("[ollama]", '[ollama]\nsettle = "10ms"'))
        names: dict[str, object] = {}
        # The third snippet's worker serves what the second asks for.
        exec(working.replace("print(", f"exec({enqueueing!r}); print(", 1), names)
        exec(policy, names)
        for name in ("gq", "cool"):
            names[name].close()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "Answer to" in printed
    assert "reminded 9" in printed
