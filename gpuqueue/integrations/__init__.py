"""Integrates gpuqueue with web frameworks; each module is loaded only when an application imports it."""
