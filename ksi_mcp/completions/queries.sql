-- calls_of
-- why: whether this is the first call of a turn, which is the one that counts the turn.
SELECT COUNT(*) AS calls FROM provider_call WHERE turn_id = :turn_id

-- sent
-- why: written before the call leaves: from here on it may have to be paid.
INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, sent_at_ms, request_hash)
VALUES (:turn_id, :round, :attempt, :hold_id, :provider, :model, 'sent', :now_ms, :request_hash)
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

-- store_note
-- why: why a reply was not taken; it goes before the next round, also after a restart.
INSERT INTO round_note (turn_id, round, text, at_ms) VALUES (:turn_id, :round, :text, :now_ms)
ON CONFLICT (turn_id, round) DO UPDATE SET text = excluded.text

-- take_reusable
-- why: an answer of a time line that was left is given once, to the very request that bought it.
UPDATE reusable SET used_by = :turn_id
WHERE reusable_id = (SELECT reusable_id FROM reusable
                     WHERE orchestration_id = :orchestration_id AND request_hash = :request_hash
                       AND agent_name = :agent_name AND used_by IS NULL ORDER BY reusable_id LIMIT 1)
RETURNING call_id

-- cached
-- why: the newest answer that an equal request bought; never one that asked for tools.
SELECT call_id FROM provider_call
WHERE request_hash = :request_hash AND state = 'answered' AND json_extract(answer, '$.stop_reason') = 'end_turn'
ORDER BY call_id DESC LIMIT 1

-- free_hold
-- why: a round that costs nothing has its hold as well, settled from the start.
INSERT INTO hold (hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens, cost_usd_micros, cost_tokens)
VALUES (:hold_id, :account_id, :turn_id, 'settled', 0, 0, 0, 0)

-- reuse
-- why: the round gets its answer as if it had been bought, marked as what it is.
INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, answer, sent_at_ms, ended_at_ms,
                           request_hash, reused_from)
SELECT :turn_id, :round, :attempt, :hold_id, provider, model, 'answered', answer, :now_ms, :now_ms, :request_hash,
       COALESCE(reused_from, call_id)
FROM provider_call WHERE call_id = :call_id
RETURNING answer

-- breaker_all
-- why: the circuits that are not spotless; at most one a provider and model family.
SELECT * FROM breaker ORDER BY provider, family

-- breaker_one
-- why: how a circuit stands; read in the transaction that changes it.
SELECT * FROM breaker WHERE provider = :provider AND family = :family

-- breaker_save
-- why: a failure, an opening, or who holds the probe.
INSERT INTO breaker (provider, family, state, failures, opened_at_ms, probe_turn, probe_at_ms)
VALUES (:provider, :family, :state, :failures, :opened_at_ms, :probe_turn, :probe_at_ms)
ON CONFLICT (provider, family) DO UPDATE SET state = excluded.state, failures = excluded.failures,
    opened_at_ms = excluded.opened_at_ms, probe_turn = excluded.probe_turn, probe_at_ms = excluded.probe_at_ms

-- breaker_drop
-- why: a closed circuit without failures is one without a row.
DELETE FROM breaker WHERE provider = :provider AND family = :family

-- breaker_forget
-- why: a turn that will not report any more leaves its probe to the next one that asks.
UPDATE breaker SET probe_turn = NULL, probe_at_ms = NULL WHERE probe_turn = :turn_id

-- recent_latencies
-- why: how long the newest calls took, so that a restarted worker need not learn it anew; a bounded look back.
SELECT c.model, t.op_class, c.ended_at_ms - c.sent_at_ms AS took_ms
FROM provider_call c JOIN turn t ON t.turn_id = c.turn_id
WHERE c.call_id > (SELECT COALESCE(MAX(call_id), 0) FROM provider_call) - :look_back
  AND c.reused_from IS NULL AND c.ended_at_ms IS NOT NULL
  AND (c.state = 'answered' OR c.error_kind = 'timeout')
ORDER BY c.call_id

-- worker_clear
-- why: only one worker holds the lock; what another one said is over.
DELETE FROM worker

-- worker_begin
-- why: who runs the turns, so that it can be told from a process that only has its number.
INSERT INTO worker (worker_id, pid, host, process_start, started_at_ms, beat, beat_ms)
VALUES (:worker_id, :pid, :host, :process_start, :now_ms, 0, :now_ms)

-- worker_beat
-- why: a sign of life; zero rows means that another worker has taken over.
UPDATE worker SET beat = beat + 1, beat_ms = :now_ms WHERE worker_id = :worker_id

-- worker_sign
-- why: whether the worker has given a sign since the last look.
SELECT * FROM worker ORDER BY started_at_ms DESC LIMIT 1

-- give_kept_results
-- why: with the same answer, what its tools did elsewhere since a run went back is not done again.
INSERT INTO tool_call (turn_id, round, idx, tool, args, result, is_error, at_ms)
SELECT :turn_id, :number, given.idx, given.tool, given.args, given.result, given.is_error, :now_ms
FROM provider_call AS said JOIN kept_result AS kept ON kept.turn_id = said.turn_id AND kept.round = said.round
JOIN tool_call AS given ON given.turn_id = kept.turn_id AND given.round = kept.round AND given.idx = kept.idx
WHERE said.call_id = :call_id
RETURNING idx, result, is_error
