"""Owns the ways to run an attempt; never imports the store or a device."""
