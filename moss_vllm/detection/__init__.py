"""Temporal action detection: AdaTAD with MOSS, its training and its tests."""
