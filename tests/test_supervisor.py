"""A real supervisor process over stand-in children: sockets, lock, restarts, signals, lifeline."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.listeners import AddressInUse, public, single
from proxy.settings import Address
from proxy.supervisor import BACKOFF_FIRST_S, BACKOFF_LAST_S, FREE_RESTARTS, LIVED_S, Child
from tests.waiting import DEADLINE_S, promised, wait_for

NODE = Path(__file__).parent / "fakes" / "node.py"
WORKERS = 2


class Node:
    """One supervisor as an operator would start it."""

    def __init__(self, data: Path, **environ: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, str(NODE)],
            env={
                **os.environ,
                "HEADRACE_DATA": str(data),
                "HEADRACE_WORKERS": str(WORKERS),
                "HEADRACE_LISTEN": ":0",
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ready(self) -> dict:
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        wait_for(lambda: all(self.lives(f"w{slot}") for slot in range(WORKERS)))
        self.address = tuple(said["listen"])
        return said

    def lives(self, name: str, ending: str = "") -> list[Path]:
        pattern = f"{name}.*{ending}" if ending else f"{name}.*"
        found = (self.data / "births").glob(pattern)
        return sorted(p for p in found if bool(ending) or (p.suffix[1:].isdigit() and p.name.count(".") == 1))

    def pids(self, name: str) -> set[int]:
        return {int(path.suffix[1:]) for path in self.lives(name)}

    def children(self) -> set[int]:
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def ask(self) -> int:
        """A connection to the public port; the pid of the worker that answered."""
        with socket.create_connection(self.address, timeout=DEADLINE_S) as sock:
            return int(sock.recv(64))

    def stop(self) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.terminate()
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors.decode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(data: Path = tmp_path / "data", **environ: str) -> Node:
        nodes.append(Node(data, **environ))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()


def test_children_learn_their_place_and_keep_secrets_apart(start: Callable[..., Node]) -> None:
    node = start(DATABASE_URL="postgresql://secret/")
    node.ready()
    assert {node.ask() for _ in range(40)} <= node.pids("w0") | node.pids("w1")
    [control], [w0] = node.lives("control"), node.lives("w0")
    incarnation, database_url, environ = control.read_text().split()
    assert incarnation.startswith("c-")
    assert (database_url, environ) == ("postgresql://secret/", "-")
    incarnation, database_url, environ = w0.read_text().split()
    assert incarnation.startswith("w0-")
    assert (database_url, environ) == ("-", "-")
    assert (node.data.stat().st_mode & 0o777, node.data.joinpath("run").stat().st_mode & 0o777) == (
        0o700,
        0o700,
    )


def test_a_killed_child_is_replaced_within_a_second_and_no_connection_is_refused(
    start: Callable[..., Node],
) -> None:
    node = start()
    node.ready()
    for _ in range(5):
        for name in ("w0", "w1", "control"):
            before = node.pids(name)
            [pid] = [p for p in before if Path(f"/proc/{p}").exists()]
            began_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            # The queue of the dead worker's socket is the successor's.
            assert node.ask() != pid
            wait_for(lambda name=name, before=before: node.pids(name) - before)
            assert time.monotonic() - began_s < promised(1.0)


def test_a_worker_that_dies_is_followed_by_one_that_was_waiting(start: Callable[..., Node]) -> None:
    node = start()
    node.ready()
    for name in ("w0", "w1"):
        served = node.pids("w0") | node.pids("w1") | node.pids("control")
        waiting = wait_for(lambda served=served: node.children() - served)
        before = node.pids(name)
        os.kill(max(p for p in before if Path(f"/proc/{p}").exists()), signal.SIGKILL)
        assert wait_for(lambda name=name, before=before: node.pids(name) - before) == waiting
    node.stop()
    assert not node.lives("*", "orphan")


def test_sigterm_stops_workers_before_control_and_exits_clean(start: Callable[..., Node]) -> None:
    node = start()
    node.ready()
    status, _ = node.stop()
    assert status == 0
    stops = {
        name: [p.stat().st_mtime_ns for p in node.lives(name, "stopped")] for name in ("w0", "w1", "control")
    }
    assert all(len(times) == 1 for times in stops.values())
    assert stops["control"][0] > max(stops["w0"] + stops["w1"])
    assert not node.lives("*", "orphan")


def test_sighup_is_for_control(start: Callable[..., Node]) -> None:
    node = start()
    node.ready()
    node.process.send_signal(signal.SIGHUP)
    wait_for(lambda: node.lives("control", "hup"))
    assert not node.lives("w*", "hup")


def test_no_child_outlives_a_killed_supervisor_and_the_port_is_free_again(start: Callable[..., Node]) -> None:
    first = start()
    first.ready()
    first.process.kill()
    second = start(HEADRACE_LISTEN=f"127.0.0.1:{first.address[1]}")
    second.ready()
    wait_for(lambda: len(first.lives("*", "orphan")) == WORKERS + 1)
    assert first.address == second.address
    second.ask()


def test_the_nodes_id_is_for_life(start: Callable[..., Node]) -> None:
    ids = []
    for _ in range(2):
        node = start()
        node.ready()
        ids.append(json.loads((node.data / "node.json").read_text()))
        assert node.stop()[0] == 0
    assert ids[0] == ids[1]


def test_a_second_serve_on_the_same_folder_is_refused(start: Callable[..., Node]) -> None:
    node = start()
    node.ready()
    status, errors = wait(start())
    assert status != 0
    assert f"in use by another headrace (pid {node.process.pid})" in errors
    node.ask()


def test_a_second_serve_on_the_same_port_is_refused(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    node.ready()
    status, errors = wait(start(tmp_path / "other", HEADRACE_LISTEN=f"127.0.0.1:{node.address[1]}"))
    assert status != 0
    assert f"cannot listen on 127.0.0.1:{node.address[1]}: Address already in use" in errors
    node.ask()


def test_a_node_that_control_refuses_to_serve_stops_and_says_why(start: Callable[..., Node]) -> None:
    status, errors = wait(start(FAKE_REFUSES="1"))
    assert status != 0
    assert errors.endswith("refused: routes.yaml:1:1: no\n")


def test_a_data_folder_with_a_long_path_still_works(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start(tmp_path / ("x" * 100))
    node.ready()
    where = Path((node.data / "run" / "where").read_text().strip())
    assert sorted(p.name for p in where.iterdir()) == ["channel.sock", "web.sock"]
    assert node.stop()[0] == 0
    assert not where.exists()


def wait(node: Node) -> tuple[int, str]:
    _, errors = node.process.communicate(timeout=DEADLINE_S)
    return node.process.returncode, errors.decode()


def test_only_a_crash_loop_waits() -> None:
    child = Child("worker")
    delays = []
    now_s = 100.0
    for _ in range(FREE_RESTARTS + 8):
        child.began_s = now_s
        now_s += LIVED_S / 2
        delays.append(child.died(now_s))
        now_s += delays[-1]
    assert delays[:FREE_RESTARTS] == [0.0] * FREE_RESTARTS
    assert delays[FREE_RESTARTS] == BACKOFF_FIRST_S
    assert delays[-1] == BACKOFF_LAST_S
    child.began_s = now_s
    assert child.died(now_s + LIVED_S) == 0.0


def test_slots_share_a_port_that_nobody_else_gets() -> None:
    sockets = public(Address("127.0.0.1", 0), 3)
    [port] = {s.getsockname()[1] for s in sockets}
    with pytest.raises(AddressInUse):
        single(Address("127.0.0.1", port))
    for s in sockets:
        s.close()
