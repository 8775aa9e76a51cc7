"""Owns the addresses of this project; what they answer is the apps'."""

from django.urls import include, path

urlpatterns = [path("", include("revisions.urls"))]
