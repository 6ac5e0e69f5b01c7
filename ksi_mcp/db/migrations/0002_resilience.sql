-- Suspension, parking, checkpoints, breakers, and all that keeps work from being lost or paid twice.

CREATE TABLE new_delayed_event (
    delayed_id INTEGER PRIMARY KEY AUTOINCREMENT,
    due_ms     INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    data       TEXT    NOT NULL,
    condition  TEXT,
    context    TEXT    NOT NULL,                   -- JSON: on whose authority, because of what
    orchestration_id TEXT,
    held       INTEGER NOT NULL DEFAULT 0          -- 1: its run is suspended, due_ms is what remained
);
INSERT INTO new_delayed_event (delayed_id, due_ms, event, data, condition, context) SELECT delayed_id, due_ms, event, data, condition, context FROM delayed_event;
DROP TABLE delayed_event;
ALTER TABLE new_delayed_event RENAME TO delayed_event;

CREATE INDEX delayed_event_waiting ON delayed_event (due_ms) WHERE held = 0;

CREATE INDEX delayed_event_by_orchestration ON delayed_event (orchestration_id) WHERE orchestration_id IS NOT NULL;

CREATE TABLE new_account (
    account_id          TEXT    PRIMARY KEY,       -- global | <orchestration id> | <agent id>
    parent_id           TEXT    REFERENCES account (account_id),
    limit_usd_micros    INTEGER,                   -- NULL: no limit
    limit_tokens        INTEGER,
    limit_turns         INTEGER,
    spent_usd_micros    INTEGER NOT NULL DEFAULT 0,
    reserved_usd_micros INTEGER NOT NULL DEFAULT 0 CHECK (reserved_usd_micros >= 0),
    spent_tokens        INTEGER NOT NULL DEFAULT 0,
    reserved_tokens     INTEGER NOT NULL DEFAULT 0 CHECK (reserved_tokens >= 0),
    spent_turns         INTEGER NOT NULL DEFAULT 0,
    closed              INTEGER NOT NULL DEFAULT 0, -- 1: an overrun was booked, nothing more is reserved
    limit_seconds       INTEGER,                   -- of wall-clock time since opened_at_ms, pauses left out
    opened_at_ms        INTEGER,
    paused_ms           INTEGER NOT NULL DEFAULT 0,
    policy              TEXT    NOT NULL DEFAULT 'deny' CHECK (policy IN ('deny', 'downgrade', 'park', 'terminate')),
    notified            INTEGER NOT NULL DEFAULT 0, -- the highest share of a limit that was reported, in per cent
    configured          TEXT                       -- of global: JSON, the limits of the configuration when last read
);
INSERT INTO new_account (account_id, parent_id, limit_usd_micros, limit_tokens, limit_turns, spent_usd_micros, reserved_usd_micros, spent_tokens, reserved_tokens, spent_turns, closed) SELECT account_id, parent_id, limit_usd_micros, limit_tokens, limit_turns, spent_usd_micros, reserved_usd_micros, spent_tokens, reserved_tokens, spent_turns, closed FROM account;
DROP TABLE account;
ALTER TABLE new_account RENAME TO account;

CREATE INDEX account_children ON account (parent_id);

CREATE TABLE new_hold (
    hold_id             TEXT    PRIMARY KEY,
    account_id          TEXT    NOT NULL REFERENCES account (account_id),
    turn_id             TEXT    NOT NULL,
    state               TEXT    NOT NULL CHECK (state IN ('reserved', 'sent', 'settled', 'released')),
    reserved_usd_micros INTEGER NOT NULL,
    reserved_tokens     INTEGER NOT NULL,
    cost_usd_micros     INTEGER,                   -- once settled
    cost_tokens         INTEGER,
    uncertain           INTEGER NOT NULL DEFAULT 0, -- 1: settled in full, the true cost was not learned
    path                TEXT                       -- a JSON list: every account that it was set aside in
);
INSERT INTO new_hold (hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens, cost_usd_micros, cost_tokens, uncertain) SELECT hold_id, account_id, turn_id, state, reserved_usd_micros, reserved_tokens, cost_usd_micros, cost_tokens, uncertain FROM hold;
DROP TABLE hold;
ALTER TABLE new_hold RENAME TO hold;

CREATE INDEX hold_open ON hold (turn_id) WHERE state IN ('reserved', 'sent');

