-- Where people have logged in from: the last 16 sources of each. Those of the last
-- 30 days have tries of their own when strangers have used up the person's.

CREATE TABLE familiar (
    user TEXT NOT NULL REFERENCES people (user),
    source TEXT NOT NULL,
    last_seen INTEGER NOT NULL,
    PRIMARY KEY (user, source)
) STRICT, WITHOUT ROWID;

CREATE INDEX familiar_by_age ON familiar (last_seen);

CREATE TRIGGER familiar_is_bounded AFTER INSERT ON familiar
BEGIN
    DELETE FROM familiar WHERE user = NEW.user AND source IN (
        SELECT source FROM familiar WHERE user = NEW.user AND source <> NEW.source
        ORDER BY last_seen DESC, source LIMIT -1 OFFSET 15);
END;
