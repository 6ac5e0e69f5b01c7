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
                  orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, metadata, remaining_ms,
                  exclusive, rate, join_spec, modifiable, since, changed_at_ms, frozen_until_ms)
SELECT :rule_id, :source_pattern, :source_agent, :condition, :target, :mapping, :priority, :scope,
       :orchestration_id, :enabled, :created_by, :version, :created_at_ms,
       CASE WHEN NOT held THEN :expires_at_ms END, :metadata, CASE WHEN held THEN :expires_at_ms - :now_ms END,
       :exclusive, :rate, :join_spec, :modifiable, :version, :now_ms, :frozen_until_ms
FROM (SELECT EXISTS (SELECT 1 FROM orchestration
                     WHERE orchestration_id = :orchestration_id AND state = 'suspended') AS held)
WHERE TRUE
ON CONFLICT (rule_id) DO UPDATE SET
    source_pattern = excluded.source_pattern, source_agent = excluded.source_agent,
    condition = excluded.condition, target = excluded.target, mapping = excluded.mapping,
    priority = excluded.priority, scope = excluded.scope, orchestration_id = excluded.orchestration_id,
    enabled = excluded.enabled, created_by = excluded.created_by, version = excluded.version,
    created_at_ms = excluded.created_at_ms, expires_at_ms = excluded.expires_at_ms,
    metadata = excluded.metadata, remaining_ms = excluded.remaining_ms, deleted_at_ms = NULL,
    exclusive = excluded.exclusive, rate = excluded.rate, join_spec = excluded.join_spec,
    modifiable = excluded.modifiable, since = excluded.since, changed_at_ms = excluded.changed_at_ms,
    frozen_until_ms = excluded.frozen_until_ms
WHERE rule.deleted_at_ms IS NOT NULL

-- change
-- why: a living rule gets new contents; when it was made stays. In a suspended run its clock stands still.
UPDATE rule SET source_pattern = :source_pattern, source_agent = :source_agent, condition = :condition,
    target = :target, mapping = :mapping, priority = :priority, scope = :scope,
    orchestration_id = :orchestration_id, enabled = :enabled, created_by = :created_by, version = :version,
    expires_at_ms = CASE WHEN NOT held THEN :expires_at_ms END, metadata = :metadata,
    exclusive = :exclusive, rate = :rate, join_spec = :join_spec, modifiable = :modifiable,
    since = :version, changed_at_ms = :now_ms, frozen_until_ms = :frozen_until_ms,
    remaining_ms = CASE WHEN NOT held THEN NULL WHEN :new_life THEN :expires_at_ms - :now_ms ELSE remaining_ms END
FROM (SELECT EXISTS (SELECT 1 FROM orchestration
                     WHERE orchestration_id = :orchestration_id AND state = 'suspended') AS held)
WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- bury
-- why: a tombstone, so that other processes notice.
UPDATE rule SET deleted_at_ms = :now_ms, version = :version, changed_at_ms = :now_ms WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- count
-- why: the quota of the whole table.
SELECT (SELECT COUNT(*) FROM rule WHERE deleted_at_ms IS NULL)
       - (SELECT COUNT(*) FROM rule
          WHERE deleted_at_ms IS NULL AND expires_at_ms IS NOT NULL AND expires_at_ms <= :now_ms) AS rules

