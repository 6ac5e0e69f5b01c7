-- insert
-- why: an agent comes to be; the unique index refuses a live name.
INSERT INTO agent (agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system,
                   capabilities, settings, created_by, created_at_ms, last_active_ms)
VALUES (:agent_id, :name, :composition, :parent_id, :orchestration_id, 'active', :provider, :model, :system,
        :capabilities, :settings, :created_by, :now_ms, :now_ms)

-- live_name
-- why: whether a name is taken where the agent would live.
SELECT agent_id FROM agent
WHERE COALESCE(orchestration_id, '') = COALESCE(:orchestration_id, '') AND name = :name AND status = 'active'

-- names_like
-- why: the next free number for an agent that was given no name.
SELECT name FROM agent WHERE COALESCE(orchestration_id, '') = COALESCE(:orchestration_id, '')
  AND status = 'active' AND (name = :name OR name LIKE :prefix ESCAPE '!')

-- one
-- why: an agent by its id, with how much waits for it.
SELECT agent.*, session.pending FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE agent_id = :agent_id

-- by_name
-- why: people and models say names; the living come before the dead, the nearest run before others.
SELECT agent.*, session.pending FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE name = :name
  AND (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent.agent_id IN (SELECT value FROM json_each(:visible)))
ORDER BY agent.status <> 'active', agent.created_at_ms DESC LIMIT 20

-- page
-- why: agent_list, oldest first after a cursor.
SELECT agent.*, session.pending FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:parent_id IS NULL OR agent.parent_id = :parent_id)
  AND (:composition IS NULL OR agent.composition LIKE :composition ESCAPE '!')
  AND (:life IS NULL OR agent.status = :life)
  AND (:busy IS NULL OR (session.pending > 0) = :busy)
  AND (:capabilities IS NULL OR NOT EXISTS (
        SELECT 1 FROM json_each(:capabilities) AS wanted
        WHERE wanted.value NOT IN (SELECT value FROM json_each(agent.capabilities))))
  AND (:visible IS NULL OR agent.agent_id IN (SELECT value FROM json_each(:visible)))
  AND agent.n > :after
ORDER BY agent.n LIMIT :limit

-- counts
-- why: an error that says how many there are saves a call.
SELECT COUNT(*) AS agents FROM agent WHERE status = 'active'
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible)))

-- live_in_orchestration
-- why: the agents that end with a run, and the bound on how many it may have.
SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id AND status = 'active' ORDER BY n

-- family
-- why: an agent and all that descend from it, those of the runs that one of them started too.
WITH RECURSIVE family (agent_id) AS (
    SELECT agent_id FROM agent WHERE agent_id = :agent_id
    UNION
    SELECT agent.agent_id FROM family JOIN agent ON agent.parent_id = family.agent_id
    UNION
    SELECT agent.agent_id FROM family
    JOIN orchestration ON orchestration.created_by = 'agent:' || family.agent_id
    JOIN agent ON agent.orchestration_id = orchestration.orchestration_id
)
SELECT agent_id FROM family

-- runs_started
-- why: a run is in sight of whoever started it, and of who spawned that agent.
SELECT orchestration_id FROM orchestration
WHERE created_by IN (SELECT 'agent:' || value FROM json_each(:family))

-- peers
-- why: whom an agent of a run can see: everybody of that run.
SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id

-- grants
-- why: read inside the transaction of each change, so that a right that was taken away is gone.
SELECT capabilities, status, orchestration_id, name FROM agent WHERE agent_id = :agent_id

-- end
-- why: an agent ends; its name is free again.
UPDATE agent SET status = :status, ended_at_ms = :now_ms WHERE agent_id = :agent_id AND status = 'active'

-- touch
-- why: when it last did something.
UPDATE agent SET last_active_ms = :now_ms WHERE agent_id = :agent_id

-- done_turns
-- why: the newest finished turns of a conversation.
SELECT turn_id, prompt, created_at_ms FROM turn WHERE session_id = :session_id AND state = 'done' AND seq < :before
ORDER BY seq DESC LIMIT :limit

-- answers
-- why: what the model said in those turns, round by round.
SELECT turn_id, round, answer FROM provider_call
WHERE turn_id IN (SELECT value FROM json_each(:turn_ids)) AND state = 'answered' ORDER BY turn_id, round

-- results
-- why: what its tools gave back.
SELECT turn_id, round, idx, result, is_error FROM tool_call
WHERE turn_id IN (SELECT value FROM json_each(:turn_ids)) ORDER BY turn_id, round, idx

-- max_depth
-- why: how deep a chain of turns may go in this run.
SELECT max_depth, state FROM orchestration WHERE orchestration_id = :orchestration_id
