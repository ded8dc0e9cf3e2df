-- When the person's password was checked for a session; of an older one, when it was
-- requested. When the session ends at the latest, by its pool's limit.
ALTER TABLE sessions ADD COLUMN password_at INTEGER;
ALTER TABLE sessions ADD COLUMN ends_at INTEGER;
UPDATE sessions SET password_at = created_at;

-- What the thin client may do over the desktop's present connection: JSON of a policy.
-- Unknown where that was made before this version.
ALTER TABLE sessions ADD COLUMN policy TEXT;

CREATE INDEX sessions_timed ON sessions (ends_at)
    WHERE ends_at IS NOT NULL AND state <> 'ended' AND state <> 'ending';

-- Minutes of a link in which its person touched the thin client, by its own word.
ALTER TABLE links ADD COLUMN input_minutes INTEGER;

-- Where a link was found to come from after its beginning.
CREATE TABLE moves (
    sid BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    class TEXT NOT NULL,
    PRIMARY KEY (sid, number, at),
    FOREIGN KEY (sid, number) REFERENCES links (sid, number)
) STRICT, WITHOUT ROWID;
