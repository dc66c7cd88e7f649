"""`headrace serve`: start the node and say how to use it."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

from proxy import resources, settings
from proxy.logs import configure_logging
from proxy.settings import Address
from proxy.supervisor import Supervisor


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="routes.yaml (default: the one in this folder)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where key holders connect (127.0.0.1:8080)")
    parser.add_argument("--admin", metavar="HOST:PORT", help="where operators connect (127.0.0.1:8081)")
    parser.add_argument("--workers", metavar="N", help="relay processes (default: one per core)")
    parser.add_argument("--data", metavar="DIR", help="journals, embedded Postgres, lock (.headrace)")
    parser.add_argument("--demo", action="store_true", help="with a built-in upstream, an account and a key")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate chain")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = vars(args)
    if given["config"] is None and "HEADRACE_CONFIG" not in os.environ and not os.path.exists("routes.yaml"):
        given["config"] = str(resources.routes())
    chosen = settings.load(os.environ, given)
    if chosen.tls_cert:
        check_certificate(chosen.tls_cert, chosen.tls_key)
    configure_logging("supervisor", chosen.log_level)
    postgres = None
    if not chosen.database_url:
        from proxy.embedded import EmbeddedPostgres

        postgres = EmbeddedPostgres(chosen.data)
    return Supervisor(chosen, postgres, announce).run()


def check_certificate(cert: str, key: str) -> None:
    """Raises OSError (an ssl.SSLError is one) here, not in every worker again and again."""
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except OSError as e:
        raise OSError(f"--tls-cert {cert} and --tls-key {key} cannot be used: {e.strerror or e}") from e


def announce(said: dict[str, Any]) -> None:
    """Say on stdout where the node serves and, for a demo, what to paste."""
    public = url(said["listen"], "https" if said["tls"] else "http")
    lines = [
        "",
        f"  public   {public}",
        f"  admin    {url(said['admin'], 'http')}",
    ]
    if key := said.get("demo_key"):
        lines += ["", f"  key      {key}", "", *_samples(public, key)]
    with contextlib.suppress(OSError):  # nobody reads it
        print("\n".join(lines), end="\n\n", flush=True)


def url(address: Address, scheme: str) -> str:
    """As this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return f"{scheme}://{Address(host, address.port)}"


def _samples(base: str, key: str) -> list[str]:
    body = '{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
    message = '{"role": "user", "content": "Hello"}'
    return [
        f"curl -N {base}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
        f"  -H 'Content-Type: application/json' -d '{body}'",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{base}/v1", api_key="{key}")',
        f'print(client.chat.completions.create(model="gpt-4o-mini", messages=[{message}])'
        ".choices[0].message.content)",
    ]
