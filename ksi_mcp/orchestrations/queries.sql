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
                         metrics = :metrics, summary = :summary, suspended_at_ms = NULL, draining = NULL
WHERE orchestration_id = :orchestration_id AND state IN ('running', 'suspended')

-- set_checkpoint_every
-- why: what the pattern asks for; without it nothing is counted.
UPDATE orchestration SET checkpoint_every = :every WHERE orchestration_id = :orchestration_id

-- suspend
-- why: zero rows means that it was not running.
UPDATE orchestration SET state = 'suspended', suspended_at_ms = :now_ms
WHERE orchestration_id = :orchestration_id AND state = 'running'

-- resume
-- why: zero rows means that it was not suspended.
UPDATE orchestration SET state = 'running', suspended_at_ms = NULL
WHERE orchestration_id = :orchestration_id AND state = 'suspended'

-- hold_delayed
-- why: delayed events of a suspended run keep what remained of their time.
UPDATE delayed_event SET held = 1, due_ms = MAX(due_ms - :now_ms, 0)
WHERE orchestration_id = :orchestration_id AND held = 0

-- release_delayed
-- why: they are due when what remained is over.
UPDATE delayed_event SET held = 0, due_ms = due_ms + :now_ms
WHERE orchestration_id = :orchestration_id AND held = 1

-- drop_held_delayed
-- why: a run that ends while it is suspended fires nothing more.
DELETE FROM delayed_event WHERE orchestration_id = :orchestration_id AND held = 1

-- accounts
-- why: a run's own account and those of its agents.
SELECT :orchestration_id AS account_id
UNION ALL SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id

-- drain
-- why: how the run is to end once its turns have ended; zero rows means that it does not run.
UPDATE orchestration SET draining = :ending WHERE orchestration_id = :orchestration_id AND state = 'running'

-- drain_agents
-- why: none of them takes another message.
UPDATE agent SET draining = 1 WHERE orchestration_id = :orchestration_id AND status = 'active'

-- pending
-- why: how many turns of a run have not ended.
SELECT COALESCE(SUM(session.pending), 0) AS turns
FROM agent JOIN session ON session.session_id = agent.agent_id WHERE agent.orchestration_id = :orchestration_id

-- turn_ended
-- why: one statement a turn for runs that drain or want checkpoints, and none of its rows for the others.
UPDATE orchestration SET since_checkpoint = since_checkpoint + 1
WHERE orchestration_id = :orchestration_id AND state = 'running'
  AND (draining IS NOT NULL OR checkpoint_every IS NOT NULL)
RETURNING draining IS NOT NULL AS draining, checkpoint_every, since_checkpoint

-- counted
-- why: an automatic checkpoint was made; the next one is as many turns away.
UPDATE orchestration SET since_checkpoint = 0 WHERE orchestration_id = :orchestration_id

-- take_marks
-- why: what is newer than these came after the checkpoint.
SELECT (SELECT COALESCE(MAX(n), 0) FROM turn) AS last_turn,
       (SELECT COALESCE(MAX(call_id), 0) FROM provider_call) AS last_call,
       (SELECT COALESCE(MAX(event_id), 0) FROM event) AS last_event,
       (SELECT COALESCE(MAX(injection_id), 0) FROM injection) AS last_injection,
       (SELECT COUNT(*) FROM turn WHERE orchestration_id = :orchestration_id
        AND state IN ('done', 'failed', 'cancelled', 'timed_out') AND seq > 0) AS finished

-- take_agents
-- why: what of a run's agents may change, with their lanes and limits.
SELECT agent.n, agent.agent_id, agent.name, agent.parent_id, status, provider, model, capabilities, settings, ended_at_ms,
       draining, successor_id, respawns, routing_level, subscription_level, error_level, wake,
       session.tail, limit_usd_micros, limit_tokens, limit_turns, limit_seconds, policy
FROM agent JOIN session ON session.session_id = agent.agent_id JOIN account ON account.account_id = agent.agent_id
WHERE agent.orchestration_id = :orchestration_id ORDER BY agent.n

-- take_account
-- why: the limits of the run itself.
SELECT parent_id, limit_usd_micros, limit_tokens, limit_turns, limit_seconds, policy FROM account
WHERE account_id = :account_id

-- take_turns
-- why: every turn that has not ended, with all of it that may change.
WITH lane (session_id) AS (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id),
     waiting (n) AS (
         SELECT n FROM turn JOIN lane USING (session_id) WHERE state = 'queued'
         UNION ALL
         SELECT n FROM turn JOIN lane USING (session_id)
         WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked'))
SELECT turn_id, session_id, seq, priority, state, run_at_ms, provider, attempt, tries, partial_text, error_class, error,
       cost_usd_micros, tokens, started_at_ms, parked_on, question, checks, link, first_error, reused, moved_from, rescues,
       (SELECT COALESCE(MAX(round), 0) FROM provider_call
        WHERE provider_call.turn_id = turn.turn_id AND provider_call.state = 'answered') AS rounds
FROM waiting JOIN turn USING (n) ORDER BY n

-- take_tools
-- why: which tools of a turn at work had given their result by then.
SELECT turn_id, round, idx FROM tool_call WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))

