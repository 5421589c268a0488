"""What one thing changes about the move: a setting, an eye, a target, the length of stage 2.

    python results/sweeps.py WHAT       after train.py

    K             how many words
    hidden        how wide W is
    coefficients  how its outputs become weights, and whether words are drawn in stage 1
    basis         words, or words minus their mean
    patches       3 x 3 or 6 x 6 of them
    mlp           an MLP with as many parameters as LangBridge
    eye           a ViT that has never met a word
    target        targets that were not made to match the source: foreign has another word for
                  'nothing here', another grid and other sentences (data/corpus.py); for pieces, 24
                  of the adapter's words are several tokens
    budgets       stage 2 of several lengths

Finished stages are reused. Writes ablate_<what>.json, .md and .png (budgets.json, ..) into --out.
"""
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import train
from data.files import Refused, read_json, write_json, write_text
from data.loop import size_of
from data.run import Job, Parser, lanes, number, run_command, seed_list
from data.scoring import SCORES
from data.settings import load_settings
from evaluate import held_out, load_vlm, own_weight
from results.collect import collect_budgets
from results.figures import plot_budgets, plot_sweep
from results.report import ablation_table, budgets_table
from train import check, open_stage
from transfer import ROWS, Move, copy_stages, run_moves


# ---- one setting varies -------------------------------------------------------------------------

SWEEPS = {  # what: {a point: the settings that it changes}
    "K": {"16": dict(align_K=16), "32": dict(align_K=32), "used": {}, "all": dict(align_K=1000)},
    "hidden": {"16": dict(align_hidden=16), "64": dict(align_hidden=64), "256": {}},
    "coefficients": {
        "softplus": {},
        "softmax": dict(align_coefficients="softmax"),
        "softplus, none drawn": dict(align_drawn=0.0),
        "softmax, none drawn": dict(align_coefficients="softmax", align_drawn=0.0),
        "relu, none drawn": dict(align_coefficients="relu", align_drawn=0.0),
        "linear, none drawn": dict(align_coefficients="linear", align_drawn=0.0)},
    "basis": {"words": {}, "centered": dict(align_basis="centered")},
    "patches": {"3 x 3": dict(vit_patch=16), "6 x 6": {}},
    "mlp": {"as wide as the LLM": {},
            "as many parameters as LangBridge": dict(align_mlp_hidden=394)},
    "eye": {"texts": {}, "drawings": dict(vit_pairs="drawings")},
    "target": {"target": {}, "foreign": dict(llm_target_dialect="foreign"),
               "pieces": dict(llm_target_V=360)},
}
MOVES = ["zero_shot_langbridge", "transferred_langbridge"]
ALL_WAYS = ["stage1_native_langbridge", "stage1_native_mlp", "native_mlp", "zero_shot_langbridge",
            "zero_shot_mlp_as_words", "words_as_text_langbridge", "words_as_text_mlp",
            "probe_as_text", "transferred_langbridge"]
SWEPT = {"mlp": ["stage1_native_mlp", "native_mlp"], "eye": ALL_WAYS, "target": ALL_WAYS}  # rows


def ablate(s, what, seeds, stage2):
    """Vary one thing, and score some rows (SWEPT, else MOVES; those with a stage 2 only if
    `stage2`) and the LangBridge on the source LLM after stage 1.

    Writes ablate_<what>.json, .md and .png. train.py's own settings reuse transfer.py's stages.
    """
    names = SWEPT.get(what, MOVES)
    rows = [row for row in ROWS if row.name in names and (stage2 or not row.stage2)]
    moves, jobs = {}, []
    for point, changes in SWEEPS[what].items():
        moves[point], its_jobs = prepare_point(s, what, point, changes, seeds)
        jobs += its_jobs
    with lanes(s, max(1, len(jobs))) as run:
        run(jobs)
    run_moves(s, [move for of_point in moves.values() for move in of_point], rows)
    sweep = {"what": what, "seeds": seeds, "points": []}
    for point, of_point in moves.items():
        sweep["points"].append({"value": point, **measure_point(of_point, rows)})
    out, table = Path(s.out), ablation_table(sweep)
    print(table)
    write_json(out / f"ablate_{what}.json", sweep)
    write_text(out / f"ablate_{what}.md", table)
    plot_sweep(sweep, out / f"ablate_{what}.png")


def prepare_point(s, what, point, changes, seeds):
    """A point's moves, one per seed, and the jobs that train an LLM or a ViT for it alone."""
    if not changes:  # train.py's own settings: transfer.py's stages will do
        return [Move(replace(s, seed=seed), "llm_source", "llm_target", seed == s.seed)
                for seed in seeds], []
    s, root = replace(s, **changes), f"ablate/{what}/{point.replace(' ', '')}"
    jobs, makers = [], {"vit": train.pretrain_vit, "llm_target": train.pretrain_llm}
    own = [name for name in makers if any(changed.startswith(f"{name}_") for changed in changes)]
    if own:
        s = copy_stages(s, f"{s.out}/{root}", *{"vit", "llm_source", "llm_target"} - set(own))
        root = "transfer"  # in that folder
        jobs = [Job(makers[name], s, open_stage(s, name)) for name in own]
    return [Move(replace(s, seed=seed), "llm_source", "llm_target", False, root=root)
            for seed in seeds], jobs


