-- insert
-- why: the only way a decision gets into the database; one that is imported again is there already.
INSERT INTO decision (decision_id, pattern, decision, context, reasoning, confidence, outcome, score, agent,
                      orchestration_id, at_ms, resolved_at_ms, resolved_by)
VALUES (:decision_id, :pattern, :decision, :context, :reasoning, :confidence, :outcome, :score, :agent,
        :orchestration_id, :at_ms, :resolved_at_ms, :resolved_by)
ON CONFLICT (decision_id) DO NOTHING

-- resolve
-- why: how a decision turned out is said once.
UPDATE decision SET outcome = :outcome, score = COALESCE(:score, score), resolved_at_ms = :at_ms, resolved_by = :by
WHERE decision_id = :decision_id AND resolved_at_ms IS NULL

-- page
-- why: newest first; (at_ms, decision_id) is a cursor that stays right while decisions are added.
SELECT decision_id, pattern, decision, context, reasoning, confidence, outcome, score, agent, orchestration_id, at_ms,
       resolved_at_ms, resolved_by
FROM decision
WHERE (:pattern IS NULL OR pattern = :pattern)
  AND (:decision IS NULL OR instr(lower(decision), lower(:decision)) > 0)
  AND (:outcome IS NULL OR outcome = :outcome)
  AND (:agent IS NULL OR agent = :agent)
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:min_score IS NULL OR score >= :min_score)
  AND (:before_ms IS NULL OR at_ms < :before_ms OR (at_ms = :before_ms AND decision_id < :before_id))
ORDER BY at_ms DESC, decision_id DESC
LIMIT :limit

-- ids
-- why: what the files of decisions are compared with.
SELECT pattern, decision_id, resolved_at_ms IS NOT NULL AS resolved FROM decision ORDER BY pattern, at_ms, decision_id

-- by_ids
-- why: what a file lacks is written from here, oldest first.
SELECT decision_id, pattern, decision, context, reasoning, confidence, outcome, score, agent, orchestration_id, at_ms,
       resolved_at_ms, resolved_by
FROM decision
WHERE decision_id IN (SELECT value FROM json_each(:ids))
ORDER BY at_ms, decision_id
