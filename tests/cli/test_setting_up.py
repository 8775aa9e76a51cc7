"""Setting up: init writes what this machine has, doctor finds what is wrong, plugins bring commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import Config, UsageError
from gpuqueue.cli.initialise import GB, choose_memory, choose_model
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from tests.processes import read_until, started

Run = Callable[..., Any]


def test_init_writes_the_scenario_with_what_is_here(folder: Path, run: Run) -> None:
    with OllamaSimulator() as ollama, simulated_nvml(SimulatedCard()):
        ran = run("init", "--ollama", ollama.url)
    assert ran.status == 0
    config = Config.load(folder / "gpuqueue.toml", environ={})
    assert list(config.queues) == ["ai-realtime", "ai-batch", "rfa-reminders", "rfa-distribution"]
    assert "gemma4:e4b" in config.models
    assert (config.devices[0].budget_bytes, config.devices[0].margin_bytes) == (5 * GB, 3 * GB)
    assert config.queues["ai-batch"].timezone == "UTC"
    assert "gpuqueue worker" in ran.out
    assert "ollama pull" not in ran.out


def test_init_says_what_is_missing(folder: Path, run: Run) -> None:
    ran = run("init", "--ollama", "127.0.0.1:9", "--path", "deep.toml")
    assert ran.status == 0
    assert "does not answer" in ran.out
    assert "ollama pull gemma4:e4b" in ran.out
    assert f"--config {folder / 'deep.toml'} worker" in ran.out


def test_init_overwrites_only_when_forced(folder: Path, run: Run) -> None:
    file = folder / "gpuqueue.toml"
    file.write_text("mine", encoding="utf-8")
    ran = run("init", "--ollama", "127.0.0.1:9")
    assert ran.status == 2
    assert str(file) in ran.err
    assert "--force" in ran.err
    assert file.read_text(encoding="utf-8") == "mine"
    assert run("init", "--ollama", "127.0.0.1:9", "--force").status == 0
    assert Config.load(file, environ={}).queues


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--budget", "5"], "5"),
        (["--budget", "lots"], "--budget"),
        (["--ollama", "ftp://x"], "ftp://x"),
        (["--path", "no/such/folder/gpuqueue.toml"], "no/such/folder"),
        (["--budget", "1GB"], "gemma4:e4b"),
    ],
)
def test_init_with_a_wrong_option_writes_nothing(folder: Path, run: Run, options: list[str], name: str) -> None:
    ran = run("init", "--ollama", "127.0.0.1:9", *options)
    assert ran.status == 2
    assert name in ran.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("total", "budget", "margin", "chosen"),
    [
        (None, None, None, (5 * GB, 3 * GB)),
        (8_589_934_592, None, None, (5 * GB, 3 * GB)),
        (6_442_450_944, None, None, (4 * GB, 2 * GB)),
        (24 * GB, None, None, (21 * GB, 3 * GB)),
        (8 * GB, 6 * GB, None, (6 * GB, 2 * GB)),
        (8 * GB, None, 1 * GB, (7 * GB, 1 * GB)),
    ],
)
def test_budget_and_margin_fit_the_card(
    total: int | None, budget: int | None, margin: int | None, chosen: tuple[int, int]
) -> None:
    assert choose_memory(total, budget, margin) == chosen


def test_a_budget_that_cannot_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="do not fit the card"):
        choose_memory(8 * GB, 6 * GB, 3 * GB)


def test_the_model_is_one_that_the_ollama_has_and_that_fits() -> None:
    models = {"llama3.2:3b": 2 * GB, "big:70b": 40 * GB, "nomic-embed-text:latest": GB // 4}
    assert choose_model(None, models, 5 * GB)[0] == "llama3.2:3b"
    assert choose_model(None, {**models, "gemma4:e4b": 9 * GB}, 5 * GB) == ("gemma4:e4b", 4_500_000_000)
    with pytest.raises(UsageError, match="big:70b"):
        choose_model("big:70b", models, 5 * GB)


def test_doctor_is_content_with_a_working_set_up(folder: Path, run: Run, simulator: OllamaSimulator) -> None:
    with simulated_nvml(SimulatedCard()):
        ran = run("doctor")
        assert ran.status == 0, ran.out
        assert "no problems" in ran.out
        assert not (folder / "jobs.db").exists()
        found = json.loads(run("doctor", "--json").out)
    assert found["ok"] is True
    assert {"python", "sqlite", "clock", "configuration", "models"} <= {check["check"] for check in found["checks"]}


def test_doctor_says_how_to_mend_what_is_wrong(configured: Path, run: Run) -> None:
    run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    (configured / "jobs.db").chmod(0o644)
    ran = run("doctor")
    assert ran.status == 1
    assert "backend ollama" in ran.out
    assert "no worker serves it; 1 job waiting" in ran.out
    assert "chmod 600" in ran.out


def test_doctor_names_a_model_that_is_missing_and_a_card_that_is_too_small(configured: Path, run: Run) -> None:
    with OllamaSimulator(models=()) as ollama, simulated_nvml(SimulatedCard(total_bytes=6 * GB)):
        text = (configured / "gpuqueue.toml").read_text(encoding="utf-8")
        (configured / "gpuqueue.toml").write_text(text.replace("http://127.0.0.1:9", ollama.url), encoding="utf-8")
        ran = run("doctor")
    assert ran.status == 1
    assert "ollama pull gemma4:e4b" in ran.out
    assert "lower [gpu] budget or margin" in ran.out


OLLAMA = """
import subprocess
runner = ["llama-server", "runner.py", "-np", "2"]
subprocess.Popen(runner, executable={python!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE).stdout.readline()
print("ready", flush=True)
input()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc to look into")
@pytest.mark.parametrize("num_parallel", [1, 2, 4])
@pytest.mark.parametrize("source", ["runner", "variable"])
def test_doctor_compares_num_parallel_with_how_the_ollama_here_was_started(
    folder: Path, run: Run, simulator: OllamaSimulator, num_parallel: int, source: str
) -> None:
    (folder / "serve").write_text(OLLAMA.format(python=sys.executable), encoding="utf-8")
    (folder / "runner.py").write_text("print('ready', flush=True)\ninput()\n", encoding="utf-8")
    text = (folder / "gpuqueue.toml").read_text(encoding="utf-8")
    text = text.replace("[ollama]\n", f"[ollama]\nnum_parallel = {num_parallel}\n")
    (folder / "gpuqueue.toml").write_text(text, encoding="utf-8")
    variables = {**os.environ, "OLLAMA_HOST": simulator.url, **({"OLLAMA_NUM_PARALLEL": "2"} if source == "variable" else {})}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(["ollama", "serve"], executable=sys.executable, cwd=folder, env=variables, **pipes) as ollama:
        read_until(ollama.stdout, "ready")
        ran = run("doctor", "--json")
    assert ran.out, ran.err
    found = json.loads(ran.out)["checks"]
    (check,) = (check for check in found if "was started for 2 requests of a model at once" in check["detail"])
    assert ("its runner" if source == "runner" else "OLLAMA_NUM_PARALLEL") in check["detail"]
    if num_parallel == 2:
        assert (check["level"], check["mend"]) == ("ok", None)
    else:
        then = "more memory than its jobs reserve" if num_parallel == 1 else "jobs wait for each other inside Ollama"
        assert (check["level"], then in check["detail"]) == ("warn", True)
        assert check["mend"] == f"set [ollama] num_parallel = 2, or restart Ollama with OLLAMA_NUM_PARALLEL={num_parallel}"


def test_doctor_names_a_section_that_no_plugin_reads(configured: Path, run: Run) -> None:
    with (configured / "gpuqueue.toml").open("a", encoding="utf-8") as file:
        file.write("[humidity]\nlimit = 80\n")
    found = json.loads(run("doctor", "--json").out)["checks"]
    (wrong,) = [check for check in found if check["check"] == "configuration"]
    assert (wrong["level"], "the plugin is not installed" in wrong["detail"]) == ("problem", True)


def test_doctor_without_a_configuration_tells_how_to_begin(folder: Path, run: Run) -> None:
    ran = run("doctor")
    assert ran.status == 1
    assert "gpuqueue init" in ran.out


def test_a_plugin_adds_a_command_and_replaces_none(folder: Path, run: Run) -> None:
    install_plugin(
        folder,
        "import click\n"
        "from gpuqueue import hookimpl\n"
        "@hookimpl\n"
        "def register_commands(details):\n"
        "    details.cli.add_command(click.Command('hello', callback=lambda: click.echo('hello from a plugin')))\n"
        "    details.cli.add_command(click.Command('plugins', callback=lambda: click.echo('mine')))\n",
    )
    assert "hello" in run("--help").out
    assert run("hello").out == "hello from a plugin\n"
    listed = {plugin["name"]: plugin for plugin in json.loads(run("plugins", "--json").out)["plugins"]}
    about = {"name": "greeter", "kind": "installed", "distribution": "greeter", "version": "1.0"}
    assert listed["greeter"] == {**about, "hooks": ["register_commands"], "blocked": False}
    assert ["greeter", "greeter", "1.0", "register_commands"] in [line.split() for line in run("plugins").out.splitlines()]
    (folder / "gpuqueue.toml").write_text('[plugins]\nblock = ["greeter"]\n', encoding="utf-8")
    listed = {plugin["name"]: plugin for plugin in json.loads(run("plugins", "--json").out)["plugins"]}
    assert listed["greeter"] == {**about, "hooks": [], "blocked": True}


def test_a_broken_plugin_leaves_the_help_and_says_so(folder: Path, run: Run) -> None:
    install_plugin(
        folder,
        "from gpuqueue import hookimpl\n@hookimpl\ndef register_commands(details):\n    raise RuntimeError('half installed')\n",
    )
    ran = run("--help")
    assert ran.status == 0
    assert "status" in ran.out
    assert "half installed" in ran.err


def test_a_failing_plugin_is_a_problem_with_a_way_out(configured: Path, run: Run) -> None:
    run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    install_plugin(
        configured,
        "from gpuqueue import hookimpl\n@hookimpl\ndef queue_hold(details):\n    raise ValueError\n",
    )
    for words in (("doctor",), ("status",), ("explain", "1")):
        ran = run(*words)
        assert "plugin 'greeter' failed in queue_hold: ValueError" in ran.out
        assert '→ fix the plugin, or disable it: [plugins] block = ["greeter"]' in ran.out
    assert "no problems" not in run("doctor").out


def install_plugin(folder: Path, code: str) -> None:
    """Put a distribution with an entry point beside the configuration, where this process finds it."""
    module = f"greeter_{abs(hash(str(folder)))}"
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / "greeter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[gpuqueue]\ngreeter = {module}\n", encoding="utf-8")
