"""Ask a benchmark's questions, judge and score the answers, compare evaluations."""
