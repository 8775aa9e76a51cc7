"""What is decided does not depend on the words of a hold; a blocked policy is blocked in the claim too."""

from __future__ import annotations

import json
import threading

import pytest

from gpuqueue import ConfigurationError, Hold, hookimpl
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.evaluation import decide_holds, explain, limited
from gpuqueue.decisions.policies import default_policies
from gpuqueue.domain.answers import Limits, Wait
from gpuqueue.domain.explanation import QueueContext
from gpuqueue.domain.settings import QueueSettings, Rate
from gpuqueue.domain.view import Pause, QueueView
from gpuqueue.testing.idle import run_until_idle
from gpuqueue.testing.views import BATCH, MAIL, NOW, REALTIME, backend, device, job, view
from gpuqueue.testing.waiting import DEADLINE_S

YIELDS = '[queues.first]\n[queues.second]\nyields_to = ["first"]\n'


def plugins(*others, blocked=()):
    found = Plugins(default_policies(), blocked=blocked, discover=False)
    for plugin in others:
        found.register(plugin)
    return found


class Answers:
    """A plugin that answers with what it is given."""

    def __init__(self, answer):
        self.answer = answer

    @hookimpl
    def queue_hold(self, details):
        return self.answer if isinstance(self.answer, Hold) else None

    @hookimpl
    def place_job(self, details):
        return self.answer if isinstance(self.answer, Wait) else None

    @hookimpl
    def queue_limits(self, details):
        return self.answer if isinstance(self.answer, Limits) else None


@pytest.mark.parametrize("word", ["inventory", "yielding", "paused", "no_worker", "plugin_failed", "device_lost"])
def test_a_plugins_hold_is_enforced_whatever_its_word(make_gpuqueue, word):
    gq = make_gpuqueue(plugins=[Answers(Hold(word, "we count"))])
    send = gq.task(name="send")(lambda: 7)
    waiting = send.enqueue()
    left = run_until_idle(gq, may_wait=True)
    assert waiting.refresh().state == "available"
    assert f"{word}: we count" in str(left[waiting.id])
    assert left[waiting.id].advice == ""


@pytest.mark.parametrize("answer", [Hold("mine", "wait"), Wait("mine", "wait")], ids=["hold", "wait"])
@pytest.mark.parametrize("ends", [False, True])
def test_a_start_is_expected_where_a_plugin_says_that_its_answer_ends_with_jobs(answer, ends):
    fields = {"advice": "gpuqueue count", "ends_with_jobs": ends}
    asked = plugins(Answers(type(answer)("mine", "wait", **fields)))
    explanation = explain(job(demand_bytes=1), view(QueueView(BATCH)), asked, QueueContext(), worker_command="")
    assert explanation.advice == "gpuqueue count"
    assert explanation.expected.start_at == (NOW if ends else None)


def test_what_gpuqueue_fills_in_cannot_be_set():
    forged = Hold("mine", "wait", plugin="yielding", source="pause")
    (hold,) = decide_holds(view(QueueView(MAIL)), plugins(Answers(forged)))["mail"]
    assert (hold.plugin, hold.source) == ("Answers", "plugin")


def test_a_queue_makes_no_way_while_yielding_is_blocked(make_gpuqueue, start_worker):
    gq = make_gpuqueue(f'{YIELDS}[plugins]\nblock = ["yielding"]\n')
    going = threading.Event()
    first = gq.task(name="first", queue="first")(going.wait)
    second = gq.task(name="second", queue="second")(lambda: 7)
    start_worker(gq, threads=2)
    running = first.enqueue()
    try:
        assert second.enqueue().result(timeout_s=DEADLINE_S) == 7
        assert running.refresh().finished_at is None
    finally:
        going.set()