-- take_injections
-- why: words that wait, and those of turns that have not ended.
SELECT injection_id, turn_id FROM injection
WHERE session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)
  AND (turn_id IS NULL OR turn_id IN (SELECT value FROM json_each(:turn_ids)))

-- take_rules
-- why: the living rules of a run, with what remains of their life.
SELECT rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, enabled, created_by,
       created_at_ms, metadata, exclusive, rate, join_spec, modifiable,
       COALESCE(remaining_ms, expires_at_ms - :now_ms) AS remaining_ms
FROM rule WHERE orchestration_id = :orchestration_id AND deleted_at_ms IS NULL
  AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms) ORDER BY rule_id

-- take_joins
-- why: collections of a run's joins that have begun, with what remains of their time (-1: for ever).
SELECT rule_id, key, CASE WHEN remaining_ms IS NULL THEN :now_ms - opened_at_ms ELSE -opened_at_ms END AS age_ms,
       CASE WHEN remaining_ms IS NOT NULL THEN remaining_ms WHEN due_ms IS NULL THEN -1
            ELSE MAX(due_ms - :now_ms, 0) END AS remaining_ms
FROM join_open WHERE orchestration_id = :orchestration_id ORDER BY rule_id, key

-- take_join_parts
-- why: what has arrived for them, oldest first.
SELECT arrived.rule_id, arrived.key, arrived.part, arrived.event_id, arrived.event, arrived.at_ms
FROM join_open JOIN join_part AS arrived ON arrived.rule_id = join_open.rule_id AND arrived.key = join_open.key
WHERE join_open.orchestration_id = :orchestration_id ORDER BY arrived.part_id

-- take_delayed
-- why: what a run has still to fire, and in how long.
SELECT event, data, condition, context, CASE held WHEN 1 THEN due_ms ELSE MAX(due_ms - :now_ms, 0) END AS remaining_ms
FROM delayed_event WHERE orchestration_id = :orchestration_id ORDER BY delayed_id

-- take_outbox
-- why: events of a run that the router had not delivered yet.
SELECT event_id FROM outbox JOIN event USING (event_id) WHERE event.orchestration_id = :orchestration_id

-- take_heard
-- why: what its agents had heard of others and were not told yet.
SELECT agent_id, event_id, name, source_agent, text, at_ms, nth FROM heard
WHERE agent_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id) ORDER BY heard_id

-- back_heard
-- why: what was heard since then belongs to the time line that is left.
DELETE FROM heard WHERE agent_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)

-- put_heard
-- why: it waits to be told, as it did then.
INSERT INTO heard (agent_id, event_id, name, source_agent, text, at_ms, nth)
VALUES (:agent_id, :event_id, :name, :source_agent, :text, :at_ms, :nth)

-- put_checkpoint
-- why: a run as it stands.
INSERT INTO checkpoint (checkpoint_id, orchestration_id, label, automatic, turns, event_id, snapshot, at_ms)
VALUES (:checkpoint_id, :orchestration_id, :label, :automatic, :turns, :event_id, :snapshot, :now_ms)

-- spare_automatic
-- why: only the newest automatic ones of a run are kept.
DELETE FROM checkpoint WHERE n IN (
    SELECT n FROM checkpoint WHERE orchestration_id = :orchestration_id AND automatic = 1
    ORDER BY n DESC LIMIT -1 OFFSET :keep)

-- count_checkpoints
-- why: how many somebody asked for is bounded.
SELECT COUNT(*) AS checkpoints FROM checkpoint WHERE orchestration_id = :orchestration_id AND automatic = 0

-- checkpoint
-- why: a checkpoint by its id or, within a run, its label; the newest first.
SELECT * FROM checkpoint
WHERE (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (checkpoint_id = :ref OR (:orchestration_id IS NOT NULL AND label = :ref))
ORDER BY checkpoint_id = :ref DESC, n DESC LIMIT 1

-- newest_checkpoint
-- why: where a run goes back to if nothing else is said.
SELECT * FROM checkpoint WHERE orchestration_id = :orchestration_id AND left_by IS NULL ORDER BY n DESC LIMIT 1

-- page_of_checkpoints
-- why: newest first, before a cursor, without the snapshots.
SELECT n, checkpoint_id, orchestration_id, label, automatic, turns, event_id, at_ms, left_by,
       length(CAST(snapshot AS BLOB)) AS bytes
FROM checkpoint
WHERE (:orchestration_id IS NULL OR orchestration_id = :orchestration_id) AND n < :before
  AND (:visible IS NULL OR orchestration_id IN (SELECT value FROM json_each(:visible)))
ORDER BY n DESC LIMIT :limit

-- leave_checkpoints
-- why: what was made after the one gone back to belongs to a time line that was left.
UPDATE checkpoint SET left_by = :checkpoint_id
WHERE orchestration_id = :orchestration_id AND n > :n AND left_by IS NULL

-- back_outbox
-- why: what happened since is not delivered any more.
DELETE FROM outbox WHERE event_id > :last_event
  AND event_id IN (SELECT event_id FROM event WHERE orchestration_id = :orchestration_id AND event_id > :last_event)

-- back_undelivered
-- why: what was not delivered by then is delivered again.
INSERT INTO outbox (event_id) SELECT event_id FROM event WHERE event_id IN (SELECT value FROM json_each(:events))
ON CONFLICT DO NOTHING

-- back_run
-- why: the run stands where it stood, whatever became of it since; it goes on when it is resumed.
UPDATE orchestration SET state = 'suspended', suspended_at_ms = :now_ms, ended_at_ms = NULL, outcome = NULL, score = NULL,
                         metrics = NULL, summary = NULL, draining = :draining, since_checkpoint = 0
WHERE orchestration_id = :orchestration_id

-- back_lanes
-- why: no turn is at the front of its session while the lanes are put in order again.
UPDATE turn SET state = 'queued', owner = NULL
WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)

