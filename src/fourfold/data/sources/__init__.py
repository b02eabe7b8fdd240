"""Where tables come from: one file per kind of source, each a TableSource (see data/pieces.py)."""
