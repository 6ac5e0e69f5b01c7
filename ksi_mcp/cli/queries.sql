-- agent_names
-- why: what a shell offers where an agent is asked for; the newest first.
SELECT name FROM agent
WHERE status = 'active' AND substr(name, 1, length(:prefix)) = :prefix
ORDER BY n DESC LIMIT :limit;

-- run_ids
-- why: what a shell offers where a run is asked for; those that run first, then the newest.
SELECT orchestration_id FROM orchestration
WHERE substr(orchestration_id, 1, length(:prefix)) = :prefix
ORDER BY state NOT IN ('running', 'suspended'), n DESC LIMIT :limit;

-- rule_ids
-- why: what a shell offers where a rule is asked for.
SELECT rule_id FROM rule
WHERE substr(rule_id, 1, length(:prefix)) = :prefix
ORDER BY rule_id LIMIT :limit;

-- composition_names
-- why: what a shell offers where a composition is asked for.
SELECT DISTINCT name FROM composition
WHERE substr(name, 1, length(:prefix)) = :prefix
ORDER BY name LIMIT :limit;

-- pattern_names
-- why: what a shell offers where a run is started.
SELECT DISTINCT name FROM composition
WHERE type = 'orchestration' AND substr(name, 1, length(:prefix)) = :prefix
ORDER BY name LIMIT :limit;

-- turn_ids
-- why: what a shell offers where a turn is asked for: those that have not ended, the newest first.
SELECT turn_id FROM turn
WHERE state IN ('queued', 'running', 'retrying', 'blocked', 'parked')
  AND substr(turn_id, 1, length(:prefix)) = :prefix
ORDER BY rowid DESC LIMIT :limit;

-- checkpoint_ids
-- why: what a shell offers where a checkpoint is asked for, the newest first.
SELECT checkpoint_id FROM checkpoint
WHERE substr(checkpoint_id, 1, length(:prefix)) = :prefix
ORDER BY rowid DESC LIMIT :limit;
