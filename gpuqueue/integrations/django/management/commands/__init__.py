"""Owns the place of the commands of `manage.py`, one in a file."""