-- count_of_creator
-- why: the quota of one agent; two counts as above, since each is answered by an index alone.
SELECT (SELECT COUNT(*) FROM rule WHERE created_by = :created_by AND deleted_at_ms IS NULL)
       - (SELECT COUNT(*) FROM rule INDEXED BY rule_expiry
          WHERE deleted_at_ms IS NULL AND expires_at_ms IS NOT NULL AND expires_at_ms <= :now_ms
            AND created_by = :created_by) AS rules

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
  AND (:target IS NULL OR EXISTS (SELECT 1 FROM json_tree(rule.target) AS place WHERE place.atom = :target))
  AND (:created_by IS NULL OR created_by = :created_by)
  AND (:scope IS NULL OR scope = :scope)
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:enabled IS NULL OR enabled = :enabled)
  AND (:viewers IS NULL OR scope = 'global' OR orchestration_id = :viewer_orchestration
       OR source_agent IN (SELECT value FROM json_each(:viewers))
       OR created_by IN (SELECT 'agent:' || value FROM json_each(:viewers))
       OR scope IN (SELECT 'agent:' || value FROM json_each(:viewers))
       OR EXISTS (SELECT 1 FROM json_tree(rule.target) AS place
                  WHERE place.atom IN (SELECT 'agent:' || value FROM json_each(:viewers)))
       OR EXISTS (SELECT 1 FROM json_each(rule.join_spec, '$.all_of') AS part
                  WHERE part.value IN (SELECT 'agent:' || value FROM json_each(:viewers))))
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
       OR instr(target, '"agent:' || :agent_id || '"') > 0
       OR instr(COALESCE(join_spec, ''), '"agent:' || :agent_id || '"') > 0)
ORDER BY rule_id

-- hand_on
-- why: a rule outlives the agent that it speaks of, if another one takes its place.
UPDATE rule SET source_agent = :source_agent, target = :target, scope = :scope, created_by = :created_by,
                join_spec = :join_spec, version = :version, since = :version, changed_at_ms = :now_ms
WHERE rule_id = :rule_id AND deleted_at_ms IS NULL

-- restore
-- why: a rule of a suspended run as it was, with what remained of its life; one that is another run's by now stays that.
INSERT INTO rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id,
                  enabled, created_by, version, created_at_ms, metadata, remaining_ms, exclusive, rate, join_spec,
                  modifiable, since, changed_at_ms)
VALUES (:rule_id, :source_pattern, :source_agent, :condition, :target, :mapping, :priority, :scope, :orchestration_id,
        :enabled, :created_by, :version, :created_at_ms, :metadata, :remaining_ms, :exclusive, :rate, :join_spec,
        :modifiable, :since, :now_ms)
ON CONFLICT (rule_id) DO UPDATE SET
    source_pattern = excluded.source_pattern, source_agent = excluded.source_agent,
    condition = excluded.condition, target = excluded.target, mapping = excluded.mapping,
    priority = excluded.priority, scope = excluded.scope, orchestration_id = excluded.orchestration_id,
    enabled = excluded.enabled, created_by = excluded.created_by, version = excluded.version,
    created_at_ms = excluded.created_at_ms, metadata = excluded.metadata, remaining_ms = excluded.remaining_ms,
    expires_at_ms = NULL, deleted_at_ms = NULL, exclusive = excluded.exclusive, rate = excluded.rate,
    join_spec = excluded.join_spec, modifiable = excluded.modifiable, since = excluded.since,
    changed_at_ms = excluded.changed_at_ms, frozen_until_ms = NULL
WHERE rule.deleted_at_ms IS NOT NULL OR rule.orchestration_id = excluded.orchestration_id

-- loads
-- why: who of several agents takes messages, and how much waits for each.
SELECT agent.agent_id, session.pending FROM agent JOIN session ON session.session_id = agent.agent_id
WHERE agent.agent_id IN (SELECT value FROM json_each(:agent_ids)) AND agent.status = 'active' AND agent.draining = 0

-- state
-- why: what a rule remembers from one delivery to the next.
SELECT turn, window_ms, in_window FROM rule_state WHERE rule_id = :rule_id

-- take_turn
-- why: whose turn it is next among the targets of a rule.
INSERT INTO rule_state (rule_id, turn) VALUES (:rule_id, :turn)
ON CONFLICT (rule_id) DO UPDATE SET turn = excluded.turn