-- back_left
-- why: turns that came after the checkpoint, or from elsewhere; they lose their place in the conversation.
SELECT turn_id, session_id, state, attempt FROM turn
WHERE session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id) AND seq > 0
  AND (n > :last_turn
       OR (state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
           AND turn_id NOT IN (SELECT value FROM json_each(:turn_ids))))

-- back_cancel
-- why: their rows stay, with the reason; a place below zero is none in the conversation.
UPDATE turn SET seq = -n, owner = NULL, parked_on = NULL, blocked_on = NULL, held = 0,
                finished_at_ms = COALESCE(finished_at_ms, :now_ms),
                error = CASE WHEN state IN ('failed', 'cancelled', 'timed_out') THEN error ELSE :reason END,
                state = CASE WHEN state IN ('failed', 'timed_out') THEN state ELSE 'cancelled' END
WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))

-- back_vacate
-- why: turns that change places must not meet on the way.
UPDATE turn SET seq = -n
WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)
RETURNING turn_id

-- back_ghost
-- why: what a turn did since the checkpoint keeps its rows and its cost, in a cancelled turn of its own.
INSERT INTO turn (turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, op_class,
                  created_by, cause_id, root_id, hops, depth, attempt, result, partial_text, error,
                  cost_usd_micros, tokens, created_at_ms, started_at_ms, finished_at_ms, link, answered_by)
SELECT :ghost_id, session_id, -n - :far, priority, 'cancelled', run_at_ms, orchestration_id, provider, prompt, op_class,
       created_by, 'turn:' || turn_id, root_id, hops, depth, attempt, result, partial_text, :reason,
       cost_usd_micros - :cost_usd_micros, tokens - :tokens, created_at_ms, started_at_ms,
       COALESCE(finished_at_ms, :now_ms), link, answered_by
FROM turn WHERE turn_id = :turn_id
  AND (EXISTS (SELECT 1 FROM provider_call WHERE provider_call.turn_id = :turn_id AND provider_call.state <> 'sent'
               AND (call_id > :last_call OR (round > :rounds AND provider_call.state = 'answered')))
       OR EXISTS (SELECT 1 FROM tool_call WHERE tool_call.turn_id = :turn_id
                  AND NOT EXISTS (SELECT 1 FROM json_each(:had) AS had
                                  WHERE had.value ->> 0 = tool_call.round AND had.value ->> 1 = tool_call.idx))
       OR result IS NOT NULL OR cost_usd_micros <> :cost_usd_micros OR tokens <> :tokens)

-- back_ghost_place
-- why: no two turns without a place may have the same number there.
UPDATE turn SET seq = -n WHERE turn_id = :ghost_id

-- back_calls
-- why: the answers of the time line that is left are none of this turn any more.
UPDATE provider_call SET turn_id = :ghost_id WHERE turn_id = :turn_id AND state <> 'sent'
  AND (call_id > :last_call OR (round > :rounds AND state = 'answered'))

-- back_tools
-- why: what tools gave back since then goes with them; where the answer stays, an effect that stays is not made twice.
UPDATE tool_call SET turn_id = :ghost_id WHERE turn_id = :turn_id
  AND NOT EXISTS (SELECT 1 FROM json_each(:had) AS had
                  WHERE had.value ->> 0 = tool_call.round AND had.value ->> 1 = tool_call.idx)
  AND NOT (round <= :rounds AND is_error = 0 AND tool IN (SELECT value FROM json_each(:kept_tools)))

-- back_notes
-- why: what was said to the model after an answer goes with the answer.
UPDATE round_note SET turn_id = :ghost_id WHERE turn_id = :turn_id AND round > :rounds

