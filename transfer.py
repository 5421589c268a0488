"""Use an adapter on another LLM, with baselines and controls.

    python transfer.py                  after train.py: from the source LLM to the target LLM
    python transfer.py --rows all       more rows
    python transfer.py --reverse        from the target LLM to the source LLM

    row                        the adapter on the target LLM                    stage 1, 2 there
    zero_shot_langbridge       E is swapped: the target's embeddings              no       no
    zero_shot_shuffled         control: the same, word order permuted             no       no
    transferred_langbridge     E is swapped (the paper's protocol)                no       yes
    aligned_langbridge, _mlp   native: trained on the target                      yes      no
    native_langbridge, _mlp    native                                             yes      yes
    zero_shot_linear_map       an MLP, then a linear map between embeddings       no       no
    zero_shot_nearest_words    an MLP, its tokens mixed of their nearest words    no       no
    text_langbridge, _mlp      a tile's top two words, written as text            no       no
    text_probe                 no adapter: a classifier with labels, as text      no       no
    blind                      no picture                                                  yes

    with --rows all
    paper_zero_shot, paper_transferred   raw weights, nothing whitened or sampled: the paper's form
    tuned_linear_map, tuned_nearest_words, tuned_shuffled   as above              no       yes
    fresh_langbridge, _mlp     untrained                                          no       yes
    zero_shot_blind            no picture                                         no       no
    zero_shot_after_instruct, transferred_after_instruct    from the source's adapter after stage 2

Stage 2 has the same budget in every row, by default two fifths of train.py's: short enough for the
start to matter. Finished rows are kept. Writes transfer.json into --out.
"""
import math
import os
import time
from argparse import ArgumentTypeError
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from adapter import EMPTY, LangBridge, MLPAdapter, fingerprint, load_adapter, token
from data.corpus import GRID
from data.files import Refused, lock, read_json, write_json
from data.run import Job, Parser, make_stages, number, run_command
from evaluate import TEMPERATURES, best_on_val, held_out, nearest_words, score_vlm
from model import VLM, load_llm
from train import (check, example_picture, load_settings, new_adapter, open_stage, say_scores,
                   train_vlm, training_features, words_of)
from vision import ridge

RIDGES = [0.1, 0.3, 1.0, 3.0]  # of the linear map; one is chosen on val
PROBED = 1500  # labelled pictures that the probe has seen
PAPER = dict(align_coefficients="linear", align_whiten=False, align_sampled=0.0)


# ---- swap the embeddings, and controls ----------------------------------------------------------

# Each function makes a row's adapter for the target LLM, from an adapter that was trained on the
# source LLM (or, in native rows, on the target). source and target are (LLM, Encoding).

def swap_embeddings(s, adapter, source, target):
    """The target's embeddings of the same words; W stays as it is. A native adapter started there,
    and stays as it is altogether."""
    return adapter.set_basis(*target)


def shuffle_words(s, adapter, source, target):
    """Control: the same weights, each for another word."""
    adapter.tokens = shuffled(adapter.tokens, s.seed)
    return adapter.set_basis(*target)


def shuffled(tokens, seed):
    """The words in another order. The empty word keeps its place, so it is still seen where
    something is."""
    words = [t for t in tokens if t != EMPTY]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
    others = iter([words[i] for i in order])
    return [t if t == EMPTY else next(others) for t in tokens]


def fresh(s, adapter, source, target, kind):
    """An untrained adapter, whatever there was."""
    return new_adapter(s, kind, *target)


def blind(s, adapter, source, target):
    """No adapter, and no picture."""
    return None


# ---- baselines: an MLP on another LLM -----------------------------------------------------------

def mix_nearest_words(s, mlp, source, target):
    """Each token of an MLP becomes a mixture of its nearest words, in the target's embeddings."""
    tokens = words_of(s, source[1])
    return best_of(s, target, [nearest_words(mlp, *source, tokens, temperature).set_basis(*target)
                               for temperature in TEMPERATURES])


def map_linearly(s, mlp, source, target):
    """An MLP, then the linear map that best takes the source's embeddings of words to the
    target's."""
    known = [t for t in words_of(s, source[1]) if t in target[1].token_byte_values()]
    with torch.no_grad():
        v = mlp(training_features(s)[:500].float().to(s.device)).flatten(0, 1)  # (n, C)
        e, e_target = embed(*source, known), embed(*target, known)  # (K, C), (K, C')
    return best_of(s, target, [linear_map(mlp, v, e, e_target, strength) for strength in RIDGES])