-- take_rate
-- why: one event more in the window of a rule's rate; a new window if the last one is over, or the clock was put back.
INSERT INTO rule_state (rule_id, window_ms, in_window) VALUES (:rule_id, :now_ms, 1)
ON CONFLICT (rule_id) DO UPDATE SET
    in_window = CASE WHEN :now_ms BETWEEN rule_state.window_ms AND rule_state.window_ms + :per_ms - 1
                     THEN rule_state.in_window + 1 ELSE 1 END,
    window_ms = CASE WHEN :now_ms BETWEEN rule_state.window_ms AND rule_state.window_ms + :per_ms - 1
                     THEN rule_state.window_ms ELSE :now_ms END
RETURNING in_window

-- stat
-- why: what a rule did in this minute.
INSERT INTO rule_stat (rule_id, minute, matches, deliveries, failures, limited, latency_ms, slowest_ms)
VALUES (:rule_id, :minute, :matches, :deliveries, :failures, :limited, :latency_ms, :slowest_ms)
ON CONFLICT (rule_id, minute) DO UPDATE SET
    matches = matches + excluded.matches, deliveries = deliveries + excluded.deliveries,
    failures = failures + excluded.failures, limited = limited + excluded.limited,
    latency_ms = latency_ms + excluded.latency_ms, slowest_ms = MAX(slowest_ms, excluded.slowest_ms)

-- dead
-- why: a delivery that could not be made is kept, to be looked at and tried again.
INSERT INTO dead_letter (event_id, rule_id, target, reason, data, agent_id, orchestration_id, at_ms, kept)
VALUES (:event_id, :rule_id, :target, :reason, :data, :agent_id, :orchestration_id, :now_ms, :kept)
RETURNING dead_id

-- join_waiting
-- why: which parts of a collection are there.
SELECT DISTINCT part FROM join_part WHERE rule_id = :rule_id AND key = :key

-- join_arrived
-- why: an event is kept for the collection it belongs to.
INSERT INTO join_part (rule_id, key, part, event_id, event, at_ms)
VALUES (:rule_id, :key, :part, :event_id, :event, :now_ms)

-- join_open
-- why: a collection begins with its first part, and with it the time it has; in a held run that stands still.
INSERT INTO join_open (rule_id, key, opened_at_ms, due_ms, remaining_ms, orchestration_id)
SELECT :rule_id, :key, CASE WHEN held THEN 0 ELSE :now_ms END, CASE WHEN NOT held THEN :now_ms + :timeout_ms END,
       CASE WHEN held THEN COALESCE(:timeout_ms, -1) END, :orchestration_id
FROM (SELECT EXISTS (SELECT 1 FROM orchestration
                     WHERE orchestration_id = :orchestration_id AND state = 'suspended') AS held)
WHERE TRUE
ON CONFLICT (rule_id, key) DO NOTHING

-- join_count
-- why: how many collections of a rule may be open is bounded.
SELECT COUNT(*) AS open FROM join_open WHERE rule_id = :rule_id

-- join_repeats
-- why: how many may wait behind the one that a collection takes is bounded.
SELECT COUNT(*) AS waiting FROM join_part WHERE rule_id = :rule_id AND key = :key AND part = :part

-- join_drop
-- why: a join that was changed does not wait for these any more.
DELETE FROM join_part WHERE rule_id = :rule_id AND key = :key AND part NOT IN (SELECT value FROM json_each(:parts))

-- join_again
-- why: when a collection is looked at again; NULL: not by the clock.
UPDATE join_open SET due_ms = :due_ms WHERE rule_id = :rule_id AND key = :key

-- join_pause
-- why: the time of collections stands still while their run does.
UPDATE join_open SET remaining_ms = CASE WHEN due_ms IS NULL THEN -1 ELSE MAX(due_ms - :now_ms, 0) END, due_ms = NULL,
                     opened_at_ms = opened_at_ms - :now_ms
WHERE orchestration_id = :orchestration_id AND remaining_ms IS NULL

