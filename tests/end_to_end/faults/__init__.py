"""Everything that a user can get wrong, by command; `engine` has the rules, docs/faults.md the messages."""
