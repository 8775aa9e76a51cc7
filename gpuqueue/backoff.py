"""Exports the waits between attempts, under the name that applications import: `from gpuqueue.backoff import exponential`."""

from gpuqueue.domain.backoff import Backoff, custom, exponential, fixed, polynomial

__all__ = ["Backoff", "custom", "exponential", "fixed", "polynomial"]
