-- The whole store of ksi_mcp as it stands now. A test proves that it equals the sum of migrations/.
--
-- Glossary
--   event          something that happened; append-only, never changed
--   outbox         events that the router has still to deliver
--   root, cause    the first cause of a chain, and the thing directly before
--   hops, depth    deliveries since the last turn; turns since the first cause
--   account, hold  a node of the budget tree; money set aside for one provider attempt
--   session        an agent's conversation: its turns run strictly in order, one at a time
--   turn           one request to an agent, made of rounds
--   round          one answer of the model and the tool calls it asked for
--   provider_call  one attempt to get one round's answer; each is paid for itself
--   rule           which events go where
--   join           a rule that collects one event of each of several kinds before it fires
--   dead letter    a delivery that could not be made; it can be tried again
--   *_ms           milliseconds (of the Unix epoch for a moment); *_micros: millionths of a US dollar

CREATE TABLE migration (
    version       INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    applied_at_ms INTEGER NOT NULL
);

-- One row: counters that tell other processes that what they hold in memory is stale.
CREATE TABLE control (
    control_id      INTEGER PRIMARY KEY CHECK (control_id = 1),
    routing_version INTEGER NOT NULL,
    routing_floor   INTEGER NOT NULL DEFAULT 0,    -- the oldest version that the table can go back to
    routing_paused  INTEGER NOT NULL DEFAULT 0,    -- 1: safe mode, events wait in the outbox
    library_version INTEGER NOT NULL DEFAULT 0     -- counts changes of the index of compositions
);
INSERT INTO control (control_id, routing_version) VALUES (1, 0);

------------------------------------------------------------------------------------------ events

CREATE TABLE event (
    event_id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name             TEXT    NOT NULL,
    data             TEXT    NOT NULL,             -- a JSON object
    source           TEXT    NOT NULL,             -- operator | agent:<id> | system
    agent_id         TEXT,                         -- whom it is about
    orchestration_id TEXT,
    cause_id         TEXT,                         -- event:<id> or turn:<id>
    root_id          TEXT    NOT NULL,
    hops             INTEGER NOT NULL,
    depth            INTEGER NOT NULL,
    at_ms            INTEGER NOT NULL
);
CREATE INDEX event_by_name ON event (name, event_id);
CREATE INDEX event_by_root ON event (root_id, event_id);
CREATE INDEX event_by_agent ON event (agent_id, event_id) WHERE agent_id IS NOT NULL;
CREATE INDEX event_by_orchestration ON event (orchestration_id, event_id) WHERE orchestration_id IS NOT NULL;

CREATE TABLE outbox (
    event_id INTEGER PRIMARY KEY REFERENCES event (event_id)
);

-- Events and commands that wait for their time; the row goes in the transaction of its effect.
CREATE TABLE delayed_event (
    delayed_id INTEGER PRIMARY KEY AUTOINCREMENT,
    due_ms     INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    data       TEXT    NOT NULL,
    condition  TEXT,
    context    TEXT    NOT NULL,                   -- JSON: on whose authority, because of what
    orchestration_id TEXT,
    held       INTEGER NOT NULL DEFAULT 0          -- 1: its run is suspended, due_ms is what remained
);
CREATE INDEX delayed_event_waiting ON delayed_event (due_ms) WHERE held = 0;
CREATE INDEX delayed_event_by_orchestration ON delayed_event (orchestration_id) WHERE orchestration_id IS NOT NULL;

-- A client may repeat a call after a time-out: the key returns the first call's result.
CREATE TABLE idempotency (
    actor  TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    tool   TEXT    NOT NULL,
    digest TEXT    NOT NULL,                       -- of the arguments: another call may not use the key
    result TEXT    NOT NULL,
    at_ms  INTEGER NOT NULL,
    PRIMARY KEY (actor, key)
);

----------------------------------------------------------------------------------------- budgets

