"""Pythons that have one client each: SDKs of different years cannot share a venv."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / ".venv-clients"

PACKAGES = {
    "openai-0.28": ["openai==0.28.1"],
    "openai-1": ["openai>=1,<2"],
    "openai-2": ["openai>=2,<3"],
    "newest": ["openai", "anthropic", "requests"],
    "langchain": ["langchain-openai"],
}


def python_with(name: str) -> str:
    """Path of a Python that has PACKAGES[name]; made at first use. Skips where it cannot be had."""
    folder = VENVS / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(PACKAGES[name])
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, stdin=subprocess.DEVNULL)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *PACKAGES[name]]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{name} cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    stamp.write_text(wanted)
    return str(python)
