"""Move an adapter to another LLM, with every control that could explain the effect away.

    python transfer.py                      after python train.py: the source LLM's adapters on the target LLM, seeds 0, 1, 2
    python transfer.py --reverse            the target's adapters on the source LLM
    python transfer.py --full-seeds         the LLMs and the ViT vary too: a whole train.py for each seed
    python transfer.py --corpus sentences   LLMs that have never read a raster: what does transfer owe to them?
    python transfer.py --source A --target B   any two LLM folders (llm.pt, llm.json, tokenizer.json)

    row                           the adapter                               stage 1 on target    stage 2 on target
    native_mlp                    trained on the target                     yes                  yes
    native_langbridge             trained on the target                     yes                  yes
    transferred_langbridge        from the source, basis swapped            no                   yes
    fresh_langbridge, fresh_mlp   random                                    no                   yes
    shuffled_basis                from the source, words mixed up           no                   yes
    zero_shot_langbridge          from the source, basis swapped            no                   no
    zero_shot_stitched_mlp        from the source, then a linear map        no                   no
    zero_shot_shuffled            from the source, words mixed up           no                   no
    stage1_native_langbridge/mlp  trained on the target                     yes                  no
    blind                         none: no picture                                               yes

A row's name ends in _after_instruct if the source's adapter is the one after stage 2 instead of stage 1. Every stage 2 has
the same budget. Seeds vary the adapters and the data order of both stages; what exists is reused, so a rerun costs seconds.
Writes transfer.json, transfer.md and transfer.png into --out (with the mode in their names, as in transfer_reverse.json).
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from adapter import fingerprint, load_adapter
from data.bpe import shared_tokens
from data.report import line_plot, transfer_table
from evaluate import fail, held_out, load_vlm, own_weight, score_vlm
from model import VLM, load_llm
from train import (STAGES, align, as_flags, clock, finish, finished, instruct, load_settings, new_adapter, run_as_command, run_lanes, run_share, run_stages,
                   save_settings, shared_vocabulary, write)

SCORES = ["vqa", "caption_f1", "pope_acc", "comp_vqa"]
MOMENTS = [0, 1, 2, 5, 10, 20, 50, 100]  # percent of stage 2 at which the curves are measured
CURVE_PICTURES = 100  # test pictures of a curve's points; the rows' scores use them all


@dataclass
class Row:
    name: str
    kind: str  # mlp, langbridge or blind
    start: str  # of the adapter: native, moved, fresh, shuffled, stitched, or none
    stage1: bool  # on the target
    stage2: bool
    source: str = "align"  # the stage after which the source's adapter is taken
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


# ---- how an adapter gets to another LLM ----------------------------------------------------------------------------------

def shuffle_basis(adapter, seed):
    """The rows of the basis permuted: W is what it was, but each word has another word's embedding."""
    order = torch.randperm(len(adapter.E), generator=torch.Generator().manual_seed(seed))
    adapter.E = adapter.E[order]
    return adapter


def stitch(mlp, source, target):
    """The best that can be done for an MLP without training: v' = M v + b, which carries source embeddings to target ones.

    M, b = argmin sum_k |M e_k + b - e'_k|^2 over the words that both LLMs have, e_k and e'_k being a word's two embeddings.
    source, target: (GPT, tiktoken.Encoding).
    """
    words = [t for t in shared_tokens(source[1], target[1]) if len(t) > 1]
    embed = lambda llm, encoding: llm.embed(torch.tensor([encoding.encode_single_token(t) for t in words],
                                                         device=llm.embedding.weight.device)).detach()
    e, e_target = embed(*source), embed(*target)  # (K, C), (K, C')
    e = torch.cat([e, e.new_ones(len(e), 1)], dim=1)
    map = nn.Linear(e.size(1) - 1, e_target.size(1)).to(e.device)
    with torch.no_grad():
        solution = torch.linalg.lstsq(e.cpu(), e_target.cpu(), driver="gelsd").solution  # (C + 1, C'); the smallest one if K < C
        map.weight.copy_(solution[:-1].T)
        map.bias.copy_(solution[-1])
    return nn.Sequential(mlp, map)


