-- A session that returns is kept as 'active' with a deadline, by which its gateway has
-- to have attached it; one of an older file has none, and is carried.

-- Of the last redeem: the thumbprint of the key that it was proven with, and the
-- SHA-256 of its connection's exporter. Unknown where that was before this version.
ALTER TABLE sessions ADD COLUMN key BLOB;
ALTER TABLE sessions ADD COLUMN exporter BLOB;

-- A gateway keeps a desktop for no longer than its pool does.
UPDATE pools SET spec = json_set(spec, '$.hold_ms', json_extract(spec, '$.grace_ms'))
WHERE json_extract(spec, '$.hold_ms') > json_extract(spec, '$.grace_ms');
