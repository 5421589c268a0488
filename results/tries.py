"""What was tried to make an adapter speak to an LLM that it was not trained with.

    python results/tries.py                     after train.py and transfer.py --full-seeds
    python results/tries.py --only none,noise   some of them; without two-sources and
                                                two-sources-drawn, train.py is enough

A try is stage 1 with one thing changed: on the source LLM, for the usual number of steps. The
LangBridge is then examined there, moved to the target, and examined again, with nothing trained.
What worked moved to adapter.py, the rest is only here. Finished stages are reused. Writes
tries.json into --out.
"""
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from adapter import NOTHING, LangBridge
from data.files import Refused, Stage, write_json
from data.loop import Loop, optimizers
from data.run import Job, Parser, lanes, run_command, seed_list
from evaluate import held_out, own_weight, score_vlm
from model import VLM, load_llm
from results.report import across, tries_table
from train import check, load_settings, open_stage, picture_losses, training_features, words_of

SCORES = ("vqa", "caption_f1", "pope_acc")
SPLITS = ("val", "test")


class Try(NamedTuple):
    what: str  # for the table
    settings: dict = {}  # of train.py, changed
    adapter: dict = {}  # arguments of Tried
    drawn_until: float = 1.0  # no words are sampled after this share of the steps
    varying_words: bool = False  # see varying()
    two_sources: bool = False  # the source LLM of seed 1 alternates with the first


TRIES = {
    "none": Try("nothing is done", dict(align_drawn=0.0)),
    "drawn": Try("**a quarter of the patches say one word, drawn by its weight (the default)**"),
    "drawn-tenth": Try("a tenth of them", dict(align_drawn=0.1)),
    "drawn-half": Try("half of them", dict(align_drawn=0.5)),
    "drawn-all": Try("all of them", dict(align_drawn=1.0)),
    "drawn-early": Try("a quarter, in the first half of stage 1 only", drawn_until=0.5),
    "noise": Try(
        "instead of drawing: noise on the basis, half of an embedding's size",
        dict(align_drawn=0.0), dict(noise=0.5)),
    "entropy": Try(
        "instead of drawing: the entropy of a patch's weights in the loss, times 0.02",
        dict(align_drawn=0.0), dict(entropy=0.02)),
    "entropy-middle": Try("the same, times 0.05", dict(align_drawn=0.0), dict(entropy=0.05)),
    "entropy-strong": Try("the same, times 0.1", dict(align_drawn=0.0), dict(entropy=0.1)),
    "top4": Try(
        "instead of drawing: a patch's four heaviest words only",
        dict(align_drawn=0.0), dict(top=4)),
    "two-sources": Try(
        "instead of drawing: two source LLMs in turn (the second is seed 1's), moved to a third",
        dict(align_drawn=0.0), two_sources=True),
    "two-sources-drawn": Try("two source LLMs in turn, and drawing", two_sources=True),
    "centered": Try("basis without its mean", dict(align_basis="centered")),
    "centered-none": Try("the same, nothing drawn", dict(align_basis="centered", align_drawn=0.0)),
    "centered-tenth": Try("the same, a tenth drawn", dict(align_basis="centered", align_drawn=0.1)),
    "centered-entropy": Try(
        "the same, nothing drawn, the entropy in the loss, times 0.02",
        dict(align_basis="centered", align_drawn=0.0), dict(entropy=0.02)),
    "orthogonal": Try(
        "basis whitened: the nearest one of orthogonal words", adapter=dict(whitened=True)),
    "same-size": Try("every visual token as long as a word", adapter=dict(same_size=True)),
    "varying": Try(
        "content words by a rule: only those that 5% to 95% of captions have", varying_words=True),
    "varying-none": Try("the same, nothing drawn", dict(align_drawn=0.0), varying_words=True),
    "nearer": Try(
        "starts nearer to 'nothing here' (8 instead of 4 on its bias)", adapter=dict(start=8.0)),
    "slower": Try("half the learning rate", dict(align_matrix_lr=0.01, align_lr=0.003)),
}


# ---- a LangBridge with what was tried -----------------------------------------------------------