CREATE TABLE new_orchestration (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    orchestration_id TEXT    NOT NULL UNIQUE,
    pattern          TEXT    NOT NULL,
    pattern_hash     TEXT    NOT NULL,
    state            TEXT    NOT NULL CHECK (state IN ('running', 'suspended', 'completed', 'failed', 'stopped')),
    orchestrator     TEXT    NOT NULL CHECK (orchestrator IN ('client', 'agent')),
    vars             TEXT    NOT NULL,             -- a JSON object
    max_depth        INTEGER NOT NULL,
    created_by       TEXT    NOT NULL,
    started_at_ms    INTEGER NOT NULL,
    ended_at_ms      INTEGER,
    outcome          TEXT,
    score            REAL,
    metrics          TEXT,                         -- a JSON object
    summary          TEXT,
    suspended_at_ms  INTEGER,
    origin_id        TEXT,                         -- the run whose checkpoint it was made from
    draining         TEXT,                         -- a JSON object: how it ends once its turns have
    checkpoint_every INTEGER,                      -- so many turns; NULL: only when somebody asks
    since_checkpoint INTEGER NOT NULL DEFAULT 0    -- turns that ended since the last automatic one
);
INSERT INTO new_orchestration (n, orchestration_id, pattern, pattern_hash, state, orchestrator, vars, max_depth, created_by, started_at_ms, ended_at_ms, outcome, score, metrics, summary) SELECT n, orchestration_id, pattern, pattern_hash, state, orchestrator, vars, max_depth, created_by, started_at_ms, ended_at_ms, outcome, score, metrics, summary FROM orchestration;
DROP TABLE orchestration;
ALTER TABLE new_orchestration RENAME TO orchestration;

CREATE INDEX orchestration_by_state ON orchestration (state, n);

CREATE INDEX orchestration_by_creator ON orchestration (created_by);

CREATE TABLE new_agent (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id         TEXT    NOT NULL UNIQUE,
    name             TEXT    NOT NULL,
    composition      TEXT,                         -- name@hash it was spawned from
    parent_id        TEXT    REFERENCES agent (agent_id),
    orchestration_id TEXT    REFERENCES orchestration (orchestration_id),
    status           TEXT    NOT NULL CHECK (status IN ('active', 'terminated', 'failed')),
    provider         TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    system           TEXT    NOT NULL,             -- the system prompt, filled in
    capabilities     TEXT    NOT NULL,             -- a JSON list
    settings         TEXT    NOT NULL,             -- a JSON object: max_tokens, max_tool_rounds, effort, ...
    created_by       TEXT    NOT NULL,
    created_at_ms    INTEGER NOT NULL,
    last_active_ms   INTEGER NOT NULL,
    ended_at_ms      INTEGER,
    draining         INTEGER NOT NULL DEFAULT 0,   -- 1: it takes no more messages and ends with its last turn
    successor_id     TEXT,                         -- the agent that took over from it
    respawns         INTEGER NOT NULL DEFAULT 0    -- how many stood before it in its place
);
INSERT INTO new_agent (n, agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system, capabilities, settings, created_by, created_at_ms, last_active_ms, ended_at_ms) SELECT n, agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system, capabilities, settings, created_by, created_at_ms, last_active_ms, ended_at_ms FROM agent;
DROP TABLE agent;
ALTER TABLE new_agent RENAME TO agent;

-- A live agent's name is taken within its orchestration (and, outside of any, on the whole server).
CREATE UNIQUE INDEX agent_live_name ON agent (COALESCE(orchestration_id, ''), name) WHERE status = 'active';

CREATE INDEX agent_by_parent ON agent (parent_id);

CREATE INDEX agent_by_orchestration ON agent (orchestration_id);

CREATE INDEX agent_by_successor ON agent (successor_id) WHERE successor_id IS NOT NULL;

