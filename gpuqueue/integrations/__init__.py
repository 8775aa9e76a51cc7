"""Owns the place of the web frameworks' integrations; imports none of them, each is loaded by who uses it."""