-- join_resume
-- why: it goes on with what remained.
UPDATE join_open SET due_ms = CASE WHEN remaining_ms >= 0 THEN :now_ms + remaining_ms END, remaining_ms = NULL,
                     opened_at_ms = opened_at_ms + :now_ms
WHERE orchestration_id = :orchestration_id AND remaining_ms IS NOT NULL

-- join_restore
-- why: a collection of a suspended run as it was.
INSERT INTO join_open (rule_id, key, opened_at_ms, remaining_ms, orchestration_id)
VALUES (:rule_id, :key, -:age_ms, :remaining_ms, :orchestration_id)

-- join_restore_part
-- why: and what had arrived for it.
INSERT INTO join_part (rule_id, key, part, event_id, event, at_ms)
VALUES (:rule_id, :key, :part, :event_id, :event, :at_ms)

-- join_hand_on
-- why: what came from an agent that was replaced stays in the place that its successor has now.
UPDATE join_part SET part = 'agent:' || :new WHERE rule_id = :rule_id AND part = 'agent:' || :old

-- join_take
-- why: the oldest of each part makes the collection; what is behind waits for the next.
DELETE FROM join_part WHERE part_id IN (SELECT MIN(part_id) FROM join_part
                                        WHERE rule_id = :rule_id AND key = :key GROUP BY part)
RETURNING part, event

-- join_due
-- why: collections whose time is up.
SELECT rule_id, key FROM join_open WHERE due_ms IS NOT NULL AND due_ms <= :now_ms ORDER BY due_ms LIMIT :limit

-- join_is_due
-- why: whether its time is up still, in the transaction that fires it.
SELECT opened_at_ms FROM join_open WHERE rule_id = :rule_id AND key = :key AND due_ms <= :now_ms

-- next_join_due
-- why: how long the pump may sleep.
SELECT MIN(due_ms) AS due_ms FROM join_open WHERE due_ms IS NOT NULL

-- join_forget
-- why: a collection has fired, or its rule has ended.
DELETE FROM join_open WHERE rule_id = :rule_id AND (:key IS NULL OR key = :key)

-- join_forget_parts
-- why: what was kept for a rule that has ended.
DELETE FROM join_part WHERE rule_id = :rule_id AND (:key IS NULL OR key = :key)

-- forget_state
-- why: a rule that has ended remembers nothing.
DELETE FROM rule_state WHERE rule_id = :rule_id

-- exclusive_like
-- why: two rules cannot both be the first and only one.
SELECT * FROM rule WHERE deleted_at_ms IS NULL AND exclusive = 1 AND enabled = 1 AND rule_id <> :rule_id
  AND source_pattern = :source_pattern AND priority = :priority AND scope = :scope
  AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms) LIMIT 1

-- any_one
-- why: an id that was in use may still be frozen.
SELECT deleted_at_ms, expires_at_ms, frozen_until_ms FROM rule WHERE rule_id = :rule_id

-- freeze
-- why: a rule that was changed too often; a deleted one too, whose id cannot be used again until then.
UPDATE rule SET frozen_until_ms = :frozen_until_ms WHERE rule_id = :rule_id

-- newest_history
-- why: what a rule was of late, to see whether somebody fights over it.
SELECT content, at_ms FROM rule_history WHERE rule_id = :rule_id ORDER BY version DESC LIMIT :limit

-- kept_versions
-- why: which versions of the table there are to go back to.
SELECT routing_version AS newest, routing_floor AS oldest FROM control WHERE control_id = 1

-- when
-- why: about when the table became what it was at a version.
SELECT COALESCE(MAX(at_ms), 0) AS at_ms FROM rule_history WHERE version <= :version

-- changed_since
-- why: what became different after a version of the table, and what it was then (NULL: it was not there).
SELECT touched.rule_id, (SELECT was.content FROM rule_history AS was
                         WHERE was.rule_id = touched.rule_id AND was.version <= :version
                         ORDER BY was.version DESC LIMIT 1) AS content
FROM (SELECT DISTINCT rule_id FROM rule_history WHERE version > :version) AS touched
ORDER BY touched.rule_id

