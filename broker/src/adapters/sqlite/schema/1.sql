-- Times are milliseconds of Unix time, ids are 16 bytes, digests 32. Link numbers
-- and byte counts are unsigned 64-bit numbers kept as the signed ones of the same bits.

CREATE TABLE pools (
    name TEXT NOT NULL PRIMARY KEY,
    spec TEXT NOT NULL -- JSON of the pool, its desktops left out
) STRICT, WITHOUT ROWID;

CREATE TABLE desktops (
    id BLOB NOT NULL PRIMARY KEY,
    pool TEXT NOT NULL REFERENCES pools (name),
    name TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL
        CHECK (state IN ('starting', 'ready', 'assigned', 'recycling', 'draining', 'quarantined')),
    since INTEGER,
    reason TEXT,
    -- One column, so one holder (I1).
    holder TEXT CHECK ((holder IS NOT NULL) = (state IN ('assigned', 'recycling', 'draining'))),
    account TEXT,
    epoch INTEGER NOT NULL,
    session BLOB,
    used INTEGER NOT NULL,
    pin BLOB,
    probed_at INTEGER NOT NULL -- 0: never
) STRICT, WITHOUT ROWID;

-- I2.
CREATE UNIQUE INDEX one_desktop_per_holder ON desktops (pool, holder) WHERE holder IS NOT NULL;
CREATE INDEX desktops_by_name ON desktops (pool, name);
CREATE INDEX desktops_idle ON desktops (pool, since, id) WHERE state = 'ready';
CREATE INDEX desktops_recycling ON desktops (id) WHERE state = 'recycling';
CREATE INDEX desktops_to_probe ON desktops (probed_at);
CREATE INDEX desktops_to_probe_soon ON desktops (probed_at)
    WHERE state IN ('starting', 'quarantined');

-- The fence of I5: it never falls, and nobody becomes a holder without its rise.
CREATE TRIGGER epoch_rises BEFORE UPDATE OF holder, epoch ON desktops
WHEN NEW.epoch < OLD.epoch
    OR (NEW.holder IS NOT NULL AND NEW.holder IS NOT OLD.holder AND NEW.epoch <= OLD.epoch)
BEGIN
    SELECT RAISE(ABORT, 'the epoch of a desktop must rise with a new holder');
END;

CREATE TABLE people (
    user TEXT NOT NULL PRIMARY KEY,
    display_name TEXT NOT NULL,
    account TEXT,
    unit TEXT,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Outlives its desktop's row, hence the seat's name.
CREATE TABLE sessions (
    sid BLOB NOT NULL PRIMARY KEY,
    user TEXT NOT NULL REFERENCES people (user),
    pool TEXT NOT NULL REFERENCES pools (name),
    desktop BLOB NOT NULL,
    seat TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('requested', 'starting', 'active', 'detached', 'ending', 'ended')),
    deadline INTEGER,
    cause TEXT,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    unit TEXT,
    device TEXT,
    txn TEXT NOT NULL,
    login_class TEXT NOT NULL,
    class TEXT NOT NULL,
    link INTEGER NOT NULL,
    gateway TEXT,
    boot BLOB,
    incarnation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- No two sessions are carried to one desktop (I1).
CREATE UNIQUE INDEX one_carried_per_desktop ON sessions (desktop)
    WHERE state IN ('starting', 'active');
CREATE INDEX sessions_of_desktop ON sessions (desktop) WHERE state <> 'ended';
CREATE INDEX sessions_live ON sessions (sid, state) WHERE state <> 'ended';
CREATE INDEX sessions_overdue ON sessions (deadline) WHERE deadline IS NOT NULL;

-- I4. A row lives as long as its session's; no clock ever prunes it.
CREATE TABLE tickets (
    jti BLOB NOT NULL PRIMARY KEY,
    sid BLOB NOT NULL REFERENCES sessions (sid),
    boot BLOB NOT NULL,
    exporter BLOB NOT NULL,
    link INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    redeemed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- From attach to end, for statistics and the telework report.
CREATE TABLE links (
    sid BLOB NOT NULL REFERENCES sessions (sid),
    number INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    boot BLOB NOT NULL,
    class TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    ended_by TEXT,
    up INTEGER,
    down INTEGER,
    last_byte_at INTEGER,
    PRIMARY KEY (sid, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX links_open ON links (sid) WHERE ended_at IS NULL;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL, -- JSON
    sid BLOB,
    desktop BLOB,
    detail TEXT NOT NULL -- JSON
) STRICT;

-- Written to see whether a write succeeds.
CREATE TABLE pulse (beats INTEGER NOT NULL) STRICT;
INSERT INTO pulse (beats) VALUES (0);
