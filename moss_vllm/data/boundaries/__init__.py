"""Clips with the times at which raters saw something end and something new begin, as distributed."""
