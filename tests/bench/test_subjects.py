"""nginx and the textbook proxy pass on what the upstream says."""

from __future__ import annotations

import shutil

import pytest

from proxy.bench import machine
from proxy.bench.figures import STREAM
from proxy.bench.rig import Rig
from proxy.bench.subjects import Nginx, Subject, Textbook

from .answers import ask, events_of


@pytest.fixture(params=[Nginx, Textbook])
def subject(request: pytest.FixtureRequest, rig: Rig):
    if request.param is Nginx and shutil.which("nginx") is None:
        pytest.skip("no nginx on PATH")
    subject: Subject = request.param(rig)
    subject.start()
    yield subject
    subject.stop()


@pytest.mark.parametrize("is_secure", [False, True])
async def test_it_passes_whole_answers_and_streams(rig: Rig, subject: Subject, is_secure: bool) -> None:
    if is_secure and rig.certificate is None:
        pytest.skip("no openssl command")
    base = f"http://127.0.0.1:{subject.port(is_secure)}"
    _, _, whole = await ask(base, rig.requests("t", is_secure)[0])
    assert whole == (await ask(rig.upstream_url(False), rig.requests("t", False)[0]))[2]
    stream = STREAM.format(chunks=4, every_us=1000)
    _, _, body = await ask(base, rig.requests("t", is_secure, stream=stream)[0])
    assert len(events_of(body)) == 1 + 4 + 1 + 1 + 1


async def test_its_cpu_time_and_memory_can_be_read(rig: Rig, subject: Subject) -> None:
    pid = subject.pid(False)
    assert pid
    before = machine.cpu_ns(pid)
    for _ in range(5):
        await ask(f"http://127.0.0.1:{subject.port(False)}", rig.requests("t", False)[0])
    assert machine.cpu_ns(pid) > before
    assert 0 < machine.memory(pid).pss <= machine.memory(pid).rss
