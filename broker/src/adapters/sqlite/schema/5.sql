-- A password may no longer have to be of no age, which none ever was.
UPDATE pools SET spec = json_set(spec, '$.by_class', (
    SELECT json_group_array(json(iif(
        json_extract(value, '$.password_age_ms') = 0,
        json_set(value, '$.password_age_ms', 1),
        value
    ))) FROM json_each(pools.spec, '$.by_class')
))
WHERE EXISTS (
    SELECT 1 FROM json_each(pools.spec, '$.by_class')
    WHERE json_extract(value, '$.password_age_ms') = 0
);
