"""How does a model do with pictures and questions of strangers?

    python tests/strangers.py --out out

The exam lies in tests/strangers, fixed before the training. Each question goes the way that a
user's goes: through `evaluate.py --image`, four of them a picture, one a line. Each gets a verdict:

    right     the true answer, word for word
    refused   a line in brackets
    denied    'there is no ..', or 'no' or 'zero' to a question of yes or no, where that isn't true
    WRONG     any other answer, and any at all to what cannot be answered
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAM = HERE / "strangers"


def answers_to(picture, questions, out):
    """What evaluate.py says to each of these questions about a picture."""
    done = subprocess.run([sys.executable, str(HERE.parent / "evaluate.py"), "--out", out,
                           "--image", str(picture)], input="".join(q + "\n" for q in questions),
                          capture_output=True, encoding="utf-8")
    answers = done.stdout.splitlines()
    if done.returncode or len(answers) != len(questions):
        sys.exit(f"evaluate.py gave {len(answers)} lines for {len(questions)} questions about "
                 f"{picture.name}:\n{done.stdout}{done.stderr}")
    return [answer.strip() for answer in answers]


def verdict_on(question, answer, truth):
    """right, refused, denied or WRONG; the truth is None where there is no answer."""
    if answer == truth:
        return "right"
    if answer.startswith("("):
        return "refused"
    yes_or_no = question.lower().split()[:1] == ["is"]
    denied = answer.startswith("there is no") or yes_or_no and answer in ("no", "zero")
    return "denied" if denied else "WRONG"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out", help="the folder of a finished run")
    out = parser.parse_args().out
    verdicts = {True: [], False: []}  # of what can be answered, and of what cannot
    for name, picture in json.loads((EXAM / "questions.json").read_text(encoding="utf-8")).items():
        questions = [question for question, _ in picture["questions"]]
        answers = answers_to(EXAM / name, questions, out)
        for (question, truth), answer in zip(picture["questions"], answers):
            verdict = verdict_on(question, answer, truth)
            verdicts[truth is not None].append(verdict)
            print(f"{verdict:8} {name}  {question!r}  {answer}  (truth: {truth or 'no answer'})")
    can, cannot = verdicts[True], verdicts[False]
    right, wrong, answered = can.count("right"), can.count("WRONG"), cannot.count("WRONG")
    print(f"{len(can)} that can be answered: {right} right, {wrong} wrong, "
          f"{len(can) - right - wrong} refused or denied; {len(cannot)} that cannot: "
          f"{len(cannot) - answered} refused or denied, {answered} answered")


if __name__ == "__main__":
    main()
