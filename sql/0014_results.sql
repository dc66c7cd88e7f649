-- Why: files that tasks have made are fetched before their vendor forgets them, and served by us until their
--      days are over. A row is an order first: it comes with the end of its task, in the same transaction.
-- Locks: account for a moment (a foreign key); the table is new.

CREATE TABLE result (
    id           text PRIMARY KEY,             -- what our link names; see dialects/links.py
    binding      uuid NOT NULL,                -- the call that submitted the task; outlives the row in binding
    account      bigint NOT NULL REFERENCES account (id),
    url          text NOT NULL,                -- the vendor's
    ordered_ms   bigint NOT NULL,
    state        text NOT NULL DEFAULT 'ordered'
                 CHECK (state IN ('ordered', 'kept', 'left', 'lost', 'gone')),
    next_try_ms  bigint,                       -- of an order; who fetches it pushes it on
    tries        int NOT NULL DEFAULT 0,       -- the fencing token of a fetch: who claims it counts it up
    refusals     int NOT NULL DEFAULT 0,       -- in a row with which its vendor said that there is no such file
    note         text NOT NULL DEFAULT '',     -- why it is not kept
    shelf        text NOT NULL DEFAULT '',     -- directory or bucket
    node         uuid,                         -- that fetched it
    size         bigint NOT NULL DEFAULT 0,    -- bytes
    sha256       bytea,
    content_type text NOT NULL DEFAULT '',
    kept_ms      bigint,
    expires_ms   bigint
);
COMMENT ON COLUMN result.state IS
    'left: stays at its vendor, our link leads there; lost: its vendor has it no more; gone: we have removed it';
CREATE INDEX result_due ON result (next_try_ms) WHERE state = 'ordered';
CREATE INDEX result_expiring ON result (expires_ms) WHERE state = 'kept';
CREATE INDEX result_binding ON result (binding);
CREATE INDEX result_account ON result (account, ordered_ms);
