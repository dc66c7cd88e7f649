"""Task families of a file: the built-in ones under what the file says itself, and what comes of them.

Owns how an entry of `tasks:` is put over the built-in family of its name, and the operations that it stands
for, in the shape of a dialect, so that upstreams, routes and checks need to know nothing more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from proxy.routing import family, texts
from proxy.routing.loader.mistakes import Mistakes, Place, did_you_mean
from proxy.routing.loader.tree import Member, Node, parse
from proxy.routing.loader.vendors import Dialect
from proxy.routing.section import Candidate

SECTION = "tasks"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a family; see vendors.Operation for what the others ask of it."""

    name: str  # midjourney.imagine
    local: str  # imagine
    api: str
    word: str  # of `each`, or ""
    kind: str  # of the tasks that it starts or shows
    paths: tuple[str, ...]  # of callers, without the prefix of a mode
    at: str  # at the upstream
    said: family.Operation
    guarded: tuple[str, ...]
    model_at: str = "none"  # `bill` says which model it is

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.said.method,)

    @property
    def request(self) -> str:
        if self.said.request is not None:
            return self.said.request
        return "none" if self.said.method in ("GET", "HEAD", "DELETE") else "json"


@dataclass(frozen=True, slots=True)
class Served:
    """A path under which callers find an operation."""

    operation: Operation
    path: str
    at: str  # at the upstream
    mode: family.Mode | None = None


@dataclass(frozen=True)
class Family:
    """What an entry stands for, in the shape of a dialect (vendors.Dialect)."""

    name: str
    said: family.Family
    has_own_auth: bool  # the file says how its credential is written, whatever the upstream's dialect
    query: tuple[tuple[str, str], ...] = ()

    @cached_property
    def operations(self) -> Mapping[str, Operation]:
        return {operation.name: operation for operation in self._operations()}

    def _operations(self) -> Iterator[Operation]:
        for local, said in self.said.operations.items():
            paths = tuple([said.path] if isinstance(said.path, str) else said.path or ())
            for word in self._words(paths) if paths else ():
                inner = f"{word}.{local}" if word else local
                filled = tuple(self._filled(path, word) for path in paths)
                of_word = self._billed(said, word)
                yield Operation(
                    f"{self.name}.{inner}",
                    local,
                    self.name,
                    word,
                    f"{self.name}.{word}" if word and self._is_asked_by_word else self.name,
                    filled,
                    self._filled(said.at or paths[0], word),
                    of_word,
                    self._guarded(of_word),
                )

    @property
    def _is_asked_by_word(self) -> bool:
        """Are the tasks of each word asked about on paths of their own?"""
        poll = self.said.operations.get(self.said.task.poll.operation)
        paths = [] if poll is None else [poll.path] if isinstance(poll.path, str) else poll.path or []
        return any(f"{{{name}}}" in path for name in self.said.each for path in paths)

    def _billed(self, said: family.Operation, word: str) -> family.Operation:
        """With the word in the names that it is billed as."""
        bill = said.bill
        if not word or bill is None:
            return said
        if isinstance(bill, str):
            return said.model_copy(update={"bill": self._filled(bill, word)})
        cases = {case: self._filled(name, word) for case, name in bill.is_.items()}
        otherwise = bill.otherwise and self._filled(bill.otherwise, word)
        filled = bill.model_copy(update={"is_": cases, "otherwise": otherwise})
        return said.model_copy(update={"bill": filled})

    def _words(self, paths: tuple[str, ...]) -> list[str]:
        for name, words in self.said.each.items():
            if any(f"{{{name}}}" in path for path in paths):
                return words
        return [""]

    def _filled(self, path: str, word: str) -> str:
        for name in self.said.each:
            path = path.replace(f"{{{name}}}", word)
        return path

    def _guarded(self, said: family.Operation) -> tuple[str, ...]:
        """Members of the body that decide about money, ownership or callbacks: each may be there once."""
        places = [place.at if isinstance(place, family.Cut) else place for place in said.names]
        places += [amount.at for amount in said.amounts.values()]
        if isinstance(said.bill, family.BilledBy):
            places.append(said.bill.at)
            templates = [*said.bill.is_.values(), said.bill.otherwise or ""]
        else:
            templates = [said.bill or ""]
        if said.lists is not None and said.lists.ids:
            places.append(said.lists.ids)
        names = [texts.steps(place)[1] for place in places if place.startswith("body.")]
        names += [texts.steps(at)[0] for template in templates for at, _ in texts.name_parts(template)]
        if said.submits and self.said.task.callback is not None:
            names += self.said.task.callback.fields
        return tuple(dict.fromkeys(names))

    @cached_property
    def paths(self) -> Mapping[str, str]:
        return {operation.name: operation.at for operation in self.operations.values()}

    @property
    def auth(self) -> tuple[bytes, bytes]:
        auth = self.said.auth
        if auth is None:
            return b"authorization", b"Bearer "
        # A file cannot end a text with a space: what is a word is written with one.
        gap = " " if auth.prefix and auth.prefix[-1].isalnum() else ""
        return auth.header.lower().encode("latin-1"), (auth.prefix + gap).encode("latin-1")

    def candidates(self, mode: family.Mode | None = None) -> list[Candidate]:
        """Where its calls go: the mode's word before the family's."""
        for said in (mode, self.said):
            if said is not None and (said.candidates or said.upstream):
                return said.candidates or [Candidate(upstream=said.upstream or "")]
        return []

    @cached_property
    def upstreams(self) -> frozenset[str]:
        """All that serve it."""
        modes = [None, *self.said.modes.values()]
        return frozenset(candidate.upstream for mode in modes for candidate in self.candidates(mode))

    def served(self) -> Iterator[Served]:
        """All paths: of each operation, in each mode."""
        for operation in self.operations.values():
            for path in operation.paths:
                at = path if operation.said.at is None else operation.at
                yield Served(operation, self.said.under + path, at)
                for name, mode in self.said.modes.items():
                    prefix = f"/{name}" if mode.at is None else mode.at
                    yield Served(operation, f"{self.said.under}/{name}{path}", prefix + at, mode)

    def local(self, name: str, word: str) -> str:
        """The full name of an operation that is named within the family: that of the same word of `each`."""
        own = f"{self.name}.{word}.{name}"
        return own if word and own in self.operations else f"{self.name}.{name}"


