"""Videos with actions at known times, read from the files as they are distributed."""
