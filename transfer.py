"""Move an adapter to another LLM, with controls for what else might explain the effect.

    python transfer.py                      after train.py: from the source LLM to the target
    python transfer.py --seeds 0,1,2 --rows all   every row, with three seeds
    python transfer.py --reverse            from the target to the source
    python transfer.py --full-seeds         a train.py run per seed, so LLMs and ViT vary too
    python transfer.py --corpus sentences   LLMs that have never read a raster
    python transfer.py --source A --target B   any LLM folders, absolute or relative to --out
    python transfer.py --ablate WHAT        one setting varies

    row                           the adapter                          stage 1, 2 on the target
    zero_shot_langbridge          from the source, basis swapped       no       no
    zero_shot_shuffled            from the source, words mixed up      no       no
    zero_shot_stitched_mlp        from the source, then a linear map   no       no
    stage1_native_langbridge/mlp  trained on the target                yes      no
    transferred_langbridge        from the source, basis swapped       no       yes
    native_langbridge/mlp         trained on the target                yes      yes
    blind                         none: no picture                              yes
    fresh_langbridge/mlp          random                               no       yes     (--rows all)
    shuffled_basis                from the source, words mixed up      no       yes     (--rows all)

A row named _after_instruct (with --rows all) starts from the source's adapter after stage 2 instead
of stage 1. Every row's stage 2 has the same budget, by default two fifths of train.py's: short
enough for the start to matter. A seed decides the adapters and the order of data in both stages.
Finished stages are reused. Writes transfer.json, .md and .png into --out, with the mode in the
name.
"""
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

import train
from adapter import fingerprint, load_adapter
from data.bpe import shared_tokens
from data.files import Refused, read_json, write_json, write_text
from data.run import (Job, Parser, lanes, run_command, say_scores, seconds_in, seed_list,
                      stopwatch)
from data.scoring import SCORES
from evaluate import held_out, load_vlm, own_weight, score_vlm
from model import VLM, load_llm
from results.collect import collect_transfer, print_transfer, row_head, row_line
from results.figures import plot_curves, plot_sweep
from results.report import ablation_table, transfer_table
from train import (Settings, align, check, instruct, load_settings, new_adapter, open_stage,
                   size_of)

MEASURE_AT = [0, 1, 2, 5, 10, 20, 50, 100]  # percent of stage 2, for the curves
CURVE_PICTURES = 100  # test pictures behind each point of a curve; final scores use all


class Row(NamedTuple):
    name: str
    kind: str  # mlp, langbridge or blind
    start: str  # native, moved, fresh, shuffled, stitched, or none
    stage2: bool = False  # on the target
    after: str = "align"  # the source's adapter is taken after this stage
    headline: bool = False

    @property
    def stage1(self):
        """Whether the adapter had stage 1 on the target."""
        return self.start == "native"

    @property
    def from_source(self):
        return self.start in ("moved", "shuffled", "stitched")


ROWS = [  # the most telling first
    Row("zero_shot_langbridge", "langbridge", "moved", headline=True),
    Row("zero_shot_shuffled", "langbridge", "shuffled", headline=True),
    Row("zero_shot_stitched_mlp", "mlp", "stitched", headline=True),
    Row("stage1_native_langbridge", "langbridge", "native", headline=True),
    Row("transferred_langbridge", "langbridge", "moved", stage2=True, headline=True),
    Row("native_langbridge", "langbridge", "native", stage2=True, headline=True),
    Row("stage1_native_mlp", "mlp", "native", headline=True),
    Row("native_mlp", "mlp", "native", stage2=True, headline=True),
    Row("blind", "blind", "none", stage2=True, headline=True),
    Row("fresh_langbridge", "langbridge", "fresh", stage2=True),
    Row("fresh_mlp", "mlp", "fresh", stage2=True),
    Row("shuffled_basis", "langbridge", "shuffled", stage2=True),
    Row("transferred_langbridge_after_instruct", "langbridge", "moved", True, "instruct"),
    Row("zero_shot_langbridge_after_instruct", "langbridge", "moved", after="instruct"),
    Row("zero_shot_shuffled_after_instruct", "langbridge", "shuffled", after="instruct"),
]


# ---- how an adapter gets to another LLM ---------------------------------------------------------

