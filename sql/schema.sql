-- Made by `python -m tests.store.schema_dump` from the migrations beside it; a test compares it.

CREATE FUNCTION public.account_changed() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE api_key SET generation = 0 WHERE account = NEW.id;
    RETURN NULL;
END $$;

CREATE FUNCTION public.account_is_due() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.due_at := '-infinity';
    RETURN NEW;
END $$;

CREATE FUNCTION public.api_key_changed() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.generation := next_generation();
    RETURN NEW;
END $$;

CREATE FUNCTION public.draw_limit(the_bucket text, the_end bigint, the_holder text, the_node uuid, amount bigint, need bigint, want bigint, OUT total bigint, OUT remaining bigint) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    taken bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(the_bucket, the_end));
    SELECT coalesce(sum(s.granted), 0), coalesce(sum(s.granted) FILTER (WHERE s.holder = the_holder), 0)
    INTO taken, total
    FROM limit_slice s JOIN node n ON n.id = s.node
    WHERE s.bucket = the_bucket AND s.ends_ms = the_end
      AND (the_end > 0 OR s.holder = the_holder OR (n.alive_until > now() AND n.retired_at IS NULL));
    remaining := amount - taken;
    IF remaining >= need THEN
        want := least(want, remaining);
        INSERT INTO limit_slice AS s (bucket, ends_ms, holder, node, granted)
        VALUES (the_bucket, the_end, the_holder, the_node, want)
        ON CONFLICT (bucket, ends_ms, holder, node) DO UPDATE SET granted = s.granted + want;
        total := total + want;
        remaining := remaining - want;
    END IF;
END $$;

CREATE FUNCTION public.first_id_of(day date) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    SELECT rpad(lpad(to_hex((day - DATE '1970-01-01')::bigint * 86400000), 12, '0'), 32, '0')::uuid
$$;

CREATE FUNCTION public.ledger_moves_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.ledger_wakes_account() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE account SET due_at = '-infinity' WHERE id = NEW.account;
    RETURN NULL;
END $$;

CREATE FUNCTION public.make_usage_partition(day date) RETURNS void
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.next_generation() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    now_at bigint;
BEGIN
    UPDATE station_state SET generation = generation + 1 RETURNING generation INTO now_at;
    PERFORM pg_notify('headrace_keys', now_at::text);
    RETURN now_at;
END $$;

CREATE FUNCTION public.pocket_moves_available() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    more bigint := CASE WHEN NEW.closed_at IS NULL THEN NEW.amount_nanos - NEW.used_nanos ELSE 0 END;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.closed_at IS NULL THEN
        more := more - (OLD.amount_nanos - OLD.used_nanos);
    END IF;
    UPDATE account SET available_nanos = available_nanos + more WHERE id = NEW.account;
    RETURN NULL;
END $$;

CREATE FUNCTION public.refuse_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the balance of account % moves by ledger rows only', NEW.id USING ERRCODE = '55000';
END $$;

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a correction is a new row', TG_TABLE_NAME USING ERRCODE = '55000';
END $$;

CREATE FUNCTION public.seal_of(content jsonb) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    SELECT ('x' || encode(substr(sha256(convert_to(jsonb_strip_nulls(content - 'seal')::text, 'UTF8')), 1, 8),
                          'hex'))::bit(64)::bigint
$$;

CREATE FUNCTION public.seal_row() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.seal := seal_of(to_jsonb(NEW));
    RETURN NEW;
END $$;

CREATE FUNCTION public.tier_grant_changed() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE account SET due_at = '-infinity' WHERE id = NEW.account;
    UPDATE api_key SET generation = 0 WHERE account = NEW.account;
    RETURN NULL;
END $$;

