"""Runs a real supervisor over stand-in children: `python tests/fakes/node.py`, settings as for serve."""

import json
import os
import sys
from pathlib import Path

from proxy import settings
from proxy.errors import StateError
from proxy.logs import configure_logging
from proxy.supervisor import Supervisor

CHILD = Path(__file__).with_name("child.py")


def main() -> int:
    chosen = settings.load({"DATABASE_URL": "postgresql://nowhere/", **os.environ}, {"admin": ":0"})
    configure_logging("supervisor")
    node = Supervisor(
        chosen,
        None,
        lambda said: print(json.dumps({**said, "pid": os.getpid()}), flush=True),
        command=lambda kind: [sys.executable, str(CHILD), kind],
    )
    return node.run()


try:
    sys.exit(main())
except (StateError, OSError) as e:
    sys.exit(f"refused: {e}")
