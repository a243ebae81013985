"""Whatever else a user runs."""