def shuffle_words(adapter, seed):
    """Permute which word each output of W stands for; W itself is unchanged."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(adapter.tokens), generator=generator)
    adapter.tokens = [adapter.tokens[i] for i in order]
    return adapter


def stitch(mlp, source, target):
    """What an MLP can do without training: v' = M v + b maps source embeddings to target ones.

    M, b = argmin sum_k |M e_k + b - e'_k|^2 over the words that both LLMs have; e_k and e'_k are a
    word's two embeddings. source, target: (GPT, tiktoken.Encoding).
    """
    (_, encoding), (_, target_encoding) = source, target
    words = [t for t in shared_tokens(encoding, target_encoding) if len(t) > 1]

    def embed(llm, encoding):
        ids = [encoding.encode_single_token(t) for t in words]
        return llm.embed(torch.tensor(ids, device=llm.embedding.weight.device)).detach()

    e, e_target = embed(*source), embed(*target)  # (K, C), (K, C')
    e = torch.cat([e, e.new_ones(len(e), 1)], dim=1)  # (K, C + 1)
    # (C + 1, C'); gelsd takes the minimum-norm solution where K < C + 1
    solution = torch.linalg.lstsq(e.cpu(), e_target.cpu(), driver="gelsd").solution
    linear = nn.Linear(e.size(1) - 1, e_target.size(1)).to(e.device)
    with torch.no_grad():
        linear.weight.copy_(solution[:-1].T)
        linear.bias.copy_(solution[-1])
    return nn.Sequential(mlp, linear)


def bring(s, row, move, llm, encoding):
    """A row's adapter as it arrives at the target LLM, before any stage 2; None for blind."""
    if row.start == "none":
        return None
    if row.start == "fresh":
        return new_adapter(s, row.kind, llm, encoding).set_basis(llm, encoding)
    adapter = load_adapter(move.start_of(row).folder).to(s.device)
    if row.start == "stitched":
        source, its_encoding = load_llm(Path(s.out) / move.source)
        return stitch(adapter, (source.to(s.device), its_encoding), (llm, encoding))
    if row.start == "shuffled":
        shuffle_words(adapter, s.seed)
    return adapter.set_basis(llm, encoding)


