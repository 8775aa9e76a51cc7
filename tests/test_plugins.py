"""Plugins: registering, blocking and finding them, and what they can do in a worker; one that fails starts nothing blindly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import partial

import pytest

from gpuqueue import ConfigurationError, JobFailed, PluginFailed, UsageError, hookimpl
from gpuqueue.contract.hookspecs import EVENT_NAMES
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.policies import WORKER_POLICY_NAMES, default_policies, worker_policies
from gpuqueue.domain.answers import CleanUp, Demand, Hold, Placement, Wait
from gpuqueue.domain.device import Reading
from gpuqueue.domain.verdicts import Retry
from gpuqueue.testing.waiting import DEADLINE_S

GPU = '[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n[queues.mail]\n'


@pytest.fixture
def gpu_queue(make_queue):
    """Make a queue object with a card, plugins, and a task `train` that returns 7 and one `send`."""

    def make(*plugins, toml=GPU):
        gq = make_queue(toml, plugins=plugins)
        gq.train = gq.task(name="train", queue="train")(lambda: 7)
        gq.send = gq.task(name="send", queue="mail")(lambda: 7)
        return gq

    return make


class Failing:
    """Fails in one hook as long as it is told to."""

    def __init__(self, hook: str) -> None:
        self.fails = True

        def fail(details):
            if self.fails:
                raise RuntimeError("oops")

        setattr(self, hook, hookimpl(fail))


# --- registering ---


def test_every_plugin_is_listed_with_the_hooks_that_it_answers():
    listed = dict(Plugins(default_policies(), discover=False).names())
    assert listed["windows"] == ["choose_preemptions", "place_job", "queue_hold", "queue_limits"]
    assert listed["vram"] == ["job_demand", "place_job"]
    assert set(listed) == set(default_policies())


def test_an_unknown_hook_is_refused_with_the_plugins_name():
    class Wrong:
        @hookimpl
        def queue_hodl(self, details): ...

    plugins = Plugins({}, discover=False)
    wrong = r"plugin 'mine' cannot be registered: unknown hook 'queue_hodl' \(did you mean 'queue_hold'\?\)"
    with pytest.raises(ConfigurationError, match=wrong):
        plugins.register(Wrong(), "mine")
    assert plugins.names() == []


def test_a_hook_with_other_arguments_is_refused():
    class Wrong:
        @hookimpl
        def queue_hold(self, queue): ...

    with pytest.raises(ConfigurationError, match=r"'Wrong' cannot be registered: its queue_hold\(queue\) must take one argument"):
        Plugins({}, discover=False).register(Wrong())


def test_an_asynchronous_hook_is_refused():
    class Wrong:
        @hookimpl
        async def queue_hold(self, details): ...

    with pytest.raises(ConfigurationError, match="its queue_hold is asynchronous, but hooks must be plain functions"):
        Plugins({}, discover=False).register(Wrong())


def test_of_a_class_an_object_is_made_for_each_queue_object(make_queue):
    class Counting:
        def __init__(self):
            self.asked = 0

        @hookimpl
        def queue_hold(self, details):
            self.asked += 1
            return Hold("asked", f"{self.asked} times")

    first, second = (make_queue("[queues.mail]\n", plugins=[Counting]) for _ in range(2))
    assert [first.holds()["mail"], first.holds()["mail"]] == [[Hold("asked", "1 times")], [Hold("asked", "2 times")]]
    assert second.holds()["mail"] == [Hold("asked", "1 times")]


def test_a_class_that_needs_arguments_is_refused():
    class Needy:
        def __init__(self, limit): ...

    with pytest.raises(
        ConfigurationError, match=r"plugin 'Needy': .*Needy\(\) failed; a plugin class is called without arguments"
    ):
        Plugins({}, discover=False).register(Needy)


def test_a_text_is_no_plugin(make_queue):
    with pytest.raises(ConfigurationError, match="plugin 'thermal' is a string; pass the plugin object itself"):
        make_queue(plugins=["thermal"])


def test_plugins_may_be_given_with_their_names(make_queue):
    gq = make_queue(plugins={"thermal": Failing("queue_hold")})
    assert ("thermal", ["queue_hold"]) in gq.plugins.names()


@pytest.mark.parametrize("taken", ["windows", "residents"])
def test_the_name_of_a_default_is_taken_also_where_only_a_worker_has_it(make_queue, taken):
    with pytest.raises(ConfigurationError, match=f"plugin '{taken}' cannot be registered: another plugin has this name"):
        make_queue(plugins={taken: Failing("queue_hold")})


def test_the_names_of_the_workers_policies_are_known_without_loading_them():
    assert tuple(worker_policies()) == WORKER_POLICY_NAMES


def test_a_wrapper_is_refused_and_leaves_nothing_behind():
    class Wrapper:
        @hookimpl(wrapper=True)
        def queue_hold(self, details):
            return (yield)

    plugins = Plugins({}, discover=False)
    with pytest.raises(
        ConfigurationError, match="plugin 'mine' cannot be registered: it wraps queue_hold, and hook wrappers are not supported"
    ):
        plugins.register(Wrapper(), "mine")
    assert plugins.names() == []


def test_a_name_is_taken_once():
    plugins = Plugins({}, discover=False)
    plugins.register(Failing("queue_hold"), "mine")
    with pytest.raises(ConfigurationError, match="mine"):
        plugins.register(Failing("queue_hold"), "mine")


def test_a_blocked_default_decides_nothing(make_queue, caplog):
    toml = '[queues.night]\npause = ["00:00-12:00", "12:00-00:00"]\n'
    assert [hold.reason for hold in make_queue(toml).holds()["night"]] == ["window"]
    assert make_queue(toml + '[plugins]\nblock = ["windows"]\n').holds()["night"] == []
    make_queue('[plugins]\nblock = ["residents"]\n')
    assert not caplog.text
    make_queue('[plugins]\nblock = ["window"]\n')
    assert "[plugins] block names 'window', but no such plugin is installed (did you mean 'windows'?)" in caplog.text


@pytest.fixture
def make_discovering(make_queue):
    """Make queue objects that find the plugins which are installed."""
    return partial(make_queue, discover_plugins=True)


def install(folder, monkeypatch, source, *, name="colours"):
    """Install a distribution with an entry point of gpuqueue's group, as pip would."""
    info = folder / "colours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpuqueue]\n{name} = gpuqueue_colours\n")
    (folder / "gpuqueue_colours.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "gpuqueue_colours", raising=False)


COLOURS = """
from gpuqueue import Hold, hookimpl

@hookimpl
def queue_hold(details):
    return Hold("colour", "not on a grey day")
"""


def test_an_installed_plugin_is_found_by_its_entry_point_and_can_be_blocked(make_discovering, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, COLOURS)
    gq = make_discovering("[queues.mail]\n")
    assert gq.holds()["mail"] == [Hold("colour", "not on a grey day")]
    assert ("colours", ["queue_hold"]) in gq.plugins.names()
    assert make_discovering('[queues.mail]\n[plugins]\nblock = ["colours"]\n').holds()["mail"] == []


def test_an_installed_plugin_that_cannot_be_loaded_is_named(make_discovering, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "raise RuntimeError('no grey')")
    wrong = r"the installed plugin 'colours' \(colours 1.0\) cannot be loaded from 'gpuqueue_colours': RuntimeError: no grey"
    with pytest.raises(ConfigurationError, match=wrong):
        make_discovering()
    assert make_discovering('[plugins]\nblock = ["colours"]\n').holds() == {}


def test_an_installed_plugin_with_a_wrong_hook_is_refused_by_its_own_name(make_discovering, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, COLOURS.replace("queue_hold", "queue_hodl"))
    with pytest.raises(ConfigurationError, match="plugin 'colours' cannot be registered: unknown hook 'queue_hodl'"):
        make_discovering(plugins=[Failing("queue_hold")])


def test_an_installed_plugin_that_has_a_defaults_name_is_left_out_and_named(make_discovering, tmp_path, monkeypatch, caplog):
    install(tmp_path, monkeypatch, COLOURS, name="windows")
    assert make_discovering("[queues.mail]\n").holds()["mail"] == []
    assert "skipped the installed plugin 'windows' of colours: another plugin has the same name" in caplog.text


# --- configuring ---


class Settled:
    """A plugin that reads a section of its own."""

    def __init__(self) -> None:
        self.read: list = []

    @hookimpl
    def configure(self, details):
        table = details.table
        table.expect(["limit", "note"])
        self.read.append((details.name, table.integer("limit", 83, minimum=1), table.text("note", "", example='note = "x"')))

    @hookimpl
    def queue_hold(self, details):
        assert self.read, "it is configured before it is asked"


def test_a_plugin_reads_its_own_section_once(make_queue, start_worker):
    settled = Settled()
    gq = make_queue('[thermal]\nlimit = 70\nnote = "attic"\n', plugins={"thermal": settled})
    start_worker(gq)  # registers the worker's own plugins before it, and so it anew
    gq.holds()
    assert settled.read == [("thermal", 70, "attic")]


def test_a_plugin_whose_section_nobody_wrote_gets_an_empty_one(make_queue):
    settled = Settled()
    make_queue("[queues.mail]\n", plugins={"thermal": settled})
    make_queue(plugins={"thermal": settled})
    assert settled.read == [("thermal", 83, "")] * 2


def test_the_environment_goes_before_the_file_and_arguments_before_both(make_queue, monkeypatch):
    settled = Settled()
    toml = "[thermal]\nlimit = 70\nnote = 'file'\n"
    monkeypatch.setenv("GPUQUEUE_THERMAL_LIMIT", "71")
    monkeypatch.setenv("GPUQUEUE_THERMAL_NOTE", "")
    make_queue(toml, plugins={"thermal": settled})
    make_queue(toml, plugins={"thermal": settled}, thermal={"limit": 72})
    make_queue(plugins={"thermal": settled})
    assert settled.read == [("thermal", 71, "file"), ("thermal", 72, "file"), ("thermal", 71, "")]


def test_a_variable_belongs_to_the_longest_name_that_fits(make_queue, monkeypatch):
    short, long = Settled(), Settled()
    monkeypatch.setenv("GPUQUEUE_THERMAL_FAN_LIMIT", "5")
    make_queue(plugins={"thermal": short, "thermal-fan": long})
    assert (short.read, long.read) == ([("thermal", 83, "")], [("thermal-fan", 5, "")])


def test_a_variable_of_a_plugin_that_is_not_there_is_nobodys(make_queue, monkeypatch):
    monkeypatch.setenv("GPUQUEUE_THERMAL_LIMIT", "hot")
    assert make_queue().holds() == {}


@pytest.mark.parametrize(
    ("toml", "environ", "hints"),
    [
        ("[thermal]\nlimt = 7\n", {}, ["gpuqueue.toml: thermal.limt: unknown setting 'limt' (did you mean 'limit'?)"]),
        ("[thermal]\nlimit = 0\n", {}, ["gpuqueue.toml: thermal.limit = 0: must be at least 1"]),
        ("[[thermal]]\nlimit = 7\n", {}, ["gpuqueue.toml: thermal[0]: ", "write [thermal]"]),
        ("", {"GPUQUEUE_THERMAL_LIMIT": "hot"}, ['environment variable GPUQUEUE_THERMAL_LIMIT = "hot": must be an integer']),
        ("", {"GPUQUEUE_THERMAL_LIMT": "7"}, ["environment variable GPUQUEUE_THERMAL_LIMT: unknown setting 'limt'"]),
        (
            "[termal]\nlimit = 7\n",
            {},
            ["gpuqueue.toml: termal: unknown setting 'termal' (did you mean 'thermal'?)", "plugins, thermal"],
        ),
        ("[queue.mail]\n", {}, ["gpuqueue.toml: queue: unknown setting 'queue' (did you mean 'queues'?)"]),
        ("[humidity]\n", {}, ["gpuqueue.toml: humidity: ", "the plugin is not installed; see `gpuqueue plugins`"]),
        ("[windows]\n", {}, ["gpuqueue.toml: windows: the plugin 'windows' has no settings; remove its section"]),
    ],
)
def test_a_wrong_section_or_setting_of_a_plugin_is_refused_by_name(make_queue, monkeypatch, toml, environ, hints):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        make_queue(toml, plugins={"thermal": Settled()})
    for hint in hints:
        assert hint in str(caught.value)


def test_the_section_of_a_blocked_plugin_may_stay(make_discovering, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, COLOURS)
    assert make_discovering('[plugins]\nblock = ["colours"]\n[colours]\nsky = "grey"\n').holds() == {}
    with pytest.raises(ConfigurationError, match="the plugin 'colours' has no settings"):
        make_discovering('[colours]\nsky = "grey"\n')


def test_a_plugin_cannot_take_a_section_of_gpuqueues_own(make_queue):
    with pytest.raises(
        ConfigurationError, match=r"plugin 'worker' cannot have settings, because \[worker\] is one of gpuqueue's own sections"
    ):
        make_queue(plugins={"worker": Settled()})


def test_a_plugin_that_fails_while_it_is_configured_is_named(make_queue):
    with pytest.raises(PluginFailed, match="plugin 'Failing' failed in configure: RuntimeError: oops"):
        make_queue(plugins=[Failing("configure")])


def test_a_plugin_that_is_registered_later_is_configured_then(make_queue, monkeypatch):
    monkeypatch.setenv("GPUQUEUE_THERMAL_LIMIT", "71")
    settled = Settled()
    make_queue().plugins.register(settled, "thermal")
    assert settled.read == [("thermal", 71, "")]


# --- deciding ---


def test_an_own_policy_holds_a_queue_until_it_changes_its_mind(gpu_queue, start_worker):
    class Lunch:
        is_on = True

        @hookimpl
        def queue_hold(self, details):
            return Hold("lunch", "back at one") if self.is_on and details.queue.name == "mail" else None

    lunch = Lunch()
    gq = gpu_queue(lunch)
    start_worker(gq)
    mail = gq.send.enqueue()
    assert gq.train.enqueue().result(timeout_s=DEADLINE_S) == 7
    assert mail.refresh().state == "available"
    assert "lunch: back at one" in str(mail.explain())
    lunch.is_on = False
    assert mail.result(timeout_s=DEADLINE_S) == 7


@pytest.mark.parametrize("hook", ["queue_hold", "job_demand", "place_job", "order_candidates"])
def test_a_plugin_that_fails_starts_nothing_until_it_works_again(gpu_queue, start_worker, until, caplog, hook):
    failing = Failing(hook)
    gq = gpu_queue(failing)
    job = gq.train.enqueue()
    start_worker(gq)
    if hook == "order_candidates":
        until(lambda: "failed in order_candidates: RuntimeError: oops" in caplog.text)
    else:
        until(lambda: "failed in" in str(job.explain()))
        assert f"failed in {hook}: RuntimeError: oops" in str(job.explain())
    if hook != "queue_hold":
        assert gq.send.enqueue().result(timeout_s=DEADLINE_S) == 7  # what needs no device goes on
    assert job.refresh().state == "available"
    failing.fails = False
    assert job.result(timeout_s=DEADLINE_S) == 7


def test_an_answer_that_is_nonsense_starts_nothing_and_ends_no_worker(gpu_queue, start_worker, until):
    class Nonsense:
        answer: object = Placement("gpu9", 1)

        @hookimpl
        def place_job(self, details):
            return self.answer

    nonsense = Nonsense()
    gq = gpu_queue(nonsense)
    start_worker(gq)
    job = gq.train.enqueue()
    until(lambda: "failed in place_job: ValueError: returned Placement(" in str(job.explain()))
    assert gq.send.enqueue().result(timeout_s=DEADLINE_S) == 7
    nonsense.answer = None
    assert job.result(timeout_s=DEADLINE_S) == 7


def test_a_third_partys_demand_and_placement_win(gpu_queue, start_worker):
    seen: list[Placement] = []

    class Small:
        @hookimpl
        def job_demand(self, details):
            return Demand(123)

        @hookimpl
        def place_job(self, details):
            return Placement("gpu0", details.demand.vram_bytes + 1) if details.job.priority else Wait("shy", "not today")

        @hookimpl
        def prepare_attempt(self, details):
            seen.append(details.lease.placement)

    gq = gpu_queue(Small())
    start_worker(gq)
    waiting = gq.train.enqueue()
    assert gq.train.using(priority=1).enqueue().result(timeout_s=DEADLINE_S) == 7
    assert seen == [Placement("gpu0", 124)]
    assert "shy: not today" in str(waiting.explain())


def test_an_attempt_is_spent_and_tried_again_when_the_policy_about_failures_fails(gpu_queue, start_worker, until):
    gq = gpu_queue(Failing("attempt_failed"))
    fail = gq.task(name="fail", max_attempts=2)(lambda: 1 / 0)
    start_worker(gq)
    job = fail.enqueue()
    until(lambda: job.refresh().state == "retryable")
    assert (job.attempt, job.error.code) == (1, "internal")
    assert "failed in attempt_failed: RuntimeError: oops (while handling: ZeroDivisionError" in job.error.message


def test_nothing_is_pruned_when_the_policy_about_it_fails(gpu_queue, start_worker, until, caplog, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.maintenance.RETENTION_EVERY_S", 0.0)
    gq = gpu_queue(Failing("retention"), toml=GPU + '[retention]\ncompleted = "0s"\n')
    job = gq.send.enqueue()
    gq.send.using(delay="1h").enqueue()
    start_worker(gq)
    job.result(timeout_s=DEADLINE_S)
    caplog.clear()
    until(lambda: "nothing is pruned: plugin" in caplog.text)
    assert job.refresh().state == "completed"


# --- acting ---


def test_a_plugin_that_fails_to_prepare_fails_the_attempt(gpu_queue, start_worker):
    gq = gpu_queue(Failing("prepare_attempt"))
    start_worker(gq)
    with pytest.raises(JobFailed, match="failed in prepare_attempt: RuntimeError: oops"):
        gq.train.enqueue().result(timeout_s=DEADLINE_S)


def test_the_device_stays_reserved_until_the_clean_up_is_verified(gpu_queue, start_worker, until):
    answers = [RuntimeError("oops"), CleanUp(False, "still there"), CleanUp(True, "gone")]
    allowed = threading.Semaphore(1)

    class Cleaning:
        @hookimpl
        def clean_up_attempt(self, details):
            assert allowed.acquire(timeout=DEADLINE_S)
            answer = answers.pop(0) if answers else CleanUp(True, "gone")
            if isinstance(answer, Exception):
                raise answer
            return answer

    gq = gpu_queue(Cleaning())
    start_worker(gq)
    first = gq.train.enqueue()
    first.result(timeout_s=DEADLINE_S)
    following = gq.train.enqueue()
    until(lambda: len(answers) == 2)
    assert gq.job(first.id).record.device == "gpu0"
    assert f"clean_up: waiting for job {first.id}'s memory on gpu0 to be released" in str(following.explain())
    allowed.release(4)
    assert following.result(timeout_s=DEADLINE_S) == 7
    assert gq.job(first.id).record.device is None


def test_an_own_executor_runs_an_own_verb(make_queue, start_worker):
    class Shout:
        def run(self, context):
            context.emit("listen: ")
            return context.lease.arguments["text"].upper()

    class Verbs:
        @hookimpl
        def register_executors(self, details) -> Mapping[str, object]:
            assert (details.backends, details.models, details.devices) == ((), {}, ())
            return {"shout": Shout()}

    gq = make_queue(plugins=[Verbs()])
    shout = gq.verb("shout", required=["text"], optional=[], queue="loud", max_attempts=2)
    start_worker(gq)
    job = shout.enqueue(text="hello")
    assert job.result(timeout_s=DEADLINE_S) == "HELLO"
    assert list(job.stream(timeout_s=DEADLINE_S)) == ["listen: "]
    assert (job.record.queue, job.record.max_attempts) == ("loud", 2)
    assert gq.enqueue("shout", {"text": "again"}).result(timeout_s=DEADLINE_S) == "AGAIN"
    with pytest.raises(UsageError, match=r"shout: missing argument\(s\)"):
        shout.enqueue()
    with pytest.raises(UsageError, match=r"shout: unknown argument 'txt' \(did you mean 'text'\?\)"):
        shout.enqueue(txt="hello")
    with pytest.raises(UsageError, match="task 'shout' already exists"):
        gq.task(name="shout")(lambda text: text)


def test_a_verb_whose_arguments_are_not_named_takes_any(gq):
    assert gq.verb("anything").enqueue(a=1, b=[2]).record.arguments == {"a": 1, "b": [2]}


def test_a_plugin_that_fails_while_a_worker_starts_leaves_no_worker_behind(gpu_queue, start_worker):
    gq = gpu_queue(Failing("register_executors"))
    with pytest.raises(Exception, match="failed in register_executors: RuntimeError: oops"):
        start_worker(gq)
    assert gq.workers() == []


def test_an_own_device_takes_the_place_of_the_default(gpu_queue, start_worker, until):
    class Card:
        def read(self):
            from datetime import UTC, datetime

            return Reading(at=datetime.now(UTC), name="mine", total_bytes=9_000_000_000, free_bytes=1)

    class Cards:
        @hookimpl
        def register_devices(self, details):
            return {settings.name: Card() for settings in details.devices}

    gq = gpu_queue(Cards())
    start_worker(gq)
    reading = until(lambda: gq.view().devices["gpu0"].reading)
    assert (reading.name, reading.total_bytes) == ("mine", 9_000_000_000)


# --- events ---


class Diary:
    """Writes down every event."""

    def __init__(self) -> None:
        self.pages: list = []

    def named(self, *names):
        return [event for event in self.pages if event.name in names]

    def of(self, job):
        return [event.name for event in self.pages if event.job_id == job.id]


for _name in EVENT_NAMES:
    setattr(Diary, _name, hookimpl(lambda self, details: self.pages.append(details), specname=_name))


def test_the_life_of_a_job_is_told_in_order_and_once(gpu_queue, start_worker, until):
    class AtOnce:
        @hookimpl
        def attempt_failed(self, details):
            return Retry(0) if details.lease.attempt == 1 else None

    diary = Diary()
    gq = gpu_queue(diary, AtOnce())
    fail = gq.task(name="fail", max_attempts=2)(lambda: 1 / 0)
    worker = start_worker(gq)
    job = fail.enqueue()
    with pytest.raises(JobFailed):
        job.result(timeout_s=DEADLINE_S)
    worker.stop()
    assert diary.of(job) == ["job_enqueued", "attempt_started", "attempt_finished", "attempt_started", "job_finished"]
    assert diary.named("job_finished")[0].data["state"] == "discarded"
    assert diary.named("attempt_started")[0].data["worker"] == worker.id
    assert [event.data["worker"] for event in diary.named("worker_stopped")] == [worker.id]
    assert len({event.id for event in diary.pages}) == len(diary.pages)


def test_holds_are_told_when_they_begin_and_end(gpu_queue, start_worker, until):
    diary = Diary()
    gq = gpu_queue(diary)
    start_worker(gq)
    gq.pause("mail", by="ana")
    until(lambda: [event.data["reasons"] for event in diary.named("queue_held")] == [["paused"]])
    gq.resume("mail")
    until(lambda: [event.queue for event in diary.named("queue_released")] == ["mail"])


def test_two_workers_tell_each_event_to_one_of_them(gpu_queue, start_worker, until):
    diaries = [Diary(), Diary()]
    workers = []
    for diary in diaries:
        gq = gpu_queue(diary)
        workers.append(start_worker(gq))
    jobs = [gq.send.enqueue() for _ in range(20)]
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    for worker in workers:
        worker.stop()
    finished = [event.job_id for diary in diaries for event in diary.named("job_finished")]
    assert sorted(finished) == [job.id for job in jobs]


def test_a_plugin_that_fails_in_an_event_hurts_nobody(gpu_queue, start_worker, until, caplog):
    diary = Diary()
    gq = gpu_queue(diary, Failing("job_finished"))
    worker = start_worker(gq)
    with caplog.at_level(logging.ERROR, "gpuqueue.plugins"):
        job = gq.send.enqueue()
        assert job.result(timeout_s=DEADLINE_S) == 7
        worker.stop()
    assert "failed in job_finished" in caplog.text
    assert diary.of(job)[-1] == "job_finished"


def test_a_backend_and_a_card_that_go_and_come_back_are_told(ai, start_worker, until, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.maintenance.EVERY_S", 0.05)
    monkeypatch.setattr("gpuqueue.worker.maintenance.READING_EVERY_S", 0.05)
    diary = Diary()
    gq = ai.make_queue(ai.toml, plugins=[diary])
    start_worker(gq)
    until(lambda: gq.view().backends["ollama"].checked_at)
    until(lambda: gq.view().devices["gpu0"].reading)
    ai.ollama.go_away()
    until(lambda: diary.named("backend_lost"))
    ai.ollama.come_back()
    until(lambda: diary.named("backend_recovered"))
    ai.card.lost = True
    until(lambda: diary.named("device_lost"))
    ai.card.lost = False
    until(lambda: diary.named("device_recovered"))
    assert diary.named("backend_lost")[0].data["backend"] == "ollama"
    assert diary.named("device_lost")[0].data["device"] == "gpu0"


# --- what only workers know ---


class Weather:
    """Holds mail while it rains; a plugin that is passed in code, so that other processes do not have it."""

    def __init__(self) -> None:
        self.says: str | None = "it rains"

    @hookimpl
    def queue_hold(self, details):
        return Hold("weather", self.says) if details.queue.name == "mail" and self.says else None


def test_what_a_workers_own_plugin_holds_is_known_where_nobody_has_that_plugin(make_queue, start_worker, until):
    weather = Weather()
    toml = "[queues.mail]\n[queues.other]\n"
    worker = start_worker(make_queue(toml, plugins=[weather]))
    elsewhere = make_queue(toml)
    job = elsewhere.task(name="send", queue="mail")(lambda: 7).enqueue()
    assert until(lambda: elsewhere.holds()["mail"], "the hold") == [Hold("weather", "it rains")]
    assert elsewhere.holds()["other"] == []
    assert "weather: it rains" in str(job.explain())
    weather.says = "it still rains"
    until(lambda: "it still rains" in str(job.explain()), "the new detail")
    job.cancel()
    weather.says = None
    until(lambda: elsewhere.holds()["mail"] == [], "the release")
    weather.says = "it rains again"
    until(lambda: elsewhere.holds()["mail"], "the hold again")
    worker.stop()
    assert elsewhere.holds()["mail"] == [], "nobody is left who holds it"


def test_a_hold_is_told_once_where_the_plugin_is_there_too(make_queue, start_worker, until):
    toml = "[queues.mail]\n"
    start_worker(make_queue(toml, plugins=[Weather()]))
    gq = make_queue(toml, plugins=[Weather()])
    until(lambda: [worker.holds for worker in gq.workers() if worker.holds], "what the worker publishes")
    assert gq.holds()["mail"] == [Hold("weather", "it rains")]


def test_a_queue_whose_jobs_a_workers_plugin_cannot_size_says_so_everywhere(gpu_queue, make_queue, start_worker, until):
    gq = gpu_queue(Failing("job_demand"))
    start_worker(gq)
    elsewhere = make_queue(GPU)
    job = gq.train.enqueue()
    (hold,) = until(lambda: elsewhere.holds()["train"], "the hold")
    assert hold.reason == "plugin_failed"
    assert f"job {job.id} could not be sized" in hold.detail
