"""This plugin's page is true: its configuration is the defaults, and its Python runs as shown."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from gpuqueue_openai import OpenAI
from gpuqueue_openai.settings import Settings
from gpuqueue_openai.verbs import Chat, Complete, Embed

from gpuqueue import Worker

PAGE = (Path(__file__).parents[1] / "README.md").read_text()


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.S | re.M)
    return found


def test_the_section_on_the_page_is_the_defaults_and_whole(make_gpuqueue):
    plugin = OpenAI()
    make_gpuqueue(block("toml"), plugins={"openai": plugin})
    assert plugin._settings == Settings()
    shown = re.sub("^# (api_key)", r"\1", block("toml"), flags=re.M)
    fields = {re.sub("_(s|bytes)$", "", field.name) for field in dataclasses.fields(Settings)}
    assert tomllib.loads(shown)["openai"].keys() == fields


def test_the_python_on_the_page_runs(tmp_path, monkeypatch, capsys, llama):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUQUEUE_OPENAI_URL", llama.url)
    Path("gpuqueue.toml").write_text(block("toml"))
    code = block("python")
    declared, _, used = code.partition("\n\njob = ")
    names: dict[str, object] = {}
    exec(declared, names)
    with names["gq"] as gq, Worker(gq):
        exec(f"job = {used}", names)
    assert capsys.readouterr().out == " one two three one two threelength\n2 vectors\n"


@pytest.mark.parametrize("verb", [Chat, Complete, Embed])
def test_the_verbs_on_the_page_are_those_that_there_are(verb):
    assert f"| `{verb.name}` | `{verb.required}` | `{verb.path}` |" in PAGE
