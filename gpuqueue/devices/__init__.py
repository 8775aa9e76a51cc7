"""The kinds of devices; never imports the store or an executor."""
