"""Owns what an application calls; never runs a job, never imports the worker."""
