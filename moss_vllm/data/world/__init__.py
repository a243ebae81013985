"""Worlds drawn here: the benchmarks' formats and the miniature's own clips."""
