-- Why: who holds which part of a balance, how far each journal was copied, and what lives at vendors.
-- Locks: nothing, all tables are new.

CREATE TABLE node (
    id            uuid PRIMARY KEY,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    retired_at    timestamptz     -- by an operator: it will not come back, its leases are closed
);

-- One life of a process: of a worker or of control (each with a journal), of a supervisor (with leases).
CREATE TABLE incarnation (
    id          text PRIMARY KEY,
    node        uuid NOT NULL REFERENCES node,
    started_at  timestamptz NOT NULL DEFAULT now(),
    closed_at   timestamptz       -- it is dead, its journal is drained and its open calls are closed
);
CREATE INDEX incarnation_node ON incarnation (node);

-- How far a segment was copied. Row and cursor change in one transaction: that is the exactly-once.
CREATE TABLE segment_cursor (
    incarnation text NOT NULL REFERENCES incarnation,
    segment     int NOT NULL,
    position    bigint NOT NULL,  -- byte offset of the next frame
    begins      bigint NOT NULL DEFAULT 0,
    ends        bigint NOT NULL DEFAULT 0,  -- of calls: settled, void, settled late, closed by adoption
    entries     bigint NOT NULL DEFAULT 0,
    moved_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (incarnation, segment)
);

-- Entries that could not be applied, whole. An alarm each; they never hold up the others.
CREATE TABLE quarantine (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incarnation text NOT NULL,
    segment     int NOT NULL,
    position    bigint NOT NULL,
    reason      text NOT NULL,
    payload     bytea NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz
);
CREATE UNIQUE INDEX quarantine_once ON quarantine (incarnation, segment, position, sha256(payload));

-- A part of an account's balance that a node may spend. The id is made by its asker, so that asking
-- again is harmless. available = balance - sum(granted - used) over open ones.
CREATE TABLE lease (
    id            uuid PRIMARY KEY,
    node          uuid NOT NULL REFERENCES node,
    incarnation   text NOT NULL,    -- the life of the node's supervisor
    account       bigint NOT NULL REFERENCES account,
    granted_nanos bigint NOT NULL CHECK (granted_nanos >= 0),
    used_nanos    bigint NOT NULL DEFAULT 0,  -- may pass granted: a settlement is never refused
    opened_at     timestamptz NOT NULL DEFAULT now(),
    closed_at     timestamptz
);
CREATE INDEX lease_open ON lease (account) WHERE closed_at IS NULL;
CREATE INDEX lease_open_of_node ON lease (node, incarnation) WHERE closed_at IS NULL;

-- What of a lease each process really spent; a dead worker's sub-slice shrinks to it.
CREATE TABLE lease_use (
    lease       uuid NOT NULL REFERENCES lease,
    incarnation text NOT NULL,
    used_nanos  bigint NOT NULL,
    PRIMARY KEY (lease, incarnation)
);

-- Credit that control granted while Postgres was away. Moves no money by itself.
CREATE TABLE allowance (
    id           uuid PRIMARY KEY,
    account      bigint NOT NULL REFERENCES account,
    at_ms        bigint NOT NULL,
    amount_nanos bigint NOT NULL,
    incarnation  text NOT NULL
);
CREATE INDEX allowance_account ON allowance (account, at_ms);

-- An id that lives at the vendor -> (account, upstream, credential); for tasks with the pending hold.
CREATE TABLE binding (
    id            uuid PRIMARY KEY,   -- of the call that made it
    account       bigint NOT NULL REFERENCES account,
    key           bigint NOT NULL,
    kind          text NOT NULL,      -- file, batch, response, task:FAMILY, ...
    vendor_id     text NOT NULL,
    upstream      text NOT NULL,
    mirror        text NOT NULL,
    credential    text NOT NULL,
    at_ms         bigint NOT NULL,
    hold_nanos    bigint NOT NULL DEFAULT 0,  -- what a pending task keeps set aside; 0 once it is closed
    state         text NOT NULL DEFAULT 'bound'
                  CHECK (state IN ('bound', 'pending', 'settled', 'void', 'disputed')),
    deadline_ms   bigint,
    next_poll_ms  bigint,
    polls         int NOT NULL DEFAULT 0,
    result        jsonb,
    callback      jsonb,
    closed_ms     bigint,
    incarnation   text NOT NULL,
    UNIQUE (upstream, credential, vendor_id)
);
CREATE INDEX binding_account ON binding (account, kind, id);
CREATE INDEX binding_held ON binding (account) WHERE hold_nanos <> 0;
CREATE INDEX binding_due ON binding (next_poll_ms) WHERE state = 'pending';

-- A bound thing was seen in a state: by a client's own poll or a callback. Read by the poller.
CREATE TABLE observation (
    id          uuid PRIMARY KEY,
    at_ms       bigint NOT NULL,
    upstream    text NOT NULL,
    vendor_id   text NOT NULL,
    state       text NOT NULL,
    usage       jsonb NOT NULL,
    incarnation text NOT NULL
);
CREATE INDEX observation_of ON observation (upstream, vendor_id);

-- What control knew about mirrors and credentials, for its next start.
CREATE TABLE health_snapshot (
    node    uuid PRIMARY KEY REFERENCES node,
    content jsonb NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
