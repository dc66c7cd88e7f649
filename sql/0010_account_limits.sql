-- Why: limits of an account, which all of its keys share, beside those of its tier and of each key.
-- Locks: account, for a moment; the default is kept with the table, no row is written.

ALTER TABLE account ADD COLUMN limits jsonb NOT NULL DEFAULT '{}'  -- as in api_key
    CHECK (jsonb_typeof(limits) = 'object');

CREATE TRIGGER limits_changed AFTER UPDATE OF limits ON account
    FOR EACH ROW EXECUTE FUNCTION account_changed();
