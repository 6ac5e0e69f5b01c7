-- calls_of
-- why: whether this is the first call of a turn, which is the one that counts the turn.
SELECT COUNT(*) AS calls FROM provider_call WHERE turn_id = :turn_id AND reused_from IS NULL

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
ON CONFLICT (turn_id, round, idx) DO UPDATE SET tool = excluded.tool, args = excluded.args, result = excluded.result,
                                                  is_error = excluded.is_error

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
                           request_hash, reused_from, similarity)
SELECT :turn_id, :round, :attempt, :hold_id, provider, model, 'answered', answer, :now_ms, :now_ms, :request_hash,
       COALESCE(reused_from, call_id), :similarity
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

-- prefetch_ask
-- why: a prompt that may come next waits until nothing else is to be done.
INSERT INTO prefetch (agent_id, prompt, account_id, state, created_by, created_at_ms, expires_at_ms, follows,
                      cause_id, root_id, hops, depth)
VALUES (:agent_id, :prompt, :account_id, 'waiting', :created_by, :now_ms, :expires_at_ms, :follows,
        :cause_id, :root_id, :hops, :depth)

-- prefetch_keep
-- why: who asks for the same again wants it for longer, not twice.
UPDATE prefetch SET expires_at_ms = MAX(expires_at_ms, :expires_at_ms)
WHERE agent_id = :agent_id AND prompt = :prompt AND state IN ('waiting', 'sent', 'answered')

-- prefetch_of_agent
-- why: the newest prefetches of an agent, and how its conversation stands; nearly all of them are over.
SELECT p.prefetch_id, p.agent_id, substr(p.prompt, 1, :shown_chars) AS prompt, p.account_id, p.state, p.created_by,
       p.expires_at_ms, p.follows, p.provider, p.cost_usd_micros, p.error, p.used_by,
       s.changes, s.pending, s.suspended, a.status AS life, a.draining,
       s.pending > 0 AND (
           EXISTS (SELECT 1 FROM turn t WHERE t.session_id = p.agent_id AND t.prompt = p.prompt
                   AND t.state IN ('ready', 'running', 'retrying', 'blocked', 'parked'))
           OR EXISTS (SELECT 1 FROM turn t WHERE t.session_id = p.agent_id AND t.prompt = p.prompt
                      AND t.state = 'queued')) AS asked
FROM prefetch p JOIN session s ON s.session_id = p.agent_id JOIN agent a ON a.agent_id = p.agent_id
WHERE p.agent_id = :agent_id AND (:live = 0 OR p.state IN ('waiting', 'sent', 'answered'))
ORDER BY p.prefetch_id DESC LIMIT :limit

-- prefetch_open
-- why: what the worker may have to cancel or to send, those first whose conversation rests.
SELECT p.prefetch_id, p.agent_id, p.state, p.expires_at_ms, p.follows, a.provider,
       s.changes, s.pending, s.suspended, a.status AS life, a.draining,
       s.pending > 0 AND (
           EXISTS (SELECT 1 FROM turn t WHERE t.session_id = p.agent_id AND t.prompt = p.prompt
                   AND t.state IN ('ready', 'running', 'retrying', 'blocked', 'parked'))
           OR EXISTS (SELECT 1 FROM turn t WHERE t.session_id = p.agent_id AND t.prompt = p.prompt
                      AND t.state = 'queued')) AS asked
FROM prefetch p JOIN session s ON s.session_id = p.agent_id JOIN agent a ON a.agent_id = p.agent_id
WHERE p.state IN ('waiting', 'sent') AND (:prefetch_id IS NULL OR p.prefetch_id = :prefetch_id)
ORDER BY p.state = 'waiting', s.pending > 0, p.prefetch_id LIMIT :limit

-- prefetch_unfinished
-- why: whether a worker has something to prefetch, or one that was lost has left a call to be settled.
SELECT EXISTS (SELECT 1 FROM prefetch WHERE state = 'sent')
    OR EXISTS (SELECT 1 FROM prefetch p JOIN session s ON s.session_id = p.agent_id
               JOIN agent a ON a.agent_id = p.agent_id
               WHERE p.state = 'waiting' AND p.expires_at_ms > :now_ms AND s.pending = 0 AND s.suspended = 0
                 AND s.changes = p.follows AND a.status = 'active' AND a.draining = 0) AS open

-- prefetch_one
-- why: what is to be sent.
SELECT * FROM prefetch WHERE prefetch_id = :prefetch_id

-- prefetch_words
-- why: what was put into the conversation goes with its next turn, so it is part of what is prefetched.
SELECT position, content FROM injection WHERE session_id = :agent_id AND turn_id IS NULL ORDER BY injection_id

-- prefetch_sent
-- why: written before the call leaves: from here on it may have to be paid.
UPDATE prefetch SET state = 'sent', provider = :provider, model = :model, request_hash = :request_hash, hold_id = :hold_id
WHERE prefetch_id = :prefetch_id AND state = 'waiting'

