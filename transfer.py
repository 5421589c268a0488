"""Use an adapter on another LLM, with baselines and controls.

    python transfer.py                  after train.py: from the source LLM to the target LLM
    python transfer.py --rows all       more rows
    python transfer.py --reverse        from the target LLM to the source LLM

    row                        the adapter on the target LLM        trained there: stage 1, stage 2
    zero_shot_langbridge       E is swapped: the target's embeddings              no       no
    zero_shot_shuffled         control: the same, word order permuted             no       no
    transferred_langbridge     E is swapped (the paper's protocol)                no       yes
    aligned_langbridge, _mlp   native: trained on the target                      yes      no
    native_langbridge, _mlp    native                                             yes      yes
    zero_shot_linear_map       an MLP, then a linear map between embeddings       no       no
    zero_shot_nearest_words    an MLP, its tokens mixed of their nearest words    no       no
    text_langbridge, _mlp      a place's top two words, written as text           no       no
    text_probe                 no adapter: a classifier with labels, as text      no       no
    blind                      no picture                                         no       yes

    with --rows all
    FORM_zero_shot, _aligned, _transferred    other LangBridges, see FORMS
    zero_shot_own_mark         E is swapped, with the target's own empty word     no       no
    tuned_linear_map, tuned_nearest_words, tuned_shuffled   as above              no       yes
    fresh_langbridge, _mlp     untrained                                          no       yes
    zero_shot_blind            no picture                                         no       no
    zero_shot_after_instruct, transferred_after_instruct    from the source's adapter after stage 2

Stage 2 has the same budget in every row, by default half of train.py's: short enough for the
start to matter. Each row has the learning rates that suit it (RATES). Finished rows are kept.
Writes transfer.json into --out.
"""
import math
import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Callable, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from adapter import EMPTY, LangBridge, MLPAdapter, fingerprint, load_adapter, token, written
from data.corpus import DIALECTS, GRID
from data.files import Refused, lock, write_json
from data.run import Job, Parser, command, make_stages, number, say
from evaluate import (TEMPERATURES, best_adapter, guesses, held_out, nearest_words, score_line,
                      score_vlm)
from model import VLM, load_llm
from train import (check, load_settings, new_adapter, open_stage, say_scores, train_vlm,
                   training_features, words_of)
from vision import ridge

RIDGES = [0.1, 0.3, 1.0, 3.0]  # of the linear map; one is chosen on val
PROBED = 1500  # labelled pictures that the probe has seen
FORMS = {  # the paper's raw weights, and what lies between them and ours: settings of stage 1
    "paper": dict(align_coefficients="linear", align_whiten=False, align_word_loss=0.0,
                  align_lr=0.002),  # the best of five on val
    "linear": dict(align_coefficients="linear", align_word_loss=0.0, align_lr=0.002),  # again
    "unwhitened": dict(align_whiten=False)}  # .006, as for ours, is the best of three
RATES = {  # of a row: times stage 2's learning rates; with --data, 1. The best on val, seed 0,
    # by results/budgets.py
    "transferred_langbridge": 2.0, "native_langbridge": 2.0, "native_mlp": 2.0, "blind": 2.0,
    "paper_transferred": 2.0, "linear_transferred": 2.0, "unwhitened_transferred": 1.0,
    "tuned_linear_map": 4.0, "tuned_nearest_words": 4.0, "tuned_shuffled": 16.0,
    "fresh_langbridge": 8.0, "fresh_mlp": 2.0, "transferred_after_instruct": 2.0}


# ---- swap the embeddings, and controls ----------------------------------------------------------

# Each function makes a row's adapter for the target LLM, from an adapter that was trained on the
# source LLM (or, in native rows, on the target). source and target are (LLM, Encoding).

def swap_embeddings(s, adapter, source, target):
    """The target's embeddings of the same words; W stays as it is. (For a native adapter this
    changes nothing.)"""
    return adapter.set_basis(*target)