def best_of(s, target, adapters):
    """The adapter that does best on val."""
    vlms = {i: VLM(adapter, *target) for i, adapter in enumerate(adapters)}
    val = held_out(s.out, s.device, ["val"], s.dataset)["val"]
    return adapters[best_on_val(vlms, val, s.dataset)]


def embed(llm, encoding, tokens):
    """The embeddings of tokens that the LLM has: (K, C)"""
    ids = [encoding.encode_single_token(t) for t in tokens]
    return llm.embed(torch.tensor(ids, device=llm.embedding.weight.device))


def linear_map(mlp, v, e, e_target, strength):
    """An MLP followed by a linear map between two tables of embeddings; again an MLP.

        v' = mean of e' + scale (v - mean of e) M;  M: ridge regression from e - mean to e' - mean

    e (K, C) and e' = e_target (K, C') are the embeddings of K words; `scale` gives some of the
    MLP's visual tokens, v (n, C), the size of words.
    """
    d, d_target = e - e.mean(0), e_target - e_target.mean(0)
    M = ridge(d, d_target, strength)  # (C, C')
    M *= d_target.norm(dim=1).mean() / ((v - e.mean(0)) @ M).norm(dim=1).mean()
    first, _, last = mlp.net
    mapped = MLPAdapter(first.in_features, M.size(1), first.out_features).to(v.device)
    mapped.net[0].load_state_dict(first.state_dict())
    with torch.no_grad():  # the map becomes a part of the last layer
        mapped.net[2].weight.copy_(M.T @ last.weight)
        mapped.net[2].bias.copy_((last.bias - e.mean(0)) @ M + e_target.mean(0))
    return mapped


# ---- baselines: words as text -------------------------------------------------------------------

class TopWords(nn.Module):
    """The text baseline: whole words instead of mixtures.

    The 2 x 2 patches of a tile vote. A tile whose top word is the empty word gets it four times;
    any other gets its two top words in both rows, as rasters have them. What is known is the form
    of a raster, not which words are colours or shapes.
    """

    def __init__(self, adapter):
        super().__init__()
        self.adapter, self.tokens, self.E = adapter, adapter.tokens, adapter.E

    def weights(self, x):
        """x (B, N, D) -> one word per patch (B, N, K)"""
        votes = in_tiles(self.adapter.weights(x)).sum(2)  # (B, tiles, K)
        empty = self.tokens.index(EMPTY)
        is_empty = votes.argmax(-1, keepdim=True) == empty  # (B, tiles, 1)
        votes[..., empty] = -torch.inf
        pair = votes.topk(2).indices.masked_fill(is_empty, empty)  # (B, tiles, 2)
        words = from_tiles(torch.cat([pair, pair], dim=-1))  # (B, N)
        return F.one_hot(words, len(self.tokens)).float()  # (B, N, K)

    def forward(self, x):
        return self.weights(x) @ self.E  # (B, N, C)


def in_tiles(x):
    """Patches in tiles of 2 x 2: (B, N, ..) -> (B, N / 4, 4, ..), each in raster order"""
    g = math.isqrt(x.size(1)) // 2
    x = x.unflatten(1, (g, 2, g, 2)).transpose(2, 3)  # (B, g, g, 2, 2, ..)
    return x.flatten(3, 4).flatten(1, 2)


def from_tiles(x):
    """The way back: (B, N / 4, 4, ..) -> (B, N, ..)"""
    g = math.isqrt(x.size(1))
    x = x.unflatten(1, (g, g)).unflatten(3, (2, 2)).transpose(2, 3)  # (B, g, 2, g, 2, ..)
    return x.flatten(1, 4)


def write_text(s, adapter, source, target, make):
    """The adapter of another row, as text."""
    return TopWords(make(s, adapter, source, target))


