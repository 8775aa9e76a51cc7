"""Finding, in a test, the jobs of Django tasks: by the arguments of their functions, and by what `using` has changed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from gpuqueue import UsageError
from gpuqueue.integrations.django import DjangoQueue
from gpuqueue.testing import assert_enqueued, assert_not_enqueued, enqueued
from tests.integrations.django import tasks
from tests.integrations.django.conftest import DUMMY

EAGER = "gpuqueue.integrations.django.EagerBackend"


def test_arguments_are_found_however_they_were_given(own_file: DjangoQueue) -> None:
    tasks.add.enqueue(1, b=2)
    tasks.add.enqueue(a=7)
    for job in (assert_enqueued(tasks.add, 1), assert_enqueued(tasks.add, a=1), assert_enqueued(tasks.add, b=2)):
        assert job.id == 1
    assert assert_enqueued(tasks.add, 7, 0).id == 2
    assert [job.id for job in enqueued(tasks.add)] == [1, 2]
    assert_not_enqueued(tasks.add, 1, b=3)
    assert_not_enqueued(tasks.who)
    with pytest.raises(UsageError, match=r"tasks\.add: .*unexpected keyword argument 'c'"):
        assert_enqueued(tasks.add, c=1)


def test_a_context_lists_and_further_arguments_count_as_the_function_has_them(own_file: DjangoQueue) -> None:
    tasks.who.enqueue()
    tasks.gather.enqueue("x", (1, 2), 3, to="ana", cc="ben")
    assert_enqueued(tasks.who)
    assert_enqueued(tasks.gather, "x", (1, 2), cc="ben")
    assert_enqueued(tasks.gather, "x", [1, 2], 3)
    assert_not_enqueued(tasks.gather, "x", [1, 2], 4)
    assert_not_enqueued(tasks.gather, cc="cleo")


def test_what_using_has_changed_counts_and_nothing_else(own_file: DjangoQueue) -> None:
    at = timezone.now() + timedelta(hours=1)
    tasks.big.enqueue()
    tasks.big.using(priority=0, queue_name="mail", run_after=at, vram="1GB", model="m").enqueue()
    assert [job.id for job in enqueued(tasks.big)] == [1, 2]
    for options in ({"priority": 0}, {"queue_name": "mail"}, {"run_after": at}, {"vram": "1GB"}, {"model": "m"}):
        assert [job.id for job in enqueued(tasks.big.using(**options))] == [2], options
    for options in ({"priority": 7}, {"queue_name": "x"}, {"run_after": timezone.now()}, {"timeout": "1m"}, {"model": "n"}):
        assert enqueued(tasks.big.using(**options)) == [], options


def test_what_was_enqueued_instead_is_told_as_calls(own_file: DjangoQueue) -> None:
    tasks.add.enqueue(1, b=2)
    own_file.verb("print").enqueue(pages=3)
    own_file.verb("shop.tasks.gone").enqueue(args=[1], kwargs={})
    with pytest.raises(AssertionError) as failed:
        assert_enqueued(tasks.add.using(queue_name="mail"), 7)
    assert str(failed.value) == (
        "no job of tests.integrations.django.tasks.add(a=7) with queue='mail' was enqueued; these jobs were:\n"
        "  job 1: tests.integrations.django.tasks.add(a=1, b=2) in default, available\n"
        "  job 2: print(pages=3) in default, available\n"
        "  job 3: shop.tasks.gone(args=[1], kwargs={}) in default, available"
    )


def test_a_job_is_found_within_the_transaction_that_it_belongs_to(app_file: DjangoQueue) -> None:
    with transaction.atomic():
        tasks.add.enqueue(1)
        assert assert_enqueued(tasks.add, 1).state == "available"
        transaction.set_rollback(True)
    assert_not_enqueued(tasks.add)


def test_a_job_that_ran_at_once_was_enqueued_too() -> None:
    at = timezone.now() + timedelta(hours=1)
    with override_settings(TASKS={"default": {"BACKEND": EAGER}}):
        tasks.add.using(run_after=at).enqueue(1)
        assert assert_enqueued(tasks.add.using(run_after=at), 1).state == "completed"
        assert_not_enqueued(tasks.add.using(run_after=timezone.now()), 1)


def test_a_task_of_another_backend_has_no_jobs() -> None:
    with override_settings(TASKS={"default": {"BACKEND": DUMMY}}), pytest.raises(UsageError, match="not a gpuqueue task"):
        assert_enqueued(tasks.add)