-- back_turn
-- why: the turn stands where it stood; its number of attempts only grows, so that whoever ran it stays shut out.
UPDATE turn SET session_id = :session_id, seq = :seq, priority = :priority, state = :state, run_at_ms = :run_at_ms,
                provider = :provider, owner = NULL, tries = :tries, blocked_on = NULL, result = NULL,
                partial_text = :partial_text, error_class = :error_class, error = :error,
                cost_usd_micros = :cost_usd_micros, tokens = :tokens, started_at_ms = :started_at_ms,
                finished_at_ms = NULL, held = 1, parked_on = :parked_on, question = :question, checks = :checks,
                link = :link, first_error = :first_error, reused = :reused, answered_by = NULL,
                moved_from = :moved_from, rescues = :rescues
WHERE turn_id = :turn_id

-- back_to_batch
-- why: what had gone with a batch by then, and is still to come, is waited for and not bought again.
UPDATE turn SET state = 'parked', parked_on = 'batch', run_at_ms = :never_ms
WHERE turn_id = :turn_id AND state = 'ready'
  AND EXISTS (SELECT 1 FROM provider_call c WHERE c.turn_id = turn.turn_id AND c.attempt = turn.attempt AND c.state = 'sent'
              AND c.call_id <= :last_call AND c.batch_id IS NOT NULL)

-- back_session
-- why: the lane has the places it had, and holds what waits in it.
UPDATE session SET tail = :tail, suspended = 1, changes = changes + 1,
                   pending = (SELECT COUNT(*) FROM turn WHERE turn.session_id = :session_id
                              AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out'))
WHERE session_id = :session_id

-- back_end_agents
-- why: agents that came after the checkpoint end, before those whose names they may bear live again.
UPDATE agent SET status = 'terminated', ended_at_ms = :now_ms
WHERE orchestration_id = :orchestration_id AND status = 'active' AND agent_id NOT IN (SELECT value FROM json_each(:agents))
RETURNING agent_id, name

-- back_agent
-- why: an agent as it was.
UPDATE agent SET parent_id = :parent_id, status = :status, provider = :provider, model = :model,
                 capabilities = :capabilities, settings = :settings, ended_at_ms = :ended_at_ms, draining = :draining,
                 successor_id = :successor_id, respawns = :respawns, routing_level = :routing_level,
                 subscription_level = :subscription_level, error_level = :error_level, wake = :wake
WHERE agent_id = :agent_id

-- back_limits
-- why: limits as they were; with `tighter` none that was lowered since is raised.
UPDATE account SET
    limit_usd_micros = CASE WHEN :tighter THEN MIN(COALESCE(:limit_usd_micros, limit_usd_micros), COALESCE(limit_usd_micros, :limit_usd_micros)) ELSE :limit_usd_micros END,
    limit_tokens = CASE WHEN :tighter THEN MIN(COALESCE(:limit_tokens, limit_tokens), COALESCE(limit_tokens, :limit_tokens)) ELSE :limit_tokens END,
    limit_turns = CASE WHEN :tighter THEN MIN(COALESCE(:limit_turns, limit_turns), COALESCE(limit_turns, :limit_turns)) ELSE :limit_turns END,
    limit_seconds = CASE WHEN :tighter THEN MIN(COALESCE(:limit_seconds, limit_seconds), COALESCE(limit_seconds, :limit_seconds)) ELSE :limit_seconds END,
    policy = CASE WHEN :tighter THEN policy ELSE :policy END
WHERE account_id = :account_id

-- back_delayed
-- why: what was to fire by then replaces what is to fire now.
DELETE FROM delayed_event WHERE orchestration_id = :orchestration_id

-- put_delayed
-- why: it waits, and its time runs when the run is resumed.
INSERT INTO delayed_event (due_ms, event, data, condition, context, orchestration_id, held)
VALUES (:remaining_ms, :event, :data, :condition, :context, :orchestration_id, 1)

-- back_injections
-- why: words that were put in since then belong to the time line that is left.
UPDATE injection SET turn_id = :checkpoint_id
WHERE injection_id > :last_injection
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)
  AND (turn_id IS NULL OR turn_id IN (SELECT value FROM json_each(:turn_ids)))

-- back_injection
-- why: words go back to their turn, or wait again; those that a turn of then has taken since stay with it.
UPDATE injection SET turn_id = :turn_id
WHERE injection_id = :injection_id
  AND (:turn_id IS NOT NULL OR turn_id NOT IN (SELECT value FROM json_each(:turn_ids)))

-- waiting_injection_of
-- why: a turn that was begun once takes no words any more, so it must be given those that wait.
UPDATE injection SET turn_id = :turn_id WHERE session_id = :session_id AND turn_id IS NULL

-- attempts
-- why: which turns were begun since the checkpoint.
SELECT turn_id, session_id, attempt FROM turn WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))

-- left_tools
-- why: which tools were used in what is left, to tell what stays from what is undone.
SELECT DISTINCT tool FROM tool_call WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))

-- keep_results
-- why: with the same answer these are given again, not done again.
INSERT INTO kept_result (turn_id, round, idx)
SELECT turn_id, round, idx FROM tool_call
WHERE turn_id IN (SELECT value FROM json_each(:turn_ids)) AND is_error = 0
  AND tool IN (SELECT value FROM json_each(:kept_tools))
ON CONFLICT DO NOTHING

