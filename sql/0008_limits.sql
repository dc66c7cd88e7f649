-- Why: a limit holds for the station, so its nodes share it by slices; and what one node lacks, another one
--      may have lying idle.
-- Locks: `node` for a moment (a new column without a rewrite); the other tables are new.

-- Calls at once are counted for nodes that live only. Said every few seconds.
ALTER TABLE node ADD COLUMN alive_until timestamptz NOT NULL DEFAULT '-infinity';

-- What one life of a node may use of a limit within a window; nothing of it is given twice.
CREATE TABLE limit_slice (
    bucket  text NOT NULL,    -- whose limit of what: k12:requests_per_minute
    ends_ms bigint NOT NULL,  -- of the window; 0: calls at once
    holder  text NOT NULL,    -- the life of the node's supervisor; '': of lives that are over, what they used
    node    uuid NOT NULL REFERENCES node,
    granted bigint NOT NULL,
    PRIMARY KEY (bucket, ends_ms, holder, node)
);
CREATE INDEX limit_slice_node ON limit_slice (node);
CREATE INDEX limit_slice_ends ON limit_slice (ends_ms);

-- Nodes that hold of it and do not need it give it back: an account's number, or a limit's bucket.
CREATE TABLE recall (
    owner text PRIMARY KEY,
    at    timestamptz NOT NULL
);
CREATE INDEX recall_at ON recall (at);

-- Take at least `need` and at most `want` of a limit of `amount`: what the holder has of it from then on, and
-- what is left for everybody. A function, because each of its statements sees what was committed before it.
CREATE FUNCTION draw_limit(
    the_bucket text, the_end bigint, the_holder text, the_node uuid, amount bigint, need bigint, want bigint,
    OUT total bigint, OUT remaining bigint
) LANGUAGE plpgsql AS $$
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
