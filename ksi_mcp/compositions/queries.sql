-- put
-- why: a file was found new or changed; the row follows it.
INSERT INTO composition (name, layer, path, hash, type, version, description, tags, document, mtime_ns, size)
VALUES (:name, :layer, :path, :hash, :type, :version, :description, :tags, :document, :mtime_ns, :size)
ON CONFLICT (layer, path) DO UPDATE SET
    name = excluded.name,
    hash = excluded.hash,
    type = excluded.type,
    version = excluded.version,
    description = excluded.description,
    tags = excluded.tags,
    document = excluded.document,
    mtime_ns = excluded.mtime_ns,
    size = excluded.size

-- drop
-- why: the file is gone or holds no composition any more.
DELETE FROM composition WHERE layer = :layer AND path = :path

-- files
-- why: what a scan of the folders is compared with.
SELECT layer, path, name, mtime_ns, size FROM composition

-- heads
-- why: discovery ranks by words in name, tags and description; documents stay out of it.
SELECT name, layer, path, hash, type, version, description, tags
FROM composition
ORDER BY name, layer, path

-- documents
-- why: a filter on metadata has to look into the documents.
SELECT name, layer, path, document FROM composition ORDER BY name, layer, path

-- named
-- why: every layer's composition of a name; the caller takes the highest layer.
SELECT name, layer, path, hash, type, version, description, tags, document
FROM composition
WHERE name = :name
ORDER BY path

-- remember
-- why: a version that was used stays retrievable; the hash is its identity, so once is enough.
INSERT INTO composition_version (hash, name, document, first_used_at_ms)
VALUES (:hash, :name, :document, :now_ms)
ON CONFLICT (hash) DO NOTHING

-- remembered
-- why: `name@hash` still works when the file has changed since.
SELECT hash, name, document
FROM composition_version
WHERE name = :name AND substr(hash, 1, length(:prefix)) = :prefix
ORDER BY first_used_at_ms
LIMIT 2

-- was_reported
-- why: a fork or creation that is repeated after a crash must not be reported twice.
SELECT event_id FROM event WHERE name = :event AND json_extract(data, '$.name') = :name LIMIT 1
