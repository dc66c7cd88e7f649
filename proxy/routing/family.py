"""Families of task APIs as files declare them: submits, what they cost, polls, lists.

Owns the grammar of `tasks:` and of the built-in families, which are files of it (families/*.yaml). What
lies in an entry of routes.yaml is put over the built-in family of its name, member by member, before it is
read here, so that hardly anything is required. What it all means for an answer is dialects.declared's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from proxy.routing.figures import Price
from proxy.routing.scalars import (
    BY_KIND,
    LIST,
    MAPPING,
    TEXT,
    Bound,
    Duration,
    Flag,
    HeaderName,
    HeaderValue,
    JsonTemplate,
    Lasting,
    MemberName,
    Method,
    ModelName,
    Name,
    NameTemplate,
    PathTemplate,
    Place,
    Positive,
    Prefix,
    RequestPlace,
    Text,
    UpstreamPath,
)
from proxy.routing.section import Candidate, Parameters, Section

SHORTEST_MS, LONGEST_MS = 2_000, 60_000  # between two polls
DEADLINE_MS, DISPUTE_MS = 24 * 3_600_000, 7 * 86_400_000
ONCE_MS = 10_000
AT_ONCE = 100  # tasks in one request
REQUESTS = 8
SAME = "{name}"  # in a mode: what the operation is billed as without it

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Places = Annotated[Annotated[Place, Tag(TEXT)] | Annotated[list[Place], Tag(LIST)], BY_KIND]
Condition = dict[Place, Annotated[list[Text], Field(min_length=1)]]


class Auth(Section):
    """How our credential is written."""

    header: HeaderName
    prefix: HeaderValue = ""


class Passing(Section):
    request: list[HeaderName] = []
    response: list[HeaderName] = []


class Errors(Section):
    """Our own refusals."""

    body: JsonTemplate = Field(description="With {message}, {code}, {status}, {param}, {request_id} in it.")
    codes: dict[Text, Text] = Field(default={}, description="Our code: theirs; * for all others.")


class Mode(Section):
    """A prefix that callers put in front of all paths: /mj-fast."""

    at: Prefix | None = Field(default=None, description="The prefix at the upstream; the same, if not said.")
    bill: NameTemplate = Field(default=SAME, description="What {name} is billed as in this mode.")
    upstream: Text | None = None
    candidates: list[Candidate] = []


# -- tasks ---------------------------------------------------------------------------------------


class Poll(Section):
    """How one task is asked about."""

    operation: Text = ""
    query: MemberName | None = Field(default=None, description="The parameter with the id; else the path's.")
    body: JsonTemplate | None = Field(default=None, description="Of a POST, with {id} in it.")
    headers: dict[HeaderName, HeaderValue] = {}
    every: Duration = SHORTEST_MS
    at_most: Duration = LONGEST_MS
    requests: Positive = Field(default=REQUESTS, description="At once, of one node to one upstream.")


class Batch(Section):
    """How several are asked about in one request."""

    operation: Text
    ids: MemberName = "ids"
    items: Place = ""
    id: Place = "id"
    at_once: Positive = AT_ONCE


class Callback(Section):
    """How customers ask to be told of each change."""

    fields: list[MemberName]
    body: Place = Field(default="", description="What of the task they are sent; all of it, if not said.")


class Task(Section):
    """What a submit starts. Places of a poll's answer are within its `object`."""

    id: Places = Field(default=[], description="In the answer to the submit.")
    accepted: Condition = Field(default={}, description="What that answer says if it is charged.")
    exists: Condition = Field(default={}, description="What it says of a task that is there already.")
    poll: Poll = Poll()
    batch: Batch | None = None
    object: Place = ""
    state: Places = []
    states: dict[Text, State] = Field(default={}, description="Any other word: it is running.")
    progress: list[Place] = []
    files: list[Place] = []
    blank: JsonTemplate = Field(
        default='{"id":"{id}"}', description="In lists, of what the vendor has not said itself."
    )
    makes: dict[Name, list[Place]] = Field(default={}, description="Other ids that are its owner's.")
    usage: dict[Text, Place] = Field(default={}, description="What it consumed; else what its submit says.")
    callback: Callback | None = None
    deadline: Lasting = DEADLINE_MS
    disputed_for: Lasting = DISPUTE_MS
    charged: list[Literal["succeeded", "failed", "cancelled"]] = ["succeeded"]


