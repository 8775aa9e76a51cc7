"""Reads devices, one module per way; never imports the store or an executor."""