class Probe(LangBridge):
    """A classifier that needs labels: ridge regression from a tile's 2 x 2 patches to the words for
    what it shows."""

    def fit(self, x, words):
        """x (n, N, D); words: the words of each tile (n, tiles, K), 1 for those that it shows"""
        x, y = self.tiles(x).flatten(0, 1).cpu().double(), words.flatten(0, 1).cpu().double()
        self.solution = ridge(x, y).float().to(words.device)  # (4 D + 1, K)
        return self

    def tiles(self, x):
        """x (B, N, D) -> (B, tiles, 4 D + 1), a one at the end"""
        return F.pad(in_tiles(x).flatten(2), (0, 1), value=1.0)

    def weights(self, x):
        """x (B, N, D) -> (B, N, K); the patches of a tile have the same"""
        scores = self.tiles(x) @ self.solution  # (B, tiles, K)
        scores = scores.masked_fill(~self.present, -torch.inf)
        return from_tiles(scores[:, :, None].expand(-1, -1, 4, -1))  # (B, N, K)


def probe(s, adapter, source, target):
    """A Probe that has seen labelled training pictures."""
    tokens = [EMPTY, *(token(word) for words in s.dataset.kinds.values() for word in words)]
    x = training_features(s)[:PROBED].float().to(s.device)  # (n, N, D)
    patches = in_tiles(torch.arange(x.size(1))[None])[0].tolist()  # of each tile
    words = torch.zeros(len(x), len(patches), len(tokens), device=x.device)
    words[..., tokens.index(EMPTY)] = 1.0
    for seen, _ in s.dataset.seen("train", x):
        tile = words[seen.picture, patches.index(seen.patches)]
        tile.zero_()
        tile[[tokens.index(token(word)) for word in seen.words.values()]] = 1.0
    return Probe(x.size(2), tokens).to(s.device).fit(x, words).set_basis(*target)


# ---- rows ---------------------------------------------------------------------------------------

class Row(NamedTuple):
    name: str
    make: Callable  # (s, adapter, source, target) -> adapter
    start: str = ""  # the stage that holds the adapter
    stage1: bool = False  # on the target
    stage2: bool = False
    headline: bool = True


def trained_on(llm, kind, phase="align"):
    """The stage of an adapter that was trained on this LLM; train.py makes those on the source."""
    return f"{kind}_{phase}" if llm == "llm_source" else f"on_{llm}/{kind}_{phase}"


def all_rows(source, target):
    bridge, mlp = trained_on(source, "langbridge"), trained_on(source, "mlp")
    tuned, paper = trained_on(source, "langbridge", "instruct"), f"paper_{source}/langbridge_align"
    own_bridge, own_mlp = trained_on(target, "langbridge"), trained_on(target, "mlp")
    swap, mix = swap_embeddings, mix_nearest_words
    fresh_bridge, fresh_mlp = (partial(fresh, kind=kind) for kind in ("langbridge", "mlp"))
    return [  # the most telling first
        Row("zero_shot_langbridge", swap, bridge),
        Row("zero_shot_shuffled", shuffle_words, bridge),
        Row("transferred_langbridge", swap, bridge, stage2=True),
        Row("aligned_langbridge", swap, own_bridge, stage1=True),
        Row("native_langbridge", swap, own_bridge, stage1=True, stage2=True),
        Row("aligned_mlp", swap, own_mlp, stage1=True),
        Row("native_mlp", swap, own_mlp, stage1=True, stage2=True),
        Row("blind", blind, stage2=True),  # long jobs first: the short ones fill the end
        Row("zero_shot_linear_map", map_linearly, mlp),
        Row("zero_shot_nearest_words", mix, mlp),
        Row("text_langbridge", partial(write_text, make=swap), bridge),
        Row("text_mlp", partial(write_text, make=mix), mlp),
        Row("text_probe", partial(write_text, make=probe)),
        Row("paper_zero_shot", swap, paper, headline=False),
        Row("paper_transferred", swap, paper, stage2=True, headline=False),
        Row("tuned_linear_map", map_linearly, mlp, stage2=True, headline=False),
        Row("tuned_nearest_words", mix, mlp, stage2=True, headline=False),
        Row("tuned_shuffled", shuffle_words, bridge, stage2=True, headline=False),
        Row("fresh_langbridge", fresh_bridge, stage2=True, headline=False),
        Row("fresh_mlp", fresh_mlp, stage2=True, headline=False),
        Row("zero_shot_blind", blind, headline=False),
        Row("zero_shot_after_instruct", swap, tuned, headline=False),
        Row("transferred_after_instruct", swap, tuned, stage2=True, headline=False)]


