"""Move an adapter to another LLM, with every control that could explain the effect away.

    python transfer.py                      after python train.py: from the source LLM to the target
    python transfer.py --reverse            from the target to the source
    python transfer.py --full-seeds         the LLMs and the ViT vary too: a train.py for each seed
    python transfer.py --corpus sentences   LLMs that have never read a raster: what is owed to them?
    python transfer.py --source A --target B   any two folders with llm.pt, llm.json, tokenizer.json
    python transfer.py --ablate WHAT        one setting of the adapter varies

    row                           the adapter                          stage 1, stage 2 on the target
    native_mlp                    trained on the target                yes      yes
    native_langbridge             trained on the target                yes      yes
    transferred_langbridge        from the source, basis swapped       no       yes
    fresh_langbridge, fresh_mlp   random                               no       yes
    shuffled_basis                from the source, words mixed up      no       yes
    blind                         none: no picture                              yes
    zero_shot_langbridge          from the source, basis swapped       no       no
    zero_shot_stitched_mlp        from the source, then a linear map   no       no
    zero_shot_shuffled            from the source, words mixed up      no       no
    stage1_native_langbridge/mlp  trained on the target                yes      no

A row whose name ends in _after_instruct takes the source's adapter after stage 2 instead of after
stage 1. Every stage 2 has the same budget. A seed is one of the adapters and of the order of data
in both stages. What exists is used again. Writes transfer.json, .md and .png into --out (the mode
is part of the name, as in transfer_reverse.json).
"""
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

import train
from adapter import fingerprint, load_adapter
from data.bpe import load_encoding, shared_tokens
from data.files import Refused, read_json, write_json, write_text
from evaluate import (SCORES, Parser, held_out, load_vlm, own_weight, run_command, score_vlm,
                      seeds as seed_list)
from model import VLM, load_llm
from results.figures import line_plot
from results.report import KINDS, ablation_table, transfer_table
from train import Job, Lanes, Settings, align, instruct, load_settings, new_adapter, open_stage

MOMENTS = [0, 1, 2, 5, 10, 20, 50, 100]  # percent of stage 2 at which the curves are measured
CURVE_PICTURES = 100  # test pictures of a curve's points; the rows' scores use them all


class Row(NamedTuple):
    name: str
    kind: str  # mlp, langbridge or blind
    start: str  # native, moved, fresh, shuffled, stitched, or none
    stage1: bool  # on the target
    stage2: bool
    after: str = "align"  # the stage after which the source's adapter is taken
    headline: bool = False


ROWS = [
    Row("native_mlp", "mlp", "native", True, True, headline=True),
    Row("native_langbridge", "langbridge", "native", True, True, headline=True),
    Row("transferred_langbridge", "langbridge", "moved", False, True, headline=True),
    Row("transferred_langbridge_after_instruct", "langbridge", "moved", False, True, "instruct"),
    Row("fresh_langbridge", "langbridge", "fresh", False, True),
    Row("fresh_mlp", "mlp", "fresh", False, True),
    Row("shuffled_basis", "langbridge", "shuffled", False, True),
    Row("blind", "blind", "none", False, True),
    Row("zero_shot_langbridge", "langbridge", "moved", False, False, headline=True),
    Row("zero_shot_langbridge_after_instruct", "langbridge", "moved", False, False, "instruct"),
    Row("zero_shot_stitched_mlp", "mlp", "stitched", False, False, headline=True),
    Row("zero_shot_shuffled", "langbridge", "shuffled", False, False, headline=True),
    Row("zero_shot_shuffled_after_instruct", "langbridge", "shuffled", False, False, "instruct"),
    Row("stage1_native_langbridge", "langbridge", "native", True, False, headline=True),
    Row("stage1_native_mlp", "mlp", "native", True, False, headline=True),
]


# ---- how an adapter gets to another LLM ---------------------------------------------------------