-- life_of_agent
-- why: what speaks of an agent that has ended is not brought back.
SELECT name, status, ended_at_ms, successor_id FROM agent WHERE agent_id = :agent_id

-- life_of_run
-- why: the same for a run; the life of a suspended one's rules stands still.
SELECT state, ended_at_ms, suspended_at_ms FROM orchestration WHERE orchestration_id = :orchestration_id

-- bring_back
-- why: a rule as it was at an earlier version, whatever became of it since.
INSERT INTO rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope,
                  orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, metadata, remaining_ms,
                  exclusive, rate, join_spec, modifiable, since, changed_at_ms)
VALUES (:rule_id, :source_pattern, :source_agent, :condition, :target, :mapping, :priority, :scope,
        :orchestration_id, :enabled, :created_by, :version, :created_at_ms, :expires_at_ms, :metadata, :remaining_ms,
        :exclusive, :rate, :join_spec, :modifiable, :since, :now_ms)
ON CONFLICT (rule_id) DO UPDATE SET
    source_pattern = excluded.source_pattern, source_agent = excluded.source_agent,
    condition = excluded.condition, target = excluded.target, mapping = excluded.mapping,
    priority = excluded.priority, scope = excluded.scope, orchestration_id = excluded.orchestration_id,
    enabled = excluded.enabled, created_by = excluded.created_by, version = excluded.version,
    created_at_ms = excluded.created_at_ms, expires_at_ms = excluded.expires_at_ms,
    metadata = excluded.metadata, remaining_ms = excluded.remaining_ms, deleted_at_ms = NULL,
    exclusive = excluded.exclusive, rate = excluded.rate, join_spec = excluded.join_spec,
    modifiable = excluded.modifiable, since = excluded.since, changed_at_ms = excluded.changed_at_ms

-- audit
-- why: who changed the table, and who was not let; of refused calls only those of routing tools.
SELECT * FROM event
WHERE event_id < :before_id AND event_id > :after_id AND name IN (SELECT value FROM json_each(:names))
  AND (name <> 'system:refused' OR json_extract(data, '$.tool') GLOB 'routing_*')
  AND (:rule_id IS NULL OR json_extract(data, '$.rule_id') = :rule_id
       OR (name = 'system:refused' AND instr(json_extract(data, '$.reason'), :quoted_id) > 0))
  AND (:actor IS NULL OR source = :actor)
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible))
       OR orchestration_id IN (SELECT value FROM json_each(:visible)))
ORDER BY event_id DESC LIMIT :limit

-- letters
-- why: deliveries that could not be made, newest first; an agent sees those of its events, agents and runs.
SELECT * FROM dead_letter
WHERE (:open IS NULL OR (redriven_at_ms IS NULL) = :open)
  AND (:before IS NULL OR dead_id < :before)
  AND (:rule_id IS NULL OR rule_id = :rule_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id OR target = 'agent:' || :agent_id
       OR json_extract(kept, '$.event.source') = 'agent:' || :agent_id)
  AND (:run IS NULL OR orchestration_id = :run OR json_extract(kept, '$.rule.orchestration_id') = :run)
  AND (:seen IS NULL OR agent_id IN (SELECT value FROM json_each(:seen))
       OR orchestration_id IN (SELECT value FROM json_each(:seen))
       OR (target GLOB 'agent:*' AND substr(target, 7) IN (SELECT value FROM json_each(:seen)))
       OR json_extract(kept, '$.rule.orchestration_id') IN (SELECT value FROM json_each(:seen)))
ORDER BY dead_id DESC LIMIT :limit

