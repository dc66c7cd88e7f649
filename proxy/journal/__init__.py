"""The local journal: what a process must not forget, on disk before anything acts on it."""
