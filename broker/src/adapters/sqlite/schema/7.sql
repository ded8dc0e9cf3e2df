-- 7
-- By how much the broker's clock has jumped ahead in a session's life, and not back again:
-- time that its person has not had. Milliseconds.
ALTER TABLE sessions ADD COLUMN ahead INTEGER NOT NULL DEFAULT 0;
