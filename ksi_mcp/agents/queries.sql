-- insert
-- why: an agent comes to be; the unique index refuses a live name.
INSERT INTO agent (agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system,
                   capabilities, settings, created_by, created_at_ms, last_active_ms, routing_level,
                   subscription_level, error_level, wake)
VALUES (:agent_id, :name, :composition, :parent_id, :orchestration_id, 'active', :provider, :model, :system,
        :capabilities, :settings, :created_by, :now_ms, :now_ms, :routing_level,
        :subscription_level, :error_level, :wake)

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
SELECT agent.*, session.pending, session.suspended, session.changes,
       EXISTS (SELECT 1 FROM heard WHERE heard.agent_id = agent.agent_id) AS hears
FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE agent_id = :agent_id

-- by_name
-- why: people and models say names; the living come before the dead, the nearest run before others.
SELECT agent.*, session.pending, session.suspended, session.changes,
       EXISTS (SELECT 1 FROM heard WHERE heard.agent_id = agent.agent_id) AS hears
FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE name = :name
  AND (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent.agent_id IN (SELECT value FROM json_each(:visible)))
ORDER BY agent.status <> 'active', agent.created_at_ms DESC LIMIT :limit

-- page
-- why: agent_list, oldest first after a cursor.
SELECT agent.*, session.pending, session.suspended, session.changes,
       EXISTS (SELECT 1 FROM heard WHERE heard.agent_id = agent.agent_id) AS hears
FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:parent_id IS NULL OR agent.parent_id = :parent_id)
  AND (:composition IS NULL OR agent.composition LIKE :composition ESCAPE '!')
  AND (:life IS NULL OR agent.status = :life)
  AND (:busy IS NULL OR (session.pending > 0) = :busy)
  AND (:suspended IS NULL OR session.suspended = :suspended)
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

-- is_below
-- why: the same asked of one agent, from below: who is above it are few, who is below may be thousands.
WITH RECURSIVE line (agent_id) AS (
    SELECT agent_id FROM agent WHERE agent_id = :agent_id
    UNION
    SELECT agent.parent_id FROM line JOIN agent ON agent.agent_id = line.agent_id WHERE agent.parent_id IS NOT NULL
    UNION
    SELECT substr(orchestration.created_by, length('agent:') + 1) FROM line
    JOIN agent ON agent.agent_id = line.agent_id
    JOIN orchestration ON orchestration.orchestration_id = agent.orchestration_id
    WHERE orchestration.created_by LIKE 'agent:%'
)
SELECT agent_id FROM line WHERE agent_id = :elder_id

-- runs_started
-- why: a run is in sight of whoever started it, and of who spawned that agent.
SELECT orchestration_id FROM orchestration
WHERE created_by IN (SELECT 'agent:' || value FROM json_each(:family))

-- peers
-- why: whom an agent of a run can see: everybody of that run.
SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id

-- grants
-- why: read inside the transaction of each change, so that a right that was taken away is gone.
SELECT capabilities, status, orchestration_id, name, routing_level FROM agent WHERE agent_id = :agent_id

-- end
-- why: an agent ends; its name is free again.
UPDATE agent SET status = :status, ended_at_ms = :now_ms WHERE agent_id = :agent_id AND status = 'active'

-- touch
-- why: when it last did something.
UPDATE agent SET last_active_ms = :now_ms WHERE agent_id = :agent_id

-- done_turns
-- why: the newest finished turns of a conversation; what somebody else than the model answered stands with the turn.
SELECT turn_id, prompt, created_at_ms, finished_at_ms, seq, priority, answered_by,
       CASE WHEN answered_by IS NULL THEN NULL ELSE result END AS given_answer
FROM turn WHERE session_id = :session_id AND state = 'done' ORDER BY seq DESC LIMIT :limit

-- parts
-- why: all that was said in turns: answers, results of tools, notes to the model, and what was put in.
WITH wanted (turn_id) AS (SELECT value FROM json_each(:turn_ids))
SELECT wanted.turn_id, 'answer' AS kind, round, 0 AS idx, answer AS text, 0 AS is_error
FROM wanted CROSS JOIN provider_call AS said ON said.turn_id = wanted.turn_id AND said.state = 'answered'
UNION ALL
SELECT wanted.turn_id, 'result', round, idx, result, is_error
FROM wanted CROSS JOIN tool_call ON tool_call.turn_id = wanted.turn_id
UNION ALL
SELECT wanted.turn_id, 'note', round, 0, text, 0
FROM wanted CROSS JOIN round_note ON round_note.turn_id = wanted.turn_id
UNION ALL
SELECT wanted.turn_id, position, 0, injection_id, content, 0
FROM wanted CROSS JOIN injection ON injection.turn_id = wanted.turn_id

