"""The parts of the mirror's tests: real servers, BullMQ's own clients, a queue to mirror."""
