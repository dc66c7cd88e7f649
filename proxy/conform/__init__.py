"""The proof that bytes pass unchanged and are metered as their vendor meant it.

Recorded exchanges are replayed through a relay that is started for it, or calls of a live upstream are
watched on both of its sides. Everything of ours listens on 127.0.0.1 and ends with the run; no station of
the operator's is touched. Nothing here is keyed by the name of a recording.
"""
