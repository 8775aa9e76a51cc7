"""Runs attempts, one module per way; never imports the store or a device."""
