-- put
-- why: a file was found new or changed; the row follows it.
INSERT INTO composition (name, layer, path, hash, type, version, description, tags, document, mtime_ns, size)
VALUES (:name, :layer, :path, :hash, :type, :version, :description, :tags, :document, :mtime_ns, :size)
ON CONFLICT (layer, path) DO UPDATE SET
    name = excluded.name,
    hash = excluded.hash,
    type = excluded.type,
    version = excluded.version,
    description = excluded.description,
    tags = excluded.tags,
    document = excluded.document,
    mtime_ns = excluded.mtime_ns,
    size = excluded.size

-- drop
-- why: the file is gone or holds no composition any more.
DELETE FROM composition WHERE layer = :layer AND path = :path

-- changed
-- why: what processes keep in memory of the index is out of date; every change of a row counts.
UPDATE control SET library_version = library_version + 1 WHERE control_id = 1

-- version
-- why: what is kept in memory is good for as long as this is the same.
SELECT library_version AS version FROM control WHERE control_id = 1

-- keep_replaced
-- why: whoever changes a file, by hand or with a tool, the version before stays retrievable and can be merged with.
INSERT INTO composition_version (hash, name, document, first_used_at_ms)
SELECT hash, name, document, :now_ms FROM composition WHERE layer = :layer AND path = :path AND hash <> :hash
ON CONFLICT (hash) DO NOTHING

-- files
-- why: what a scan of the folders is compared with.
SELECT layer, path, name, mtime_ns, size FROM composition

-- heads
-- why: discovery ranks by words in name, tags and description; documents stay out of it.
SELECT name, layer, path, hash, type, version, description, tags
FROM composition
ORDER BY name, layer, path

-- documents
-- why: a filter on metadata has to look into the documents.
SELECT name, layer, path, document FROM composition ORDER BY name, layer, path

-- named
-- why: every layer's composition of a name; the caller takes the highest layer.
SELECT name, layer, path, hash, type, version, description, tags, document
FROM composition
WHERE name = :name
ORDER BY path

-- remember
-- why: a version that was used stays retrievable; the hash is its identity, so once is enough.
INSERT INTO composition_version (hash, name, document, first_used_at_ms)
VALUES (:hash, :name, :document, :now_ms)
ON CONFLICT (hash) DO NOTHING

-- remembered
-- why: `name@hash` still works when the file has changed since.
SELECT hash, name, document
FROM composition_version
WHERE name = :name AND substr(hash, 1, length(:prefix)) = :prefix
ORDER BY first_used_at_ms
LIMIT 2

-- was_reported
-- why: a fork or creation that is repeated after a crash must not be reported twice.
SELECT event_id FROM event WHERE name = :event AND json_extract(data, '$.name') = :name LIMIT 1

-- run_ended
-- why: what a run's record is made of, all of it known in the transaction that ends it; pauses are no part of its time.
SELECT o.pattern AS name, o.pattern_hash AS hash, o.state, o.outcome, o.score, o.metrics, o.origin_id,
       COALESCE(json_extract(v.document, '$.version'), '1.0.0') AS version,
       COALESCE(a.spent_usd_micros, 0) AS usd_micros, COALESCE(a.spent_tokens, 0) AS tokens,
       COALESCE(a.spent_turns, 0) AS turns,
       MAX(o.ended_at_ms - o.started_at_ms - COALESCE(a.paused_ms, 0)
           - COALESCE(o.ended_at_ms - :suspended_at_ms, 0), 0) / 1000.0 AS duration_s,
       o.ended_at_ms, e.suite
FROM orchestration o
LEFT JOIN account a ON a.account_id = o.orchestration_id
LEFT JOIN composition_version v ON v.hash = o.pattern_hash
LEFT JOIN evaluation_run c ON c.run_id = o.orchestration_id
LEFT JOIN evaluation e ON e.evaluation_id = c.evaluation_id
WHERE o.orchestration_id = :run_id

-- put_run
-- why: what came of a run; a run ends once, and one that is put back to a checkpoint is taken out before it ends again.
INSERT INTO composition_run (run_id, name, hash, version, outcome, success, score, metrics, usd_micros, tokens, turns,
                             duration_s, ended_at_ms, origin, reported_by, suite)
