-- open_session
-- why: each agent gets its lane when it is spawned.
INSERT INTO session (session_id) VALUES (:session_id)

-- take_place
-- why: the next place in the lane; the first pending turn is its head.
UPDATE session SET tail = tail + 1, pending = pending + 1 WHERE session_id = :session_id
RETURNING tail, pending, suspended

-- enqueue
-- why: a turn enters; it is ready at once only as the head of its lane.
INSERT INTO turn (turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event,
                  timeout_s, op_class, created_by, cause_id, root_id, hops, depth, created_at_ms, held, expect, cache, batched)
VALUES (:turn_id, :session_id, :seq, :priority, :state, :now_ms, :orchestration_id, :provider, :prompt, :reply_event,
        :timeout_s, :op_class, :created_by, :cause_id, :root_id, :hops, :depth, :now_ms, :held, :expect, :cache, :batched)

-- claim
-- why: the oldest ready heads; only heads are in the index, so the cost does not grow with what waits.
UPDATE turn SET state = 'running', attempt = attempt + 1, owner = :owner, parked_on = NULL,
                started_at_ms = COALESCE(started_at_ms, :now_ms)
WHERE n IN (SELECT n FROM turn
            WHERE provider = :provider AND run_at_ms <= :now_ms
              AND held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'))
            ORDER BY run_at_ms, n LIMIT :limit)
RETURNING *

-- next_ready
-- why: which providers have turns that may run and from when: one step of the index each, however many wait.
WITH RECURSIVE waiting (provider) AS (
    SELECT MIN(provider) FROM turn
    WHERE held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'))
    UNION ALL
    SELECT (SELECT MIN(provider) FROM turn
            WHERE held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'))
              AND provider > waiting.provider)
    FROM waiting WHERE waiting.provider IS NOT NULL
)
SELECT provider, (SELECT MIN(run_at_ms) FROM turn
                  WHERE held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'))
                    AND turn.provider = waiting.provider) AS run_at_ms
FROM waiting WHERE provider IS NOT NULL

-- owned
-- why: every write of a running turn asks this first; no row means that it was taken over or ended.
SELECT session.suspended FROM turn JOIN session USING (session_id)
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- finish
-- why: the end of a turn, by its owner only.
UPDATE turn SET state = :state, result = :result, streamed_chars = 0, error_class = :error_class,
                partial_text = CASE :state WHEN 'done' THEN NULL ELSE COALESCE(:partial_text, partial_text) END, error = :error, owner = NULL, finished_at_ms = :now_ms,
                cost_usd_micros = cost_usd_micros + :usd_micros, tokens = tokens + :spent_tokens,
                tries = CASE WHEN :answered THEN 0 ELSE tries END
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner
RETURNING cost_usd_micros, tokens, tries, reused, checks, similarity

-- cancel
-- why: ends a turn that is not finished, whoever runs it; the owner's later writes find no row.
UPDATE turn SET state = 'cancelled', owner = NULL, error = :reason, finished_at_ms = :now_ms
WHERE turn_id = :turn_id AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
RETURNING *

-- leave
-- why: one turn less in the lane, and perhaps one more in the conversation.
UPDATE session SET pending = pending - 1, changes = changes + 1 WHERE session_id = :session_id RETURNING pending, suspended

-- promote
-- why: the next of the lane becomes its head, by priority and place; one with a question is parked as it gets there.
UPDATE turn SET state = CASE WHEN question IS NULL THEN 'ready' ELSE 'parked' END,
                parked_on = CASE WHEN question IS NOT NULL THEN COALESCE(parked_on, 'answer') END,
                held = :held, run_at_ms = MAX(run_at_ms, :now_ms)
WHERE n = (SELECT n FROM turn WHERE session_id = :session_id AND state = 'queued' ORDER BY priority DESC, seq LIMIT 1)
  AND NOT EXISTS (SELECT 1 FROM turn WHERE session_id = :session_id
                  AND state IN ('ready', 'running', 'retrying', 'blocked', 'parked'))

-- retry
-- why: the head keeps its place and holds its session until its time.
UPDATE turn SET state = 'retrying', run_at_ms = :run_at_ms, owner = NULL, tries = tries + :counts, error = :error,
                partial_text = :partial_text,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- block
