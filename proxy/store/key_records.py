"""What is known of a key: its settings, and the plain record that control hands to workers.

Owns the members of both, and the SQL of a record: the key, its account, tiers and prices in one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from proxy.access.limits import KINDS
from proxy.access.tiers import Held, line_of

PERMISSIONS = ("models", "routes", "endpoints")
RIGHTS = ("own_receipts",)  # kept beside the permissions
LIMITS = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What of a key an operator chooses. None leaves a permission or a limit to the tier."""

    label: str = ""
    note: str = ""
    mirror: str | tuple[str, ...] = "auto"
    models: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    concurrency: int | None = None
    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    spend_per_day: int | None = None  # nanos, as are the next two
    spend_per_month: int | None = None
    spend_total: int | None = None
    ip_allow: tuple[str, ...] | None = None
    expires_at: datetime | None = None
    own_receipts: bool | None = None  # True: it reads receipts of its own calls only

    def columns(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "note": self.note,
            "mirror": self.mirror,
            "permissions": {n: v for n in PERMISSIONS + RIGHTS if (v := getattr(self, n)) is not None},
            "limits": {n: v for n in LIMITS if (v := getattr(self, n)) is not None},
            "ip_allow": self.ip_allow,
            "expires_at": self.expires_at,
        }


_GRANTS = """
    SELECT jsonb_agg(jsonb_build_array(g.tier, (extract(epoch FROM until) * 1000)::bigint)
                     ORDER BY rank DESC, until DESC NULLS FIRST) AS grants
    FROM tier_grant g
    WHERE account = a.id AND revoked_at IS NULL AND starts_at <= now() AND (until IS NULL OR until > now())
      AND (a.tier IS NULL OR rank > coalesce(a.tier_rank, -1))
"""
LINE = f"""
SELECT a.tier, g.grants FROM account a CROSS JOIN LATERAL ({_GRANTS}) g WHERE a.id = $1
"""  # noqa: S608 - our own text

# A rotated key is known by its old digest, too, for as long as that one is good.
RECORD = f"""
SELECT k.*, d.digest AS asked, d.masked AS shown, least(k.expires_at, d.until) AS ends_at, d.until,
       CASE WHEN d.until <= now() THEN 'revoked' ELSE k.status END AS status_now,
       a.name AS account_name, a.status AS account_status, a.mirror AS account_mirror,
       a.limits AS account_limits, a.tier, g.grants, o.overrides
FROM (SELECT id, digest, masked, NULL::timestamptz AS until FROM api_key
      UNION ALL SELECT key, digest, masked, until FROM old_key) d
JOIN api_key k ON k.id = d.id
JOIN account a ON a.id = k.account
CROSS JOIN LATERAL ({_GRANTS}) g
CROSS JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_array(id, model, ppm, content) ORDER BY id) AS overrides
    FROM price_override WHERE account = a.id AND ended_at IS NULL
) o
"""  # noqa: S608 - our own text


def line_in(row: asyncpg.Record) -> list[Held]:
    return line_of([Held(*grant) for grant in row["grants"] or ()], row["tier"] or "")


def record_of(row: asyncpg.Record) -> dict[str, Any]:
    """The contract between control and workers; "" is the station's default tier."""
    line = line_in(row)
    permissions, ends_at = row["permissions"], row["ends_at"]
    return {
        "digest": row["asked"].hex(),
        "key_id": row["id"],
        "account_id": row["account"],
        "account": row["account_name"],
        "status": row["status_now"],
        "account_status": row["account_status"],
        "tier": line[0].tier,
        "tier_until_ms": line[0].until_ms,
        "tiers": [list(held) for held in line],
        "overrides": row["overrides"],
        **{name: permissions.get(name) for name in PERMISSIONS + RIGHTS},
        "mirror": row["mirror"] if row["mirror"] != "auto" else row["account_mirror"],
        "expires_ms": None if ends_at is None else int(ends_at.timestamp() * 1000),
        "ip_allow": None if row["ip_allow"] is None else list(row["ip_allow"]),
        "limits": row["limits"],
        "account_limits": row["account_limits"],
        "label": row["label"],
        "note": row["note"],
        "masked": row["shown"],
        "version": row["generation"],
    }
