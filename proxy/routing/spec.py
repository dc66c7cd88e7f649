"""routes.yaml as it may be written: sections, members, types.

Owns the grammar and its JSON Schema; what members of different sections have to do with each other is
`loader.checks`. All scalars arrive as text (`loader.tree`) and are typed here. Unknown members are
mistakes. Amounts stay as they are written: the station's rates are not known here.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from proxy.routing import units
from proxy.routing.family import Family
from proxy.routing.figures import Price
from proxy.routing.keeping import Results
from proxy.routing.scalars import (
    BY_KIND,
    LIST,
    MAPPING,
    TEXT,
    BaseUrl,
    BodyLimit,
    Currency,
    Duration,
    EgressUrl,
    Flag,
    HeaderName,
    HeaderValue,
    Host,
    LiteralModel,
    Method,
    ModelName,
    Money,
    Multiplier,
    Name,
    Network,
    PathTemplate,
    Period,
    PerTime,
    Positive,
    Rate,
    RefusalStatus,
    Secret,
    Spending,
    Text,
    UpstreamPath,
    Whole,
)
from proxy.routing.section import Candidate, Parameters, Section

BODY_LIMIT = 32 << 20  # bytes; JSON bodies are held whole
CONCURRENCY = 50  # calls of one key at a time: the overspend bound is proportional to it
NO_CREDIT_STATUS = 429
NOT_PERMITTED_STATUS = 403
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


# -- station and endpoints -----------------------------------------------------------------------


class NoCredit(Section):
    status: RefusalStatus = NO_CREDIT_STATUS


class NotPermitted(Section):
    status: RefusalStatus = NOT_PERMITTED_STATUS


class OutageAllowance(Section):
    """What one account may spend at one node while Postgres is away."""

    allowance: Money


OnOutage = Annotated[
    Annotated[Literal["unlimited", "refuse"], Tag(TEXT)] | Annotated[OutageAllowance, Tag(MAPPING)], BY_KIND
]


class SignUp(Section):
    """Who likes may open an account."""

    trial: Money = Field(default=units.Amount(Decimal(0), None), description="Credit to begin with.")


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
    not_permitted: NotPermitted = Field(
        default=NotPermitted(), description="A model that the tier or the key leaves out."
    )
    codes_earn_tiers: Flag = Field(default=False, description="Redeemed codes count like top-ups.")
    on_outage: OnOutage = "refuse"
    sign_up: SignUp | None = Field(
        default=None, description="Accounts are made by the operator, if not said."
    )


class Endpoint(Section):
    """A public base URL that key holders are given."""

    url: BaseUrl
    hosts: list[Host] = Field(default=[], description="The URL's own host, if not said.")
    label: Text = ""
    region: Text = ""
    proxy_read_timeout: Duration | None = None
    cors: Flag = False
    tags: list[Text] = []
    body_limit: BodyLimit | None = Field(default=None, description="What stands in front refuses more.")
    slow_calls: Literal["hint", "trickle"] = Field(
        default="hint",
        description="Whole answers that come later than proxy_read_timeout: refused in time with a hint where"
        " to go, or kept alive by white space in front of the JSON.",
    )


# -- upstreams -----------------------------------------------------------------------------------


class Mirror(Section):
    """One base URL of an upstream."""

    url: BaseUrl
    proxy_read_timeout: Duration | None = None
    via: EgressUrl | None = Field(default=None, description="A proxy on the way there.")


class Credential(Section):
    secret: Secret
    retired: Flag = Field(default=False, description="Takes no new calls; kept for what was begun with it.")


class FirstByte(Section):
    stream: Duration | None = None
    whole: Duration | None = None


FirstByteTimes = Annotated[Annotated[Duration, Tag(TEXT)] | Annotated[FirstByte, Tag(MAPPING)], BY_KIND]


class Timeouts(Section):
    connect: Duration | None = None
    first_byte: FirstByteTimes | None = None
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


Rates = Annotated[Annotated[PerTime, Tag(TEXT)] | Annotated[list[PerTime], Tag(LIST)], BY_KIND]


class Limits(Section):
    """Of all calls together: per minute, per day, or both."""

    requests: Rates = []
    tokens: Rates = []
    concurrency: Positive | None = None


class Operation(Section):
    """Where an upstream serves an operation; the dialect's place, if not said."""

    path: UpstreamPath | None = None
    query: dict[Text, Text] | None = None


