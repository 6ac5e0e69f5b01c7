-- version
-- why: whether what is held in memory is stale.
SELECT routing_version FROM control WHERE control_id = 1

-- bump
-- why: each change of the table has a number of its own, in the order of commits.
UPDATE control SET routing_version = routing_version + 1 WHERE control_id = 1 RETURNING routing_version

-- changed
-- why: what to read again, tombstones too.
SELECT * FROM rule WHERE version > :version ORDER BY version

-- one
-- why: a living rule by its id.
SELECT * FROM rule WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- put
-- why: a new rule; the id of a deleted one may be used again, that of a living one not (no row). In a held run it waits.
INSERT INTO rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope,
                  orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, metadata, remaining_ms)
SELECT :rule_id, :source_pattern, :source_agent, :condition, :target, :mapping, :priority, :scope,
       :orchestration_id, :enabled, :created_by, :version, :created_at_ms,
       CASE WHEN NOT held THEN :expires_at_ms END, :metadata, CASE WHEN held THEN :expires_at_ms - :now_ms END
FROM (SELECT EXISTS (SELECT 1 FROM orchestration
                     WHERE orchestration_id = :orchestration_id AND state = 'suspended') AS held)
WHERE TRUE
ON CONFLICT (rule_id) DO UPDATE SET
    source_pattern = excluded.source_pattern, source_agent = excluded.source_agent,
    condition = excluded.condition, target = excluded.target, mapping = excluded.mapping,
    priority = excluded.priority, scope = excluded.scope, orchestration_id = excluded.orchestration_id,
    enabled = excluded.enabled, created_by = excluded.created_by, version = excluded.version,
    created_at_ms = excluded.created_at_ms, expires_at_ms = excluded.expires_at_ms,
    metadata = excluded.metadata, remaining_ms = excluded.remaining_ms, deleted_at_ms = NULL
WHERE rule.deleted_at_ms IS NOT NULL

-- change
-- why: a living rule gets new contents; who made it and when stays. In a suspended run its clock stands still.
UPDATE rule SET source_pattern = :source_pattern, source_agent = :source_agent, condition = :condition,
    target = :target, mapping = :mapping, priority = :priority, scope = :scope,
    orchestration_id = :orchestration_id, enabled = :enabled, version = :version,
    expires_at_ms = CASE WHEN NOT held THEN :expires_at_ms END, metadata = :metadata,
    remaining_ms = CASE WHEN NOT held THEN NULL WHEN :new_life THEN :expires_at_ms - :now_ms ELSE remaining_ms END
FROM (SELECT EXISTS (SELECT 1 FROM orchestration
                     WHERE orchestration_id = :orchestration_id AND state = 'suspended') AS held)
WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- bury
-- why: a tombstone, so that other processes notice.
UPDATE rule SET deleted_at_ms = :now_ms, version = :version WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- count
-- why: the quota of the whole table.
SELECT COUNT(*) AS rules FROM rule
WHERE deleted_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)

-- count_of_creator
-- why: the quota of one agent.
SELECT COUNT(*) AS rules FROM rule
WHERE created_by = :created_by AND deleted_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)

-- due
-- why: rules whose time is over, still to be swept.
SELECT * FROM rule WHERE deleted_at_ms IS NULL AND expires_at_ms IS NOT NULL AND expires_at_ms <= :now_ms
ORDER BY expires_at_ms, rule_id LIMIT :limit

-- in_scope
-- why: the rules that end with an agent.
SELECT * FROM rule WHERE scope = :scope AND deleted_at_ms IS NULL ORDER BY rule_id

-- in_orchestration
-- why: the rules that end with a run, those of its agents too.
SELECT * FROM rule WHERE orchestration_id = :orchestration_id AND deleted_at_ms IS NULL ORDER BY rule_id

-- page
-- why: the living rules in the order in which they fire, after a cursor; an agent sees what concerns it.
SELECT * FROM rule
WHERE deleted_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
  AND (:ids IS NULL OR rule_id IN (SELECT value FROM json_each(:ids)))
  AND (:source_pattern IS NULL OR source_pattern = :source_pattern)
  AND (:source_agent IS NULL OR source_agent = :source_agent)
  AND (:target IS NULL OR target = :target)
  AND (:created_by IS NULL OR created_by = :created_by)
  AND (:scope IS NULL OR scope = :scope)
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:enabled IS NULL OR enabled = :enabled)
  AND (:viewer IS NULL OR scope = 'global' OR created_by = 'agent:' || :viewer OR source_agent = :viewer
       OR target = :viewer_target OR orchestration_id = :viewer_orchestration)
  AND (:after_priority IS NULL OR priority < :after_priority
       OR (priority = :after_priority AND rule_id > :after_id))
