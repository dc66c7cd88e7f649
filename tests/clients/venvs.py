"""Where clients and upstreams that are not ours are installed: a folder each, made at first use.

SDKs of different years cannot share a venv. What cannot be installed is skipped, saying so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / ".venv-clients"

PACKAGES = {
    "openai-0.28": ["openai==0.28.1", "numpy"],
    "openai-1": ["openai>=1,<2"],
    "openai-2": ["openai>=2,<3"],
    "newest": ["openai", "anthropic", "requests"],
    "langchain": ["langchain-openai"],
    "native": ["google-genai", "cohere", "ollama", "mistralai"],
    "llama": ["xllamacpp", "gguf"],
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


def node_program(package: str, name: str) -> str:
    """Path of the program `name` of an npm package."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{name} needs node and npm")
    folder = VENVS / name
    program = folder / "node_modules" / ".bin" / name
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), package]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"{name} cannot be installed here: {installed.stderr.strip()[-200:]}")
    return str(program)
