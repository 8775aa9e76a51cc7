"""What workers of one database must agree on: it survives the database, and each difference is worded."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gpuqueue.config.shared import SharedSettings, settings_difference, settings_digest, settings_from_shared, shared_settings
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings

GB = 10**9
REALTIME = QueueSettings("ai-realtime", gpu=True, concurrency=1, when_unavailable="reject", backend="ollama")
BATCH = QueueSettings("ai-batch", gpu=True, concurrency=1, pause=("09:00-18:00",), yields_to=("ai-realtime",))
GEMMA = ModelSettings("gemma4:e4b", 4_500_000_000, {"num_ctx": 4096, "stop": ["a", "b"]})
SETTINGS = SharedSettings(
    queues={queue.name: queue for queue in (REALTIME, BATCH)},
    devices=tuple(DeviceSettings(f"gpu{index}", 5 * GB, index=index) for index in (0, 2, 10)),
    models={GEMMA.name: GEMMA},
    backends=(BackendSettings(),),
)


def test_settings_survive_being_stored() -> None:
    shared = shared_settings(SETTINGS)
    stored = json.loads(json.dumps(shared, sort_keys=True))
    assert stored == shared
    assert settings_from_shared(stored) == SETTINGS
    assert settings_digest(stored) == settings_digest(shared)
    assert settings_difference(stored, shared) == []


queues = st.builds(
    QueueSettings,
    name=st.text(min_size=1, max_size=8),
    gpu=st.booleans(),
    concurrency=st.none() | st.integers(1, 9),
    pause=st.lists(st.sampled_from(["09:00-18:00", "mon 01:00-02:00"])).map(tuple),
    retry_every_s=st.floats(0.001, 1e6),
    priority=st.none() | st.integers(-9, 9),
)


@given(st.lists(queues, unique_by=lambda queue: queue.name))
def test_any_queues_survive_being_stored(made: list[QueueSettings]) -> None:
    settings = replace(SETTINGS, queues={queue.name: queue for queue in made})
    assert settings_from_shared(json.loads(json.dumps(shared_settings(settings)))) == settings


def test_the_digest_tells_settings_apart_and_not_their_order() -> None:
    digest = settings_digest(shared_settings(SETTINGS))
    turned = replace(SETTINGS, queues={queue.name: queue for queue in (BATCH, REALTIME)}, devices=SETTINGS.devices[::-1])
    assert settings_digest(shared_settings(turned)) == digest
    changed = replace(SETTINGS, queues={**SETTINGS.queues, "ai-batch": replace(BATCH, concurrency=2)})
    assert settings_digest(shared_settings(changed)) != digest
    assert len(digest) == 16


def test_each_difference_is_one_line_with_both_values() -> None:
    theirs = SharedSettings(
        queues={
            "ai-batch": replace(BATCH, concurrency=2, pause=(), timeout_s=90.0, priority=None),
            "mail": QueueSettings("mail"),
        },
        devices=(replace(SETTINGS.devices[0], budget_bytes=6 * GB, margin_bytes=1), *SETTINGS.devices[1:]),
        models={GEMMA.name: replace(GEMMA, options={"num_ctx": 8192, "seed": 1})},
        backends=SETTINGS.backends,
    )
    assert settings_difference(shared_settings(SETTINGS), shared_settings(theirs)) == [
        "devices.gpu0.budget_bytes: 5 GB here, 6 GB in the database",
        "devices.gpu0.margin_bytes: 0 B here, 1 B in the database",
        "models.gemma4:e4b.options.num_ctx: 4096 here, 8192 in the database",
        "models.gemma4:e4b.options.seed: not here, 1 in the database",
        'models.gemma4:e4b.options.stop: ["a", "b"] here, not in the database',
        "queues.ai-batch.concurrency: 1 here, 2 in the database",
        'queues.ai-batch.pause: ["09:00-18:00"] here, [] in the database',
        "queues.ai-batch.timeout_s: none here, 1m 30s in the database",
        "queues.ai-realtime: configured here, not in the database",
        "queues.mail: not here, configured in the database",
    ]


def test_a_difference_too_small_for_units_is_given_in_full() -> None:
    theirs = replace(SETTINGS, devices=(replace(SETTINGS.devices[0], budget_bytes=5 * GB + 1),))
    mine = replace(SETTINGS, devices=SETTINGS.devices[:1])
    assert settings_difference(shared_settings(mine), shared_settings(theirs)) == [
        "devices.gpu0.budget_bytes: 5000000000 here, 5000000001 in the database"
    ]


def test_a_setting_of_another_version_is_left_out_or_has_its_default() -> None:
    shared = {"queues": {"a": {"concurrency": 3, "colour": "red"}}, "devices": {"gpu0": {"budget_bytes": GB}}}
    assert settings_from_shared(shared) == SharedSettings(
        queues={"a": QueueSettings("a", concurrency=3)}, devices=(DeviceSettings("gpu0", GB),), models={}, backends=()
    )