-- open_letters
-- why: the same, those still to be tried, in the order in which they came.
SELECT dead_id FROM dead_letter
WHERE redriven_at_ms IS NULL AND dead_id > :after
  AND (:rule_id IS NULL OR rule_id = :rule_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id OR target = 'agent:' || :agent_id
       OR json_extract(kept, '$.event.source') = 'agent:' || :agent_id)
  AND (:run IS NULL OR orchestration_id = :run OR json_extract(kept, '$.rule.orchestration_id') = :run)
  AND (:seen IS NULL OR agent_id IN (SELECT value FROM json_each(:seen))
       OR orchestration_id IN (SELECT value FROM json_each(:seen))
       OR (target GLOB 'agent:*' AND substr(target, 7) IN (SELECT value FROM json_each(:seen)))
       OR json_extract(kept, '$.rule.orchestration_id') IN (SELECT value FROM json_each(:seen)))
ORDER BY dead_id LIMIT :limit

-- letter
-- why: one of them, in the transaction that tries it again.
SELECT * FROM dead_letter WHERE dead_id = :dead_id

-- letter_redriven
-- why: never twice.
UPDATE dead_letter SET redriven_at_ms = :now_ms, redriven_by = :by WHERE dead_id = :dead_id AND redriven_at_ms IS NULL

-- letter_failed_again
-- why: it says why it could not be made the last time.
UPDATE dead_letter SET reason = :reason WHERE dead_id = :dead_id

-- served
-- why: who has had an event by a rule already.
SELECT json_extract(data, '$.target') AS target FROM event
WHERE root_id = :root_id AND name = 'routing:delivered' AND cause_id = :cause_id
  AND json_extract(data, '$.rule_id') = :rule_id

-- replay_range
-- why: what happened, oldest first, as far as the asker may see it.
SELECT * FROM event
WHERE event_id > :after_id AND event_id <= :to_id
  AND (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:visible IS NULL OR agent_id IN (SELECT value FROM json_each(:visible))
       OR orchestration_id IN (SELECT value FROM json_each(:visible)))
ORDER BY event_id LIMIT :limit

-- replay_count
-- why: numbers of events have no gaps, but for those that retention removed.
SELECT COUNT(*) AS events FROM event WHERE event_id BETWEEN :from_id AND :to_id

-- replay_waiting
-- why: what nobody has delivered yet has no deliveries to compare with.
SELECT event_id FROM outbox WHERE event_id BETWEEN :from_id AND :to_id

-- replay_reports
-- why: where the events of a range went; a report has the root of its event.
SELECT event_id, name, data, at_ms FROM event
WHERE root_id IN (SELECT value FROM json_each(:roots)) AND event_id > :from_id
  AND name IN (SELECT value FROM json_each(:names))
  AND json_extract(data, '$.event_id') BETWEEN :from_id AND :to_id
ORDER BY event_id LIMIT :limit

-- replay_spent
-- why: what a first cause had used of its deliveries when the range began.
SELECT root_id, COUNT(*) AS deliveries FROM event
WHERE root_id IN (SELECT value FROM json_each(:roots)) AND event_id < :from_id
  AND name IN (SELECT value FROM json_each(:names))
GROUP BY root_id

-- replay_agents
-- why: who the agents of a range were, whatever became of them.
SELECT agent_id, name, orchestration_id, ended_at_ms, model, substr(system, 1, 20000) AS system,
       COALESCE(json_extract(settings, '$.max_tokens'), 4096) AS max_tokens
FROM agent WHERE agent_id IN (SELECT value FROM json_each(:ids))

-- replay_depths
-- why: how deep the chains of its runs could be.
SELECT orchestration_id, max_depth FROM orchestration WHERE orchestration_id IN (SELECT value FROM json_each(:ids))

-- replay_unfinished
-- why: how much agents had to do when the range began.
SELECT turn_id, session_id FROM turn
WHERE session_id IN (SELECT value FROM json_each(:agents))
  AND created_at_ms < :at_ms AND (finished_at_ms IS NULL OR finished_at_ms >= :at_ms)

-- replay_data
-- why: what recorded deliveries to events carried.
SELECT event_id, data FROM event WHERE event_id IN (SELECT value FROM json_each(:ids))

