"""The client API that applications call; never runs a job, never imports the worker."""