def measure_point(moves, rows):
    """A point of a sweep: {"vit", "K", "params", "own_weight", "rows": {name: {score: [..]}}}; what
    the ViT's probes score, and lists with a value for each seed"""
    s = moves[0].s
    eye = read_json(Path(s.out) / "vit" / "config.json")["scores"]
    point = {"vit": {name: eye[name] for name in ("probe_color", "probe_shape")}}
    stages = {row.name: [move.stage_of(row) for move in moves] for row in rows}
    if any(row.kind == "langbridge" for row in rows):
        aligned = [move.adapter("llm_source", "langbridge", "align") for move in moves]
        features, weights = held_out(s.out, splits=["test"])["test"], []
        for move, stage in zip(moves, aligned):
            _, vlm = load_vlm(move.s.out, stage.name)
            weights.append(own_weight(vlm, features, s.data))
        point |= {"K": len(vlm.adapter.tokens), "params": size_of(vlm.adapter),
                  "own_weight": weights}
        stages = {"on_the_source_llm": aligned} | stages
    scores = {name: [stage.config()["scores"] for stage in of_seeds]
              for name, of_seeds in stages.items()}
    point["rows"] = {name: {score: [values[score] for values in of_seeds] for score in SCORES}
                     for name, of_seeds in scores.items()}
    return point


# ---- the length of stage 2 varies ---------------------------------------------------------------

BUDGETED = {  # a row, and the row that it starts as, if that one has scores
    "native_mlp": "stage1_native_mlp", "native_langbridge": "stage1_native_langbridge",
    "transferred_langbridge": "zero_shot_langbridge", "mlp_as_words": "zero_shot_mlp_as_words",
    "stitched_mlp": "zero_shot_stitched_mlp", "fresh_mlp": None, "fresh_langbridge": None}
RATES = [0.5, 1.0, 2.0]  # times the learning rates of stage 2


def sweep_budgets(s, budgets, seeds):
    """Stage 2 of several lengths, each with a schedule of its own, at the learning rate that is
    best on val for the middle one. Writes budgets.json, .md and .png."""
    by_name, found = {row.name: row for row in ROWS}, []

    def moves(steps, rate):
        return [Move(replace(s, seed=seed), "llm_source", "llm_target", seed == s.seed, steps, rate)
                for seed in seeds]

    def scores_of(name, steps, rate):
        return [move.stage_of(by_name[name]).config()["scores"] for move in moves(steps, rate)]

    def quality(name, rate):
        vals = [scores["val"] for scores in scores_of(name, middle, rate)]
        return sum(val["vqa"] + val["caption_f1"] for val in vals)

    middle = budgets[len(budgets) // 2]
    tried = [by_name[name] for name in BUDGETED]
    starts = [by_name[name] for name in BUDGETED.values() if name]
    run_moves(s, [move for rate in RATES for move in moves(middle, rate)], tried)
    run_moves(s, moves(0, 1.0), starts)
    best = {name: max(RATES, key=lambda rate: quality(name, rate)) for name in BUDGETED}
    for rate in RATES:
        rows = [by_name[name] for name in BUDGETED if best[name] == rate]
        run_moves(s, [move for steps in budgets for move in moves(steps, rate)], rows)
    for name, start in BUDGETED.items():
        measured = {steps: scores_of(name, steps, best[name]) for steps in budgets}
        if start:
            measured = {0: scores_of(start, 0, 1.0)} | measured
        points = [{"samples": steps * s.instruct_batch,
                   **{score: [values[score] for values in of_seeds] for score in SCORES}}
                  for steps, of_seeds in measured.items()]
        found.append({"name": name, "rate": best[name], "points": points})
    result = collect_budgets(found, seeds)
    out, table = Path(s.out), budgets_table(result)
    print(table)
    write_json(out / "budgets.json", result)
    write_text(out / "budgets.md", table)
    plot_budgets(result, out / "budgets.png")


# ---- python results/sweeps.py ------------------------------------------------------------------

def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=[*SWEEPS, "budgets"], help="what varies")
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--seeds", type=seed_list, default="0,1,2",
        help="seeds of the adapters and of the order of data (default: 0,1,2)")
    add("--no-stage2", action="store_true", help="only rows without a stage 2 (not for budgets)")
    add("--steps", type=seed_list, default="50,100,200,400,800",
        help="for budgets: the lengths of stage 2 (default: 50,100,200,400,800)")
    add("--threads", type=number(0), default=0,
        help="CPU threads in all; 0: as many as there are cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    args = parser.parse_args()
    if 0 in args.steps:
        raise Refused("--steps 0: expected lengths of stage 2, 1 or more, as in 50,100,200")
    s = replace(load_settings(args.out), stages="all", threads=args.threads or os.cpu_count())
    s.device = args.device or s.device
    check(s)
    torch.set_num_threads(s.threads)
    if args.what == "budgets":
        sweep_budgets(s, sorted(args.steps), args.seeds)
    else:
        ablate(s, args.what, args.seeds, not args.no_stage2)


if __name__ == "__main__":
    run_command(main)