-- effects
-- why: what a restore leaves done, for whoever asked for it.
SELECT tool_call.turn_id, tool_call.round, tool_call.idx, agent.name, tool_call.tool
FROM tool_call JOIN turn USING (turn_id) JOIN agent ON agent.agent_id = turn.session_id
WHERE tool_call.turn_id IN (SELECT value FROM json_each(:turn_ids)) AND is_error = 0
  AND tool IN (SELECT value FROM json_each(:kept_tools))
ORDER BY tool_call.at_ms DESC, tool_call.turn_id, round, idx

-- make_reusable
-- why: what was bought since the checkpoint is given to the very same requests.
INSERT INTO reusable (orchestration_id, agent_name, request_hash, call_id)
SELECT :orchestration_id, agent.name, request_hash, call_id
FROM provider_call AS said JOIN turn USING (turn_id) JOIN agent ON agent.agent_id = turn.session_id
WHERE said.turn_id IN (SELECT value FROM json_each(:turn_ids)) AND said.state = 'answered' AND request_hash IS NOT NULL
  AND (call_id > :last_call OR said.round > COALESCE((SELECT had.value ->> 1 FROM json_each(:rounds) AS had
                                                      WHERE had.value ->> 0 = said.turn_id), -1))
ORDER BY call_id

-- event_at
-- why: where a window begins in the log is found by halving, not by reading.
SELECT event_id, at_ms FROM event WHERE event_id >= :event_id ORDER BY event_id LIMIT 1

-- ended_turns
-- why: the turns that ended in a window, newest first; the log knows them in the order of their ends.
SELECT turn.turn_id, turn.session_id, turn.orchestration_id, turn.state, turn.created_at_ms, turn.started_at_ms,
       turn.finished_at_ms, turn.rescues, agent.name, agent.model
FROM event JOIN turn ON turn.turn_id = json_extract(event.data, '$.turn')
JOIN agent ON agent.agent_id = turn.session_id
WHERE event.event_id >= :first AND event.name IN ('completion:result', 'completion:failed', 'completion:cancelled')
  AND (:orchestration_id IS NULL OR turn.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR turn.session_id IN (SELECT value FROM json_each(:visible)))
ORDER BY event.event_id DESC LIMIT :limit

-- calls_of_turns
-- why: what those turns took: calls, failed ones, tokens and money, for each model that was asked.
SELECT turn_id, model, COUNT(*) AS calls, SUM(state IN ('failed', 'uncertain')) AS failed,
       SUM(input_tokens + output_tokens + cache_tokens) AS tokens, SUM(cost_usd_micros) AS usd_micros
FROM provider_call WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))
GROUP BY turn_id, model ORDER BY MAX(call_id)

-- lanes
-- why: every session with work has exactly one head, so this reads the busy sessions and no others.
SELECT head.session_id, head.orchestration_id, head.state, head.parked_on, head.held, head.created_at_ms,
       session.pending, agent.name, agent.model,
       (SELECT next.created_at_ms FROM turn AS next WHERE next.session_id = head.session_id AND next.state = 'queued'
        ORDER BY next.priority DESC, next.seq LIMIT 1) AS next_ms
FROM turn AS head JOIN session ON session.session_id = head.session_id
JOIN agent ON agent.agent_id = head.session_id
WHERE head.state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
  AND (:orchestration_id IS NULL OR head.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR head.session_id IN (SELECT value FROM json_each(:visible)))
LIMIT :limit

-- scores
-- why: how far the newest judgements lie apart.
SELECT decision.agent, decision.orchestration_id, decision.score
FROM (SELECT agent, orchestration_id, score, at_ms FROM decision ORDER BY rowid DESC LIMIT :limit) AS decision
WHERE decision.score IS NOT NULL AND decision.at_ms >= :since_ms
  AND (:orchestration_id IS NULL OR decision.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR decision.agent IN (SELECT value FROM json_each(:visible)))

-- scores_of_runs
-- why: the runs that were judged, newest first.
SELECT run.orchestration_id, run.score
FROM (SELECT orchestration_id, score, ended_at_ms FROM orchestration ORDER BY n DESC LIMIT :limit) AS run
WHERE run.score IS NOT NULL AND run.ended_at_ms >= :since_ms
  AND (:orchestration_id IS NULL OR run.orchestration_id = :orchestration_id)
  AND (:visible_runs IS NULL OR run.orchestration_id IN (SELECT value FROM json_each(:visible_runs)))

-- rule_uses
-- why: what each rule delivered in a window, and what it could not.
SELECT json_extract(data, '$.rule_id') AS rule_id, name, COUNT(*) AS times
FROM (SELECT data, name FROM event
      WHERE event_id >= :first AND name IN ('routing:delivered', 'routing:undeliverable', 'routing:mapping_failed',
                                            'routing:condition_failed')
        AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
        AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible)))
      ORDER BY event_id DESC LIMIT :limit)
GROUP BY rule_id, name

