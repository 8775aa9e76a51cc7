"""Holding GPU queues while a card is hot: when a hold starts, when it ends, and its message."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from gpuqueue_thermal import Thermal

from gpuqueue.plugins import ConfigurationError, DeviceSettings, QueueHoldDetails
from gpuqueue.testing.views import BATCH, NOW, device, view

HOT = "gpu0 is at 84 °C; above 83 °C nothing starts until it has cooled to 78 °C"


@pytest.fixture
def gpuqueue_toml():
    return '[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\n[queues.mail]\n'


@pytest.fixture
def gpuqueue_plugins():
    return {"thermal": Thermal()}


@pytest.fixture
def run_at(gpuqueue_db, simulated_card, run_worker_until_idle):
    """`run_at(celsius)` enqueues one job for the card, runs a worker, and returns why the job waits, [] when it ran."""
    train = gpuqueue_db.task(name="train", queue="train")(lambda: 7)

    def run(celsius):
        simulated_card.temperature_c = celsius
        job = train.enqueue()
        left = run_worker_until_idle(may_wait=True)
        return [reason.detail for reason in left[job.id].reasons if reason.reason == "hot"] if left else []

    return run


def test_a_job_for_a_hot_card_waits_and_says_why(run_at, gpuqueue_db):
    assert run_at(84) == [HOT]
    assert [hold.detail for hold in gpuqueue_db.holds()["train"]] == [HOT]


def test_a_queue_that_needs_no_card_goes_on(run_at, gpuqueue_db):
    mail = gpuqueue_db.task(name="send", queue="mail")(lambda: 7).enqueue()
    assert run_at(84)
    assert mail.result(timeout_s=0) == 7


def test_a_card_may_be_as_warm_as_its_limit(run_at):
    assert run_at(83) == []


def test_a_queue_that_was_held_goes_on_when_the_card_has_cooled_to_resume_and_not_before(run_at):
    assert run_at(84)
    assert run_at(79)
    assert run_at(78) == []
    assert run_at(83) == []


def test_it_remembers_nothing_itself_so_another_process_says_the_same(run_at, make_gpuqueue, gpuqueue_toml):
    assert run_at(84)
    assert run_at(80)
    other = make_gpuqueue(gpuqueue_toml, plugins={"thermal": Thermal()})
    assert [hold.detail for hold in other.holds()["train"]] == [HOT.replace("84", "80")]


@pytest.mark.parametrize(
    ("section", "limits"),
    [("limit = 70", (70, 65)), ("limit = 70\nresume = 60", (70, 60)), ("resume = 83", (83, 83)), ("", (83, 78))],
)
def test_the_limits_are_configured(make_gpuqueue, section, limits):
    thermal = Thermal()
    make_gpuqueue(f"[thermal]\n{section}\n", plugins={"thermal": thermal})
    assert (thermal.limit_c, thermal.resume_c) == limits


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("limt = 70", r"thermal.limt: unknown setting 'limt' \(did you mean 'limit'\?\)"),
        ("limit = '83'", 'thermal.limit = "83": must be an integer, without quotes'),
        ("limit = 70\nresume = 75", r"resume must be at most limit \(70\), not 75"),
    ],
)
def test_a_wrong_setting_is_refused(make_gpuqueue, section, wrong):
    with pytest.raises(ConfigurationError, match=wrong):
        make_gpuqueue(f"[thermal]\n{section}\n", plugins={"thermal": Thermal()})


@pytest.fixture
def ask(make_gpuqueue):
    """`ask(device, …)` asks about a GPU queue in a made-up view of these devices."""
    thermal = Thermal()
    make_gpuqueue(plugins={"thermal": thermal})
    return lambda *devices: thermal.queue_hold(QueueHoldDetails(BATCH, view(devices=devices), {}))


def test_one_hot_card_of_two_holds(ask):
    second = DeviceSettings("gpu1", budget_bytes=1, index=1)
    assert ask(device(temperature_c=50), device(second, temperature_c=90)).detail.startswith("gpu1 is at 90 °C")


def test_a_card_of_which_nothing_new_is_known_holds_nothing(ask):
    hot = device(temperature_c=97)
    assert ask(hot) is not None
    assert ask(replace(hot, reading=replace(hot.reading, at=NOW - timedelta(minutes=2)))) is None
    assert ask(device(lost="it fell off the bus")) is None


def test_it_is_found_where_it_is_installed(make_gpuqueue):
    assert ("thermal", ["configure", "queue_hold"]) in make_gpuqueue(discover_plugins=True).plugins.names()