CREATE TABLE new_session (
    session_id TEXT    PRIMARY KEY,                -- the agent's id
    tail       INTEGER NOT NULL DEFAULT 0,         -- turns ever put in
    pending    INTEGER NOT NULL DEFAULT 0,         -- turns not finished, the head among them
    suspended  INTEGER NOT NULL DEFAULT 0          -- 1: no turn of it starts
);
INSERT INTO new_session (session_id, tail, pending) SELECT session_id, tail, pending FROM session;
DROP TABLE session;
ALTER TABLE new_session RENAME TO session;

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
    parked_on        TEXT CHECK (parked_on IN ('answer', 'budget', 'breaker')),
    question         TEXT,                         -- JSON: what somebody has to answer, while parked
    expect           TEXT,                         -- JSON: what its reply must be like
    checks           INTEGER NOT NULL DEFAULT 0,   -- replies that were not like that
    cache            TEXT CHECK (cache IN ('exact')),
    link             INTEGER NOT NULL DEFAULT 0,   -- which of its agent's models is asked: 0 is the first choice
    first_error      TEXT,                         -- why the first choice did not answer
    reused           INTEGER NOT NULL DEFAULT 0,   -- rounds whose answer was there already
    answered_by      TEXT,                         -- who answered it instead of a model
    moved_from       TEXT,                         -- the session it was put into first
    rescues          INTEGER NOT NULL DEFAULT 0,   -- how often supervision started it again
    UNIQUE (session_id, seq)
);
INSERT INTO new_turn (n, turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event, timeout_s, op_class, created_by, cause_id, root_id, hops, depth, attempt, owner, tries, blocked_on, result, partial_text, error_class, error, cost_usd_micros, tokens, created_at_ms, started_at_ms, finished_at_ms) SELECT n, turn_id, session_id, seq, priority, state, run_at_ms, orchestration_id, provider, prompt, reply_event, timeout_s, op_class, created_by, cause_id, root_id, hops, depth, attempt, owner, tries, blocked_on, result, partial_text, error_class, error, cost_usd_micros, tokens, created_at_ms, started_at_ms, finished_at_ms FROM turn;
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

CREATE TABLE new_provider_call (
    call_id         INTEGER PRIMARY KEY AUTOINCREMENT,
    turn_id         TEXT    NOT NULL REFERENCES turn (turn_id),
    round           INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,              -- the turn's attempt that made it
    hold_id         TEXT    NOT NULL,              -- no reference: it would cost a look-up a call, and an index
    provider        TEXT    NOT NULL,
    model           TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('sent', 'answered', 'failed', 'uncertain')),
    answer          TEXT,                          -- JSON, once answered
    error_kind      TEXT,
    error           TEXT,
    input_tokens    INTEGER NOT NULL DEFAULT 0,
    output_tokens   INTEGER NOT NULL DEFAULT 0,
    cache_tokens    INTEGER NOT NULL DEFAULT 0,
    cost_usd_micros INTEGER NOT NULL DEFAULT 0,
    sent_at_ms      INTEGER NOT NULL,
    ended_at_ms     INTEGER,
    request_hash    TEXT,                          -- of all that the model was shown
    reused_from     INTEGER                        -- the call that bought this answer
);
INSERT INTO new_provider_call (call_id, turn_id, round, attempt, hold_id, provider, model, state, answer, error_kind, error, input_tokens, output_tokens, cache_tokens, cost_usd_micros, sent_at_ms, ended_at_ms) SELECT call_id, turn_id, round, attempt, hold_id, provider, model, state, answer, error_kind, error, input_tokens, output_tokens, cache_tokens, cost_usd_micros, sent_at_ms, ended_at_ms FROM provider_call;
DROP TABLE provider_call;
ALTER TABLE new_provider_call RENAME TO provider_call;

CREATE INDEX provider_call_by_request ON provider_call (request_hash)
    WHERE state = 'answered' AND request_hash IS NOT NULL;

CREATE UNIQUE INDEX provider_call_answer ON provider_call (turn_id, round) WHERE state = 'answered';

CREATE INDEX provider_call_by_turn ON provider_call (turn_id, call_id);

CREATE TABLE new_rule (
    rule_id          TEXT    PRIMARY KEY,
    source_pattern   TEXT    NOT NULL,
    source_agent     TEXT,
    condition        TEXT,
    target           TEXT    NOT NULL,             -- JSON: an event name or agent:<id>
    mapping          TEXT,                         -- JSON
    priority         INTEGER NOT NULL,
    scope            TEXT    NOT NULL,             -- global | agent:<id> | orchestration:<id>
    orchestration_id TEXT,
    enabled          INTEGER NOT NULL,
    created_by       TEXT    NOT NULL,
    version          INTEGER NOT NULL,             -- the table version that last touched it
    created_at_ms    INTEGER NOT NULL,
    expires_at_ms    INTEGER,
    deleted_at_ms    INTEGER,                      -- a tombstone, so that other processes notice
    metadata         TEXT    NOT NULL,             -- a JSON object
    remaining_ms     INTEGER                       -- of its life, while its run is suspended
);
INSERT INTO new_rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, deleted_at_ms, metadata) SELECT rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, deleted_at_ms, metadata FROM rule;
DROP TABLE rule;
ALTER TABLE new_rule RENAME TO rule;