-- silent_turns
-- why: turns at work for so long that they might be stuck, and when each last showed that it is alive.
SELECT turn.turn_id, turn.session_id, turn.orchestration_id, turn.root_id, turn.depth, turn.attempt, turn.started_at_ms,
       agent.name, COALESCE(turn.timeout_s, json_extract(agent.settings, '$.timeout_s')) AS asked_s,
       MAX(turn.started_at_ms,
           COALESCE((SELECT MAX(MAX(sent_at_ms, COALESCE(ended_at_ms, 0))) FROM provider_call
                     WHERE provider_call.turn_id = turn.turn_id), 0),
           COALESCE((SELECT MAX(at_ms) FROM tool_call WHERE tool_call.turn_id = turn.turn_id), 0)) AS active_ms
FROM turn JOIN agent ON agent.agent_id = turn.session_id
WHERE turn.state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND turn.state = 'running'
  AND turn.started_at_ms <= :before_ms
LIMIT :limit

-- reported_stuck
-- why: each stuck turn is reported once, also across restarts of the worker.
SELECT 1 FROM event WHERE agent_id = :agent_id AND name = 'monitor:stuck_agent' AND cause_id = :cause_id LIMIT 1

-- newest_of_condition
-- why: whether a condition was reported and not cleared when the last worker ended.
SELECT event_id FROM event WHERE name = :name AND (:condition IS NULL OR json_extract(data, '$.condition') = :condition)
ORDER BY event_id DESC LIMIT 1

-- fork_run
-- why: another run of the same pattern, as of a checkpoint; it goes on when it is resumed.
INSERT INTO orchestration (orchestration_id, pattern, pattern_hash, state, orchestrator, vars, max_depth, created_by,
                           started_at_ms, suspended_at_ms, origin_id, draining, checkpoint_every)
SELECT :new_id, pattern, pattern_hash, 'suspended', orchestrator, vars, max_depth, :created_by, :now_ms, :now_ms,
       orchestration_id, :draining, checkpoint_every
FROM orchestration WHERE orchestration_id = :orchestration_id

-- fork_agent
-- why: the same agent in another run.
INSERT INTO agent (agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system,
                   capabilities, settings, created_by, created_at_ms, last_active_ms, draining, respawns,
                   routing_level, subscription_level, error_level, wake)
SELECT :new_id, name, composition, :new_parent_id, :new_run_id, 'active', :provider, :model, system,
       :capabilities, :settings, :created_by, :now_ms, :now_ms, :draining, :respawns,
       :routing_level, :subscription_level, :error_level, :wake
FROM agent WHERE agent_id = :agent_id

-- fork_past
-- why: the turns of these agents that had ended by then.
SELECT turn_id, session_id FROM turn
WHERE session_id IN (SELECT value ->> 0 FROM json_each(:agents)) AND seq > 0 AND n <= :last_turn
  AND turn_id NOT IN (SELECT value FROM json_each(:turn_ids))
ORDER BY n

-- fork_turns
-- why: the conversation is the other run's own: nothing that becomes of the first touches it. It costs nothing there.
INSERT INTO turn (turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event,
                  timeout_s, op_class, created_by, cause_id, root_id, hops, depth, attempt, result, partial_text,
                  error_class, error, created_at_ms, started_at_ms, finished_at_ms, expect, checks, cache, link,
                  first_error, answered_by, rescues)
SELECT mine.value ->> 1, agents.value ->> 1, seq, priority,
       CASE WHEN state IN ('done', 'failed', 'cancelled', 'timed_out') THEN state ELSE 'cancelled' END,
       run_at_ms, :new_run_id, provider, prompt, reply_event, timeout_s, op_class,
       COALESCE((SELECT 'agent:' || (other.value ->> 1) FROM json_each(:agents) AS other
                 WHERE 'agent:' || (other.value ->> 0) = turn.created_by), created_by),
       cause_id, root_id, hops, depth, attempt, result, partial_text, error_class, error, created_at_ms, started_at_ms,
       finished_at_ms, expect, checks, cache, link, first_error, answered_by, rescues
FROM json_each(:turns) AS mine JOIN turn ON turn.turn_id = mine.value ->> 0
JOIN json_each(:agents) AS agents ON agents.value ->> 0 = mine.value ->> 2
ORDER BY turn.n

-- fork_calls
-- why: what the model said; who paid for it stays who it was.
INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, answer, input_tokens, output_tokens,
                           cache_tokens, sent_at_ms, ended_at_ms, request_hash, reused_from)
SELECT mine.value ->> 1, said.round, said.attempt, :hold_id, said.provider, said.model, 'answered', said.answer,
       said.input_tokens, said.output_tokens, said.cache_tokens, said.sent_at_ms, said.ended_at_ms, said.request_hash,
       COALESCE(said.reused_from, said.call_id)
FROM json_each(:turns) AS mine JOIN provider_call AS said ON said.turn_id = mine.value ->> 0
WHERE said.state = 'answered' AND (mine.value ->> 3 IS NULL OR said.round <= mine.value ->> 3)
ORDER BY said.call_id

