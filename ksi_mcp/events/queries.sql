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

-- forward
-- why: oldest first, for whoever counts what has come since; names with wildcards are matched by the caller.
SELECT * FROM event
WHERE event_id > :after_id AND event_id <= :until_id
  AND (:names IS NULL OR name IN (SELECT value FROM json_each(:names)))
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible))
       OR orchestration_id IN (SELECT value FROM json_each(:visible)))
ORDER BY event_id LIMIT :limit

-- delay
-- why: an event that waits for its time survives a restart.
INSERT INTO delayed_event (due_ms, event, data, condition, context, orchestration_id, held)
VALUES (:due_ms - :now_ms * COALESCE((SELECT state = 'suspended' FROM orchestration
                                      WHERE orchestration_id = :orchestration_id), 0),
        :event, :data, :condition, :context, :orchestration_id,
        COALESCE((SELECT state = 'suspended' FROM orchestration WHERE orchestration_id = :orchestration_id), 0))
RETURNING held

-- due
-- why: what the worker has to fire now, oldest first.
SELECT * FROM delayed_event WHERE held = 0 AND due_ms <= :now_ms ORDER BY due_ms, delayed_id LIMIT :limit

-- next_due
-- why: how long the worker may sleep.
SELECT MIN(due_ms) AS due_ms FROM delayed_event WHERE held = 0

-- drop_delayed
-- why: in the transaction of its effect; zero rows means that somebody else fired it, or its run was suspended.
DELETE FROM delayed_event WHERE delayed_id = :delayed_id AND held = 0

-- undelivered
-- why: an event that the router has still to deliver is work that no queue shows yet.
SELECT COUNT(*) AS events FROM outbox JOIN event USING (event_id)
WHERE COALESCE(event.orchestration_id, '') IN (SELECT value FROM json_each(:orchestrations))

-- outbox_waiting
-- why: whether the router still has something to do.
SELECT EXISTS (SELECT 1 FROM outbox) AS waiting

-- kept_runs
-- why: runs that go on, that have a checkpoint to go back to, and those they were made from: all of theirs stays.
WITH RECURSIVE kept (orchestration_id) AS (
    SELECT orchestration_id FROM orchestration WHERE state IN ('running', 'suspended')
    UNION
    SELECT orchestration_id FROM checkpoint
    UNION
    SELECT run.origin_id FROM kept JOIN orchestration run USING (orchestration_id) WHERE run.origin_id IS NOT NULL
)
SELECT orchestration_id FROM kept

-- page_of_events
-- why: one step of a walk through the log, oldest first, which no reader or writer has to wait for.
SELECT COUNT(*) AS events, MAX(event_id) AS last, MAX(at_ms) AS newest_ms, COALESCE(SUM(ordinary), 0) AS ordinary,
       COALESCE(SUM(bytes * ordinary), 0) AS bytes
FROM (SELECT event_id, at_ms, length(CAST(data AS BLOB)) + 200 AS bytes,
             NOT EXISTS (SELECT 1 FROM json_each(:audit) WHERE event.name GLOB value) AS ordinary
      FROM event WHERE event_id > :after ORDER BY event_id LIMIT :limit)

-- old_events
-- why: what of a page nobody needs any more: delivered, and of no living agent and no kept run.
SELECT event_id, at_ms, bytes, ordinary, 1 AS records
FROM (SELECT event_id, at_ms, agent_id, orchestration_id, length(CAST(data AS BLOB)) + 200 AS bytes,
             NOT EXISTS (SELECT 1 FROM json_each(:audit) WHERE event.name GLOB value) AS ordinary
      FROM event WHERE event_id > :after AND event_id <= :last) AS old
WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.event_id = old.event_id)
  AND NOT EXISTS (SELECT 1 FROM agent WHERE agent.agent_id = old.agent_id AND agent.status = 'active')
  AND (orchestration_id IS NULL OR orchestration_id NOT IN (SELECT value FROM json_each(:kept)))
ORDER BY event_id

-- drop_events
-- why: they were chosen on a snapshot; what somebody needs by now stays.
DELETE FROM event WHERE event_id IN (SELECT value FROM json_each(:ids))
  AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.event_id = event.event_id)
  AND NOT EXISTS (SELECT 1 FROM agent WHERE agent.agent_id = event.agent_id AND agent.status = 'active')
  AND (orchestration_id IS NULL OR orchestration_id NOT IN (SELECT value FROM json_each(:kept)))

