-- Why: the money. `ledger` is the truth about balances, `usage` the detail of every call; both are
--      append-only, a correction is a new row. A balance moves only because a ledger row was inserted.
-- Locks: `account`, briefly, for its guard; it was made by the migration before this one.

-- A row's seal: 64 bits of SHA-256 over its content without nulls, so that columns added later leave the
-- seals of older rows as they are. An audit finds an edited row by it.
CREATE FUNCTION seal_of(content jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ('x' || encode(substr(sha256(convert_to(jsonb_strip_nulls(content - 'seal')::text, 'UTF8')), 1, 8),
                          'hex'))::bit(64)::bigint
$$;

CREATE FUNCTION seal_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.seal := seal_of(to_jsonb(NEW));
    RETURN NEW;
END $$;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a correction is a new row', TG_TABLE_NAME USING ERRCODE = '55000';
END $$;

-- Double entry: one row is one posting, `amount_nanos` to the account and its negation to `contra`.
CREATE TABLE ledger (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account       bigint NOT NULL REFERENCES account,
    contra        text NOT NULL CHECK (contra IN ('cash', 'revenue', 'promotion', 'write_off')),
    kind          text NOT NULL CHECK (kind IN ('topup', 'code', 'adjustment', 'refund', 'usage', 'correction')),
    amount_nanos  bigint NOT NULL CHECK (amount_nanos <> 0),
    leased_nanos  bigint NOT NULL DEFAULT 0,  -- the part of a charge that open leases had set aside before
    source        text NOT NULL CHECK (source <> ''),
    reference     text NOT NULL CHECK (reference <> ''),
    paid_amount   numeric,                    -- what was really paid, in the currency it was paid in
    paid_currency text,
    posted_day    date NOT NULL,              -- in the station's time zone; what sums compare
    posted_ms     bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    note          text NOT NULL DEFAULT '',
    seal          bigint NOT NULL,
    UNIQUE (source, reference),
    CHECK ((paid_amount IS NULL) = (paid_currency IS NULL))
);
CREATE INDEX ledger_account ON ledger (account, id);

CREATE TRIGGER seal BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION seal_row();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- After, and by statement: only rows that were really inserted count, and accounts are locked in order.
CREATE FUNCTION ledger_moves_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM account WHERE id IN (SELECT account FROM posted) ORDER BY id FOR NO KEY UPDATE;
    UPDATE account SET
        balance_nanos   = balance_nanos + moved.amount,
        available_nanos = available_nanos + moved.amount + moved.leased,
        ledger_rows     = ledger_rows + moved.rows,
        ledger_seal     = ledger_seal # moved.seal
    FROM (
        SELECT account, sum(amount_nanos)::bigint AS amount, sum(leased_nanos)::bigint AS leased,
               count(*) AS rows, bit_xor(seal) AS seal
        FROM posted GROUP BY account
    ) moved
    WHERE account.id = moved.account;
    RETURN NULL;
END $$;
CREATE TRIGGER balance AFTER INSERT ON ledger REFERENCING NEW TABLE AS posted
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_moves_balance();

CREATE FUNCTION refuse_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the balance of account % moves by ledger rows only', NEW.id USING ERRCODE = '55000';
END $$;
CREATE TRIGGER balance_moves_by_ledger BEFORE UPDATE ON account FOR EACH ROW
    WHEN (pg_trigger_depth() = 0 AND (
        OLD.balance_nanos IS DISTINCT FROM NEW.balance_nanos
        OR OLD.ledger_rows IS DISTINCT FROM NEW.ledger_rows
        OR OLD.ledger_seal IS DISTINCT FROM NEW.ledger_seal))
    EXECUTE FUNCTION refuse_balance();
CREATE TRIGGER balance_begins_at_zero BEFORE INSERT ON account FOR EACH ROW
    WHEN (NEW.balance_nanos <> 0 OR NEW.available_nanos <> 0 OR NEW.ledger_rows <> 0 OR NEW.ledger_seal <> 0)
    EXECUTE FUNCTION refuse_balance();

-- The content of a price under its hash; written before the first row that names it.
CREATE TABLE price (
    id            text PRIMARY KEY,
    content       jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now()
);

-- One row per call: all of its End entry. Partitioned by the time in its id (UUIDv7), so that a replay
-- always meets its first copy; partitions of one day (UTC), made on demand by make_usage_partition().
CREATE TABLE usage (
    id             uuid PRIMARY KEY,
    parent         uuid,
    account        bigint NOT NULL,
    key            bigint NOT NULL,
    posted_day     date NOT NULL,     -- in the station's time zone
    began_ms       bigint NOT NULL,
    ended_ms       bigint NOT NULL,
    state          text NOT NULL CHECK (state IN ('settled', 'void')),
    outcome        text NOT NULL,
    cut            text NOT NULL,
    provenance     text NOT NULL CHECK (provenance IN ('final', 'early', 'counted', 'estimated', 'none')),
    usage          jsonb NOT NULL,    -- the buckets that are not zero
    cost_nanos     bigint NOT NULL CHECK (cost_nanos >= 0),
    free_nanos     bigint NOT NULL,
    hold_nanos     bigint NOT NULL,
    lease          uuid,              -- null: held against an outage allowance
    price          text NOT NULL,
    model_ppm      bigint NOT NULL,
    tier_ppm       bigint NOT NULL,
    multiplied     boolean NOT NULL,
    override       text NOT NULL,
    tier           text NOT NULL,
    model          text NOT NULL,
    operation      text NOT NULL,
    dialect        text NOT NULL,
    endpoint       text NOT NULL,
    generation     bigint NOT NULL,
    stream         boolean NOT NULL,
    status         int NOT NULL,
    upstream       text NOT NULL,
    mirror         text NOT NULL,
    credential     text NOT NULL,
    upstream_id    text NOT NULL,
    upstream_model text NOT NULL,
    attempts       jsonb NOT NULL,
    flags          jsonb NOT NULL,
    request_bytes  bigint NOT NULL,
    response_bytes bigint NOT NULL,
    events         bigint NOT NULL,
    rurt_ms        int NOT NULL,
    ttft_ms        int NOT NULL,      -- -1: no byte of an answer came
    took_ms        int NOT NULL,
    client         text NOT NULL,
    incarnation    text NOT NULL,     -- whose journal it came from
    seal           bigint NOT NULL    -- 64 bits of SHA-256 over the row, made by the drainer
) PARTITION BY RANGE (id);
CREATE INDEX usage_account ON usage (account, id);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- The smallest id of a day: 48 bits of milliseconds, then zeros.
CREATE FUNCTION first_id_of(day date) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT rpad(lpad(to_hex((day - DATE '1970-01-01')::bigint * 86400000), 12, '0'), 32, '0')::uuid
$$;

-- Made beside the parent and attached, which blocks neither readers nor writers of other days.
CREATE FUNCTION make_usage_partition(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := 'usage_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('make_usage_partition'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE usage INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', name);
    EXECUTE format('ALTER TABLE usage ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   name, first_id_of(day), first_id_of(day + 1));
END $$;

-- A call whose figures were still being counted when it ended; its Settle entry makes the usage row.
CREATE TABLE pending_usage (
    id          uuid PRIMARY KEY,
    account     bigint NOT NULL REFERENCES account,
    lease       uuid,
    hold_nanos  bigint NOT NULL,
    entry       jsonb NOT NULL,   -- the End entry as journaled
    incarnation text NOT NULL,
    since_ms    bigint NOT NULL
);

-- What became known about a closed call afterwards. `cost_nanos` is the call's cost from then on.
CREATE TABLE correction (
    id          uuid PRIMARY KEY,
    corrects    uuid NOT NULL,
    account     bigint NOT NULL REFERENCES account,
    posted_day  date NOT NULL,
    at_ms       bigint NOT NULL,
    delta_nanos bigint NOT NULL,  -- cost_nanos less what the call had cost until then
    cost_nanos  bigint NOT NULL CHECK (cost_nanos >= 0),
    provenance  text NOT NULL,
    usage       jsonb NOT NULL,
    incarnation text NOT NULL,
    seal        bigint NOT NULL
);
CREATE INDEX correction_corrects ON correction (corrects);
CREATE TRIGGER seal BEFORE INSERT ON correction FOR EACH ROW EXECUTE FUNCTION seal_row();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON correction
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
