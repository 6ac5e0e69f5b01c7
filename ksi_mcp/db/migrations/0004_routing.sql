-- The routing table that agents may rewrite: several targets, joins, rates, versions to go back to, dead letters,
-- levels of governance and of hearing.

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
    respawns         INTEGER NOT NULL DEFAULT 0,   -- how many stood before it in its place
    routing_level    TEXT    NOT NULL DEFAULT 'none' CHECK (routing_level IN
                     ('none', 'self', 'children', 'orchestration', 'global')),
    subscription_level INTEGER NOT NULL DEFAULT 1, -- how far below it hears what others emit; -1: all the way
    error_level      INTEGER NOT NULL DEFAULT -1,  -- the same for what fails
    wake             INTEGER NOT NULL DEFAULT 0    -- 1: what it hears so starts a turn
);
INSERT INTO new_agent (n, agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system, capabilities, settings, created_by, created_at_ms, last_active_ms, ended_at_ms, draining, successor_id, respawns, routing_level)
SELECT n, agent_id, name, composition, parent_id, orchestration_id, status, provider, model, system, capabilities, settings, created_by, created_at_ms, last_active_ms, ended_at_ms, draining, successor_id, respawns,
       CASE WHEN status = 'active' AND instr(capabilities, '"routing_control"') > 0 THEN 'children' ELSE 'none' END FROM agent;
DROP TABLE agent;
ALTER TABLE new_agent RENAME TO agent;

CREATE UNIQUE INDEX agent_live_name ON agent (COALESCE(orchestration_id, ''), name) WHERE status = 'active';
CREATE INDEX agent_by_name ON agent (name);
CREATE INDEX agent_by_parent ON agent (parent_id);
CREATE INDEX agent_by_orchestration ON agent (orchestration_id);
CREATE INDEX agent_by_successor ON agent (successor_id) WHERE successor_id IS NOT NULL;

CREATE TABLE new_rule (
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
INSERT INTO new_rule (rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, deleted_at_ms, metadata, remaining_ms, since, changed_at_ms)
SELECT rule_id, source_pattern, source_agent, condition, target, mapping, priority, scope, orchestration_id, enabled, created_by, version, created_at_ms, expires_at_ms, deleted_at_ms, metadata, remaining_ms, version, created_at_ms FROM rule;
DROP TABLE rule;
ALTER TABLE new_rule RENAME TO rule;

CREATE INDEX rule_by_version ON rule (version);
CREATE INDEX rule_by_scope ON rule (scope) WHERE deleted_at_ms IS NULL;
CREATE INDEX rule_by_creator ON rule (created_by) WHERE deleted_at_ms IS NULL;
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

CREATE TABLE new_control (
    control_id      INTEGER PRIMARY KEY CHECK (control_id = 1),
    routing_version INTEGER NOT NULL,
    routing_floor   INTEGER NOT NULL DEFAULT 0,    -- the oldest version that the table can go back to
    routing_paused  INTEGER NOT NULL DEFAULT 0     -- 1: safe mode, events wait in the outbox
);
INSERT INTO new_control (control_id, routing_version, routing_floor)
SELECT control_id, routing_version, routing_version FROM control;
DROP TABLE control;
ALTER TABLE new_control RENAME TO control;

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

INSERT INTO rule_history (rule_id, version, content, at_ms)
SELECT rule_id, version, json_object('source_pattern', source_pattern, 'source_agent', source_agent, 'condition', condition, 'target', target, 'mapping', mapping, 'priority', priority, 'scope', scope, 'orchestration_id', orchestration_id, 'enabled', enabled, 'created_by', created_by, 'created_at_ms', created_at_ms, 'expires_at_ms', expires_at_ms, 'metadata', metadata, 'remaining_ms', remaining_ms, 'exclusive', exclusive, 'rate', rate, 'join_spec', join_spec, 'modifiable', modifiable, 'since', since), created_at_ms FROM rule WHERE deleted_at_ms IS NULL;
