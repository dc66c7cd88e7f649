"""`python -m proxy` is the `headrace` command."""

import sys

from proxy.cli import main

sys.exit(main(sys.argv[1:]))
