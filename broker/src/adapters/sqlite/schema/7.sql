-- 7
-- By how much the broker's clock has jumped ahead in a session's life, or back where that is
-- negative: time that its person has not had, or has had twice. Milliseconds.
ALTER TABLE sessions ADD COLUMN ahead INTEGER NOT NULL DEFAULT 0;
