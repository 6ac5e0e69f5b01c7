-- Every model people have: batches, answers made beforehand, answers to nearly the same question, text as it streams in.

CREATE TABLE new_turn (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    turn_id          TEXT    NOT NULL UNIQUE,
    session_id       TEXT    NOT NULL REFERENCES session (session_id),
    seq              INTEGER NOT NULL,
    priority         INTEGER NOT NULL DEFAULT 0,   -- higher first, inside the session
    state            TEXT    NOT NULL CHECK (state IN
                     ('queued', 'ready', 'running', 'retrying', 'blocked', 'parked',
                      'done', 'failed', 'cancelled', 'timed_out')),
    run_at_ms        INTEGER NOT NULL,             -- not before
    orchestration_id TEXT,
    provider         TEXT    NOT NULL,
    prompt           TEXT    NOT NULL,
    reply_event      TEXT,
    timeout_s        REAL,
    op_class         TEXT    NOT NULL DEFAULT 'analysis',
    created_by       TEXT    NOT NULL,
    cause_id         TEXT,
    root_id          TEXT    NOT NULL,
    hops             INTEGER NOT NULL,
    depth            INTEGER NOT NULL,
    attempt          INTEGER NOT NULL DEFAULT 0,   -- how often it was claimed
    owner            TEXT,                         -- the worker that runs it
    tries            INTEGER NOT NULL DEFAULT 0,   -- failed provider attempts of the round at hand
    blocked_on       TEXT,                         -- the account whose reservations stand in the way
    result           TEXT,
    partial_text     TEXT,
    error_class      TEXT CHECK (error_class IN ('infra', 'task', 'budget', 'refused')),
    error            TEXT,
    cost_usd_micros  INTEGER NOT NULL DEFAULT 0,
    tokens           INTEGER NOT NULL DEFAULT 0,
    created_at_ms    INTEGER NOT NULL,
    started_at_ms    INTEGER,
    finished_at_ms   INTEGER,
    held             INTEGER NOT NULL DEFAULT 0,   -- 1: its session is suspended
    parked_on        TEXT CHECK (parked_on IN ('answer', 'budget', 'breaker', 'batch')),
    question         TEXT,                         -- JSON: what somebody has to answer, while parked
    expect           TEXT,                         -- JSON: what its reply must be like
    checks           INTEGER NOT NULL DEFAULT 0,   -- replies that were not like that
    cache            TEXT CHECK (cache IN ('exact', 'semantic')),
    link             INTEGER NOT NULL DEFAULT 0,   -- which of its agent's models is asked: 0 is the first choice
    first_error      TEXT,                         -- why the first choice did not answer
    reused           INTEGER NOT NULL DEFAULT 0,   -- rounds whose answer was there already
    answered_by      TEXT,                         -- who answered it instead of a model
    moved_from       TEXT,                         -- the session it was put into first
    rescues          INTEGER NOT NULL DEFAULT 0,   -- how often supervision started it again
    batched          INTEGER NOT NULL DEFAULT 0,   -- 1: its first round goes with a batch, at half the price
    streamed_chars   INTEGER NOT NULL DEFAULT 0,   -- of the answer that is under way
    similarity       REAL,                         -- of the prompt whose answer it was given, if it was not the same
    UNIQUE (session_id, seq)
);
INSERT INTO new_turn (n, turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event, timeout_s, op_class, created_by, cause_id, root_id, hops, depth, attempt, owner, tries, blocked_on, result, partial_text, error_class, error, cost_usd_micros, tokens, created_at_ms, started_at_ms, finished_at_ms, held, parked_on, question, expect, checks, cache, link, first_error, reused, answered_by, moved_from, rescues)
SELECT n, turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event, timeout_s, op_class, created_by, cause_id, root_id, hops, depth, attempt, owner, tries, blocked_on, result, partial_text, error_class, error, cost_usd_micros, tokens, created_at_ms, started_at_ms, finished_at_ms, held, parked_on, question, expect, checks, cache, link, first_error, reused, answered_by, moved_from, rescues FROM turn;
-- Numbers of turns that were removed are not given again: checkpoints tell by them what came later.
INSERT INTO sqlite_sequence (name, seq) SELECT 'new_turn', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'new_turn');
UPDATE sqlite_sequence SET seq = MAX(seq, COALESCE((SELECT old.seq FROM sqlite_sequence AS old WHERE old.name = 'turn'), 0))
WHERE name = 'new_turn';
DROP TABLE turn;
ALTER TABLE new_turn RENAME TO turn;
-- At most one turn of a session is at its head: the law of the lane, held by the database itself.
CREATE UNIQUE INDEX turn_head ON turn (session_id) WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked');
-- Only what may run: heads of sessions that are not suspended. What is parked on a breaker runs again by itself.
CREATE INDEX turn_ready ON turn (provider, run_at_ms, n)
    WHERE held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'));
