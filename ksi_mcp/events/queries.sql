-- insert
-- why: the only way into the log.
INSERT INTO event (name, data, source, agent_id, orchestration_id, cause_id, root_id, hops, depth, at_ms)
VALUES (:name, :data, :source, :agent_id, :orchestration_id, :cause_id, :root_id, :hops, :depth, :at_ms)
RETURNING event_id

-- to_outbox
-- why: in the transaction of the event, so that the router is certain to see it, later and apart.
INSERT INTO outbox (event_id) VALUES (:event_id)

-- last_id
-- why: where a live subscription begins.
SELECT COALESCE(MAX(event_id), 0) AS event_id FROM event

-- after
-- why: what other processes have committed since the last look.
SELECT * FROM event WHERE event_id > :after_id ORDER BY event_id LIMIT :limit

-- one
-- why: an event by its id, to explain or to route it.
SELECT * FROM event WHERE event_id = :event_id

-- page
-- why: newest first, before a cursor; names with wildcards are matched by the caller.
SELECT * FROM event
WHERE event_id < :before_id AND event_id > :after_id
  AND (:names IS NULL OR name IN (SELECT value FROM json_each(:names)))
  AND (:agent_id IS NULL OR agent_id = :agent_id)
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:root_id IS NULL OR root_id = :root_id)
  AND (:since_ms IS NULL OR at_ms >= :since_ms)
  AND (:until_ms IS NULL OR at_ms <= :until_ms)
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible))
       OR orchestration_id IN (SELECT value FROM json_each(:visible)))
ORDER BY event_id DESC LIMIT :limit

-- delay
-- why: an event that waits for its time survives a restart.
INSERT INTO delayed_event (due_ms, event, data, condition, context)
VALUES (:due_ms, :event, :data, :condition, :context) RETURNING delayed_id

-- due
-- why: what the worker has to fire now, oldest first.
SELECT * FROM delayed_event WHERE due_ms <= :now_ms ORDER BY due_ms, delayed_id LIMIT :limit

-- next_due
-- why: how long the worker may sleep.
SELECT MIN(due_ms) AS due_ms FROM delayed_event

-- drop_delayed
-- why: in the transaction of its effect; zero rows means that somebody else fired it.
DELETE FROM delayed_event WHERE delayed_id = :delayed_id

-- undelivered
-- why: an event that the router has still to deliver is work that no queue shows yet.
SELECT COUNT(*) AS events FROM outbox JOIN event USING (event_id)
WHERE COALESCE(event.orchestration_id, '') IN (SELECT value FROM json_each(:orchestrations))

-- outbox_waiting
-- why: whether the router still has something to do.
SELECT EXISTS (SELECT 1 FROM outbox) AS waiting
