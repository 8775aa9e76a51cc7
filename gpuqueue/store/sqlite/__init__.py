"""Implements the SQLite engine: every statement, connection and lock on the queue's file."""
