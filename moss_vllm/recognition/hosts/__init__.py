"""Video classifiers made from an image encoder: the ladder of the paper, and the other hosts of Table 10d."""
