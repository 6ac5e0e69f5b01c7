-- open_session
-- why: each agent gets its lane when it is spawned.
INSERT INTO session (session_id) VALUES (:session_id)

-- take_place
-- why: the next place in the lane; the first pending turn is its head.
UPDATE session SET tail = tail + 1, pending = pending + 1 WHERE session_id = :session_id
RETURNING tail, pending

-- enqueue
-- why: a turn enters; it is ready at once only as the head of its lane.
INSERT INTO turn (turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event,
                  timeout_s, op_class, created_by, cause_id, root_id, hops, depth, created_at_ms)
VALUES (:turn_id, :session_id, :seq, :priority, :state, :now_ms, :orchestration_id, :provider, :prompt, :reply_event,
        :timeout_s, :op_class, :created_by, :cause_id, :root_id, :hops, :depth, :now_ms)

-- claim
-- why: the oldest ready heads; only heads are in the index, so the cost does not grow with what waits.
UPDATE turn SET state = 'running', attempt = attempt + 1, owner = :owner,
                started_at_ms = COALESCE(started_at_ms, :now_ms)
WHERE n IN (SELECT n FROM turn WHERE state IN ('ready', 'retrying') AND run_at_ms <= :now_ms
            ORDER BY run_at_ms, n LIMIT :limit)
RETURNING *

-- next_ready
-- why: how long a worker with nothing to claim may sleep.
SELECT MIN(run_at_ms) AS run_at_ms FROM turn WHERE state IN ('ready', 'retrying')

-- owned
-- why: every write of a running turn asks this first; no row means that it was taken over or ended.
SELECT 1 FROM turn WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- finish
-- why: the end of a turn, by its owner only.
UPDATE turn SET state = :state, result = :result, partial_text = :partial_text, error_class = :error_class,
                error = :error, owner = NULL, finished_at_ms = :now_ms
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner
RETURNING cost_usd_micros, tokens, tries

-- cancel
-- why: ends a turn that is not finished, whoever runs it; the owner's later writes find no row.
UPDATE turn SET state = 'cancelled', owner = NULL, error = :reason, finished_at_ms = :now_ms
WHERE turn_id = :turn_id AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
RETURNING *

-- leave
-- why: one turn less in the lane.
UPDATE session SET pending = pending - 1 WHERE session_id = :session_id RETURNING pending

-- promote
-- why: the next of the lane becomes its head: injected ones first, then by place; never while one is at work.
UPDATE turn SET state = 'ready', run_at_ms = MAX(run_at_ms, :now_ms)
WHERE n = (SELECT n FROM turn WHERE session_id = :session_id AND state = 'queued' ORDER BY priority DESC, seq LIMIT 1)
  AND NOT EXISTS (SELECT 1 FROM turn WHERE session_id = :session_id
                  AND state IN ('ready', 'running', 'retrying', 'blocked'))

-- retry
-- why: the head keeps its place and holds its session until its time.
UPDATE turn SET state = 'retrying', run_at_ms = :run_at_ms, owner = NULL, tries = tries + 1, error = :error,
                partial_text = :partial_text
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- block
-- why: out of the ready index until whatever holds the budget lets go.
UPDATE turn SET state = 'blocked', owner = NULL, blocked_on = :account_id
WHERE turn_id = :turn_id AND state = 'running' AND attempt = :attempt AND owner = :owner

-- unblock
-- why: room changed in these accounts; whoever waited for one of them asks again.
UPDATE turn SET state = 'ready', run_at_ms = :now_ms, blocked_on = NULL
WHERE state = 'blocked' AND blocked_on IN (SELECT value FROM json_each(:accounts))

-- answered
-- why: a stored answer ends the count of failed tries of its round and adds what it cost.
UPDATE turn SET tries = 0, cost_usd_micros = cost_usd_micros + :usd_micros, tokens = tokens + :tokens
WHERE turn_id = :turn_id

-- charge
-- why: what a turn cost is booked on it even if its answer is discarded.
UPDATE turn SET cost_usd_micros = cost_usd_micros + :usd_micros, tokens = tokens + :tokens WHERE turn_id = :turn_id

-- take_over
-- why: the lock proves that no other worker lives, so what others were running is ready again; a try was lost.
UPDATE turn SET state = 'ready', owner = NULL, run_at_ms = :now_ms, tries = tries + 1
WHERE state IN ('ready', 'running', 'retrying', 'blocked') AND state = 'running' AND owner <> :owner
RETURNING turn_id

-- give_back
-- why: a turn whose step could not be stored is claimed again later, and what it left open is closed then.
UPDATE turn SET state = 'retrying', owner = NULL, run_at_ms = :run_at_ms, tries = tries + 1
WHERE state = 'running' AND owner = :owner AND turn_id IN (SELECT value FROM json_each(:turn_ids))

-- one
-- why: a turn by its id.
SELECT * FROM turn WHERE turn_id = :turn_id

-- some
-- why: the turns somebody waits for.
SELECT * FROM turn WHERE turn_id IN (SELECT value FROM json_each(:turn_ids)) ORDER BY n

-- last_of_sessions
-- why: waiting for an agent means waiting for the newest turn it was given.
SELECT t.* FROM turn t JOIN session s ON s.session_id = t.session_id AND s.tail = t.seq
WHERE t.session_id IN (SELECT value FROM json_each(:session_ids)) ORDER BY t.n

-- unfinished_of_session
-- why: what has to be cancelled when an agent ends.
SELECT turn_id FROM turn WHERE session_id = :session_id AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
ORDER BY seq

-- census_of_orchestration
-- why: how far a run is.
SELECT state, COUNT(*) AS turns, COALESCE(SUM(cost_usd_micros), 0) AS usd_micros, COALESCE(SUM(tokens), 0) AS tokens
FROM turn WHERE orchestration_id = :orchestration_id GROUP BY state

-- running_elsewhere
-- why: of the turns this worker runs, those that were cancelled by another process.
SELECT value AS turn_id FROM json_each(:turn_ids)
WHERE value NOT IN (SELECT turn_id FROM turn
                    WHERE state IN ('ready', 'running', 'retrying', 'blocked') AND state = 'running' AND owner = :owner)

-- open_turns
-- why: whether a worker still has anything to wait for.
SELECT EXISTS (SELECT 1 FROM turn WHERE state IN ('ready', 'running', 'retrying', 'blocked')) AS open

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
                                             WHERE state IN ('ready', 'running', 'retrying', 'blocked') AND state = 'running')

-- waits_of_session
-- why: the sessions that the running turn of a session waits for.
SELECT DISTINCT t.session_id FROM turn_wait w JOIN turn t ON t.turn_id = w.on_turn_id
JOIN turn waiter ON waiter.turn_id = w.turn_id AND waiter.state = 'running'
WHERE w.session_id = :session_id AND t.state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
