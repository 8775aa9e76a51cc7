"""Provides the database ENGINE `gpuqueue.integrations.django.sqlite3`; Django imports its module `base`."""