-- fork_tools
-- why: what its tools gave back by then.
INSERT INTO tool_call (turn_id, round, idx, tool, args, result, is_error, at_ms)
SELECT mine.value ->> 1, round, idx, tool, args, result, is_error, at_ms
FROM json_each(:turns) AS mine JOIN tool_call ON tool_call.turn_id = mine.value ->> 0
WHERE mine.value ->> 3 IS NULL
   OR EXISTS (SELECT 1 FROM json_each(:had) AS had WHERE had.value ->> 0 = tool_call.turn_id
              AND had.value ->> 1 = tool_call.round AND had.value ->> 2 = tool_call.idx)

-- fork_notes
-- why: what was said to the model between its rounds.
INSERT INTO round_note (turn_id, round, text, at_ms)
SELECT mine.value ->> 1, round, text, at_ms
FROM json_each(:turns) AS mine JOIN round_note ON round_note.turn_id = mine.value ->> 0
WHERE mine.value ->> 3 IS NULL OR round <= mine.value ->> 3

-- fork_injections
-- why: words that were put into what had ended by then.
INSERT INTO injection (session_id, position, content, created_by, turn_id, at_ms)
SELECT agents.value ->> 1, position, content, created_by, mine.value ->> 1, at_ms
FROM json_each(:turns) AS mine JOIN injection ON injection.turn_id = mine.value ->> 0
JOIN json_each(:agents) AS agents ON agents.value ->> 0 = injection.session_id
WHERE mine.value ->> 3 IS NULL

-- fork_injection
-- why: words that waited then, or belonged to a turn that had not ended.
INSERT INTO injection (session_id, position, content, created_by, turn_id, at_ms)
SELECT agents.value ->> 1, position, content, created_by, :turn_id, at_ms
FROM injection JOIN json_each(:agents) AS agents ON agents.value ->> 0 = injection.session_id
WHERE injection_id = :injection_id

-- fork_event
-- why: an event that the router had not delivered by then is delivered in the other run.
SELECT * FROM event WHERE event_id = :event_id

-- fork_since
-- why: the turns of these agents that may hold answers bought since the checkpoint.
SELECT turn_id FROM turn
WHERE session_id IN (SELECT value ->> 0 FROM json_each(:agents))
  AND (n > :last_turn OR turn_id IN (SELECT value FROM json_each(:turn_ids)))
ORDER BY n

-- insert_evaluation
-- why: runs of cases belong together; a call that is made again after a crash goes on with the same one.
INSERT INTO evaluation (evaluation_id, name, hash, suite, repeats, created_by, created_at_ms)
VALUES (:evaluation_id, :name, :hash, :suite, :repeats, :created_by, :now_ms)
ON CONFLICT (evaluation_id) DO NOTHING

-- evaluation
-- why: an evaluation that takes longer than one call is gone on with.
SELECT evaluation_id, name, hash, suite, repeats, created_by FROM evaluation WHERE evaluation_id = :evaluation_id

-- end_evaluation
-- why: its end is told once, however often somebody looks at it later.
UPDATE evaluation SET ended_at_ms = :now_ms WHERE evaluation_id = :evaluation_id AND ended_at_ms IS NULL

-- insert_evaluation_run
-- why: which run is one of which case, before the run ends: its record says so then.
INSERT INTO evaluation_run (run_id, evaluation_id, case_name, turn_id)
VALUES (:run_id, :evaluation_id, :case_name, :turn_id)

-- set_evaluation_problems
-- why: what the check of an answer found; an empty list is a pass.
UPDATE evaluation_run SET problems = :problems WHERE run_id = :run_id

-- evaluation_runs
-- why: how far an evaluation is, and its census.
SELECT e.run_id, e.case_name, e.turn_id, e.problems, r.outcome
FROM evaluation_run e LEFT JOIN composition_run r ON r.run_id = e.run_id
WHERE e.evaluation_id = :evaluation_id
ORDER BY e.rowid

-- overview_heads
-- why: every session with work has exactly one head, so this reads the busy sessions and no others, those at work first.
SELECT head.session_id, head.state, head.parked_on, head.created_at_ms, session.pending,
       agent.name, agent.model, agent.orchestration_id,
       (SELECT next.created_at_ms FROM turn AS next WHERE next.session_id = head.session_id AND next.state = 'queued'
        ORDER BY next.priority DESC, next.seq LIMIT 1) AS next_ms
FROM turn AS head JOIN session ON session.session_id = head.session_id
JOIN agent ON agent.agent_id = head.session_id
WHERE head.state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
  AND (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR head.session_id IN (SELECT value FROM json_each(:visible)))
ORDER BY CASE head.state WHEN 'running' THEN 0 WHEN 'parked' THEN 1 WHEN 'retrying' THEN 2 WHEN 'blocked' THEN 3 ELSE 4 END,
         head.n
LIMIT :limit