-- inject
-- why: words that wait for the next turn that starts.
INSERT INTO injection (session_id, position, content, created_by, at_ms)
VALUES (:session_id, :position, :content, :created_by, :now_ms) RETURNING injection_id

-- injections_waiting
-- why: how much waits is bounded, a session that never starts a turn must not grow.
SELECT COUNT(*) AS waiting, COALESCE(SUM(LENGTH(content)), 0) AS chars FROM injection
WHERE session_id = :session_id AND turn_id IS NULL

-- bind_injections
-- why: what waits belongs to the turn that starts now, and to no other.
UPDATE injection SET turn_id = :turn_id WHERE session_id = :session_id AND turn_id IS NULL
RETURNING injection_id, position, content, created_by

-- release_injections
-- why: a turn that was not done is no part of the conversation: its words wait for the next one.
UPDATE injection SET turn_id = NULL WHERE turn_id = :turn_id

-- hearers
-- why: the living above an agent (or above a run: whoever started it) who want to hear of it: a level of -1, or one that
-- reaches so far down.
WITH RECURSIVE above (agent_id, distance) AS (
    SELECT parent_id, 1 FROM agent WHERE agent_id = :agent_id AND parent_id IS NOT NULL
    UNION ALL
    SELECT substr(created_by, 7), 1 FROM orchestration
    WHERE orchestration_id = :orchestration_id AND created_by LIKE 'agent:%'
    UNION ALL
    SELECT agent.parent_id, distance + 1 FROM above JOIN agent USING (agent_id)
    WHERE agent.parent_id IS NOT NULL AND distance < :most
)
SELECT agent.agent_id, agent.wake, agent.draining FROM above JOIN agent USING (agent_id)
WHERE agent.status = 'active'
  AND CASE WHEN :failed THEN error_level ELSE subscription_level END NOT BETWEEN 0 AND distance - 1

-- hear
-- why: what is heard waits for the next turn, numbered from the last one on.
INSERT INTO heard (agent_id, event_id, name, source_agent, text, at_ms, nth)
VALUES (:agent_id, :event_id, :name, :source_agent, :text, :now_ms,
        1 + COALESCE((SELECT nth FROM heard WHERE agent_id = :agent_id ORDER BY heard_id DESC LIMIT 1), 0))
RETURNING nth

-- forget_heard
-- why: only the newest are kept, or none any more.
DELETE FROM heard WHERE agent_id = :agent_id AND (:nth IS NULL OR nth <= :nth)

-- heard
-- why: what a notice is made of, oldest first.
SELECT heard.*, agent.name AS source_name FROM heard LEFT JOIN agent ON agent.agent_id = heard.source_agent
WHERE heard.agent_id = :agent_id ORDER BY heard_id

-- unbegun
-- why: a turn that will tell what was heard; one that was begun has its words already.
SELECT 1 FROM turn WHERE session_id = :agent_id AND state = 'queued' AND attempt = 0
UNION ALL
SELECT 1 FROM turn WHERE session_id = :agent_id AND attempt = 0
  AND state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
LIMIT 1

-- adopt_heard
-- why: what an agent had heard and not been told is told to its successor.
UPDATE heard SET agent_id = :new WHERE agent_id = :old

-- subscribe
-- why: whom it hears without a rule, from now on.
UPDATE agent SET subscription_level = :subscription_level, error_level = :error_level, wake = :wake
WHERE agent_id = :agent_id AND status = 'active'

-- set_level
-- why: whose routes it may change, from now on.
UPDATE agent SET routing_level = :routing_level WHERE agent_id = :agent_id AND status = 'active'

-- max_depth
-- why: how deep a chain of turns may go in this run.
SELECT max_depth, state FROM orchestration WHERE orchestration_id = :orchestration_id

-- stand_in
-- why: who took whose place; both are found from either.
UPDATE agent SET successor_id = CASE WHEN agent_id = :old THEN :new ELSE successor_id END,
                 respawns = CASE WHEN agent_id = :new THEN :respawns ELSE respawns END,
                 draining = CASE WHEN agent_id = :new THEN :draining ELSE draining END
WHERE agent_id IN (:old, :new)

