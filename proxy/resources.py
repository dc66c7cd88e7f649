"""Where the files that are not Python are: sql/, the routes.yaml that a newcomer edits, golden answers.

In a checkout they lie beside the package, in an installed wheel under share/headrace (setup.cfg,
[options.data_files]). Owns no content.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def root() -> Path:
    """The folder that holds `sql/` and `routes.yaml`."""
    if (_CHECKOUT / "setup.cfg").is_file():
        return _CHECKOUT
    return Path(sysconfig.get_path("data")) / "share" / "headrace"


def sql() -> Path:
    """The folder of the migrations."""
    return root() / "sql"


def routes() -> Path:
    """The routes.yaml that is served when no other is named."""
    return root() / "routes.yaml"


def golden() -> Path:
    """The folder of our own answers of every dialect, by which meters are held."""
    folder = root()
    return folder / "tests" / "golden" / "streams" if (folder / "setup.cfg").is_file() else folder / "golden"
