"""The hot path: from a client's bytes to the upstream's and back, metered on the side."""
