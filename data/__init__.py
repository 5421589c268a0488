"""The world: what there is to see (world.py), what is written about it (corpus.py), how text becomes tokens (bpe.py)."""