VALUES (:run_id, :name, :hash, :version, :outcome, :success, :score, :metrics, :usd_micros, :tokens, :turns,
        :duration_s, :ended_at_ms, :origin, :reported_by, :suite)
ON CONFLICT (run_id) DO UPDATE SET  -- a bundle claimed it: what was measured here takes the claim's place
    name = excluded.name, hash = excluded.hash, version = excluded.version, outcome = excluded.outcome,
    success = excluded.success, score = excluded.score, metrics = excluded.metrics, usd_micros = excluded.usd_micros,
    tokens = excluded.tokens, turns = excluded.turns, duration_s = excluded.duration_s,
    ended_at_ms = excluded.ended_at_ms, origin = excluded.origin, reported_by = excluded.reported_by,
    suite = excluded.suite
WHERE composition_run.origin LIKE 'bundle:%'

-- drop_run
-- why: a run that goes on from a checkpoint has not ended, so nothing came of it yet.
DELETE FROM composition_run WHERE run_id = :run_id

-- runs_of
-- why: the sample of one side of a comparison, the newest first; what a call cost is often known after its run ended.
SELECT r.run_id, r.name, r.hash, r.version, r.outcome, r.success, r.score, r.metrics,
       COALESCE(a.spent_usd_micros, r.usd_micros) AS usd_micros, COALESCE(a.spent_tokens, r.tokens) AS tokens,
       COALESCE(a.spent_turns, r.turns) AS turns, r.duration_s, r.ended_at_ms, r.origin, r.reported_by, r.suite
FROM composition_run r LEFT JOIN account a ON a.account_id = r.run_id
WHERE r.name = :name AND (:hash IS NULL OR r.hash = :hash) AND r.origin IS NULL AND r.suite IS :suite
  AND (:reported_by IS NULL OR r.reported_by = :reported_by)
ORDER BY r.ended_at_ms DESC, r.run_id
LIMIT :limit

-- runs_by_ids
-- why: a learning cites runs, which must be there; what a bundle claims is no evidence.
SELECT run_id, name, hash, version, outcome, success, score, metrics, usd_micros, tokens, turns, duration_s, ended_at_ms,
       origin, reported_by, suite
FROM composition_run
WHERE run_id IN (SELECT value FROM json_each(:ids)) AND (origin IS NULL OR origin NOT LIKE 'bundle:%')

-- performance
-- why: lists and choices look at the figures of every composition at once.
SELECT key, runs, judged, successes, scored, score, score_squares, usd_micros, tokens, turns, duration_s, last_ms
FROM composition_tally
WHERE kind = :kind AND evaluated = :evaluated AND key IN (SELECT value FROM json_each(:keys))

-- tally_add
-- why: one more run, at the same cost however many there were. Mean and squares as Welford (1962) has them: sums of
-- squares would lose their last digits.
INSERT INTO composition_tally (kind, key, evaluated, runs, judged, successes, scored, score, score_squares, usd_micros,
                               tokens, turns, duration_s, last_ms)
SELECT k.kind, k.key, suite IS NOT NULL, 1, success IS NOT NULL, COALESCE(success, 0), score IS NOT NULL,
       COALESCE(score, 0), 0, usd_micros, tokens, turns, duration_s, ended_at_ms
FROM composition_run
JOIN (SELECT 'name' AS kind, name AS key, run_id AS id FROM composition_run WHERE run_id = :run_id
      UNION ALL SELECT 'hash', hash, run_id FROM composition_run WHERE run_id = :run_id) k ON k.id = run_id
WHERE origin IS NULL
ON CONFLICT (kind, key, evaluated) DO UPDATE SET
    score_squares = CASE WHEN excluded.scored = 0 THEN score_squares ELSE score_squares + (excluded.score - score)
        * (excluded.score - score - (excluded.score - score) / (scored + 1)) END,
    score = CASE WHEN excluded.scored = 0 THEN score ELSE score + (excluded.score - score) / (scored + 1) END,
    runs = runs + 1, judged = judged + excluded.judged, successes = successes + excluded.successes,
    scored = scored + excluded.scored, usd_micros = usd_micros + excluded.usd_micros, tokens = tokens + excluded.tokens,
    turns = turns + excluded.turns, duration_s = duration_s + excluded.duration_s,
    last_ms = MAX(last_ms, excluded.last_ms)

