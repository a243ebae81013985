"""Generic event boundary detection: BasicGEBD with MOSS, from a clip to when something changes."""