def swap_own_mark(s, adapter, source, target):
    """E is swapped, and the target's own empty word takes the place of ours."""
    mark = DIALECTS[s.llm_target_dialect].empty.encode()
    adapter.tokens = [mark if t == EMPTY else t for t in adapter.tokens]
    return adapter.set_basis(*target)


def shuffle_words(s, adapter, source, target):
    """Control: the same weights, each for another word. The empty word keeps its place, so it is
    still seen where something is."""
    words = [t for t in adapter.tokens if t != EMPTY]
    random.Random(s.seed).shuffle(words)
    adapter.tokens = [t if t == EMPTY else words.pop() for t in adapter.tokens]
    return adapter.set_basis(*target)


def fresh(s, adapter, source, target, kind):
    """An untrained adapter, whatever there was."""
    return new_adapter(s, kind, *target)


def blind(s, adapter, source, target):
    """No adapter, and no picture."""
    return None


# ---- baselines: an MLP on another LLM -----------------------------------------------------------

def mix_nearest_words(s, mlp, source, target, choose=best_adapter):
    """Each token of an MLP becomes a mixture of its nearest words, in the target's embeddings."""
    tokens = words_of(s, source[1])
    mixed = [nearest_words(mlp, *source, tokens, temperature).set_basis(*target)
             for temperature in TEMPERATURES]
    return choose(mixed, *target, s.out, s.dataset)


def map_linearly(s, mlp, source, target, choose=best_adapter):
    """An MLP, then the linear map that best takes the source's embeddings of words to the
    target's."""
    known = [t for t in words_of(s, source[1]) if t in target[1].token_byte_values()]
    v = mlp(training_features(s)[:500].float().to(s.device)).flatten(0, 1)  # (n, C)
    e, e_target = embed(*source, known), embed(*target, known)  # (K, C), (K, C')
    mapped = [linear_map(mlp, v, e, e_target, strength) for strength in RIDGES]
    return choose(mapped, *target, s.out, s.dataset)


def embed(llm, encoding, tokens):
    """The embeddings of tokens that the LLM has: (K, C)"""
    return llm.embed(torch.tensor([encoding.encode_single_token(t) for t in tokens]))


@torch.no_grad()
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
    mapped.net[2].weight.copy_(M.T @ last.weight)  # the map becomes a part of the last layer
    mapped.net[2].bias.copy_((last.bias - e.mean(0)) @ M + e_target.mean(0))
    return mapped


# ---- baselines: words as text -------------------------------------------------------------------

class TopWords(nn.Module):
    """The text baseline: whole words instead of mixtures.

    The 2 x 2 patches of a place vote. A place whose top word is the empty word gets it four times;
    any other gets its two top words in both rows, as rasters have them. What is known is the form
    of a raster, not which words are colours or shapes.
    """

    def __init__(self, adapter):
        super().__init__()
        self.adapter, self.tokens, self.E = adapter, adapter.tokens, adapter.E

    def weights(self, x):
        """x (B, N, D) -> one word per patch (B, N, K)"""
        votes = in_places(self.adapter.weights(x)).sum(2)  # (B, places, K)
        empty = self.tokens.index(EMPTY)
        is_empty = votes.argmax(-1, keepdim=True) == empty  # (B, places, 1)
        votes[..., empty] = -torch.inf
        pair = votes.topk(2).indices.masked_fill(is_empty, empty)  # (B, places, 2)
        words = from_places(torch.cat([pair, pair], dim=-1))  # (B, N)
        return F.one_hot(words, len(self.tokens)).float()  # (B, N, K)

    def forward(self, x):
        return self.weights(x) @ self.E  # (B, N, C)


def in_places(x):
    """Patches by place, 2 x 2 each: (B, N, ..) -> (B, N / 4, 4, ..), each in raster order"""
    g = math.isqrt(x.size(1)) // 2
    x = x.unflatten(1, (g, 2, g, 2)).transpose(2, 3)  # (B, g, g, 2, 2, ..)
    return x.flatten(3, 4).flatten(1, 2)


