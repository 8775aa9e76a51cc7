"""Owns the settings: gpuqueue.toml, GPUQUEUE_* variables and arguments become frozen settings; opens no database."""
