-- insert
-- why: a place for the task, taken in the transaction of what the call does; it goes soon unless the call is made.
INSERT INTO task (task_id, actor, tool, status, created_at_ms, updated_at_ms, expires_at_ms)
VALUES (:task_id, :actor, :tool, 'working', :now_ms, :now_ms, :expires_at_ms)

-- counts
-- why: how many somebody has, so that there is an end to it.
SELECT COUNT(*) AS kept, COALESCE(SUM(status IN ('working', 'input_required')), 0) AS open
FROM task WHERE actor = :actor AND expires_at_ms > :now_ms

-- one
-- why: by its id, for whoever made it, for as long as it is kept.
SELECT * FROM task WHERE task_id = :task_id AND actor = :actor AND expires_at_ms > :now_ms

-- exists
-- why: a place is taken once, however many transactions the call has.
SELECT 1 FROM task WHERE task_id = :task_id

-- begin
-- why: the call is made; from here on it can be asked about.
UPDATE task SET waits_for = :waits_for, status_message = :message, expires_at_ms = created_at_ms + :for_ms
WHERE task_id = :task_id

-- note
-- why: how far it is, when that has changed; never of one that has ended.
UPDATE task SET status = :status, status_message = :message, waits_for = COALESCE(:waits_for, waits_for),
                updated_at_ms = :now_ms
WHERE task_id = :task_id AND status IN ('working', 'input_required')

-- end
-- why: the first word on it is the last; zero rows means that there was one.
UPDATE task SET status = :status, status_message = :message, result = :result, updated_at_ms = :now_ms
WHERE task_id = :task_id AND status IN ('working', 'input_required')

-- set_asked
-- why: what was answered, so that the same thing is not asked again.
UPDATE task SET asked = :asked WHERE task_id = :task_id AND status IN ('working', 'input_required')

-- drop
-- why: the result was there at once, so nobody was told of the task.
DELETE FROM task WHERE task_id = :task_id

-- expired
-- why: nothing is written where nothing is old.
SELECT 1 FROM task WHERE expires_at_ms <= :now_ms LIMIT 1

-- drop_expired
-- why: the oldest first, a little at a time.
DELETE FROM task WHERE task_id IN
    (SELECT task_id FROM task WHERE expires_at_ms <= :now_ms ORDER BY expires_at_ms LIMIT :limit)

-- goes_on
-- why: whether anything of a run happens by itself; of turns, those that no parked one holds back.
SELECT EXISTS (SELECT 1 FROM turn WHERE orchestration_id = :orchestration_id
               AND state NOT IN ('done', 'failed', 'cancelled', 'timed_out')
               AND session_id NOT IN (SELECT session_id FROM turn WHERE orchestration_id = :orchestration_id
                                      AND state = 'parked' AND parked_on IN ('answer', 'budget')))
    OR EXISTS (SELECT 1 FROM outbox JOIN event USING (event_id) WHERE event.orchestration_id = :orchestration_id)
    OR EXISTS (SELECT 1 FROM delayed_event WHERE orchestration_id = :orchestration_id)
    OR EXISTS (SELECT 1 FROM join_open WHERE orchestration_id = :orchestration_id AND due_ms IS NOT NULL)
    OR EXISTS (SELECT 1 FROM agent JOIN orchestration AS run ON run.created_by = 'agent:' || agent.agent_id
               WHERE agent.orchestration_id = :orchestration_id AND run.state IN ('running', 'suspended'))
    OR (SELECT at_ms FROM event WHERE orchestration_id = :orchestration_id ORDER BY event_id DESC LIMIT 1) > :recent_ms
    AS goes_on
