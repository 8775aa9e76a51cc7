"""Holds the commands of `manage.py`, one per file."""