CREATE TABLE public.account (
    id bigint NOT NULL,
    name text NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    tier text,
    note text DEFAULT ''::text NOT NULL,
    balance_nanos bigint DEFAULT 0 NOT NULL,
    available_nanos bigint DEFAULT 0 NOT NULL,
    ledger_rows bigint DEFAULT 0 NOT NULL,
    ledger_seal bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    contact text DEFAULT ''::text NOT NULL,
    password text,
    tier_rank integer,
    earned_upto bigint DEFAULT 0 NOT NULL,
    due_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone,
    mirror jsonb DEFAULT '"auto"'::jsonb NOT NULL,
    limits jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT account_limits_check CHECK ((jsonb_typeof(limits) = 'object'::text)),
    CONSTRAINT account_name_check CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT account_status_check CHECK ((status = ANY (ARRAY['active'::text, 'frozen'::text, 'closed'::text])))
);

COMMENT ON COLUMN public.account.available_nanos IS 'balance and what is left of the open pocket, less what open leases and pending tasks set aside';

ALTER TABLE public.account ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.account_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.allowance (
    id uuid NOT NULL,
    account bigint NOT NULL,
    at_ms bigint NOT NULL,
    amount_nanos bigint NOT NULL,
    incarnation text NOT NULL
);

CREATE TABLE public.api_key (
    id bigint NOT NULL,
    account bigint NOT NULL,
    digest bytea NOT NULL,
    masked text NOT NULL,
    label text DEFAULT ''::text NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    mirror jsonb DEFAULT '"auto"'::jsonb NOT NULL,
    permissions jsonb DEFAULT '{}'::jsonb NOT NULL,
    limits jsonb DEFAULT '{}'::jsonb NOT NULL,
    ip_allow text[],
    expires_at timestamp with time zone,
    generation bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    revoked_at timestamp with time zone,
    note text DEFAULT ''::text NOT NULL,
    CONSTRAINT api_key_digest_check CHECK ((octet_length(digest) = 32)),
    CONSTRAINT api_key_limits_check CHECK ((jsonb_typeof(limits) = 'object'::text)),
    CONSTRAINT api_key_permissions_check CHECK ((jsonb_typeof(permissions) = 'object'::text)),
    CONSTRAINT api_key_status_check CHECK ((status = ANY (ARRAY['active'::text, 'revoked'::text])))
);

ALTER TABLE public.api_key ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.api_key_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.binding (
    id uuid NOT NULL,
    account bigint NOT NULL,
    key bigint NOT NULL,
    kind text NOT NULL,
    vendor_id text NOT NULL,
    upstream text NOT NULL,
    mirror text NOT NULL,
    credential text NOT NULL,
    at_ms bigint NOT NULL,
    hold_nanos bigint DEFAULT 0 NOT NULL,
    state text DEFAULT 'bound'::text NOT NULL,
    deadline_ms bigint,
    next_poll_ms bigint,
    polls integer DEFAULT 0 NOT NULL,
    content jsonb,
    closed_ms bigint,
    incarnation text NOT NULL,
    entry jsonb,
    failures integer DEFAULT 0 NOT NULL,
    note text DEFAULT ''::text NOT NULL,
    gone_ms bigint,
    hook text,
    told_mark text DEFAULT ''::text NOT NULL,
    told_ms bigint DEFAULT 0 NOT NULL,
    told integer DEFAULT 0 NOT NULL,
    CONSTRAINT binding_state_check CHECK ((state = ANY (ARRAY['bound'::text, 'pending'::text, 'settled'::text, 'void'::text, 'disputed'::text])))
);

COMMENT ON COLUMN public.binding.deadline_ms IS 'when a pending task becomes disputed, a disputed one void';

COMMENT ON COLUMN public.binding.polls IS 'the fencing token of a poll: who claims a task counts it up';

CREATE TABLE public.callback_secret (
    account bigint NOT NULL,
    secret bytea NOT NULL,
    previous bytea,
    previous_until_ms bigint DEFAULT 0 NOT NULL
);

CREATE TABLE public.code (
    id bigint NOT NULL,
    digest bytea NOT NULL,
    masked text NOT NULL,
    amount_nanos bigint NOT NULL,
    expires_at timestamp with time zone,
    note text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    redeemed_by bigint,
    redeemed_at timestamp with time zone,
    CONSTRAINT code_amount_nanos_check CHECK ((amount_nanos > 0)),
    CONSTRAINT code_digest_check CHECK ((octet_length(digest) = 32))
);

