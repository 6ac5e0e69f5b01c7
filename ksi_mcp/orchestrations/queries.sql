-- insert
-- why: a run begins.
INSERT INTO orchestration (orchestration_id, pattern, pattern_hash, state, orchestrator, vars, max_depth, created_by,
                           started_at_ms)
VALUES (:orchestration_id, :pattern, :pattern_hash, 'running', :orchestrator, :vars, :max_depth, :created_by, :now_ms)

-- one
-- why: a run by its id.
SELECT * FROM orchestration WHERE orchestration_id = :orchestration_id

-- page
-- why: orchestration_list, newest first.
SELECT * FROM orchestration
WHERE (:state IS NULL OR state = :state) AND (:pattern IS NULL OR pattern = :pattern)
  AND (:visible IS NULL OR orchestration_id IN (SELECT value FROM json_each(:visible)))
  AND n < :before
ORDER BY n DESC LIMIT :limit

-- end
-- why: zero rows means that it had ended before; it ends once.
UPDATE orchestration SET state = :state, ended_at_ms = :now_ms, outcome = :outcome, score = :score,
                         metrics = :metrics, summary = :summary
WHERE orchestration_id = :orchestration_id AND state = 'running'