-- extent
-- why: bounds the number of rows, and their bytes, without looking at them.
SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size) AS bytes,
       (SELECT COALESCE(MAX(event_id) - MIN(event_id) + 1, 0) FROM event) AS events,
       (SELECT COALESCE(MAX(n) - MIN(n) + 1, 0) FROM turn) AS turns

-- page_of_turns
-- why: one step of a walk through the turns, oldest first.
SELECT COUNT(*) AS turns, MAX(n) AS last, MAX(created_at_ms) AS newest_ms, COALESCE(SUM(bytes), 0) AS bytes
FROM (SELECT n, created_at_ms,
             500 + length(CAST(prompt AS BLOB)) + COALESCE(length(CAST(result AS BLOB)), 0)
             + COALESCE(length(CAST(partial_text AS BLOB)), 0)
             + COALESCE((SELECT SUM(500 + COALESCE(length(CAST(answer AS BLOB)), 0)) FROM provider_call
                         WHERE provider_call.turn_id = turn.turn_id), 0)
             + COALESCE((SELECT SUM(100 + length(CAST(args AS BLOB)) + length(CAST(result AS BLOB))) FROM tool_call
                         WHERE tool_call.turn_id = turn.turn_id), 0) AS bytes
      FROM turn WHERE n > :after ORDER BY n LIMIT :limit)

-- old_turns
-- why: what of a page nobody needs any more: finished, and of no living agent, no kept run, and no waiting turn.
SELECT n, turn_id, finished_at_ms AS at_ms, 1 AS ordinary,
       1 + (SELECT COUNT(*) FROM tool_call WHERE tool_call.turn_id = turn.turn_id)
       + 2 * (SELECT COUNT(*) FROM provider_call WHERE provider_call.turn_id = turn.turn_id) AS records,
       500 + length(CAST(prompt AS BLOB)) + COALESCE(length(CAST(result AS BLOB)), 0)
       + COALESCE(length(CAST(partial_text AS BLOB)), 0)
       + COALESCE((SELECT SUM(500 + COALESCE(length(CAST(answer AS BLOB)), 0)) FROM provider_call
                   WHERE provider_call.turn_id = turn.turn_id), 0)
       + COALESCE((SELECT SUM(100 + length(CAST(args AS BLOB)) + length(CAST(result AS BLOB))) FROM tool_call
                   WHERE tool_call.turn_id = turn.turn_id), 0) AS bytes
FROM turn
WHERE n > :after AND n <= :last AND state IN ('done', 'failed', 'cancelled', 'timed_out')
  AND NOT EXISTS (SELECT 1 FROM agent WHERE agent.agent_id = turn.session_id AND agent.status = 'active')
  AND (orchestration_id IS NULL OR orchestration_id NOT IN (SELECT value FROM json_each(:kept)))
  AND turn_id NOT IN (SELECT on_turn_id FROM turn_wait)
ORDER BY n

-- droppable_turns
-- why: they were chosen on a snapshot; what somebody needs by now stays, and so does what an open hold is for.
SELECT turn_id FROM turn
WHERE turn_id IN (SELECT value FROM json_each(:ids)) AND state IN ('done', 'failed', 'cancelled', 'timed_out')
  AND NOT EXISTS (SELECT 1 FROM agent WHERE agent.agent_id = turn.session_id AND agent.status = 'active')
  AND (orchestration_id IS NULL OR orchestration_id NOT IN (SELECT value FROM json_each(:kept)))
  AND turn_id NOT IN (SELECT on_turn_id FROM turn_wait)
  AND NOT EXISTS (SELECT 1 FROM hold WHERE hold.turn_id = turn.turn_id AND hold.state IN ('reserved', 'sent'))
  AND NOT EXISTS (SELECT 1 FROM provider_call JOIN reusable USING (call_id) WHERE provider_call.turn_id = turn.turn_id)

-- drop_holds_of_turns
-- why: what they cost is in the accounts; only closed holds are found behind finished turns.
DELETE FROM hold WHERE state IN ('settled', 'released')
  AND hold_id IN (SELECT hold_id FROM provider_call WHERE turn_id IN (SELECT value FROM json_each(:ids)))

