"""The servers of this plugin's tests: a real llama.cpp with a model made here, and one that fails as it is told."""