-- replay_prompts
-- why: what recorded deliveries to agents carried.
SELECT turn_id, prompt FROM turn WHERE turn_id IN (SELECT value FROM json_each(:ids))

-- replay_rules
-- why: the table as it is, and since when each rule has been as it is.
SELECT * FROM rule WHERE deleted_at_ms IS NULL ORDER BY rule_id

-- replay_rules_at
-- why: the table as it was.
SELECT rule_id, version, content, at_ms FROM rule_history AS was
WHERE content IS NOT NULL
  AND version = (SELECT MAX(version) FROM rule_history WHERE rule_id = was.rule_id AND version <= :version)
ORDER BY rule_id

-- replay_rules_named
-- why: whose business the rules were that are not in the table any more.
SELECT * FROM rule WHERE rule_id IN (SELECT value FROM json_each(:ids))

-- replay_window
-- why: in the store that a replay keeps in memory, the window of a rate as the log shows it.
INSERT INTO rule_state (rule_id, window_ms, in_window) VALUES (:rule_id, :window_ms, :in_window)
ON CONFLICT (rule_id) DO UPDATE SET window_ms = excluded.window_ms, in_window = excluded.in_window

-- replay_spend
-- why: in the store that a replay keeps in memory, what was used up before.
INSERT INTO root_quota (root_id, deliveries) VALUES (:root_id, :deliveries)
ON CONFLICT (root_id) DO UPDATE SET deliveries = excluded.deliveries

-- visible_to
-- why: the rules that an agent may see, those too that have ended.
SELECT rule_id FROM rule
WHERE scope = 'global' OR orchestration_id = :viewer_orchestration
   OR source_agent IN (SELECT value FROM json_each(:viewers))
   OR created_by IN (SELECT 'agent:' || value FROM json_each(:viewers))
   OR scope IN (SELECT 'agent:' || value FROM json_each(:viewers))
   OR EXISTS (SELECT 1 FROM json_tree(rule.target) AS place
              WHERE place.atom IN (SELECT 'agent:' || value FROM json_each(:viewers)))
   OR EXISTS (SELECT 1 FROM json_each(rule.join_spec, '$.all_of') AS part
              WHERE part.value IN (SELECT 'agent:' || value FROM json_each(:viewers)))

-- picture
-- why: the rules for a picture of the table, in the order in which they fire; an agent sees what concerns it.
SELECT *, COUNT(*) OVER () AS total FROM rule
WHERE deleted_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
  AND (:run IS NULL OR orchestration_id = :run)
  AND (:agent_id IS NULL OR source_agent = :agent_id OR scope = 'agent:' || :agent_id
       OR created_by = 'agent:' || :agent_id OR instr(target, '"agent:' || :agent_id || '"') > 0
       OR instr(COALESCE(join_spec, ''), '"agent:' || :agent_id || '"') > 0)
  AND (:mine IS NULL OR rule_id IN (SELECT value FROM json_each(:mine)))
ORDER BY priority DESC, rule_id LIMIT :limit

-- stats
-- why: what each rule did since a minute, the busiest first; an agent sees the rules that it may see.
SELECT stat.rule_id, rule.rule_id IS NOT NULL AND rule.deleted_at_ms IS NULL AS living,
       SUM(matches) AS matches, SUM(deliveries) AS deliveries, SUM(failures) AS failures, SUM(limited) AS limited,
       SUM(latency_ms) AS latency_ms, MAX(slowest_ms) AS slowest_ms, MAX(minute) AS last_minute,
       COUNT(*) OVER () AS rules
FROM rule_stat AS stat LEFT JOIN rule ON rule.rule_id = stat.rule_id
WHERE minute >= :since_minute AND (:rule_id IS NULL OR stat.rule_id = :rule_id)
  AND (:mine IS NULL OR stat.rule_id IN (SELECT value FROM json_each(:mine)))
GROUP BY stat.rule_id ORDER BY SUM(matches) DESC, stat.rule_id LIMIT :limit