ORDER BY priority DESC, rule_id LIMIT :limit

-- waiting
-- why: what the router has to do next, oldest first.
SELECT event_id FROM outbox ORDER BY event_id LIMIT :limit

-- waiting_event
-- why: the event behind an outbox row, if nobody has handled it yet.
SELECT event.* FROM outbox JOIN event ON event.event_id = outbox.event_id WHERE outbox.event_id = :event_id

-- handled
-- why: in the transaction of its deliveries, so that each event is delivered exactly once.
DELETE FROM outbox WHERE event_id = :event_id

-- take_delivery
-- why: breadth is bounded for each first cause.
INSERT INTO root_quota (root_id, deliveries) VALUES (:root_id, 1)
ON CONFLICT (root_id) DO UPDATE SET deliveries = root_quota.deliveries + 1
RETURNING deliveries

-- agent
-- why: the name and life of an agent that a rule speaks of.
SELECT agent_id, name, status, orchestration_id FROM agent WHERE agent_id = :agent_id

-- orchestration
-- why: whether a run goes on, and how deep its chains may be.
SELECT state, max_depth FROM orchestration WHERE orchestration_id = :orchestration_id

-- cause_event
-- why: one step back along a chain of causes.
SELECT event_id, name, cause_id FROM event WHERE event_id = :event_id

-- cause_turn
-- why: one step back along a chain of causes, through a turn.
SELECT turn.turn_id, turn.cause_id, agent.name AS agent
FROM turn LEFT JOIN agent ON agent.agent_id = turn.session_id WHERE turn.turn_id = :turn_id

-- pause_life
-- why: the life of a suspended run's rules stands still: they keep what remained.
UPDATE rule SET remaining_ms = expires_at_ms - :now_ms, expires_at_ms = NULL, version = :version
WHERE orchestration_id = :orchestration_id AND deleted_at_ms IS NULL AND expires_at_ms > :now_ms

-- resume_life
-- why: their life goes on with what remained.
UPDATE rule SET expires_at_ms = :now_ms + remaining_ms, remaining_ms = NULL, version = :version
WHERE orchestration_id = :orchestration_id AND deleted_at_ms IS NULL AND remaining_ms IS NOT NULL
  AND expires_at_ms IS NULL

-- of_agent
-- why: the rules that speak of an agent in any of their places, to hand them on to its successor.
SELECT * FROM rule WHERE deleted_at_ms IS NULL
  AND (source_agent = :agent_id OR scope = 'agent:' || :agent_id OR created_by = 'agent:' || :agent_id
       OR instr(target, '"agent:' || :agent_id || '"') > 0)
ORDER BY rule_id

-- hand_on
-- why: a rule outlives the agent that it speaks of, if another one takes its place.
UPDATE rule SET source_agent = :source_agent, target = :target, scope = :scope, created_by = :created_by,
                version = :version
WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- restore
-- why: a rule of a suspended run as it was, with what remained of its life; one that is another run's by now stays that.
INSERT INTO rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id,
                  enabled, created_by, version, created_at_ms, metadata, remaining_ms)
VALUES (:rule_id, :source_pattern, :source_agent, :condition, :target, :mapping, :priority, :scope, :orchestration_id,
        :enabled, :created_by, :version, :created_at_ms, :metadata, :remaining_ms)
ON CONFLICT (rule_id) DO UPDATE SET
    source_pattern = excluded.source_pattern, source_agent = excluded.source_agent,
    condition = excluded.condition, target = excluded.target, mapping = excluded.mapping,
    priority = excluded.priority, scope = excluded.scope, orchestration_id = excluded.orchestration_id,
    enabled = excluded.enabled, created_by = excluded.created_by, version = excluded.version,
    created_at_ms = excluded.created_at_ms, metadata = excluded.metadata, remaining_ms = excluded.remaining_ms,
    expires_at_ms = NULL, deleted_at_ms = NULL
WHERE rule.deleted_at_ms IS NOT NULL OR rule.orchestration_id = excluded.orchestration_id