def test_a_rate_holds_nobody_while_rates_is_blocked(make_gpuqueue):
    toml = '[queues.slow]\nrate = "1/h"\n'
    for blocked, states in (("", ["available", "completed"]), ('[plugins]\nblock = ["rates"]\n', ["completed", "completed"])):
        gq = make_gpuqueue(toml + blocked)
        send = gq.task(name="send", queue="slow")(lambda: 7)
        jobs = [send.enqueue(), send.enqueue()]
        run_until_idle(gq, may_wait=True)
        assert sorted(job.refresh().state for job in jobs) == states
        gq.cancel_all("slow")
    tighter = view(QueueView(QueueSettings("slow", rate=Rate(9, per_s=1))))
    without = plugins(Answers(Limits(rate=Rate(1, per_s=3600))), blocked=["rates"])
    assert limited(tighter, without).queues["slow"].settings.rate is None


@pytest.mark.parametrize("name", ["windows", "yielding", "rates", "availability", "device_health"])
def test_no_hold_of_a_blocked_policy_is_left(name):
    slow = QueueView(QueueSettings("slow", rate=Rate(1, per_s=3600), pause=("00:00-24:00",)), rate_level=0.0)
    lost = device(lost="it fell off the bus")
    busy = view(QueueView(REALTIME, running_count=1), QueueView(BATCH), slow, devices=(lost,), ollama=backend(available=False))

    def holders(**options):
        return {hold.plugin for holds in decide_holds(busy, plugins(**options)).values() for hold in holds}

    assert holders() == {"windows", "yielding", "rates", "availability", "device_health"}
    assert holders(blocked=[name]) == holders() - {name}


def test_a_plugin_with_a_blocked_name_is_refused(make_gpuqueue):
    with pytest.raises(ConfigurationError, match=r"'yielding' cannot be registered: .*it is listed in .plugins. block"):
        make_gpuqueue('[plugins]\nblock = ["yielding"]\n', plugins={"yielding": Answers(None)})


def test_workers_agree_on_what_is_blocked(make_gpuqueue, start_worker):
    start_worker(make_gpuqueue(YIELDS))
    other = make_gpuqueue(f'{YIELDS}[plugins]\nblock = ["yielding"]\n', name="other.toml")
    with pytest.raises(ConfigurationError, match=r"plugins: configured here, not in the database"):
        start_worker(other)


def test_what_a_worker_of_the_version_before_published_is_read(make_gpuqueue, start_worker):
    gq = make_gpuqueue("[queues.mail]\n")
    start_worker(gq)
    told = json.dumps({"mail": [["hot", "too hot", None, "theirs"]]})
    gq.store.engine.writer.run(lambda connection: connection.execute("UPDATE workers SET holds = ?", (told,)))
    assert gq.holds()["mail"] == [Hold("hot", "too hot")]


def test_the_advice_of_every_reason_is_told():
    asked = plugins(Answers(Hold("mine", "wait", advice="rm /tmp/STOP")))
    paused = QueueView(MAIL, paused=Pause("ana", "", NOW, None))
    explanation = explain(job(queue="mail", task="send"), view(paused), asked, QueueContext(), worker_command="")
    assert [line for line in str(explanation).splitlines() if "→" in line] == ["  → gpuqueue resume mail", "  → rm /tmp/STOP"]


def test_a_worker_publishes_the_failure_of_a_plugin_that_others_have_too(make_gpuqueue, start_worker, until):
    """It fails in the worker alone; the process that asks says so all the same, with the plugin's name."""

    class Picky:
        def __init__(self, error):
            self.error = error

        @hookimpl
        def queue_hold(self, details):
            if self.error:
                raise self.error

    gq, other = (make_gpuqueue("[queues.mail]\n", plugins={"picky": Picky(error)}) for error in (RuntimeError("no"), None))
    start_worker(gq)
    until(lambda: other.holds()["mail"])
    (hold,) = other.holds()["mail"]
    assert (hold.plugin, hold.source, hold.until) == ("picky", "failure", None)
    assert hold.detail == "plugin 'picky' failed in queue_hold: RuntimeError: no"
