-- Why: who submits a task twice, by an Idempotency-Key or by a double click, gets one job and one charge; and
--      a callback about a disputed task makes it due once more.
-- Locks: binding for as long as its index of due tasks takes to build (those that wait, not all); the table
--      is new.

UPDATE binding SET next_poll_ms = NULL WHERE state <> 'pending' AND next_poll_ms IS NOT NULL;
DROP INDEX binding_due;
CREATE INDEX binding_due ON binding (upstream, kind, next_poll_ms) WHERE next_poll_ms IS NOT NULL;

CREATE TABLE submission (
    account     bigint NOT NULL REFERENCES account,
    name        bytea  NOT NULL,  -- SHA-256 of what makes submits one: a key, or what two clicks have in common
    request     bytea  NOT NULL,  -- SHA-256 of what was asked for
    call        uuid   NOT NULL,  -- that has it now
    incarnation text   NOT NULL,  -- the life of the worker that has the call
    until_ms    bigint NOT NULL,  -- from then on the next one is a new one
    answer      jsonb,            -- of a call that started its task
    PRIMARY KEY (account, name)
);
CREATE INDEX submission_call ON submission (call);
CREATE INDEX submission_until ON submission (until_ms);
