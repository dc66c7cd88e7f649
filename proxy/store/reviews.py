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

ACCOUNTS_MAX = 200  # per transaction: some 40 ms, and they are locked meanwhile
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
                if rows:
                    await _review(connection, [_Account(**row) for row in rows], rules)
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
                " UPDATE account SET due_at = '-infinity' WHERE EXISTS (SELECT FROM changed)"
                " AND id IN (SELECT id FROM account ORDER BY id FOR NO KEY UPDATE)",
                seen,
            )
            self._seen = seen


async def _review(connection: Connection, accounts: list[_Account], rules: Rules) -> None:
    """Accounts that are due. What most of them need is done for all at once."""
    await _note_ranks(connection, accounts, rules)
    paid = await connection.fetch(_LAST_PAYMENTS, [account.id for account in accounts])
    last = {row["account"]: row["last"] for row in paid}
    for account in accounts:
        if last.get(account.id, 0) > account.earned_upto:
            await _earn(connection, account, rules, last[account.id])
    tiers = await _current_tiers(connection, accounts, rules)
    periods = await _open_pockets(
        connection, accounts, rules, {id_: tier for id_, (tier, _) in tiers.items()}
    )
    ends = [(tiers[account.id][1], periods.get(account.id)) for account in accounts]
    due = [min((moment for moment in pair if moment is not None), default=None) for pair in ends]
    await connection.execute(
        "UPDATE account SET due_at = t.due FROM unnest($1::bigint[], $2::timestamptz[]) t (id, due)"
        " WHERE account.id = t.id",
        [account.id for account in accounts],
        due,
    )


async def _note_ranks(connection: Connection, accounts: list[_Account], rules: Rules) -> None:
    """A grant has to be above the account's own tier, whose rank only routes.yaml knows."""
    for account in accounts:
        own = rules.tiers.get(account.tier or "")
        rank = None if own is None else own.rank
        if rank != account.tier_rank:
            await connection.execute("UPDATE account SET tier_rank = $2 WHERE id = $1", account.id, rank)


_LAST_PAYMENTS = """
SELECT account, max(id) AS last FROM ledger
WHERE account = ANY($1) AND kind NOT IN ('usage', 'correction') GROUP BY account
"""


# -- tiers -------------------------------------------------------------------------------------------


async def _earn(connection: Connection, account: _Account, rules: Rules, last: int) -> None:
    """Something was paid, or paid back, since the last look: `last` is its ledger row."""
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


async def _current_tiers(
    connection: Connection, accounts: list[_Account], rules: Rules
) -> dict[int, tuple[Tier, datetime | None]]:
    """The tier of this moment by account, and when it may be another one."""
    rows = await connection.fetch(
        "SELECT account, tier, rank, until FROM tier_grant WHERE account = ANY($1) AND revoked_at IS NULL"
        " AND (until IS NULL OR until > now()) ORDER BY account, rank DESC, until DESC NULLS FIRST",
        [account.id for account in accounts],
    )
    found: dict[int, tuple[Tier, datetime | None]] = {}
    by_id = {account.id: account for account in accounts}
    for row in rows:
        own = by_id[row["account"]].tier
        if row["account"] not in found and (own is None or row["rank"] > rules.tier(own).rank):
            found[row["account"]] = (rules.tier(row["tier"]), row["until"])
    return {account.id: found.get(account.id, (rules.tier(account.tier), None)) for account in accounts}


# -- free quota --------------------------------------------------------------------------------------


async def _open_pockets(
    connection: Connection, accounts: list[_Account], rules: Rules, tiers: Mapping[int, Tier]
) -> dict[int, datetime]:
    """The pocket of the current period, and no other, is open; when the period ends, by account.

    In the middle of a period a better tier adds what it has more; a lesser one takes nothing away.
    """
    zone = ZoneInfo(rules.station.timezone)
    wanted = {
        account.id: (*around(account.now, quota.every, zone), quota.amount_nanos)
        for account in accounts
        if (quota := tiers[account.id].free_quota) is not None
    }
    kept = [wanted[account.id][0] if account.id in wanted else None for account in accounts]
    await connection.execute(_CLOSE, [account.id for account in accounts], kept)
    if wanted:
        begins, ends, amounts = zip(*wanted.values(), strict=True)
        await connection.execute(_OPEN, list(wanted), list(begins), list(ends), list(amounts))
    return {account: end for account, (_, end, _) in wanted.items()}


# What nobody used of the others is no longer available.
_CLOSE = """
UPDATE pocket SET closed_at = now() FROM unnest($1::bigint[], $2::timestamptz[]) t (account, kept)
WHERE pocket.account = t.account AND closed_at IS NULL AND period_start IS DISTINCT FROM t.kept
"""

_OPEN = """
INSERT INTO pocket AS p (account, period_start, period_end, amount_nanos)
SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[])
ON CONFLICT (account, period_start) DO UPDATE SET closed_at = NULL, period_end = excluded.period_end,
    amount_nanos = greatest(p.amount_nanos, excluded.amount_nanos)
WHERE p.closed_at IS NOT NULL OR p.amount_nanos < excluded.amount_nanos OR p.period_end <> excluded.period_end
"""
