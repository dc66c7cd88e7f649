"""The route tables of deploy/stations pass `headrace check`, hold no secret and fit what they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cli import main
from tests.clients.emulated import NAMES, STATIONS, environ_of


@pytest.fixture(params=NAMES)
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of them, and nothing of what it refers to in the environment."""
    path: Path = STATIONS / f"{request.param}.yaml"
    for name in environ_of(path.read_text(), ""):
        monkeypatch.delenv(name, raising=False)
    return path


def test_there_is_one_for_each_of_the_four_stations():
    assert NAMES == ["api4gpt", "apigpt", "ohmygpt", "rcouyi"]


def test_check_passes_without_a_single_secret(file: Path, capsys: pytest.CaptureFixture[str]):
    """Its upstreams are disabled then, each with a warning that says what is missing."""
    assert main(["check", str(file)]) == 0
    *warnings, _ = capsys.readouterr().out.splitlines()
    assert warnings
    assert all(re.search(r"upstreams\.\S+: is disabled: .* is not set", warning) for warning in warnings)


def test_check_has_nothing_to_say_when_all_is_set(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in environ_of(file.read_text(), "https://vendor.example.com").items():
        monkeypatch.setenv(name, value)
    assert main(["check", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_a_file_refers_to_is_optional(file: Path):
    assert set(re.findall(r"\$\{(\w+):\w+(\W)", file.read_text())) == {("env", "?")}


def test_no_file_holds_anything_like_a_secret(file: Path):
    assert not re.search(r"sk-[A-Za-z0-9]{6}|[A-Za-z0-9]{24}", file.read_text())
