"""Ids that live at a vendor, and who may use them: the facts of a Bind entry.

Owns the rule that an unbound and a foreign id look the same to a caller. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.ledger.entry import Bind


@dataclass(frozen=True, slots=True)
class Binding:
    """A vendor's id belongs to an account and can only be reached with this credential."""

    vendor_id: str
    kind: str  # file, batch, response, task:FAMILY, ...
    account: int
    upstream: str
    mirror: str
    credential: str

    @classmethod
    def of(cls, record: Bind) -> Binding:
        return cls(
            vendor_id=record.vendor_id,
            kind=record.kind,
            account=record.account,
            upstream=record.upstream,
            mirror=record.mirror,
            credential=record.credential,
        )

    @property
    def identity(self) -> tuple[str, str, str]:
        """What is unique: two vendors, and two accounts at one vendor, may use the same id."""
        return self.upstream, self.credential, self.vendor_id


def usable(binding: Binding | None, account: int) -> Binding | None:
    """The binding if the account may use the id, else None: the caller is answered 404 either way."""
    return binding if binding is not None and binding.account == account else None
