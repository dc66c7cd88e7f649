"""What a worker has measured of mirrors is told to the other workers of its node, and to none else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from proxy.broker.node import Broker, WorkerState


def test_measures_go_to_every_worker_but_the_one_that_took_them() -> None:
    broker: Any = object.__new__(Broker)
    told: list[tuple[str, str, Any]] = []

    def worker(name: str) -> Any:
        return SimpleNamespace(send=lambda op, args: told.append((name, op, args)))

    workers = {name: worker(name) for name in ("w0", "w1", "w2")}
    broker.workers = {name: WorkerState(one, 1) for name, one in workers.items()}
    args = {"news": [["up", "cdn", 3, 0, 3, 0.6]]}
    broker._measures(workers["w1"], args)
    assert told == [("w0", "measures", args), ("w2", "measures", args)]
