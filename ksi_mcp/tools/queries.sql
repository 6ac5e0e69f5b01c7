-- keyed
-- why: a call that is repeated after a time-out returns what the first one did.
SELECT tool, digest, result FROM idempotency WHERE actor = :actor AND key = :key

-- remember
-- why: in the transaction of the effect, so that a key is known exactly when the effect is there.
INSERT INTO idempotency (actor, key, tool, digest, result, at_ms)
VALUES (:actor, :key, :tool, :digest, :result, :now_ms)

-- counts
-- why: what a look at a data folder should say first.
SELECT (SELECT COUNT(*) FROM agent) AS agents, (SELECT COUNT(*) FROM turn) AS turns,
       (SELECT COUNT(*) FROM event) AS events, (SELECT COUNT(*) FROM orchestration) AS orchestrations
