"""Serves the admin site's pages of queues and jobs: their addresses and permissions; `pages` builds what they show.

They are in the index of `django.contrib.admin.site`; to add them to another site, call `site.register(Queue, QueueAdmin)` and
`site.register(Job, JobAdmin)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper, wraps
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse, reverse_lazy
from django.utils.encoding import escape_uri_path
from django.utils.http import url_has_allowed_host_and_scheme

from gpuqueue.client.handle import JobHandle
from gpuqueue.domain.errors import StateError, UnknownJob, UnknownQueue, UsageError
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.moments import until
from gpuqueue.domain.units import counted
from gpuqueue.integrations.django.models import Job, Queue
from gpuqueue.integrations.django.pages import cards, job, jobs, queues, sources

__all__ = ["JobAdmin", "QueueAdmin"]

REFRESH_S = 5
LONGEST_REFRESH_S = 3600
View = Callable[..., HttpResponse]
KEPT = ("reason", "until")  # form input that is kept when the action fails


def for_eyes(view: View) -> View:
    """Require view permission; a problem with a queue is shown on the page."""

    @wraps(view)
    def seen(self: Pages, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        try:
            return view(self, request, *args, **kwargs)
        except sources.TROUBLES as error:
            status = 404 if isinstance(error, UnknownJob | UnknownQueue) else 200
            return self.page(request, "trouble", str(self.opts.verbose_name_plural).capitalize(), {"trouble": str(error)}, status)

    return seen


def for_hands(view: Callable[..., HttpResponse | None]) -> View:
    """Require change permission and POST; unless the view answers itself, redirect back with a message."""

    @wraps(view)
    def done(self: Pages, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_change_permission(request):
            raise PermissionDenied
        back = self.back(request)
        try:
            if (answer := view(self, request, *args, **kwargs)) is not None:
                return answer
        except sources.TROUBLES as error:
            self.message_user(request, str(error), messages.ERROR)
            if kept := {name: request.POST[name] for name in KEPT if request.POST.get(name)}:
                back += f"{'&' if '?' in back else '?'}{urlencode(kept)}"
        return HttpResponseRedirect(back)

    return done


class Pages(admin.ModelAdmin):
    """The common base of the queue and job pages."""

    def views(self) -> list[tuple[str, View, str]]:
        """Return the pages: [(path, view, name)]."""
        raise NotImplementedError

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        return [path(where, self._wrapped(view), name=self._named(name)) for where, view, name in self.views()]

    def _wrapped(self, view: View) -> View:
        def wrapper(*args: Any, **kwargs: Any) -> HttpResponse:
            return self.admin_site.admin_view(view)(*args, **kwargs)

        update_wrapper(wrapper, view)
        wrapper.model_admin = self  # type: ignore[attr-defined]  # as ModelAdmin's own
        wrapper.login_url = reverse_lazy("admin:login", current_app=self.admin_site.name)  # type: ignore[attr-defined]
        for alias in connections:
            # ATOMIC_REQUESTS would hold the write lock for which the queue's own connection waits.
            transaction.non_atomic_requests(using=alias)(wrapper)
        return wrapper

    def _named(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"

    def url(self, name: str, *args: str) -> str:
        return str(reverse(f"admin:{self._named(name)}", args=[quote(arg) for arg in args], current_app=self.admin_site.name))

    def _other(self, request: HttpRequest, model: Any) -> Any:
        """Return the pages of another model if this user may see them, else None."""
        if not self.admin_site.is_registered(model):
            return None
        pages = self.admin_site.get_model_admin(model)
        return pages if pages.has_view_or_change_permission(request) else None

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the subject of a history, which outlives its job."""
        return self.model(pk=object_id)

    def back(self, request: HttpRequest) -> str:
        """Return the page a form was sent from if it is on this site, else the list."""
        back = str(request.POST.get("back", ""))
        is_ours = url_has_allowed_host_and_scheme(back, {request.get_host()}, require_https=request.is_secure())
        return back if is_ours else self.url("changelist")

    def page(self, request: HttpRequest, template: str, title: str, shown: dict[str, Any], status: int = 200) -> HttpResponse:
        """Render a page."""
        request.current_app = self.admin_site.name  # the tag `url` reads it
        refresh = request.GET.get("refresh", "")
        refresh_s = min(int(refresh), LONGEST_REFRESH_S) if refresh.isascii() and refresh.isdecimal() and len(refresh) < 9 else 0
        their_queues, their_jobs = self._other(request, Queue), self._other(request, Job)
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "page": template,
            "may_change": self.has_change_permission(request),
            "sees_queues": their_queues is not None,
            "sees_jobs": their_jobs is not None,
            "back": escape_uri_path(request.path) + changed(request, **dict.fromkeys(KEPT, "")).removesuffix("?"),
            "refresh_every_s": REFRESH_S,
            "refresh_s": str(refresh_s) if refresh_s else "",
            "refresh_url": changed(request, refresh="" if refresh_s else str(REFRESH_S)),
            **shown,
        }
        return TemplateResponse(request, f"admin/gpuqueue/{template}.html", context, status=status)

    def note(self, request: HttpRequest, key: str, deed: str) -> None:
        """Record an action and its user in the admin site's history."""
        try:
            self.log_change(request, self.model(pk=key), deed)
        except DatabaseError as error:
            words = f"The action succeeded, but the admin history could not be written: {error}"
            self.message_user(request, words, messages.WARNING)


