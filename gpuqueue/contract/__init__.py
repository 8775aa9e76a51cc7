"""Owns what plugs in: hooks and what they get, devices, executors, engines, the running job; implements none of them."""
