"""`headrace check`, `explain` and `diff`: what a routes.yaml says, before anything is served by it."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from proxy import resources
from proxy.access.keyformat import digest_of
from proxy.access.keyring import KeyRecord
from proxy.cli import station
from proxy.cli.difference import UNSEEN, difference
from proxy.cli.explanation import SAMPLE_BODY_BYTES, Question, explain, limits_on, money
from proxy.compiler import compile_file
from proxy.errors import ConfigError, ProxyError
from proxy.routing.loader import Compiled
from proxy.snapshot import Snapshot
from proxy.store.catalog import Catalog
from proxy.store.windows import drawn


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    if command == "explain":
        station.add_arguments(parser)
        parser.add_argument("method", metavar="METHOD")
        parser.add_argument("path", metavar="PATH")
        parser.add_argument("--config", metavar="FILE", help="default: routes.yaml in this folder")
        parser.add_argument("--model", default="", help="as the request would name it")
        parser.add_argument("--host", default="", help="the Host header: decides the endpoint")
        parser.add_argument("--stream", action="store_true", help="a request with stream: true")
        parser.add_argument("--key", help="sk-...: its tier, models, limits and mirrors; asks the station")
        parser.set_defaults(run=run_explain)
        return
    parser.add_argument("--json", action="store_true", help="for machines")
    if command == "check":
        parser.add_argument("file", nargs="?", metavar="FILE", help="default: routes.yaml in this folder")
        parser.set_defaults(run=run_check)
    else:
        parser.add_argument("old", metavar="OLD")
        parser.add_argument("new", metavar="NEW")
        parser.set_defaults(run=run_diff)


def config_path(given: str | None) -> str:
    """The file that is meant: named, in the environment, in this folder, or the one that came along."""
    named = given or os.environ.get("HEADRACE_CONFIG")
    if named:
        return named
    return "routes.yaml" if os.path.exists("routes.yaml") else str(resources.routes())


# -- check ---------------------------------------------------------------------------------------


def run_check(args: argparse.Namespace) -> int:
    """0 without mistakes, else 1; one line per mistake and per warning."""
    path = config_path(args.file)
    mistakes: list[str] = []
    compiled: Compiled | None = None
    try:
        compiled = compile_file(path, os.environ)
    except ConfigError as e:
        mistakes = e.mistakes
    warnings = compiled.warnings if compiled else []
    if args.json:
        print(json.dumps({"ok": not mistakes, "mistakes": mistakes, "warnings": warnings}))
    else:
        for mistake in mistakes:
            print(mistake)
        for warning in warnings:
            print(f"{warning} (warning)")
        if compiled:
            print(f"{path}: {_size(compiled.document)}")
    return 1 if mistakes else 0


def _size(document: dict[str, Any]) -> str:
    counts = {name: len(document[name]) for name in ("upstreams", "models", "routes", "tiers")}
    return "no mistakes; " + ", ".join(f"{count} {name}" for name, count in counts.items())


# -- diff ----------------------------------------------------------------------------------------


def run_diff(args: argparse.Namespace) -> int:
    """Always 0 when both files are good."""
    old, new = (compile_file(path, os.environ).document for path in (args.old, args.new))
    changes = difference(old, new)
    if args.json:
        print(json.dumps(changes))
        return 0
    currency = new["station"]["currency"]
    for change in changes:
        print(f"{change['change']:8} {change['what']} {change['name']}")
        for member, pair in change.get("members", {}).items():
            before, after = (_shown(value, currency if change["what"] == "price" else "") for value in pair)
            print(f"           {member or 'value'}: {after if after == UNSEEN else f'{before} -> {after}'}")
    if not changes:
        print("nothing changes")
    return 0


def _shown(value: object, currency: str) -> str:
    """A member's value; a whole number in a price is an amount."""
    if value is None:
        return "-"
    if currency and type(value) is int:
        return money(value, currency)
    if currency and isinstance(value, dict):
        return ", ".join(_figures(value, currency))
    return value if isinstance(value, str) else json.dumps(value)


# -- explain -------------------------------------------------------------------------------------


def run_explain(args: argparse.Namespace) -> int:
    """0 if the call would be sent to an upstream, else 1."""
    path = config_path(args.config)
    snapshot = Snapshot.from_document(compile_file(path, os.environ).document)
    key = key_record(args)
    question = Question(
        method=args.method.upper(),
        target=args.path,
        model=args.model,
        host=args.host,
        is_stream=args.stream,
        key=key,
        now_ms=time.time_ns() // 1_000_000,
    )
    if key is not None:
        question = replace(question, drawn=_drawn(args, snapshot, question))
    try:
        told = explain(snapshot, question)
    except ProxyError as e:
        told = {"refused": [{"status": e.status, "code": e.code, "message": e.message}]}
    if args.json:
        print(json.dumps(told))
    else:
        print("\n".join(_lines(told, path)))
    return 1 if told["refused"] or not any("url" in c for c in told["candidates"]) else 0


def _drawn(args: argparse.Namespace, snapshot: Snapshot, question: Question) -> dict[str, int]:
    """What the station's nodes have of the limits of the key and the model."""
    assert question.key is not None
    tier = snapshot.tier(question.key.tier_at(question.now_ms))
    model = snapshot.model_for(question.model) if question.model else None
    buckets = [limit.bucket for limit in limits_on(question.key, tier, model)]
    return station.ask(args, lambda database: drawn(database, buckets, question.now_ms))


