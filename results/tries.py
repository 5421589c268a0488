"""What was tried to make an adapter speak to an LLM that it was not trained with: every try with three seeds and one budget.

    python results/tries.py                  after train.py; 'two-sources' also needs transfer.py --full-seeds. Writes tries.json into --out
    python results/tries.py --only noise     some of them, separated by commas

A try is stage 1 with one thing changed: on the source LLM, as long as ever, then moved to the target and examined as it is. The
files of the project have only what was kept; the rest is here.
"""
import argparse
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from adapter import NOTHING, LangBridge
from data.corpus import description
from data.report import tries_table
from data.scoring import summarize
from data.world import make_scene
from evaluate import examine_vlm, fail, own_weight
from model import VLM, load_llm
from train import finish, finished, fit, load_settings, optimizers, picture_loss, run_as_command, run_lanes, run_share, shared_vocabulary, write

SCORES = ["vqa", "caption_f1", "pope_acc"]
TRIES = {  # name: (what it is, {setting or attribute of Tried: value})
    "none": ("nothing is done", dict(align_drawn=0.0)),
    "drawn": ("**a quarter of the patches say one word, drawn by its weight (the default)**", {}),
    "drawn-tenth": ("a tenth of them", dict(align_drawn=0.1)),
    "drawn-half": ("half of them", dict(align_drawn=0.5)),
    "drawn-all": ("all of them", dict(align_drawn=1.0)),
    "drawn-early": ("a quarter, in the first half of stage 1 only", dict(drawn_until=0.5)),
    "noise": ("instead of drawing: noise on the basis, half of an embedding's size", dict(align_drawn=0.0, noise=0.5)),
    "entropy": ("instead of drawing: the entropy of a patch's weights in the loss, times 0.02", dict(align_drawn=0.0, entropy=0.02)),
    "entropy-middle": ("the same, times 0.05", dict(align_drawn=0.0, entropy=0.05)),
    "entropy-strong": ("the same, times 0.1", dict(align_drawn=0.0, entropy=0.1)),
    "top4": ("instead of drawing: a patch's four heaviest words only", dict(align_drawn=0.0, top=4)),
    "two-sources": ("instead of drawing: two source LLMs in turn (the second is seed 1's), moved to a third", dict(align_drawn=0.0, second=True)),
    "two-sources-drawn": ("two source LLMs in turn, and drawing", dict(second=True)),
    "centered": ("basis without its mean", dict(align_basis="centered")),
    "centered-none": ("the same, nothing drawn", dict(align_basis="centered", align_drawn=0.0)),
    "centered-tenth": ("the same, a tenth drawn", dict(align_basis="centered", align_drawn=0.1)),
    "centered-entropy": ("the same, nothing drawn, the entropy in the loss, times 0.02", dict(align_basis="centered", align_drawn=0.0, entropy=0.02)),
    "orthogonal": ("basis whitened: the nearest one of orthogonal words", dict(whitened=True)),
    "same-size": ("every visual token as long as a word", dict(same_size=True)),
    "varying": ("content words by a rule: only those that 5% to 95% of captions have", dict(vocabulary="varying")),
    "varying-none": ("the same, nothing drawn", dict(vocabulary="varying", align_drawn=0.0)),
    "nearer": ("starts nearer to 'nothing here' (8 instead of 4 on its bias)", dict(start=8.0)),
    "faster": ("twice the learning rate", dict(align_matrix_lr=0.02, align_lr=0.006)),
}


class Tried(LangBridge):
    """A LangBridge with everything that was tried, switched off."""
    noise = 0.0  # in training: noise on the basis, as a share of the size of its entries
    entropy = 0.0  # in training: the weight in the loss of the mean entropy of the patches' weights
    top = 0  # the words that a patch may say at once; 0: all
    whitened = False  # the nearest basis of orthogonal words; what is kept has words as they are
    same_size = False  # visual tokens get the mean length of a word
    start = None  # the bias of 'nothing here' at the start
    vocabulary = "shared"  # or varying: words that say something about a picture
    second = False  # a second source LLM
    drawn_until = 1.0  # the share of stage 1 in which patches are drawn

    def set_basis(self, llm, encoding):
        super().set_basis(llm, encoding)
        if self.whitened:
            U, _, V = torch.linalg.svd(self.E, full_matrices=False)
            self.E = U @ V * self.E[self.present].norm(dim=1).mean()  # (K, C): orthogonal rows, as near to the words as can be
        return self

    def weights(self, x):
        beta = super().weights(x)  # (B, N, K)
        if self.top:
            kept = torch.zeros_like(beta).scatter(-1, beta.topk(self.top).indices, 1.0)
            beta = beta * kept / (beta * kept).sum(-1, keepdim=True)
        if self.training and self.entropy and beta.requires_grad:  # the gradient of entropy * mean H, H = - sum w ln w
            patches = beta[..., 0].numel()
            beta.register_hook(lambda gradient: gradient - self.entropy * (beta.detach().clamp(min=1e-9).log() + 1) / patches)
        return beta

    def forward(self, x):
        E = self.E
        if self.training and self.noise:
            self.E = E + self.noise * E.std() * torch.randn_like(E)
        v = super().forward(x)  # (B, N, C)
        self.E = E
        return F.normalize(v, dim=-1) * E.norm(dim=1).mean() if self.same_size else v


