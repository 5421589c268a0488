"""How much training does a transfer save? Stage 2 of several lengths, at the best learning rates.

    python results/budgets.py     after train.py: the scores of many transfer.py, into budgets.json

Each length has a learning-rate schedule of its own: no run is the middle of a longer one. The
learning rate of a row is the best of three on val, at the middle length. Interrupted? Run the same
command again. `python results/report.py OUT` shows the scores as a table.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the project, one folder up

from data.files import Refused, read_json, write_json
from data.run import Parser, command
from train import load_settings

LENGTHS = [50, 100, 200, 400, 800]  # steps of stage 2
RATES = [0.5, 1.0, 2.0]  # times its learning rates
ROWS = {  # of transfer.py: the same before stage 2, or None where that is untrained
    "native_langbridge": "aligned_langbridge", "transferred_langbridge": "zero_shot_langbridge",
    "native_mlp": "aligned_mlp", "tuned_linear_map": "zero_shot_linear_map",
    "tuned_nearest_words": "zero_shot_nearest_words", "fresh_langbridge": None, "fresh_mlp": None}


def run(script, **flags):
    """A command in a process of its own."""
    flags = [f"--{name}={value}" for name, value in flags.items()]
    if subprocess.run([sys.executable, str(ROOT / script), *flags]).returncode:
        raise Refused(f"{script} has failed, for the reason above")


def transfer(s, rows, steps, rate):
    """The scores of some rows with so many steps of stage 2, {row: scores}"""
    run("transfer.py", out=s.out, rows=",".join(rows), threads=s.threads, steps=steps, rate=rate)
    made = read_json(Path(s.out) / f"transfer_steps{steps}_rate{rate:g}.json")
    return {row["name"]: row["scores"] for row in made["rows"]}


def measure(s):
    """Every row at every length: its name, its rate, and its scores as points."""
    middle = LENGTHS[len(LENGTHS) // 2]
    before = transfer(s, filter(None, ROWS.values()), middle, 1.0)
    tried = {rate: transfer(s, ROWS, middle, rate) for rate in RATES}
    best, points = {}, {}
    for row, start in ROWS.items():
        points[row] = [{"samples": 0} | before[start]] if start else []
        val = {rate: tried[rate][row]["val"] for rate in RATES}
        best[row] = max(RATES, key=lambda rate: val[rate]["vqa"] + val[rate]["caption_f1"])
    for steps in LENGTHS:
        for rate in {*best.values()}:
            rows = [row for row in ROWS if best[row] == rate]  # one command makes them all
            for row, scores in transfer(s, rows, steps, rate).items():
                points[row].append({"samples": steps * s.instruct_batch} | scores)
    return [{"name": row, "rate": best[row], "points": points[row]} for row in ROWS]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    s = load_settings(parser.parse_args().out)
    path = Path(s.out) / "budgets.json"
    write_json(path, {"seed": s.seed, "rows": measure(s)})
    print(f"\nScores: {path}. As a table: python results/report.py {s.out}")


if __name__ == "__main__":
    with command():
        main()
