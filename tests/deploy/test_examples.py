"""The examples in deploy/ are valid by the word of the programs that read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TLS = "/etc/headrace/tls"


def program(name: str) -> str:
    """Path of a program; skips where it is not installed. Debian keeps some in sbin."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def judged(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    """A folder with a certificate of our own, as the examples expect it."""
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=api.example.com"]
    judged(program("openssl"), *new, "-keyout", str(key), "-out", str(certificate))
    (tmp_path / "headrace.pem").write_text(certificate.read_text() + key.read_text())
    return tmp_path


def test_nginx_takes_its_example(tls: Path):
    config = tls / "nginx.conf"
    config.write_text(f"pid {tls}/nginx.pid;\n" + (DEPLOY / "nginx.conf").read_text().replace(TLS, str(tls)))
    judged(program("nginx"), "-t", "-q", "-e", "stderr", "-c", str(config))


def test_haproxy_takes_its_example(tls: Path):
    config = tls / "haproxy.cfg"
    config.write_text((DEPLOY / "haproxy.cfg").read_text().replace(TLS, str(tls)))
    judged(program("haproxy"), "-c", "-q", "-f", str(config))


def test_caddy_takes_its_example():
    judged(program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile"))


def test_systemd_takes_its_example(tmp_path: Path):
    unit = tmp_path / "headrace.service"
    text = (DEPLOY / "headrace.service").read_text()
    unit.write_text(text.replace("/opt/headrace/bin/headrace", "/bin/true"))  # verify wants it to exist
    said = judged(program("systemd-analyze"), "verify", "--man=no", str(unit))
    assert "headrace.service:" not in said


def test_compose_keeps_the_journal_and_gives_streams_time_to_end():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert any(volume.endswith(":/data") for volume in services["headrace"]["volumes"])
    assert services["headrace"]["stop_grace_period"] == "2m"
    assert (DEPLOY / services["headrace"]["build"]["context"] / "deploy" / "Dockerfile").is_file()


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg", "Caddyfile"])
def test_a_front_waits_longer_than_the_relay(name: str):
    """timeouts.first_byte.whole is 600 s: the front must not give up before the relay does."""
    assert "620s" in (DEPLOY / name).read_text()
