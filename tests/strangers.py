"""How does a model do with pictures and questions of strangers?

    python tests/strangers.py --out out

Two exams lie in tests/strangers, each fixed before the training of the model that it was for. Each
question goes the way that a user's goes: through `evaluate.py --image`, one a line, four of them a
picture. Each gets a verdict:

    right     the true answer, word for word
    refused   a line in brackets
    denied    'there is no ..', or 'no' or 'zero' to a question of yes or no, where that isn't true
    WRONG     any other answer, and any at all to what cannot be answered
"""
import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

EXAMS = Path(__file__).resolve().with_suffix("")  # tests/strangers


def answers_to(picture, questions, out):
    """What evaluate.py says to each of these questions about a picture."""
    command = [sys.executable, EXAMS.parents[1] / "evaluate.py", "--out", out, "--image", picture]
    done = subprocess.run(command, input="".join(f"{question}\n" for question in questions),
                          stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout.splitlines()


def verdict_on(question, answer, truth):
    """right, refused, denied or WRONG; the truth is None where there is no answer."""
    if answer == truth:
        return "right"
    if answer.startswith("("):
        return "refused"
    is_no = question.lower().startswith("is ") and answer == "no"
    return "denied" if is_no or answer.startswith("there is no") else "WRONG"


def examine(exam, out):
    """The verdicts on the answers to an exam, as a list and counted."""
    verdicts = {True: Counter(), False: Counter()}
    for name, picture in json.loads((exam / "questions.json").read_text(encoding="utf-8")).items():
        questions, truths = zip(*picture["questions"])
        answers = answers_to(exam / name, questions, out)
        for question, answer, truth in zip(questions, answers, truths, strict=True):
            verdict = verdict_on(question, answer, truth)
            verdicts[truth is not None][verdict] += 1
            print(f"{verdict:8} {name}  {question!r}  {answer}  (truth: {truth or 'no answer'})")
    print(f"{exam.name} exam, what can be answered: {dict(verdicts[True])}; what cannot: "
          f"{dict(verdicts[False])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out", help="the folder of a finished run")
    out = parser.parse_args().out
    for exam in sorted(path for path in EXAMS.iterdir() if path.is_dir()):
        examine(exam, out)


if __name__ == "__main__":
    main()