-- overview_idle
-- why: agents that have nothing to do come after those that have; the living first, in the order of their making.
SELECT agent.agent_id FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE session.pending = 0 AND (agent.status = 'active' OR :ended)
  AND (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent.agent_id IN (SELECT value FROM json_each(:visible)))
  AND (:find IS NULL OR instr(lower(agent.name || ' ' || agent.agent_id || ' ' || agent.model || ' '
                                    || COALESCE(agent.orchestration_id, '')), :find))
ORDER BY agent.status <> 'active', agent.n LIMIT :limit OFFSET :offset

-- overview_idle_count
-- why: how many pages of them there are.
SELECT COUNT(*) AS agents FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE session.pending = 0 AND (agent.status = 'active' OR :ended)
  AND (:orchestration_id IS NULL OR agent.orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent.agent_id IN (SELECT value FROM json_each(:visible)))
  AND (:find IS NULL OR instr(lower(agent.name || ' ' || agent.agent_id || ' ' || agent.model || ' '
                                    || COALESCE(agent.orchestration_id, '')), :find))

-- overview_agents
-- why: one page of agents: what each is at, how far that is, what it has cost, what it said last.
SELECT agent.agent_id, agent.name, agent.orchestration_id, agent.status, agent.draining, agent.provider, agent.model,
       session.pending, session.tail, session.suspended,
       account.spent_usd_micros, account.spent_tokens, account.limit_usd_micros, account.closed,
       head.turn_id, head.state, head.parked_on, head.tries, head.error, head.created_at_ms, head.started_at_ms,
       head.run_at_ms, head.streamed_chars, substr(head.partial_text, -:chars) AS partial_text,
       (SELECT COUNT(*) FROM turn_wait WHERE turn_wait.turn_id = head.turn_id) AS waits_for,
       (SELECT MAX(call.round) FROM provider_call AS call WHERE call.turn_id = head.turn_id) AS round,
       (SELECT call.model FROM provider_call AS call WHERE call.turn_id = head.turn_id
        ORDER BY call.call_id DESC LIMIT 1) AS asked_model,
       (SELECT substr(COALESCE(past.result, past.error, ''), 1, :chars) FROM turn AS past
        WHERE past.session_id = agent.agent_id AND past.seq BETWEEN 1 AND session.tail - session.pending
          AND past.state IN ('done', 'failed', 'timed_out')
        ORDER BY past.seq DESC LIMIT 1) AS said,
       (SELECT past.state FROM turn AS past
        WHERE past.session_id = agent.agent_id AND past.seq BETWEEN 1 AND session.tail - session.pending
          AND past.state IN ('done', 'failed', 'timed_out')
        ORDER BY past.seq DESC LIMIT 1) AS said_state,
       (SELECT past.error_class FROM turn AS past
        WHERE past.session_id = agent.agent_id AND past.seq BETWEEN 1 AND session.tail - session.pending
          AND past.state IN ('done', 'failed', 'timed_out')
        ORDER BY past.seq DESC LIMIT 1) AS said_class
FROM json_each(:agent_ids) AS wanted JOIN agent ON agent.agent_id = wanted.value
JOIN session ON session.session_id = agent.agent_id JOIN account ON account.account_id = agent.agent_id
LEFT JOIN turn AS head ON head.session_id = agent.agent_id
     AND head.state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
ORDER BY wanted.key

-- overview_run
-- why: how far one run is; what it still waits for besides turns.
SELECT (SELECT COUNT(*) FROM agent WHERE agent.orchestration_id = :orchestration_id AND status = 'active') AS agents,
       (SELECT COALESCE(SUM(session.pending), 0) FROM agent JOIN session ON session.session_id = agent.agent_id
        WHERE agent.orchestration_id = :orchestration_id) AS pending,
       (SELECT COALESCE(SUM(session.tail), 0) FROM agent JOIN session ON session.session_id = agent.agent_id
        WHERE agent.orchestration_id = :orchestration_id) AS turns,
       (SELECT MIN(due_ms) FROM delayed_event WHERE orchestration_id = :orchestration_id AND held = 0) AS delayed_ms,
       (SELECT MIN(due_ms) FROM join_open WHERE orchestration_id = :orchestration_id AND remaining_ms IS NULL) AS join_ms

-- overview_living
-- why: how many agents there are, from the index of living names alone.
SELECT COUNT(*) AS agents FROM agent WHERE status = 'active'
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible)))

-- overview_states
-- why: how many runs are open, from the index alone.
SELECT state, COUNT(*) AS runs FROM orchestration WHERE state IN ('running', 'suspended')
  AND (:visible IS NULL OR orchestration_id IN (SELECT value FROM json_each(:visible))) GROUP BY state

-- overview_breakers
-- why: models that are not asked at the moment.
SELECT provider, family, state, opened_at_ms FROM breaker WHERE state <> 'closed' ORDER BY provider, family LIMIT 20

-- overview_names
-- why: people know agents by their names.
SELECT agent_id, name FROM agent WHERE agent_id IN (SELECT value FROM json_each(:agent_ids))

-- overview_sources
-- why: who emitted what was delivered.
SELECT event_id, source FROM event WHERE event_id IN (SELECT value FROM json_each(:event_ids))