Credentials = dict[
    Name, Annotated[Annotated[Secret, Tag(TEXT)] | Annotated[Credential, Tag(MAPPING)], BY_KIND]
]


class Upstream(Section):
    """An account at a vendor or at another station."""

    preset: Text | None = Field(default=None, description="A vendor by name: its dialect, URL and paths.")
    dialect: Text = Field(default="", description="The preset's, if not said.")
    mirrors: dict[Name, Mirror] = Field(default={}, description="The preset's own URL, if not said.")
    credentials: Annotated[
        Annotated[Literal["none"], Tag(TEXT)] | Annotated[Credentials, Tag(MAPPING)], BY_KIND
    ]
    timeouts: Timeouts = Timeouts()
    on_disconnect: OnDisconnect = "cancel"
    trust: Literal["full", "low"] = "full"
    include_usage: Literal["auto", "never"] = "auto"
    limits: Limits = Limits()
    rewrite: Rewrite = Rewrite()
    headers: Headers = Headers()
    operations: (
        Annotated[Annotated[list[Text], Tag(LIST)] | Annotated[dict[Text, Operation], Tag(MAPPING)], BY_KIND]
        | None
    ) = Field(default=None, description="All that the dialect knows, if not said.")
    costs: dict[
        ModelName, Annotated[Annotated[Multiplier, Tag(TEXT)] | Annotated[Price, Tag(MAPPING)], BY_KIND]
    ] = Field(default={}, description="What it takes: a part of the model's price, or a price of its own.")


# -- models and routes ---------------------------------------------------------------------------


class Model(Section):
    context: Positive | None = None
    max_output: Positive | None = None
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    on_disconnect: OnDisconnect | None = None
    hidden_reasoning: Flag | None = Field(
        default=None, description="Thinks without showing it; known for many."
    )
    limits: Limits = Limits()


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


# -- tiers ----------------------------------------------------------------------------------------


class TierLimits(Limits):
    """Of each account that has the tier."""

    spend: Annotated[Annotated[Spending, Tag(TEXT)] | Annotated[list[Spending], Tag(LIST)], BY_KIND] = []
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
    free_quota: FreeQuota | None = Field(default=None, description="Used before the balance is.")
    earned_by: list[Earned] = Field(default=[], description="Top-ups that give this tier for a time.")


class Gateway(Section):
    """Who tells of payments, and how it proves that it does."""

    kind: Literal["epay", "stripe", "hmac"]
    secret: Secret
    url: BaseUrl | None = Field(default=None, description="Where holders pay; of epay.")
    pid: Text | None = Field(default=None, description="Our number there; of epay.")
    currency: Currency | None = Field(default=None, description="What it takes; the station's, if not said.")
    window: Duration = Field(default=300_000, description="How old a signed message may be.")


class Callbacks(Section):
    """Vendors tell us of changes of tasks, and we tell customers."""

    through: Name | None = Field(
        default=None,
        description="The endpoint at which vendors call; they are not asked to, if not said.",
    )
    allow: list[Network] = Field(
        default=[], description="Networks that customers' URLs may lead to, beside the public ones."
    )


class RoutesFile(Section):
    """The whole file."""

    station: Station = Station()
    endpoints: dict[Name, Endpoint] = {}
    upstreams: dict[Name, Upstream] = {}
    models: dict[ModelName, Model] = {}
    routes: list[Route] = []
    tasks: dict[Name, Family] = Field(
        default={}, description="Task APIs: built-in families, or declared ones."
    )
    prices: dict[ModelName, Price] = {}
    multipliers: dict[ModelName, Multiplier] = {}
    tiers: dict[Name, Tier] = {}
    gateways: dict[Name, Gateway] = {}
    callbacks: Callbacks = Callbacks()
    results: Results | None = Field(default=None, description="Nothing is kept, if not said.")


def json_schema() -> dict[str, Any]:
    """What editors check a routes.yaml with; published as routes.schema.json beside this module."""
    schema = RoutesFile.model_json_schema()
    return {
        "$schema": SCHEMA_DIALECT,
        **schema,
        "title": "Headrace routes.yaml",
    }
