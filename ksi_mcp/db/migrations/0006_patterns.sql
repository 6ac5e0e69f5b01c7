-- Patterns that live: what came of each run, by version.

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

ALTER TABLE decision ADD COLUMN resolved_at_ms INTEGER;
ALTER TABLE decision ADD COLUMN resolved_by TEXT;

-- Every process keeps the heads of the library in memory, for as long as this stays the same.
ALTER TABLE control ADD COLUMN library_version INTEGER NOT NULL DEFAULT 0;