-- adopt
-- why: the children of an agent that was replaced are those of its successor.
UPDATE agent SET parent_id = :new WHERE parent_id = :old AND agent_id <> :new

-- adopt_runs
-- why: so are the runs that it started.
UPDATE orchestration SET created_by = 'agent:' || :new WHERE created_by = 'agent:' || :old

-- adopt_delayed
-- why: so is what it had put off; only the actor of a stored context changes.
UPDATE delayed_event SET context = json_set(context, '$.actor', 'agent:' || :new)
WHERE json_extract(context, '$.actor') = 'agent:' || :old

-- adopt_keys
-- why: a call that its successor repeats is still the same call.
UPDATE OR IGNORE idempotency SET actor = 'agent:' || :new WHERE actor = 'agent:' || :old

-- adopt_injections
-- why: words that wait for its next turn, or belong to one that moved, go with its turns.
UPDATE injection SET session_id = :new
WHERE session_id = :old AND (turn_id IS NULL OR turn_id IN (SELECT value FROM json_each(:turn_ids)))

-- bounded
-- why: a limit goes on to bound whoever takes the place: what was spent under it stays spent.
SELECT parent_id, closed OR COALESCE(limit_usd_micros, limit_tokens, limit_turns, limit_seconds) IS NOT NULL AS bounded
FROM account WHERE account_id = :account_id

-- account_under
-- why: only for an account that was just made: nothing was booked on it yet.
UPDATE account SET parent_id = :parent_id WHERE account_id = :account_id AND spent_turns = 0

-- barren
-- why: how many in a row took this place and did not finish one turn.
WITH RECURSIVE line (agent_id, replaced) AS (
    SELECT :agent_id, 0
    UNION ALL
    SELECT agent.agent_id, line.replaced + 1 FROM line JOIN agent ON agent.successor_id = line.agent_id
    WHERE line.replaced < :most
      AND NOT EXISTS (SELECT 1 FROM turn WHERE turn.session_id = line.agent_id AND turn.state = 'done')
)
SELECT MAX(replaced) AS replaced FROM line

-- least_busy_peer
-- why: who gets the work of an agent that cannot do it: same composition, same run, takes messages, not held.
SELECT agent.agent_id FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE agent.composition = :composition AND COALESCE(agent.orchestration_id, '') = COALESCE(:orchestration_id, '')
  AND agent.status = 'active' AND agent.draining = 0 AND session.suspended = 0 AND agent.agent_id <> :agent_id
ORDER BY session.pending, agent.n LIMIT 1

-- drain
-- why: from now on an agent takes no more messages.
UPDATE agent SET draining = 1 WHERE agent_id = :agent_id AND status = 'active' AND draining = 0

-- drained
-- why: asked at the end of each turn: whether that was the last one of an agent that drains, and the last to be heard.
SELECT agent.agent_id FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE agent.agent_id = :agent_id AND agent.draining = 1 AND agent.status = 'active' AND session.pending = 0
  AND NOT EXISTS (SELECT 1 FROM orchestration WHERE orchestration.orchestration_id = agent.orchestration_id
                  AND orchestration.draining IS NOT NULL)
  AND NOT EXISTS (SELECT 1 FROM event WHERE event.agent_id = :agent_id AND event.event_id > :event_id
                  AND event.name IN ('completion:result', 'completion:failed', 'completion:cancelled'))

-- unrouted_end
-- why: a turn of that agent ended a moment ago, and supervision has still to hear of it.
SELECT 1 FROM outbox JOIN event ON event.event_id = outbox.event_id
WHERE event.agent_id = :agent_id AND event.name IN ('completion:result', 'completion:failed', 'completion:cancelled')
LIMIT 1

-- update
-- why: an agent gets another model, other settings or other rights.
UPDATE agent SET provider = :provider, model = :model, capabilities = :capabilities, settings = :settings
WHERE agent_id = :agent_id AND status = 'active'

-- retarget
-- why: who answers changed, so what was not begun is claimed for the new provider.
UPDATE turn SET provider = :provider WHERE session_id = :agent_id AND link = 0
  AND (state = 'queued' OR state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state <> 'running')

-- offspring
-- why: a right that was taken from an agent is taken from all below it.
WITH RECURSIVE below (agent_id) AS (
    SELECT agent_id FROM agent WHERE parent_id = :agent_id
    UNION
    SELECT agent.agent_id FROM below JOIN agent ON agent.parent_id = below.agent_id
)
SELECT agent_id FROM below JOIN agent USING (agent_id) WHERE status = 'active' ORDER BY n
