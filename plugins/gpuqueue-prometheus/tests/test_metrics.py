"""The metrics: gauges as of the scrape, and counters and histograms of the queue's events."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
from gpuqueue_prometheus.counting import Counting
from gpuqueue_prometheus.gauges import device_gauges
from gpuqueue_prometheus.metrics import ENQUEUED, METRICS
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from gpuqueue import Discard, JobCancelled, JobFailed, Snooze
from gpuqueue.plugins import Resident
from gpuqueue.testing import wait_until
from gpuqueue.testing.views import NOW, device
from gpuqueue.testing.waiting import DEADLINE_S

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
GEMMA, NOMIC = "gemma4:e4b", "nomic-embed-text"
GB = 10**9


@pytest.fixture
def note(gq):
    """A task of the queue `mail`."""
    return gq.task(name="note", queue="mail")(lambda: None)


def test_jobs_are_counted_by_queue_and_state(serve, gq):
    idle = threading.Event()
    started = threading.Event()

    @gq.task(name="wait", queue="work")
    def wait() -> None:
        started.set()
        idle.wait(DEADLINE_S)

    served = serve(gq)
    wait.enqueue()
    wait.using(delay="1h").enqueue()
    wait.using(queue="mail", delay="1h").enqueue()
    assert started.wait(DEADLINE_S)
    found = served.samples()
    idle.set()
    counted = {labels: value for (name, labels), value in found.items() if name == "gpuqueue_jobs" and value}
    assert counted == {("work", "running"): 1, ("work", "scheduled"): 1, ("mail", "scheduled"): 1}
    assert found["gpuqueue_jobs", ("mail", "discarded")] == 0, "what is not there is told as 0"
    assert found["gpuqueue_workers", ()] == 1
    assert found["gpuqueue_queue_served", ("mail",)] == 1


def test_a_queue_begins_with_zeros_so_that_its_first_failure_is_an_increase(serve, gq):
    served = serve(gq)
    found = served.samples()
    for name in ("enqueued", "preemptions", "rescues"):
        assert found[f"gpuqueue_{name}_total", ("mail",)] == 0
    assert found["gpuqueue_finished_total", ("discarded", "mail")] == 0
    assert found["gpuqueue_wait_seconds_count", ("mail",)] == 0


def test_what_finishes_is_counted_by_outcome(serve, gq):
    @gq.task(name="end", queue="work")
    def end(how: str) -> None:
        if how == "fails":
            raise Discard("no")

    served = serve(gq)
    end.enqueue(how="well").result(timeout_s=DEADLINE_S)
    with pytest.raises(JobFailed):
        end.enqueue(how="fails").result(timeout_s=DEADLINE_S)
    stopped = end.using(delay="1h").enqueue(how="well")
    stopped.cancel()
    with pytest.raises(JobCancelled):
        stopped.result(timeout_s=DEADLINE_S)
    found = served.samples()
    for outcome in ("completed", "discarded", "cancelled"):
        assert found["gpuqueue_finished_total", (outcome, "work")] == 1
    assert found["gpuqueue_enqueued_total", ("work",)] == 3
    assert found["gpuqueue_run_seconds_count", ("work", "end")] == 1, "of completed attempts only"


def test_each_start_adds_its_wait_and_each_completion_its_run(serve, gq):
    began = []

    @gq.task(name="twice", queue="work", max_attempts=2)
    def twice() -> None:
        began.append(1)
        if len(began) == 1:
            raise Snooze("50ms")

    served = serve(gq)
    job = twice.enqueue()
    job.result(timeout_s=DEADLINE_S)
    found = served.samples()
    assert found["gpuqueue_wait_seconds_count", ("work",)] == 2
    assert 0 < found["gpuqueue_wait_seconds_sum", ("work",)] < 20
    assert found["gpuqueue_preemptions_total", ("work",)] == 0, "it postponed itself"
    record = job.refresh().record
    ran_s = (record.finished_at - record.started_at).total_seconds()
    assert found["gpuqueue_run_seconds_sum", ("work", "twice")] == pytest.approx(ran_s)
    buckets = [found["gpuqueue_wait_seconds_bucket", (bound, "work")] for bound in ("0.05", "1.0", "30.0", "+Inf")]
    assert buckets == sorted(buckets) and buckets[-2:] == [2, 2]


def test_a_hold_is_told_with_its_reason_until_it_ends(serve, gq):
    served = serve(gq)
    gq.pause("mail", reason="maintenance")
    assert served.value("gpuqueue_queue_held", "mail", "paused") == 1
    gq.resume("mail")
    assert served.value("gpuqueue_queue_held", "mail", "paused") is None


def test_the_next_worker_counts_on_from_zero_with_what_nobody_had_counted(serve, gq, note):
    served = serve(gq)
    note.enqueue().result(timeout_s=DEADLINE_S)
    assert served.value("gpuqueue_finished_total", "completed", "mail") == 1
    served.worker.stop()
    note.enqueue()
    note.enqueue()
    again = serve(gq)
    assert again.value("gpuqueue_enqueued_total", "mail") == 2
    wait_until(lambda: again.value("gpuqueue_finished_total", "completed", "mail") == 2, "they ran, and were counted")


def test_a_follower_that_was_forgotten_begins_anew(serve, gq, note):
    served = serve(gq)
    gq.follow("prometheus").forget()
    served.samples()
    note.enqueue()
    assert served.value("gpuqueue_enqueued_total", "mail") == 1


def test_events_that_cannot_be_passed_are_not_counted_twice(gq, note):
    counting = Counting(gq)
    note.enqueue()
    with closing(sqlite3.connect(gq.database)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE UPDATE ON followers BEGIN SELECT RAISE(ABORT, 'not now'); END")
        counting.catch_up()
        note.enqueue()
        counting.catch_up()
        connection.execute("DROP TRIGGER no")
    note.enqueue()
    samples, _ = counting.counted(["mail"])
    assert {sample.value for sample in samples if sample.spec is ENQUEUED and sample.labels == ("mail",)} == {3}
    with gq.read() as reader:
        assert reader.followers() == {"prometheus": None}


def test_a_backlog_is_counted_whole(gq, note):
    counting = Counting(gq)
    gq.enqueue_many([(note, {})] * 6000)
    samples, _ = counting.counted([])
    assert not [sample for sample in samples if sample.value == 6000], "a scrape does not wait for all of it"
    assert not counting.catch_up()
    samples, _ = counting.counted([])
    assert [sample.value for sample in samples if sample.spec is ENQUEUED] == [6000]


def test_an_old_reading_of_a_card_tells_nothing_of_now():
    card = replace(device(total_bytes=8 * GB, free_bytes=3 * GB), residents=(Resident("m", 2 * GB, 2 * GB),))

    def found(age_s):
        return {sample.spec.name: sample.value for sample in device_gauges(card, NOW + timedelta(seconds=age_s))}

    fresh = found(59)
    assert (fresh["gpuqueue_vram_used_bytes"], fresh["gpuqueue_device_up"]) == (5 * GB, 1)
    assert fresh["gpuqueue_vram_own_bytes"] == 2 * GB
    assert fresh.keys() - found(61).keys() == {"gpuqueue_vram_used_bytes", "gpuqueue_vram_total_bytes", "gpuqueue_device_up"}


def test_a_follower_that_is_behind_tells_its_lag(serve, gq):
    served = serve(gq)
    mirror = gq.follow("mirror")
    assert served.value("gpuqueue_follower_lag_seconds", "mirror") == 0
    gq.pause("mail")
    wait_until(lambda: served.value("gpuqueue_follower_lag_seconds", "mirror") > 0.05, "time passes")
    mirror.advance(mirror.read()[-1].id)
    assert served.value("gpuqueue_follower_lag_seconds", "mirror") == 0


KILLED = """
import sys, time
from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue_prometheus import Prometheus
gq = GPUQueue.from_config(sys.argv[1], discover_plugins=False, plugins={"prometheus": Prometheus()})
@gq.task(name="die", queue="work")
def die() -> None:
    current_job().log("began")
    time.sleep(60)