def from_places(x):
    """The way back: (B, N / 4, 4, ..) -> (B, N, ..)"""
    moved = in_places(torch.arange(4 * x.size(1))[None]).flatten()  # (N,), where patches have gone
    return x.flatten(1, 2)[:, moved.argsort()]  # (B, N, ..)


class Probe(LangBridge):
    """A classifier that needs labels: ridge regression from a place's 2 x 2 patches to the words
    for what it shows. (A LangBridge whose weights come from `solution`; its W is not used.)

    x (n, N, D); words: those of each place (n, places, K), 1 for those that it shows
    """

    def __init__(self, tokens, x, words):
        super().__init__(x.size(2), tokens)
        x, y = self.places(x).flatten(0, 1).double(), words.flatten(0, 1).double()
        self.solution = ridge(x.cpu(), y.cpu()).float().to(words.device)  # (4 D + 1, K)

    def places(self, x):
        """x (B, N, D) -> (B, places, 4 D + 1)"""
        return F.pad(in_places(x).flatten(2), (0, 1), value=1.0)  # a 1 at the end: an offset

    def weights(self, x):
        """x (B, N, D) -> (B, N, K); the patches of a place have the same"""
        scores = self.places(x) @ self.solution  # (B, places, K)
        scores = scores.masked_fill(~self.present, -torch.inf)
        return from_places(scores[:, :, None].expand(-1, -1, 4, -1))  # (B, N, K)


def probe(s, adapter, source, target):
    """A Probe that has seen labelled training pictures."""
    tokens = [EMPTY, *(token(word) for words in s.dataset.kinds.values() for word in words)]
    x = training_features(s)[:PROBED].float().to(s.device)  # (n, N, D)
    patches = in_places(torch.arange(x.size(1))[None])[0].tolist()  # of each place
    words = torch.zeros(len(x), len(patches), len(tokens), device=x.device)
    for seen, _ in s.dataset.seen("train", x):
        shown = [tokens.index(token(word)) for word in seen.words.values()]
        words[seen.picture, patches.index(seen.patches), shown] = 1.0
    words[..., tokens.index(EMPTY)] = 1.0 - words.amax(-1)  # of the places that show nothing
    return Probe(tokens, x, words).to(s.device).set_basis(*target)


# ---- rows ---------------------------------------------------------------------------------------

class Row(NamedTuple):
    name: str
    make: Callable  # (s, adapter, source, target) -> adapter
    start: str = ""  # the stage that holds the adapter
    stage1: bool = False  # on the target
    stage2: bool = False
    text: bool = False  # its TopWords, in place of the adapter
    headline: bool = True
    changes: dict = {}  # settings other than the run's


