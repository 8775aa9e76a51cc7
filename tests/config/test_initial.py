"""The configuration that is written first, and the time zone that it names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gpuqueue.config.initial import initial_toml, local_timezone
from gpuqueue.config.loading import Config

GB = 10**9


def test_the_first_configuration_is_valid_and_is_the_scenario(tmp_path: Path) -> None:
    path = tmp_path / "gpuqueue.toml"
    path.write_text(
        initial_toml(timezone="Asia/Bangkok", budget="5GB", margin=3 * GB, model="gemma4:e4b", model_vram=4_500_000_000)
    )
    config = Config.load(path, environ={})
    assert config.database == f"sqlite:///{tmp_path}/gpuqueue.db"
    assert [(device.budget_bytes, device.margin_bytes) for device in config.devices] == [(5 * GB, 3 * GB)]
    assert {name: model.vram_bytes for name, model in config.models.items()} == {
        "gemma4:e4b": 4_500_000_000,
        "nomic-embed-text": 500_000_000,
    }
    assert list(config.queues) == ["ai-realtime", "ai-batch", "rfa-reminders", "rfa-distribution"]
    batch = config.queues["ai-batch"]
    assert (batch.pause, batch.timezone, batch.yields_to) == (("09:00-18:00",), "Asia/Bangkok", ("ai-realtime",))
    assert config.backends[0].url == "http://127.0.0.1:11434"


def test_what_is_given_is_written(tmp_path: Path) -> None:
    data = tomllib.loads(
        initial_toml(
            timezone="Europe/Berlin",
            budget=3_456_789_012,
            margin=10,
            model='odd "name"',
            model_vram="1GB",
            ollama_url="http://gpu-host:11434",
            database="/srv/jobs.db",
        )
    )
    assert data["database"] == "/srv/jobs.db"
    assert data["gpu"]["budget"] == "3456MB", "never more than was asked for"
    assert data["gpu"]["margin"] == "10B"
    assert data["ollama"]["url"] == "http://gpu-host:11434"
    assert 'odd "name"' in data["models"]
    assert data["queues"]["ai-batch"]["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("model", "budget", "models"),
    [("nomic-embed-text", "1GB", ["nomic-embed-text"]), ("tiny", "400MB", ["tiny"])],
)
def test_the_embedding_model_is_written_once_and_only_where_it_fits(model: str, budget: str, models: list[str]) -> None:
    text = initial_toml(timezone="UTC", budget=budget, margin=0, model=model, model_vram="300MB")
    assert list(tomllib.loads(text)["models"]) == models


def etc_with(tmp_path: Path, *, timezone: str | None = None, localtime: str | None = None) -> Path:
    if timezone is not None:
        (tmp_path / "timezone").write_text(timezone)
    if localtime is not None:
        (tmp_path / "localtime").symlink_to(localtime)
    return tmp_path


@pytest.mark.parametrize(
    ("tz", "timezone", "localtime", "zone"),
    [
        ("Europe/Berlin", "Asia/Bangkok\n", None, "Europe/Berlin"),
        (":Europe/Berlin", None, None, "Europe/Berlin"),
        ("/usr/share/zoneinfo/Europe/Berlin", None, None, "Europe/Berlin"),
        ("<+07>-7", "Asia/Bangkok\n", None, "Asia/Bangkok"),
        ("", "Asia/Bangkok\n", "/none/zoneinfo/Europe/Berlin", "Asia/Bangkok"),
        ("", "nonsense", "/none/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("", None, "/none/zoneinfo.default/Europe/Berlin", "Europe/Berlin"),
        ("", None, "/none/zoneinfo/posix/Europe/Berlin", "Europe/Berlin"),
        ("", None, "/none/elsewhere", "UTC"),
        ("", None, None, "UTC"),
    ],
)
def test_the_machines_zone_is_found(tmp_path: Path, tz: str, timezone: str | None, localtime: str | None, zone: str) -> None:
    etc = etc_with(tmp_path, timezone=timezone, localtime=localtime)
    assert local_timezone(environ={"TZ": tz}, etc=etc) == zone
