"""Owns the place of the database ENGINE `gpuqueue.integrations.django.sqlite3`, whose module `base` Django looks for."""
