"""The section `[openai]`: its settings, how wrong ones are rejected, and that nothing shows the key."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gpuqueue_openai import VERBS, OpenAI
from gpuqueue_openai.settings import Settings, read_settings

from gpuqueue.plugins import BackendSettings, ConfigurationError, RegisterExecutorsDetails, hookimpl
from gpuqueue.testing.waiting import DEADLINE_S


@pytest.fixture
def read(make_gpuqueue):
    """`read(section)` makes a queue object with this section, and returns the settings that the plugin took from it."""

    class Reads:
        @hookimpl
        def configure(self, details):
            self.settings = read_settings(details.table)

    def read(section=""):
        reads = Reads()
        make_gpuqueue(f"[openai]\n{section}\n", plugins={"openai": reads})
        return reads.settings

    return read


def test_without_a_section_it_is_a_llama_cpp_on_this_machine_with_the_patience_that_ollama_gets(read):
    settings, ollama = read(), BackendSettings()
    assert settings == Settings()
    assert (settings.url, settings.api_key, settings.vram_bytes) == ("http://127.0.0.1:8080/v1", "", 0)
    for name in ("connect_s", "first_token_s", "gap_s", "total_s"):
        assert getattr(settings, name) == getattr(ollama, name)


def test_everything_can_be_set(read):
    assert read(
        'url = "https://ai.example:8000/v1/"\napi_key = "sk-1"\nconnect = "2s"\nfirst_token = "1m"\ngap = "3s"\n'
        'total = "4m"\nvram = "5GB"'
    ) == Settings("https://ai.example:8000/v1", "sk-1", 2, 60, 3, 240, vram_bytes=5 * 10**9)


def test_the_key_comes_from_the_environment_and_loses_the_line_end_of_the_file_it_was_in(read, monkeypatch):
    monkeypatch.setenv("GPUQUEUE_OPENAI_API_KEY", "sk-env\n")
    assert read('api_key = "sk-file"').api_key == "sk-env"


@pytest.mark.parametrize("key", ['"sk-sécret"', '"sk secret"', '"sk\\nsecret"', "'  '", "12345678", '["sk-secret"]'])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(read, key):
    with pytest.raises(ConfigurationError, match=r"openai\.api_key: the key must be non-empty printable ASCII") as caught:
        read(f"api_key = {key}")
    assert not any(part in str(caught.value) for part in ("secret", "sécret", "12345678"))


def test_the_key_is_in_no_picture_of_the_settings():
    assert "sk-secret" not in repr(Settings(api_key="sk-secret"))


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ('ulr = "x"', r"unknown setting 'ulr' \(did you mean 'url'\?\)"),
        ('url = "127.0.0.1:8080"', "url must look like http://127.0.0.1:8080/v1"),
        ('url = "ftp://x/v1"', "url must look like"),
        ('url = "http:///v1"', "url must look like"),
        ('url = "http://x:port/v1"', "url must look like"),
        ('url = "http://x:0/v1"', "url must look like"),
        ('url = "http://x/v1?key=1"', "url must look like"),
        ('url = "http://x y/v1"', "url must look like"),
        ('url = "http://x/v1/chat/completions"', "url must not include /chat/completions; it usually ends in /v1"),
        ('url = "http://ann:pw@x/v1"\napi_key = "sk-1"', "a request can carry only one of them"),
        ('gap = "soon"', "gap"),
        ('first_token = "0s"', "must be greater than 0"),
        ('vram = "lots"', "vram"),
    ],
)
def test_a_wrong_setting_is_refused(read, section, wrong):
    with pytest.raises(ConfigurationError, match=wrong) as caught:
        read(section)
    assert "gpuqueue.toml: openai" in str(caught.value)
    assert "pw" not in str(caught.value) and "sk-1" not in str(caught.value)


def test_it_is_found_where_it_is_installed(make_gpuqueue):
    answered = ["attempt_failed", "configure", "job_demand", "register_executors"]
    assert ("openai", answered) in [(name, sorted(hooks)) for name, hooks in make_gpuqueue(discover_plugins=True).plugins.names()]


def test_the_verbs_that_it_sizes_are_those_that_it_runs():
    assert OpenAI().register_executors(RegisterExecutorsDetails((), {}, ())).keys() == VERBS


def test_what_a_web_process_loads_has_no_http_client_in_it():
    code = "import sys, gpuqueue_openai; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=DEADLINE_S).returncode == 0
