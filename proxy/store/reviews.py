"""What time and payments make of an account: tiers that were earned, and the pocket of its free quota.

Owns grants by top-ups, the opening and closing of pockets, and when an account is looked at again
(`account.due_at`): after a payment, when its tier may end, when a new period of free quota begins. Rules
are routes.yaml's and the formula is access.tiers'. A grant is stored and not recomputed by a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from proxy.access.calendar import around
from proxy.access.tiers import Payment, earned
from proxy.routing.table import Station, Table, Tier
from proxy.store.database import Connection, Database
from proxy.store.payments import net_payments

ACCOUNTS_MAX = 200  # per transaction: some milliseconds each, and they are locked meanwhile
SOURCE = "payments"  # of grants that were earned; the reference is the ledger row that was the last

_DUE = """
SELECT id, tier, tier_rank, earned_upto, now() AS now FROM account
WHERE due_at <= now() ORDER BY due_at, id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
"""


@dataclass(frozen=True, slots=True)
class Rules:
    """What routes.yaml says about tiers: a part of routing.table.Table."""

    station: Station
    tiers: Mapping[str, Tier]

    def tier(self, name: str | None) -> Tier:
        """The default one for a name that the file does not know."""
        return self.tiers.get(name or "") or self.tiers[self.station.default_tier]

    def fingerprint(self) -> str:
        """Changes with what a review depends on."""
        quotas = [(t.name, t.rank, t.free_quota) for t in self.tiers.values()]
        return repr((self.station.default_tier, self.station.timezone, quotas))


@dataclass(frozen=True, slots=True)
class _Account:
    id: int
    tier: str | None
    tier_rank: int | None
    earned_upto: int
    now: datetime


class Reviews:
    """Looks at accounts that are due, by the table of the moment. Several nodes may do so at once."""

    def __init__(self, database: Database, table: Callable[[], Table | Rules | None]) -> None:
        self._database = database
        self._table = table
        self._seen = ""  # fingerprint of the rules that every account was made due for

    async def run_once(self) -> int:
        """How many accounts were looked at; all that are due. Raises DatabaseUnavailable."""
        table = self._table()
        if table is None:
            return 0
        rules = Rules(table.station, table.tiers)
        await self._wake_all(rules)
        done = 0
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(_DUE, ACCOUNTS_MAX)
                for row in rows:
                    await _review(connection, _Account(**row), rules)
            done += len(rows)
            if len(rows) < ACCOUNTS_MAX:
                return done

    async def _wake_all(self, rules: Rules) -> None:
        """Other tiers or quotas: look at everybody, once per change and station."""
        seen = rules.fingerprint()
        if seen != self._seen:
            await self._database.execute(
                "WITH changed AS (UPDATE station_state SET reviewed_rules = $1"
                " WHERE reviewed_rules IS DISTINCT FROM $1 RETURNING 1)"
                " UPDATE account SET due_at = '-infinity' WHERE EXISTS (SELECT FROM changed)",
                seen,
            )
            self._seen = seen


async def _review(connection: Connection, account: _Account, rules: Rules) -> None:
    own = rules.tiers.get(account.tier or "")
    own_rank = None if own is None else own.rank
    if own_rank != account.tier_rank:
        await connection.execute("UPDATE account SET tier_rank = $2 WHERE id = $1", account.id, own_rank)
    await _earn(connection, account, rules)
    tier, ends_at = await _current_tier(connection, account, rules)
    period_end = await _open_pocket(connection, account, rules, tier)
    due_at = min((moment for moment in (ends_at, period_end) if moment is not None), default=None)
    await connection.execute("UPDATE account SET due_at = $2 WHERE id = $1", account.id, due_at)


# -- tiers -------------------------------------------------------------------------------------------


async def _earn(connection: Connection, account: _Account, rules: Rules) -> None:
    """Only if something was paid, or paid back, since the last look."""
    last = await connection.fetchval(
        "SELECT max(id) FROM ledger WHERE account = $1 AND kind NOT IN ('usage', 'correction')", account.id
    )
    if last is None or last <= account.earned_upto:
        return
    kinds = ("topup", "code") if rules.station.codes_earn_tiers else ("topup",)
    rows = await net_payments(connection, account.id, kinds)
    payments = [Payment(row.id, row.at, row.nanos) for row in rows]
    await _revoke(connection, account, [p.id for p in payments if p.nanos <= 0])
    await _revoke_reduced(connection, account)
    for tier in rules.tiers.values():
        await _grant(connection, account, tier, payments, ZoneInfo(rules.station.timezone), last)
    await connection.execute("UPDATE account SET earned_upto = $2 WHERE id = $1", account.id, last)


async def _revoke(connection: Connection, account: _Account, payments: Sequence[int]) -> None:
    """A payment went back: what it had earned is earned no more."""
    await connection.execute(
        "UPDATE tier_grant SET revoked_at = now()"
        " WHERE account = $1 AND source = $2 AND revoked_at IS NULL AND payments && $3::bigint[]",
        account.id, SOURCE, list(payments),
    )  # fmt: skip


async def _revoke_reduced(connection: Connection, account: _Account) -> None:
    """A part of a payment went back since the last look: what is left may earn less."""
    reduced = await connection.fetch(
        "SELECT DISTINCT undoes FROM ledger WHERE account = $1 AND undoes IS NOT NULL AND id > $2",
        account.id,
        account.earned_upto,
    )
    await _revoke(connection, account, [row["undoes"] for row in reduced])


async def _grant(
    connection: Connection,
    account: _Account,
    tier: Tier,
    payments: Sequence[Payment],
    zone: ZoneInfo,
    last: int,
) -> None:
    found = earned(payments, tier.earned_by, zone)
    if found is None or found.until <= account.now:
        return
    await connection.execute(
        "INSERT INTO tier_grant (account, tier, rank, starts_at, until, source, reference, payments)"
        " SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE NOT EXISTS ("
        "   SELECT FROM tier_grant WHERE account = $1 AND tier = $2 AND source = $6"
        "   AND revoked_at IS NULL AND until >= $5)"
        " ON CONFLICT DO NOTHING",
        account.id, tier.name, tier.rank, account.now, found.until, SOURCE, str(last), list(found.payments),
    )  # fmt: skip


async def _current_tier(
    connection: Connection, account: _Account, rules: Rules
) -> tuple[Tier, datetime | None]:
    """The tier of this moment, and when it may be another one."""
    rows = await connection.fetch(
        "SELECT tier, rank, until FROM tier_grant WHERE account = $1 AND revoked_at IS NULL"
        " AND (until IS NULL OR until > $2) ORDER BY rank DESC, until DESC NULLS FIRST",
        account.id,
        account.now,
    )
    own = rules.tier(account.tier)
    best = next((row for row in rows if account.tier is None or row["rank"] > own.rank), None)
    if best is None:
        return own, None
    return rules.tier(best["tier"]), best["until"]


# -- free quota --------------------------------------------------------------------------------------


async def _open_pocket(
    connection: Connection, account: _Account, rules: Rules, tier: Tier
) -> datetime | None:
    """The pocket of the current period, and no other, is open; when the period ends. None: no quota.

    In the middle of a period a better tier adds what it has more; a lesser one takes nothing away.
    """
    quota = tier.free_quota
    if quota is None:
        await _close_pockets(connection, account, None)
        return None
    begin, end = around(account.now, quota.every, ZoneInfo(rules.station.timezone))
    await _close_pockets(connection, account, begin)
    await connection.execute(
        "INSERT INTO pocket AS p (account, period_start, period_end, amount_nanos) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (account, period_start) DO UPDATE SET closed_at = NULL,"
        " period_end = excluded.period_end, amount_nanos = greatest(p.amount_nanos, excluded.amount_nanos)",
        account.id, begin, end, quota.amount_nanos,
    )  # fmt: skip
    return end


async def _close_pockets(connection: Connection, account: _Account, but: datetime | None) -> None:
    """What nobody used of them is no longer available."""
    await connection.execute(
        "UPDATE pocket SET closed_at = now()"
        " WHERE account = $1 AND closed_at IS NULL AND period_start IS DISTINCT FROM $2",
        account.id,
        but,
    )
