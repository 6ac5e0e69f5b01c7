-- calls_of
-- why: whether this is the first call of a turn, which is the one that counts the turn.
SELECT COUNT(*) AS calls FROM provider_call WHERE turn_id = :turn_id

-- sent
-- why: written before the call leaves: from here on it may have to be paid.
INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, sent_at_ms)
VALUES (:turn_id, :round, :attempt, :hold_id, :provider, :model, 'sent', :now_ms)
RETURNING call_id

-- answered
-- why: the answer is stored as it arrives; it is never bought again.
UPDATE provider_call SET state = 'answered', answer = :answer, input_tokens = :input_tokens,
                         output_tokens = :output_tokens, cache_tokens = :cache_tokens,
                         cost_usd_micros = :cost_usd_micros, ended_at_ms = :now_ms
WHERE call_id = :call_id AND state = 'sent'

-- ended
-- why: how an attempt without a usable answer ended, and what it cost.
UPDATE provider_call SET state = :state, error_kind = :error_kind, error = :error,
                         cost_usd_micros = :cost_usd_micros, ended_at_ms = :now_ms
WHERE call_id = :call_id AND state = 'sent'

-- uncertain_calls
-- why: attempts whose worker died: nobody will ever learn what they cost.
UPDATE provider_call SET state = 'uncertain', error_kind = 'transport', error = 'the worker was lost', ended_at_ms = :now_ms,
       cost_usd_micros = (SELECT reserved_usd_micros FROM hold WHERE hold.hold_id = provider_call.hold_id)
WHERE turn_id = :turn_id AND state = 'sent'

-- store_result
-- why: under (turn, round, index), in the transaction of the effect; a tool that waited may say more later.
INSERT INTO tool_call (turn_id, round, idx, tool, args, result, is_error, at_ms)
VALUES (:turn_id, :round, :idx, :tool, :args, :result, :is_error, :now_ms)
ON CONFLICT (turn_id, round, idx) DO UPDATE SET result = excluded.result, is_error = excluded.is_error

-- stored_result
-- why: a tool call whose effect is in the store is never run again.
SELECT result, is_error FROM tool_call WHERE turn_id = :turn_id AND round = :round AND idx = :idx
