"""Cooldowns outlive control, and end where somebody mended what was wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.broker.health import HealthBook
from proxy.control.rests import Rests
from tests.routing.compiling import ENVIRON, MINIMAL, table

NOW_MS = 1_000_000
DISABLED = {"upstream": "openai", "credential": "main", "model": "m", "event": "status:401"}
FAILING = {"upstream": "openai", "mirror": "direct", "event": "upstream_connect_failed"}


class Control:
    """A life of control that knows what rests."""

    def __init__(self, folder: Path) -> None:
        self.book = HealthBook()
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.rests = Rests(
            folder / "health.json", self.book, lambda op, args: self.told.append((op, args)), lambda: NOW_MS
        )


@pytest.fixture
def control(tmp_path: Path) -> Control:
    control = Control(tmp_path)
    for said in (DISABLED, FAILING):
        control.book.report(said, NOW_MS)
    return control


def test_the_next_life_of_control_knows_what_rests(control: Control, tmp_path: Path) -> None:
    control.rests.save()
    heir = Control(tmp_path)
    heir.rests.recall()
    assert heir.rests.rows() == control.rests.rows()
    assert {row["state"] for row in heir.rests.rows()} == {"disabled", "resting"}


@pytest.mark.parametrize("content", ["", "{", '[{"upstream": "openai"}]', "[1]"])
def test_a_file_that_cannot_be_read_is_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "health.json").write_text(content)
    heir = Control(tmp_path)
    heir.rests.recall()
    assert heir.rests.rows() == []


def test_a_credential_with_a_new_secret_is_good_again(control: Control) -> None:
    old = table(MINIMAL)
    control.rests.renewed(None, old)
    control.rests.renewed(old, table(MINIMAL))
    assert control.told == []
    control.rests.renewed(old, table(MINIMAL, {**ENVIRON, "OPENAI_API_KEY": "sk-another"}))
    assert [(op, args["credential"]) for op, args in control.told] == [("uncool", "main")]
    assert [row["mirror"] for row in control.rests.rows()] == ["direct"]


def test_an_operator_ends_a_rest_of_a_credential_and_of_a_mirror(control: Control) -> None:
    assert control.rests.enable("openai", credential="main") == 1
    assert control.rests.enable("openai", mirror="direct") == 1
    assert control.rests.enable("openai", mirror="direct") == 0
    assert control.rests.rows() == []
