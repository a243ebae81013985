"""Temporal action detection: AdaTAD with MOSS, from a video to its actions with their times."""
