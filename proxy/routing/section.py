"""What sections of routes.yaml share: mappings of known members, candidates, parameters.

Owns what routes and task families both have.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from proxy.routing.scalars import (
    BY_KIND,
    LIST,
    TEXT,
    Bound,
    Flag,
    LiteralModel,
    MemberName,
    MemberPath,
    Positive,
    Text,
)


class Section(BaseModel):
    """A mapping of known members."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(Section):
    """An upstream that a call may go to; priority 1 is tried first."""

    upstream: Text
    as_: LiteralModel | None = Field(default=None, alias="as", description="The model's name there.")
    weight: Positive = 1
    priority: Positive = 1


ANY = "any"
Bounds = Annotated[list[Bound], Field(min_length=2, max_length=2)]


class Parameters(Section):
    """What members of request bodies may be; anything else is an invalid_request_error."""

    drop: list[MemberName] = Field(default=[], description="Cut out before the request goes on.")
    refuse: list[MemberPath] = Field(default=[], description="Not supported, whatever their value.")
    range: dict[MemberPath, Bounds] = Field(default={}, description="Numbers: the least and the most.")
    one_of: dict[MemberPath, Annotated[list[Text], Field(min_length=1)]] = Field(
        default={}, description="Texts, or the JSON of other values."
    )
    not_empty: list[MemberPath] = Field(default=[], description="Must be there, and with something in it.")
    not_together: list[
        dict[
            MemberPath,
            Annotated[Annotated[Literal["any"], Tag(TEXT)] | Annotated[Bounds, Tag(LIST)], BY_KIND],
        ]
    ] = Field(default=[], description="Refused where all of one entry are as it says.")
    within_context: Flag = Field(
        default=False, description="Input and max_tokens together must fit into the model's context."
    )
