"""Defines the extension points: hooks and their details, devices, executors, engines, the running job; implements none."""
