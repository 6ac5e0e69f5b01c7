-- open
-- why: every agent and every run gets its node when it is made.
INSERT INTO account (account_id, parent_id, limit_usd_micros, limit_tokens, limit_turns)
VALUES (:account_id, :parent_id, :usd_micros, :tokens, :turns)
ON CONFLICT (account_id) DO NOTHING

-- set_limits
-- why: the operator changes what may be spent.
UPDATE account SET limit_usd_micros = :usd_micros, limit_tokens = :tokens, limit_turns = :turns
WHERE account_id = :account_id

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

-- reserve
-- why: sets the amount aside in the whole path at once.
UPDATE account SET reserved_usd_micros = reserved_usd_micros + :usd_micros,
                   reserved_tokens = reserved_tokens + :tokens, spent_turns = spent_turns + :turns
WHERE account_id IN (SELECT value FROM json_each(:path))

-- hold
-- why: the reservation as a thing of its own, settled exactly once.
INSERT INTO hold (hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens)
VALUES (:hold_id, :account_id, :turn_id, 'reserved', :usd_micros, :tokens)

-- mark_sent
-- why: from here on the call may have left, and the hold can only be settled.
UPDATE hold SET state = 'sent' WHERE hold_id = :hold_id AND state = 'reserved'

-- close_hold
-- why: zero rows means that it was settled before, or sent and is not to be given back; then nothing may move.
UPDATE hold SET state = :state, cost_usd_micros = COALESCE(:usd_micros, reserved_usd_micros),
                cost_tokens = COALESCE(:tokens, reserved_tokens), uncertain = :uncertain
WHERE hold_id = :hold_id AND state IN ('reserved', 'sent') AND (state = 'reserved' OR :state <> 'released')
RETURNING account_id, reserved_usd_micros, reserved_tokens

-- book
-- why: what was set aside goes, what it cost comes, in the whole path at once.
UPDATE account SET reserved_usd_micros = reserved_usd_micros - :reserved_usd_micros,
                   reserved_tokens = reserved_tokens - :reserved_tokens,
                   spent_usd_micros = spent_usd_micros + :usd_micros, spent_tokens = spent_tokens + :tokens,
                   closed = CASE WHEN account_id = :account_id THEN MAX(closed, :closed) ELSE closed END
WHERE account_id IN (SELECT value FROM json_each(:path))

-- open_holds
-- why: what a turn left behind when its worker died.
SELECT hold_id, state, reserved_usd_micros, reserved_tokens FROM hold
WHERE turn_id = :turn_id AND state IN ('reserved', 'sent')

-- orphan_holds
-- why: holds of turns that nobody runs any more; found once when a worker starts.
SELECT hold.hold_id, hold.state, hold.turn_id FROM hold JOIN turn USING (turn_id)
WHERE hold.state IN ('reserved', 'sent') AND turn.state <> 'running'
