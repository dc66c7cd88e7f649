"""The benchmark: the relay beside nginx, a textbook aiohttp proxy and the bare upstream, in one run.

What is compared is CPU time per unit of work, as a ratio of one run: absolute times drift from
machine to machine and from minute to minute. Everything listens on 127.0.0.1, is bounded in number
and time, and ends with the runner.
"""
