"""File names say what a file owns."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "core", "misc", "stuff"}


def test_no_file_or_folder_is_named_after_nothing():
    paths = [p for top in ("proxy", "tests") for p in (ROOT / top).rglob("*")]
    nameless = [str(p.relative_to(ROOT)) for p in paths if set(p.stem.lower().split("_")) & EMPTY_WORDS]
    assert nameless == []


def test_every_module_says_what_it_owns():
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "proxy").rglob("*.py")
        if (text := path.read_text()).strip() and not text.startswith('"""')
    ]
    assert silent == []