def label(llm):
    """A name for an LLM's folder: llm_source; of one that was given by its path, the last two parts of it: out-seed1-llm_source."""
    return "-".join(Path(llm).resolve().parts[-2:]) if "/" in str(llm) or os.sep in str(llm) else str(llm)


class Transfer:
    """One seed's adapters and rows: where they are, and what makes them.

    Adapters that were trained on an LLM lie in transfer/<LLM>/seed<k>/, rows that began elsewhere in .../from_<other LLM>/;
    those that train.py has made (own_seed is its seed) are taken as they are. `steps` of stage 2 in every row: 0 is a quarter
    of train.py's; with `curves` they are examined on the way.
    """

    def __init__(self, s, own_seed, source, target, steps=0, folder="transfer", curves=True):
        self.own_seed, self.source, self.target, self.out, self.root, self.curves = own_seed, source, target, Path(s.out), folder, curves
        self.s, self.row = s, replace(s, instruct_steps=steps or s.instruct_steps // 4)  # the budgets of train.py's stages, and of the rows

    def home(self, llm):
        return f"{self.root}/{label(llm)}/seed{self.s.seed}"

    def trained(self, llm, kind, phase):
        """The stage that trained this adapter on this LLM."""
        own = llm == "llm_source" and self.s.seed == self.own_seed
        return f"{kind}_{phase}" if own else f"{self.home(llm)}/{kind}_{phase}"

    def folder(self, row):
        """The stage that holds a row's scores."""
        if row.start == "native":
            return f"{self.home(self.target)}/native_{row.kind}_instruct" if row.stage2 else self.trained(self.target, row.kind, "align")
        return f"{self.home(self.target)}/from_{label(self.source)}/{row.name}"

    def load(self, llm):
        model, encoding = load_llm(self.out / llm)
        return model.to(self.s.device), encoding

    def words(self):
        return shared_vocabulary(self.s, self.load(self.source)[1], self.load(self.target)[1])

    def train_adapter(self, stage, llm, kind, phase):
        """Both stages on one LLM: a native adapter, or one that will leave it."""
        model, encoding = self.load(llm)
        if phase == "align":
            return align(self.s, stage, new_adapter(self.s, kind, model, self.words()).set_basis(model, encoding), model, encoding, llm)
        adapter = load_adapter(self.out / self.trained(llm, kind, "align")).to(self.s.device).set_basis(model, encoding)
        instruct(self.s, stage, adapter, model, encoding, llm)

    def make_row(self, stage, row):
        llm, encoding = self.load(self.target)
        before, adapter = None, None
        if row.start == "native":
            adapter = load_adapter(self.out / self.trained(self.target, row.kind, "align"))
        elif row.start == "fresh":
            adapter = new_adapter(self.s, row.kind, llm, self.words())
        elif row.start != "none":
            adapter = load_adapter(self.out / self.trained(self.source, row.kind, row.source))
            before = fingerprint(adapter)
        if row.start == "stitched":
            adapter = stitch(adapter.to(self.s.device), self.load(self.source), (llm, encoding))
            moved = {"hash_before": before, "hash_after": fingerprint(adapter[0])}
        elif adapter is not None:
            adapter.to(self.s.device).set_basis(llm, encoding)
            moved = {"hash_before": before, "hash_after": fingerprint(adapter)} if before else {}
        else:
            moved = {}
        if row.start == "shuffled":
            shuffle_basis(adapter, self.s.seed)
        if row.start == "moved":
            K, missing = len(adapter.tokens), adapter.missing
            print(f"{stage}: {self.target} has {K - len(missing)} of the adapter's {K} words"
                  + (f", and goes without {b', '.join(missing[:10]).decode('latin-1')}" if missing else "")
                  + f"; trained parameters before and after the swap: {moved['hash_before']}, {moved['hash_after']}")
        if row.stage2:
            watch = lambda vlm, features: score_vlm(vlm, {"test": features["test"][:CURVE_PICTURES]}, self.s.world)
            moments = sorted({self.row.instruct_steps * m // 100 for m in MOMENTS}) if self.curves else ()
            return instruct(self.row, stage, adapter, llm, encoding, self.target, watch=watch, moments=moments, known=moved)
        exam = {split: x.to(self.s.device) for split, x in held_out(self.out).items()}
        scores = score_vlm(VLM(adapter, llm, encoding), exam, self.s.world)
        (self.out / stage).mkdir(parents=True, exist_ok=True)
        finish(self.row, stage, base=self.target, seconds=0.0, scores=scores, **moved)

    def stages(self, rows):
        """Two waves of chains of stages, {stage: (settings, function)}: the adapters, then the rows, which need them."""
        adapters, made = [], {}
        kinds = [kind for kind in ("langbridge", "mlp") if any(row.kind == kind for row in rows)]
        for llm in (self.source, self.target):  # in this order lanes that take the next chain end together
            for kind in kinds:
                if llm == self.source:
                    sources = {row.source for row in rows if row.kind == kind and row.start in ("moved", "shuffled", "stitched")}
                    phases = ["align", "instruct"][:1 + ("instruct" in sources)] if sources else []
                else:
                    phases = ["align"] if any(row.kind == kind and row.start == "native" for row in rows) else []
                chain = []
                for phase in phases:
                    stage = self.trained(llm, kind, phase)
                    if "/" in stage:  # train.py's own are there already
                        made[stage] = (self.s, lambda s, stage, a=(llm, kind, phase): self.train_adapter(stage, *a))
                        chain.append(stage)
                if chain:
                    adapters.append(chain)
        rows = [row for row in rows if row.stage2 or row.start != "native"]
        made |= {self.folder(row): (self.row, lambda s, stage, row=row: self.make_row(stage, row)) for row in rows}
        return made, adapters, [[self.folder(row)] for row in rows]


def borrow(s, out, *stages):
    """A folder of its own for the settings s, with these finished stages of another one."""
    for stage in stages:
        if not (Path(s.out) / stage / "config.json").exists():
            shutil.copytree(Path(out) / stage, Path(s.out) / stage, dirs_exist_ok=True)
    save_settings(s)


def plan(transfers, rows):
    """Transfer.stages of several seeds as one: ({stage: (settings, function)}, chains of the first wave, of the second)"""
    table, adapters, makers = {}, [], []
    for transfer in transfers:
        made, first, then = transfer.stages(rows)
        table, adapters, makers = table | made, adapters + first, makers + then
    return table, adapters, makers


# ---- the table -----------------------------------------------------------------------------------------------------------

def collect(transfers, rows):
    """transfer.json: scores, curves and costs of every row, over the seeds."""
    mean = lambda values: {"mean": float(np.mean(values)), "values": values}
    result = {"seeds": [t.s.seed for t in transfers], "source": label(transfers[0].source), "target": label(transfers[0].target),
              "stage2_samples": transfers[0].row.instruct_steps * transfers[0].row.instruct_batch, "rows": []}
    s = transfers[0].row
    for row in rows:
        configs = [finished(t.row if row.stage2 or row.start != "native" else t.s, t.folder(row)) for t in transfers]
        stage1 = [finished(t.s, t.trained(t.target, row.kind, "align"))["seconds"] if row.stage1 and row.stage2 else 0.0 for t in transfers]
        steps = [s.align_steps * row.stage1, s.instruct_steps * row.stage2]
        curves = [c["seen"] for c in configs if row.stage2]
        curve = [[points[0][0] * s.instruct_batch, float(np.mean([p[1]["vqa"] for p in points]))] for points in zip(*curves)]
        result["rows"].append({
            "name": row.name, "stage1": row.stage1, "stage2": row.stage2,
            "scores": {score: mean([c["scores"][score] for c in configs]) for score in SCORES},
            "curve": curve,
            "curves": [[[step * s.instruct_batch, seen["vqa"], seen["caption_f1"]] for step, seen in c] for c in curves],
            "seconds": float(np.mean([c["seconds"] for c in configs]) + np.mean(stage1)),
            "steps": sum(steps), "samples": steps[0] * s.align_batch + steps[1] * s.instruct_batch})
    by_name = {row["name"]: row for row in result["rows"]}
    mean_of = lambda name, score: by_name[name]["scores"][score]["mean"]
    result["relative"] = {}
    for suffix in ("", "_after_instruct"):
        for what, base in [("transferred", "native_mlp"), ("transferred", "native_langbridge"), ("zero_shot", "stage1_native_langbridge")]:
            if f"{what}_langbridge{suffix}" in by_name:
                result["relative"][f"{what}{suffix}_vs_{base}"] = {
                    score: mean_of(f"{what}_langbridge{suffix}", score) / max(mean_of(base, score), 1e-9) for score in SCORES}
    goal = 0.95 * by_name["native_mlp"]["curve"][-1][1]
    result["samples_to_95"] = {row["name"]: samples_to(row["curve"], goal) for row in result["rows"] if row["stage2"]}
    hashes = [finished(t.row, t.folder(next(r for r in rows if r.name == "zero_shot_langbridge"))) for t in transfers]
    result["adapter_hash"] = {"before": hashes[0]["hash_before"], "after": hashes[0]["hash_after"],
                              "every_seed": [[h["hash_before"], h["hash_after"]] for h in hashes]}
    return result


def samples_to(curve, goal):
    """How many samples until a curve [[samples, score], ..] reaches a goal, linear between its points; None: never.

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
    """vqa and caption F1 over the samples of stage 2, one line a row, with the band between the lowest and the highest seed."""
    panels = {"vqa": {}, "caption F1": {}}
    for row in r["rows"]:
        if row["stage2"]:
            xs, *scores = np.array(row["curves"]).transpose(2, 0, 1)  # 3 x (seeds, points)
            for lines, ys in zip(panels.values(), scores):
                lines[row["name"].replace("_", " ")] = xs[0], ys.mean(0), ys.min(0), ys.max(0)
    line_plot(path, f"Stage 2 on {r['target']}", list(panels.items()), "samples of stage 2 (log)",
              f"Seeds {', '.join(map(str, r['seeds']))}: mean, lowest and highest, on {CURVE_PICTURES} test pictures.", log=True)


# ---- ablations (python evaluate.py --ablate) ------------------------------------------------------------------------------

SWEEPS = {  # what: (setting, values)
    "K": ("align_K", [16, 32, 0, 1000]),  # 0: the words that conversations use; 1000: every token that is shared
    "hidden": ("align_hidden", [16, 64, 256]),
    "coefficients": ("align_coefficients", ["softplus", "softmax", "relu", "linear"]),
    "basis": ("align_basis", ["words", "centered"]),
    "patches": ("vit_patch", [16, 8]),  # pixels a side: 3 x 3 and 6 x 6 patches, each with a ViT of its own
    "drawn": ("align_drawn", [0.0, 0.25]),
}


def ablate(s, what, seeds, stage2, command, stages=None):
    """Sweep one setting of the adapter: its score on the source LLM after stage 1, and on the target as it is and after stage 2,
    and how much it uses words as words.

    The point of train.py's own setting is what transfer.py has made or would make.
    Returns [{"value", "K", "params", "own_weight", "native": {score: [a value for each seed]}, "zero_shot", "transferred"}], a point each.
    """
    name, values = SWEEPS[what]
    rows = [row for row in ROWS if row.name == "zero_shot_langbridge" or row.name == "transferred_langbridge" and stage2]
    points = {}
    for value in values:
        usual = getattr(s, name) == value
        own = s if usual else replace(s, **{name: value}, out=f"{s.out}/ablate/patches{value}" if what == "patches" else s.out)
        points[value] = [Transfer(replace(own, seed=seed), s.seed if usual else None, "llm_source", "llm_target",
                                  **{} if usual else dict(folder=f"ablate/{what}/{value}", curves=False)) for seed in seeds]
        if own.out != s.out and stages is None:
            borrow(own, s.out, "llm_source", "llm_target")
            run_stages({"vit": (own, STAGES["vit"])}, ["vit"])
    table, *waves = plan([t for transfers in points.values() for t in transfers], rows)
    if stages is not None:
        return run_share(table, stages)
    for chains in waves:
        run_lanes(s.threads, command, table, *chains)
    result = []
    for value, transfers in points.items():
        features = held_out(transfers[0].out)["test"]
        vlms = [load_vlm(t.out, t.trained("llm_source", "langbridge", "align"))[1] for t in transfers]
        adapter = vlms[0].adapter
        S = lambda stages: {score: [c["scores"][score] for c in stages] for score in SCORES}
        result.append({"value": value, "K": len(adapter.tokens), "params": sum(p.numel() for p in adapter.parameters()),
                       "own_weight": [own_weight(vlm, features, s.world) for vlm in vlms],
                       "native": S([finished(t.s, t.trained("llm_source", "langbridge", "align")) for t in transfers])}
                      | {row.name.removesuffix("_langbridge"): S([finished(t.row, t.folder(row)) for t in transfers]) for row in rows})
    return result


# ---- the command ---------------------------------------------------------------------------------------------------------

def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote, whose settings are used (default: out)")
    add("--seeds", default="0,1,2", help="seeds of the adapters and of both stages (default: 0,1,2)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--source", help="LLM folder that the adapter comes from (default: llm_source of --out)")
    add("--target", help="LLM folder that it is moved to (default: llm_target of --out)")
    add("--full-seeds", action="store_true", help="each seed has LLMs and ViT of its own: train.py into OUT-seed1 and so on, headline rows only")
    add("--corpus", choices=["both", "sentences"], default="both",
        help="sentences: LLMs that never read a raster, made in OUT-sentences with the ViT of --out, headline rows only (default: both)")
    add("--rows", choices=["all", "headline"], help="headline: native, transferred, zero-shot and its controls (default: all)")
    add("--steps", type=int, default=0, help="steps of stage 2 on the target, in every row (default: a quarter of train.py's)")
    add("--threads", type=int, default=0, help="CPU threads in all; 0: as many as there are cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    add("--stages", help=argparse.SUPPRESS)  # what a process of its own is to do
    parser.error = lambda message: fail(f"{message}; see python transfer.py --help")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"\d+(,\d+)*", args.seeds):
        fail(f"--seeds {args.seeds}: expected numbers with commas between them, as in 0,1,2")
    if args.steps < 0:
        fail(f"--steps {args.steps}: expected a positive number")
    if (args.full_seeds or args.corpus == "sentences") and (args.source or args.target):
        fail("--source and --target name one pair of LLMs; --full-seeds and --corpus make their own: use one or the other")
    args.rows = args.rows or ("headline" if args.full_seeds or args.corpus == "sentences" else "all")
    return args


def settings_of(args, s):
    """{seed: settings of the folder that holds its LLMs and its ViT}"""
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.corpus == "sentences":
        return {seed: replace(s, out=f"{s.out}-sentences", llm_rasters=0.0) for seed in seeds}
    if args.full_seeds:
        return {seed: s if seed == s.seed else replace(s, seed=seed, out=f"{s.out}-seed{seed}") for seed in seeds}
    return {seed: s for seed in seeds}


def prepare(args, settings):
    """What a mode needs and is not there, train.py makes."""
    train = Path(__file__).with_name("train.py")
    for s in settings.values():
        flags = as_flags(s)
        if args.corpus == "sentences":
            borrow(s, args.out, "vit")
            run_lanes(s.threads, [str(train), *flags], {stage: (s, STAGES[stage]) for stage in STAGES}, ["llm_source"], ["llm_target"])
        elif args.full_seeds and not (Path(s.out) / "results.json").exists():
            if subprocess.run([sys.executable, str(train), *flags]).returncode:
                fail(f"train.py could not make {s.out!r}; its message is above")


def main(argv):
    args = parse(argv)
    s = load_settings(args.out)
    s = replace(s, device=args.device or s.device, threads=args.threads or os.cpu_count(), stages="all")
    torch.set_num_threads(s.threads)
    settings = settings_of(args, s)
    if args.stages is None:
        prepare(args, settings)
    source, target = args.source or "llm_source", args.target or "llm_target"
    source, target = (target, source) if args.reverse else (source, target)
    transfers = []
    for seed, own in settings.items():
        for llm in (source, target):
            if not (Path(own.out) / llm / "llm.pt").exists():
                fail(f"there is no LLM in {str(Path(own.out) / llm)!r}; 'python train.py --out {own.out}' makes llm_source and llm_target")
        transfers.append(Transfer(replace(own, seed=seed), None if args.corpus == "sentences" else own.seed, source, target,
                                  args.steps))
    rows = [row for row in ROWS if args.rows == "all" or row.headline]
    table, *waves = plan(transfers, rows)
    command = [__file__, *argv]
    if args.stages is not None:
        return run_share(table, args.stages)
    print(f"transfer: {source} to {target}, seeds {args.seeds}, {len(rows)} rows, stage 2 of {transfers[0].row.instruct_steps} steps x "
          f"{s.instruct_batch} pictures, device {s.device}, {s.threads} threads, settings of {args.out}/settings.json", flush=True)
    mode = "".join(["_reverse" * args.reverse, "_full-seeds" * args.full_seeds, "_sentences" * (args.corpus == "sentences"),
                    f"_{label(source)}_to_{label(target)}" if args.source or args.target else ""])
    out, new = Path(args.out), not all(finished(own, stage) for stage, (own, _) in table.items())
    seconds = out / "transfer" / f"seconds{mode}.json"
    seconds.parent.mkdir(exist_ok=True)
    with clock(seconds, new):
        for chains in waves:
            run_lanes(s.threads, command, table, *chains)
    result = collect(transfers, rows) | {"seconds": json.loads(seconds.read_text(encoding="utf-8"))}
    for suffix, text in ((".json", json.dumps(result, indent=1)), (".md", transfer_table(result))):
        write(out / f"transfer{mode}{suffix}", lambda path: path.write_text(text, encoding="utf-8"))
    draw_curves(result, out / f"transfer{mode}.png")
    print_rows(result)
    print(f"\n{result['seconds'] / 60:.1f} minutes. {out}/transfer{mode}.json, .md and .png. Try next:\n"
          f"  python evaluate.py --out {out} --model {transfers[0].folder(ROWS[2])} --image picture.png\n"
          f"  python transfer.py --out {out} --reverse")


def print_rows(r):
    """The rows as a table for the terminal."""
    print("\n" + " " * 40 + "stage 1  stage 2" + "".join(f"{score:>12}" for score in SCORES))
    for row in r["rows"]:
        print(f"{row['name']:40}{'yes' if row['stage1'] else 'no':>7}{'yes' if row['stage2'] else 'no':>9}"
              + "".join(f"{row['scores'][score]['mean']:12.3f}" for score in SCORES))
    for name, values in r["relative"].items():
        print(f"{name + ':':56}" + "".join(f"{values[score]:12.3f}" for score in SCORES))
    print("trained parameters of the moved adapter, before and after the swap: " + " and ".join(r["adapter_hash"][k] for k in ("before", "after")))


if __name__ == "__main__":
    run_as_command(main)