# -- operations ----------------------------------------------------------------------------------


class Cut(Section):
    """An id with something behind it."""

    at: RequestPlace
    before: Text


IdPlace = Annotated[Annotated[RequestPlace, Tag(TEXT)] | Annotated[Cut, Tag(MAPPING)], BY_KIND]


class BilledBy(Section):
    """The model that is billed, by what the request says there."""

    at: RequestPlace
    is_: dict[Text, NameTemplate] = Field(alias="is", description="Texts or globs; the first that fits.")
    otherwise: NameTemplate | None = Field(default=None, description="Refused, if not said.")


class Amount(Section):
    """How much of what is priced a request asks for."""

    at: RequestPlace
    otherwise: Bound


class Once(Section):
    """Submits that are one."""

    within: Duration = ONCE_MS
    members: list[Place] = Field(default=[], description="The whole request, if not said.")


class Listing(Section):
    """Answered from what the account has made."""

    shape: JsonTemplate = Field(
        default='"{items}"', description="With {items}, {total}, {page}, {size} in it."
    )
    open: Flag = Field(default=False, description="Those that are not over yet.")
    ids: RequestPlace | None = Field(default=None, description="Those that the request names.")
    page: MemberName | None = None
    size: MemberName | None = None


class Operation(Section):
    path: (
        Annotated[
            Annotated[PathTemplate, Tag(TEXT)] | Annotated[list[PathTemplate], Tag(LIST)],
            BY_KIND,
        ]
        | None
    ) = None
    at: UpstreamPath | None = Field(default=None, description="At the upstream; the same, if not said.")
    method: Method = "POST"
    request: Literal["json", "form", "opaque", "none"] | None = None
    submits: Flag = Field(default=False, description="It starts a task.")
    shows: Flag = Field(default=False, description="Its answer shows a task.")
    hurries: Flag = Field(default=False, description="The task is asked about at once.")
    bill: (
        Annotated[Annotated[NameTemplate, Tag(TEXT)] | Annotated[BilledBy, Tag(MAPPING)], BY_KIND] | None
    ) = Field(default=None, description="The model that is billed; free, if not said.")
    by: Literal["call", "tokens"] = "call"
    amounts: dict[Literal["seconds", "images", "characters"], Amount] = {}
    accepted: Condition | None = Field(default=None, description="The task's, if not said.")
    names: list[IdPlace] = Field(default=[], description="Ids that must be the account's.")
    makes: dict[Name, list[Place]] = {}
    once: Once | None = None
    lists: Listing | None = None
    parameters: Parameters | None = None


class Family(Section):
    """One entry of `tasks:`."""

    family: Text | None = Field(default=None, description="A built-in family; that of its name, if not said.")
    under: Prefix = Field(default="", description="In front of all its paths here: /second.")
    upstream: Text | None = Field(
        default=None, description="Without one, and without candidates: those of the model that is billed."
    )
    candidates: list[Candidate] = []
    auth: Auth | None = None
    headers: Passing = Passing()
    query: list[MemberName] = []
    errors: Errors | None = None
    drop: list[MemberName] = Field(default=[], description="Cut out of all requests.")
    modes: dict[Name, Mode] = {}
    links: list[Place] = Field(
        default=[], description="URLs of the vendor's API in its answers: they lead back through here."
    )
    each: dict[Name, Annotated[list[Text], Field(min_length=1)]] = Field(
        default={}, description="Operations with this word in their path are made once for each."
    )
    task: Task = Task()
    prices: dict[ModelName, Price] = Field(default={}, description="Where the station does not name it.")
    operations: dict[Name, Operation] = {}