-- stats_total
-- why: all of them together, those too that are not listed.
SELECT COUNT(DISTINCT stat.rule_id) AS rules, SUM(matches) AS matches, SUM(deliveries) AS deliveries,
       SUM(failures) AS failures, SUM(limited) AS limited, SUM(latency_ms) AS latency_ms,
       MAX(slowest_ms) AS slowest_ms, MAX(minute) AS last_minute
FROM rule_stat AS stat LEFT JOIN rule ON rule.rule_id = stat.rule_id
WHERE minute >= :since_minute AND (:rule_id IS NULL OR stat.rule_id = :rule_id)
  AND (:mine IS NULL OR stat.rule_id IN (SELECT value FROM json_each(:mine)))

-- newest_stat
-- why: when anything was last used, where the window has nothing.
SELECT minute FROM rule_stat
WHERE (:rule_id IS NULL OR rule_id = :rule_id)
  AND (:mine IS NULL OR rule_id IN (SELECT value FROM json_each(:mine)))
ORDER BY minute DESC LIMIT 1

-- unmatched
-- why: living rules that did nothing as long as figures go back.
SELECT rule_id, COUNT(*) OVER () AS total FROM rule
WHERE deleted_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
  AND (:rule_id IS NULL OR rule_id = :rule_id)
  AND NOT EXISTS (SELECT 1 FROM rule_stat WHERE rule_stat.rule_id = rule.rule_id AND matches + failures > 0)
  AND (:mine IS NULL OR rule_id IN (SELECT value FROM json_each(:mine)))
ORDER BY rule_id LIMIT :limit

-- redriven_since
-- why: what was delivered later is in no other figure.
SELECT COUNT(*) AS letters FROM dead_letter
WHERE redriven_at_ms >= :since_ms AND (:rule_id IS NULL OR rule_id = :rule_id)

-- open_count
-- why: whether there is anything to mend, and since when.
SELECT COUNT(*) AS letters, MIN(at_ms) AS oldest_ms FROM dead_letter WHERE redriven_at_ms IS NULL

-- is_paused
-- why: safe mode holds for every process of a data folder.
SELECT routing_paused FROM control WHERE control_id = 1

-- set_paused
-- why: a server or worker that starts says whether it is to be safe mode.
UPDATE control SET routing_paused = :paused WHERE control_id = 1 AND routing_paused <> :paused

-- outbox_count
-- why: how much waits while nothing is delivered.
SELECT COUNT(*) AS waiting FROM outbox

-- names
-- why: agents are shown by name to those who may know them.
SELECT agent_id, name FROM agent WHERE agent_id IN (SELECT value FROM json_each(:agent_ids))

-- reports_of
-- why: where an event went, as it was reported then.
SELECT event_id, name, data FROM event
WHERE root_id = :root_id AND event_id > :event_id AND cause_id = 'event:' || :event_id
  AND name IN (SELECT value FROM json_each(:names))
ORDER BY event_id LIMIT :limit

-- joined_with
-- why: a join reports the newest of its events as the cause; the others are named in it. Not all of a long log is read.
SELECT event_id, name, data
FROM (SELECT event_id, name, data FROM event
      WHERE name = 'routing:joined' AND event_id > :event_id ORDER BY event_id LIMIT 10000)
WHERE EXISTS (SELECT 1 FROM json_each(data, '$.events') WHERE value = :event_id)
ORDER BY event_id LIMIT :limit

-- join_has
-- why: whether a join still keeps an event.
SELECT 1 FROM join_part WHERE rule_id = :rule_id AND key = :key AND event_id = :event_id

-- changed_after
-- why: a table that was changed since may answer otherwise than the one that delivered.
SELECT DISTINCT json_extract(data, '$.rule_id') AS rule_id FROM event
WHERE name IN (SELECT value FROM json_each(:names)) AND event_id > :event_id
ORDER BY 1 LIMIT :limit
