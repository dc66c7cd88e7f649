-- Why: what an operator sells: tiers earned by top-ups, free quota that is really spent, prices of single
--      accounts, payments and what comes back of them, redeem codes, holders who sign up and log in, keys
--      that are rotated. And upstream cost beside every sale.
-- Locks: `account`, `ledger`, `usage` and `correction` for a moment (new columns without a rewrite; the check
--      on ledger.kind reads the ledger once), `pocket`, `tier_grant`: nobody wrote to them before.

-- -- accounts -----------------------------------------------------------------------------------------

ALTER TABLE account
    ADD COLUMN contact     text NOT NULL DEFAULT '',
    ADD COLUMN password    text,               -- scrypt; null: nobody logs in
    ADD COLUMN tier_rank   int,                -- of `tier` when it was last looked at; a grant has to be above it
    ADD COLUMN earned_upto bigint NOT NULL DEFAULT 0,  -- ledger row up to which payments were looked at
    ADD COLUMN due_at      timestamptz DEFAULT '-infinity';  -- when tier and free quota are looked at again
CREATE INDEX account_due ON account (due_at) WHERE due_at IS NOT NULL;

COMMENT ON COLUMN account.available_nanos IS
    'balance and what is left of the open pocket, less what open leases and pending tasks set aside';

CREATE FUNCTION account_is_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.due_at := '-infinity';
    RETURN NEW;
END $$;
CREATE TRIGGER due BEFORE UPDATE OF tier ON account FOR EACH ROW
    WHEN (OLD.tier IS DISTINCT FROM NEW.tier) EXECUTE FUNCTION account_is_due();

CREATE OR REPLACE FUNCTION account_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE api_key SET generation = 0 WHERE account = NEW.id;
    RETURN NULL;
END $$;
DROP TRIGGER changed ON account;
CREATE TRIGGER changed AFTER UPDATE OF name, status, tier, tier_rank ON account
    FOR EACH ROW EXECUTE FUNCTION account_changed();

CREATE TABLE session (
    digest      bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    account     bigint NOT NULL REFERENCES account,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX session_account ON session (account);

-- -- keys ---------------------------------------------------------------------------------------------

-- What a rotated key was before: the same key, refused from `until` on.
CREATE TABLE old_key (
    digest      bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    key         bigint NOT NULL REFERENCES api_key,
    masked      text NOT NULL,
    until       timestamptz NOT NULL
);
CREATE INDEX old_key_key ON old_key (key);

ALTER TABLE api_key ADD COLUMN note text NOT NULL DEFAULT '';

-- -- tiers and free quota -----------------------------------------------------------------------------

ALTER TABLE tier_grant ADD COLUMN payments bigint[] NOT NULL DEFAULT '{}';  -- ledger rows that earned it
CREATE OR REPLACE FUNCTION tier_grant_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE account SET due_at = '-infinity' WHERE id = NEW.account;
    UPDATE api_key SET generation = 0 WHERE account = NEW.account;
    RETURN NULL;
END $$;

-- What is left of an open pocket is available beside the balance; calls that began within its period use it
-- first, also when it is closed.
ALTER TABLE pocket
    DROP COLUMN leased_nanos,
    ADD COLUMN closed_at timestamptz,
    ADD CHECK (used_nanos BETWEEN 0 AND amount_nanos);
CREATE UNIQUE INDEX pocket_open ON pocket (account) WHERE closed_at IS NULL;

CREATE FUNCTION pocket_moves_available() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    more bigint := CASE WHEN NEW.closed_at IS NULL THEN NEW.amount_nanos - NEW.used_nanos ELSE 0 END;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.closed_at IS NULL THEN
        more := more - (OLD.amount_nanos - OLD.used_nanos);
    END IF;
    UPDATE account SET available_nanos = available_nanos + more WHERE id = NEW.account;
    RETURN NULL;
END $$;
CREATE TRIGGER available AFTER INSERT OR UPDATE ON pocket
    FOR EACH ROW EXECUTE FUNCTION pocket_moves_available();

-- The tiers and quotas of routes.yaml that all accounts were looked at with.
ALTER TABLE station_state ADD COLUMN reviewed_rules text;

ALTER TABLE usage
    ADD COLUMN pocket         bigint,   -- whose `free_nanos` they are
    ADD COLUMN upstream_nanos bigint;   -- what the upstream takes, as far as is declared; null: not known
ALTER TABLE correction
    ADD COLUMN charged_nanos  bigint;   -- of delta_nanos what the balance saw: less than it after a free or
                                        -- refunded call; null: all of it

-- -- prices of single accounts ------------------------------------------------------------------------

CREATE TABLE price_override (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     bigint NOT NULL REFERENCES account,
    model       text NOT NULL CHECK (model <> ''),   -- a name or a glob
    ppm         bigint CHECK (ppm >= 0),             -- instead of both multipliers
    content     jsonb,                               -- instead of the price and both multipliers
    note        text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    CHECK ((ppm IS NULL) <> (content IS NULL))
);
CREATE UNIQUE INDEX price_override_current ON price_override (account, model) WHERE ended_at IS NULL;
CREATE TRIGGER changed AFTER INSERT OR UPDATE ON price_override
    FOR EACH ROW EXECUTE FUNCTION tier_grant_changed();

-- -- payments -----------------------------------------------------------------------------------------

ALTER TABLE ledger
    ADD COLUMN undoes bigint,  -- the payment that a refund or a chargeback takes back
    DROP CONSTRAINT ledger_kind_check,
    ADD CONSTRAINT ledger_kind_check CHECK (kind IN ('topup', 'code', 'trial', 'adjustment', 'refund',
                                                     'chargeback', 'usage', 'correction'));
CREATE INDEX ledger_undoes ON ledger (undoes) WHERE undoes IS NOT NULL;

CREATE FUNCTION ledger_wakes_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE account SET due_at = '-infinity' WHERE id = NEW.account;
    RETURN NULL;
END $$;
CREATE TRIGGER wakes AFTER INSERT ON ledger FOR EACH ROW
    WHEN (NEW.kind NOT IN ('usage', 'correction')) EXECUTE FUNCTION ledger_wakes_account();

CREATE TABLE code (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest       bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    masked       text NOT NULL,
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),
    expires_at   timestamptz,
    note         text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    redeemed_by  bigint REFERENCES account,
    redeemed_at  timestamptz
);

-- What a holder is about to pay; the gateway's word about it has to name the same amount.
CREATE TABLE payment_order (
    id           uuid PRIMARY KEY,
    account      bigint NOT NULL REFERENCES account,
    gateway      text NOT NULL,
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),  -- what the balance gets
    price        numeric NOT NULL CHECK (price > 0),        -- what has to be paid
    currency     text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    paid         bigint               -- the ledger row
);
CREATE INDEX payment_order_account ON payment_order (account, created_at);
