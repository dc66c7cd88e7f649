"""What is not Python arrives with the wheel, where proxy.resources looks for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import resources

ROOT = Path(__file__).resolve().parents[1]


def test_a_checkout_uses_its_own_files():
    assert resources.sql() == ROOT / "sql"
    assert resources.routes() == ROOT / "routes.yaml"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of a venv that has the wheel of this tree and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source, venv = folder / "source", folder / "venv"
    shutil.copytree(ROOT / "proxy", source / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "sql", source / "sql")
    shutil.copytree(ROOT / "tests" / "golden", source / "tests" / "golden")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "routes.yaml"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    wheel = str(next(folder.glob("headrace-*.whl")))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    return python


def told(python: str, program: str) -> list[str]:
    ran = subprocess.run([python, "-c", program], cwd="/", capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_an_installed_wheel_finds_sql_and_routes(installed: str):
    program = """
from proxy import resources
assert resources.routes().is_file()
print(*sorted(path.name for path in resources.sql().iterdir()))"""
    assert told(installed, program) == sorted(path.name for path in (ROOT / "sql").glob("*.sql"))


def test_an_installed_wheel_has_the_golden_answers(installed: str):
    program = (
        "from proxy import resources; f = resources.golden();"
        "print(*sorted(str(p.relative_to(f)) for p in f.rglob('*') if p.is_file()), sep='\\n')"
    )
    mine = ROOT / "tests" / "golden" / "streams"
    assert told(installed, program) == sorted(
        str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file()
    )


def test_an_installed_wheel_has_every_module_and_data_file(installed: str):
    program = """
import pathlib, proxy
root = pathlib.Path(proxy.__file__).parent
print(*sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"))"""
    here = ROOT / "proxy"
    mine = [p for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert told(installed, program) == sorted(str(p.relative_to(here)) for p in mine)


def test_an_installed_wheel_has_the_command(installed: str):
    command = Path(installed).with_name("headrace")
    assert (
        "usage: headrace"
        in subprocess.run([command, "-h"], capture_output=True, text=True, check=True).stdout
    )
