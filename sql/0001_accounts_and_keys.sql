-- Why: who pays and who may call. Accounts own keys; a key is kept as the SHA-256 of its 256 random bits,
--      so that a dump of this database authenticates nobody.
-- Locks: nothing, all tables are new.

-- One row. Every change of what a key may do raises `generation`; control asks for what is newer than the
-- generation it knows. Writers queue on this row until they commit, so nobody sees 8 before 7 is visible.
CREATE TABLE station_state (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation  bigint NOT NULL DEFAULT 1,
    currency    text,           -- set once: every amount in this database is in its nano-units
    timezone    text NOT NULL DEFAULT 'UTC'  -- whose midnight ends a posted day; as routes.yaml says
);
INSERT INTO station_state DEFAULT VALUES;

CREATE TABLE account (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'frozen', 'closed')),
    tier            text,       -- null: the station's default tier; grants come before it
    note            text NOT NULL DEFAULT '',
    balance_nanos   bigint NOT NULL DEFAULT 0,  -- the sum of its ledger rows, kept by their trigger alone
    available_nanos bigint NOT NULL DEFAULT 0,  -- balance less what open leases and pending tasks set aside
    ledger_rows     bigint NOT NULL DEFAULT 0,
    ledger_seal     bigint NOT NULL DEFAULT 0,  -- xor of the seals of its ledger rows
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_key (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     bigint NOT NULL REFERENCES account,
    digest      bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    masked      text NOT NULL,
    label       text NOT NULL DEFAULT '',
    status      text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'revoked')),
    mirror      jsonb NOT NULL DEFAULT '"auto"',  -- "auto", a name, or names in the order to try
    permissions jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(permissions) = 'object'),
                                                  -- models, routes, endpoints: globs; absent: all
    limits      jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(limits) = 'object'),
                                                  -- requests_per_minute, concurrency; absent: the tier's
    ip_allow    text[],
    expires_at  timestamptz,
    generation  bigint NOT NULL DEFAULT 0,        -- of station_state at the last change; set by trigger
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);
CREATE INDEX api_key_account ON api_key (account);
CREATE INDEX api_key_generation ON api_key (generation);

-- A tier that was earned or given, with its end. Not recomputed by a reload; a refund revokes.
CREATE TABLE tier_grant (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     bigint NOT NULL REFERENCES account,
    tier        text NOT NULL,
    rank        int NOT NULL,   -- of the tier when it was granted; the higher one wins
    starts_at   timestamptz NOT NULL,
    until       timestamptz,    -- null: for good
    source      text NOT NULL,
    reference   text NOT NULL,
    revoked_at  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (source, reference, tier)
);
CREATE INDEX tier_grant_account ON tier_grant (account);

-- Free quota of one account in one period.
CREATE TABLE pocket (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account       bigint NOT NULL REFERENCES account,
    period_start  timestamptz NOT NULL,
    period_end    timestamptz NOT NULL CHECK (period_end > period_start),
    amount_nanos  bigint NOT NULL CHECK (amount_nanos >= 0),
    leased_nanos  bigint NOT NULL DEFAULT 0,
    used_nanos    bigint NOT NULL DEFAULT 0,
    UNIQUE (account, period_start)
);

-- Changes of keys: triggers, so that an operator's psql is noticed like our own command line.

CREATE FUNCTION next_generation() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    now_at bigint;
BEGIN
    UPDATE station_state SET generation = generation + 1 RETURNING generation INTO now_at;
    PERFORM pg_notify('headrace_keys', now_at::text);
    RETURN now_at;
END $$;

CREATE FUNCTION api_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.generation := next_generation();
    RETURN NEW;
END $$;
CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON api_key
    FOR EACH ROW EXECUTE FUNCTION api_key_changed();

CREATE FUNCTION account_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE api_key SET generation = 0 WHERE account = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER changed AFTER UPDATE OF name, status, tier ON account
    FOR EACH ROW EXECUTE FUNCTION account_changed();

CREATE FUNCTION tier_grant_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE api_key SET generation = 0 WHERE account = NEW.account;
    RETURN NULL;
END $$;
CREATE TRIGGER changed AFTER INSERT OR UPDATE ON tier_grant
    FOR EACH ROW EXECUTE FUNCTION tier_grant_changed();
