"""The admin site's pages, asked by Django's test client, on a real file with jobs in every state."""

from __future__ import annotations

import html
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connections
from django.test import Client, override_settings

from gpuqueue import State, Worker, current_job
from gpuqueue.domain.job import FINISHED
from gpuqueue.domain.settings import Rate, WindowRule
from gpuqueue.integrations.django import DjangoQueue, job_of
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.store.sqlite import migrate
from gpuqueue.testing import run_until_idle, travel
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import GEMMA, Gate
from tests.integrations.django.conftest import BACKEND, DUMMY, UseDatabase, UseQueue
from tests.integrations.django.tasks import gates, wait

QUEUES, JOBS = "/admin/gpuqueue/queue/", "/admin/gpuqueue/job/"
CARDS, WORKERS = f"{QUEUES}cards/", f"{QUEUES}workers/"
EVIL = "<script>alert('&')</script>"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `manage.py migrate` makes of an empty one; made once, and copied."""
    file = tmp_path_factory.mktemp("migrated") / "app.db"
    connections.settings["migrated"] = {**connections.settings["default"], "NAME": file, "OPTIONS": {}}
    call_command("migrate", database="migrated", verbosity=0)
    connections["migrated"].close()
    del connections["migrated"], connections.settings["migrated"]
    return file


@pytest.fixture
def site(use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path, migrated: Path) -> DjangoQueue:
    """A site with its tables in `app.db`, and a queue in `gpuqueue.db` that has no file yet."""
    shutil.copy(migrated, tmp_path / "app.db")
    use_database()
    return use_queue(file=tmp_path / "gpuqueue.db")


@pytest.fixture
def gq(site: DjangoQueue) -> DjangoQueue:
    """The site's queue, with its file."""
    site.counts()
    return site


def client_of(*permissions: str, staff: bool = True, csrf: bool = False) -> Client:
    """Log a person in who has these permissions, "*" all."""
    name = f"user-{User.objects.count()}"
    user = User.objects.create(username=name, is_staff=staff, is_superuser="*" in permissions)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions, content_type__app_label="gpuqueue"))
    client = Client(enforce_csrf_checks=csrf)
    client.force_login(user)
    return client


@pytest.fixture
def boss(site: DjangoQueue) -> Client:
    return client_of("*")


def text_of(page: Any) -> str:
    """What a person reads of a page."""
    words = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page.content.decode(), flags=re.S))
    return " ".join(html.unescape(words).split())


def read(client: Client, url: str, status: int = 200) -> str:
    page = client.get(url)
    assert page.status_code == status, page.content.decode()[:2000]
    return text_of(page)


def post(client: Client, url: str, **data: Any) -> str:
    """Send a form and return what its sender reads then."""
    page = client.post(url, data, follow=True)
    assert [status for _, status in page.redirect_chain] == [302]
    assert page.status_code == 200
    return text_of(page)


def job_url(job: Any) -> str:
    return f"{JOBS}{job.id}/change/"


@pytest.fixture
def of_every_state(gq: DjangoQueue) -> Iterator[dict[State, Any]]:
    """A job in each state: {state: job}; the running one runs in a worker that lives."""
    gate = Gate()

    @gq.task(name="shop.count", queue="first", max_attempts=2)
    def count(until: int, how: str = "") -> int:
        current_job().log(f"counting to {until}")
        current_job().emit("one, two")
        if how == "wait":
            gate.pass_through()
        if how:
            raise ValueError(f"cannot count to {until}")
        return until

    gq.queue("second")
    jobs = {State.COMPLETED: count.enqueue(until=3), State.CANCELLED: count.enqueue(until=4)}
    jobs[State.CANCELLED].cancel()
    jobs[State.DISCARDED] = count.using(max_attempts=1).enqueue(until=5, how="fail")
    run_until_idle(gq)
    jobs[State.RETRYABLE] = count.using(max_attempts=9).enqueue(until=6, how="fail")
    with Worker(gq, queues=["first"]):
        jobs[State.RUNNING] = count.enqueue(until=7, how="wait")
        gate.wait_reached()
        assert next(jobs[State.RUNNING].follow_logs(timeout_s=DEADLINE_S)).message == "counting to 7"
        assert next(jobs[State.RUNNING].stream(timeout_s=DEADLINE_S)) == "one, two"
        jobs[State.SCHEDULED] = count.using(delay="1h", tags=("night",)).enqueue(until=8)
        jobs[State.AVAILABLE] = count.using(queue="second", priority=4).enqueue(until=9)
        for _ in jobs[State.RETRYABLE].watch(timeout_s=DEADLINE_S):
            if jobs[State.RETRYABLE].refresh().state is State.RETRYABLE:
                break
        assert {state: job.refresh().state for state, job in jobs.items()} == {state: state for state in State}
        yield jobs
        gate.opened.set()


# --- looking ---