CREATE TABLE account (
    account_id          TEXT    PRIMARY KEY,       -- global | <orchestration id> | <agent id> | <evaluation id>
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
CREATE INDEX account_children ON account (parent_id);

CREATE TABLE hold (
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
CREATE INDEX hold_open ON hold (turn_id) WHERE state IN ('reserved', 'sent');

------------------------------------------------------------------------------------------ agents

CREATE TABLE orchestration (
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
CREATE INDEX orchestration_by_state ON orchestration (state, n);
CREATE INDEX orchestration_by_creator ON orchestration (created_by);

CREATE TABLE agent (
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
    respawns         INTEGER NOT NULL DEFAULT 0,   -- how many stood before it in its place
    routing_level    TEXT    NOT NULL DEFAULT 'none' CHECK (routing_level IN
                     ('none', 'self', 'children', 'orchestration', 'global')),
    subscription_level INTEGER NOT NULL DEFAULT 1, -- how far below it hears what others emit; -1: all the way
    error_level      INTEGER NOT NULL DEFAULT -1,  -- the same for what fails
    wake             INTEGER NOT NULL DEFAULT 0    -- 1: what it hears so starts a turn
);
-- A live agent's name is taken within its orchestration (and, outside of any, on the whole server).
CREATE UNIQUE INDEX agent_live_name ON agent (COALESCE(orchestration_id, ''), name) WHERE status = 'active';
CREATE INDEX agent_by_name ON agent (name);
CREATE INDEX agent_by_parent ON agent (parent_id);
CREATE INDEX agent_by_orchestration ON agent (orchestration_id);
CREATE INDEX agent_by_successor ON agent (successor_id) WHERE successor_id IS NOT NULL;

------------------------------------------------------------------------------------------ queues

-- A lane. Only its head is ever ready; finishing the head promotes the next one.
CREATE TABLE session (
    session_id TEXT    PRIMARY KEY,                -- the agent's id
    tail       INTEGER NOT NULL DEFAULT 0,         -- turns ever put in
    pending    INTEGER NOT NULL DEFAULT 0,         -- turns not finished, the head among them
    suspended  INTEGER NOT NULL DEFAULT 0,         -- 1: no turn of it starts
    changes    INTEGER NOT NULL DEFAULT 0          -- of the conversation, ever
);

CREATE TABLE turn (
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
-- At most one turn of a session is at its head: the law of the lane, held by the database itself.
CREATE UNIQUE INDEX turn_head ON turn (session_id) WHERE state IN ('ready', 'running', 'retrying', 'blocked', 'parked');
-- Only what may run: heads of sessions that are not suspended. What is parked on a breaker runs again by itself.
CREATE INDEX turn_ready ON turn (provider, run_at_ms, n)
    WHERE held = 0 AND (state IN ('ready', 'retrying') OR (state = 'parked' AND parked_on = 'breaker'));
CREATE INDEX turn_parked ON turn (parked_on, blocked_on) WHERE state = 'parked';
CREATE INDEX turn_blocked ON turn (blocked_on) WHERE state = 'blocked';
CREATE INDEX turn_waiting ON turn (session_id, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX turn_by_orchestration ON turn (orchestration_id, n) WHERE orchestration_id IS NOT NULL;

-- A turn that waits for others: the edges that a circle is looked for in.
CREATE TABLE turn_wait (
    turn_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    on_turn_id TEXT NOT NULL,
    PRIMARY KEY (turn_id, on_turn_id)
);
CREATE INDEX turn_wait_session ON turn_wait (session_id);

CREATE TABLE provider_call (
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
    reused_from     INTEGER,                       -- the call that bought this answer; below zero: the prefetch that did
    batch_id        TEXT,                          -- the batch it went with; '' while it waits for one, 'leaving:' on its way
    similarity      REAL                           -- of the prompt that had this answer, if it was not the same
);
CREATE INDEX provider_call_by_request ON provider_call (request_hash)
    WHERE state = 'answered' AND request_hash IS NOT NULL;
CREATE UNIQUE INDEX provider_call_answer ON provider_call (turn_id, round) WHERE state = 'answered';
CREATE INDEX provider_call_by_turn ON provider_call (turn_id, call_id);
CREATE INDEX provider_call_by_batch ON provider_call (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE tool_call (
    turn_id  TEXT    NOT NULL REFERENCES turn (turn_id),
    round    INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    tool     TEXT    NOT NULL,
    args     TEXT    NOT NULL,
    result   TEXT    NOT NULL,                     -- the text the model reads
    is_error INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL,
    PRIMARY KEY (turn_id, round, idx)
);

-- What is said to the model after a round that called no tools: why its reply was not taken, or what was put in.
CREATE TABLE round_note (
    turn_id TEXT    NOT NULL REFERENCES turn (turn_id),
    round   INTEGER NOT NULL,
    text    TEXT    NOT NULL,
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (turn_id, round)
);

-- Words put into a conversation; they wait for the next turn that starts, and then belong to it.
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

-- Answers of a time line that was left (by a restore): bought once, so they are given instead of buying them again.
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

-- One row a provider and model family that failed of late.
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

-- The process that runs turns says so here; one that says nothing while it holds the lock hangs.
CREATE TABLE worker (
    worker_id     TEXT    PRIMARY KEY,
    pid           INTEGER NOT NULL,
    host          TEXT    NOT NULL,
    process_start TEXT    NOT NULL,                -- so that a reused pid is not taken for it
    started_at_ms INTEGER NOT NULL,
    beat          INTEGER NOT NULL,                -- counts up; its change is the sign of life, not its time
    beat_ms       INTEGER NOT NULL
);

-- A run as it stood: enough to go back to it, or to make another run of it.
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

----------------------------------------------------------------------------------------- routing

CREATE TABLE rule (
    rule_id          TEXT    PRIMARY KEY,
    source_pattern   TEXT    NOT NULL,
    source_agent     TEXT,
    condition        TEXT,
    target           TEXT    NOT NULL,             -- JSON: an event name or agent:<id>, a list, or {mode: list}
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
    remaining_ms     INTEGER,                      -- of its life, while its run is suspended
    exclusive        INTEGER NOT NULL DEFAULT 0,   -- 1: once it delivered, no rule of lower priority does
    rate             TEXT,                         -- JSON: {count, per_s}
    join_spec        TEXT,                         -- JSON: {all_of, by, timeout_s}
    modifiable       INTEGER NOT NULL DEFAULT 1,   -- 0: only whoever made it, and the operator, may change it
    since            INTEGER NOT NULL DEFAULT 0,   -- the table version that gave it these contents
    changed_at_ms    INTEGER NOT NULL DEFAULT 0,
    frozen_until_ms  INTEGER                       -- it was changed too often: until then it stays as it is
);
CREATE INDEX rule_by_version ON rule (version);
CREATE INDEX rule_by_scope ON rule (scope) WHERE deleted_at_ms IS NULL;
CREATE INDEX rule_by_creator ON rule (created_by) WHERE deleted_at_ms IS NULL;
CREATE INDEX rule_in_order ON rule (priority DESC, rule_id) WHERE deleted_at_ms IS NULL;
CREATE INDEX rule_expiry ON rule (expires_at_ms) WHERE deleted_at_ms IS NULL AND expires_at_ms IS NOT NULL;
CREATE INDEX rule_exclusive ON rule (source_pattern) WHERE deleted_at_ms IS NULL AND exclusive = 1;

-- What each rule was at each version of the table, so that the table can go back; NULL: deleted. Written by the
-- triggers below, so that no way of changing a rule is forgotten.
CREATE TABLE rule_history (
    rule_id TEXT    NOT NULL,
    version INTEGER NOT NULL,
    content TEXT,                                  -- JSON: the columns of the rule
    at_ms   INTEGER NOT NULL,
    PRIMARY KEY (rule_id, version)
);
CREATE INDEX rule_history_by_version ON rule_history (version);
CREATE TRIGGER rule_made AFTER INSERT ON rule BEGIN
    INSERT INTO rule_history (rule_id, version, content, at_ms)
    VALUES (NEW.rule_id, NEW.version, CASE WHEN NEW.deleted_at_ms IS NULL THEN json_object(
           'source_pattern', NEW.source_pattern, 'source_agent', NEW.source_agent, 'condition', NEW.condition, 'target', NEW.target,
           'mapping', NEW.mapping, 'priority', NEW.priority, 'scope', NEW.scope, 'orchestration_id', NEW.orchestration_id,
           'enabled', NEW.enabled, 'created_by', NEW.created_by, 'created_at_ms', NEW.created_at_ms, 'expires_at_ms', NEW.expires_at_ms,
           'metadata', NEW.metadata, 'remaining_ms', NEW.remaining_ms, 'exclusive', NEW.exclusive, 'rate', NEW.rate,
           'join_spec', NEW.join_spec, 'modifiable', NEW.modifiable, 'since', NEW.since) END, NEW.changed_at_ms)
    ON CONFLICT (rule_id, version) DO UPDATE SET content = excluded.content, at_ms = excluded.at_ms;
END;
CREATE TRIGGER rule_changed AFTER UPDATE ON rule BEGIN
    INSERT INTO rule_history (rule_id, version, content, at_ms)
    VALUES (NEW.rule_id, NEW.version, CASE WHEN NEW.deleted_at_ms IS NULL THEN json_object(
           'source_pattern', NEW.source_pattern, 'source_agent', NEW.source_agent, 'condition', NEW.condition, 'target', NEW.target,
           'mapping', NEW.mapping, 'priority', NEW.priority, 'scope', NEW.scope, 'orchestration_id', NEW.orchestration_id,
           'enabled', NEW.enabled, 'created_by', NEW.created_by, 'created_at_ms', NEW.created_at_ms, 'expires_at_ms', NEW.expires_at_ms,
           'metadata', NEW.metadata, 'remaining_ms', NEW.remaining_ms, 'exclusive', NEW.exclusive, 'rate', NEW.rate,
           'join_spec', NEW.join_spec, 'modifiable', NEW.modifiable, 'since', NEW.since) END, NEW.changed_at_ms)
    ON CONFLICT (rule_id, version) DO UPDATE SET content = excluded.content, at_ms = excluded.at_ms;
END;

-- What a rule remembers from one delivery to the next.
CREATE TABLE rule_state (
    rule_id      TEXT    PRIMARY KEY,
    turn         INTEGER NOT NULL DEFAULT 0,       -- whose turn it is among its targets
    window_ms    INTEGER NOT NULL DEFAULT 0,       -- when the window of its rate began
    in_window    INTEGER NOT NULL DEFAULT 0        -- events in it, those beyond the rate too
);

-- What rules did, by the minute.
CREATE TABLE rule_stat (
    rule_id    TEXT    NOT NULL,
    minute     INTEGER NOT NULL,                   -- since the epoch
    matches    INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0,
    failures   INTEGER NOT NULL DEFAULT 0,
    limited    INTEGER NOT NULL DEFAULT 0,         -- beyond its rate
    latency_ms INTEGER NOT NULL DEFAULT 0,         -- from event to delivery, of all of them
    slowest_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (rule_id, minute)
) WITHOUT ROWID;
CREATE INDEX rule_stat_by_minute ON rule_stat (minute);

-- Collections of joins that have begun.
CREATE TABLE join_open (
    rule_id      TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    opened_at_ms INTEGER NOT NULL,                 -- while its run is suspended: how long ago, below zero
    due_ms       INTEGER,                          -- fires with what is there then; NULL: waits for ever
    remaining_ms INTEGER,                          -- until then, while its run is suspended; -1: for ever
    orchestration_id TEXT,
    PRIMARY KEY (rule_id, key)
) WITHOUT ROWID;
CREATE INDEX join_open_due ON join_open (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX join_open_by_orchestration ON join_open (orchestration_id) WHERE orchestration_id IS NOT NULL;

-- What has arrived for a join and was not used yet; a repeat waits for the next collection.
CREATE TABLE join_part (
    part_id  INTEGER PRIMARY KEY AUTOINCREMENT,
    rule_id  TEXT    NOT NULL,
    key      TEXT    NOT NULL,
    part     TEXT    NOT NULL,                     -- of all_of, as it is written there
    event_id INTEGER NOT NULL,
    event    TEXT    NOT NULL,                     -- JSON: what is needed of the event, should it be pruned
    at_ms    INTEGER NOT NULL
);
CREATE INDEX join_part_waiting ON join_part (rule_id, key, part, part_id);
-- What a join has collected fits a change of its rule, whichever way that was made: under other keys it is void; if its
-- parts, its time or its rule's being enabled changed, it is looked at anew.
CREATE TRIGGER join_changed AFTER UPDATE OF join_spec, enabled ON rule
WHEN NEW.join_spec IS NOT OLD.join_spec OR NEW.enabled <> OLD.enabled BEGIN
    DELETE FROM join_part WHERE rule_id = NEW.rule_id AND (NEW.join_spec IS NULL
        OR json_extract(NEW.join_spec, '$.by') IS NOT json_extract(OLD.join_spec, '$.by'));
    DELETE FROM join_open WHERE rule_id = NEW.rule_id AND (NEW.join_spec IS NULL
        OR json_extract(NEW.join_spec, '$.by') IS NOT json_extract(OLD.join_spec, '$.by'));
    UPDATE join_open SET due_ms = CASE WHEN remaining_ms IS NULL THEN NEW.changed_at_ms END,
                         remaining_ms = CASE WHEN remaining_ms IS NOT NULL THEN 0 END
    WHERE rule_id = NEW.rule_id;
END;

-- Deliveries that could not be made.
CREATE TABLE dead_letter (
    dead_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id   INTEGER NOT NULL,
    rule_id    TEXT,
    target     TEXT,                               -- where it was to go; NULL: it never came so far
    reason     TEXT    NOT NULL,
    data       TEXT,                               -- JSON: the mapped payload, if there is one
    agent_id   TEXT,
    orchestration_id TEXT,
    at_ms      INTEGER NOT NULL,
    redriven_at_ms INTEGER,
    redriven_by TEXT,
    kept       TEXT    NOT NULL                    -- JSON: the event as it was heard, and of its rule, should they be gone
);
CREATE INDEX dead_letter_by_rule ON dead_letter (rule_id, dead_id);
CREATE INDEX dead_letter_open ON dead_letter (dead_id) WHERE redriven_at_ms IS NULL;
CREATE INDEX dead_letter_by_event ON dead_letter (event_id);

-- What an agent has heard of others since its last turn, without a rule: put before its next one.
CREATE TABLE heard (
    heard_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id     TEXT    NOT NULL,
    event_id     INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    source_agent TEXT    NOT NULL,
    text         TEXT    NOT NULL,                 -- of its data, cut
    at_ms        INTEGER NOT NULL,
    nth          INTEGER NOT NULL                  -- since its last turn; only the newest are kept
);
CREATE INDEX heard_by_agent ON heard (agent_id, heard_id);

-- Depth does not bound breadth: each first cause may make so many deliveries and no more.
CREATE TABLE root_quota (
    root_id    TEXT    PRIMARY KEY,
    deliveries INTEGER NOT NULL
);

------------------------------------------------------------------------- compositions, decisions

-- Rebuildable from the files at any time.
CREATE TABLE composition (
    name        TEXT    NOT NULL,
    layer       TEXT    NOT NULL CHECK (layer IN ('builtin', 'user', 'project')),
    path        TEXT    NOT NULL,                  -- inside its layer
    hash        TEXT    NOT NULL,                  -- of its behaviour
    type        TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    description TEXT    NOT NULL,
    tags        TEXT    NOT NULL,                  -- a JSON list
    document    TEXT    NOT NULL,                  -- the file as JSON, unresolved
    mtime_ns    INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    PRIMARY KEY (layer, path)
);
CREATE INDEX composition_by_name ON composition (name);

-- Every version that was ever used stays retrievable, whatever happens to the files.
CREATE TABLE composition_version (
    hash             TEXT    PRIMARY KEY,
    name             TEXT    NOT NULL,
    document         TEXT    NOT NULL,             -- resolved, as JSON
    first_used_at_ms INTEGER NOT NULL
);

-- What came of a pattern: one row a run that was completed here, or that came with a bundle.
CREATE TABLE composition_run (
    run_id       TEXT    PRIMARY KEY,              -- the orchestration's id
    name         TEXT    NOT NULL,
    hash         TEXT    NOT NULL,                 -- of the version that ran
    version      TEXT    NOT NULL,
    outcome      TEXT,
    success      INTEGER,                          -- NULL: nobody said
    score        REAL,
    metrics      TEXT,                             -- a JSON object of numbers
    usd_micros   INTEGER NOT NULL,
    tokens       INTEGER NOT NULL,
    turns        INTEGER NOT NULL,
    duration_s   REAL    NOT NULL,
    ended_at_ms  INTEGER NOT NULL,
    origin       TEXT,                             -- NULL: run here from its beginning; else the bundle it came with, or run:<id> whose checkpoint it was made from
    reported_by  TEXT,                             -- who said how it ended: operator | system | agent:<id>
    suite        TEXT                              -- NULL: a run of its own; else the evaluation (name@hash) it was a case of
);
CREATE INDEX composition_run_by_name ON composition_run (name, ended_at_ms);
CREATE INDEX composition_run_by_hash ON composition_run (hash);

-- What the runs of a name, and of a version, come to: kept up with each run, so that a list need not read them all.
CREATE TABLE composition_tally (
    kind          TEXT    NOT NULL CHECK (kind IN ('name', 'hash')),
    key           TEXT    NOT NULL,
    evaluated     INTEGER NOT NULL,                -- 1: of runs that were cases of an evaluation
    runs          INTEGER NOT NULL,
    judged        INTEGER NOT NULL,                -- runs that say whether they succeeded
    successes     INTEGER NOT NULL,
    scored        INTEGER NOT NULL,
    score         REAL    NOT NULL,                -- the mean of the scored ones
    score_squares REAL    NOT NULL,                -- the sum of squared distances from it
    usd_micros    REAL    NOT NULL,                -- sums, as are the next three
    tokens        REAL    NOT NULL,
    turns         REAL    NOT NULL,
    duration_s    REAL    NOT NULL,
    last_ms       INTEGER NOT NULL,
    PRIMARY KEY (kind, key, evaluated)
) WITHOUT ROWID;

-- A pattern or profile put to the cases of an evaluation; its runs are made a few at a time.
CREATE TABLE evaluation (
    evaluation_id    TEXT    PRIMARY KEY,          -- also the account that all its runs are paid from
    name             TEXT    NOT NULL,             -- of what is evaluated
    hash             TEXT    NOT NULL,
    suite            TEXT    NOT NULL,             -- name@hash of the cases
    repeats          INTEGER,                      -- runs of each case; NULL: as the cases say
    created_by       TEXT    NOT NULL,
    created_at_ms    INTEGER NOT NULL,
    ended_at_ms      INTEGER                       -- when all its runs had ended, or its budget had
);

CREATE TABLE evaluation_run (
    run_id        TEXT    PRIMARY KEY,             -- the orchestration's id
    evaluation_id TEXT    NOT NULL REFERENCES evaluation (evaluation_id),
    case_name     TEXT    NOT NULL,
    turn_id       TEXT    NOT NULL,                -- whose reply is checked
    problems      TEXT                             -- a JSON list: what of the reply was not as expected; NULL: not checked
);
CREATE INDEX evaluation_run_by_evaluation ON evaluation_run (evaluation_id);

CREATE TABLE decision (
    decision_id   TEXT    PRIMARY KEY,
    pattern       TEXT    NOT NULL,
    decision      TEXT    NOT NULL,
    context       TEXT,                            -- JSON
    reasoning     TEXT,
    confidence    REAL,
    outcome       TEXT    NOT NULL,
    score         REAL,
    agent         TEXT    NOT NULL,
    orchestration_id TEXT,
    at_ms         INTEGER NOT NULL,
    resolved_at_ms INTEGER,                        -- when it was said how it turned out
    resolved_by   TEXT
);
CREATE INDEX decision_by_pattern ON decision (pattern, at_ms);

-- Who may come over HTTP besides the operator. A token's text is known to whoever was given it, and to nobody else.
CREATE TABLE access_token (
    token_id      TEXT    PRIMARY KEY,             -- k_...
    digest        TEXT    NOT NULL UNIQUE,         -- SHA-256 of the token, in hex
    kind          TEXT    NOT NULL CHECK (kind IN ('reader', 'agent')),
    agent_id      TEXT    REFERENCES agent (agent_id),
    label         TEXT,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    revoked_at_ms INTEGER,
    CHECK ((kind = 'agent') = (agent_id IS NOT NULL))
);

-- A call that a client handed over (Tasks extension of MCP): what it waits for, and what came of it. How far it is, is
-- seen in the turns, runs and events themselves whenever somebody asks; nothing of it lives in a process.
CREATE TABLE task (
    task_id          TEXT    PRIMARY KEY,          -- 128 random bits: who does not know it cannot ask
    actor            TEXT    NOT NULL,             -- who made the call; nobody else finds it
    tool             TEXT    NOT NULL,
    waits_for        TEXT,                         -- JSON, e.g. {"turns": ["t_..."]}; NULL: the call is just being made
    asked            TEXT    NOT NULL DEFAULT '{}', -- JSON: what was answered to questions about parked turns
    status           TEXT    NOT NULL CHECK (status IN ('working', 'input_required', 'completed', 'failed', 'cancelled')),
    status_message   TEXT,
    result           TEXT,                         -- JSON: {"data": ...} or {"error": ...}, as the call would have given
    created_at_ms    INTEGER NOT NULL,
    updated_at_ms    INTEGER NOT NULL,
    expires_at_ms    INTEGER NOT NULL              -- nobody finds it after this, and it goes
);
CREATE INDEX task_by_actor ON task (actor, expires_at_ms);
CREATE INDEX task_by_expiry ON task (expires_at_ms);
