-- Why: an account's preference of mirrors, for all of its keys that say nothing of their own ("auto").
-- Locks: account, for a moment; the default is kept with the table, no row is written.

ALTER TABLE account ADD COLUMN mirror jsonb NOT NULL DEFAULT '"auto"';  -- as in api_key

CREATE TRIGGER mirror_changed AFTER UPDATE OF mirror ON account
    FOR EACH ROW EXECUTE FUNCTION account_changed();