def all_rows(source, target):
    """Every Row, in the order of the tables. A start without a folder is a stage of train.py."""
    folders = {"llm_source": "", "llm_target": "on_llm_target/"}  # of adapters trained on this LLM
    here, there = folders[source], folders[target]
    bridge, mlp, tuned = f"{here}langbridge_align", f"{here}mlp_align", f"{here}langbridge_instruct"
    own_bridge, own_mlp = f"{there}langbridge_align", f"{there}mlp_align"
    formed = []
    for form, changes in FORMS.items():
        its = dict(make=swap_embeddings, headline=False, changes=changes)
        aligned, own = (f"{form}_{llm}/langbridge_align" for llm in (source, target))
        formed += [Row(f"{form}_zero_shot", start=aligned, **its),
                   Row(f"{form}_aligned", start=own, stage1=True, **its),
                   Row(f"{form}_transferred", start=aligned, stage2=True, **its)]
    return [  # the most telling first
        Row("zero_shot_langbridge", swap_embeddings, bridge),
        Row("zero_shot_shuffled", shuffle_words, bridge),
        Row("transferred_langbridge", swap_embeddings, bridge, stage2=True),
        Row("aligned_langbridge", swap_embeddings, own_bridge, stage1=True),
        Row("native_langbridge", swap_embeddings, own_bridge, stage1=True, stage2=True),
        Row("aligned_mlp", swap_embeddings, own_mlp, stage1=True),
        Row("native_mlp", swap_embeddings, own_mlp, stage1=True, stage2=True),
        Row("blind", blind, stage2=True),  # long jobs first: the short ones fill the end
        Row("zero_shot_linear_map", map_linearly, mlp),
        Row("zero_shot_nearest_words", mix_nearest_words, mlp),
        Row("text_langbridge", swap_embeddings, bridge, text=True),
        Row("text_mlp", mix_nearest_words, mlp, text=True),
        Row("text_probe", probe, text=True),
        *formed,
        Row("zero_shot_own_mark", swap_own_mark, bridge, headline=False),
        Row("tuned_linear_map", map_linearly, mlp, stage2=True, headline=False),
        Row("tuned_nearest_words", mix_nearest_words, mlp, stage2=True, headline=False),
        Row("tuned_shuffled", shuffle_words, bridge, stage2=True, headline=False),
        Row("fresh_langbridge", partial(fresh, kind="langbridge"), stage2=True, headline=False),
        Row("fresh_mlp", partial(fresh, kind="mlp"), stage2=True, headline=False),
        Row("zero_shot_blind", blind, headline=False),
        Row("zero_shot_after_instruct", swap_embeddings, tuned, headline=False),
        Row("transferred_after_instruct", swap_embeddings, tuned, stage2=True, headline=False)]


def can_be_made(row, s):
    """Text is laid out for 6 x 6 patches, and a probe needs labels."""
    needs_raster = row.text and s.vit_size != GRID * s.vit_patch
    return not (needs_raster or row.make == probe and not s.dataset.kinds)


def make_row(s, row, source, target, stage):
    """A row's adapter, tuned or as it is, and its scores."""
    source_llm, llm = (load_llm(Path(s.out) / name) for name in (source, target))
    source_llm[0].to(s.device), llm[0].to(s.device)
    adapter = load_adapter(Path(s.out) / row.start).to(s.device) if row.start else None
    adapter = row.make(s, adapter, source_llm, llm)
    adapter = TopWords(adapter) if row.text else adapter
    if getattr(adapter, "missing", []):  # they get no weight
        say(f"{row.name}: {target} lacks {', '.join(map(written, adapter.missing[:10]))}")
    if row.stage2:
        return train_vlm(s, stage, "instruct", llm_name=target, adapter=adapter)
    scores = score_vlm(VLM(adapter, *llm), held_out(s.out, s.device, data=s.dataset), s.dataset)
    stage.finish(base=target, seconds=0.0, hash=fingerprint(adapter), scores=scores)


# ---- what must be made for them -----------------------------------------------------------------

def adapter_jobs(s, start, llm):
    """The Jobs that make an adapter on an LLM, {stage's name: Job}; for stage 2, first stage 1."""
    jobs = {}
    for name in sorted({start.replace("instruct", "align"), start}):
        kind, phase = name.split("/")[1].split("_")
        make = partial(train_vlm, s, kind=kind, phase=phase, llm_name=llm)
        jobs[name] = Job(make, open_stage(s, name), after=[*jobs])
    return jobs


def jobs_for(s, tuned, rows, source, target, folder, rate):
    """({row's name: the stage that holds its scores}, the Jobs that these rows need). Adapters are
    made with the settings s, rows with `tuned`, whose stage 2 may be of another length; a rate, if
    given, is for all of them."""
    stages, jobs = {}, {}
    for row in rows:
        if "/" in row.start:  # train.py has not made this adapter
            llm = target if row.stage1 else source
            jobs |= adapter_jobs(replace(s, **row.changes), row.start, llm)
        times = ({} if s.data else RATES).get(row.name, 1.0) if rate is None else rate
        its = replace(tuned, instruct_lr=times * s.instruct_lr,
                      instruct_matrix_lr=times * s.instruct_matrix_lr, **row.changes)
        if row.stage1 and not row.stage2:  # a native adapter was scored when it was made
            stages[row.name] = open_stage(its, row.start)
            continue
        stage = stages[row.name] = open_stage(its, f"{folder}/{row.name}")
        jobs[row.name] = Job(partial(make_row, its, row, source, target), stage, after=[row.start])
    return stages, list(jobs.values())


