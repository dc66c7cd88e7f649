"""routes.yaml as it may be written: sections, members, types.

Owns the grammar and its JSON Schema; what members of different sections have to do with each other is
`loader.checks`. All scalars arrive as text (`loader.tree`) and are typed here. Unknown members are
mistakes. Amounts stay as they are written: the station's rates are not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from proxy.routing import texts, units

BODY_LIMIT = 32 << 20  # bytes; JSON bodies are held whole
BODY_LIMIT_MAX = 256 << 20
CONCURRENCY = 50  # calls of one key at a time: the overspend bound is proportional to it
NO_CREDIT_STATUS = 429
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFUSAL_STATUS = "401|402|403|429"

# -- one value -----------------------------------------------------------------------------------


def _read(parse: Callable[[str], object]) -> PlainValidator:
    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("must be a single value")
        return parse(value)

    return PlainValidator(validate)


def _shown(*json_types: str, pattern: str = "") -> WithJsonSchema:
    """What editors are told: the value's JSON types and, where it is text, its pattern or a reference."""
    schema: dict[str, Any] = {"type": json_types[0] if len(json_types) == 1 else list(json_types)}
    if pattern:
        schema["pattern"] = rf"^(?:{pattern})$|\$\{{"
    return WithJsonSchema(schema)


