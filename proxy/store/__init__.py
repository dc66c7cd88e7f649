"""Postgres: the only package that knows asyncpg. Used by control and the command line, never by a worker."""
