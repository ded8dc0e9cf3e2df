-- Desktops that somebody holds are looked at more seldom than the others, and there may
-- be thousands of either.
DROP INDEX desktops_to_probe;
CREATE INDEX desktops_to_probe ON desktops (probed_at) WHERE holder IS NULL;
CREATE INDEX desktops_to_probe_held ON desktops (probed_at) WHERE holder IS NOT NULL;