def test_the_index_of_the_admin_site_leads_to_the_pages(boss: Client, gq: DjangoQueue) -> None:
    page = boss.get("/admin/").content.decode()
    assert f'href="{QUEUES}"' in page and f'href="{JOBS}"' in page
    assert "/add/" not in re.sub(r"/admin/auth/\S*", "", page)
    assert "Queues" in read(boss, "/admin/gpuqueue/")


def test_the_queues_are_shown_with_their_jobs_by_state_and_what_holds_them(boss: Client, of_every_state: dict[Any, Any]) -> None:
    page = boss.get(QUEUES)
    shown = text_of(page)
    for state in State:
        assert str(state) in shown
        assert f"state={state}" in page.content.decode(), "the number leads to the jobs"
    assert "no worker serves it, 1 waiting" in shown


@pytest.mark.parametrize(("hour", "is_night"), [(12, False), (22, True)])
def test_a_queue_is_shown_with_its_pause_and_settings(
    boss: Client, use_queue: UseQueue, tmp_path: Path, hour: int, is_night: bool
) -> None:
    gq = use_queue(file=tmp_path / "gpuqueue.db", gpu={"budget": "5GB", "margin": "2GB"})
    gq.queue("default")
    night = WindowRule("18:00-09:00", concurrency=1, rate=Rate(3, 3600))
    settings = {"rate": Rate(10, 300), "timeout_s": 5400, "retry_every_s": 0.5, "min_run_s": 0, "windows": (night,), "gpu": True}
    gq.queue("ai batch/1", concurrency=3, pause=("09:00-18:00",), yields_to=("default",), **settings)
    with travel(gq, datetime(2031, 6, 2, hour, tzinfo=UTC)):
        gq.enqueue_many([(gq.task(name="x", queue="ai batch/1")(print), {})])
        gq.pause("ai batch/1", reason="the card is being changed", until="2h", by="ada")
        (url,) = re.findall(r'href="(/admin/gpuqueue/queue/ai[^"]+)"', boss.get(QUEUES).content.decode())
        shown = read(boss, url)
    assert "paused by ada (the card is being changed) until" in shown
    assert "Paused since" in shown and "2h from now" in shown
    for words in (
        *("gpu true", "concurrency 3", 'pause ["09:00-18:00"]', 'yields_to ["default"]', 'overrun "finish"', "fallback –"),
        *('rate "10/5m"', 'timeout "90m"', 'retry_every "500ms"', 'min_run "0s"', 'nearly_done "1s"', "max_attempts –"),
        'windows [{ at = "18:00-09:00", concurrency = 1, rate = "3/h" }]',
    ):
        assert words in shown, words
    assert ('Now concurrency 1, rate "3/h": its window 18:00-09:00 UTC' in shown) is is_night
    assert ("Now " in shown) is is_night


def test_a_queue_that_does_not_exist_is_not_found(boss: Client, gq: DjangoQueue) -> None:
    assert "unknown queue 'nobody'" in read(boss, f"{QUEUES}nobody/change/", 404)


def test_the_jobs_are_listed_and_filtered_by_queue_and_state(boss: Client, of_every_state: dict[Any, Any]) -> None:
    def listed(query: str = "") -> list[int]:
        return [int(found) for found in re.findall(r"/job/(\d+)/change/", boss.get(f"{JOBS}{query}").content.decode())]

    every = sorted((job.id for job in of_every_state.values()), reverse=True)
    assert listed() == every
    for state, job in of_every_state.items():
        assert listed(f"?state={state}") == [job.id]
    assert listed("?queue=second") == [of_every_state[State.AVAILABLE].id]
    assert listed("?queue=second&state=running") == []
    assert "unknown state 'lost'" in read(boss, f"{JOBS}?state=lost")
    assert "unknown queue 'nobody'" in read(boss, f"{JOBS}?queue=nobody", 404)
    assert "after must be a job id, not 'x'" in read(boss, f"{JOBS}?after=x")


def test_jobs_are_searched_by_id_and_by_a_part_of_their_tasks_name(boss: Client, gq: DjangoQueue) -> None:
    bills = gq.task(name="shop.bills.send")(lambda: None)
    others = gq.task(name="shop.Letters.send")(lambda: None)
    gq.enqueue_many([(bills, {}), (others, {})])

    def listed(query: str) -> list[str]:
        return re.findall(r"/job/(\d+)/change/", boss.get(f"{JOBS}?{query}").content.decode())

    assert (listed("q=2"), listed("q=%231"), listed("q=3"), listed("q=99999999999999999999")) == (["2"], ["1"], [], [])
    assert (listed("q=BILLS"), listed("q=letters"), listed("q=send"), listed("q=none")) == (["1"], ["2"], ["2", "1"], [])
    assert (listed("q=send&queue=default&state=available"), listed("q=send&state=running")) == (["2", "1"], [])


def leafed(client: Client, url: str, link: str) -> list[list[int]]:
    """Follow a link of the list's as long as there is one, and return the ids of each page, and the last page's address."""
    pages = []
    while True:
        page = client.get(url).content.decode()
        pages.append([int(found) for found in re.findall(r"/job/(\d+)/change/", page)])
        further = re.search(rf'href="(\?[^"]*)">{link}<', page)
        if further is None:
            return pages
        url = JOBS + html.unescape(further[1])


