"""Owns this project's settings; those that gpuqueue needs are INSTALLED_APPS, DATABASES and TASKS."""

import os
from pathlib import Path

import django

BASE_DIR = Path(__file__).parent.parent
DEBUG = os.environ.get("DEBUG", "1") == "1"
SECRET_KEY = os.environ.get("SECRET_KEY", "for development only")
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "").split()
ROOT_URLCONF = "project.urls"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "gpuqueue.integrations.django",
    *(["django_tasks"] if django.VERSION < (6, 0) else []),  # the backport of what Django 6 has
    "revisions",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]

DATABASES = {
    "default": {
        "ENGINE": "gpuqueue.integrations.django.sqlite3",  # waits for the write lock beside busy workers
        "NAME": BASE_DIR / "revisions.db",
    }
}

TASKS = {
    "default": {
        "BACKEND": "gpuqueue.integrations.django.Backend",
        "OPTIONS": {"database": "default"},  # jobs commit with the rows; all else is in gpuqueue.toml
    }
}

SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR.parent / "page"]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
