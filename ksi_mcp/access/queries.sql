-- insert
-- why: the only way a token gets in; its digest is unique, so that no two stand for different callers.
INSERT INTO access_token (token_id, digest, kind, agent_id, label, created_at_ms, expires_at_ms, revoked_at_ms)
VALUES (:token_id, :digest, :kind, :agent_id, :label, :created_at_ms, :expires_at_ms, NULL)

-- by_digest
-- why: asked at every request that does not come with the operator's token.
SELECT token_id, kind, agent_id, label, created_at_ms, expires_at_ms, revoked_at_ms
FROM access_token
WHERE digest = :digest

-- one
-- why: what is to be revoked.
SELECT token_id, kind, agent_id, label, created_at_ms, expires_at_ms, revoked_at_ms
FROM access_token
WHERE token_id = :token_id

-- count
-- why: the number of tokens that let somebody in is bounded.
SELECT COUNT(*) AS tokens FROM access_token
WHERE revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)

-- page
-- why: newest first, for the list; those that let nobody in any more only when asked for.
SELECT token_id, kind, agent_id, label, created_at_ms, expires_at_ms, revoked_at_ms
FROM access_token
WHERE :ended = 1 OR (revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms))
ORDER BY created_at_ms DESC, token_id DESC
LIMIT :limit

-- revoke
-- why: once, and for good; the row stays, for the record.
UPDATE access_token SET revoked_at_ms = :now_ms WHERE token_id = :token_id AND revoked_at_ms IS NULL
