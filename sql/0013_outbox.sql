-- Why: customers are told of each change of their tasks at the URL that they named. What is told is written
--      with the change itself, and sent from here until it was taken or a day is over.
-- Locks: binding, api_key's account and station_state for a moment each: no row is written but station_state's.

ALTER TABLE binding DROP COLUMN callback;  -- nothing ever wrote it
ALTER TABLE binding
    ADD COLUMN hook      text,                        -- the customer's URL; NULL: nobody is told
    ADD COLUMN told_mark text   NOT NULL DEFAULT '',  -- the state and the progress that were told last
    ADD COLUMN told_ms   bigint NOT NULL DEFAULT 0,   -- when they were so
    ADD COLUMN told      int    NOT NULL DEFAULT 0;   -- how many events there were

CREATE TABLE outbox (
    id          uuid   PRIMARY KEY,        -- of the event: the same in each try
    binding     uuid   NOT NULL,           -- the call that submitted the task; outlives the row in binding
    sequence    int    NOT NULL,           -- within the task, from 1
    account     bigint NOT NULL REFERENCES account,
    key         bigint NOT NULL,
    host        text   NOT NULL,           -- of the URL: a receiver gets a few requests at once
    url         text   NOT NULL,
    body        text   NOT NULL,           -- as it is sent: JSON
    at_ms       bigint NOT NULL,
    until_ms    bigint NOT NULL,           -- then nobody tries any more
    state       text   NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    next_try_ms bigint NOT NULL,
    tries       int    NOT NULL DEFAULT 0, -- the fencing token of a try: who claims an event counts it up
    closed_ms   bigint,
    status      int    NOT NULL DEFAULT 0, -- what the receiver answered last; 0: nothing
    note        text   NOT NULL DEFAULT '',
    UNIQUE (binding, sequence)
);
CREATE INDEX outbox_due     ON outbox (host, next_try_ms) WHERE state = 'waiting';
CREATE INDEX outbox_order   ON outbox (binding, sequence) WHERE state = 'waiting';
CREATE INDEX outbox_account ON outbox (account, id);
CREATE INDEX outbox_closed  ON outbox (closed_ms) WHERE state <> 'waiting';

CREATE TABLE callback_secret (
    account     bigint PRIMARY KEY REFERENCES account,
    secret      bytea  NOT NULL,
    previous    bytea,                     -- signs beside it until previous_until_ms
    previous_until_ms bigint NOT NULL DEFAULT 0
);

-- What only the processes of this station know: vendors are given URLs that nobody else can make up.
ALTER TABLE station_state ADD COLUMN secret bytea NOT NULL
    DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex');