CREATE INDEX rule_by_version ON rule (version);

CREATE INDEX rule_by_scope ON rule (scope) WHERE deleted_at_ms IS NULL;

CREATE INDEX rule_by_creator ON rule (created_by) WHERE deleted_at_ms IS NULL;

CREATE INDEX rule_expiry ON rule (expires_at_ms) WHERE deleted_at_ms IS NULL AND expires_at_ms IS NOT NULL;

CREATE TABLE round_note (
    turn_id TEXT    NOT NULL REFERENCES turn (turn_id),
    round   INTEGER NOT NULL,
    text    TEXT    NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (turn_id, round)
);

CREATE TABLE injection (
    injection_id INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id   TEXT    NOT NULL REFERENCES session (session_id),
    position     TEXT    NOT NULL CHECK (position IN ('before', 'after', 'system')),
    content      TEXT    NOT NULL,
    created_by   TEXT    NOT NULL,
    turn_id      TEXT,                             -- NULL: it waits
    at_ms        INTEGER NOT NULL
);

CREATE INDEX injection_waiting ON injection (session_id) WHERE turn_id IS NULL;

CREATE INDEX injection_by_turn ON injection (turn_id) WHERE turn_id IS NOT NULL;

CREATE TABLE reusable (
    reusable_id      INTEGER PRIMARY KEY AUTOINCREMENT,
    orchestration_id TEXT    NOT NULL,
    agent_name       TEXT    NOT NULL,
    request_hash     TEXT    NOT NULL,
    call_id          INTEGER NOT NULL REFERENCES provider_call (call_id),
    used_by          TEXT                          -- the turn that took it
);

CREATE INDEX reusable_free ON reusable (orchestration_id, request_hash, agent_name) WHERE used_by IS NULL;

CREATE INDEX reusable_by_call ON reusable (call_id);

CREATE TABLE breaker (
    provider   TEXT    NOT NULL,
    family     TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('closed', 'open', 'half_open')),
    failures   TEXT    NOT NULL,                   -- a JSON list: when, in ms, within the window
    opened_at_ms INTEGER,
    probe_turn TEXT,                               -- whose call is the probe
    probe_at_ms INTEGER,
    PRIMARY KEY (provider, family)
);

CREATE TABLE worker (
    worker_id     TEXT    PRIMARY KEY,
    pid           INTEGER NOT NULL,
    host          TEXT    NOT NULL,
    process_start TEXT    NOT NULL,                -- so that a reused pid is not taken for it
    started_at_ms INTEGER NOT NULL,
    beat          INTEGER NOT NULL,                -- counts up; its change is the sign of life, not its time
    beat_ms       INTEGER NOT NULL
);

CREATE TABLE checkpoint (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    checkpoint_id    TEXT    NOT NULL UNIQUE,
    orchestration_id TEXT    NOT NULL REFERENCES orchestration (orchestration_id),
    label            TEXT,
    automatic        INTEGER NOT NULL,
    turns            INTEGER NOT NULL,             -- finished by then
    event_id         INTEGER NOT NULL,             -- the newest event by then
    snapshot         TEXT    NOT NULL,             -- JSON
    at_ms            INTEGER NOT NULL,
    left_by          TEXT                          -- the earlier checkpoint that its run went back to since
);

CREATE INDEX checkpoint_by_orchestration ON checkpoint (orchestration_id, n);

-- Tool results of a time line that was left, whose effect stays: with the same answer they are given, not done again.
CREATE TABLE kept_result (
    turn_id TEXT    NOT NULL,
    round   INTEGER NOT NULL,
    idx     INTEGER NOT NULL,
    PRIMARY KEY (turn_id, round, idx),
    FOREIGN KEY (turn_id, round, idx) REFERENCES tool_call (turn_id, round, idx) ON DELETE CASCADE
);
