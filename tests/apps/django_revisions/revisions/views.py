"""Owns what the page shows and does; a visitor reaches only revisions of their own."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from gpuqueue import UnknownJob
from gpuqueue.integrations.django import sse_response
from revisions.models import Revision


class RevisionForm(forms.ModelForm):
    class Meta:
        model = Revision
        fields = ("text",)


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    return render(request, "revisions/page.html", {"form": RevisionForm()})


@require_POST
def revise(request: HttpRequest) -> HttpResponse:
    form = RevisionForm(request.POST)
    if not form.is_valid():
        return render(request, "revisions/page.html", {"form": form}, status=400)
    return redirect(Revision.ask(_visitor(request), form.cleaned_data["text"]))


@require_safe
def show(request: HttpRequest, pk: int) -> HttpResponse:
    revision = _own(request, pk)
    with _pruned_is_404():
        revision.keep_answer()
    return render(request, "revisions/page.html", {"form": RevisionForm(instance=revision), "revision": revision})


@require_safe
def events(request: HttpRequest, pk: int) -> HttpResponse:
    with _pruned_is_404():
        return sse_response(request, _own(request, pk).job)


@require_POST
def cancel(request: HttpRequest, pk: int) -> HttpResponse:
    revision = _own(request, pk)
    with _pruned_is_404():
        revision.job.cancel()
    return redirect(revision)


def _visitor(request: HttpRequest) -> str:
    return request.session.setdefault("visitor", secrets.token_hex(16))


def _own(request: HttpRequest, pk: int) -> Revision:
    return get_object_or_404(Revision, pk=pk, visitor=_visitor(request))


@contextmanager
def _pruned_is_404() -> Iterator[None]:
    try:
        yield
    except UnknownJob as error:
        raise Http404(str(error)) from None