-- prefetch_paid
-- why: what a call came to is booked on it, whatever has become of it meanwhile.
UPDATE prefetch SET cost_usd_micros = :cost_usd_micros, input_tokens = :input_tokens, output_tokens = :output_tokens,
                    cache_tokens = :cache_tokens, ended_at_ms = :now_ms
WHERE prefetch_id = :prefetch_id

-- prefetch_answered
-- why: the answer waits for the turn that asks for it.
UPDATE prefetch SET state = 'answered', answer = :answer WHERE prefetch_id = :prefetch_id AND state = 'sent'

-- prefetch_over
-- why: nothing will come of it any more, so of its texts only the beginning is kept.
UPDATE prefetch SET state = :state, error = :error, prompt = substr(prompt, 1, :shown_chars), answer = NULL,
                    ended_at_ms = COALESCE(ended_at_ms, :now_ms)
WHERE prefetch_id = :prefetch_id AND state IN ('waiting', 'sent', 'answered')

-- prefetch_lost
-- why: calls whose worker died: nobody will ever learn what they cost.
SELECT p.*, a.name AS agent_name, a.orchestration_id
FROM hold h JOIN prefetch p ON p.prefetch_id = CAST(substr(h.turn_id, 10) AS INTEGER) AND p.hold_id = h.hold_id
JOIN agent a ON a.agent_id = p.agent_id
WHERE h.state IN ('reserved', 'sent') AND h.turn_id LIKE 'prefetch:%'

-- prefetched
-- why: an answer to the very request that a turn of that agent is about to make.
SELECT * FROM prefetch
WHERE request_hash = :request_hash AND state = 'answered' AND agent_id = :agent_id AND expires_at_ms > :now_ms
ORDER BY prefetch_id DESC LIMIT 1

-- prefetch_under_way
-- why: whether the very request that a turn is about to make has left already.
SELECT 1 FROM prefetch WHERE state = 'sent' AND agent_id = :agent_id AND request_hash = :request_hash LIMIT 1

-- prefetch_used
-- why: an answer is given once; of its texts only the beginning is kept, for the turn has them.
UPDATE prefetch SET state = 'used', used_by = :turn_id, prompt = substr(prompt, 1, :shown_chars), answer = NULL
WHERE prefetch_id = :prefetch_id AND state = 'answered'

-- use_prefetched
-- why: the round gets its answer as if it had been bought, marked as what it is.
INSERT INTO provider_call (turn_id, round, attempt, hold_id, provider, model, state, answer, sent_at_ms, ended_at_ms,
                           request_hash, reused_from)
SELECT :turn_id, :round, :attempt, :hold_id, provider, model, 'answered', answer, :now_ms, :now_ms, request_hash,
       -prefetch_id
FROM prefetch WHERE prefetch_id = :prefetch_id AND state = 'answered'
RETURNING answer

-- batch_waits
-- why: what a call that goes with a batch says until somebody sends it.
UPDATE provider_call SET batch_id = '' WHERE call_id = :call_id

-- batch_unsent
-- why: the calls that wait to be sent together, oldest first.
SELECT c.call_id, c.hold_id, c.round, c.request_hash, c.provider, c.turn_id FROM provider_call c JOIN turn t USING (turn_id)
WHERE c.batch_id = '' AND c.state = 'sent' AND t.state = 'parked' AND t.parked_on = 'batch' AND t.held = 0
ORDER BY c.call_id LIMIT :limit

-- batch_abandoned
-- why: calls that were never sent and never will be: their turns were cancelled or moved.
SELECT c.call_id, c.hold_id, c.turn_id FROM provider_call c JOIN turn t USING (turn_id)
WHERE c.batch_id = '' AND c.state = 'sent' AND NOT (t.state = 'parked' AND t.parked_on = 'batch')

-- batch_unsent_of
-- why: what a turn that is claimed again had not sent costs nothing.
SELECT call_id, hold_id FROM provider_call WHERE turn_id = :turn_id AND batch_id = '' AND state = 'sent'

-- batch_leaving
-- why: written before a batch leaves: from here on its calls may have to be paid.
UPDATE provider_call SET batch_id = :marker
WHERE batch_id = '' AND state = 'sent' AND call_id IN (SELECT value FROM json_each(:call_ids))

-- batch_sent
-- why: under the provider's id from now on.
UPDATE provider_call SET batch_id = :batch_id WHERE batch_id = :marker

-- batch_make
-- why: stored before anybody asks how far it is.
INSERT INTO batch (batch_id, provider, requests, state, submitted_at_ms)
VALUES (:batch_id, :provider, :requests, 'open', :now_ms)

-- batch_lost
-- why: batches that left with a worker that was lost before it knew their ids.
SELECT c.call_id, c.hold_id, c.turn_id, c.provider, c.model FROM provider_call c
WHERE c.batch_id IS NOT NULL AND substr(c.batch_id, 1, 8) = 'leaving:' AND c.state = 'sent'

-- batch_due
-- why: the open batches that may be asked how far they are; whether anybody still waits for them.
SELECT b.batch_id, b.provider, b.state, b.requests,
       EXISTS (SELECT 1 FROM provider_call c JOIN turn t USING (turn_id) WHERE c.batch_id = b.batch_id
               AND c.state = 'sent' AND t.state = 'parked' AND t.parked_on = 'batch') AS wanted