class Tried(LangBridge):
    """A LangBridge with all that was tried; each thing is off unless its argument turns it on.

    langbridge  the arguments of a LangBridge
    noise       in training: noise on the basis, as a share of the spread of its entries
    entropy     in training: times the mean entropy of the weights, the `penalty` of the last pass,
                which the loop adds to the loss
    top         how many words a patch may say at once, the heaviest ones; 0: all
    whitened    whether the basis is the nearest one whose words are orthogonal
    same_size   whether every visual token is rescaled to the average length of a word
    start       the bias of 'nothing here' before training; None: as in LangBridge
    """

    def __init__(self, *langbridge, noise=0.0, entropy=0.0, top=0, whitened=False, same_size=False,
                 start=None):
        super().__init__(*langbridge)
        self.noise, self.entropy, self.top = noise, entropy, top
        self.whitened, self.same_size = whitened, same_size
        self.penalty = 0.0
        if start is not None:
            nn.init.constant_(self.W[-1].bias[self.tokens.index(NOTHING)], start)

    def set_basis(self, llm, encoding):
        super().set_basis(llm, encoding)
        if self.whitened:
            U, _, Vh = torch.linalg.svd(self.E, full_matrices=False)  # (K, K), (K,), (K, C)
            length = self.E[self.present].norm(dim=1).mean()
            self.E = U @ Vh * length  # (K, C)
        return self

    def weights(self, x):
        beta = super().weights(x)  # (B, N, K)
        if self.top > 0:
            heaviest = beta.topk(self.top).indices  # (B, N, top)
            kept = beta * torch.zeros_like(beta).scatter(-1, heaviest, 1.0)  # (B, N, K)
            beta = kept / kept.sum(-1, keepdim=True)
        if self.training and self.entropy > 0:
            entropy = -(beta * beta.clamp(min=1e-9).log()).sum(-1)  # (B, N)
            self.penalty = self.entropy * entropy.mean()
        return beta

    def forward(self, x):
        E = self.E  # (K, C)
        if self.training and self.noise > 0:
            E = E + self.noise * E.std() * torch.randn_like(E)  # (K, C)
        beta = self.weights(x)  # (B, N, K)
        if self.training and self.drawn > 0:
            beta = self.draw(beta)  # (B, N, K)
        v = beta @ E  # (B, N, C)
        if self.same_size:
            v = F.normalize(v, dim=-1) * self.E.norm(dim=1).mean()  # (B, N, C)
        return v


def varying(words, encoding, data, captions=1000):
    """The words in 5% to 95% of captions: a word in all of them says nothing about a picture."""
    rng, times = random.Random("varying"), Counter()
    for i in range(captions):
        text = "".join(piece for piece, _ in data.description(i, rng))
        times.update(set(encoding.encode(text)))  # once a caption
    chosen = [NOTHING]
    for word in words:
        share = times[encoding.encode_single_token(word)] / captions
        if word != NOTHING and 0.05 < share < 0.95:
            chosen.append(word)
    return chosen


# ---- one try ------------------------------------------------------------------------------------

