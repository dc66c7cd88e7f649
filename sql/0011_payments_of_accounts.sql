-- Why: reviews ask for the last payment of hundreds of accounts at once; those with many calls have thousands
--      of ledger rows besides.
-- Locks: `ledger` against writes while the index is built (1 s per million rows); journals wait meanwhile,
--        calls do not.

CREATE INDEX ledger_payments ON ledger (account, id) WHERE kind NOT IN ('usage', 'correction');
