"""What there is to see (world.py) and read (corpus.py), how text becomes tokens (bpe.py), the exam
(scoring.py), and the object through which the stages see all of it (dataset.py). Underneath: a
stage's files (files.py), commands and stages side by side (run.py).
"""
