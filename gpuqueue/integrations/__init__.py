"""Owns what makes gpuqueue at home in web frameworks; each module is loaded only by who asks for it."""