-- why: out of the ready index until whatever holds the budget lets go.
UPDATE turn SET state = 'blocked', owner = NULL, blocked_on = :account_id
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- unblock
-- why: room changed in these accounts; whoever waited for one of them asks again.
UPDATE turn SET state = 'ready', run_at_ms = :now_ms, blocked_on = NULL,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE state = 'blocked' AND blocked_on IN (SELECT value FROM json_each(:accounts))

-- answered
-- why: a stored answer ends the count of failed tries of its round and adds what it cost.
UPDATE turn SET tries = 0, cost_usd_micros = cost_usd_micros + :usd_micros, tokens = tokens + :tokens, streamed_chars = 0
WHERE turn_id = :turn_id

-- streamed
-- why: what has arrived of a long answer, for those who wait and in case of a failure.
UPDATE turn SET partial_text = :partial_text, streamed_chars = :chars
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- charge
-- why: what a turn cost is booked on it even if its answer is discarded.
UPDATE turn SET cost_usd_micros = cost_usd_micros + :usd_micros, tokens = tokens + :tokens WHERE turn_id = :turn_id

-- take_over
-- why: the lock proves that no other worker lives, so what others were running is ready again; a try was lost.
UPDATE turn SET state = 'ready', owner = NULL, run_at_ms = :now_ms, tries = tries + 1,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state = 'running' AND owner <> :owner
RETURNING turn_id

-- give_back
-- why: a turn whose step could not be stored is claimed again later, and what it left open is closed then.
UPDATE turn SET state = 'retrying', owner = NULL, run_at_ms = :run_at_ms, tries = tries + 1,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE state = 'running' AND owner = :owner AND turn_id IN (SELECT value FROM json_each(:turn_ids))

-- one
-- why: a turn by its id.
SELECT * FROM turn WHERE turn_id = :turn_id

-- some
-- why: the turns somebody waits for.
SELECT * FROM turn WHERE turn_id IN (SELECT value FROM json_each(:turn_ids)) ORDER BY n

-- last_of_sessions
-- why: waiting for an agent means waiting for the newest turn it was given, and still has.
SELECT t.* FROM (SELECT DISTINCT value FROM json_each(:session_ids)) AS one JOIN turn t ON t.session_id = one.value
 AND t.seq = (SELECT MAX(last.seq) FROM turn AS last WHERE last.session_id = one.value) ORDER BY t.n

-- unfinished_of_session
-- why: what has to be cancelled when an agent ends.
SELECT turn_id FROM turn WHERE session_id = :session_id AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
ORDER BY seq

-- census_of_orchestration
-- why: how far a run is.
SELECT state, COUNT(*) AS turns, COALESCE(SUM(cost_usd_micros), 0) AS usd_micros, COALESCE(SUM(tokens), 0) AS tokens
FROM turn WHERE orchestration_id = :orchestration_id GROUP BY state

-- running_elsewhere
-- why: of the attempts this worker is at, those that were cancelled, interrupted or taken over.
SELECT value ->> 0 AS turn_id, value ->> 1 AS attempt FROM json_each(:turns) AS asked
WHERE NOT EXISTS (SELECT 1 FROM turn WHERE turn.turn_id = asked.value ->> 0 AND turn.attempt = asked.value ->> 1
                                       AND turn.state = 'running' AND turn.owner = :owner)

-- open_turns
-- why: whether a worker still has anything to wait for.
SELECT EXISTS (SELECT 1 FROM turn WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
               AND held = 0 AND (state <> 'parked' OR parked_on IN ('breaker', 'batch'))) AS open

-- wait_edge
-- why: who waits for whom, so that a circle can be seen before it closes.
INSERT INTO turn_wait (turn_id, session_id, on_turn_id) VALUES (:turn_id, :session_id, :on_turn_id)
ON CONFLICT DO NOTHING

-- end_wait
-- why: the wait is over.
DELETE FROM turn_wait WHERE turn_id = :turn_id

-- end_stale_waits
-- why: waits of turns that nobody runs any more, after a crash.
DELETE FROM turn_wait WHERE turn_id NOT IN (SELECT turn_id FROM turn
                                             WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state = 'running')

