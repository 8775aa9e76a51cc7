"""Implements the API that applications call; never runs a job, never imports the worker."""
