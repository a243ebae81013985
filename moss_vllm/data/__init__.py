"""Annotation files -> rows to train on, questions to ask and labelled clips; the generated worlds."""
