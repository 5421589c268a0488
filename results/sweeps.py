"""What one setting changes: each point of a sweep is a train.py and a transfer.py of its own.

    python results/sweeps.py NAME       after train.py and transfer.py

    name           what varies
    coefficients   how W's outputs become weights, and whether it reads whitened features
    K, hidden      how many words, and how wide W is
    target         targets less like the source: foreign has another empty word, another grid and
                   other sentences; in pieces many of the adapter's words are several tokens
    budgets        stage 2 of several lengths, each at the learning rates that are best on val

A point is a folder, OUT/sweeps/NAME/POINT. Finished stages of OUT that the point does not change
are linked into it, the others are made there. Interrupted? Run the same command again. The scores
go to OUT/sweep_NAME.json; `python results/report.py OUT` shows them as a table. For several seeds,
make several OUT folders and loop over them.
"""
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the project, one folder up

import torch

from adapter import token
from data.files import Refused, read_json, write_json
from data.run import Parser, command
from evaluate import held_out, load_vlm
from train import STAGES, load_settings, size_of
from transfer import all_rows

SWEEPS = {  # name: {point: the flags of train.py that it changes}
    "coefficients": {
        "softmax": dict(align_coefficients="softmax", align_whiten=True),
        "softmax, not whitened": dict(align_coefficients="softmax", align_whiten=False),
        "raw weights": dict(align_coefficients="linear", align_whiten=True),
        "raw weights, not whitened": dict(align_coefficients="linear", align_whiten=False)},
    "K": {"16": dict(align_K=16), "32": dict(align_K=32), "used": dict(align_K=0)},
    "hidden": {width: dict(align_hidden=int(width)) for width in ("16", "64", "256")},
    "target": {"target": dict(llm_target_dialect="target"),
               "foreign": dict(llm_target_dialect="foreign"), "pieces": dict(llm_target_V=360)}}
ALL_ROWS = all_rows("llm_source", "llm_target")  # of transfer.py
ROWS = {"target": [row.name for row in ALL_ROWS if row.headline]}  # other sweeps have two

LENGTHS = [50, 100, 200, 400, 800]  # steps of stage 2
RATES = [0.5, 1.0, 2.0]  # times its learning rates; each row has its best at the middle length
BUDGETS = {  # row: the same before stage 2, or None where that is untrained
    "native_langbridge": "aligned_langbridge", "transferred_langbridge": "zero_shot_langbridge",
    "native_mlp": "aligned_mlp", "tuned_linear_map": "zero_shot_linear_map",
    "tuned_nearest_words": "zero_shot_nearest_words", "fresh_langbridge": None, "fresh_mlp": None}


# ---- a folder for each point --------------------------------------------------------------------

def flags(settings):
    """{"align_K": 16, "allow_bad": False} -> ["--align_K=16", "--no-allow_bad"]"""
    return [f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"
            for name, value in settings.items() if value != ""]


def run(script, *arguments):
    """A command of the project, in a process of its own."""
    if subprocess.run([sys.executable, str(ROOT / script), *arguments]).returncode:
        raise Refused(f"{script} has failed, for the reason above")


def link_stages(out, folder, changes):
    """Hard-link the finished stages of --out that have none of these settings, or the same ones."""
    for path in sorted(out.rglob("config.json")):
        config = read_json(path)
        copy = folder / config["stage"]
        same = all(config["settings"].get(key, value) == value for key, value in changes.items())
        if same and path.relative_to(out).parts[0] != "sweeps" and not copy.exists():
            shutil.copytree(path.parent, copy, copy_function=os.link)


def make_stages(s, folder, changes, rows):
    """Everything that these rows of transfer.py need from train.py."""
    print(f"\n{folder}: {' '.join(flags(changes))}", flush=True)
    link_stages(Path(s.out), folder, changes)
    starts = {row.start for row in ALL_ROWS if row.name in rows}
    stages = ["llm_source", "llm_target", "vit", *sorted(starts & {*STAGES})]
    s = replace(s, out=str(folder), stages=",".join(stages), **changes)
    run("train.py", *flags(asdict(s)))


