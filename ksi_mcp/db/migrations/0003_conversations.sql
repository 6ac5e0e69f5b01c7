-- What is kept in memory of a conversation is known to be fresh; an agent is found by its name in one step.

CREATE TABLE new_session (
    session_id TEXT    PRIMARY KEY,                -- the agent's id
    tail       INTEGER NOT NULL DEFAULT 0,         -- turns ever put in
    pending    INTEGER NOT NULL DEFAULT 0,         -- turns not finished, the head among them
    suspended  INTEGER NOT NULL DEFAULT 0,         -- 1: no turn of it starts
    changes    INTEGER NOT NULL DEFAULT 0          -- of the conversation, ever
);
INSERT INTO new_session (session_id, tail, pending, suspended) SELECT session_id, tail, pending, suspended FROM session;
DROP TABLE session;
ALTER TABLE new_session RENAME TO session;

CREATE INDEX agent_by_name ON agent (name);
