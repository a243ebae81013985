"""One HTML page of a training run or of an evaluation's answers, which needs no other file and no network."""