def shuffle_words(adapter, seed):
    """Mix up which word each output of W stands for; W is what it was."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(adapter.tokens), generator=generator)
    adapter.tokens = [adapter.tokens[i] for i in order]
    return adapter


def stitch(mlp, source, target):
    """What can be done for an MLP without training: v' = M v + b carries source embeddings to
    target ones.

    M, b = argmin sum_k |M e_k + b - e'_k|^2 over the words that both LLMs have; e_k and e'_k are a
    word's two embeddings. source, target: (GPT, tiktoken.Encoding).
    """
    words = [t for t in shared_tokens(source[1], target[1]) if len(t) > 1]

    def embed(llm, encoding):
        ids = [encoding.encode_single_token(t) for t in words]
        return llm.embed(torch.tensor(ids, device=llm.embedding.weight.device)).detach()

    e, e_target = embed(*source), embed(*target)  # (K, C), (K, C')
    e = torch.cat([e, e.new_ones(len(e), 1)], dim=1)  # (K, C + 1)
    # (C + 1, C'); gelsd takes the smallest solution where K is less than C
    solution = torch.linalg.lstsq(e.cpu(), e_target.cpu(), driver="gelsd").solution
    map = nn.Linear(e.size(1) - 1, e_target.size(1)).to(e.device)
    with torch.no_grad():
        map.weight.copy_(solution[:-1].T)
        map.bias.copy_(solution[-1])
    return nn.Sequential(mlp, map)


@dataclass
class Move:
    """From one LLM to another, with one seed: which adapters and rows there are, where they lie, and
    what makes them.

    Adapters that were trained on an LLM lie in transfer/<LLM>/seed<k>/, rows that came from another
    LLM in .../from_<other LLM>/. What train.py has made is taken as it is.
    """
    s: Settings  # of the adapters: its seed, and train.py's budgets
    source: str
    target: str
    own: bool  # whether the seed is that of train.py, whose adapters can be used
    steps: int = 0  # of stage 2 in every row; 0: a quarter of train.py's
    root: str = "transfer"
    curves: bool = True  # examine rows also on the way

    def __post_init__(self):
        self.row_s = replace(self.s, instruct_steps=self.steps or self.s.instruct_steps // 4)

    def home(self, llm):
        return f"{self.root}/{label(llm)}/seed{self.s.seed}"

    def adapter(self, llm, kind, phase):
        """The stage that holds the adapter trained on this LLM."""
        if self.own and llm == "llm_source":
            return f"{kind}_{phase}"
        return f"{self.home(llm)}/{kind}_{phase}"

    def stage(self, row):
        """The stage that holds a row's scores."""
        if row.start != "native":
            return f"{self.home(self.target)}/from_{label(self.source)}/{row.name}"
        if row.stage2:
            return f"{self.home(self.target)}/native_{row.kind}_instruct"
        return self.adapter(self.target, row.kind, "align")

    def config(self, row):
        """What a finished row knows of itself."""
        native = row.start == "native" and not row.stage2
        return open_stage(self.s if native else self.row_s, self.stage(row)).config()

    def waves(self, rows):
        """Jobs in three waves: stage 1, stage 2 of the adapters that leave after it, and the rows."""
        aligns, instructs = {}, {}
        for row in rows:
            if row.start in ("moved", "shuffled", "stitched"):
                aligns[self.source, row.kind] = None
                if row.after == "instruct":
                    instructs[self.source, row.kind] = None
            elif row.start == "native":
                aligns[self.target, row.kind] = None
        waves = [[], [], []]
        for llm, kind in aligns:
            arguments = {"kind": kind, "llm_name": llm, "pair": (self.source, self.target)}
            waves[0].append(Job(self.s, self.adapter(llm, kind, "align"), align, arguments))
        for llm, kind in instructs:
            start = self.adapter(llm, kind, "align")
            arguments = {"kind": kind, "llm_name": llm, "start": start}
            waves[1].append(Job(self.s, self.adapter(llm, kind, "instruct"), go_on, arguments))
        for row in rows:
            if row.stage2 or row.start != "native":
                arguments = {"row": row, "move": self}
                waves[2].append(Job(self.row_s, self.stage(row), make_row, arguments))
        return waves


def go_on(s, name, kind, llm_name, start):
    """Stage 2 on the LLM that an adapter was aligned with."""
    instruct(s, name, kind, llm_name, load_adapter(Path(s.out) / start, drawn=0.0).to(s.device))