def _positive(text: str) -> int:
    number = units.whole(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def _refusal_status(text: str) -> int:
    if text not in REFUSAL_STATUS.split("|"):
        raise ValueError(f"must be one of {', '.join(REFUSAL_STATUS.split('|'))}")
    return int(text)


def _body_limit(text: str) -> int:
    size = units.size_bytes(text)
    if not 0 < size <= BODY_LIMIT_MAX:
        raise ValueError(f"must be more than nothing and at most {BODY_LIMIT_MAX >> 20} MiB")
    return size


_INTEGER = _shown("integer", "string", pattern="[0-9]+")
_DECIMAL = _shown("number", "string", pattern=r"-?[0-9]+(?:\.[0-9]+)?")

Name = Annotated[str, _read(texts.name), _shown("string", pattern=texts.NAME)]
ModelName = Annotated[str, _read(texts.model_name), _shown("string")]
LiteralModel = Annotated[str, _read(texts.literal_model), _shown("string", pattern=r"[^*\s]+")]
BaseUrl = Annotated[str, _read(texts.base_url), _shown("string", pattern="https?://.+")]
Host = Annotated[str, _read(texts.host), _shown("string")]
Network = Annotated[str, _read(texts.network), _shown("string")]
HeaderName = Annotated[str, _read(texts.header_name), _shown("string", pattern=texts.HEADER)]
HeaderValue = Annotated[str, _read(texts.header_value), _shown("string")]
Secret = Annotated[str, _read(texts.secret), _shown("string", pattern=r".*\$\{.+\}.*")]
Method = Annotated[str, _read(texts.method), _shown("string", pattern="[A-Z]{3,10}")]
MemberName = Annotated[str, _read(texts.member_name), _shown("string")]
UpstreamPath = Annotated[str, _read(texts.upstream_path), _shown("string", pattern="/.*")]
PathTemplate = Annotated[str, _read(texts.path_template), _shown("string", pattern="/.*")]
Text = Annotated[str, _read(str), _shown("string")]
Flag = Annotated[bool, _read(units.flag), _shown("boolean", "string", pattern="true|false")]
Whole = Annotated[int, _read(units.whole), _INTEGER]
Positive = Annotated[int, _read(_positive), _INTEGER]
RefusalStatus = Annotated[int, _read(_refusal_status), _shown("integer", "string", pattern=REFUSAL_STATUS)]
Currency = Annotated[str, _read(units.currency), _shown("string", pattern="[A-Z]{3}")]
Rate = Annotated[Decimal, _read(units.positive_decimal), _DECIMAL]
Bound = Annotated[Decimal, _read(units.signed_decimal), _DECIMAL]
Multiplier = Annotated[int, _read(units.multiplier_ppm), _DECIMAL]
Money = Annotated[units.Amount, _read(units.amount), _shown("number", "string", pattern=units.AMOUNT)]
Duration = Annotated[int, _read(units.duration_ms), _shown("string", pattern=units.DURATION)]
Period = Annotated[units.Period, _read(units.period), _shown("string", pattern=units.PERIOD)]
PerMinute = Annotated[int, _read(units.per_minute), _shown("string", pattern=units.RATE)]
BodyLimit = Annotated[int, _read(_body_limit), _shown("integer", "string", pattern=units.SIZE)]

TAGS = TEXT, MAPPING, LIST = ("<text>", "<mapping>", "<list>")  # of alternatives; no key can be one of them


def _kind(value: object) -> str:
    return MAPPING if isinstance(value, dict) else LIST if isinstance(value, list) else TEXT


BY_KIND = Discriminator(_kind)  # only the alternative that was begun reports mistakes


class Section(BaseModel):
    """A mapping of known members."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# -- station and endpoints -----------------------------------------------------------------------


class NoCredit(Section):
    status: RefusalStatus = NO_CREDIT_STATUS


class OutageAllowance(Section):
    """What one account may spend at one node while Postgres is away."""

    allowance: Money


OnOutage = Annotated[
    Annotated[Literal["unlimited", "refuse"], Tag(TEXT)] | Annotated[OutageAllowance, Tag(MAPPING)], BY_KIND
]


class Station(Section):
    name: Text = "headrace"
    currency: Currency = "USD"
    rates: dict[Currency, Rate] = Field(default={}, description="What one unit of another currency is worth.")
    timezone: Text = "UTC"
    default_tier: Name | None = Field(default=None, description="The first of `tiers`, if not said.")
    trusted_proxies: list[Network] = Field(
        default=[], description="Whose X-Forwarded-For and Host are believed."
    )
    no_credit: NoCredit = NoCredit()
    on_outage: OnOutage = "refuse"


class Endpoint(Section):
    """A public base URL that key holders are given."""

    url: BaseUrl
    hosts: list[Host] = Field(default=[], description="The URL's own host, if not said.")
    label: Text = ""
    region: Text = ""
    proxy_read_timeout: Duration | None = None
    cors: Flag = False
    tags: list[Text] = []


# -- upstreams -----------------------------------------------------------------------------------


class Mirror(Section):
    """One base URL of an upstream."""

    url: BaseUrl
    proxy_read_timeout: Duration | None = None
    via: BaseUrl | None = Field(default=None, description="An egress proxy. Not used by this version.")


class Credential(Section):
    secret: Secret
    retired: Flag = Field(default=False, description="Takes no new calls; kept for what was begun with it.")


class FirstByte(Section):
    stream: Duration | None = None
    whole: Duration | None = None


FirstByteTimes = Annotated[Annotated[Duration, Tag(TEXT)] | Annotated[FirstByte, Tag(MAPPING)], BY_KIND]


class Timeouts(Section):
    connect: Duration | None = None
    first_byte: (
        Annotated[Annotated[Duration, Tag(TEXT)] | Annotated[FirstByte, Tag(MAPPING)], BY_KIND] | None
    ) = None
    idle: Duration | None = None
    total: Duration | None = None


class Drain(Section):
    """Read on for the usage when the client has left."""

    drain: Duration


OnDisconnect = Annotated[Annotated[Literal["cancel"], Tag(TEXT)] | Annotated[Drain, Tag(MAPPING)], BY_KIND]


class Rewrite(Section):
    path: UpstreamPath | None = Field(default=None, description="With {operation_path} and {model} in it.")
    query: dict[Text, Text] = {}


class HeaderChanges(Section):
    pass_: list[HeaderName] = Field(default=[], alias="pass")
    set_: dict[HeaderName, HeaderValue] = Field(default={}, alias="set")
    drop: list[HeaderName] = []


class Headers(Section):
    request: HeaderChanges = HeaderChanges()
    response: HeaderChanges = HeaderChanges()


class Operation(Section):
    """Where an upstream serves an operation; the dialect's place, if not said."""

    path: UpstreamPath | None = None
    query: dict[Text, Text] | None = None


Credentials = dict[
    Name, Annotated[Annotated[Secret, Tag(TEXT)] | Annotated[Credential, Tag(MAPPING)], BY_KIND]
]


class Upstream(Section):
    """An account at a vendor or at another station."""

    dialect: Text
    mirrors: Annotated[dict[Name, Mirror], Field(min_length=1)]
    credentials: Annotated[
        Annotated[Literal["none"], Tag(TEXT)] | Annotated[Credentials, Tag(MAPPING)], BY_KIND
    ]
    timeouts: Timeouts = Timeouts()
    on_disconnect: OnDisconnect = "cancel"
    trust: Literal["full", "low"] = "full"
    include_usage: Literal["auto", "never"] = "auto"
    rewrite: Rewrite = Rewrite()
    headers: Headers = Headers()
    operations: (
        Annotated[Annotated[list[Text], Tag(LIST)] | Annotated[dict[Text, Operation], Tag(MAPPING)], BY_KIND]
        | None
    ) = Field(default=None, description="All that the dialect knows, if not said.")


# -- models and routes ---------------------------------------------------------------------------


class Candidate(Section):
    """An upstream that a call may go to; priority 1 is tried first."""

    upstream: Text
    as_: LiteralModel | None = Field(default=None, alias="as", description="The model's name there.")
    weight: Positive = 1
    priority: Positive = 1


class Model(Section):
    context: Positive | None = None
    max_output: Positive | None = None
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    on_disconnect: OnDisconnect | None = None
    hidden_reasoning: Flag | None = Field(
        default=None, description="Thinks without showing it; known for many."
    )


class Parameters(Section):
    drop: list[MemberName] = []
    range: dict[MemberName, Annotated[list[Bound], Field(min_length=2, max_length=2)]] = {}


class Route(Section):
    path: PathTemplate
    operation: Text | None = Field(
        default=None, description="That of the built-in route, if the path has one."
    )
    methods: Annotated[list[Method], Field(min_length=1)] | None = None
    dialect: Text | None = None
    default_model: LiteralModel | None = None
    candidates: list[Candidate] = []
    parameters: Parameters | None = None
    pass_: list[HeaderName] = Field(default=[], alias="pass")
    body_limit: BodyLimit = BODY_LIMIT
    on_break: Literal["bill", "free"] = "bill"


class Task(BaseModel):
    """A declared task family; its grammar is not fixed yet."""

    model_config = ConfigDict(extra="allow", frozen=True)
    upstream: Text


# -- prices and tiers ----------------------------------------------------------------------------


class Figures(Section):
    """Amounts: the first ones per million tokens, the others for one."""

    input: Money | None = None
    output: Money | None = None
    cache_read: Money | None = None
    cache_write_5m: Money | None = None
    cache_write_1h: Money | None = None
    input_audio: Money | None = None
    cached_audio: Money | None = None
    input_image: Money | None = None
    output_audio: Money | None = None
    output_image: Money | None = None
    call: Money | None = None
    second: Money | None = None
    character: Money | None = None
    image: Money | None = None
    tools: dict[Text, Money] = Field(default_factory=dict)  # ten thousand prices: copying {} is slower
    units: dict[Text, Money] = Field(default_factory=dict)
    sizes: dict[Text, Money] = Field(default_factory=dict)


class Level(Figures):
    """Figures of calls with more than so many input tokens."""

    input_tokens: Positive


class Price(Figures):
    above: list[Level] = Field(default_factory=list)
    service_tiers: dict[Text, Figures] = Field(default_factory=dict)
    multiplied: Flag = True
    free: Flag = False


class TierLimits(Section):
    requests: PerMinute | None = None
    concurrency: Positive = CONCURRENCY


class FreeQuota(Section):
    amount: Money
    every: Period


class Earned(Section):
    top_up: Money
    lasts: Period


class Tier(Section):
    rank: Whole
    models: Annotated[list[ModelName], Field(min_length=1)]
    multiplier: Multiplier = units.PPM
    limits: TierLimits = TierLimits()
    hold: Literal["estimate", "max"] = "estimate"
    on_outage: OnOutage | None = None
    free_quota: FreeQuota | None = Field(default=None, description="Not used by this version.")
    earned_by: list[Earned] = Field(default=[], description="Not used by this version.")


class RoutesFile(Section):
    """The whole file."""

    station: Station = Station()
    endpoints: dict[Name, Endpoint] = {}
    upstreams: dict[Name, Upstream] = {}
    models: dict[ModelName, Model] = {}
    routes: list[Route] = []
    tasks: dict[Name, Task] = Field(default={}, description="Not used by this version.")
    prices: dict[ModelName, Price] = {}
    multipliers: dict[ModelName, Multiplier] = {}
    tiers: dict[Name, Tier] = {}


def json_schema() -> dict[str, Any]:
    """What editors check a routes.yaml with; published as routes.schema.json beside this module."""
    schema = RoutesFile.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Headrace routes.yaml",
    }
