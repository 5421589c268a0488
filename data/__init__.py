"""All that is learned from: what there is to see (world.py), what is written about it (corpus.py),
how text becomes tokens (bpe.py), what is asked in the exam (scoring.py), and the one object through
which the stages know all this (dataset.py). files.py keeps what they have made."""
