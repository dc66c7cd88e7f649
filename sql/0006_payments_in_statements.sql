-- Why: payments stand in statements too, and a month's sum is asked for by every chat client that shows what
--      is left.
-- Locks: `ledger` against writes while the index is built (1 s per million rows); journals wait meanwhile,
--        calls do not.

CREATE INDEX ledger_posted ON ledger (account, posted_day, id);