ALTER TABLE public.code ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.code_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.correction (
    id uuid NOT NULL,
    corrects uuid NOT NULL,
    account bigint NOT NULL,
    posted_day date NOT NULL,
    at_ms bigint NOT NULL,
    delta_nanos bigint NOT NULL,
    cost_nanos bigint NOT NULL,
    provenance text NOT NULL,
    usage jsonb NOT NULL,
    incarnation text NOT NULL,
    seal bigint NOT NULL,
    charged_nanos bigint,
    CONSTRAINT correction_cost_nanos_check CHECK ((cost_nanos >= 0))
);

CREATE TABLE public.health_snapshot (
    node uuid NOT NULL,
    content jsonb NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.incarnation (
    id text NOT NULL,
    node uuid NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    closed_at timestamp with time zone
);

CREATE TABLE public.lease (
    id uuid NOT NULL,
    node uuid NOT NULL,
    incarnation text NOT NULL,
    account bigint NOT NULL,
    granted_nanos bigint NOT NULL,
    used_nanos bigint DEFAULT 0 NOT NULL,
    opened_at timestamp with time zone DEFAULT now() NOT NULL,
    closed_at timestamp with time zone,
    CONSTRAINT lease_granted_nanos_check CHECK ((granted_nanos >= 0))
);

CREATE TABLE public.lease_use (
    lease uuid NOT NULL,
    incarnation text NOT NULL,
    used_nanos bigint NOT NULL
);

CREATE TABLE public.ledger (
    id bigint NOT NULL,
    account bigint NOT NULL,
    contra text NOT NULL,
    kind text NOT NULL,
    amount_nanos bigint NOT NULL,
    leased_nanos bigint DEFAULT 0 NOT NULL,
    source text NOT NULL,
    reference text NOT NULL,
    paid_amount numeric,
    paid_currency text,
    posted_day date NOT NULL,
    posted_ms bigint DEFAULT ((EXTRACT(epoch FROM clock_timestamp()) * (1000)::numeric))::bigint NOT NULL,
    note text DEFAULT ''::text NOT NULL,
    seal bigint NOT NULL,
    undoes bigint,
    CONSTRAINT ledger_amount_nanos_check CHECK ((amount_nanos <> 0)),
    CONSTRAINT ledger_check CHECK (((paid_amount IS NULL) = (paid_currency IS NULL))),
    CONSTRAINT ledger_contra_check CHECK ((contra = ANY (ARRAY['cash'::text, 'revenue'::text, 'promotion'::text, 'write_off'::text]))),
    CONSTRAINT ledger_kind_check CHECK ((kind = ANY (ARRAY['topup'::text, 'code'::text, 'trial'::text, 'adjustment'::text, 'refund'::text, 'chargeback'::text, 'usage'::text, 'correction'::text]))),
    CONSTRAINT ledger_reference_check CHECK ((reference <> ''::text)),
    CONSTRAINT ledger_source_check CHECK ((source <> ''::text))
);

ALTER TABLE public.ledger ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.ledger_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.limit_slice (
    bucket text NOT NULL,
    ends_ms bigint NOT NULL,
    holder text NOT NULL,
    node uuid NOT NULL,
    granted bigint NOT NULL
);

CREATE TABLE public.node (
    id uuid NOT NULL,
    first_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    retired_at timestamp with time zone,
    alive_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL
);

CREATE TABLE public.observation (
    id uuid NOT NULL,
    at_ms bigint NOT NULL,
    upstream text NOT NULL,
    vendor_id text NOT NULL,
    state text NOT NULL,
    usage jsonb NOT NULL,
    incarnation text NOT NULL,
    credential text DEFAULT ''::text NOT NULL,
    parts jsonb DEFAULT '[]'::jsonb NOT NULL
);

CREATE TABLE public.old_key (
    digest bytea NOT NULL,
    key bigint NOT NULL,
    masked text NOT NULL,
    until timestamp with time zone NOT NULL,
    CONSTRAINT old_key_digest_check CHECK ((octet_length(digest) = 32))
);

CREATE TABLE public.outbox (
    id uuid NOT NULL,
    binding uuid NOT NULL,
    sequence integer NOT NULL,
    account bigint NOT NULL,
    key bigint NOT NULL,
    host text NOT NULL,
    url text NOT NULL,
    body text NOT NULL,
    at_ms bigint NOT NULL,
    until_ms bigint NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    next_try_ms bigint NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    closed_ms bigint,
    status integer DEFAULT 0 NOT NULL,
    note text DEFAULT ''::text NOT NULL,
    CONSTRAINT outbox_state_check CHECK ((state = ANY (ARRAY['waiting'::text, 'delivered'::text, 'failed'::text])))
);

CREATE TABLE public.payment_order (
    id uuid NOT NULL,
    account bigint NOT NULL,
    gateway text NOT NULL,
    amount_nanos bigint NOT NULL,
    price numeric NOT NULL,
    currency text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    paid bigint,
    CONSTRAINT payment_order_amount_nanos_check CHECK ((amount_nanos > 0)),
    CONSTRAINT payment_order_price_check CHECK ((price > (0)::numeric))
);

CREATE TABLE public.pending_usage (
    id uuid NOT NULL,
    account bigint NOT NULL,
    lease uuid,
    hold_nanos bigint NOT NULL,
    entry jsonb NOT NULL,
    incarnation text NOT NULL,
    since_ms bigint NOT NULL
);

CREATE TABLE public.pocket (
    id bigint NOT NULL,
    account bigint NOT NULL,
    period_start timestamp with time zone NOT NULL,
    period_end timestamp with time zone NOT NULL,
    amount_nanos bigint NOT NULL,
    used_nanos bigint DEFAULT 0 NOT NULL,
    closed_at timestamp with time zone,
    CONSTRAINT pocket_amount_nanos_check CHECK ((amount_nanos >= 0)),
    CONSTRAINT pocket_check CHECK ((period_end > period_start)),
    CONSTRAINT pocket_check1 CHECK (((used_nanos >= 0) AND (used_nanos <= amount_nanos)))
);

ALTER TABLE public.pocket ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.pocket_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.price (
    id text NOT NULL,
    content jsonb NOT NULL,
    first_seen_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.price_override (
    id bigint NOT NULL,
    account bigint NOT NULL,
    model text NOT NULL,
    ppm bigint,
    content jsonb,
    note text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT price_override_check CHECK (((ppm IS NULL) <> (content IS NULL))),
    CONSTRAINT price_override_model_check CHECK ((model <> ''::text)),
    CONSTRAINT price_override_ppm_check CHECK ((ppm >= 0))
);

ALTER TABLE public.price_override ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.price_override_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.quarantine (
    id bigint NOT NULL,
    incarnation text NOT NULL,
    segment integer NOT NULL,
    "position" bigint NOT NULL,
    reason text NOT NULL,
    payload bytea NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    resolved_at timestamp with time zone
);

ALTER TABLE public.quarantine ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.quarantine_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.recall (
    owner text NOT NULL,
    at timestamp with time zone NOT NULL
);

CREATE TABLE public.result (
    id text NOT NULL,
    binding uuid NOT NULL,
    account bigint NOT NULL,
    url text NOT NULL,
    ordered_ms bigint NOT NULL,
    state text DEFAULT 'ordered'::text NOT NULL,
    next_try_ms bigint,
    tries integer DEFAULT 0 NOT NULL,
    refusals integer DEFAULT 0 NOT NULL,
    note text DEFAULT ''::text NOT NULL,
    shelf text DEFAULT ''::text NOT NULL,
    node uuid,
    size bigint DEFAULT 0 NOT NULL,
    sha256 bytea,
    content_type text DEFAULT ''::text NOT NULL,
    kept_ms bigint,
    expires_ms bigint,
    CONSTRAINT result_state_check CHECK ((state = ANY (ARRAY['ordered'::text, 'kept'::text, 'left'::text, 'lost'::text, 'gone'::text])))
);

COMMENT ON COLUMN public.result.state IS 'left: stays at its vendor, our link leads there; lost: its vendor has it no more; gone: we have removed it';

CREATE TABLE public.schema_version (
    version integer NOT NULL,
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.segment_cursor (
    incarnation text NOT NULL,
    segment integer NOT NULL,
    "position" bigint NOT NULL,
    begins bigint DEFAULT 0 NOT NULL,
    ends bigint DEFAULT 0 NOT NULL,
    entries bigint DEFAULT 0 NOT NULL,
    moved_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.session (
    digest bytea NOT NULL,
    account bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT session_digest_check CHECK ((octet_length(digest) = 32))
);

CREATE TABLE public.station_state (
    only_row boolean DEFAULT true NOT NULL,
    generation bigint DEFAULT 1 NOT NULL,
    currency text,
    timezone text DEFAULT 'UTC'::text NOT NULL,
    reviewed_rules text,
    secret bytea DEFAULT decode(replace(((gen_random_uuid())::text || (gen_random_uuid())::text), '-'::text, ''::text), 'hex'::text) NOT NULL,
    CONSTRAINT station_state_only_row_check CHECK (only_row)
);

CREATE TABLE public.submission (
    account bigint NOT NULL,
    name bytea NOT NULL,
    request bytea NOT NULL,
    call uuid NOT NULL,
    incarnation text NOT NULL,
    until_ms bigint NOT NULL,
    answer jsonb
);

CREATE TABLE public.tier_grant (
    id bigint NOT NULL,
    account bigint NOT NULL,
    tier text NOT NULL,
    rank integer NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    until timestamp with time zone,
    source text NOT NULL,
    reference text NOT NULL,
    revoked_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    payments bigint[] DEFAULT '{}'::bigint[] NOT NULL
);

ALTER TABLE public.tier_grant ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.tier_grant_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.usage (
    id uuid NOT NULL,
    parent uuid,
    account bigint NOT NULL,
    key bigint NOT NULL,
    posted_day date NOT NULL,
    began_ms bigint NOT NULL,
    ended_ms bigint NOT NULL,
    state text NOT NULL,
    outcome text NOT NULL,
    cut text NOT NULL,
    provenance text NOT NULL,
    usage jsonb NOT NULL,
    cost_nanos bigint NOT NULL,
    free_nanos bigint NOT NULL,
    hold_nanos bigint NOT NULL,
    lease uuid,
    price text NOT NULL,
    model_ppm bigint NOT NULL,
    tier_ppm bigint NOT NULL,
    multiplied boolean NOT NULL,
    override text NOT NULL,
    tier text NOT NULL,
    model text NOT NULL,
    operation text NOT NULL,
    dialect text NOT NULL,
    endpoint text NOT NULL,
    generation bigint NOT NULL,
    stream boolean NOT NULL,
    status integer NOT NULL,
    upstream text NOT NULL,
    mirror text NOT NULL,
    credential text NOT NULL,
    upstream_id text NOT NULL,
    upstream_model text NOT NULL,
    attempts jsonb NOT NULL,
    flags jsonb NOT NULL,
    request_bytes bigint NOT NULL,
    response_bytes bigint NOT NULL,
    events bigint NOT NULL,
    rurt_ms integer NOT NULL,
    ttft_ms integer NOT NULL,
    took_ms integer NOT NULL,
    client text NOT NULL,
    incarnation text NOT NULL,
    seal bigint NOT NULL,
    pocket bigint,
    upstream_nanos bigint,
    CONSTRAINT usage_cost_nanos_check CHECK ((cost_nanos >= 0)),
    CONSTRAINT usage_provenance_check CHECK ((provenance = ANY (ARRAY['final'::text, 'early'::text, 'counted'::text, 'estimated'::text, 'none'::text]))),
    CONSTRAINT usage_state_check CHECK ((state = ANY (ARRAY['settled'::text, 'void'::text])))
)
PARTITION BY RANGE (id);

ALTER TABLE ONLY public.account
    ADD CONSTRAINT account_name_key UNIQUE (name);

ALTER TABLE ONLY public.account
    ADD CONSTRAINT account_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.allowance
    ADD CONSTRAINT allowance_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_digest_key UNIQUE (digest);

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.binding
    ADD CONSTRAINT binding_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.binding
    ADD CONSTRAINT binding_upstream_credential_vendor_id_key UNIQUE (upstream, credential, vendor_id);

ALTER TABLE ONLY public.callback_secret
    ADD CONSTRAINT callback_secret_pkey PRIMARY KEY (account);

ALTER TABLE ONLY public.code
    ADD CONSTRAINT code_digest_key UNIQUE (digest);

ALTER TABLE ONLY public.code
    ADD CONSTRAINT code_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.correction
    ADD CONSTRAINT correction_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.health_snapshot
    ADD CONSTRAINT health_snapshot_pkey PRIMARY KEY (node);

ALTER TABLE ONLY public.incarnation
    ADD CONSTRAINT incarnation_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.lease
    ADD CONSTRAINT lease_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.lease_use
    ADD CONSTRAINT lease_use_pkey PRIMARY KEY (lease, incarnation);

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT ledger_source_reference_key UNIQUE (source, reference);

ALTER TABLE ONLY public.limit_slice
    ADD CONSTRAINT limit_slice_pkey PRIMARY KEY (bucket, ends_ms, holder, node);

ALTER TABLE ONLY public.node
    ADD CONSTRAINT node_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.observation
    ADD CONSTRAINT observation_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.old_key
    ADD CONSTRAINT old_key_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_binding_sequence_key UNIQUE (binding, sequence);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.payment_order
    ADD CONSTRAINT payment_order_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.pending_usage
    ADD CONSTRAINT pending_usage_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.pocket
    ADD CONSTRAINT pocket_account_period_start_key UNIQUE (account, period_start);

ALTER TABLE ONLY public.pocket
    ADD CONSTRAINT pocket_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.price_override
    ADD CONSTRAINT price_override_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.price
    ADD CONSTRAINT price_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.quarantine
    ADD CONSTRAINT quarantine_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.recall
    ADD CONSTRAINT recall_pkey PRIMARY KEY (owner);

ALTER TABLE ONLY public.result
    ADD CONSTRAINT result_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.segment_cursor
    ADD CONSTRAINT segment_cursor_pkey PRIMARY KEY (incarnation, segment);

ALTER TABLE ONLY public.session
    ADD CONSTRAINT session_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY public.station_state
    ADD CONSTRAINT station_state_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_pkey PRIMARY KEY (account, name);

ALTER TABLE ONLY public.tier_grant
    ADD CONSTRAINT tier_grant_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.tier_grant
    ADD CONSTRAINT tier_grant_source_reference_tier_key UNIQUE (source, reference, tier);

ALTER TABLE ONLY public.usage
    ADD CONSTRAINT usage_pkey PRIMARY KEY (id);

CREATE INDEX account_due ON public.account USING btree (due_at) WHERE (due_at IS NOT NULL);

CREATE INDEX allowance_account ON public.allowance USING btree (account, at_ms);

CREATE INDEX api_key_account ON public.api_key USING btree (account);

CREATE INDEX api_key_generation ON public.api_key USING btree (generation);

CREATE INDEX binding_account ON public.binding USING btree (account, kind, id);

CREATE INDEX binding_disputed ON public.binding USING btree (deadline_ms) WHERE (state = 'disputed'::text);

CREATE INDEX binding_due ON public.binding USING btree (upstream, kind, next_poll_ms) WHERE (next_poll_ms IS NOT NULL);

CREATE INDEX binding_held ON public.binding USING btree (account) WHERE (hold_nanos <> 0);

CREATE INDEX binding_vendor_id ON public.binding USING btree (vendor_id, account);

CREATE INDEX correction_corrects ON public.correction USING btree (corrects);

CREATE INDEX correction_posted ON public.correction USING btree (account, posted_day, id);

CREATE INDEX incarnation_node ON public.incarnation USING btree (node);

CREATE INDEX lease_open ON public.lease USING btree (account) WHERE (closed_at IS NULL);

CREATE INDEX lease_open_of_node ON public.lease USING btree (node, incarnation) WHERE (closed_at IS NULL);

CREATE INDEX ledger_account ON public.ledger USING btree (account, id);

CREATE INDEX ledger_payments ON public.ledger USING btree (account, id) WHERE (kind <> ALL (ARRAY['usage'::text, 'correction'::text]));

CREATE INDEX ledger_posted ON public.ledger USING btree (account, posted_day, id);

CREATE INDEX ledger_undoes ON public.ledger USING btree (undoes) WHERE (undoes IS NOT NULL);

CREATE INDEX limit_slice_ends ON public.limit_slice USING btree (ends_ms);

CREATE INDEX limit_slice_node ON public.limit_slice USING btree (node);

CREATE INDEX observation_of ON public.observation USING btree (upstream, vendor_id);

CREATE INDEX old_key_key ON public.old_key USING btree (key);

CREATE INDEX outbox_account ON public.outbox USING btree (account, id);

CREATE INDEX outbox_closed ON public.outbox USING btree (closed_ms) WHERE (state <> 'waiting'::text);

CREATE INDEX outbox_due ON public.outbox USING btree (host, next_try_ms) WHERE (state = 'waiting'::text);

CREATE INDEX outbox_order ON public.outbox USING btree (binding, sequence) WHERE (state = 'waiting'::text);

CREATE INDEX payment_order_account ON public.payment_order USING btree (account, created_at);

CREATE UNIQUE INDEX pocket_open ON public.pocket USING btree (account) WHERE (closed_at IS NULL);

CREATE UNIQUE INDEX price_override_current ON public.price_override USING btree (account, model) WHERE (ended_at IS NULL);

CREATE UNIQUE INDEX quarantine_once ON public.quarantine USING btree (incarnation, segment, "position", sha256(payload));

CREATE INDEX recall_at ON public.recall USING btree (at);

CREATE INDEX result_account ON public.result USING btree (account, ordered_ms);

CREATE INDEX result_binding ON public.result USING btree (binding);

CREATE INDEX result_due ON public.result USING btree (next_try_ms) WHERE (state = 'ordered'::text);

CREATE INDEX result_expiring ON public.result USING btree (expires_ms) WHERE (state = 'kept'::text);

CREATE INDEX session_account ON public.session USING btree (account);

CREATE INDEX submission_call ON public.submission USING btree (call);

CREATE INDEX submission_until ON public.submission USING btree (until_ms);

CREATE INDEX tier_grant_account ON public.tier_grant USING btree (account);

CREATE INDEX usage_posted ON ONLY public.usage USING btree (account, posted_day, id);

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.correction FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.ledger FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON public.usage FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER available AFTER INSERT OR UPDATE ON public.pocket FOR EACH ROW EXECUTE FUNCTION public.pocket_moves_available();

CREATE TRIGGER balance AFTER INSERT ON public.ledger REFERENCING NEW TABLE AS posted FOR EACH STATEMENT EXECUTE FUNCTION public.ledger_moves_balance();

CREATE TRIGGER balance_begins_at_zero BEFORE INSERT ON public.account FOR EACH ROW WHEN (((new.balance_nanos <> 0) OR (new.available_nanos <> 0) OR (new.ledger_rows <> 0) OR (new.ledger_seal <> 0))) EXECUTE FUNCTION public.refuse_balance();

CREATE TRIGGER balance_moves_by_ledger BEFORE UPDATE ON public.account FOR EACH ROW WHEN (((pg_trigger_depth() = 0) AND ((old.balance_nanos IS DISTINCT FROM new.balance_nanos) OR (old.ledger_rows IS DISTINCT FROM new.ledger_rows) OR (old.ledger_seal IS DISTINCT FROM new.ledger_seal)))) EXECUTE FUNCTION public.refuse_balance();

CREATE TRIGGER changed AFTER UPDATE OF name, status, tier, tier_rank ON public.account FOR EACH ROW EXECUTE FUNCTION public.account_changed();

CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON public.api_key FOR EACH ROW EXECUTE FUNCTION public.api_key_changed();

CREATE TRIGGER changed AFTER INSERT OR UPDATE ON public.price_override FOR EACH ROW EXECUTE FUNCTION public.tier_grant_changed();

CREATE TRIGGER changed AFTER INSERT OR UPDATE ON public.tier_grant FOR EACH ROW EXECUTE FUNCTION public.tier_grant_changed();

CREATE TRIGGER due BEFORE UPDATE OF tier ON public.account FOR EACH ROW WHEN ((old.tier IS DISTINCT FROM new.tier)) EXECUTE FUNCTION public.account_is_due();

CREATE TRIGGER limits_changed AFTER UPDATE OF limits ON public.account FOR EACH ROW EXECUTE FUNCTION public.account_changed();

CREATE TRIGGER mirror_changed AFTER UPDATE OF mirror ON public.account FOR EACH ROW EXECUTE FUNCTION public.account_changed();

CREATE TRIGGER seal BEFORE INSERT ON public.correction FOR EACH ROW EXECUTE FUNCTION public.seal_row();

CREATE TRIGGER seal BEFORE INSERT ON public.ledger FOR EACH ROW EXECUTE FUNCTION public.seal_row();

CREATE TRIGGER wakes AFTER INSERT ON public.ledger FOR EACH ROW WHEN ((new.kind <> ALL (ARRAY['usage'::text, 'correction'::text]))) EXECUTE FUNCTION public.ledger_wakes_account();

ALTER TABLE ONLY public.allowance
    ADD CONSTRAINT allowance_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.binding
    ADD CONSTRAINT binding_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.callback_secret
    ADD CONSTRAINT callback_secret_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.code
    ADD CONSTRAINT code_redeemed_by_fkey FOREIGN KEY (redeemed_by) REFERENCES public.account(id);

ALTER TABLE ONLY public.correction
    ADD CONSTRAINT correction_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.health_snapshot
    ADD CONSTRAINT health_snapshot_node_fkey FOREIGN KEY (node) REFERENCES public.node(id);

ALTER TABLE ONLY public.incarnation
    ADD CONSTRAINT incarnation_node_fkey FOREIGN KEY (node) REFERENCES public.node(id);

ALTER TABLE ONLY public.lease
    ADD CONSTRAINT lease_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.lease
    ADD CONSTRAINT lease_node_fkey FOREIGN KEY (node) REFERENCES public.node(id);

ALTER TABLE ONLY public.lease_use
    ADD CONSTRAINT lease_use_lease_fkey FOREIGN KEY (lease) REFERENCES public.lease(id);

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT ledger_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.limit_slice
    ADD CONSTRAINT limit_slice_node_fkey FOREIGN KEY (node) REFERENCES public.node(id);

ALTER TABLE ONLY public.old_key
    ADD CONSTRAINT old_key_key_fkey FOREIGN KEY (key) REFERENCES public.api_key(id);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.payment_order
    ADD CONSTRAINT payment_order_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.pending_usage
    ADD CONSTRAINT pending_usage_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.pocket
    ADD CONSTRAINT pocket_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.price_override
    ADD CONSTRAINT price_override_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.result
    ADD CONSTRAINT result_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.segment_cursor
    ADD CONSTRAINT segment_cursor_incarnation_fkey FOREIGN KEY (incarnation) REFERENCES public.incarnation(id);

ALTER TABLE ONLY public.session
    ADD CONSTRAINT session_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);

ALTER TABLE ONLY public.tier_grant
    ADD CONSTRAINT tier_grant_account_fkey FOREIGN KEY (account) REFERENCES public.account(id);