@admin.register(Queue)
class QueueAdmin(Pages):
    """Queues, cards and workers."""

    def views(self) -> list[tuple[str, View, str]]:
        return [
            ("", self.changelist_view, "changelist"),
            ("cards/", self.cards_view, "cards"),
            ("workers/", self.workers_view, "workers"),
            ("act/", self.act_view, "act"),
            ("<path:object_id>/history/", self.history_view, "history"),
            ("<path:object_id>/change/", self.change_view, "change"),
        ]

    @for_eyes
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return self.page(request, "queues", "Queues", {"sections": sources.sections(queues.queue_list)})

    @for_eyes
    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        alias, name = sources.read_key(unquote(object_id))
        written = {name: request.GET.get(name, "") for name in KEPT}
        return self.page(request, "queue", f"Queue {name}", {**queues.queue_page(sources.opened(alias), name), **written})

    @for_eyes
    def cards_view(self, request: HttpRequest) -> HttpResponse:
        return self.page(request, "cards", "Cards", {"sections": sources.sections(cards.cards_page)})

    @for_eyes
    def workers_view(self, request: HttpRequest) -> HttpResponse:
        return self.page(request, "workers", "Workers", {"sections": sources.sections(cards.workers_page)})

    @for_hands
    def act_view(self, request: HttpRequest) -> None:
        key, act = request.POST.get("queue", ""), request.POST.get("act", "")
        alias, name = sources.read_key(key)
        gq, by = sources.opened(alias), request.user.get_username()
        if act == "resume":
            was_paused = gq.resume(name, by=by)
            holds = [f"Still held: {hold.detail}{until(hold.until, now=gq.now())}" for hold in gq.holds().get(name, ())]
            runs = f"Queue {name} is resumed" if was_paused else f"Queue {name} was not paused"
            self.message_user(request, ". ".join([runs, *holds]), messages.SUCCESS)
            if was_paused:
                self.note(request, key, "Resumed.")
            return
        if act != "pause":
            raise UsageError(f"unknown action {act!r}; expected pause or resume")
        from gpuqueue.cli.rendering import parse_moment

        reason, until_text = request.POST.get("reason", "").strip(), request.POST.get("until", "").strip()
        end = parse_moment(until_text, now=gq.now(), what="Until") if until_text else None
        if end is not None and end <= gq.now():
            raise UsageError(f"Until must be in the future, not {until_text!r}")
        gq.pause(name, reason=reason, until=end, by=by)
        ends = until(end, now=gq.now())
        self.message_user(request, f"Queue {name} is paused{ends}. Running jobs continue.", messages.SUCCESS)
        self.note(request, key, f"Paused{ends}{f': {reason}' if reason else '.'}")


