"""Owns what the mirror's tests need: real servers, BullMQ's own clients, a queue to mirror."""