# ---- python transfer.py -------------------------------------------------------------------------

def rows_asked(text):
    """A type for flags: headline, all, or names of rows -> these names"""
    names = {row.name: row.headline for row in all_rows("llm_source", "llm_target")}
    headline = [name for name in names if names[name]]
    asked = {"all": [*names], "headline": headline}.get(text) or text.split(",")
    if not {*asked} <= {*names}:
        raise Refused(f"--rows {text}: expected headline, all, or some of {', '.join(names)}")
    return asked


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--rows", type=rows_asked, default="headline", help="headline (default), all, or names")
    add("--steps", type=number(1), help="steps of stage 2 (default: half of train.py's)")
    add("--rate", type=number(0, 100, float), help="times stage 2's learning rates, in all rows")
    add("--threads", type=number(0), default=0, help="CPU threads in all; 0: as many as cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    args, began = parser.parse_args(), time.perf_counter()
    s = load_settings(args.out)
    s.threads, s.device = args.threads or os.cpu_count(), args.device or s.device
    tuned = replace(s, instruct_steps=args.steps or s.instruct_steps // 2)
    check(tuned)
    torch.set_num_threads(s.threads)
    lock(s.out)
    source, target, name = "llm_source", "llm_target", "transfer"
    if args.reverse:
        source, target, name = target, source, "transfer_reverse"
    rate = "" if args.rate is None else f"_rate{args.rate:g}"
    name += f"_steps{tuned.instruct_steps}{rate}" * bool(args.steps or rate)  # an unusual budget
    for made in ("vit", source, target):  # refused now, not after training; so are other settings
        if open_stage(s, made).config() is None:
            raise Refused(f"{s.out!r} lacks {made}: run python train.py --out {quote(s.out)} first")
    rows = [r for r in all_rows(source, target) if r.name in args.rows and can_be_made(r, s)]
    stages, jobs = jobs_for(s, tuned, rows, source, target, name, args.rate)
    say(f"{source} to {target}: {len(rows)} rows, stage 2 of {tuned.instruct_steps} steps, "
        f"device {s.device}, {s.threads} threads")
    make_stages(s, jobs, say_scores)
    configs = {row.name: stages[row.name].config() for row in rows}
    guessed = guesses(s.dataset)
    result = {
        "seed": s.seed, "source": source, "target": target,
        "commit": ", ".join(sorted({config["commit"] for config in configs.values()})),
        "stage2_samples": tuned.instruct_steps * s.instruct_batch,
        "rows": [{"name": row.name, "stage1": row.stage1, "stage2": row.stage2}
                 | {fact: configs[row.name][fact] for fact in ("seconds", "scores")}
                 for row in rows], **guessed}
    print(f"\n{score_line('row, and its stages there', s.dataset)}")
    for row in result["rows"]:
        made = "+".join(["1"] * row["stage1"] + ["2"] * row["stage2"])
        print(score_line(f"{row['name']:27}{made}", s.dataset, row["scores"]))
    for guess, scores in guessed.items():
        print(score_line(guess, s.dataset, scores))
    if "zero_shot_langbridge" in configs:
        before = open_stage(s, rows[0].start).config()["hash"]  # that row is always the first
        after = configs["zero_shot_langbridge"]["hash"]
        result["adapter_hash"] = {"before": before, "after": after}
        print(f"hash of the adapter's parameters before the swap {before}, after it {after}")
    write_json(Path(s.out) / f"{name}.json", result)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes. Scores: {s.out}/{name}.json. Query "
          f"one with stage 2: python evaluate.py --out {quote(s.out)} --model {name}/ROW --image "
          f"{quote(s.dataset.example_picture)}")


if __name__ == "__main__":
    with command():
        main()
