"""The `headrace` command: which module serves which command, and how a failure leaves the process.

A command's module is imported only when that command was asked for, so that help is instant and
`serve` does not load what only reports need. Such a module has two functions:

    configure(command, parser)   adds its arguments to an argparse parser and sets `run`
    run(args) -> int             the exit status: 0 well, 1 the answer is no, 2 wrong usage

Owns no command itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from proxy.errors import ConfigError, ProxyError, StateError


class Command(NamedTuple):
    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "serve": Command("serve", "start the relay: supervisor, control and workers"),
    "check": Command("config", "say every mistake in a routes.yaml"),
    "explain": Command("config", "say what would happen to a request, and what it would cost"),
    "diff": Command("config", "say what changes between two routes.yaml"),
    "account": Command("accounts", "create accounts, top them up, show them"),
    "key": Command("keys", "create, list, set, rotate and revoke keys"),
    "code": Command("payments", "create redeem codes, list them"),
    "refund": Command("payments", "give back what a call cost, or take back a payment"),
    "price": Command("price", "what a model costs, with every multiplier, and what upstreams take"),
    "bill": Command("ledger", "what an account used and paid"),
    "ledger": Command("ledger", "export statements, audit the accounts"),
    "reconcile": Command("reconciliation", "hold an upstream's bill against our own calls"),
    "dispute": Command("disputes", "tasks whose end nobody could tell: list them, decide them"),
    "callback": Command("callbacks", "what customers were told of their tasks: list it, send it again"),
    "result": Command("results", "files that tasks have made: list them, show one, remove them"),
    "node": Command("node", "list the nodes of a station, retire one that will not come back"),
    "conform": Command("conform", "prove that bytes pass unchanged and are metered as vendors meant it"),
    "bench": Command("bench", "measure the relay beside nginx and a textbook proxy"),
}


def overview() -> argparse.ArgumentParser:
    """The parser of the bare command; knows the names of the commands and none of their arguments."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="A relay station for LLM APIs: same bytes, exact bills.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {c.summary}" for name, c in COMMANDS.items())
        + "\n\n'headrace COMMAND --help' tells a command's arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="headrace COMMAND ...",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", choices=COMMANDS, nargs="?", metavar="COMMAND", help="one of those below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status of the process. Never raises for a user's mistake."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = overview()
    args = parser.parse_args(argv[:1])
    if args.version:
        return print_version()
    if args.command is None:
        parser.print_help()
        return 2
    return run_command(args.command, argv[1:])


def run_command(name: str, argv: Sequence[str]) -> int:
    module = importlib.import_module(f"proxy.cli.{COMMANDS[name].module}")
    parser = argparse.ArgumentParser(prog=f"headrace {name}", description=COMMANDS[name].summary)
    module.configure(name, parser)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as e:
        print("\n".join(e.mistakes), file=sys.stderr)
    except ProxyError as e:
        print(f"headrace {name}: {e.message} {e.detail}".rstrip(), file=sys.stderr)
    except (StateError, OSError, ValueError, LookupError) as e:
        print(f"headrace {name}: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def print_version() -> int:
    from importlib.metadata import version

    print(f"headrace {version('headrace')}")
    return 0
