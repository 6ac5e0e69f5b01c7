-- open
-- why: every agent and every run gets its node when it is made.
INSERT INTO account (account_id, parent_id, limit_usd_micros, limit_tokens, limit_turns, limit_seconds, policy,
                     opened_at_ms)
VALUES (:account_id, :parent_id, :usd_micros, :tokens, :turns, :seconds, :policy, :now_ms)
ON CONFLICT (account_id) DO NOTHING

-- configure
-- why: a changed configuration sets the limits of the root; one that says the same leaves what was set since.
UPDATE account SET limit_usd_micros = :usd_micros, limit_tokens = :tokens, limit_turns = :turns,
                   limit_seconds = :seconds, configured = :configured,
                   opened_at_ms = COALESCE(opened_at_ms, :now_ms)
WHERE account_id = :account_id AND configured IS NOT :configured

-- set_limits
-- why: what may be spent is changed; time limits of an account that does not know its age count from now.
UPDATE account SET limit_usd_micros = :usd_micros, limit_tokens = :tokens, limit_turns = :turns,
                   limit_seconds = :seconds, policy = :policy, closed = :closed,
                   opened_at_ms = COALESCE(opened_at_ms, :now_ms)
WHERE account_id = :account_id

-- notified
-- why: the highest threshold that was reported, so that each is reported once.
UPDATE account SET notified = :percent WHERE account_id = :account_id

-- add_pause
-- why: time in which a run was suspended is not its own.
UPDATE account SET paused_ms = paused_ms + :paused_ms WHERE account_id IN (SELECT value FROM json_each(:account_ids))

-- one
-- why: the state of an account, to show it.
SELECT * FROM account WHERE account_id = :account_id

-- path
-- why: every account that has to agree to a reservation, root first.
WITH RECURSIVE up (account_id, parent_id, distance) AS (
    SELECT account_id, parent_id, 0 FROM account WHERE account_id = :account_id
    UNION ALL
    SELECT a.account_id, a.parent_id, up.distance + 1 FROM account a JOIN up ON a.account_id = up.parent_id
)
SELECT account.* FROM up JOIN account USING (account_id) ORDER BY up.distance DESC

-- below
-- why: an account and all that draw on it.
WITH RECURSIVE down (account_id) AS (
    SELECT account_id FROM account WHERE account_id = :account_id
    UNION ALL
    SELECT a.account_id FROM account a JOIN down ON a.parent_id = down.account_id
)
SELECT account_id FROM down

-- room
-- why: in one look, leaf first: who has to agree to a reservation, whether a limit stands in the way, what time is left.
WITH RECURSIVE up (account_id, parent_id, refuses, ms_left) AS (
    SELECT a.account_id, a.parent_id,
           a.closed OR (:usd_micros > 0 AND a.spent_usd_micros + a.reserved_usd_micros + :usd_micros > a.limit_usd_micros)
           OR (:tokens > 0 AND a.spent_tokens + a.reserved_tokens + :tokens > a.limit_tokens)
           OR (:turns > 0 AND a.spent_turns + :turns > a.limit_turns),
           a.limit_seconds * 1000 - MAX(:now_ms - a.opened_at_ms - a.paused_ms, 0)
    FROM account a WHERE a.account_id = :account_id
    UNION ALL
    SELECT a.account_id, a.parent_id,
           a.closed OR (:usd_micros > 0 AND a.spent_usd_micros + a.reserved_usd_micros + :usd_micros > a.limit_usd_micros)
           OR (:tokens > 0 AND a.spent_tokens + a.reserved_tokens + :tokens > a.limit_tokens)
           OR (:turns > 0 AND a.spent_turns + :turns > a.limit_turns),
           a.limit_seconds * 1000 - MAX(:now_ms - a.opened_at_ms - a.paused_ms, 0)
    FROM up JOIN account a ON a.account_id = up.parent_id
)
SELECT account_id, refuses, ms_left FROM up

-- reserve
-- why: sets the amount aside in the whole path at once.
UPDATE account SET reserved_usd_micros = reserved_usd_micros + :usd_micros,
                   reserved_tokens = reserved_tokens + :tokens, spent_turns = spent_turns + :turns
WHERE account_id IN (SELECT value FROM json_each(:path))

-- hold
-- why: the reservation as a thing of its own, settled exactly once, in the accounts it was made in.
INSERT INTO hold (hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens, path)
VALUES (:hold_id, :account_id, :turn_id, :state, :usd_micros, :tokens, :path)

-- mark_sent
-- why: from here on the call may have left, and the hold can only be settled.
UPDATE hold SET state = 'sent' WHERE hold_id = :hold_id AND state = 'reserved'

-- close_hold
-- why: zero rows means that it was settled before, or sent and is not to be given back; then nothing may move.
UPDATE hold SET state = :state, cost_usd_micros = COALESCE(:usd_micros, reserved_usd_micros),
                cost_tokens = COALESCE(:tokens, reserved_tokens), uncertain = :uncertain
WHERE hold_id = :hold_id AND state IN ('reserved', 'sent') AND (state = 'reserved' OR :state <> 'released')
RETURNING account_id, reserved_usd_micros, reserved_tokens, path

-- book
-- why: what was set aside goes, what it cost comes, in the whole path at once; 1 where a threshold not yet reported is reached.
UPDATE account SET reserved_usd_micros = reserved_usd_micros - :reserved_usd_micros,
                   reserved_tokens = reserved_tokens - :reserved_tokens,
                   spent_usd_micros = spent_usd_micros + :usd_micros, spent_tokens = spent_tokens + :tokens,
                   closed = CASE WHEN account_id = :account_id THEN MAX(closed, :closed) ELSE closed END