def can_be_made(row, s):
    """Text is laid out for 6 x 6 patches, a probe needs labels, and only an MLP as wide as its LLM
    has nearest words."""
    needs_raster = row.name.startswith("text_") and s.vit_size != GRID * s.vit_patch
    needs_labels = row.name == "text_probe" and not s.dataset.kinds
    needs_width = row.name in ("zero_shot_nearest_words", "tuned_nearest_words", "text_mlp")
    return not (needs_raster or needs_labels or needs_width and s.align_mlp_hidden)


def make_row(s, stage, row, source, target, tuned):
    """A row's VLM and its scores; rows with stage 2 are trained with the settings `tuned`."""
    its_llm, llm = (load_llm(Path(s.out) / name) for name in (source, target))
    its_llm[0].to(s.device), llm[0].to(s.device)
    adapter = load_adapter(Path(s.out) / row.start).to(s.device) if row.start else None
    adapter = row.make(s, adapter, its_llm, llm)
    if row.stage2:  # "blind": no adapter is looked for, where none is given
        return train_vlm(tuned, stage, "blind", "instruct", target, adapter)
    if row.name == "zero_shot_langbridge":
        lost = [t.decode("utf-8", "replace").strip() for t in adapter.missing]
        print(f"{stage.name}: of the adapter's {len(adapter.tokens)} words {target} lacks "
              f"{len(lost)} ({', '.join(lost[:10]) or 'none'})", flush=True)
    exam = held_out(s.out, s.device, data=s.dataset)
    stage.finish(base=target, seconds=0.0, hash=fingerprint(adapter),
                 scores=score_vlm(VLM(adapter, *llm), exam, s.dataset))


def align_as_in_paper(s, stage, llm_name):
    train_vlm(replace(s, **PAPER), stage, "langbridge", "align", llm_name)


def adapter_jobs(s, source, target):
    """The adapters that train.py has not made: {stage's name: Job}"""
    paper, jobs = f"paper_{source}/langbridge_align", {}
    for llm in {source, target} - {"llm_source"}:
        for kind in ("langbridge", "mlp"):
            align, instruct = (trained_on(llm, kind, phase) for phase in ("align", "instruct"))
            about = {"kind": kind, "llm_name": llm}
            jobs[align] = Job(train_vlm, open_stage(s, align), about | {"phase": "align"})
            jobs[instruct] = Job(train_vlm, open_stage(s, instruct),
                                 about | {"phase": "instruct"}, [align])
    stage = open_stage(replace(s, **PAPER), paper)
    return jobs | {paper: Job(align_as_in_paper, stage, {"llm_name": source})}


def stage_of(s, tuned, row, folder):
    """The stage that holds a row's scores; of a native adapter after stage 1, its own."""
    if row.stage1 and not row.stage2:
        return open_stage(s, row.start)
    changes = PAPER if row.start.startswith("paper_") else {}
    return open_stage(replace(tuned if row.stage2 else s, **changes), f"{folder}/{row.name}")


def jobs_for(s, rows, stages, tuned, source, target):
    """What must be made for these rows, each after the adapter that it starts from."""
    adapters, jobs = adapter_jobs(s, source, target), {}
    for row in rows:
        start = adapters.get(row.start)
        for needed in [*start.after, row.start] if start else []:
            jobs[needed] = adapters[needed]
        if row.stage2 or not row.stage1:
            about = {"row": row, "source": source, "target": target, "tuned": tuned}
            jobs[row.name] = Job(make_row, stages[row.name], about, [row.start])
    return list(jobs.values())


# ---- python transfer.py -------------------------------------------------------------------------

def rows_asked(text):
    """A type for flags: headline, all, or names of rows"""
    names = [row.name for row in all_rows("llm_source", "llm_target")]
    if text not in ("headline", "all") and not {*text.split(",")} <= {*names}:
        raise ArgumentTypeError(f"{text!r}: expected headline, all, or some of {', '.join(names)}")
    return text