@pytest.mark.parametrize("query", ["queue=default", "q=man", "state=available"])
def test_pages_of_jobs_follow_each_other_both_ways_without_losing_one(boss: Client, gq: DjangoQueue, query: str) -> None:
    gq.enqueue_many([(gq.task(name="many", queue="default")(lambda: None), {})] * 120)
    gq.job(60).cancel()
    every = [job_id for job_id in range(120, 0, -1) if job_id != 60 or "state" not in query]
    older = leafed(boss, f"{JOBS}?{query}", "Older")
    assert older == [every[:50], every[50:100], every[100:]]
    newer = leafed(boss, f"{JOBS}?{query}&after={older[-1][0] + 1}", "Newer")
    assert newer == [every[100:], every[50:100], every[:50]]
    # From an odd place the way up ends with a whole page of the newest.
    newer = leafed(boss, f"{JOBS}?{query}&after=30", "Newer")
    assert [len(page) for page in newer] == [29, 50, 50] and newer[-1] == every[:50]
    assert "Newest" not in read(boss, f"{JOBS}?{query}") and "Newest" in read(boss, f"{JOBS}?{query}&after=30")


def test_a_list_that_has_lost_its_jobs_leads_back_to_others(boss: Client, gq: DjangoQueue) -> None:
    gq.enqueue_many([(gq.task(name="many", queue="default")(lambda: None), {})] * 3)
    assert leafed(boss, f"{JOBS}?after=1", "Newer") == [[], [3, 2, 1]]
    assert leafed(boss, f"{JOBS}?before=3", "Older") == [[3, 2, 1]]
    assert leafed(boss, f"{JOBS}?before={2**63 - 1}", "Older") == [[3, 2, 1]]
    assert leafed(boss, f"{JOBS}?after=0", "Newer") == [[], [3, 2, 1]]
    assert "before must be a job id, not &#x27;x&#x27;" in boss.get(f"{JOBS}?before=x").content.decode()