def attempt(s, stage, tried):
    """Stage 1 as in train.align, with what is tried; scores on the source and on the target."""
    out, data = Path(s.out), s.data
    llms = {"source": load_llm(out / "llm_source"), "target": load_llm(out / "llm_target")}
    sources = [llms["source"]]
    if tried.two_sources:
        sources.append(load_llm(second_source(s)))
    for llm, _ in [*sources, llms["target"]]:
        llm.to(s.device).requires_grad_(False)
    words = words_of(s, llms["source"][1])
    if tried.varying_words:
        words = varying(words, llms["source"][1], data)
    torch.manual_seed(s.seed)
    adapter = Tried(s.vit_D, words, s.align_hidden, s.align_coefficients, s.align_basis,
                    s.align_drawn, **tried.adapter).to(s.device)
    adapter.set_basis(*llms["source"])
    vlms = [VLM(adapter, *llm) for llm in sources]
    features = training_features(s)  # (pictures, N, D)

    loop = Loop(s, stage, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter),
                s.align_steps)
    for step in loop:
        rng = random.Random(f"align/{s.seed}/{step}")  # the samples that train.align meets
        pictures = [rng.randrange(len(features)) for _ in range(s.align_batch)]
        texts = [data.description(i, rng) for i in pictures]
        vlm = vlms[step % len(vlms)]
        if tried.two_sources:
            adapter.set_basis(vlm.llm, vlm.encoding)
        if step >= tried.drawn_until * s.align_steps:
            adapter.drawn = 0.0
        losses = picture_losses(s, vlm, features, pictures, texts)
        loop.update(loss + adapter.penalty / s.parts for loss in losses)

    adapter.set_basis(*llms["source"])
    exam = held_out(out, s.device, SPLITS)
    facts = {"K": len(words), "own_weight": own_weight(vlms[0], exam["test"], data)}
    for name, llm in llms.items():
        vlm = VLM(adapter.set_basis(*llm), *llm)
        facts[name] = {}
        for split, x in exam.items():
            scores = score_vlm(vlm, {split: x}, data)
            scores = scores.get(split, scores)  # val has its own
            facts[name][split] = {score: scores[score] for score in SCORES}
    stage.finish(seconds=loop.seconds, scores=facts["target"], **facts)


def second_source(s):
    """The folder of the LLM that transfer.py --full-seeds made as seed 1's source."""
    return Path(f"{s.out}-seed1") / "llm_source"


def job_of(s, name, seed):
    """One seed of one try. Everything it changes is recorded in its stage's settings."""
    tried, folder = TRIES[name], f"tries/seed{seed}/{name}"
    s = replace(s, seed=seed, **tried.settings)
    changes = {**tried.adapter, "drawn_until": tried.drawn_until,
               "varying_words": tried.varying_words, "two_sources": tried.two_sources}
    stage = Stage(s.out, folder, {**open_stage(s, folder).settings, **changes})
    return Job(attempt, s, stage, {"tried": tried})


# ---- python results/tries.py --------------------------------------------------------------------

def collect(name, jobs):
    """A row of tries.json: a try's scores, one for each seed."""
    configs = [job.stage.config() for job in jobs]
    row = {"name": name, "what": TRIES[name].what, "K": configs[0]["K"],
           "own_weight": across(configs, "own_weight")}
    for llm in ("source", "target"):
        row[llm] = {}
        for split in SPLITS:
            row[llm][split] = {k: across(configs, f"{llm}/{split}/{k}") for k in SCORES}
    return row


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--seeds", type=seed_list, default="0,1,2",
        help="seeds of the adapters and of the order of data (default: 0,1,2)")
    add("--only", default=",".join(TRIES), metavar="NAME,NAME",
        help=f"some of {', '.join(TRIES)} (default: all)")
    add("--threads", type=int, default=0, help="CPU threads in all; 0: as many as train.py used")
    args = parser.parse_args()
    s = load_settings(args.out)
    s.threads = args.threads or s.threads
    check(s)
    torch.set_num_threads(s.threads)
    names = list(dict.fromkeys(args.only.split(",")))
    for name in names:
        if name not in TRIES:
            raise Refused(f"--only {name}: expected some of {', '.join(TRIES)}")
        if TRIES[name].two_sources and not (second_source(s) / "llm.pt").exists():
            raise Refused(f"{name} needs the LLM in {str(second_source(s))!r}; "
                          f"'python transfer.py --out {s.out} --full-seeds' makes it")
    by_name = {name: [job_of(s, name, seed) for seed in args.seeds] for name in names}
    jobs = [job for of_seeds in by_name.values() for job in of_seeds]
    missing = [job for job in jobs if job.stage.config() is None]  # refuses other settings
    if missing:
        with lanes(s, most=len(jobs)) as run:
            run(missing)
    rows = [collect(name, of_seeds) for name, of_seeds in by_name.items()]
    result = {"seeds": args.seeds, "tries": rows}
    write_json(Path(s.out) / "tries.json", result)
    print(tries_table(result))


if __name__ == "__main__":
    run_command(main)