def transfer(s, folder, rows, **budget):
    """The scores of some rows of transfer.py, {row: scores}; budget: steps and rate of stage 2,
    if they are not the usual ones."""
    run("transfer.py",
        *flags({"out": folder, "rows": ",".join(rows), "threads": s.threads} | budget))
    name = "transfer_steps{steps}_rate{rate:g}.json" if budget else "transfer.json"
    return {row["name"]: row["scores"] for row in read_json(folder / name.format(**budget))["rows"]}


# ---- what is measured ---------------------------------------------------------------------------

@torch.no_grad()
def own_weight(vlm, features, data):
    """The share of |weight| that an object's patches put on its own words."""
    shares = []
    for seen, beta in data.seen("test", vlm.adapter.weights(features).abs()):
        weights = dict(zip(vlm.adapter.tokens, beta.sum(0).tolist()))
        own = sum(weights.get(token(word), 0.0) for word in seen.words.values())
        shares.append(own / max(sum(weights.values()), 1e-9))
    return sum(shares) / len(shares)


def sweep(s, name):
    """One setting varies: for each point its adapter, aligned on the source LLM, and its rows."""
    rows, points = ROWS.get(name, ["zero_shot_langbridge", "transferred_langbridge"]), []
    for title, changes in SWEEPS[name].items():
        folder = Path(s.out) / "sweeps" / name / title.replace(", ", "_").replace(" ", "_")
        make_stages(s, folder, changes, rows)
        aligned = read_json(folder / "langbridge_align" / "config.json")
        measured = {"on_the_source_llm": aligned["scores"]} | transfer(s, folder, rows)
        _, vlm = load_vlm(folder, "langbridge_align")
        test = held_out(folder, splits=["test"])["test"]
        points.append({
            "value": title, "K": len(vlm.adapter.tokens), "params": size_of(vlm.adapter),
            "own_weight": round(own_weight(vlm, test, s.dataset), 4), "rows": measured})
    return {"what": name, "seed": s.seed, "points": points}


def sweep_budgets(s):
    """Each length has a learning-rate schedule of its own: no run is the middle of a longer one."""
    folder, starts = Path(s.out) / "sweeps" / "budgets", [row for row in BUDGETS.values() if row]
    make_stages(s, folder, {}, [*BUDGETS, *starts])
    middle = LENGTHS[len(LENGTHS) // 2]
    tried = {rate: transfer(s, folder, BUDGETS, steps=middle, rate=rate) for rate in RATES}
    before, points, best = transfer(s, folder, starts), {}, {}
    for row, start in BUDGETS.items():
        points[row] = [{"samples": 0} | before[start]] if start else []
        val = {rate: tried[rate][row]["val"] for rate in RATES}
        best[row] = max(RATES, key=lambda rate: val[rate]["vqa"] + val[rate]["caption_f1"])
    for steps in LENGTHS:
        for rate in {*best.values()}:
            rows = [row for row in BUDGETS if best[row] == rate]  # one command makes them all
            for row, scores in transfer(s, folder, rows, steps=steps, rate=rate).items():
                points[row].append({"samples": steps * s.instruct_batch} | scores)
    return {"seed": s.seed, "rows": [{"name": row, "rate": best[row], "points": points[row]}
                                     for row in BUDGETS]}


# ---- python results/sweeps.py NAME --------------------------------------------------------------

def main():
    parser = Parser(__doc__)
    parser.add_argument("name", choices=[*SWEEPS, "budgets"], help="what varies")
    parser.add_argument("--out", default="out", help="the folder of train.py (default: out)")
    args = parser.parse_args()
    s, path = load_settings(args.out), Path(args.out) / f"sweep_{args.name}.json"
    write_json(path, sweep_budgets(s) if args.name == "budgets" else sweep(s, args.name))
    print(f"\nScores: {path}. As a table: python results/report.py {args.out}")


if __name__ == "__main__":
    with command():
        main()
