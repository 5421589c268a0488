"""How much training does a transfer save? Stage 2 of several lengths.

    python results/budgets.py            after train.py: many transfer.py, into budgets.json
    python results/budgets.py --rates    how RATES of transfer.py were chosen, into rates.json

Each length has a learning-rate schedule of its own: no run is the middle of a longer one.
Interrupted? Run the same command again. `python results/report.py OUT` shows the scores as a table.
"""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the project, one folder up

from data.files import Refused, read_json, write_json
from data.run import Parser, command
from train import load_settings
from transfer import all_rows

LENGTHS = [50, 100, 200, 400, 800]  # steps of stage 2
GRID = [0.25, 0.5, 1.0, 2.0, 4.0]  # times its learning rates;
HIGHER = [8.0, 16.0, 32.0, 64.0]  # for rows of which the highest so far is the best
ROWS = {  # of transfer.py: the same before stage 2, or None where that is untrained
    "native_langbridge": "aligned_langbridge", "transferred_langbridge": "zero_shot_langbridge",
    "native_mlp": "aligned_mlp", "tuned_linear_map": "zero_shot_linear_map",
    "tuned_nearest_words": "zero_shot_nearest_words", "fresh_langbridge": None, "fresh_mlp": None}


def run(script, **flags):
    """A command in a process of its own."""
    flags = [f"--{name}={value}" for name, value in flags.items()]
    if subprocess.run([sys.executable, str(ROOT / script), *flags]).returncode:
        raise Refused(f"{script} has failed, for the reason above")


def copy_whole(folder, copy):
    """Copy a folder: all of it or, when killed, nothing under this name."""
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, copy.with_name("unfinished"), dirs_exist_ok=True)
        copy.with_name("unfinished").rename(copy)


def transfer(s, rows, **flags):
    """The scores of some rows, {row: scores}, with such a --steps or --rate."""
    run("transfer.py", out=s.out, rows=",".join(rows), threads=s.threads, **flags)
    suffix = "".join(f"_{name}{value:g}" for name, value in flags.items())
    made = read_json(Path(s.out) / f"transfer{suffix}.json")
    return {row["name"]: row["scores"] for row in made["rows"]}


def curves(s):
    """Every row at every length: its name, and its scores as points."""
    before = transfer(s, filter(None, ROWS.values()), steps=LENGTHS[0])
    points = {row: [{"samples": 0} | before[start]] if start else []
              for row, start in ROWS.items()}
    for steps in LENGTHS:
        for row, scores in transfer(s, ROWS, steps=steps).items():
            points[row].append({"samples": steps * s.instruct_batch} | scores)
    return [{"name": row, "points": its} for row, its in points.items()]


def rates(s):
    """Every row with stage 2 at every rate: its name, the rate that is best on val, and val's vqa
    and caption F1 at each."""
    tried = {row.name: {} for row in all_rows("llm_source", "llm_target") if row.stage2}

    def best(row):
        return max(tried[row], key=lambda rate: sum(tried[row][rate]))

    for rate in GRID + HIGHER:
        rows = [row for row in tried if rate in GRID or best(row) == max(tried[row])]
        if rows:
            made = transfer(s, rows, steps=s.instruct_steps // 2, rate=rate)
        for row in rows:
            tried[row][rate] = [made[row]["val"][score] for score in ("vqa", "caption_f1")]
    return [{"name": row, "best": best(row), "val": its} for row, its in tried.items()]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    parser.add_argument("--rates", action="store_true", help="try learning rates")
    args = parser.parse_args()
    s = load_settings(args.out)
    measure = rates if args.rates else curves
    path = Path(s.out) / ("rates.json" if args.rates else "budgets.json")
    write_json(path, {"seed": s.seed, "rows": measure(s)})
    print(f"\nScores: {path}. As a table: python results/report.py {s.out}")


if __name__ == "__main__":
    with command():
        main()