FROM batch b WHERE b.state <> 'ended' AND COALESCE(b.asked_at_ms, b.submitted_at_ms) <= :before_ms

-- batch_open
-- why: whether a worker still has something to ask after.
SELECT EXISTS (SELECT 1 FROM batch WHERE state <> 'ended') AS open

-- batch_asked
-- why: when it was looked at last, and how it stood.
UPDATE batch SET asked_at_ms = :now_ms, state = :state, ended_at_ms = CASE WHEN :state = 'ended' THEN :now_ms END
WHERE batch_id = :batch_id

-- batch_calls
-- why: the calls of a batch that were not taken in yet.
SELECT call_id, hold_id, round, c.turn_id, provider, model, reserved_usd_micros, reserved_tokens
FROM provider_call AS c JOIN hold USING (hold_id) WHERE batch_id = :batch_id AND c.state = 'sent' ORDER BY call_id

-- semantic_stamp
-- why: whether the points of a scope are still those in memory.
SELECT COUNT(*) AS entries, MIN(call_id) AS oldest, MAX(call_id) AS newest FROM semantic_entry WHERE scope = :scope

-- semantic_ids
-- why: the points of a scope, newest first; only those that are not in memory are read in full.
SELECT call_id FROM semantic_entry WHERE scope = :scope ORDER BY call_id DESC LIMIT :limit

-- semantic_vectors
-- why: the points that are not in memory yet.
SELECT call_id, vector FROM semantic_entry WHERE call_id IN (SELECT value FROM json_each(:ids))

-- semantic_prompts
-- why: what the nearest were asked, if their answer is still there.
SELECT e.call_id, e.prompt FROM semantic_entry e JOIN provider_call c ON c.call_id = e.call_id
WHERE e.call_id IN (SELECT value FROM json_each(:ids)) AND c.state = 'answered'

-- semantic_usable
-- why: between a look and its transaction the answer may have been cleared away.
SELECT 1 AS there FROM provider_call WHERE call_id = :call_id AND state = 'answered'

-- semantic_learn
-- why: a prompt that the model has answered can answer others.
INSERT INTO semantic_entry (call_id, scope, prompt, vector, at_ms) VALUES (:call_id, :scope, :prompt, :vector, :now_ms)
ON CONFLICT (call_id) DO UPDATE SET scope = excluded.scope, prompt = excluded.prompt, vector = excluded.vector

-- semantic_trim
-- why: only the newest of a scope are kept, in the transaction that adds one.
DELETE FROM semantic_entry
WHERE scope = :scope AND call_id <= (SELECT call_id FROM semantic_entry WHERE scope = :scope
                                     ORDER BY call_id DESC LIMIT 1 OFFSET :entries)

-- semantic_relook
-- why: a turn that is tried again looks again; only the last look counts.
DELETE FROM semantic_look WHERE turn_id = :turn_id

-- semantic_note
-- why: what a look has come to, so that the threshold can be judged before anything is served.
INSERT INTO semantic_look (turn_id, scope, prompt, call_id, nearest, score, verdict, reason, at_ms)
VALUES (:turn_id, :scope, :prompt, :call_id, :nearest, :score, :verdict, :reason, :now_ms)
RETURNING look_id

-- semantic_trim_looks
-- why: the newest looks are enough to judge by.
DELETE FROM semantic_look WHERE look_id <= :last

-- semantic_open_look
-- why: the answer that would have been served, to be held against the one that was bought.
SELECT l.look_id, json_extract(c.answer, '$.text') AS answer
FROM semantic_look l JOIN provider_call c ON c.call_id = l.call_id
WHERE l.turn_id = :turn_id AND l.verdict <> 'served' AND l.same_answer IS NULL AND c.answer IS NOT NULL

-- semantic_compared
-- why: whether both answers are the same in words; the false hits are among those that are not.
UPDATE semantic_look SET same_answer = :same WHERE look_id = :look_id

-- semantic_tally
-- why: looks by likeness (in hundredths), verdict, the guard's word and how the answers compare; at most some hundred rows.
SELECT CAST(score * 100 + 0.000001 AS INTEGER) AS hundredths, verdict, reason IS NOT NULL AS refused, same_answer,
       COUNT(*) AS looks
FROM semantic_look GROUP BY 1, 2, 3, 4 ORDER BY 1

-- semantic_size
-- why: how much there is to look through.
SELECT COUNT(*) AS entries, COUNT(DISTINCT scope) AS scopes FROM semantic_entry

-- semantic_page
-- why: the pairs themselves, newest first: figures alone do not show what a false hit is.
SELECT l.*, t.session_id FROM semantic_look l LEFT JOIN turn t ON t.turn_id = l.turn_id
WHERE (:before IS NULL OR l.look_id < :before) AND (:verdict IS NULL OR l.verdict = :verdict)
  AND (:same IS NULL OR l.same_answer = :same)
ORDER BY l.look_id DESC LIMIT :limit

