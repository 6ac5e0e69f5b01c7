"""What happened? The append-only log, and the one door to a transaction: `Journal.commit`."""
