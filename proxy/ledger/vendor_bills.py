"""Bills of upstreams as lines of one kind: which columns of which export mean what.

Owns the table of known exports. Pure: rows come as texts by column name, as csv.DictReader gives them.

Sources: OpenAI's usage and costs exports (platform.openai.com/usage; the members of
/v1/organization/usage/* and /costs), Anthropic's usage and cost exports (console, Usage and Cost pages), the
logs of one-api and new-api, the receipts of another Headrace; anything else by the usual column names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
DECIMALS_MAX = 9  # of an amount: what is finer is lost in nano-units

Row = Mapping[str, str]


class UnreadableBillError(ValueError):
    """What the file is not, or which of its lines cannot be read; for the operator."""


@dataclass(frozen=True, slots=True)
class BillLine:
    """What an upstream says of one call, or of all calls of a model within a period.

    `figures` holds what the line tells and nothing else: `input_tokens` and `output_tokens` are all tokens of
    their side, other names are buckets of a Usage or `calls`.
    """

    number: int  # in the file
    id: str  # the upstream's request id; "": it tells none
    model: str  # "": of all models
    at_ms: int
    until_ms: int  # of a period its end, not included; of a call `at_ms`
    figures: dict[str, int]
    cost: Decimal | None  # in the bill's currency

    @property
    def is_total(self) -> bool:
        return self.until_ms > self.at_ms


@dataclass(frozen=True, slots=True)
class Export:
    """A kind of file. Of several names of a column the first that is there counts."""

    name: str
    known_by: frozenset[str]  # columns that no other kind has all of
    at: tuple[str, ...]
    model: tuple[str, ...]
    figures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    id: tuple[str, ...] = ()
    until: str = ""
    cost: tuple[str, ...] = ()
    costs_one: Decimal = Decimal(1)  # so much of the cost column is one unit of the currency
    currency: str = ""  # where no column tells it
    currency_column: str = ""
    has_days: bool = False  # `at` is a day, an hour or a minute in UTC: whatever is the finest of the file
    only: tuple[str, frozenset[str]] = ("", frozenset())  # column and values: other lines are no calls


EXPORTS = (
    Export(
        "OpenAI usage",
        frozenset({"start_time", "end_time", "num_model_requests"}),
        at=("start_time",),
        until="end_time",
        model=("model",),
        figures={
            "calls": ("num_model_requests",),
            "input_tokens": ("input_tokens",),
            "output_tokens": ("output_tokens",),
            "cache_read": ("input_cached_tokens",),
            "characters": ("characters",),
            "images": ("images", "num_images"),
        },
    ),
    Export(
        "OpenAI costs",
        frozenset({"start_time", "end_time", "amount_value"}),
        at=("start_time",),
        until="end_time",
        model=("line_item",),
        cost=("amount_value",),
        currency_column="amount_currency",
    ),
    Export(
        "Anthropic usage",
        frozenset({"usage_date_utc", "usage_output_tokens"}),
        at=("usage_date_utc",),
        has_days=True,
        model=("model_version", "model"),
        figures={
            "input": ("usage_input_tokens_no_cache",),
            "output_tokens": ("usage_output_tokens",),
            "cache_read": ("usage_input_tokens_cache_read",),
            "cache_write_5m": ("usage_input_tokens_cache_write_5m",),
            "cache_write_1h": ("usage_input_tokens_cache_write_1h",),
            "web_search": ("web_search_count",),
        },
    ),
    Export(
        "Anthropic costs",
        frozenset({"usage_date_utc", "cost_usd"}),
        at=("usage_date_utc",),
        has_days=True,
        model=("model", "model_version"),
        cost=("cost_usd",),
        currency="USD",
    ),
    Export(
        "Headrace receipts",
        frozenset({"object", "ended_ms", "prompt_tokens", "amount"}),
        id=("id",),
        at=("ended_ms",),
        model=("model",),
        figures={
            "input_tokens": ("prompt_tokens",),
            "output_tokens": ("completion_tokens",),
            "cache_read": ("cache_read",),
            "cache_write_5m": ("cache_write_5m",),
            "cache_write_1h": ("cache_write_1h",),
        },
        cost=("cost",),
        currency_column="currency",
        only=("object", frozenset({"receipt"})),
    ),
    Export(
        "one-api log",
        frozenset({"created_at", "model_name", "quota"}),
        id=("request_id",),
        at=("created_at",),
        model=("model_name",),
        figures={"input_tokens": ("prompt_tokens",), "output_tokens": ("completion_tokens",)},
        cost=("quota",),
        costs_one=Decimal(500_000),
        currency="USD",
        only=("type", frozenset({"", "2"})),  # 2: consumption; others are top-ups and the like
    ),
)
# The usual names, for whatever else lists calls one by one.
PLAIN = Export(
    "list of calls",
    frozenset(),
    id=("request_id", "x_request_id", "x-request-id", "id", "response_id"),
    at=("timestamp", "time", "created_at", "created", "date", "datetime", "ended_at"),
    model=("model", "model_name", "model_version"),
    figures={
        "input_tokens": ("input_tokens", "prompt_tokens"),
        "output_tokens": ("output_tokens", "completion_tokens"),
        "cache_read": ("cached_tokens", "cache_read_tokens"),
    },
    cost=("cost", "amount", "cost_usd", "amount_usd", "price", "total_cost"),
    currency_column="currency",
)


@dataclass(frozen=True, slots=True)
class Bill:
    """A file that was read. `rounding` is half of the last digit that its amounts have."""

    kind: str
    currency: str  # "": it does not say
    lines: list[BillLine]
    doubled: list[BillLine]  # totals that stand there once more
    idle: list[tuple[int, int]]  # periods in which nothing was used: from, until
    rounding: Decimal


def read_bill(rows: Iterable[Row], zone: tzinfo = UTC) -> Bill:
    """Raises UnreadableBillError. `zone` is that of times that do not tell it."""
    numbered = [(n, {k.strip().lower(): (v or "").strip() for k, v in row.items() if k}) for n, row in
                enumerate(rows, start=2)]  # fmt: skip
    if not numbered:
        raise UnreadableBillError("the file has no lines")
    export = export_of(set().union(*(row for _, row in numbered)))
    lines: list[BillLine] = []
    doubled: list[BillLine] = []
    idle: list[tuple[int, int]] = []
    currencies: set[str] = set()
    seen: set[tuple[tuple[str, str], ...]] = set()
    decimals = 0
    unit_ms = _finest(export, numbered, zone)
    for number, row in numbered:
        try:
            line = _line(export, number, row, zone, unit_ms)
        except (ValueError, InvalidOperation, OverflowError) as e:
            raise UnreadableBillError(f"line {number}: {e}") from e
        if line is None:
            continue
        if not line.figures and line.cost is None:
            idle.append((line.at_ms, line.until_ms))
            continue
        if line.is_total:
            content = tuple(sorted(row.items()))
            if content in seen:
                doubled.append(line)
                continue
            seen.add(content)
        if line.cost is not None:
            currencies.add(row.get(export.currency_column, "").upper() or _currency(export, row))
            decimals = max(decimals, _decimals(line.cost * export.costs_one))
        lines.append(line)
    if len(currencies) > 1:
        raise UnreadableBillError(f"amounts in {' and '.join(sorted(currencies))}: one file, one currency")
    rounding = Decimal(5).scaleb(-1 - min(decimals, DECIMALS_MAX)) / export.costs_one
    return Bill(export.name, currencies.pop() if currencies else "", lines, doubled, idle, rounding)


def export_of(names: set[str]) -> Export:
    """Which kind of file has these columns. Raises UnreadableBillError."""
    for export in EXPORTS:
        if export.known_by <= names:
            return export
    if names.isdisjoint(PLAIN.at) or names.isdisjoint((*PLAIN.cost, *PLAIN.figures["output_tokens"])):
        raise UnreadableBillError(
            "no bill that is known here: it needs a column with the time of a call (timestamp) and one of"
            f" what it took (output_tokens, cost); it has {', '.join(sorted(names))}"
        )
    return PLAIN


def _line(export: Export, number: int, row: Row, zone: tzinfo, unit_ms: int) -> BillLine | None:
    """None: the line is about no call (a top-up, a call that took nothing)."""
    column, kept = export.only
    if column and row.get(column, "") not in kept:
        return None
    figures = {name: _first(row, columns) for name, columns in export.figures.items()}
    told = {name: int(Decimal(text)) for name, text in figures.items() if text}
    cost_text = _first(row, export.cost)
    if not (told or cost_text or export.until):
        return None
    at_ms = _time_ms(_first(row, export.at), zone)
    until_ms = _time_ms(row[export.until], zone) if export.until else at_ms + unit_ms
    return BillLine(
        number,
        _first(row, export.id),
        _first(row, export.model).split(",")[0],  # OpenAI's line items: "gpt-4o-mini-2024-07-18, input"
        at_ms,
        until_ms,
        told,
        Decimal(cost_text.lstrip("$")) / export.costs_one if cost_text else None,
    )


def _finest(export: Export, rows: list[tuple[int, dict[str, str]]], zone: tzinfo) -> int:
    """How long the periods are that a file names by their beginning; 0: it names moments."""
    if not export.has_days:
        return 0
    times = [_time_ms(_first(row, export.at), zone) for _, row in rows]
    return next((unit for unit in (DAY_MS, HOUR_MS) if all(t % unit == 0 for t in times)), MINUTE_MS)


def _first(row: Row, columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _currency(export: Export, row: Row) -> str:
    return export.currency or ("USD" if _first(row, ("cost_usd", "amount_usd")) else "")


def _decimals(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _time_ms(text: str, zone: tzinfo) -> int:
    """Seconds or milliseconds since 1970, or ISO 8601. Raises ValueError."""
    if not text:
        raise ValueError("a line without a time")
    if text.replace(".", "", 1).isdigit():
        number = Decimal(text)
        return int(number if number > 10**11 else number * 1000)
    moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC if text.endswith(" UTC") else zone)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def each_row(document: object) -> Iterator[dict[str, str]]:
    """The rows of a JSON document: an array, or the array in its `data` (`data.items`, as new-api answers).

    Members of nested objects (`usage`) count as members of the row. Raises UnreadableBillError.
    """
    for _ in range(2):
        if isinstance(document, dict):
            document = document.get("data", document.get("items", document))
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise UnreadableBillError("the JSON is no list of lines")
    for row in document:
        flat = {**row, **{k: v for part in row.values() if isinstance(part, dict) for k, v in part.items()}}
        yield {
            name: str(value)
            for name, value in flat.items()
            if value is not None and not isinstance(value, list | dict)
        }
