"""Owns the addresses of the revisions; answers nothing itself."""

from django.urls import path

from revisions import views

app_name = "revisions"
urlpatterns = [
    path("", views.start, name="start"),
    path("revisions/", views.revise, name="revise"),
    path("revisions/<int:pk>/", views.show, name="show"),
    path("revisions/<int:pk>/events", views.events, name="events"),
    path("revisions/<int:pk>/cancel", views.cancel, name="cancel"),
]