def key_record(args: argparse.Namespace) -> KeyRecord | None:
    """What the station knows of the key. Raises LookupError for an unknown key or station."""
    if not args.key:
        return None
    record = station.ask(args, lambda database: Catalog(database).key_record(digest_of(args.key)))
    if record is None:
        raise LookupError("this station has no such key")
    return KeyRecord.from_message(record)


def _lines(told: dict[str, Any], path: str) -> list[str]:
    """The explanation for people, a fact per line."""
    rows: list[tuple[str, str]] = []
    if "route" in told:
        rows += _about_the_call(told, path)
        for number, candidate in enumerate(told["candidates"], start=1):
            rows += _about_a_candidate(number, candidate, path)
        rows += _about_money(told)
    rows += [("refused", f"{r['status']} {r['code']}: {r['message']}") for r in told["refused"]]
    return [f"{name:12} {value}".rstrip() for name, value in rows]


def _about_the_call(told: dict[str, Any], path: str) -> list[tuple[str, str]]:
    route, model, tier = told["route"], told["model"], told["tier"]
    where = f"{path}:{route['line']}" if route["line"] else "built in"
    rows = [
        ("request", f"{told['request']['method']} {told['request']['path']}"),
        ("endpoint", f"{told['endpoint']['name']}  {told['endpoint']['url']}"),
        ("route", f"{route['path']}  ({where})"),
        (
            "operation",
            f"{route['operation']}, errors as {route['dialect']}, bodies up to {route['body_limit']} bytes",
        ),
    ]
    if route["default_model"]:
        rows.append(("", f"without a model: {route['default_model']}"))
    rules = [f"without {', '.join(route['drop'])}"] * bool(route["drop"]) + route["rules"]
    rules += ["Input and output together must fit into the model's context."] * route["within_context"]
    rows += [("parameters" if rule is rules[0] else "", rule) for rule in rules]
    for number, billed in enumerate(told["billed_as"]):
        price = ", ".join(_figures(billed["price"], billed["currency"])) if billed["price"] else "by its name"
        said = f"  where {billed['at']} is {billed['said']}" if billed["said"] else ""
        rows.append(("" if number else "billed as", f"{billed['name']}: {price}{said}"))
    if files := told["files"]:
        links = "our links" if files["rewrite"] else "the vendor's URLs"
        kept = f"kept in {files['kept_in']} for {files['days']} days, up to {files['size_limit']} bytes each"
        rows.append(("files", f"{kept}; answers show {links}"))
    if model:
        limits = f"context {model['context'] or '?'}, output {model['max_output'] or '?'}"
        rows.append(("model", f"{model['name']}  ({path}:{model['line']} '{model['pattern']}'), {limits}"))
    if "key" in told:
        rows.append(("key", f"{told['key']['masked']} of account {told['key']['account']}"))
    rows.append(("tier", f"{tier['name']}, rank {tier['rank']}, models {', '.join(tier['models'])}"))
    for number, limit in enumerate(told["limits"]):
        left = "" if limit["left"] is None else f", at least {limit['left']} left"
        words = f"{limit['kind'].replace('_', ' ')} of the {limit['of']}: {limit['limit']}{left}"
        rows.append(("" if number else "limits", words))
    return rows


def _about_a_candidate(number: int, candidate: dict[str, Any], path: str) -> list[tuple[str, str]]:
    head = f"{candidate['upstream']}  ({path}:{candidate['line']}), priority {candidate['priority']}"
    if "out" in candidate:
        return [(f"candidate {number}", f"{head}: out, {candidate['out']}")]
    headers = candidate["headers"]
    there = f"mirror {candidate['mirror']}, credential {candidate['credential']}"
    return [
        (f"candidate {number}", f"{head}, {candidate['share']:.0%} of its priority"),
        ("", f"{there}, model {candidate['model'] or '-'}"),
        ("", candidate["url"]),
        *(("", f"+ {name}: {value}") for name, value in headers["set"].items()),
        ("", f"= {', '.join(headers['passed'])}"),
        ("", f"- {', '.join(headers['dropped'])}"),
    ]


def _figures(content: Mapping[str, Any], currency: str, within: str = "") -> Iterator[str]:
    """`call: 0.3 CNY`, `tools.web_search: 0.01 CNY`, `above 200000 input tokens, output: 15 CNY`"""
    for member, value in content.items():
        if isinstance(value, dict):
            yield from _figures(value, currency, f"{within}{member}.")
        elif member == "above":
            for level in value:
                figures = {name: figure for name, figure in level.items() if name != "input_tokens"}
                yield from _figures(
                    figures, currency, f"{within}above {level['input_tokens']} input tokens, "
                )
        else:
            yield f"{within}{member}: {money(value, currency) if type(value) is int else json.dumps(value)}"


def _about_money(told: dict[str, Any]) -> list[tuple[str, str]]:
    price, hold = told["price"], told["hold"]
    if price is None:
        return [("price", "free: this operation is not billed")] if not told["route"]["billed"] else []
    currency = price["currency"]
    rows: list[tuple[str, str]] = []
    for figure in _figures(price["content"], currency):
        rows.append(("" if rows else "price", figure))
    if price["multiplied"]:
        factors = (price["model_multiplier_ppm"], price["tier_multiplier_ppm"])
        rows.append(("", "times {} (model) times {} (tier)".format(*(ppm / 1_000_000 for ppm in factors))))
    if hold:
        held, most = money(hold["nanos"], currency), money(hold["max_nanos"], currency)
        rows += [
            ("hold", f"{held} for {SAMPLE_BODY_BYTES} bytes of text ({hold['policy']}), at most {most}"),
            ("overspend", f"at most {money(hold['overspend_bound_nanos'], currency)} of such calls at once"),
        ]
    return rows
