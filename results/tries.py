"""What was tried in stage 1: to make a LangBridge's words move, and to make an MLP better.

    python results/tries.py                     after train.py
    python results/tries.py --only none,noise   some of them

A try is stage 1 with something changed: on the source LLM, for the usual number of steps. The
adapter is then examined there. A LangBridge is also moved to the target and examined again, with
nothing trained. What worked is in adapter.py and train.py, the rest is only here. Finished stages
are reused. Writes tries.json into --out.
"""
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

from adapter import LangBridge, MLPAdapter
from data.files import Refused, Stage, write_json
from data.loop import Loop, optimizers
from data.run import Job, Parser, lanes, number, run_command, seed_list
from data.settings import load_settings
from evaluate import held_out, own_weight, score_vlm
from model import VLM, load_llm
from results.report import across, tries_table
from train import check, new_adapter, open_stage, picture_losses, training_features

SCORES = ("vqa", "caption_f1", "pope_acc")
SPLITS = ("val", "test")


class Try(NamedTuple):
    what: str  # for the table
    kind: str = "langbridge"
    settings: dict = {}  # of train.py, changed
    changes: dict = {}  # of the adapter: arguments of Tried or TriedMLP; whether it is whitened
    rate: float = 1.0  # times the learning rates of stage 1


TRIES = {
    "drawn": Try("**LangBridge as it is: a quarter of the patches say one word, drawn**"),
    "none": Try("nothing is drawn", settings=dict(align_drawn=0.0)),
    "drawn-half": Try("half of the patches", settings=dict(align_drawn=0.5)),
    "drawn-all": Try("all of them", settings=dict(align_drawn=1.0)),
    "entropy": Try("instead of drawing: the entropy of a patch's weights in the loss, times 0.02",
                   settings=dict(align_drawn=0.0), changes=dict(entropy=0.02)),
    "noise": Try("instead of drawing: noise on the basis, half of an embedding's size",
                 settings=dict(align_drawn=0.0), changes=dict(noise=0.5)),
    "top4": Try("instead of drawing: a patch's four heaviest words only",
                settings=dict(align_drawn=0.0), changes=dict(top=4)),
    "plain": Try("features as they come, not whitened", changes=dict(whitened=False)),
    "slower": Try("half the learning rates", rate=0.5),
    "faster": Try("twice the learning rates", rate=2.0),
    "mlp": Try("**MLP as it is**", "mlp"),
    "mlp-noise": Try("noise on its tokens, half of an embedding's size", "mlp",
                     changes=dict(noise=0.5)),
    "mlp-normed": Try("its tokens have the size of words", "mlp", changes=dict(normed=True)),
    "mlp-whitened": Try("features whitened", "mlp", changes=dict(whitened=True)),
    "mlp-whitened-slower": Try("features whitened, half the learning rates", "mlp",
                               changes=dict(whitened=True), rate=0.5),
    "mlp-wide": Try("as many parameters as LangBridge", "mlp", dict(align_mlp_hidden=443)),
    "mlp-wide-slower": Try("as many parameters as LangBridge, half the learning rates", "mlp",
                           dict(align_mlp_hidden=443), rate=0.5),
    "mlp-slower": Try("half the learning rates", "mlp", rate=0.5),
    "mlp-slowest": Try("a quarter of the learning rates", "mlp", rate=0.25),
    "mlp-faster": Try("twice the learning rates", "mlp", rate=2.0),
}


# ---- adapters with what was tried ---------------------------------------------------------------

class Tried(LangBridge):
    """A LangBridge with what was tried; each thing is off unless its argument turns it on.

    langbridge  the arguments of a LangBridge
    noise       in training: noise on the basis, as a share of the spread of its entries
    entropy     in training: times the mean entropy of the weights, the `penalty` of the last pass,
                which the loop adds to the loss
    top         how many words a patch may say at once, the heaviest ones; 0: all
    """

    def __init__(self, *langbridge, noise=0.0, entropy=0.0, top=0):
        super().__init__(*langbridge)
        self.noise, self.entropy, self.top = noise, entropy, top
        self.penalty = 0.0

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
        return beta @ E  # (B, N, C)


class TriedMLP(MLPAdapter):
    """An MLP with what was tried.

    mlp     the arguments of an MLPAdapter
    noise   in training: noise on its tokens, as a share of the size of an embedding's entries, 1
    normed  whether its tokens are given the size of words
    """
    penalty = 0.0  # as Tried has one

    def __init__(self, *mlp, noise=0.0, normed=False):
        super().__init__(*mlp)
        self.noise, self.normed = noise, normed
        D = self.config["D"]
        self.register_buffer("mean", torch.zeros(D), persistent=False)
        self.register_buffer("scale", torch.eye(D), persistent=False)

    def forward(self, x):
        v = super().forward((x - self.mean) @ self.scale)  # (B, N, C)
        if self.normed:
            v = F.rms_norm(v, (v.size(-1),))
        if self.training and self.noise > 0:
            v = v + self.noise * torch.randn_like(v)
        return v