-- waits_of_session
-- why: the sessions that the running turn of a session waits for.
SELECT DISTINCT t.session_id FROM turn_wait w JOIN turn t ON t.turn_id = w.on_turn_id
JOIN turn waiter ON waiter.turn_id = w.turn_id AND waiter.state = 'running'
WHERE w.session_id = :session_id AND t.state NOT IN ('done', 'failed', 'cancelled', 'timed_out')

-- step_back
-- why: a running turn of a suspended session stops between two rounds; what it has stays stored.
UPDATE turn SET state = 'ready', owner = NULL, run_at_ms = :now_ms,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- suspended
-- why: a turn asks before each call whether its session still runs.
SELECT suspended FROM session WHERE session_id = :session_id

-- fail_over
-- why: the next of its agent's models is asked; its tries count anew, and the first error is kept.
UPDATE turn SET state = 'ready', owner = NULL, run_at_ms = :now_ms, tries = 0, link = :link, provider = :provider,
                first_error = COALESCE(first_error, :error),
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- park
-- why: out of the lanes until somebody answers, a limit is raised, or a breaker closes; its session waits with it.
UPDATE turn SET state = 'parked', owner = NULL, parked_on = :parked_on, question = :question, blocked_on = :account_id,
                run_at_ms = :run_at_ms, error = COALESCE(:error, error), partial_text = COALESCE(:partial_text, partial_text),
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- resume_batched
-- why: the result of a batch is there: the turn runs again, as the attempt that it was.
UPDATE turn SET state = 'running', owner = :owner, parked_on = NULL
WHERE turn_id = :turn_id AND state = 'parked' AND parked_on = 'batch'
  AND attempt = (SELECT c.attempt FROM provider_call c WHERE c.call_id = :call_id AND c.state = 'sent')
RETURNING *

-- unpark_budget
-- why: a limit was raised: whoever was parked on these accounts asks again.
UPDATE turn SET state = 'ready', parked_on = NULL, question = NULL, blocked_on = NULL, run_at_ms = :now_ms,
                held = (SELECT suspended FROM session WHERE session.session_id = turn.session_id)
WHERE state = 'parked' AND parked_on = 'budget' AND blocked_on IN (SELECT value FROM json_each(:accounts))

-- answer_parked
-- why: a person or a client answers instead of the model; only once.
UPDATE turn SET state = 'done', result = :result, answered_by = :answered_by, question = NULL, parked_on = NULL,
                finished_at_ms = :now_ms
WHERE turn_id = :turn_id AND state = 'parked' AND parked_on = 'answer'
RETURNING *

-- parked
-- why: the turns of a run, or of everything, that wait for somebody.
SELECT * FROM turn WHERE state = 'parked' AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
ORDER BY +n LIMIT :limit

-- checked
-- why: a reply that was not as expected is counted, whatever becomes of it.
UPDATE turn SET checks = checks + 1 WHERE turn_id = :turn_id

-- reused
-- why: a round that cost nothing, because its answer was there already.
UPDATE turn SET tries = 0, reused = reused + 1, similarity = COALESCE(:similarity, similarity) WHERE turn_id = :turn_id

-- unfinished_where
-- why: the turns of a session that may be moved, and those that fit but were begun.
SELECT turn_id, state, priority, seq, attempt > 0 AS begun FROM turn
WHERE session_id = :session_id AND state = 'queued'
  AND (:turn_ids IS NULL OR turn_id IN (SELECT value FROM json_each(:turn_ids)))
  AND (:created_by IS NULL OR created_by = :created_by)
  AND (:contains IS NULL OR instr(prompt, :contains) > 0)
  AND (:before_ms IS NULL OR created_at_ms <= :before_ms)
UNION ALL
SELECT turn_id, state, priority, seq, state <> 'ready' OR attempt > 0 AS begun FROM turn
WHERE session_id = :session_id AND state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
  AND (:turn_ids IS NULL OR turn_id IN (SELECT value FROM json_each(:turn_ids)))
  AND (:created_by IS NULL OR created_by = :created_by)
  AND (:contains IS NULL OR instr(prompt, :contains) > 0)
  AND (:before_ms IS NULL OR created_at_ms <= :before_ms)

-- take_places
-- why: places at the end of a lane for turns that come from another.
UPDATE session SET tail = tail + :count, pending = pending + :count WHERE session_id = :session_id
RETURNING tail, suspended