def test_a_search_that_finds_nothing_near_says_how_far_it_looked(
    boss: Client, gq: DjangoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    gq.enqueue_many([(gq.task(name="rare")(lambda: None), {})] + [(gq.task(name="many")(lambda: None), {})] * 30)
    monkeypatch.setattr("gpuqueue.store.sqlite.search.LOOKED_AT", 20)
    page = boss.get(f"{JOBS}?q=rare").content.decode()
    further = re.search(r'href="(\?[^"]*)">Search more', page)
    assert further is not None and "/job/1/change/" not in page and "Older" not in page
    page = boss.get(JOBS + html.unescape(further[1])).content.decode()
    assert "/job/1/change/" in page
    gq.enqueue_many([(gq.tasks["rare"], {})] * 2)
    assert leafed(boss, f"{JOBS}?q=rare&after=2", "Newer") == [[1], []]
    assert leafed(boss, f"{JOBS}?q=rare&before=1", "Older") == [[], [1]]
    assert leafed(boss, f"{JOBS}?q=rare&before=1", "Search more")[:2] == [[], [33, 32]]


@pytest.mark.parametrize("state", list(State))
def test_a_job_of_each_state_is_shown_with_all_that_is_known_of_it(
    boss: Client, of_every_state: dict[Any, Any], gq: DjangoQueue, state: State
) -> None:
    job = of_every_state[state]
    page = boss.get(job_url(job))
    shown = text_of(page)
    assert f"{state} shop.count in" in shown and '"until": ' in shown and "enqueued" in shown
    summary = gq.explain(job.id).summary
    assert summary[1:20] in shown
    assert ('value="retry"' in page.content.decode()) == (state in ("discarded", "cancelled", "retryable", "scheduled"))
    assert ('value="cancel"' in page.content.decode()) == (state not in FINISHED)
    expected = {
        State.COMPLETED: ("Result 3", "Output one, two", "counting to 3", "attempt 1 started on"),
        State.DISCARDED: ("failed : ValueError: cannot count to 5", "Traceback", "attempt 1 discarded"),
        State.RETRYABLE: ("attempt 1 retried", "Attempts that did not complete", "cannot count to 6"),
        State.RUNNING: ("counting to 7", "one, two", job.refresh().record.worker_id),
        State.SCHEDULED: ("not due", "tags night", "due"),
        State.AVAILABLE: ("no_worker : no worker serves queue 'second'", "python manage.py gpuqueue_worker", "priority 4"),
        State.CANCELLED: ("cancelled",),
    }
    for words in expected[state]:
        assert words in shown


def test_a_job_that_does_not_exist_is_not_found(boss: Client, gq: DjangoQueue) -> None:
    for name in ("7", "x", "0", "99999999999999999999", "other:1"):
        page = boss.get(f"{JOBS}{name}/change/")
        assert page.status_code == (200 if ":" in name else 404)
        assert "unknown job" in text_of(page) or "TASKS has no gpuqueue entry 'other'" in text_of(page)


def test_what_a_job_says_is_text_and_no_markup(boss: Client, gq: DjangoQueue) -> None:
    @gq.task(name="evil", max_attempts=1, queue="default")
    def evil(text: str, ends: str) -> str:
        current_job().log(EVIL)
        current_job().emit(EVIL)
        current_job().progress(0.5, note=EVIL)
        if ends == "fail":
            raise ValueError(EVIL)
        return EVIL

    gq.pause("default", reason=EVIL, by=EVIL)
    jobs = [evil.using(tags=(EVIL,)).enqueue(text=EVIL, ends=ends) for ends in ("fail", "well")]
    urls = [QUEUES, f"{QUEUES}default/change/", JOBS, *map(job_url, jobs), CARDS, WORKERS, f"{JOBS}?q={EVIL}&state=x{EVIL}"]
    for resumed in (False, True):
        if resumed:
            gq.resume("default")
            run_until_idle(gq)
        for url in urls:
            assert "<script>alert" not in boss.get(url).content.decode(), url
    for job in jobs:
        assert read(boss, job_url(job)).count(EVIL) >= 5


def test_half_a_character_and_long_texts_do_not_break_a_page(
    boss: Client, gq: DjangoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "gpuqueue")  # half a character in a test's log is more than pytest-xdist can carry

    @gq.task(name="odd", queue="default")
    def odd(text: str) -> None:
        raise ValueError("half a character: \ud83d")

    half, long = odd.enqueue(text="\0"), odd.enqueue(text="x" * 100_000)
    run_until_idle(gq)
    for url in (job_url(half), JOBS):
        assert r"half a character: \ud83d" in read(boss, url)
    page = boss.get(job_url(long)).content
    assert len(page) < 60_000 and b"more characters" in page
    assert b"x" * 100_000 in boss.get(f"{job_url(long)}?whole=1").content


def test_many_numbers_in_a_row_are_cut_unless_all_is_asked_for(boss: Client, gq: DjangoQueue) -> None:
    vectors = [[-0.5, 1e-07, *range(40)], [1, 2, 3]]
    job = gq.task(name="embed", queue="default")(lambda words: {"context": [7] * 500, "vectors": vectors}).enqueue(
        words="x\n" * 30
    )
    run_until_idle(gq)
    shown = read(boss, job_url(job))
    assert '"context": [7, 7, 7, 7, 7, … 495 more numbers]' in shown and "[-0.5, 1e-07, 0, 1, 2, … 37 more numbers]" in shown
    assert "[ 1, 2, 3 ]" in shown and "more characters" in shown and "x\\n" * 30 in shown
    whole = read(boss, f"{job_url(job)}?whole=1")
    assert "more numbers" not in whole and "more characters" not in whole and "7, " * 499 in whole


def test_how_far_a_running_job_is_stands_near_its_state(boss: Client, gq: DjangoQueue, until: Callable[..., Any]) -> None:
    gate = Gate()

    @gq.task(name="copy", queue="default")
    def copy() -> None:
        current_job().progress(0.385, note="page 4")
        gate.pass_through()

    job = copy.enqueue()
    with Worker(gq):
        gate.wait_reached()
        until(lambda: "38 %" in read(boss, job_url(job)), "what it said is stored")
        page = boss.get(job_url(job)).content.decode()
        assert re.search(r'running</span>.*?<progress max="100" value="38.5"></progress> 38 % \(page 4\).*Arguments', page, re.S)
        gate.opened.set()
        job.result(timeout_s=DEADLINE_S)
    assert "<progress" not in boss.get(job_url(job)).content.decode()


def test_the_workers_are_shown_with_what_they_run(boss: Client, of_every_state: dict[Any, Any], gq: DjangoQueue) -> None:
    (worker,) = gq.workers()
    shown = read(boss, WORKERS)
    assert worker.id in shown and "Serves first" in shown and f"process {worker.pid}" in shown
    assert job_url(of_every_state[State.RUNNING]) in boss.get(WORKERS).content.decode()


def test_without_a_worker_the_command_that_starts_one_is_shown(boss: Client, gq: DjangoQueue) -> None:
    assert "python manage.py gpuqueue_worker" in read(boss, WORKERS)
    assert "python manage.py gpuqueue_worker" in read(boss, QUEUES)


def test_a_card_is_shown_with_what_is_loaded_and_reserved_and_how_it_is(
    boss: Client,
    use_queue: UseQueue,
    simulated_card: SimulatedCard,
    ollama_server: OllamaSimulator,
    until: Callable[..., Any],
) -> None:
    gq = use_queue(
        gpu={"budget": "5GB", "margin": "2GB", "keep_warm": "1h"},
        ollama={"url": ollama_server.url.replace("//", "//user:secret@"), "settle": "30ms"},
        models={GEMMA: {"vram": "4.5GB"}},
        queues={"ai": {"gpu": True, "backend": "ollama"}},
    )
    gq.counts()
    assert "no worker has read the card yet" in read(boss, CARDS)
    gate = Gate()
    gates["card"] = gate
    with Worker(gq):
        gq.ollama.generate(GEMMA, prompt="hello", queue="ai", options={"num_predict": 2}).result(timeout_s=DEADLINE_S)
        job = job_of(wait.using(model=GEMMA, queue_name="ai").enqueue("card"))
        gate.wait_reached()
        until(lambda: f"Loaded {GEMMA}" in read(boss, CARDS), "the model is shown")
        shown = read(boss, CARDS)
        assert "4.5 GB of 5 GB budget reserved, 2 GB margin" in shown
        assert f"job {job.id} (ai) is running with {GEMMA}, 4.5 GB reserved" in shown
        assert job_url(job) in boss.get(CARDS).content.decode()
        assert "used" in shown and "% busy" in shown and "available (checked" in shown
        assert "ollama http://127.0.0.1" in shown and "secret" not in shown
        gate.opened.set()


def test_an_outage_is_shown(boss: Client, use_queue: UseQueue, until: Callable[..., Any]) -> None:
    gq = use_queue(
        gpu={"budget": "5GB", "margin": "2GB"},
        ollama={"url": "http://127.0.0.1:9", "probe_every": "100ms"},
        queues={"ai": {"gpu": True, "backend": "ollama", "when_unavailable": "retry"}},
    )
    job = gq.ollama.generate(GEMMA, prompt="hello", queue="ai")
    with Worker(gq):
        until(lambda: "unavailable since" in read(boss, CARDS), "the outage is shown")
        assert "next check at" in read(boss, CARDS)
        assert "python manage.py gpuqueue doctor" in read(boss, job_url(job))


def test_a_page_refreshes_itself_only_when_it_is_asked_to(boss: Client, gq: DjangoQueue) -> None:
    for url in (QUEUES, JOBS, CARDS, WORKERS):
        plain, refreshing = (boss.get(f"{url}{query}").content.decode() for query in ("", "?refresh=5"))
        assert 'http-equiv="refresh"' not in plain and "?refresh=5" in plain and "Refresh every 5 s" in plain
        assert '<meta http-equiv="refresh" content="5">' in refreshing and "Stop refreshing" in refreshing
    assert 'http-equiv="refresh"' not in boss.get(f"{QUEUES}?refresh=now").content.decode()


@override_settings(USE_THOUSAND_SEPARATOR=True, LANGUAGE_CODE="de", USE_I18N=True)
def test_a_locale_changes_no_number_that_a_machine_reads(boss: Client, use_queue: UseQueue) -> None:
    gq = use_queue(gpu={"budget": "5GB", "margin": "1GB"})
    gq.enqueue_many([(gq.task(name="many")(lambda: None), {})] * 1100)
    assert f"{JOBS}1100/change/" in boss.get(JOBS).content.decode()
    assert 'max="5000000000"' in boss.get(CARDS).content.decode()


@override_settings(USE_TZ=False)
def test_a_site_without_time_zones_shows_the_same(boss: Client, of_every_state: dict[Any, Any]) -> None:
    for url in (QUEUES, JOBS, WORKERS, *map(job_url, of_every_state.values())):
        read(boss, url)


# --- acting ---


def test_pause_and_resume_say_who_and_why(boss: Client, gq: DjangoQueue) -> None:
    gq.enqueue_many([(gq.task(name="x", queue="default")(lambda: None), {})])
    shown = post(boss, f"{QUEUES}act/", queue="default", act="pause", reason="lunch", until="30m", back=QUEUES)
    assert "Queue default is paused until" in shown and "paused by user-0 (lunch)" in shown
    paused = gq.view().queues["default"].paused
    assert paused is not None and (paused.by, paused.reason) == ("user-0", "lunch") and paused.until is not None
    assert "Queue default is resumed" in post(boss, f"{QUEUES}act/", queue="default", act="resume", back=QUEUES)
    assert gq.view().queues["default"].paused is None
    assert "Queue default was not paused" in post(boss, f"{QUEUES}act/", queue="default", act="resume", back=QUEUES)


def test_a_pause_that_was_mistyped_keeps_what_was_typed(boss: Client, gq: DjangoQueue) -> None:
    gq.enqueue_many([(gq.task(name="x", queue="default")(lambda: None), {})])
    url = f"{QUEUES}default/change/?refresh=9"
    typed = {"queue": "default", "act": "pause", "reason": 'lunch & "tea"', "until": "tomorrow"}
    page = boss.post(f"{QUEUES}act/", {**typed, "back": url}, follow=True)
    assert "Until must be a duration or a time, not 'tomorrow'" in text_of(page)
    values = re.findall(r'name="(reason|until|back)" value="([^"]*)"', page.content.decode())
    assert {name: html.unescape(value) for name, value in values} == {"reason": 'lunch & "tea"', "until": "tomorrow", "back": url}
    done = boss.post(f"{QUEUES}act/", {**typed, "until": "1h", "back": url})
    assert done.headers["Location"] == url


def test_a_wrong_form_changes_nothing_and_says_what_is_wrong(boss: Client, gq: DjangoQueue) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    for url, data, words in (
        (
            f"{QUEUES}act/",
            {"queue": "default", "act": "pause", "until": "soon"},
            "Until must be a duration or a time, not 'soon'",
        ),
        (f"{QUEUES}act/", {"queue": "default", "act": "pause", "until": "2001-01-01"}, "must be in the future"),
        (f"{QUEUES}act/", {"queue": "nobody", "act": "pause"}, "Unknown queue 'nobody'"),
        (f"{QUEUES}act/", {"queue": "other:default", "act": "pause"}, "TASKS has no gpuqueue entry 'other'"),
        (f"{QUEUES}act/", {"queue": "default", "act": "drop"}, "expected pause or resume"),
        (f"{JOBS}act/", {"job": str(job.id), "act": "drop"}, "expected retry or cancel"),
        (f"{JOBS}act/", {"job": "x", "act": "cancel"}, "is not a job id"),
        (f"{JOBS}act/", {"job": "7", "act": "cancel"}, "Unknown job 7"),
        (f"{JOBS}act/", {"act": "cancel"}, "No job was selected"),
    ):
        assert words in post(boss, url, **data)
    assert (gq.view().queues["default"].paused, job.refresh().state) == (None, State.AVAILABLE)


def test_a_job_is_cancelled_and_retried(boss: Client, of_every_state: dict[Any, Any]) -> None:
    job = of_every_state[State.AVAILABLE]
    assert "Cancelled" in post(boss, f"{JOBS}act/", job=job.id, act="cancel", back=job_url(job))
    assert job.refresh().state is State.CANCELLED
    assert "Available again" in post(boss, f"{JOBS}act/", job=job.id, act="retry", back=job_url(job))
    assert job.refresh().state is State.AVAILABLE
    assert "only a discarded, cancelled" in post(boss, f"{JOBS}act/", job=job.id, act="retry", back=job_url(job))
    done = of_every_state[State.COMPLETED]
    assert "already finished: completed" in post(boss, f"{JOBS}act/", job=done.id, act="cancel", back=job_url(done))
    runs = of_every_state[State.RUNNING]
    asked = boss.post(f"{JOBS}act/", {"job": runs.id, "act": "cancel", "back": job_url(runs)})
    assert f"Cancel job {runs.id}?" in text_of(asked) and "It is running: its work so far will be lost" in text_of(asked)
    assert not runs.refresh().record.cancel_requested
    assert "Asked to stop" in post(boss, f"{JOBS}act/", **form_of(asked, job_url(runs)))
    assert runs.refresh().record.cancel_requested


def form_of(page: Any, back: str) -> dict[str, Any]:
    """Return what the question whether to cancel sends when the answer is yes; no leads `back`."""
    body = page.content.decode()
    assert page.status_code == 200 and f'<a class="button" href="{back}">' in body and "gq-refresh" not in body
    fields = re.findall(r'name="(job|back|sure|act)" value="([^"]*)"', body)
    form = {name: [value for other, value in fields if other == name] for name, _ in fields}
    assert form["back"] == [back]
    return form


def test_several_jobs_are_cancelled_at_once_and_those_that_cannot_be_are_named(boss: Client, gq: DjangoQueue) -> None:
    made = gq.task(name="x", queue="default")(lambda: None)
    jobs = [made.enqueue() for _ in range(3)]
    jobs[0].cancel()
    asked = boss.post(f"{JOBS}act/", {"job": [job.id for job in jobs], "act": "cancel", "back": JOBS})
    assert "Cancel 2 jobs?" in text_of(asked) and "will be lost" not in text_of(asked)
    assert jobs[1].refresh().state is State.AVAILABLE
    shown = post(boss, f"{JOBS}act/", **form_of(asked, JOBS))
    assert "2 jobs: cancelled" in shown and "Job 1 already finished: cancelled" in shown
    assert {job.refresh().state for job in jobs} == {State.CANCELLED}
    assert "3 jobs: available again" in post(boss, f"{JOBS}act/", job=[job.id for job in jobs], act="retry", back=JOBS)


def test_what_was_done_stands_in_the_admin_sites_own_record(boss: Client, gq: DjangoQueue) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    post(boss, f"{JOBS}act/", job=job.id, act="cancel", back=JOBS)
    post(boss, f"{QUEUES}act/", queue="default", act="pause", reason="lunch", back=QUEUES)
    entries = [(str(entry.user), entry.object_repr, entry.change_message) for entry in LogEntry.objects.order_by("pk")]
    assert entries == [("user-0", f"job {job.id}", "Cancelled."), ("user-0", "default", "Paused: lunch")]
    page = boss.get("/admin/").content.decode()
    assert job_url(job) in page and f"{QUEUES}default/change/" in page
    for entry in LogEntry.objects.all():
        read(boss, entry.get_admin_url())
    for url, deed in ((job_url(job), "Cancelled."), (f"{QUEUES}default/change/", "Paused: lunch")):
        (history,) = re.findall(r'href="([^"]*/history/)"', boss.get(url).content.decode())
        assert f"user-0 {deed}" in read(boss, history)
        assert f'href="{url}"' in boss.get(history).content.decode()


def test_one_is_sent_back_to_this_site_only(boss: Client, gq: DjangoQueue) -> None:
    for back in ("https://evil.example/", "//evil.example/", "javascript:alert(1)", ""):
        page = boss.post(f"{QUEUES}act/", {"queue": "default", "act": "resume", "back": back})
        assert (page.status_code, page.headers["Location"]) == (302, QUEUES)


# --- who may ---


def test_a_stranger_is_asked_to_log_in(gq: DjangoQueue) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    for client in (Client(), client_of("view_job", "change_job", staff=False)):
        for url in (QUEUES, CARDS, WORKERS, JOBS, job_url(job), f"{QUEUES}default/change/", f"{JOBS}act/", f"{QUEUES}act/"):
            assert client.get(url).headers["Location"].startswith("/admin/login/")
            assert client.post(url, {"job": job.id, "act": "cancel"}).headers["Location"].startswith("/admin/login/")
    assert job.refresh().state is State.AVAILABLE


def test_staff_without_permission_sees_nothing(gq: DjangoQueue) -> None:
    client = client_of()
    for url in (QUEUES, CARDS, WORKERS, JOBS, f"{JOBS}1/change/", f"{QUEUES}default/change/", f"{JOBS}1/history/"):
        assert client.get(url).status_code == 403
    assert "gpuqueue" not in client.get("/admin/").content.decode()


def test_who_may_view_sees_and_cannot_act(gq: DjangoQueue) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    client = client_of("view_job", "view_queue")
    for url in (QUEUES, CARDS, WORKERS, JOBS, job_url(job), f"{QUEUES}default/change/"):
        page = client.get(url).content.decode()
        assert 'name="act"' not in page and "/act/" not in page
    assert client.get(f"{JOBS}{job.id}/history/").status_code == 200
    assert client.post(f"{JOBS}act/", {"job": job.id, "act": "cancel"}).status_code == 403
    assert client.post(f"{QUEUES}act/", {"queue": "default", "act": "pause"}).status_code == 403
    assert (job.refresh().state, gq.view().queues["default"].paused) == (State.AVAILABLE, None)


def test_who_may_see_queues_only_is_led_to_no_job(of_every_state: dict[Any, Any]) -> None:
    client = client_of("view_queue")
    for url in (QUEUES, CARDS, WORKERS, f"{QUEUES}first/change/"):
        assert "/gpuqueue/job/" not in client.get(url).content.decode()
    assert client.get(JOBS).status_code == 403
    only_jobs = client_of("view_job")
    for url in (JOBS, *map(job_url, of_every_state.values())):
        assert "/gpuqueue/queue/" not in only_jobs.get(url).content.decode()


def test_nothing_is_done_by_get_or_without_the_token(gq: DjangoQueue) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    client = client_of("*", csrf=True)
    for url, data in ((f"{JOBS}act/", {"job": job.id, "act": "cancel"}), (f"{QUEUES}act/", {"queue": "default", "act": "pause"})):
        assert client.get(url, data).status_code == 405
        assert client.post(url, data).status_code == 403
    assert (job.refresh().state, gq.view().queues["default"].paused) == (State.AVAILABLE, None)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get(job_url(job)).content.decode())
    assert token is not None
    client.post(f"{JOBS}act/", {"job": job.id, "act": "cancel", "csrfmiddlewaretoken": token[1]})
    assert job.refresh().state is State.CANCELLED


