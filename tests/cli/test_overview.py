"""The bare command: every command is there, and explains itself."""

from __future__ import annotations

import pytest

from proxy.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert COMMANDS[name].summary in " ".join(capsys.readouterr().out.split())


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace 0.")


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["srve"])
    assert ended.value.code == 2
    assert "srve" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "/nowhere/routes.yaml"]) == 1
    said = "".join(capsys.readouterr()).strip()
    assert "/nowhere/routes.yaml" in said
    assert "\n" not in said
