"""The benchmark's fixed parts, built once: its C programs, a certificate, a running upstream."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.bench.machine import Cores
from proxy.bench.rig import Rig


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc): the benchmark's upstream and load client cannot be built")
    core = min(os.sched_getaffinity(0))
    folder: Path = tmp_path_factory.mktemp("bench")
    rig = Rig(folder, Cores(core, core))
    rig.build()
    rig.start()
    yield rig
    rig.stop()
