"""Reads the configuration: gpuqueue.toml, GPUQUEUE_* variables and arguments become frozen settings; opens no database."""
