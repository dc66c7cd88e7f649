-- Why: a statement lists what was posted to days; its pages and the sums of a month are read by this order.
-- Locks: `usage` and `correction` against writes while their indexes are built (3 s per million rows);
--        journals wait meanwhile, calls do not.

CREATE INDEX usage_posted ON usage (account, posted_day, id);
DROP INDEX usage_account;
CREATE INDEX correction_posted ON correction (account, posted_day, id);