-- drop_semantic_entries
-- why: a prompt that is known by its answer goes with the answer.
DELETE FROM semantic_entry
WHERE call_id IN (SELECT call_id FROM provider_call WHERE turn_id IN (SELECT value FROM json_each(:ids)))

-- drop_semantic_looks
-- why: what was looked for, or found, for turns that go.
DELETE FROM semantic_look WHERE turn_id IN (SELECT value FROM json_each(:ids))
   OR call_id IN (SELECT call_id FROM provider_call WHERE turn_id IN (SELECT value FROM json_each(:ids)))

-- drop_calls
-- why: the answers of turns that go.
DELETE FROM provider_call WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- drop_tool_calls
-- why: the tool results of turns that go.
DELETE FROM tool_call WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- drop_notes
-- why: what was said between the rounds of turns that go.
DELETE FROM round_note WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- drop_injections
-- why: what was put into the conversation for turns that go.
DELETE FROM injection WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- drop_turns
-- why: last, since all of the above refer to them.
DELETE FROM turn WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- page_of_holds
-- why: a hold that was given back has no call to be found by; their table is walked through, bit by bit.
SELECT COUNT(*) AS holds, MAX(rowid) AS last FROM (SELECT rowid FROM hold WHERE rowid > :after ORDER BY rowid LIMIT :limit)

-- stray_hold
-- why: nothing is written where there is nothing to remove.
SELECT rowid FROM hold WHERE rowid > :after AND rowid <= :last AND state IN ('settled', 'released')
  AND NOT EXISTS (SELECT 1 FROM turn WHERE turn.turn_id = hold.turn_id)
  AND NOT EXISTS (SELECT 1 FROM prefetch WHERE prefetch_id = CAST(substr(hold.turn_id, 10) AS INTEGER)
                  AND hold.turn_id = 'prefetch:' || prefetch_id) LIMIT 1

-- drop_stray_holds
-- why: closed holds whose turn is gone; what they cost is in the accounts.
DELETE FROM hold WHERE rowid > :after AND rowid <= :last AND state IN ('settled', 'released')
  AND NOT EXISTS (SELECT 1 FROM turn WHERE turn.turn_id = hold.turn_id)
  AND NOT EXISTS (SELECT 1 FROM prefetch WHERE prefetch_id = CAST(substr(hold.turn_id, 10) AS INTEGER)
                  AND hold.turn_id = 'prefetch:' || prefetch_id)

-- spare_reusable
-- why: answers of a time line that was left are of use only while their run can go on.
SELECT reusable_id FROM reusable WHERE orchestration_id NOT IN (SELECT value FROM json_each(:kept)) LIMIT :limit

-- drop_reusable
-- why: a run that can go on again by now keeps what it left.
DELETE FROM reusable WHERE reusable_id IN (SELECT value FROM json_each(:ids))
  AND orchestration_id NOT IN (SELECT value FROM json_each(:kept))

-- oldest_key
-- why: nothing is written where nothing is old.
SELECT at_ms FROM idempotency ORDER BY rowid LIMIT 1

-- drop_keys
-- why: a call that is repeated later than this is a new one; keys come in the order of their time.
DELETE FROM idempotency WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, at_ms FROM idempotency ORDER BY rowid LIMIT :limit) WHERE at_ms < :before_ms)

-- spare_checkpoints
-- why: all but the newest of each run and kind, and the automatic ones of runs that ended long ago.
SELECT n, length(CAST(snapshot AS BLOB)) AS bytes FROM (
    SELECT checkpoint.n, checkpoint.snapshot, checkpoint.automatic, run.ended_at_ms,
           ROW_NUMBER() OVER (PARTITION BY checkpoint.orchestration_id, automatic ORDER BY checkpoint.n DESC) AS place
    FROM checkpoint JOIN orchestration run USING (orchestration_id))
WHERE place > :keep OR (automatic = 1 AND ended_at_ms < :ended_before_ms)
LIMIT :limit

-- drop_checkpoints
-- why: chosen by their numbers, which never come back.
DELETE FROM checkpoint WHERE n IN (SELECT value FROM json_each(:ids))

-- page_of_roots
-- why: one step of a walk through the quotas of first causes.
SELECT COUNT(*) AS roots, MAX(root_id) AS last
FROM (SELECT root_id FROM root_quota WHERE root_id > :after ORDER BY root_id LIMIT :limit)