# --- several files, and files that cannot be used ---


def test_a_missing_file_is_told_and_not_made(boss: Client, site: DjangoQueue) -> None:
    for url in (QUEUES, CARDS, WORKERS, JOBS, f"{JOBS}1/change/", f"{QUEUES}default/change/"):
        shown = read(boss, url)
        assert f"no database at {site.database} yet" in shown and "manage.py migrate" in shown
    assert "No database at" in post(boss, f"{JOBS}act/", job="1", act="cancel")
    assert not site.database.exists()


def test_a_database_without_a_queue_is_told_and_left_alone(boss: Client, site: DjangoQueue) -> None:
    with sqlite3.connect(site.database) as connection:
        connection.execute("CREATE TABLE other (id)")
    connection.close()
    for url in (QUEUES, CARDS, WORKERS, JOBS):
        assert "no queue in" in read(boss, url)
    with sqlite3.connect(site.database) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]
    connection.close()


def test_a_file_of_a_newer_gpuqueue_is_told(boss: Client, gq: DjangoQueue) -> None:
    gq.close()
    with sqlite3.connect(gq.database) as connection:
        connection.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    for url in (QUEUES, CARDS, WORKERS, JOBS, f"{JOBS}1/change/"):
        assert "newer gpuqueue" in read(boss, url)


