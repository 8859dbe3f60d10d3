"""The database's tables, one script a version; a script that was published is never changed again."""

from __future__ import annotations

APPLICATION = 0x64666164  # "dfad", by which SQLite files tell whose they are

_FIRST = f"""
PRAGMA application_id = {APPLICATION};

CREATE TABLE pictures (  -- originals, each once: pictures/<sha256[:2]>/<sha256><suffix>
    sha256 TEXT PRIMARY KEY,
    suffix TEXT NOT NULL,
    bytes INTEGER NOT NULL
);

CREATE TABLE inspections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice
    time REAL NOT NULL,  -- UTC, s since 1970
    picture TEXT NOT NULL,  -- the file's name
    folded TEXT NOT NULL,  -- the same, as it is searched
    sha256 TEXT NOT NULL REFERENCES pictures (sha256),
    category TEXT NOT NULL,
    model TEXT NOT NULL,
    model_version TEXT NOT NULL,
    score REAL NOT NULL,
    threshold REAL NOT NULL,
    look_threshold REAL NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('good', 'look', 'anomalous')),
    rate REAL NOT NULL,
    seconds REAL NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('inspect', 'batch', 'api', 'watch')),
    who TEXT NOT NULL,
    correction TEXT NOT NULL DEFAULT '' CHECK (correction IN ('', 'right', 'good', 'defective')),
    corrected_at REAL,
    corrected_by TEXT NOT NULL DEFAULT '',
    mask TEXT NOT NULL DEFAULT '',  -- a file's name in maps/<token[:2]>/
    token TEXT NOT NULL UNIQUE,  -- names the thumbnail and the map
    bytes INTEGER NOT NULL,  -- of both together
    settings TEXT NOT NULL,  -- JSON, as the four below
    regions TEXT NOT NULL,
    notes TEXT NOT NULL,
    quality TEXT
);

-- Everything that lists are chosen and sorted by, so that no list reads the rows that it leaves out.
CREATE INDEX inspections_listed
    ON inspections (time, category, verdict, correction, model, who, score, folded);
CREATE INDEX inspections_pictures ON inspections (sha256);

CREATE TABLE events (  -- what people did, and the limits
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL  -- JSON
);

CREATE INDEX events_subjects ON events (subject);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)  # the n-th leads to version n
