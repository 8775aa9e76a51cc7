"""Runs one hour of committed traces in real time under several schemes, on a simulated card; a check of the one in virtual time.

`python -m tests.benchmarks.scheduling.real_time` runs it. The card runs `--speed` times faster than a real one, and every
duration that is reported is in the card's seconds. What the worker itself takes is not faster: the 60 ms that it needs from
one job to the next look like 0.9 s at a speed of 15, so the figures of every scheme that has a worker are upper bounds, and
other work on a machine of 2 cores spoils them. All durations of the configuration are divided by the speed, but for
`keep_warm`, which is sent to Ollama and is in its time.

Two models that answer at once do so at full speed each on the simulated card, which a real one could not give them: what is
said of clients that call Ollama directly is better than it would be. The time to the first token is taken at the card:
streaming gathers pieces for 50 real milliseconds, which would be a second.
"""
