"""What single values of routes.yaml may be: texts that are read into names, amounts, durations.

Owns their types and what editors are told of them; how each is spelt is `texts`' and `units`'.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Discriminator, PlainValidator, WithJsonSchema

from proxy.routing import texts, units

BODY_LIMIT_MAX = 256 << 20
FILE_LIMIT_MAX = 5 << 30  # what a bucket takes in one request
REFUSAL_STATUS = "401|402|403|429"


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


def _limit(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        size = units.size_bytes(text)
        if not 0 < size <= most:
            raise ValueError(f"must be more than nothing and at most {most >> 20} MiB")
        return size

    return read


_INTEGER = _shown("integer", "string", pattern="[0-9]+")
_DECIMAL = _shown("number", "string", pattern=r"-?[0-9]+(?:\.[0-9]+)?")

Name = Annotated[str, _read(texts.name), _shown("string", pattern=texts.NAME)]
ModelName = Annotated[str, _read(texts.model_name), _shown("string")]
LiteralModel = Annotated[str, _read(texts.literal_model), _shown("string", pattern=r"[^*\s]+")]
BaseUrl = Annotated[str, _read(texts.base_url), _shown("string", pattern="https?://.+")]
EgressUrl = Annotated[str, _read(texts.egress_url), _shown("string", pattern="(?:http|socks5)://.+")]
Host = Annotated[str, _read(texts.host), _shown("string")]
Network = Annotated[str, _read(texts.network), _shown("string")]
HeaderName = Annotated[str, _read(texts.header_name), _shown("string", pattern=texts.HEADER)]
HeaderValue = Annotated[str, _read(texts.header_value), _shown("string")]
Secret = Annotated[str, _read(texts.secret), _shown("string", pattern=r".*\$\{.+\}.*")]
Method = Annotated[str, _read(texts.method), _shown("string", pattern="[A-Z]{3,10}")]
MemberName = Annotated[str, _read(texts.member_name), _shown("string")]
MemberPath = Annotated[str, _read(texts.member_path), _shown("string")]
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
Lasting = Annotated[int, _read(units.lasting_ms), _shown("string", pattern=units.LASTING)]
Period = Annotated[units.Period, _read(units.period), _shown("string", pattern=units.PERIOD)]
PerTime = Annotated[units.Rate, _read(units.rate), _shown("string", pattern=units.RATE)]
Spending = Annotated[units.Spending, _read(units.spending), _shown("string", pattern=units.SPENDING)]
BodyLimit = Annotated[int, _read(_limit(BODY_LIMIT_MAX)), _shown("integer", "string", pattern=units.SIZE)]
FileLimit = Annotated[int, _read(_limit(FILE_LIMIT_MAX)), _shown("integer", "string", pattern=units.SIZE)]
BucketUrl = Annotated[str, _read(texts.bucket_url), _shown("string", pattern="https?://.+")]
ObjectPrefix = Annotated[str, _read(texts.object_prefix), _shown("string")]
# Of task families.
Place = Annotated[str, _read(texts.place), _shown("string")]
RequestPlace = Annotated[
    str, _read(texts.request_place), _shown("string", pattern=r"(?:path|query|body)\..+")
]
Prefix = Annotated[str, _read(texts.prefix), _shown("string", pattern="(?:/.+)?")]
NameTemplate = Annotated[str, _read(texts.name_template), _shown("string")]
JsonTemplate = Annotated[str, _read(texts.json_template), _shown("string")]

TAGS = TEXT, MAPPING, LIST = ("<text>", "<mapping>", "<list>")  # of alternatives; no key can be one of them


def _kind(value: object) -> str:
    return MAPPING if isinstance(value, dict) else LIST if isinstance(value, list) else TEXT


BY_KIND = Discriminator(_kind)  # only the alternative that was begun reports mistakes