def parse():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--rows", type=rows_asked, default="headline", help="headline, all, or names with commas "
        "(default: headline)")
    add("--steps", type=number(1), help="steps of stage 2 (default: two fifths of train.py's)")
    add("--rate", type=float, default=1.0, help="times the learning rates of stage 2 (default: 1)")
    add("--threads", type=number(0), default=0, help="CPU threads in all; 0: as many as there are "
        "cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    return parser.parse_args()


def main():
    args = parse()
    s = load_settings(args.out)
    s.threads, s.device = args.threads or os.cpu_count(), args.device or s.device
    tuned = replace(s, instruct_steps=args.steps or s.instruct_steps * 2 // 5,
                    instruct_lr=args.rate * s.instruct_lr,
                    instruct_matrix_lr=args.rate * s.instruct_matrix_lr)
    check(tuned)
    torch.set_num_threads(s.threads)
    lock(s.out)
    source, target, name = "llm_source", "llm_target", "transfer"
    if args.reverse:
        source, target, name = target, source, "transfer_reverse"
    if args.steps or args.rate != 1:  # another budget than the usual one
        name += f"_steps{tuned.instruct_steps}_rate{args.rate:g}"
    for stage in (open_stage(s, made) for made in ("vit", source, target)):
        if stage.config() is None:  # refused now, not after training; so are other settings
            raise Refused(f"there is no {str(stage.folder)!r}; run 'python train.py --out {s.out}' "
                          "first")
    rows = [row for row in all_rows(source, target) if can_be_made(row, s) and (
        args.rows == "all" or row.name in args.rows.split(",") or
        args.rows == "headline" and row.headline)]
    stages = {row.name: stage_of(s, tuned, row, name) for row in rows}
    by_stage, began = {stages[row.name].name: row for row in rows}, time.perf_counter()
    print(f"{name}: {source} to {target}, {len(rows)} rows, stage 2 of {tuned.instruct_steps} x "
          f"{s.instruct_batch} pictures, device {s.device}, {s.threads} threads", flush=True)

    def say(stage):
        if stage.name in by_stage:
            print(row_line(by_stage[stage.name], stage.config()["scores"], s.dataset), flush=True)
        else:  # an adapter that a row needs
            say_scores(stage)

    make_stages(s, jobs_for(s, rows, stages, tuned, source, target), say)
    configs = {row.name: stages[row.name].config() for row in rows}
    guesses = s.dataset.guesses({split: s.dataset.count(split) for split in s.dataset.EXAM})
    result = {
        "seed": s.seed, "source": source, "target": target,
        "commit": ", ".join(sorted({config["commit"] for config in configs.values()})),
        "stage2_samples": tuned.instruct_steps * s.instruct_batch,
        "rows": [{"name": row.name, "stage1": row.stage1, "stage2": row.stage2,
                  "seconds": configs[row.name]["seconds"], "scores": configs[row.name]["scores"]}
                 for row in rows], **guesses}
    print(f"\n{'':28}stage 1  stage 2" + "".join(f"{score:>14}" for score in s.dataset.SCORES))
    for row in rows:
        print(row_line(row, configs[row.name]["scores"], s.dataset))
    for guess, scores in guesses.items():
        print(row_line(Row(guess, None), scores, s.dataset))
    if "zero_shot_langbridge" in configs:
        start = read_json(Path(s.out) / trained_on(source, "langbridge") / "config.json")
        hashes = result["adapter_hash"] = {"before": start["hash"],
                                           "after": configs["zero_shot_langbridge"]["hash"]}
        print("hash of the adapter's trained parameters, before and after the swap: "
              f"{' and '.join(hashes.values())}")
    write_json(Path(s.out) / f"{name}.json", result)
    model = f" --model {name}/transferred_langbridge" if "transferred_langbridge" in configs else ""
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes. Scores: {s.out}/{name}.json. Try "
          f"next:\n  python evaluate.py --out {s.out}{model} --image {example_picture(s)}\n"
          f"  python transfer.py --out {s.out} {'--rows all' if args.reverse else '--reverse'}")


def row_line(row, scores, data):
    had = ["yes" if stage else "no" for stage in (row.stage1, row.stage2)] if row.make else ["", ""]
    return (f"{row.name:28}{had[0]:>7}{had[1]:>9}" +
            "".join(f"{scores[score]:14.3f}" for score in data.SCORES))


if __name__ == "__main__":
    run_command(main)
