-- A gateway keeps a desktop for no longer than its pool does.
UPDATE pools SET spec = json_set(spec, '$.hold_ms', json_extract(spec, '$.grace_ms'))
WHERE json_extract(spec, '$.hold_ms') > json_extract(spec, '$.grace_ms');
