-- Why: ids that live at vendors are looked up, listed as they were last seen, and billed once they are
--      finished: binding is the due-time table of the poller.
-- Locks: binding and observation for a moment each; no build before this one wrote to them.

ALTER TABLE binding RENAME COLUMN result TO content;  -- the vendor's object as last seen, where it is small
ALTER TABLE binding
    ADD COLUMN entry       jsonb,     -- the End of the call that submitted a task: its price and its terms
    ADD COLUMN failures    int NOT NULL DEFAULT 0,   -- polls in a row that told nothing
    ADD COLUMN note        text NOT NULL DEFAULT '', -- why it is disputed
    ADD COLUMN gone_ms     bigint;    -- its owner deleted it at the vendor: no list shows it
COMMENT ON COLUMN binding.deadline_ms IS 'when a pending task becomes disputed, a disputed one void';
COMMENT ON COLUMN binding.polls IS 'the fencing token of a poll: who claims a task counts it up';

DROP INDEX binding_due;
CREATE INDEX binding_due ON binding (upstream, kind, next_poll_ms) WHERE state = 'pending';
CREATE INDEX binding_disputed ON binding (deadline_ms) WHERE state = 'disputed';
CREATE INDEX binding_vendor_id ON binding (vendor_id, account);

ALTER TABLE observation
    ADD COLUMN credential text NOT NULL DEFAULT '',
    ADD COLUMN parts      jsonb NOT NULL DEFAULT '[]';  -- usage that is priced by other models than the call's