def test_what_is_no_database_is_told(boss: Client, site: DjangoQueue) -> None:
    site.database.write_text("a letter, and no database" * 100)
    for url in (QUEUES, CARDS, WORKERS, JOBS):
        assert "is not an SQLite database" in read(boss, url)


def test_a_locked_file_is_shown_and_what_cannot_be_done_is_told(
    boss: Client, gq: DjangoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    monkeypatch.setattr(gq.store.engine.writer, "_timeout_s", 0.05)
    other = sqlite3.connect(gq.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        read(boss, JOBS)
        assert "locked" in post(boss, f"{JOBS}act/", job=job.id, act="cancel", back=JOBS)
        assert "locked" in post(boss, f"{QUEUES}act/", queue="default", act="pause", back=QUEUES)
    finally:
        other.close()
    assert job.refresh().state is State.AVAILABLE


def test_a_file_that_another_program_keeps_to_itself_is_told(
    boss: Client, gq: DjangoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuqueue.integrations.django.pages.sources.PATIENCE_S", 0.05)
    gq.close()
    other = sqlite3.connect(gq.database, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        for url in (QUEUES, JOBS):
            assert "is locked by another process" in read(boss, url)
    finally:
        other.close()


def test_each_file_is_shown_by_itself_and_one_in_trouble_hides_no_other(boss: Client, gq: DjangoQueue, tmp_path: Path) -> None:
    entries = {
        "default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"file": gq.database}},
        "other:1": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"file": tmp_path / "other.db"}},
        "same": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"file": gq.database}},
        "wrong": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"databse": "default"}},
        "none": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"file": tmp_path / "none.db"}},
        "not-ours": {"BACKEND": DUMMY},
    }
    with override_settings(TASKS=entries):
        from gpuqueue.integrations.django import queue

        first, second = queue("default"), queue("other:1")
        here = first.task(name="here", queue="one")(lambda: None).enqueue()
        there = second.task(name="there", queue="two")(lambda: None).enqueue()
        assert here.id == there.id == 1
        for url in (QUEUES, CARDS, WORKERS):
            shown = read(boss, url)
            for words in (str(first.database), str(second.database), "databse", "none.db yet"):
                assert words in shown, (url, words)
            assert "same" not in shown and "not-ours" not in shown
        assert "here" in read(boss, JOBS) and "there" not in read(boss, JOBS)
        page = boss.get(f"{JOBS}?file=other:1").content.decode()
        (url,) = re.findall(r'href="(/admin/gpuqueue/job/[^"]*/change/)"', page)
        assert "available there in" in read(boss, url)
        (key,) = re.findall(r'type="checkbox" name="job" value="([^"]*)"', page)
        post(boss, f"{JOBS}act/", job=key, act="cancel", back=url)
        assert (here.refresh().state, there.refresh().state) == (State.AVAILABLE, State.CANCELLED)
        (of_two,) = re.findall(r'href="(/admin/gpuqueue/queue/[^"]*two/change/)"', boss.get(QUEUES).content.decode())
        assert "Queue two" in read(boss, of_two)
        read(boss, LogEntry.objects.get().get_admin_url())
        assert "TASKS has no gpuqueue entry 'lost'" in read(boss, f"{JOBS}?file=lost")
        assert "no database at" in read(boss, f"{JOBS}?file=none")
        second.close()
        first.close()