Worker(gq, queues=["work"]).run()
"""


def test_a_job_of_a_worker_that_was_killed_is_counted_as_rescued(serve, gq, tmp_path):
    served = serve(gq, queues=["mail"])
    job = gq.task(name="die", queue="work")(lambda: None).enqueue()
    config = tmp_path / "gpuqueue.toml"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(config)]) as victim:
        try:
            wait_until(job.logs, "it runs")
        finally:
            victim.kill()
    wait_until(lambda: served.value("gpuqueue_rescues_total", "work") == 1, "it is rescued")
    assert served.value("gpuqueue_queue_served", "work") == 0


def test_the_card_its_models_and_their_tokens_are_told(serve, make_gq, ai_toml, simulated_card):
    served = serve(make_gq(ai_toml))
    embedded = served.gq.ollama.embed(NOMIC, input="a few words", queue="ai-batch").result(timeout_s=DEADLINE_S)
    person = served.gq.ollama.generate(GEMMA, prompt="now", queue="ai-realtime", options={"num_predict": 5})
    answer = person.result(timeout_s=DEADLINE_S)
    found = served.samples()
    assert found["gpuqueue_model_loads_total", ("gpu0", GEMMA)] == 1
    assert found["gpuqueue_model_loads_total", ("gpu0", NOMIC)] == 1
    assert simulated_card.load_count == 2
    tokens = {labels: value for (name, labels), value in found.items() if name == "gpuqueue_tokens_total"}
    assert tokens == {
        ("output", GEMMA): answer["output_tokens"],
        ("prompt", GEMMA): answer["prompt_tokens"],
        ("prompt", NOMIC): embedded["prompt_tokens"],
    }
    assert found["gpuqueue_vram_budget_bytes", ("gpu0",)] == 5 * GB
    assert found["gpuqueue_vram_total_bytes", ("gpu0",)] == simulated_card.reading().total_bytes
    assert found["gpuqueue_device_up", ("gpu0",)] == 1
    assert found["gpuqueue_backend_up", ("ollama",)] == 1
    assert found["gpuqueue_run_seconds_count", ("ai-realtime", "ollama.generate")] == 1


def test_memory_is_told_as_used_reserved_and_own(serve, make_gq, ai_toml, simulated_card):
    served = serve(make_gq(ai_toml))
    simulated_card.take(GB)
    job = served.gq.ollama.generate(GEMMA, prompt="later", queue="ai-batch", options={"num_predict": 2000})
    next(iter(job.stream(timeout_s=DEADLINE_S)))
    reserved = served.value("gpuqueue_vram_reserved_bytes", "gpu0")
    assert reserved and reserved > 4 * GB
    assert served.value("gpuqueue_vram_own_bytes", "gpu0") == reserved
    wait_until(lambda: served.value("gpuqueue_vram_used_bytes", "gpu0") == simulated_card.used_bytes, "the card is read again")
    job.cancel()
    wait_until(lambda: served.value("gpuqueue_vram_reserved_bytes", "gpu0") == 0, "the memory is back")
    simulated_card.give(GB)


def test_a_model_that_stays_loaded_is_the_queues_own_without_a_reservation(serve, make_gq, ai_toml):
    served = serve(make_gq(ai_toml.replace('margin = "3GB"\n', 'margin = "3GB"\nkeep_warm = "1h"\n')))
    served.gq.ollama.generate(GEMMA, prompt="now", queue="ai-realtime", options={"num_predict": 5}).result(timeout_s=DEADLINE_S)
    wait_until(lambda: served.value("gpuqueue_vram_reserved_bytes", "gpu0") == 0, "its clean-up is done")
    found = served.samples()
    assert found["gpuqueue_vram_own_bytes", ("gpu0",)] == found["gpuqueue_model_vram_bytes", ("gpu0", GEMMA)] > 4 * GB


def test_an_attempt_that_makes_room_is_counted_as_a_preemption(serve, make_gq, ai_toml, simulated_card):
    served = serve(make_gq(ai_toml))
    batch = served.gq.ollama.generate(GEMMA, prompt="later", queue="ai-batch", options={"num_predict": 400})
    next(iter(batch.stream(timeout_s=DEADLINE_S)))
    served.gq.ollama.generate(GEMMA, prompt="now", queue="ai-realtime", options={"num_predict": 5}).result(timeout_s=DEADLINE_S)
    batch.result(timeout_s=DEADLINE_S)
    found = served.samples()
    assert found["gpuqueue_preemptions_total", ("ai-batch",)] == 1
    assert found["gpuqueue_preemptions_total", ("ai-realtime",)] == 0
    assert found["gpuqueue_wait_seconds_count", ("ai-batch",)] == 2
    assert found["gpuqueue_finished_total", ("completed", "ai-batch")] == 1
    assert found["gpuqueue_model_loads_total", ("gpu0", GEMMA)] == simulated_card.load_count


def test_a_backend_that_is_away_and_a_lost_device_are_told(serve, make_gq, ai_toml, ollama_server, simulated_card):
    served = serve(make_gq(ai_toml))
    ollama_server.go_away()
    wait_until(lambda: served.value("gpuqueue_backend_up", "ollama") == 0, "a worker notices")
    assert served.value("gpuqueue_queue_held", "ai-batch", "unavailable") == 1
    simulated_card.lost = True
    wait_until(lambda: served.value("gpuqueue_device_up", "gpu0") == 0, "the card is read again")
    assert served.value("gpuqueue_vram_used_bytes", "gpu0") is None, "nothing is known of its memory"
    simulated_card.lost = False


def exposed(served, accept, parse):
    """Everything there is to see of every metric: {family: (type, help, label names)}."""
    page = served.get("/metrics", accept)
    return page, {
        family.name: (family.type, family.documentation, {label for sample in family.samples for label in sample.labels})
        for family in parse(page.text)
    }


def test_both_formats_hold_every_metric_that_there_is_and_only_their_labels(serve, make_gq, ai_toml):
    served = serve(make_gq(ai_toml))
    served.gq.pause("ai-batch")
    served.gq.ollama.generate(GEMMA, prompt="now", queue="ai-realtime", options={"num_predict": 5}).result(timeout_s=DEADLINE_S)
    text, plain = exposed(served, "", text_string_to_metric_families)
    assert text.content_type.startswith("text/plain; version=")
    openmetrics, strict = exposed(served, OPENMETRICS, openmetrics_families)
    assert openmetrics.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    for found in (plain, strict):
        assert found.keys() == {spec.name.removesuffix("_total") for spec in METRICS}
        for spec in METRICS:
            kind, documentation, labels = found[spec.name.removesuffix("_total")]
            assert (kind, documentation) == (spec.kind, spec.help)
            assert labels <= {*spec.labels, "le"}


def test_no_label_is_an_id(serve, gq, note):
    served = serve(gq)
    for _ in range(3):
        note.enqueue().result(timeout_s=DEADLINE_S)
    series = served.samples().keys()
    for _ in range(3):
        note.enqueue().result(timeout_s=DEADLINE_S)
    assert served.samples().keys() == series, "more jobs make no more series"
    assert {label for spec in METRICS for label in spec.labels} == {
        "backend", "device", "follower", "kind", "model", "outcome", "queue", "reason", "service", "state", "task", "version",
    }  # fmt: skip