def make_row(s, stage, row, move):
    """Make a row: bring the adapter, run stage 2 if the row has it, score."""
    llm, encoding = load_llm(Path(s.out) / move.target)
    llm.to(s.device)
    adapter = bring(s, row, move, llm, encoding)
    if row.start == "moved":
        lost = b", ".join(adapter.missing[:10]).decode("latin-1") or "none"
        print(f"{stage.name}: of the adapter's {len(adapter.tokens)} words {move.target} lacks "
              f"{len(adapter.missing)} ({lost})", flush=True)

    def measure(vlm, exam):
        return score_vlm(vlm, {"test": exam["test"][:CURVE_PICTURES]}, s.data)

    if row.stage2:
        at = {s.instruct_steps * percent // 100 for percent in MEASURE_AT} if move.curves else ()
        return instruct(s, stage, row.kind, move.target, adapter, measure, at)
    scores = score_vlm(VLM(adapter, llm, encoding), held_out(s.out, s.device), s.data)
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.finish(base=move.target, seconds=0.0, scores=scores,
                 hash_before=fingerprint(load_adapter(move.start_of(row).folder)),
                 hash_after=fingerprint(adapter))


@dataclass
class Move:
    """From one LLM to another, with one seed: the stages of its adapters and rows.

    Adapters trained on an LLM are in transfer/<LLM>/seed<k>/; rows that came from another LLM are
    in from_<that LLM>/ inside it. train.py's own stages are reused.
    """
    s: Settings  # of the adapters: its seed, and train.py's budgets
    source: str
    target: str
    own: bool  # whether the seed is train.py's, so that its adapters can be used
    steps: int = 0  # of stage 2 in every row; 0: two fifths of train.py's
    root: str = "transfer"
    curves: bool = True  # whether to record learning curves

    def __post_init__(self):
        self.row_s = replace(self.s, instruct_steps=self.steps or self.s.instruct_steps * 2 // 5)

    def folder_of(self, llm):
        return f"{self.root}/{label(llm)}/seed{self.s.seed}"

    def by_train(self, llm):
        """Whether train.py has trained this LLM's adapters."""
        return self.own and llm == "llm_source"

    def adapter(self, llm, kind, phase):
        """The stage that holds the adapter trained on this LLM."""
        name = f"{kind}_{phase}"
        return open_stage(self.s, name if self.by_train(llm) else f"{self.folder_of(llm)}/{name}")

    def llm_of(self, row):
        """The LLM that a row's adapter was trained with."""
        return self.source if row.from_source else self.target

    def start_of(self, row):
        """The stage that holds the adapter that a row starts from."""
        return self.adapter(self.llm_of(row), row.kind, row.after)

    def stage_of(self, row):
        """The stage that holds a row's scores."""
        if row.stage1 and not row.stage2:
            return self.start_of(row)
        name = f"from_{label(self.source)}/{row.name}"
        if row.stage1:
            name = f"native_{row.kind}_instruct"
        if self.steps:  # another budget than the usual one
            name = f"steps{self.steps}/{name}"
        return open_stage(self.row_s, f"{self.folder_of(self.target)}/{name}")

    def jobs(self, rows):
        """The rows' jobs, each after those of the adapter that it starts from."""
        jobs = {}  # by folder: several rows may start from one adapter
        for row in rows:
            after = []
            if row.from_source or row.stage1:
                after = [self.start_of(row)]
                for job in self.adapter_jobs(row):
                    jobs.setdefault(job.stage.folder, job)
            if row.stage2 or not row.stage1:
                stage, about = self.stage_of(row), {"row": row, "move": self}
                jobs[stage.folder] = Job(make_row, self.row_s, stage, about, after)
        return list(jobs.values())

    def adapter_jobs(self, row):
        """The jobs that train the adapter that a row starts from; none if train.py has."""
        llm, start = self.llm_of(row), self.start_of(row)
        if self.by_train(llm):
            read_json(start.folder / "config.json")  # or Refused, before anything is made
            return []
        about, aligned = {"kind": row.kind, "llm_name": llm}, self.adapter(llm, row.kind, "align")
        jobs = [Job(align, self.s, aligned, about)]
        if row.after == "instruct":
            jobs.append(Job(instruct, self.s, start, about, [aligned]))
        return jobs


def run_moves(s, moves, rows, say=say_scores):
    """Make all adapters and rows, one seed after the other."""
    with lanes(s, len(moves) * len(rows), say) as run:
        run([job for move in moves for job in move.jobs(rows)])


def label(llm):
    """A folder name for an LLM; for a path, its last two parts: out-seed1-llm_source."""
    if "/" in llm or os.sep in llm:
        return "-".join(Path(llm).resolve().parts[-2:])
    return llm


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
    """Vary one setting: scores on the source LLM after stage 1, on the target as moved and (stage2)
    tuned, and how much weight falls on an object's own words.

    Writes ablate_<what>.json, .md and .png. train.py's own value reuses transfer.py's stages.
    """
    setting, values = SWEEPS[what]
    names = {"zero_shot_langbridge"}
    if stage2:
        names.add("transferred_langbridge")
    rows = [row for row in ROWS if row.name in names]
    points = [prepare_point(s, what, setting, value, seeds) for value in values]
    run_moves(s, [move for moves in points for move in moves], rows)
    sweep = {"setting": setting, "seeds": seeds, "points": []}
    for value, moves in zip(values, points):
        sweep["points"].append({"value": value, **measure_point(moves, rows)})
    out, table = Path(s.out), ablation_table(sweep)
    print(table)
    write_json(out / f"ablate_{what}.json", sweep)
    write_text(out / f"ablate_{what}.md", table)
    plot_sweep(sweep, out / f"ablate_{what}.png", f"Ablation of {what}")


def prepare_point(s, what, setting, value, seeds):
    """One point's moves, one per seed. Trains the ViT here if the point needs another."""
    if getattr(s, setting) == value:  # train.py's own: transfer.py's stages will do
        return [Move(replace(s, seed=seed), "llm_source", "llm_target", seed == s.seed)
                for seed in seeds]
    changes = {setting: value}
    if value in ("relu", "linear"):
        changes["align_drawn"] = 0.0  # no word can be sampled by these weights
    s = replace(s, **changes)
    if what == "patches":  # another ViT, with the same LLMs
        s = copy_stages(s, f"{s.out}/ablate/patches{value}", "llm_source", "llm_target")
        with lanes(s, most=1) as run:
            run([Job(train.pretrain_vit, s, open_stage(s, "vit"))])
    return [Move(replace(s, seed=seed), "llm_source", "llm_target", False,
                 root=f"ablate/{what}/{value}", curves=False) for seed in seeds]


def measure_point(moves, rows):
    """A point of a sweep: {"K", "params", "own_weight", "native", "zero_shot", "transferred"}"""
    aligned = [move.adapter("llm_source", "langbridge", "align") for move in moves]
    features, data, weights = held_out(moves[0].s.out)["test"], moves[0].s.data, []
    for move, stage in zip(moves, aligned):
        _, vlm = load_vlm(move.s.out, stage.name)
        weights.append(own_weight(vlm, features, data))
    point = {"K": len(vlm.adapter.tokens), "params": size_of(vlm.adapter), "own_weight": weights}
    stages = {"native": aligned}
    for row in rows:
        stages[row.name.removesuffix("_langbridge")] = [move.stage_of(row) for move in moves]
    for where, of_seeds in stages.items():
        scores = [stage.config()["scores"] for stage in of_seeds]
        point[where] = {score: [values[score] for values in scores] for score in SCORES}
    return point


def copy_stages(s, out, *stages):
    """Copy finished stages into another folder, and return the settings of that folder."""
    for stage in stages:
        if not (Path(out) / stage / "config.json").exists():
            shutil.copytree(Path(s.out) / stage, Path(out) / stage, dirs_exist_ok=True)
    s = replace(s, out=out)
    write_json(Path(out) / "settings.json", asdict(s))
    return s


# ---- python transfer.py -------------------------------------------------------------------------

def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--seeds", type=seed_list, help="seeds of the adapters and of both stages (default: 0; "
        "0,1,2 with --ablate and --full-seeds)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--source", default="llm_source", help="LLM folder that the adapter comes from")
    add("--target", default="llm_target", help="LLM folder that it is moved to")
    add("--full-seeds", action="store_true", help="each seed has LLMs and a ViT of its own: "
        "train.py into OUT-seed1 and so on")
    add("--corpus", choices=["both", "sentences"], default="both", help="sentences: LLMs that "
        "never read a raster, in OUT-sentences with the ViT of --out")
    add("--rows", choices=["headline", "all"], default="headline",
        help="all: fresh adapters, words shuffled before stage 2, adapters after instruct, too")
    add("--steps", type=int, default=0,
        help="steps of stage 2 on the target, in every row (default: two fifths of train.py's)")
    add("--ablate", choices=list(SWEEPS), help="vary one setting; of the other flags "
        "only --out, --seeds, --no-stage2, --threads and --device apply")
    add("--no-stage2", action="store_true", help="with --ablate: do not tune on the target")
    add("--threads", type=int, default=0, help="CPU threads in all; 0: as many as there are cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    args = parser.parse_args(argv)
    for name in ("steps", "threads"):
        if getattr(args, name) < 0:
            raise Refused(f"--{name} {getattr(args, name)}: expected 0 for the default, or more")
    if args.ablate:
        for name in ("reverse", "source", "target", "full_seeds", "corpus", "rows", "steps"):
            if getattr(args, name) != parser.get_default(name):
                raise Refused(f"--ablate does not go with --{name.replace('_', '-')}")
    elif args.no_stage2:
        raise Refused("--no-stage2 needs --ablate; without it, see --rows")
    own_llms = args.full_seeds or args.corpus == "sentences"
    if own_llms and (args.source, args.target) != ("llm_source", "llm_target"):
        raise Refused("--source and --target name one pair of LLMs, --full-seeds and --corpus make "
                      "their own: use one or the other")
    args.seeds = args.seeds or ([0, 1, 2] if args.ablate or args.full_seeds else [0])
    if args.reverse:
        args.source, args.target = args.target, args.source
    return args


def name_of(args):
    """The name of the files that a run writes: transfer, and its mode."""
    name = "transfer"
    if args.reverse:
        name += "_reverse"
    if args.full_seeds:
        name += "_full-seeds"
    if args.corpus == "sentences":
        name += "_sentences"
    if {args.source, args.target} != {"llm_source", "llm_target"}:
        name += f"_{label(args.source)}_to_{label(args.target)}"
    return name


def prepare_seed(seed, args, s):
    """The settings of this seed's folder; LLMs (or a whole run) that are missing are made first."""
    if args.corpus == "sentences":
        s = copy_stages(replace(s, llm_rasters=0.0), f"{s.out}-sentences", "vit")
        with lanes(s, most=2) as run:
            run([Job(train.pretrain_llm, s, open_stage(s, "llm_target")),
                 Job(train.pretrain_llm, s, open_stage(s, "llm_source"))])
    elif args.full_seeds and seed != s.seed:
        s = replace(s, seed=seed, out=f"{s.out}-seed{seed}")
        if not (Path(s.out) / "results.json").exists():
            train.main(s)
    for llm in (args.source, args.target):
        read_json(Path(s.out) / llm / "llm.json")  # fails now, not after training
    return s


def main():
    args = parse(sys.argv[1:])
    s = replace(load_settings(args.out), stages="all", threads=args.threads or os.cpu_count())
    s.device = args.device or s.device
    check(s)
    torch.set_num_threads(s.threads)
    if args.ablate:
        return ablate(s, args.ablate, args.seeds, not args.no_stage2)
    moves = []
    for seed in args.seeds:
        its = prepare_seed(seed, args, s)
        own = seed == its.seed and args.corpus == "both"
        moves.append(Move(replace(its, seed=seed), args.source, args.target, own, args.steps))
    rows = [row for row in ROWS if args.rows == "all" or row.headline]
    print(f"transfer: {args.source} to {args.target}, seeds {args.seeds}, {len(rows)} rows, "
          f"stage 2 of {moves[0].row_s.instruct_steps} steps x {s.instruct_batch} pictures, device "
          f"{s.device}, {s.threads} threads, settings of {args.out}/settings.json", flush=True)
    out, name = Path(args.out), name_of(args)
    clock = out / "transfer" / f"seconds{name.removeprefix('transfer')}.json"
    clock.parent.mkdir(exist_ok=True)
    pictures = {split: s.data.count(split) for split in ("test", "comp")}
    guesses = {"chance": s.data.chance(pictures), "majority": s.data.majority(pictures)}
    by_folder = {move.stage_of(row).folder: row for move in moves for row in rows}

    def show(name, stage1, stage2, scores):
        print(row_line(name, stage1, stage2, [scores[score] for score in SCORES]), flush=True)

    def say(job):
        row = by_folder.get(job.stage.folder)
        if row is None:
            return say_scores(job)  # an adapter that a row needs
        seed = f", seed {job.s.seed}" if len(moves) > 1 else ""
        show(row.name + seed, row.stage1, row.stage2, job.stage.config()["scores"])

    print(f"\n{row_head(SCORES)}", flush=True)
    for guess, scores in guesses.items():
        show(guess, "", "", scores)
    if any(move.stage_of(row).config() is None for move in moves for row in rows):
        with stopwatch(clock):
            run_moves(s, moves, rows, say)
    configs = {row.name: [move.stage_of(row).config() for move in moves] for row in rows}
    aligned = {row.name: [move.start_of(row).config() for move in moves]
               for row in rows if row.stage1}
    result = collect_transfer(rows, SCORES, configs, aligned, seeds=args.seeds,
                              source=label(args.source), target=label(args.target), **guesses)
    result["seconds"] = seconds_in(clock)
    write_json(out / f"{name}.json", result)
    write_text(out / f"{name}.md", transfer_table(result))
    plot_curves(result, out / f"{name}.png", f"on {CURVE_PICTURES} test pictures.")
    print_transfer(result)
    (row,) = [row for row in ROWS if row.name == "transferred_langbridge"]
    transferred = moves[0].stage_of(row).name
    print(f"\n{seconds_in(clock) / 60:.1f} minutes. {out}/{name}.json, .md and .png. Try next:\n"
          f"  python evaluate.py --out {moves[0].s.out} --model {transferred} "
          "--image results/picture.png\n"
          f"  python transfer.py --out {out} {'--rows all' if args.reverse else '--reverse'}")


if __name__ == "__main__":
    run_command(main)
