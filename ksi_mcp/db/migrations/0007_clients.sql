-- Clients: tokens besides the operator's, and calls that were handed over.

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

-- A page of the table is read in this order, and need not sort all of it.
CREATE INDEX rule_in_order ON rule (priority DESC, rule_id) WHERE deleted_at_ms IS NULL;
