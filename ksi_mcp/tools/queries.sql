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

-- suggest_agents
-- why: names that only one living agent has, and ids, that hold what was written; what begins so and lives comes first.
WITH seen AS (
    SELECT agent_id, name, status = 'active' AS alive, n FROM agent
    WHERE (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible)))
      AND (:run IS NULL OR orchestration_id = :run)
), fits AS (
    SELECT name AS value, 1 AS alive, MAX(n) AS n, 0 AS is_id FROM seen WHERE alive AND instr(lower(name), :text) > 0
    GROUP BY name HAVING COUNT(*) = 1
    UNION ALL
    SELECT agent_id, alive, n, 1 FROM seen WHERE instr(agent_id, :text) > 0
)
SELECT value, COUNT(*) OVER () AS total FROM fits
ORDER BY instr(lower(value), :text) = 1 DESC, alive DESC, is_id, n DESC LIMIT :limit

-- suggest_runs
-- why: runs whose id or pattern holds what was written; what begins so and is open comes first.
SELECT orchestration_id AS value, COUNT(*) OVER () AS total FROM orchestration
WHERE (:visible IS NULL OR orchestration_id IN (SELECT value FROM json_each(:visible)))
  AND (instr(orchestration_id, :text) > 0 OR instr(lower(pattern), :text) > 0)
ORDER BY instr(orchestration_id, :text) = 1 DESC, state IN ('running', 'suspended') DESC, n DESC LIMIT :limit

-- suggest_roots
-- why: first causes among the newest events; a look at all of them would cost what the log is long.
SELECT root_id AS value, COUNT(*) OVER () AS total
FROM (SELECT root_id, event_id, agent_id, orchestration_id FROM event ORDER BY event_id DESC LIMIT :events)
WHERE instr(root_id, :text) > 0
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible))
       OR orchestration_id IN (SELECT value FROM json_each(:visible)))
GROUP BY root_id ORDER BY instr(root_id, :text) = 1 DESC, MAX(event_id) DESC LIMIT :limit
