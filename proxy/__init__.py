"""Headrace: a thin, fast streaming relay for LLM APIs that settles every call exactly once."""

__version__ = "0.1.0"