@admin.register(Job)
class JobAdmin(Pages):
    """The list of jobs, and each job's page."""

    def views(self) -> list[tuple[str, View, str]]:
        return [
            ("", self.changelist_view, "changelist"),
            ("act/", self.act_view, "act"),
            ("<path:object_id>/history/", self.history_view, "history"),
            ("<path:object_id>/change/", self.change_view, "change"),
        ]

    @for_eyes
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        asked = {name: request.GET.get(name, "").strip() for name in ("queue", "state", "q", "after", "before", "file")}
        known = sources.aliases()
        alias = asked["file"] or known[0]
        gq = sources.opened(alias)
        queue, state, text = asked["queue"], asked["state"], asked["q"]
        found = jobs.job_list(gq, queue=queue, state=state, text=text, after=asked["after"], before=asked["before"])
        newer = "" if found["newer"] is None else changed(request, after="", before=str(found["newer"]))
        older = "" if found["older"] is None else changed(request, after=str(found["older"]), before="")
        shown = {
            **found,
            "asked": asked,
            "file": str(gq.database),
            "files": [(other, other == alias, changed(request, file=other, queue="", after="", before="")) for other in known],
            "queue_filter": filters(request, "queue", queue, found["known_queues"]),
            "state_filter": filters(request, "state", state, found["known_states"]),
            "newest_url": newer and changed(request, after="", before=""),
            "newer_url": newer,
            "older_url": older,
            "further_url": (newer if asked["before"] else older) if found["looked_far"] else "",
        }
        return self.page(request, "jobs", "Jobs", shown)

    @for_eyes
    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        alias, name = sources.read_key(unquote(object_id))
        shown = job.job_page(sources.opened(alias), name, whole="whole" in request.GET)
        return self.page(request, "job", f"Job {name}", {**shown, "whole_url": changed(request, whole="1")})

    @for_hands
    def act_view(self, request: HttpRequest) -> HttpResponse | None:
        act, keys = request.POST.get("act", ""), request.POST.getlist("job")
        if act not in ("retry", "cancel"):
            raise UsageError(f"unknown action {act!r}; expected retry or cancel")
        if not keys:
            raise UsageError("no job was selected; nothing was done")
        if len(keys) > jobs.PER_PAGE:
            raise UsageError(f"{len(keys)} jobs were selected, more than the {jobs.PER_PAGE} of a page; nothing was done")
        if act == "cancel" and "sure" not in request.POST and (at_stake := self._at_stake(keys)):
            title = f"Cancel job {at_stake[0]['id']}?" if len(at_stake) == 1 else f"Cancel {len(at_stake)} jobs?"
            running_count = sum(row["state"] == State.RUNNING for row in at_stake)
            shown = {"jobs": at_stake, "keys": keys, "running_count": running_count, "back": self.back(request)}
            return self.page(request, "cancel", title, shown)
        done: dict[str, int] = {}
        try:
            for key in keys:
                words, deed = self._retry(key) if act == "retry" else self._cancel(key)
                if deed:
                    done[words] = done.get(words, 0) + 1
                    self.note(request, key, deed)
                else:
                    self.message_user(request, words, messages.WARNING)
        finally:
            for words, count in done.items():
                self.message_user(request, words if len(keys) == 1 else f"{counted(count, 'job')}: {words}", messages.SUCCESS)
        return None

    def _at_stake(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Show the jobs that would be cancelled, none if no confirmation is needed: a single waiting job loses nothing."""
        found = []
        for key in keys:
            gq, job_id = self._place(key)
            try:
                record = gq.job(job_id).record
            except UnknownJob:
                continue  # reported after the others are cancelled
            if record.state not in FINISHED:
                found += jobs.rows_of(gq, [record])
        return found if len(found) > 1 or any(row["state"] == State.RUNNING for row in found) else []

    def _retry(self, key: str) -> tuple[str, str]:
        """Make a job available again; returns the message, and the entry for the history, "" if nothing was done."""
        handle = self._handle(key)
        try:
            handle.retry()
        except (StateError, UnknownJob) as error:
            return str(error), ""
        return "available again", "Retried."

    def _cancel(self, key: str) -> tuple[str, str]:
        handle = self._handle(key)
        try:
            if not handle.cancel():
                return f"job {handle.id} already finished: {handle.state}", ""
            state = handle.refresh().state
        except UnknownJob as error:
            return str(error), ""
        return ("cancelled", "Cancelled.") if state is State.CANCELLED else ("asked to stop", "Asked to stop.")

    def _handle(self, key: str) -> JobHandle:
        return JobHandle(*self._place(key))

    def _place(self, key: str) -> tuple[Any, int]:
        """Return the queue object that has a job, and the job's id."""
        alias, name = sources.read_key(key)
        if not (name.isascii() and name.isdecimal() and len(name) < 19):
            raise UsageError(f"{key!r} is not a job id")
        return sources.opened(alias), int(name)


def changed(request: HttpRequest, **words: str) -> str:
    """Return this page's query with some values changed, and empty ones left out."""
    query = request.GET.copy()
    for name, value in words.items():
        query.pop(name, None)
        if value:
            query[name] = value
    return f"?{query.urlencode()}"


def filters(request: HttpRequest, name: str, chosen: str, known: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Return a filter's choices as links, each with how many jobs it has."""
    choices = [("", sum(count for _, count in known)), *known]
    return [
        {
            "words": value or "All",
            "count": count,
            "chosen": value == chosen,
            "url": changed(request, **{name: value, "after": "", "before": ""}),
        }
        for value, count in choices
    ]