@dataclass
class Builtin:
    """The built-in families as texts, and which entries of a file say more than they do."""

    texts: Mapping[str, str]
    own_auth: set[str] = field(default_factory=set)

    def put_under(self, root: Node, mistakes: Mistakes) -> None:
        """Complete each entry of `tasks:` by the built-in family that it names or is named as."""
        section = root.child(SECTION)
        if section is None or section.members is None:
            return
        for name, entry in section.members.items():
            given = entry.value
            if given.is_empty:
                given = entry.value = Node(given.place, members={})
            if given.members is None:
                continue
            chosen = given.child("family")
            base = (chosen.text if chosen is not None else None) or name
            if given.child("auth") is not None:
                self.own_auth.add(name)
            if base in self.texts:
                entry.value = _over(given, self._read(base, given.place), given.place)
            elif chosen is not None:
                mistakes.at(
                    chosen.place,
                    f"family '{base}' is not built in" + did_you_mean(base, self.texts),
                    (SECTION, name, "family"),
                )

    def _read(self, name: str, place: Place) -> Node:
        """What a built-in file says; mistakes about it stand where the file asks for it."""
        root = parse(self.texts[name], Mistakes(name))
        assert root is not None, name
        _move(root, place)
        return root

    def families(self, entries: Mapping[str, family.Family]) -> dict[str, Dialect]:
        return {name: Family(name, said, name in self.own_auth) for name, said in entries.items()}


def _move(root: Node, place: Place) -> None:
    stack = [root]
    while stack:
        node = stack.pop()
        node.place = place
        stack += node.items or ()
        for member in (node.members or {}).values():
            member.key = place
            stack.append(member.value)


def _over(given: Node, base: Node, place: Place) -> Node:
    """Mappings member by member; whatever else is given stands alone. What is left empty goes."""
    if given.members is None or base.members is None:
        return given
    members = dict(base.members)
    for name, member in given.members.items():
        under = members.pop(name, None)
        if under is None:
            members[name] = member
        elif not member.value.is_empty:
            members[name] = Member(member.key, _over(member.value, under.value, place))
    return Node(given.place, members=members)