def make_row(s, name, row, move):
    """One row: the adapter as it comes to the target, stage 2 if the row has it, its scores."""
    out, facts, adapter = Path(s.out), {}, None
    llm, encoding = load_llm(out / move.target)
    llm.to(s.device)
    if row.start == "native":
        adapter = load_adapter(out / move.adapter(move.target, row.kind, "align"), drawn=0.0)
    elif row.start == "fresh":
        adapter = new_adapter(s, row.kind, llm, (move.source, move.target))
        adapter.drawn = 0.0
    elif row.start != "none":
        adapter = load_adapter(out / move.adapter(move.source, row.kind, row.after), drawn=0.0)
        facts["hash_before"] = fingerprint(adapter)
    if row.start == "shuffled":
        shuffle_words(adapter, s.seed)
    if row.start == "stitched":
        source, source_encoding = load_llm(out / move.source)
        stitched = stitch(adapter.to(s.device), (source.to(s.device), source_encoding), (llm, encoding))
    elif adapter is not None:
        adapter.to(s.device).set_basis(llm, encoding)
    if facts:
        facts["hash_after"] = fingerprint(adapter)
    if row.start == "moved":
        tell_move(name, move.target, adapter, facts)
    if row.stage2:
        moments = {s.instruct_steps * percent // 100 for percent in MOMENTS} if move.curves else ()
        return instruct(s, name, row.kind, move.target, adapter, watch_curve(s), moments, **facts)
    vlm = VLM(stitched if row.start == "stitched" else adapter, llm, encoding)
    scores = score_vlm(vlm, held_out(out, s.device), s.data)
    stage = open_stage(s, name)
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.finish(base=move.target, seconds=0.0, scores=scores, **facts)


def tell_move(name, target, adapter, facts):
    K, missing = len(adapter.tokens), adapter.missing
    without = b", ".join(missing[:10]).decode("latin-1")
    print(f"{name}: {target} has {K - len(missing)} of the adapter's {K} words"
          + (f", and goes without {without}" if missing else "")
          + f"; trained parameters before and after the swap: {facts['hash_before']}, "
          f"{facts['hash_after']}", flush=True)


def watch_curve(s):
    """Scores on a few test pictures, for a point of a row's curve."""
    def watch(vlm, exam):
        return score_vlm(vlm, {"test": exam["test"][:CURVE_PICTURES]}, s.data)
    return watch


def run_waves(s, moves, rows):
    """Make all adapters and rows of several moves."""
    with Lanes(s, most=len(moves) * len(rows)) as lanes:
        for wave in zip(*(move.waves(rows) for move in moves)):
            jobs = {job.name: job for jobs in wave for job in jobs if "/" in job.name}
            lanes.run(list(jobs.values()))


def label(llm):
    """A name for an LLM's folder: of a path, its last two parts, as in out-seed1-llm_source."""
    if "/" in llm or os.sep in llm:
        return "-".join(Path(llm).resolve().parts[-2:])
    return llm


# ---- what came out ------------------------------------------------------------------------------

def collect(moves, rows):
    """transfer.json: scores, curves and costs of every row, over the seeds."""
    s = moves[0].row_s
    result = {"seeds": [move.s.seed for move in moves], "source": label(moves[0].source),
              "target": label(moves[0].target),
              "stage2_samples": s.instruct_steps * s.instruct_batch,
              "rows": [collect_row(moves, row) for row in rows]}
    by_name = {row["name"]: row for row in result["rows"]}

    def ratio(name, base):
        """Mean over mean, for each score."""
        above, below = by_name[name]["scores"], by_name[base]["scores"]
        return {k: above[k]["mean"] / max(below[k]["mean"], 1e-9) for k in SCORES}

    result["relative"] = {}
    for suffix in ("", "_after_instruct"):
        for what, base in (("transferred", "native_mlp"), ("transferred", "native_langbridge"),
                           ("zero_shot", "stage1_native_langbridge")):
            name = f"{what}_langbridge{suffix}"
            if name in by_name:
                result["relative"][f"{what}{suffix}_vs_{base}"] = ratio(name, base)
    goal = 0.95 * by_name["native_mlp"]["curve"][-1][1]
    result["samples_to_95"] = {row["name"]: samples_to(row["curve"], goal)
                               for row in result["rows"] if row["stage2"]}
    zero_shot = next(row for row in rows if row.name == "zero_shot_langbridge")
    hashes = [move.config(zero_shot) for move in moves]
    hashes = [[config["hash_before"], config["hash_after"]] for config in hashes]
    result["adapter_hash"] = {"before": hashes[0][0], "after": hashes[0][1], "every_seed": hashes}
    return result


def collect_row(moves, row):
    s, configs = moves[0].row_s, [move.config(row) for move in moves]
    seconds = [config["seconds"] for config in configs]
    if row.stage1 and row.stage2:  # what stage 1 took comes on top
        stage1 = Row("", row.kind, "native", True, False)
        seconds = [a + move.config(stage1)["seconds"] for a, move in zip(seconds, moves)]
    steps1 = s.align_steps if row.stage1 else 0
    steps2 = s.instruct_steps if row.stage2 else 0
    curves = []
    if row.stage2:
        for config in configs:
            curves.append([[step * s.instruct_batch, seen["vqa"], seen["caption_f1"]]
                           for step, seen in config["seen"]])
    mean_curve = [[points[0][0], float(np.mean([vqa for _, vqa, _ in points]))]
                  for points in zip(*curves)]
    scores = {}
    for score in SCORES:
        values = [config["scores"][score] for config in configs]
        scores[score] = {"mean": float(np.mean(values)), "values": values}
    return {"name": row.name, "stage1": row.stage1, "stage2": row.stage2, "scores": scores,
            "curve": mean_curve, "curves": curves, "seconds": float(np.mean(seconds)),
            "steps": steps1 + steps2,
            "samples": steps1 * s.align_batch + steps2 * s.instruct_batch}


def samples_to(curve, goal):
    """Samples until a curve [[samples, score], ..] reaches a goal, linear between points; or None.

    >>> samples_to([[0, 0.5], [100, 0.7], [200, 0.9]], 0.8)
    150.0
    """
    if curve[0][1] >= goal:
        return 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if y1 >= goal:
            return x0 + (x1 - x0) * (goal - y0) / (y1 - y0)
    return None


def draw_curves(r, path):
    """vqa and caption F1 over the samples of stage 2: each row's mean, lowest and highest seed."""
    vqa, f1 = {}, {}
    for row in r["rows"]:
        if row["stage2"]:
            xs, *scores = np.array(row["curves"]).transpose(2, 0, 1)  # 3 x (seeds, points)
            for lines, ys in zip((vqa, f1), scores):
                name = row["name"].replace("_", " ")
                lines[name] = (xs[0], ys.mean(0), ys.min(0), ys.max(0))
    note = (f"Seeds {', '.join(map(str, r['seeds']))}: mean, lowest and highest, on "
            f"{CURVE_PICTURES} test pictures.")
    line_plot(path, f"Stage 2 on {r['target']}", [("vqa", vqa), ("caption F1", f1)],
              "samples of stage 2 (log)", note, log=True)


def print_rows(r):
    """The rows as a table for the terminal."""
    print(f"\n{'':40}stage 1  stage 2" + "".join(f"{score:>12}" for score in SCORES))
    for row in r["rows"]:
        stages = [f"{'yes' if row[stage] else 'no':>{width}}"
                  for stage, width in (("stage1", 7), ("stage2", 9))]
        print(f"{row['name']:40}{''.join(stages)}"
              + "".join(f"{row['scores'][score]['mean']:12.3f}" for score in SCORES))
    for name, values in r["relative"].items():
        print(f"{name + ':':56}" + "".join(f"{values[score]:12.3f}" for score in SCORES))
    print(f"trained parameters of the moved adapter, before and after the swap: "
          f"{r['adapter_hash']['before']} and {r['adapter_hash']['after']}")


# ---- ablations ----------------------------------------------------------------------------------

SWEEPS = {  # what: (setting, its values)
    "K": ("align_K", [16, 32, 0, 1000]),  # 0: the words that conversations use; 1000: all
    "hidden": ("align_hidden", [16, 64, 256]),
    "coefficients": ("align_coefficients", ["softplus", "softmax", "relu", "linear"]),
    "basis": ("align_basis", ["words", "centered"]),
    "patches": ("vit_patch", [16, 8]),  # pixels a side: 3 x 3 and 6 x 6 patches
    "drawn": ("align_drawn", [0.0, 0.25]),
}


def ablate(s, what, seeds, stage2):
    """One setting of the adapter varies: its scores on the source LLM after stage 1, on the target
    as it is and (stage2) after stage 2, and how much it uses words as words.

    Writes ablate_<what>.json, .md and .png. The point with train.py's own value is what transfer.py
    has made, or would make.
    """
    setting, values = SWEEPS[what]
    rows = [row for row in ROWS if row.name == "zero_shot_langbridge"
            or stage2 and row.name == "transferred_langbridge"]
    points = {value: moves_with(s, what, setting, value, seeds) for value in values}
    run_waves(s, [move for moves in points.values() for move in moves], rows)
    sweep = {"setting": setting, "seeds": seeds, "points": []}
    for value, moves in points.items():
        sweep["points"].append({"value": value, **measure_point(moves, rows)})
    out, table = Path(s.out), ablation_table(sweep)
    print(table)
    write_json(out / f"ablate_{what}.json", sweep)
    write_text(out / f"ablate_{what}.md", table)
    draw_ablation(sweep, what, out / f"ablate_{what}.png")


def moves_with(s, what, setting, value, seeds):
    """The moves of one value of a sweep, one for each seed."""
    if getattr(s, setting) == value:
        return [Move(replace(s, seed=seed), "llm_source", "llm_target", seed == s.seed)
                for seed in seeds]
    changed = replace(s, **{setting: value})
    if value in ("relu", "linear"):
        changed.align_drawn = 0.0  # nothing can be drawn by these weights
    if what == "patches":  # another ViT, with the same LLMs
        changed.out = f"{s.out}/ablate/patches{value}"
        borrow(changed, s.out, "llm_source", "llm_target")
        train.make(Job(changed, "vit", train.pretrain_vit))
    return [Move(replace(changed, seed=seed), "llm_source", "llm_target", False,
                 root=f"ablate/{what}/{value}", curves=False) for seed in seeds]


def measure_point(moves, rows):
    """A point of a sweep: {"K", "params", "own_weight", "native", "zero_shot", "transferred"}"""
    weights, native, features = [], [], held_out(moves[0].s.out)["test"]
    for move in moves:
        name = move.adapter("llm_source", "langbridge", "align")
        vlm = load_vlm(move.s.out, name)[1]
        weights.append(own_weight(vlm, features, move.s.data))
        native.append(open_stage(move.s, name).config()["scores"])
    point = {"K": len(vlm.adapter.tokens), "params": train.count(vlm.adapter), "own_weight": weights,
             "native": {score: [scores[score] for scores in native] for score in SCORES}}
    for row in rows:
        scores = [move.config(row)["scores"] for move in moves]
        kind = row.name.removesuffix("_langbridge")
        point[kind] = {score: [values[score] for values in scores] for score in SCORES}
    return point


def draw_ablation(sweep, what, path):
    """vqa and caption F1 over the values: mean, lowest and highest seed."""
    points, panels = sweep["points"], []
    for title, score in (("vqa", "vqa"), ("caption F1", "caption_f1")):
        lines = {}
        for kind in KINDS:
            if kind in points[0]:
                values = np.array([point[kind][score] for point in points])  # (points, seeds)
                lines[kind.replace("_", "-")] = (range(len(points)), values.mean(1), values.min(1),
                                                 values.max(1))
        panels.append((title, lines))
    note = f"Seeds {', '.join(map(str, sweep['seeds']))}: mean, lowest and highest."
    line_plot(path, f"Ablation of {what}", panels, sweep["setting"], note,
              names_of_x=[str(point["value"]) for point in points])


def borrow(s, out, *stages):
    """A folder of its own for the settings s, with finished stages of another one."""
    for stage in stages:
        if not (Path(s.out) / stage / "config.json").exists():
            shutil.copytree(Path(out) / stage, Path(s.out) / stage, dirs_exist_ok=True)
    write_json(Path(s.out) / "settings.json", train.asdict(s))


# ---- python transfer.py -------------------------------------------------------------------------

def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote, whose settings are used "
        "(default: out)")
    add("--seeds", type=seed_list, default="0,1,2", help="seeds of the adapters and of both stages "
        "(default: 0,1,2)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--source", help="LLM folder that the adapter comes from (default: llm_source of --out)")
    add("--target", help="LLM folder that it is moved to (default: llm_target of --out)")
    add("--full-seeds", action="store_true", help="each seed has LLMs and a ViT of its own: train.py "
        "into OUT-seed1 and so on; headline rows only")
    add("--corpus", choices=["both", "sentences"], default="both", help="sentences: LLMs that never "
        "read a raster, in OUT-sentences with the ViT of --out; headline rows only (default: both)")
    add("--rows", choices=["all", "headline"], help="headline: native, transferred, zero-shot and its "
        "controls (default: all)")
    add("--steps", type=int, default=0, help="steps of stage 2 on the target, in every row (default: "
        "a quarter of train.py's)")
    add("--ablate", metavar="WHAT", help=f"vary one setting of the adapter: {', '.join(SWEEPS)}")
    add("--no-stage2", action="store_true", help="with --ablate: no tuning on the target")
    add("--threads", type=int, default=0, help="CPU threads in all; 0: as many as there are cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    args = parser.parse_args(argv)
    if args.steps < 0:
        raise Refused(f"--steps {args.steps}: expected a positive number")
    if args.ablate and args.ablate not in SWEEPS:
        raise Refused(f"--ablate {args.ablate}: expected one of {', '.join(SWEEPS)}")
    own_llms = args.full_seeds or args.corpus == "sentences"
    if own_llms and (args.source or args.target):
        raise Refused("--source and --target name one pair of LLMs, --full-seeds and --corpus make "
                      "their own: use one or the other")
    args.rows = args.rows or ("headline" if own_llms else "all")
    return args


def prepare(args, s):
    """The settings of each seed's folder, [Settings, ..]; what is missing there is made."""
    prepared = []
    for seed in args.seeds:
        own = s
        if args.corpus == "sentences":
            own = replace(s, out=f"{s.out}-sentences", llm_rasters=0.0)
            borrow(own, s.out, "vit")
            with Lanes(own, most=2) as lanes:
                lanes.run([Job(own, llm, train.pretrain_llm) for llm in ("llm_target", "llm_source")])
        elif args.full_seeds and seed != s.seed:
            own = replace(s, seed=seed, out=f"{s.out}-seed{seed}")
            if not (Path(own.out) / "results.json").exists():
                train.main(own)
        prepared.append(own)
    return prepared


def main():
    args = parse(sys.argv[1:])
    s = load_settings(args.out)
    s = replace(s, device=args.device or s.device, threads=args.threads or os.cpu_count(),
                stages="all")
    torch.set_num_threads(s.threads)
    if args.ablate:
        return ablate(s, args.ablate, args.seeds, not args.no_stage2)
    source, target = args.source or "llm_source", args.target or "llm_target"
    if args.reverse:
        source, target = target, source
    moves = []
    for seed, own in zip(args.seeds, prepare(args, s)):
        for llm in (source, target):
            if not (Path(own.out) / llm / "llm.pt").exists():
                raise Refused(f"there is no LLM in {str(Path(own.out) / llm)!r}; "
                              f"'python train.py --out {own.out}' makes llm_source and llm_target")
        trained_here = seed == own.seed and args.corpus == "both"
        moves.append(Move(replace(own, seed=seed), source, target, trained_here, args.steps))
    rows = [row for row in ROWS if args.rows == "all" or row.headline]
    print(f"transfer: {source} to {target}, seeds {args.seeds}, {len(rows)} rows, stage 2 of "
          f"{moves[0].row_s.instruct_steps} steps x {s.instruct_batch} pictures, device {s.device}, "
          f"{s.threads} threads, settings of {args.out}/settings.json", flush=True)
    mode = "_reverse" if args.reverse else ""
    if args.full_seeds:
        mode += "_full-seeds"
    if args.corpus == "sentences":
        mode += "_sentences"
    if args.source or args.target:
        mode += f"_{label(source)}_to_{label(target)}"
    out = Path(args.out)
    clock = train.Clock(out / "transfer" / f"seconds{mode}.json")
    clock.path.parent.mkdir(exist_ok=True)
    if any(move.config(row) is None for move in moves for row in rows):
        with clock:
            run_waves(s, moves, rows)
    result = collect(moves, rows) | {"seconds": clock.total}
    write_json(out / f"transfer{mode}.json", result)
    write_text(out / f"transfer{mode}.md", transfer_table(result))
    draw_curves(result, out / f"transfer{mode}.png")
    print_rows(result)
    print(f"\n{clock.total / 60:.1f} minutes. {out}/transfer{mode}.json, .md and .png. Try next:\n"
          f"  python evaluate.py --out {out} --model {moves[0].stage(ROWS[2])} --image "
          "results/picture.png\n"
          f"  python transfer.py --out {out} --reverse")


if __name__ == "__main__":
    run_command(main)