-- tally_clear
-- why: a run does not count any more, so the tallies it was in are made anew.
DELETE FROM composition_tally WHERE (kind = 'name' AND key = :name) OR (kind = 'hash' AND key = :hash)

-- tally_make
-- why: see tally_clear; two passes over the runs that are left.
INSERT INTO composition_tally (kind, key, evaluated, runs, judged, successes, scored, score, score_squares, usd_micros,
                               tokens, turns, duration_s, last_ms)
SELECT :kind, :key, r.suite IS NOT NULL, COUNT(*), COUNT(r.success), COALESCE(SUM(r.success), 0), COUNT(r.score),
       COALESCE(MAX(m.score), 0), COALESCE(SUM((r.score - m.score) * (r.score - m.score)), 0), SUM(r.usd_micros),
       SUM(r.tokens), SUM(r.turns), SUM(r.duration_s), MAX(r.ended_at_ms)
FROM composition_run r
JOIN (SELECT suite IS NOT NULL AS evaluated, AVG(score) AS score FROM composition_run
      WHERE ((:kind = 'name' AND name = :key) OR (:kind = 'hash' AND hash = :key)) AND origin IS NULL
      GROUP BY suite IS NOT NULL) m ON m.evaluated = (r.suite IS NOT NULL)
WHERE ((:kind = 'name' AND r.name = :key) OR (:kind = 'hash' AND r.hash = :key)) AND r.origin IS NULL
GROUP BY r.suite IS NOT NULL

-- was_hash_reported
-- why: an update that is repeated after a crash is completed, and reported once.
SELECT event_id FROM event
WHERE name GLOB 'composition:*'
    AND json_extract(data, '$.name') = :name AND json_extract(data, '$.hash') = :hash
LIMIT 1

-- own_runs
-- why: a bundle carries what was measured here; what others claimed and what was a test is not passed on.
SELECT run_id, name, hash, version, outcome, success, score, metrics, usd_micros, tokens, turns, duration_s, ended_at_ms
FROM composition_run
WHERE name IN (SELECT value FROM json_each(:names)) AND origin IS NULL AND suite IS NULL
ORDER BY ended_at_ms DESC, run_id
LIMIT :limit

-- claim_run
-- why: a run that came with a bundle is kept as a claim; one of this place, known or still going on, is no other's.
INSERT INTO composition_run (run_id, name, hash, version, outcome, success, score, metrics, usd_micros, tokens, turns,
                             duration_s, ended_at_ms, origin)
SELECT :run_id, :name, :hash, :version, :outcome, :success, :score, :metrics, :usd_micros, :tokens, :turns,
       :duration_s, :ended_at_ms, :origin
WHERE NOT EXISTS (SELECT 1 FROM orchestration WHERE orchestration_id = :run_id)
ON CONFLICT (run_id) DO NOTHING

-- claimed_runs
-- why: what bundles claim is shown apart from what was measured here.
SELECT name, origin, COUNT(*) AS runs, AVG(success) AS success_rate, AVG(score) AS avg_score
FROM composition_run
WHERE name IN (SELECT value FROM json_each(:names)) AND origin LIKE 'bundle:%'
GROUP BY name, origin
ORDER BY name, origin

-- known_run_ids
-- why: a second import changes nothing, so it has to know which runs it need not bring.
SELECT run_id FROM composition_run WHERE run_id IN (SELECT value FROM json_each(:ids))
UNION SELECT orchestration_id FROM orchestration WHERE orchestration_id IN (SELECT value FROM json_each(:ids))

-- was_imported
-- why: an import that is repeated after a crash is completed, and reported once.
SELECT event_id FROM event
WHERE name = 'composition:imported' AND json_extract(data, '$.bundle') = :bundle
LIMIT 1

-- has_others
-- why: only a version that came after another can be an update that nothing tells of.
SELECT hash FROM composition_version WHERE name = :name AND hash <> :hash LIMIT 1

-- rights_of
-- why: an agent writes nothing into the library that asks for more than it holds.
SELECT capabilities, routing_level, settings FROM agent WHERE agent_id = :agent_id AND status = 'active'
