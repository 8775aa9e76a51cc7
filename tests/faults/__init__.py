"""One fault a run, and what it costs."""
