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
    "litellm": ["litellm", "mcp"],  # its tools import mcp
    "native": ["google-genai", "cohere", "ollama", "mistralai"],
    "llama": ["xllamacpp", "gguf"],
}

NODE_PACKAGES = [
    "openai@6.49.0",
    "ai@6.0.326",
    "@ai-sdk/openai@3.0.141",
    "@anthropic-ai/sdk@1.12.0",
    "@google/genai@2.32.0",
]


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
    return str(_node_folder(name, [package]) / "node_modules" / ".bin" / name)


def node_script(path: Path) -> list[str]:
    """The command that runs a script among NODE_PACKAGES; made at first use. Skips where it cannot be had."""
    folder = _node_folder("node", NODE_PACKAGES)
    link = folder / path.parent.name  # node looks for packages from where a script seems to be
    if not link.is_symlink():
        link.symlink_to(path.parent, target_is_directory=True)
    return ["node", "--preserve-symlinks", "--preserve-symlinks-main", str(link / path.name)]


def _node_folder(name: str, packages: list[str]) -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip(f"{name} needs node and npm")
    folder = VENVS / name
    stamp, wanted = folder / ".installed", "\n".join(packages)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), *packages]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{name} cannot be installed here: {installed.stderr.strip()[-200:]}")
    stamp.write_text(wanted)
    return folder
