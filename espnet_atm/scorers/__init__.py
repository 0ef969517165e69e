"""The kinds of models that can be the scorer, one file each."""