-- old_roots
-- why: a first cause that has no event, no open turn and nothing delayed left makes no more deliveries.
SELECT root_id FROM root_quota WHERE root_id > :after AND root_id <= :last
  AND NOT EXISTS (SELECT 1 FROM event WHERE event.root_id = root_quota.root_id)
  AND root_id NOT IN (SELECT root_id FROM turn WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked'))
  AND root_id NOT IN (SELECT root_id FROM turn WHERE state = 'queued')
  AND root_id NOT IN (SELECT json_extract(context, '$.root_id') FROM delayed_event
                      WHERE json_extract(context, '$.root_id') IS NOT NULL)

-- drop_roots
-- why: they were chosen on a snapshot; one that has moved since stays.
DELETE FROM root_quota WHERE root_id IN (SELECT value FROM json_each(:ids))
  AND NOT EXISTS (SELECT 1 FROM event WHERE event.root_id = root_quota.root_id)

-- buried_rules
-- why: tombstones that every process has read by now.
SELECT rule_id FROM rule WHERE deleted_at_ms IS NOT NULL AND deleted_at_ms < :before_ms LIMIT :limit

-- drop_rules
-- why: the id of a buried rule may have been used again since.
DELETE FROM rule WHERE rule_id IN (SELECT value FROM json_each(:ids))
  AND deleted_at_ms IS NOT NULL AND deleted_at_ms < :before_ms

-- raised_floor
-- why: nothing is written where the table has no more versions than are kept.
SELECT routing_version - :keep AS floor FROM control WHERE routing_version - :keep > routing_floor

-- raise_floor
-- why: before what older versions need goes, the table can no longer be asked to go back to them.
UPDATE control SET routing_floor = routing_version - :keep WHERE routing_version - :keep > routing_floor

-- old_rule_versions
-- why: of what a rule was up to the oldest version that is kept, only the last is needed; of one that was gone, nothing.
SELECT old.rowid AS row FROM rule_history AS old
WHERE old.version <= (SELECT routing_floor FROM control WHERE control_id = 1)
  AND (EXISTS (SELECT 1 FROM rule_history AS later WHERE later.rule_id = old.rule_id AND later.version > old.version
               AND later.version <= (SELECT routing_floor FROM control WHERE control_id = 1))
       OR (old.content IS NULL AND NOT EXISTS (SELECT 1 FROM rule_history AS earlier
                                               WHERE earlier.rule_id = old.rule_id AND earlier.version < old.version)))
LIMIT :limit

-- drop_rule_versions
-- why: the oldest version that is kept only ever rises, so what was not needed stays so.
DELETE FROM rule_history WHERE rowid IN (SELECT value FROM json_each(:ids))

-- old_rule_stat
-- why: whether there are figures of rules that nobody asks for any more.
SELECT 1 FROM rule_stat WHERE minute < :before_minute LIMIT 1

-- drop_rule_stats
-- why: a little at a time.
DELETE FROM rule_stat WHERE (rule_id, minute) IN
    (SELECT rule_id, minute FROM rule_stat WHERE minute < :before_minute LIMIT :limit)

-- old_letter
-- why: whether there are dead letters that are too old, were delivered a while ago, or are too many.
SELECT 1 FROM dead_letter
WHERE at_ms < :before_ms OR redriven_at_ms < :redriven_before_ms
   OR (at_ms < :fresh_ms AND dead_id <= (SELECT dead_id FROM dead_letter ORDER BY dead_id DESC LIMIT 1 OFFSET :keep))
LIMIT 1

-- drop_letters
-- why: the oldest first, a little at a time.
DELETE FROM dead_letter WHERE dead_id IN
    (SELECT dead_id FROM dead_letter
     WHERE at_ms < :before_ms OR redriven_at_ms < :redriven_before_ms
        OR (at_ms < :fresh_ms AND dead_id <= (SELECT dead_id FROM dead_letter ORDER BY dead_id DESC LIMIT 1 OFFSET :keep))
     ORDER BY dead_id LIMIT :limit)

-- old_prefetches
-- why: nobody is served with them any more; what they cost is in the accounts.
SELECT prefetch_id FROM prefetch WHERE state <> 'sent' AND expires_at_ms < :before_ms LIMIT :limit

-- drop_prefetches
-- why: a bounded number at once; their holds go with those of turns that are gone.
DELETE FROM prefetch WHERE prefetch_id IN (SELECT value FROM json_each(:ids)) AND state <> 'sent'
