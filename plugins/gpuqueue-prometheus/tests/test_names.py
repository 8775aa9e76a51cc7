"""The names of metrics follow Prometheus's rules, and made-up names of models and tasks stay few."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from gpuqueue_prometheus.counting import MOST_NAMES, Tally
from gpuqueue_prometheus.metrics import METRICS, MODEL_LOADS, RUN

from gpuqueue.plugins import Event

UNITS = ("seconds", "bytes")
OTHER_UNITS = r"_(ms|milliseconds|minutes|hours|kb|mb|gb|kib|mib|gib|percent)(_|$)"


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_a_name_follows_the_rules(spec):
    assert re.fullmatch(r"gpuqueue_[a-z]+(_[a-z]+)*", spec.name)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    assert not re.search(r"_(count|sum|bucket|created)$", spec.name), "these are made by histograms"
    assert not re.search(OTHER_UNITS, spec.name), "units are base units"
    measured = spec.kind == "histogram" or any(unit in spec.name for unit in UNITS)
    assert not measured or spec.name.endswith(UNITS), "the unit comes last"
    assert all(re.fullmatch(r"[a-z]+", label) and label not in spec.name.split("_")[-1] for label in spec.labels)
    assert spec.help.endswith(".") and (spec.kind == "histogram") == bool(spec.buckets)
    assert list(spec.buckets) == sorted(set(spec.buckets))


def test_each_name_is_there_once():
    assert len({spec.name for spec in METRICS}) == len(METRICS)


def test_names_that_callers_make_up_become_other_when_they_are_too_many():
    tally = Tally()
    for number in range(MOST_NAMES + 50):
        tally.take(Event(number, datetime.now(UTC), "model_loading", None, None, {"device": "gpu0", "model": f"m{number}"}))
        ended = {"state": "completed", "task": f"t{number}", "ran_s": 1.0}
        tally.take(Event(number, datetime.now(UTC), "job_finished", number, "work", ended))
    loads = {sample.labels: sample.value for sample in tally.samples() if sample.spec is MODEL_LOADS}
    assert len(loads) == MOST_NAMES + 1 and loads["gpu0", "other"] == 50
    runs = {found.labels: sum(found.counts) for found in tally.distributions() if found.spec is RUN}
    assert len(runs) == MOST_NAMES + 1 and runs["work", "other"] == 50
