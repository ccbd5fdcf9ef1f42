"""Where results go: SQLite is the book of record, the other sinks are fed from it."""