CREATE INDEX turn_parked ON turn (parked_on, blocked_on) WHERE state = 'parked';
CREATE INDEX turn_blocked ON turn (blocked_on) WHERE state = 'blocked';
CREATE INDEX turn_waiting ON turn (session_id, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX turn_by_orchestration ON turn (orchestration_id, n) WHERE orchestration_id IS NOT NULL;

ALTER TABLE provider_call ADD COLUMN batch_id TEXT;
ALTER TABLE provider_call ADD COLUMN similarity REAL;
CREATE INDEX provider_call_by_batch ON provider_call (batch_id) WHERE batch_id IS NOT NULL;

-- Batches at a provider; the id is stored before anybody asks how far it is.
CREATE TABLE batch (
    batch_id     TEXT    PRIMARY KEY,              -- the provider's
    provider     TEXT    NOT NULL,
    requests     INTEGER NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('open', 'cancelling', 'ended')),
    submitted_at_ms INTEGER NOT NULL,
    asked_at_ms  INTEGER,                          -- when it was looked at last
    ended_at_ms  INTEGER
);
CREATE INDEX batch_open ON batch (provider) WHERE state <> 'ended';

-- Prompts that an agent may be given next, answered beforehand; each is paid from an account of its own.
CREATE TABLE prefetch (
    prefetch_id  INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id     TEXT    NOT NULL,
    prompt       TEXT    NOT NULL,
    account_id   TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('waiting', 'sent', 'answered', 'used', 'cancelled', 'failed', 'stale')),
    created_by   TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    provider     TEXT,                             -- since it was sent
    model        TEXT,
    request_hash TEXT,                             -- the request that its answer is good for
    hold_id      TEXT,
    answer       TEXT,                             -- JSON, once answered
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cache_tokens  INTEGER NOT NULL DEFAULT 0,
    cost_usd_micros INTEGER NOT NULL DEFAULT 0,
    error        TEXT,
    ended_at_ms  INTEGER,
    used_by      TEXT,                             -- the turn that was given the answer
    follows      INTEGER NOT NULL,                 -- how often its conversation will have changed by then (session.changes)
    cause_id     TEXT,
    root_id      TEXT    NOT NULL,
    hops         INTEGER NOT NULL,
    depth        INTEGER NOT NULL
);
CREATE INDEX prefetch_waiting ON prefetch (state, prefetch_id) WHERE state IN ('waiting', 'sent');
CREATE INDEX prefetch_by_request ON prefetch (request_hash) WHERE state = 'answered';
CREATE INDEX prefetch_by_agent ON prefetch (agent_id, prefetch_id);

-- Answered prompts as points, to find one that asks the same in other words.
CREATE TABLE semantic_entry (
    call_id INTEGER PRIMARY KEY,                   -- the call that answered it
    scope   TEXT    NOT NULL,                      -- a hash of provider, model, system prompt, settings and embedder
    prompt  TEXT    NOT NULL,
    vector  BLOB    NOT NULL,                      -- 32-bit floats, of length 1
    at_ms   INTEGER NOT NULL
);
CREATE INDEX semantic_entry_by_scope ON semantic_entry (scope, call_id);

-- What looking for one has come to: served, or (in shadow mode) what would have been served.
CREATE TABLE semantic_look (
    look_id   INTEGER PRIMARY KEY AUTOINCREMENT,
    turn_id   TEXT    NOT NULL,
    scope     TEXT    NOT NULL,
    prompt    TEXT    NOT NULL,
    call_id   INTEGER NOT NULL,                    -- the nearest
    nearest   TEXT    NOT NULL,                    -- its prompt
    score     REAL    NOT NULL,
    verdict   TEXT    NOT NULL CHECK (verdict IN ('served', 'would_serve', 'guarded', 'below')),
    reason    TEXT,                                -- why the guard said no
    same_answer INTEGER,                           -- once the model has answered too: whether in the same words
    at_ms     INTEGER NOT NULL
);
CREATE INDEX semantic_look_by_turn ON semantic_look (turn_id);