def tried_adapter(s, tried, llm, encoding):
    """The adapter of train.new_adapter with what is tried."""
    usual = new_adapter(s, tried.kind, llm, encoding)
    changes = dict(tried.changes)
    whitened = changes.pop("whitened", tried.kind == "langbridge")
    if tried.kind == "mlp":
        adapter = TriedMLP(s.vit_D, llm.config.C, s.align_mlp_hidden, **changes)
        if whitened:
            bridge = new_adapter(s, "langbridge", llm, encoding)
            adapter.mean, adapter.scale = bridge.mean.cpu(), bridge.scale.cpu()
        adapter.load_state_dict(usual.state_dict())
        return adapter.to(s.device)
    adapter = Tried(s.vit_D, usual.tokens, s.align_hidden, s.align_coefficients, s.align_basis,
                    s.align_drawn, **changes)
    adapter.load_state_dict(usual.state_dict())
    if not whitened:
        adapter.mean.zero_()
        adapter.scale.copy_(torch.eye(s.vit_D))
    return adapter.to(s.device)


# ---- one try ------------------------------------------------------------------------------------

def attempt(s, stage, tried):
    """Stage 1 as in train.align, with what is tried; scores on the source and on the target."""
    out, data = Path(s.out), s.data
    llms = {"source": load_llm(out / "llm_source")}
    if tried.kind == "langbridge":
        llms["target"] = load_llm(out / "llm_target")
    for llm, _ in llms.values():
        llm.to(s.device).requires_grad_(False)
    adapter = tried_adapter(s, tried, *llms["source"]).set_basis(*llms["source"])
    vlm, features = VLM(adapter, *llms["source"]), training_features(s)  # (pictures, N, D)

    loop = Loop(s, stage, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter),
                s.align_steps)
    for step in loop:
        rng = random.Random(f"align/{s.seed}/{step}")  # the samples that train.align meets
        pictures = [rng.randrange(len(features)) for _ in range(s.align_batch)]
        texts = [data.description(i, rng) for i in pictures]
        losses = picture_losses(s, vlm, features, pictures, texts)
        loop.update(loss + adapter.penalty / s.parts for loss in losses)

    exam, facts = held_out(out, s.device, SPLITS), {}
    if tried.kind == "langbridge":
        facts = {"own_weight": own_weight(vlm, exam["test"], data)}
    for name, llm in llms.items():
        scores = score_vlm(VLM(adapter.set_basis(*llm), *llm), exam, data)
        facts[name] = {split: {score: scores.get(split, scores)[score] for score in SCORES}
                       for split in SPLITS}  # val's scores are a dict of their own
    stage.finish(seconds=loop.seconds, scores=facts["source"]["val"], **facts)


def job_of(s, name, seed):
    """One seed of one try. Everything it changes is recorded in its stage's settings."""
    tried, folder = TRIES[name], f"tries/seed{seed}/{name}"
    s = replace(s, seed=seed, align_lr=tried.rate * s.align_lr,
                align_matrix_lr=tried.rate * s.align_matrix_lr, **tried.settings)
    changes = {"kind": tried.kind, **tried.changes}
    stage = Stage(s.out, folder, {**open_stage(s, folder).settings, **changes})
    return Job(attempt, s, stage, {"tried": tried})


# ---- python results/tries.py --------------------------------------------------------------------

def llms_of(config):
    return [llm for llm in ("source", "target") if llm in config]


def collect(name, jobs):
    """A row of tries.json: a try's scores, one for each seed."""
    configs = [job.stage.config() for job in jobs]
    row = {"name": name, "what": TRIES[name].what}
    if "own_weight" in configs[0]:
        row["own_weight"] = across(configs, "own_weight")
    for llm in llms_of(configs[0]):
        row[llm] = {split: {score: across(configs, f"{llm}/{split}/{score}") for score in SCORES}
                    for split in SPLITS}
    return row


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--seeds", type=seed_list, default="0,1,2",
        help="seeds of the adapters and of the order of data (default: 0,1,2)")
    add("--only", default=",".join(TRIES), metavar="NAME,NAME",
        help=f"some of {', '.join(TRIES)} (default: all)")
    add("--threads", type=number(0), default=0,
        help="CPU threads in all; 0: as many as train.py used")
    args = parser.parse_args()
    s = load_settings(args.out)
    s.threads = args.threads or s.threads
    check(s)
    torch.set_num_threads(s.threads)
    names = list(dict.fromkeys(args.only.split(",")))
    for name in names:
        if name not in TRIES:
            raise Refused(f"--only {name}: expected some of {', '.join(TRIES)}")
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