def varying(s, encoding, words):
    """Those of the words that between 5% and 95% of captions have: what all captions have says nothing about a picture."""
    rng, n = random.Random("varying"), 1000
    times = Counter(t for i in range(n) for t in set(encoding.encode("".join(t for t, _ in description(make_scene("train", 0, i, s.world), rng)))))
    return [NOTHING] + [w for w in words if w != NOTHING and 0.05 < times[encoding.encode_single_token(w)] / n < 0.95]


def attempt(s, stage, change):
    """One seed of one try: stage 1 with this change, then the scores on the source LLM and, moved, on the target."""
    out = Path(s.out)
    llms = {name: load_llm(folder) for name, folder in (("source", out / "llm_source"), ("target", out / "llm_target"))}
    teachers = [llms["source"]] + ([load_llm(Path(f"{out}-seed1") / "llm_source")] if change.get("second") else [])
    for llm, _ in [*llms.values(), *teachers]:
        llm.to(s.device).requires_grad_(False)
    words = shared_vocabulary(s, llms["source"][1], llms["target"][1])
    if change.get("vocabulary") == "varying":
        words = varying(s, llms["source"][1], words)
    torch.manual_seed(s.seed)
    adapter = Tried(s.vit_D, words, s.align_hidden, s.align_coefficients, s.align_basis).to(s.device)
    for name, value in change.items():
        if not hasattr(s, name):
            setattr(adapter, name, value)
    if adapter.start is not None:
        torch.nn.init.constant_(adapter.W[-1].bias[words.index(NOTHING)], adapter.start)
    pictures = torch.load(out / "vit" / "features.pt", mmap=True, weights_only=True)

    def loss_at(step):
        llm, encoding = teachers[step % len(teachers)]
        adapter.set_basis(llm, encoding).drawn = s.align_drawn * (step < adapter.drawn_until * s.align_steps)
        return picture_loss(s, VLM(adapter, llm, encoding), pictures["train"], random.Random(f"align/{s.seed}/{step}"), s.align_batch,
                            lambda rng, scene: description(scene, rng))

    adapter.set_basis(*llms["source"])
    seconds, _ = fit(s, out / stage, stage, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter), s.align_steps, loss_at)
    facts, exam = {}, {split: pictures[split].float().to(s.device) for split in ("val", "test")}
    for name, llm in llms.items():
        vlm = VLM(adapter.set_basis(*llm), *llm)
        facts[name] = {split: {k: v for k, v in summarize(examine_vlm(vlm, {split: x}, s.world)).items() if k in SCORES} for split, x in exam.items()}
        if name == "source":
            facts["own_weight"] = own_weight(vlm, exam["test"], s.world)
    finish(s, stage, seconds=seconds, K=len(words), missing=len(adapter.missing), scores=facts["target"]["test"], **facts)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--out", default="out", help="the folder that train.py wrote (default: out)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the adapter and of the order of data (default: 0,1,2)")
    parser.add_argument("--only", help=f"some of {', '.join(TRIES)} (default: all)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads in all; 0: as many as train.py used")
    parser.add_argument("--stages", help=argparse.SUPPRESS)  # what a process of its own is to do
    args = parser.parse_args(argv)
    s, seeds = load_settings(args.out), [int(seed) for seed in args.seeds.split(",")]
    s = replace(s, threads=args.threads or s.threads)
    torch.set_num_threads(s.threads)
    names = args.only.split(",") if args.only else list(TRIES)
    for name in names:
        if name not in TRIES:
            fail(f"--only {name}: expected some of {', '.join(TRIES)}")
        if TRIES[name][1].get("second") and not Path(f"{s.out}-seed1", "llm_source", "llm.pt").exists():
            fail(f"{name} needs the LLM in '{s.out}-seed1/llm_source'; 'python transfer.py --out {s.out} --full-seeds' makes it")
    made = {}
    for name in names:
        settings = {k: v for k, v in TRIES[name][1].items() if hasattr(s, k)}
        for seed in seeds:
            made[f"tries/seed{seed}/{name}"] = (replace(s, seed=seed, **settings), lambda s, stage, name=name: attempt(s, stage, TRIES[name][1]))
    if args.stages:
        return run_share(made, args.stages)
    run_lanes(s.threads, [__file__, *argv], made, *([stage] for stage in made))
    rows = []
    for name in names:
        facts = [finished(made[f"tries/seed{seed}/{name}"][0], f"tries/seed{seed}/{name}") for seed in seeds]
        rows.append({"name": name, "what": TRIES[name][0], "K": facts[0]["K"], "own_weight": [f["own_weight"] for f in facts]}
                    | {llm: {split: {score: [f[llm][split][score] for f in facts] for score in SCORES} for split in ("val", "test")}
                       for llm in ("source", "target")})
    result = {"seeds": seeds, "tries": rows}
    write(Path(s.out) / "tries.json", lambda path: path.write_text(json.dumps(result, indent=1), encoding="utf-8"))
    print(tries_table(result))


if __name__ == "__main__":
    run_as_command(main)