def test_without_an_entry_of_gpuqueues_the_pages_say_so(boss: Client, gq: DjangoQueue) -> None:
    with override_settings(TASKS={"default": {"BACKEND": DUMMY}}):
        for url in (QUEUES, CARDS, WORKERS, JOBS):
            assert "no entry of TASKS uses gpuqueue" in read(boss, url)
        assert "No entry of TASKS uses gpuqueue" in post(boss, f"{JOBS}act/", act="cancel", job="1")


# --- in a project ---


def test_a_page_acts_in_the_apps_own_file_with_a_transaction_for_each_request(
    use_database: UseDatabase, use_queue: UseQueue, migrated: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated, tmp_path / "app.db")
    use_database()
    gq = use_queue(database="default")
    job = gq.task(name="x", queue="default")(lambda: None).enqueue()
    client = client_of("*")
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    shown = post(client, f"{JOBS}act/", job=job.id, act="cancel", back=job_url(job))
    assert "Cancelled" in shown and job.refresh().state is State.CANCELLED
    assert LogEntry.objects.count() == 1


def test_the_models_leave_no_trace_in_a_projects_migrations_and_dumps(
    site: DjangoQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("makemigrations", "--check", "--dry-run", "gpuqueue")
    call_command("dumpdata", "gpuqueue")
    call_command("dumpdata", "gpuqueue", "--all")
    assert "".join(capsys.readouterr().out.splitlines()) == "No changes detected in app 'gpuqueue'[][]"
    with sqlite3.connect(site.database.with_name("app.db")) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert not {name for name in names if name.startswith("gpuqueue")}
    codenames = Permission.objects.filter(content_type__app_label="gpuqueue").values_list("codename", flat=True)
    assert sorted(codenames) == ["change_job", "change_queue", "view_job", "view_queue"]
