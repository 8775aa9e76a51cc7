"""Owns the kinds of devices; never imports the store or an executor."""
