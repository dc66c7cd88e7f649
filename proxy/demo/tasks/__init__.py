"""Vendors that work behind the answer, as the demo plays them: pictures, songs and films that take a while.

One engine (`jobs`) and a table per family (what its replies look like, which words it has for a state).
A job moves on by the demo's own clock, or by `POST /_demo/tasks/{id}` where tests hold the clock. Words in
a prompt decide what becomes of it, so that every end can be tried by curl: `words.py` lists them.
"""
