"""What there is to see (world.py) and to read (corpus.py), how text becomes tokens (bpe.py), what is
asked in the exam (scoring.py), and the object through which the stages know all this (dataset.py).
Below them: a stage's files (files.py), stages side by side (run.py), the training loop (loop.py).
"""