WHERE account_id IN (SELECT value FROM json_each(:path))
RETURNING notified < 100 AND (
    (limit_usd_micros > 0 AND spent_usd_micros * 100
        >= CASE notified WHEN 0 THEN 50 WHEN 50 THEN 80 ELSE 100 END * limit_usd_micros)
    OR (limit_tokens > 0 AND spent_tokens * 100
        >= CASE notified WHEN 0 THEN 50 WHEN 50 THEN 80 ELSE 100 END * limit_tokens)
    OR (limit_turns > 0 AND spent_turns * 100
        >= CASE notified WHEN 0 THEN 50 WHEN 50 THEN 80 ELSE 100 END * limit_turns)
    OR (limit_seconds > 0 AND (:now_ms - opened_at_ms - paused_ms)
        >= CASE notified WHEN 0 THEN 50 WHEN 50 THEN 80 ELSE 100 END * limit_seconds * 10)) AS due

-- open_holds
-- why: what a turn left behind when its worker died.
SELECT hold_id, state, reserved_usd_micros, reserved_tokens FROM hold
WHERE turn_id = :turn_id AND state IN ('reserved', 'sent')

-- orphan_holds
-- why: holds of turns that nobody runs any more, and that no batch will settle; found once when a worker starts.
SELECT hold.hold_id, hold.state, hold.turn_id FROM hold JOIN turn USING (turn_id)
WHERE hold.state IN ('reserved', 'sent') AND turn.state <> 'running'
  AND NOT EXISTS (SELECT 1 FROM provider_call AS c
                  WHERE c.turn_id = hold.turn_id AND c.hold_id = hold.hold_id AND c.batch_id IS NOT NULL)

-- spend
-- why: where the money went, by whatever the report is grouped by; dearest first, days from the newest.
SELECT CASE :group_by WHEN 'agent' THEN agent_id
                      WHEN 'model' THEN provider || ':' || model
                      WHEN 'orchestration' THEN COALESCE(orchestration_id, '')
                      WHEN 'day' THEN date(sent_at_ms / 1000, 'unixepoch')
                      ELSE '' END AS label,
       COUNT(DISTINCT turn_id) AS turns, COUNT(*) AS calls,
       COUNT(*) FILTER (WHERE reused_from IS NOT NULL) AS reused,
       COUNT(*) FILTER (WHERE state = 'sent') AS under_way,
       COUNT(*) FILTER (WHERE state = 'failed') AS failed,
       COALESCE(SUM(input_tokens), 0) AS input_tokens, COALESCE(SUM(output_tokens), 0) AS output_tokens,
       COALESCE(SUM(cache_tokens), 0) AS cache_tokens,
       COALESCE(SUM(cost_usd_micros) FILTER (WHERE state <> 'uncertain'), 0) AS usd_micros,
       COUNT(*) FILTER (WHERE state = 'uncertain') AS uncertain_calls,
       COALESCE(SUM(cost_usd_micros) FILTER (WHERE state = 'uncertain'), 0) AS uncertain_usd_micros,
       COALESCE(SUM(CASE WHEN state = 'sent' THEN (SELECT h.reserved_usd_micros FROM hold h WHERE h.hold_id = c.hold_id
                                                   AND h.state IN ('reserved', 'sent')) END), 0) AS reserved_usd_micros,
       COALESCE(SUM(CASE WHEN reused_from > 0 THEN (SELECT o.cost_usd_micros FROM provider_call o
                                                    WHERE o.call_id = c.reused_from) END), 0) AS saved_usd_micros
FROM (SELECT t.session_id AS agent_id, t.orchestration_id, c.turn_id, c.provider, c.model, c.state, c.reused_from,
             c.sent_at_ms, c.input_tokens, c.output_tokens, c.cache_tokens, c.cost_usd_micros, c.hold_id
      FROM provider_call c JOIN turn t ON t.turn_id = c.turn_id
      UNION ALL
      SELECT p.agent_id, a.orchestration_id, NULL, p.provider, p.model,
             CASE WHEN p.ended_at_ms IS NULL THEN 'sent'
                  WHEN p.cost_usd_micros > 0 AND p.input_tokens + p.output_tokens + p.cache_tokens = 0 THEN 'uncertain'
                  ELSE 'answered' END, NULL,
             p.created_at_ms, p.input_tokens, p.output_tokens, p.cache_tokens, p.cost_usd_micros, p.hold_id
      FROM prefetch p JOIN agent a ON a.agent_id = p.agent_id WHERE p.hold_id IS NOT NULL) AS c
WHERE (:orchestration_id IS NULL OR orchestration_id = :orchestration_id)
  AND (:since_ms IS NULL OR sent_at_ms >= :since_ms)
  AND (:agents IS NULL OR agent_id IN (SELECT value FROM json_each(:agents)))
GROUP BY label
HAVING :after IS NULL OR CASE WHEN :group_by = 'day' THEN label < :after
                              ELSE COALESCE(SUM(cost_usd_micros), 0) < :after_usd_micros
                                   OR (COALESCE(SUM(cost_usd_micros), 0) = :after_usd_micros AND label > :after) END
ORDER BY CASE WHEN :group_by = 'day' THEN label END DESC,
         COALESCE(SUM(cost_usd_micros), 0) DESC, label
LIMIT :limit