-- give_places
-- why: the places that moved turns leave.
UPDATE session SET pending = pending - :count WHERE session_id = :session_id

-- move
-- why: turns change their lane, in the order of the list, behind those that are there; whoever ran one has lost it.
UPDATE turn SET session_id = :target, seq = :after + 1 + moved.key, priority = 0, state = 'queued', owner = NULL,
                question = CASE WHEN parked_on IS NULL OR parked_on = 'answer' THEN question END,
                parked_on = CASE WHEN parked_on = 'answer' THEN parked_on END, blocked_on = NULL,
                run_at_ms = CASE WHEN run_at_ms >= :never_ms THEN :now_ms ELSE run_at_ms END,
                provider = COALESCE(:provider, provider), held = :held, moved_from = COALESCE(moved_from, session_id)
FROM json_each(:turn_ids) AS moved WHERE turn.turn_id = moved.value

-- end_waits_of
-- why: a turn that was taken from its worker waits for nobody until it runs again.
DELETE FROM turn_wait WHERE turn_id IN (SELECT value FROM json_each(:turn_ids))

-- waiters_of
-- why: who might wait for itself if these turns were moved.
SELECT w.on_turn_id, w.session_id FROM turn_wait w JOIN turn waiter ON waiter.turn_id = w.turn_id
WHERE w.on_turn_id IN (SELECT value FROM json_each(:turn_ids)) AND waiter.state = 'running'

-- step_aside
-- why: a head that was not begun lets another turn go first.
UPDATE turn SET state = 'queued' WHERE session_id = :session_id
  AND state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state = 'ready' AND attempt = 0

-- mark_rescue
-- why: how often a prompt was taken up again; with a question it is parked where it stands first.
UPDATE turn SET rescues = :rescues, priority = :priority, question = :question,
                state = CASE WHEN state = 'ready' AND :question IS NOT NULL THEN 'parked' ELSE state END,
                parked_on = CASE WHEN state = 'ready' AND :question IS NOT NULL THEN 'answer' END
WHERE turn_id = :turn_id

-- share_suspension
-- why: who takes the place of a held session is held too.
UPDATE session SET suspended = (SELECT suspended FROM session WHERE session_id = :source) WHERE session_id = :target

-- suspend_sessions
-- why: no turn of a run's agents starts any more; the flag is what every step of a turn goes by.
UPDATE session SET suspended = 1
WHERE suspended = 0 AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)

-- hold_heads
-- why: heads of suspended sessions leave the ready index; those at work stop by themselves.
UPDATE turn SET held = 1
WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state <> 'running' AND held = 0
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)

-- interrupt
-- why: what is at work goes back to the front of its session at once; the owner's later writes find no row.
UPDATE turn SET state = 'ready', held = 1, owner = NULL, run_at_ms = :now_ms
WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND state = 'running'
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)
  AND (:except_turn_id IS NULL OR turn_id <> :except_turn_id)
RETURNING turn_id, session_id, attempt

-- end_waits_of_held
-- why: a turn that was interrupted waits for nobody until it runs again.
DELETE FROM turn_wait WHERE turn_id IN (SELECT turn_id FROM turn
    WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND held = 1
      AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id))

-- held_census
-- why: how far a suspension is: what still runs, what is held at the front, what waits behind.
SELECT COALESCE(SUM(head.state = 'running'), 0) AS running,
       COALESCE(SUM(head.state <> 'running'), 0) AS held,
       COALESCE(SUM(session.pending), 0) - COUNT(head.turn_id) AS queued
FROM agent JOIN session ON session.session_id = agent.agent_id
LEFT JOIN turn AS head ON head.session_id = agent.agent_id
                      AND head.state IN ('ready', 'running', 'retrying', 'blocked', 'parked')
WHERE agent.orchestration_id = :orchestration_id

-- release_sessions
-- why: their turns may start again.
UPDATE session SET suspended = 0
WHERE suspended = 1 AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)

-- release_heads
-- why: heads are ready again; the wait of a retry stood still meanwhile.
UPDATE turn SET held = 0, run_at_ms = CASE state WHEN 'retrying' THEN run_at_ms + :paused_ms ELSE run_at_ms END
WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked') AND held = 1
  AND session_id IN (SELECT agent_id FROM agent WHERE orchestration_id = :orchestration_id)
