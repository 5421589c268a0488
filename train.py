"""From nothing to a picture that answers: every stage, from random weights, in one command.

    python train.py                    everything into out/, in the preset that fits the machine
    python train.py --preset smoke     the same in a few seconds, to see that it runs
    python train.py --help             every setting

    stage          what is trained                     on what
    llm_source     a GPT                               text only
    llm_target     a larger GPT, another vocabulary    text only (transfer.py moves adapters to it)
    vit            a ViT and a small text tower        pairs of picture and caption
    *_align        an adapter; LLM and ViT are frozen  captions of pictures (LLaVA's stage 1)
    *_instruct     the adapter and the LLM             conversations about pictures (stage 2)

with * = langbridge and mlp, both on the source LLM, and blind_instruct, the same without a picture.
Each stage is a folder under --out. The same command goes on after an interruption: finished stages
are kept, an unfinished one resumes from its last checkpoint and, on a CPU, ends bit for bit as if
nothing had happened.
"""
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from argparse import SUPPRESS, BooleanOptionalAction
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from adapter import BASES, COEFFICIENTS, NOTHING, LangBridge, MLPAdapter, load_adapter, save_adapter
from data.bpe import BOS, PATTERNS, load_encoding, shared_tokens, train_bpe
from data.corpus import encode
from data.dataset import ShapeData
from data.files import Refused, Stage, read_json, read_tensors, write_json, write_tensors, write_text
from evaluate import (Parser, held_out, load_vlm, probe, run_command, score_llm, score_vlm,
                      show_answers, subspace)
from model import GPT, VLM, GPTConfig, load_llm, save_llm
from vision import CLIP, ViTConfig, save_vit


# ---- settings -----------------------------------------------------------------------------------

def setting(default, help):
    """A field of Settings: its name becomes a flag, `help` what --help says about it."""
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    out: str = setting("out", "folder for everything this command makes; run it again to go on")
    preset: str = setting("auto", "smoke (seconds), laptop, gpu; auto: gpu if there is one, or laptop")
    device: str = setting("auto", "cpu, cuda, mps, or auto")
    precision: str = setting("auto", "fp32, bf16 (autocast), or auto: bf16 on cuda, or fp32")
    stages: str = setting("all", "only these stages, separated by commas")
    threads: int = setting(0, "CPU threads in all; 0: as many as there are cores")
    save_every: int = setting(60, "seconds between checkpoints")
    parts: int = setting(2, "passes for a batch of texts about pictures, short ones first: less "
                            "padding on a CPU; on a GPU, 1 is best")
    seed: int = setting(0, "of weights, documents and the order of data")
    # the world
    max_objects: int = setting(3, "most objects in a scene, 1 to 6")
    rich: bool = setting(False, "sizes, relations (left of, above), synonyms and more wordings")
    pictures: int = setting(12000, "training pictures for align and instruct")
    test_pictures: int = setting(600, "pictures of the test split; each has two questions, one "
                                      "yes/no question and a caption")
    # the language models
    llm_source_V: int = setting(512, "vocabulary of the source LLM")
    llm_source_C: int = setting(128, "width")
    llm_source_layers: int = setting(2, "depth")
    llm_source_steps: int = setting(2000, "pretraining steps")
    llm_target_V: int = setting(640, "vocabulary of the target LLM")
    llm_target_C: int = setting(160, "width")
    llm_target_layers: int = setting(3, "depth")
    llm_target_steps: int = setting(1800, "pretraining steps")
    llm_H: int = setting(4, "attention heads of both")
    llm_batch: int = setting(10, "documents a step; many small steps teach more than few large ones")
    llm_turns: int = setting(8, "questions and captions that follow a scene, at most")
    llm_captions: float = setting(0.3, "share of these that ask for a description")
    llm_rasters: float = setting(0.6, "share of scenes told as a grid of words, not in sentences")
    llm_text_weight: float = setting(0.1, "weight in the loss of tokens that are no answer")
    llm_matrix_lr: float = setting(0.03, "learning rate of the hidden matrices (Muon)")
    llm_lr: float = setting(0.006, "learning rate of everything else (AdamW)")
    # the vision encoder
    vit_size: int = setting(48, "picture side in pixels")
    vit_patch: int = setting(8, "patch side in pixels")
    vit_D: int = setting(128, "width")
    vit_H: int = setting(4, "attention heads")
    vit_layers: int = setting(3, "depth")
    vit_steps: int = setting(1500, "pretraining steps")
    vit_batch: int = setting(32, "pairs a step; half of them differ from the others in one word")
    vit_matrix_lr: float = setting(0.01, "learning rate of the hidden matrices (Muon)")
    vit_lr: float = setting(0.001, "learning rate of everything else (AdamW)")
    # stage 1: the adapter on captions
    align_K: int = setting(0, "words of a LangBridge; 0: all that both tokenizers have and "
                              "conversations use; 1000: every token that both have")
    align_hidden: int = setting(256, "hidden width of a LangBridge")
    align_coefficients: str = setting("softplus", "how it weighs words: softplus, softmax, relu, linear")
    align_basis: str = setting("words", "what it combines: words, or centered (minus their mean)")
    align_drawn: float = setting(0.25, "share of patches that, in training, say one drawn word")
    align_steps: int = setting(600, "steps")
    align_batch: int = setting(32, "pictures a step")
    align_matrix_lr: float = setting(0.01, "learning rate of the adapter's matrices (Muon)")
    align_lr: float = setting(0.003, "learning rate of its biases (AdamW)")
    # stage 2: adapter and LLM on conversations
    instruct_steps: int = setting(800, "steps")
    instruct_batch: int = setting(16, "pictures a step")
    instruct_turns: int = setting(4, "turns of a conversation, at most")
    instruct_captions: float = setting(0.3, "share of the turns that ask for a caption")
    instruct_lr: float = setting(0.001, "learning rate of embeddings, head and small parts (AdamW)")
    instruct_matrix_lr: float = setting(0.006, "learning rate of the matrices of both (Muon)")

    @property
    def data(self):
        """What there is to see and to read."""
        return ShapeData(self.max_objects, self.rich, self.vit_size, self.pictures,
                         self.test_pictures)


PRESETS = {
    "laptop": {},
    "smoke": dict(
        pictures=64, test_pictures=20, llm_source_C=32, llm_source_layers=1, llm_source_steps=30,
        llm_target_C=48, llm_target_layers=2, llm_target_steps=30, llm_batch=4, llm_turns=4,
        vit_D=32, vit_layers=1, vit_steps=20, vit_batch=16, align_hidden=32, align_steps=20,
        align_batch=8, instruct_steps=20, instruct_batch=8),
    "gpu": dict(
        parts=1, max_objects=5, rich=True, pictures=40000, test_pictures=1000,
        llm_source_C=256, llm_source_layers=3, llm_source_steps=4000, llm_target_C=384,
        llm_target_layers=4, llm_target_steps=4000, llm_H=8, llm_batch=32, llm_turns=12,
        vit_size=96, vit_patch=16, vit_D=256, vit_H=8, vit_layers=4, vit_steps=1500, vit_batch=128,
        align_hidden=1024, align_steps=1500, align_batch=64,
        instruct_steps=1000, instruct_batch=64),
}


def parse_settings(argv):
    """The command line as Settings: the defaults, then the preset's values, then the flags."""
    parser = Parser(__doc__)
    for f in fields(Settings):
        kind = dict(type=f.type, metavar=f.type.__name__.upper())
        if f.type is bool:
            kind = dict(action=BooleanOptionalAction)
        help = f"{f.metadata['help']} (default: {f.default})"
        parser.add_argument(f"--{f.name}", default=SUPPRESS, help=help, **kind)
    given = vars(parser.parse_args(argv))
    s = Settings(**given)
    if s.device == "auto":
        s.device = "cuda" if torch.cuda.is_available() else "cpu"
    if s.preset == "auto":
        s.preset = "gpu" if s.device == "cuda" else "laptop"
    if s.precision == "auto":
        s.precision = "bf16" if s.device == "cuda" else "fp32"
    if s.preset not in PRESETS:
        raise Refused(f"--preset {s.preset}: expected one of {', '.join(PRESETS)}, auto")
    for name, value in PRESETS[s.preset].items():
        if name not in given:
            setattr(s, name, value)
    s.threads = s.threads or os.cpu_count()
    check(s)
    return s


def check(s):
    """Refuse settings that cannot work, before anything is made."""
    def expect(ok, name, what):
        if not ok:
            raise Refused(f"--{name} {getattr(s, name)}: expected {what}")

    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        raise Refused(f"--device {s.device}: this machine or this torch has no such device; "
                      "try --device cpu")
    expect(s.precision in ("fp32", "bf16"), "precision", "fp32, bf16 or auto")
    stages = [] if s.stages == "all" else s.stages.split(",")
    expect(set(stages) <= set(STAGES), "stages", f"some of {', '.join(STAGES)}, or all")
    expect(s.parts >= 1, "parts", "1 or more")
    expect(1 <= s.max_objects <= 6, "max_objects", "1 to 6")
    for name in ("llm_source_V", "llm_target_V"):
        expect(getattr(s, name) >= 300, name, "at least 300, for 256 of them are the bytes")
    for name in ("llm_source_C", "llm_target_C"):
        expect(getattr(s, name) % (2 * s.llm_H) == 0, name, f"a multiple of twice the {s.llm_H} heads")
    expect(s.vit_D % s.vit_H == 0, "vit_D", f"a multiple of the {s.vit_H} heads")
    expect(s.align_coefficients in COEFFICIENTS, "align_coefficients",
           f"one of {', '.join(COEFFICIENTS)}")
    expect(s.align_basis in BASES, "align_basis", f"one of {', '.join(BASES)}")
    expect(0 <= s.align_drawn <= 1, "align_drawn", "a share between 0 and 1")
    if s.align_coefficients in ("relu", "linear"):
        expect(s.align_drawn == 0, "align_drawn",
               f"0, for words cannot be drawn by {s.align_coefficients} weights")
    if s.vit_patch < 1 or s.vit_size % (3 * s.vit_patch):
        best = max(1, s.vit_size // 6)
        raise Refused(f"--vit_size {s.vit_size} --vit_patch {s.vit_patch}: each of the 3 x 3 places "
                      "must be a whole number of patches; 6 x 6 patches are best, like the 6 x 6 "
                      f"words that the LLMs read: --vit_size {6 * best} --vit_patch {best}")


def load_settings(out):
    """The settings of the train.py that made a folder."""
    path = Path(out) / "settings.json"
    if not path.exists():
        raise Refused(f"there is no {str(path)!r}; 'python train.py --out {out}' makes it")
    return replace(Settings(**read_json(path)), out=str(out))


def open_stage(s, name):
    """A stage's folder, with the settings that decide its result: its own, and those of all stages
    that it is made from."""
    llm = ("llm_H", "llm_batch", "llm_turns", "llm_captions", "llm_rasters", "llm_text_weight",
           "llm_matrix_lr", "llm_lr")
    last = name.split("/")[-1]
    if last in ("llm_source", "llm_target"):
        own = (*llm, last)
    elif last == "vit":
        own = ("vit_",)
    elif last.endswith("_align"):
        own = ("llm_", "vit_", "align_")
    else:
        own = ("llm_", "vit_", "align_", "instruct_")
    own += ("seed", "precision", "max_objects", "rich", "pictures", "test_pictures")
    settings = {name: value for name, value in asdict(s).items() if name.startswith(own)}
    return Stage(s.out, name, settings)


# ---- optimisation -------------------------------------------------------------------------------

class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for hidden matrices (Jordan et al. 2024).

        U S V^T = the gradient's momentum;  W <- W - lr * sqrt(max(1, rows / columns)) * U V^T

    U V^T comes from five Newton-Schulz iterations. Here it needs a third of AdamW's steps.
    torch.optim.Muon does the same in bfloat16 and matrix by matrix, which a CPU does slowly; here
    it is float32, and matrices of one shape go together.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                momenta = [self.momentum(p, group["momentum"]) for p in params]
                updates = orthogonal(torch.stack(momenta))  # (matrices, rows, columns)
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for p, update in zip(params, updates):
                    p.sub_(update, alpha=rate)

    def momentum(self, p, beta):
        """The gradient's momentum, a step ahead (Nesterov)."""
        average = self.state[p].setdefault("momentum", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - beta)
        return p.grad.lerp(average, beta)


def orthogonal(x):
    """The nearest orthogonal matrices, roughly: U S V^T -> U V^T; x (matrices, rows, columns)

    Five steps of a Newton-Schulz iteration, which drives all singular values towards 1.
    """
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def optimizers(matrix_lr, lr, *modules):
    """Muon for the modules' hidden matrices, AdamW for embeddings, heads, biases and the like."""
    matrices = [p for module in modules for p in module.hidden_matrices()]
    hidden = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in hidden]
    adamw = torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, matrix_lr), adamw]


def schedule(step, steps, warmup=50, decay=0.5):
    """The learning rate's factor: up, level, and down to zero over the last half."""
    up = (step + 1) / min(warmup, steps)
    down = (1 - step / steps) / decay
    return min(up, 1.0, down)


def autocast(s):
    """bfloat16 where it is asked for."""
    return torch.autocast(torch.device(s.device).type, torch.bfloat16, enabled=s.precision == "bf16")


class Loop:
    """What the training loops of all stages share. A stage gives it one loss after the other:

        loop = Loop(s, stage, [model], optimizers(..), steps)
        for step in loop:
            loop.update(loss)  # of this step's batch, which must depend on `step` alone

    It goes on from the stage's last checkpoint, sets the learning rates, shows the progress, saves,
    and writes log.csv. After each number of steps in `moments`, it keeps what watch() says in
    `seen`: [[steps done, what it said], ..].
    """

    def __init__(self, s, stage, modules, optimizers, steps, watch=None, moments=()):
        self.s, self.stage, self.modules, self.optimizers = s, stage, modules, optimizers
        self.steps, self.watch, self.moments = steps, watch, moments
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.step, self.seconds, self.smooth, self.log, self.seen = 0, 0.0, None, [], []
        stage.folder.mkdir(parents=True, exist_ok=True)
        self.resume()

    def __iter__(self):
        self.train(True)
        saved = time.perf_counter()
        quiet = 1 if sys.stderr.isatty() else 60
        self.bar = tqdm(desc=self.stage.name.split("/")[-1], initial=self.step, total=self.steps,
                        mininterval=quiet, dynamic_ncols=True, leave=False, position=Lanes.here)
        while self.step < self.steps:
            self.look()
            began = time.perf_counter()
            for optimizer, rate in zip(self.optimizers, self.rates):
                optimizer.param_groups[0]["lr"] = rate * schedule(self.step, self.steps)
            yield self.step
            self.step += 1
            self.seconds += time.perf_counter() - began
            self.bar.update()
            if time.perf_counter() - saved > self.s.save_every and self.step < self.steps:
                self.save()
                saved = time.perf_counter()
        self.bar.close()
        self.train(False)
        self.look()
        lines = [f"{step},{loss},{smooth},{lr:.6g}\n" for step, loss, smooth, lr in self.log]
        write_text(self.stage.folder / "log.csv", "step,loss,smoothed,lr\n" + "".join(lines))

    def update(self, loss):
        """One step of the optimisers on this loss."""
        value = loss.item()
        if not math.isfinite(value):
            raise Refused(f"{self.stage.name}: the loss is {value} at step {self.step}; lower the "
                          f"learning rate and delete {str(self.stage.folder)!r}")
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.smooth = value if self.smooth is None else 0.98 * self.smooth + 0.02 * value
        self.bar.set_postfix_str(f"loss {self.smooth:.3f}", refresh=False)
        if self.step % 10 == 0 or self.step == self.steps - 1:
            lr = self.optimizers[-1].param_groups[0]["lr"]
            self.log.append([self.step, round(value, 5), round(self.smooth, 5), lr])

    def train(self, training):
        for module in self.modules:
            module.train(training)

    def look(self):
        """Let `watch` see the model, if this is one of its moments."""
        if self.step in self.moments:
            self.seen.append([self.step, self.watch()])
            self.train(self.step < self.steps)

    def save(self):
        parts = [part.state_dict() for part in [*self.modules, *self.optimizers]]
        self.stage.save_state(parts=parts, rng=torch.get_rng_state(), step=self.step, log=self.log,
                              seconds=self.seconds, smooth=self.smooth, seen=self.seen)

    def resume(self):
        state = self.stage.load_state(self.s.device)
        if state is None:
            return
        for part, saved in zip([*self.modules, *self.optimizers], state["parts"], strict=True):
            part.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.seconds, self.smooth = state["step"], state["seconds"], state["smooth"]
        self.log, self.seen = state["log"], state["seen"]
        print(f"{self.stage.name}: going on from step {self.step}")


# ---- text: the language models ------------------------------------------------------------------

def count(module):
    """Parameters, in all."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def pad(rows, dtype):
    """Lists of different lengths as one tensor (B, T), zeros at the end."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, :len(row)] = torch.tensor(row, dtype=dtype)
    return out


def weighted_loss(logits, ids, weights):
    """Cross-entropy of logits (n, V) for ids (n,), summed by weights (n,); divide by their sum."""
    return (F.cross_entropy(logits.float(), ids, reduction="none") * weights).sum()


def marked(pieces):
    """Pieces of text with [answers], which are learned, in brackets."""
    return "".join(f"[{text}]" if weight else text for text, weight in pieces)


def pretrain_llm(s, name):
    """A GPT from nothing, on text alone: next tokens of documents, most of all of the answers."""
    stage, data, dialect = open_stage(s, name), s.data, name.removeprefix("llm_")
    V, C, layers, steps = (getattr(s, f"{name}_{what}") for what in ("V", "C", "layers", "steps"))
    torch.manual_seed(s.seed)
    encoding = data.tokenizer(dialect, V, s.seed)
    llm = GPT(GPTConfig(encoding.n_vocab, C, s.llm_H, layers)).to(s.device)

    def document(i):
        return data.document(dialect, s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions)

    print(f"{name}: a GPT of {count(llm):,} parameters, all trained, on {steps} x {s.llm_batch} "
          f"documents; vocabulary {encoding.n_vocab}; the first loss should be ln V = "
          f"{math.log(encoding.n_vocab):.2f}. The first document ([answers] count most):\n"
          f"{marked(document(0))}", flush=True)
    loop = Loop(s, stage, [llm], optimizers(s.llm_matrix_lr, s.llm_lr, llm), steps)
    for step in loop:
        ids, weights = [], []
        for i in range(step * s.llm_batch, (step + 1) * s.llm_batch):
            tokens, importance = encode(encoding, document(i))
            ids.append(tokens)
            weights.append([max(w, s.llm_text_weight) for w in importance])
        ids = pad(ids, torch.long).to(s.device)  # (B, T)
        weights = pad(weights, torch.float).to(s.device)[:, 1:]  # (B, T - 1), 0 for padding
        with autocast(s):
            logits = llm(llm.embed(ids[:, :-1]))  # (B, T - 1, V)
            loss = weighted_loss(logits.flatten(0, 1), ids[:, 1:].flatten(), weights.flatten())
        loop.update(loss / weights.sum())
    save_llm(llm, encoding, stage.folder)
    texts = [text for i in range(2000) for text, _ in document(i)]
    words = sorted(set(re.findall("[a-z]+", "".join(texts).replace(BOS, ""))))  # that it has read
    scores = score_llm(llm, encoding, data, dialect, s.seed)
    stage.finish(seconds=loop.seconds, params=count(llm), vocab=encoding.n_vocab, words=words,
                 **scores)


# ---- pictures: the vision encoder ---------------------------------------------------------------

def pretrain_vit(s, name="vit"):
    """A ViT from nothing, contrastively: which of a batch's captions belongs to which picture?

    Half of a batch are twins of the other half, with one word changed: to be told from its twin, a
    picture must be seen in every detail, not only in those in which random pictures differ.
    """
    stage, data = open_stage(s, name), s.data
    torch.manual_seed(s.seed)
    encoding = train_bpe(data.alt_texts(s.seed, 500), 400, PATTERNS["source"], name="captions")
    config = ViTConfig(s.vit_size, s.vit_patch, s.vit_D, s.vit_H, s.vit_layers)
    clip = CLIP(config, encoding.n_vocab).to(s.device)
    print(f"vit: a ViT of {count(clip.vit):,} parameters and its text tower of "
          f"{count(clip.text):,}, all trained, on {s.vit_steps} x {s.vit_batch} pictures with "
          f"captions; the first loss should be about ln {s.vit_batch} = "
          f"{math.log(s.vit_batch):.2f}", flush=True)

    def batch(pictures, texts):
        """pictures (B, size, size, 3) uint8, ids (B, T), mask (B, T)"""
        ids = [encoding.encode(text) for text in texts]
        mask = pad([[1] * len(row) for row in ids], torch.bool)
        ids = pad(ids, torch.long)
        return torch.from_numpy(pictures).to(s.device), ids.to(s.device), mask.to(s.device)

    loop = Loop(s, stage, [clip], optimizers(s.vit_matrix_lr, s.vit_lr, clip), s.vit_steps)
    for step in loop:
        pictures, ids, mask = batch(*data.pairs(s.seed, step, s.vit_batch))
        with autocast(s):
            loss = clip.loss(pictures, ids, mask)
        loop.update(loss)
    save_vit(clip.vit, stage.folder)

    hits = []
    with torch.no_grad():
        for k in range(5):
            found = clip(*batch(*data.test_pairs(k, 100))).argmax(1).cpu()  # (100,)
            hits.append((found == torch.arange(100)).float().mean().item())
    began = time.perf_counter()
    features = {split: encode_pictures(s, clip.vit, split) for split in data.SPLITS}
    write_tensors(stage.folder / "features.pt", features)
    stage.finish(data=data.config(), seconds=loop.seconds,
                 seconds_features=time.perf_counter() - began, params=count(clip.vit),
                 retrieval_top1=float(np.mean(hits)), **probe(features, data))


@torch.no_grad()
def encode_pictures(s, vit, split):
    """The frozen features of a split's pictures, once and for all: (n, N, D) in half precision."""
    n, parts = s.data.count(split), []
    for start in range(0, n, 100):
        pictures = s.data.pictures(split, range(start, min(start + 100, n)))
        features = vit(torch.from_numpy(pictures).to(s.device))  # (100, N, D)
        parts.append(features.half().cpu())
    return torch.cat(parts)


# ---- pictures as words: the adapters ------------------------------------------------------------

def shared_words(s, source, target):
    """The words of a LangBridge: tokens of both LLMs, ranked by how often conversations use them.

    Those that none uses come last, and only if align_K asks for more than the others.
    """
    source, target = (load_encoding(Path(s.out) / llm / "tokenizer.json") for llm in (source, target))
    both = set(shared_tokens(source, target))
    texts = []
    for i in range(1000):
        texts += [text for text, _ in s.data.conversation(i, random.Random(i), turns=4)]
    ids, times = np.unique(source.encode("".join(texts)), return_counts=True)
    ranked = [source.decode_single_token_bytes(int(i)) for i in ids[np.argsort(-times, kind="stable")]]
    used = [NOTHING] + [word for word in ranked if word in both and word != NOTHING]
    if s.align_K == 0:
        return used
    return (used + sorted(both - set(used)))[:s.align_K]


def new_adapter(s, kind, llm, pair):
    """An untrained adapter to an LLM; a LangBridge has the words that a pair of LLMs shares."""
    torch.manual_seed(s.seed)
    if kind == "mlp":
        return MLPAdapter(s.vit_D, llm.config.C).to(s.device)
    return LangBridge(s.vit_D, shared_words(s, *pair), s.align_hidden, s.align_coefficients,
                      s.align_basis, s.align_drawn).to(s.device)


class Sample(NamedTuple):
    """A picture of the training split and a text about it."""
    picture: int
    ids: list  # tokens
    weights: list  # 1 for each token of an answer, 0 for the others


def picture_loss(s, vlm, features, pictures, texts):
    """The mean loss of answers about training pictures; features (pictures, N, D)."""
    samples = [Sample(i, *encode(vlm.encoding, text)) for i, text in zip(pictures, texts)]
    assert all(sum(sample.weights) > 0 for sample in samples), "no answer, nothing to learn"
    samples.sort(key=lambda sample: len(sample.ids))  # a part of like lengths has little padding
    size = math.ceil(len(samples) / s.parts)
    loss = 0.0
    for start in range(0, len(samples), size):
        part = samples[start:start + size]
        x = features[[sample.picture for sample in part]].float().to(s.device)  # (B, N, D)
        ids = pad([sample.ids for sample in part], torch.long).to(s.device)  # (B, T)
        weights = pad([sample.weights for sample in part], torch.float).to(s.device)  # (B, T)
        wanted = weights > 0  # logits are made for these alone
        loss = loss + weighted_loss(vlm(x, ids, wanted), ids[wanted], weights[wanted])
    return loss / sum(sum(sample.weights) for sample in samples)


def training_features(s):
    """The frozen features of the training pictures: (pictures, N, D)"""
    return read_tensors(Path(s.out) / "vit" / "features.pt", mmap=True)["train"]


def announce(s, name, trained, vlm, steps, batch, sample):
    """What is about to be trained, on what; `sample` is the first text."""
    parameters = sum(count(module) for module in trained)
    print(f"{name}: {parameters:,} of {count(vlm):,} parameters trained (adapter "
          f"{count(vlm.adapter):,}, LLM {count(vlm.llm):,}), on {steps} x {batch} of "
          f"{s.pictures} pictures", flush=True)
    if "/" not in name:  # the many stages of transfer.py would say the same
        print(f"the first sample ([answers] are learned):\n[picture] {marked(sample)}", flush=True)


def align(s, name, kind, llm_name="llm_source", pair=("llm_source", "llm_target"), study=False):
    """Stage 1: the adapter alone learns, from captions, to say pictures in the frozen LLM's words.

    `kind` is mlp or langbridge. With `study`, evaluate.subspace watches how near it comes to words.
    """
    stage, data = open_stage(s, name), s.data
    llm, encoding = load_llm(Path(s.out) / llm_name)
    llm.to(s.device).requires_grad_(False)
    adapter = new_adapter(s, kind, llm, pair).set_basis(llm, encoding)
    vlm, features, exam = VLM(adapter, llm, encoding), training_features(s), held_out(s.out, s.device)
    announce(s, name, [adapter], vlm, s.align_steps, s.align_batch,
             data.description(0, random.Random(0)))

    def watch():
        return subspace(vlm, exam["test"], data)

    moments = set()
    if study:  # log-spaced
        moments = {0, s.align_steps} | {int(s.align_steps ** (i / 8)) for i in range(8)}
    loop = Loop(s, stage, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter),
                s.align_steps, watch, moments)
    for step in loop:
        rng = random.Random(f"align/{s.seed}/{step}")  # all adapters meet the same samples
        pictures = [rng.randrange(len(features)) for _ in range(s.align_batch)]
        texts = [data.description(i, rng) for i in pictures]
        with autocast(s):
            loss = picture_loss(s, vlm, features, pictures, texts)
        loop.update(loss)
    save_adapter(adapter, stage.folder)
    stage.finish(base=llm_name, seconds=loop.seconds, seen=loop.seen, params=count(vlm),
                 scores=score_vlm(vlm, exam, data))


def instruct(s, name, kind, llm_name="llm_source", adapter=None, watch=None, moments=(), **facts):
    """Stage 2: adapter and LLM learn together, from conversations, to answer about pictures.

    `kind` is mlp, langbridge or blind (no adapter, no picture); the adapter is the one that stage 1
    left, unless one is given. Its basis is a copy of the LLM's embeddings as they are at the start,
    and stays so while the LLM is tuned. watch(vlm, exam) is called at `moments` (see Loop); `facts`
    are kept with the scores.
    """
    stage, data = open_stage(s, name), s.data
    llm, encoding = load_llm(Path(s.out) / llm_name)
    llm.to(s.device)
    if adapter is None and kind != "blind":
        adapter = load_adapter(Path(s.out) / f"{kind}_align", drawn=0.0)
        adapter = adapter.to(s.device).set_basis(llm, encoding)
    trained = [llm] if adapter is None else [adapter, llm]
    vlm, features, exam = VLM(adapter, llm, encoding), training_features(s), held_out(s.out, s.device)

    def texts_about(pictures, rng):
        return [data.conversation(i, rng, s.instruct_turns, s.instruct_captions) for i in pictures]

    announce(s, name, trained, vlm, s.instruct_steps, s.instruct_batch,
             texts_about([0], random.Random(0))[0])
    loop = Loop(s, stage, trained, optimizers(s.instruct_matrix_lr, s.instruct_lr, *trained),
                s.instruct_steps, lambda: watch(vlm, exam), moments)
    for step in loop:
        rng = random.Random(f"instruct/{s.seed}/{step}")
        pictures = [rng.randrange(len(features)) for _ in range(s.instruct_batch)]
        texts = texts_about(pictures, rng)
        with autocast(s):
            loss = picture_loss(s, vlm, features, pictures, texts)
        loop.update(loss)
    save_llm(llm, encoding, stage.folder)
    if adapter is not None:
        save_adapter(adapter, stage.folder)
    stage.finish(base=llm_name, seconds=loop.seconds, seen=loop.seen, params=count(vlm),
                 scores=score_vlm(vlm, exam, data), **facts)


# ---- the whole run ------------------------------------------------------------------------------

class Job(NamedTuple):
    """A stage to be made: make(s, name, **arguments)"""
    s: Settings
    name: str
    make: Callable
    arguments: dict = {}


# in the order in which things happen; stages of one wave need those of the waves before
WAVES = [
    {"llm_target": (pretrain_llm, {}), "llm_source": (pretrain_llm, {}), "vit": (pretrain_vit, {})},
    {"langbridge_align": (align, {"kind": "langbridge", "study": True}),
     "mlp_align": (align, {"kind": "mlp", "study": True})},
    {"langbridge_instruct": (instruct, {"kind": "langbridge"}),
     "mlp_instruct": (instruct, {"kind": "mlp"}),
     "blind_instruct": (instruct, {"kind": "blind"})},
]
STAGES = [name for wave in WAVES for name in wave]


def make(job):
    """Make one stage, unless it is there already."""
    stage = open_stage(job.s, job.name)
    if stage.config() is not None:
        print(f"{job.name}: already there", flush=True)
        return
    job.make(job.s, job.name, **job.arguments)
    config = stage.config()
    scores = config.get("scores", config)
    said = [f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float) and "second" not in k]
    print(f"{job.name}: {', '.join(said)}  ({config['seconds']:.0f} s)", flush=True)


class Lanes:
    """Processes side by side, on a CPU: two stages on one thread each end sooner than one after the
    other on two threads. A lane keeps its number of threads when others are idle, for with another
    number sums are rounded otherwise, and a resumed run would not end bit for bit the same."""
    here = 0  # the line of this process's progress bar

    def __init__(self, s, most):
        self.lanes = min(s.threads, most) if s.device == "cpu" else 1
        self.threads = s.threads // self.lanes
        self.pool = None

    def __enter__(self):
        if self.lanes > 1:
            # glibc would give large blocks back to the system and fetch them again at every step
            os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2 ** 25))
            os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2 ** 30))
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.lanes, context, begin_lane,
                                            (context.Value("i", 0), self.threads))
        return self

    def run(self, jobs):
        """Make these stages; each lane takes the next one when it is free."""
        if self.pool is None or all(open_stage(job.s, job.name).config() for job in jobs):
            for job in jobs:
                make(job)
            return
        try:
            for done in as_completed([self.pool.submit(make, job) for job in jobs]):
                done.result()
        except BrokenProcessPool:
            raise Refused("a process was ended from outside (is the memory full?); run the same "
                          "command again to go on")

    def __exit__(self, error, *_):
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def begin_lane(counter, threads):
    """In each process of Lanes, before its first stage."""
    with counter.get_lock():
        Lanes.here = counter.value
        counter.value += 1
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


class Clock:
    """Adds the seconds of a `with` block to those in a file, however the block ends."""

    def __init__(self, path):
        self.path = path

    @property
    def total(self):
        return read_json(self.path) if self.path.exists() else 0.0

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *_):
        write_json(self.path, self.total + time.perf_counter() - self.began)


def results(s, seconds):
    """results.json: what the stages know of themselves; `seconds` is how long all of it took."""
    c = {name: open_stage(s, name).config() for name in STAGES}

    def took(*stages):
        return sum(c[stage]["seconds"] for stage in stages)

    llm_facts = ("params", "vocab", "text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type",
                 "raster_qa_by_type")
    vit_facts = [k for k in c["vit"] if k in ("params", "retrieval_top1") or k.startswith("probe_")]
    vlm = {kind: {phase: c[f"{kind}_{phase}"]["scores"] for phase in ("align", "instruct")}
           for kind in ("mlp", "langbridge")}
    vlm["blind"] = c["blind_instruct"]["scores"]
    vlm["chance"] = s.data.chance({split: s.data.count(split) for split in ("test", "comp")})
    return {
        "seed": s.seed, "preset": s.preset, "device": s.device, "torch": torch.__version__,
        "seconds": {"data": c["vit"]["seconds_features"], "llm_source": took("llm_source"),
                    "llm_target": took("llm_target"), "vit": took("vit"),
                    "align": took("mlp_align", "langbridge_align"),
                    "instruct": took("mlp_instruct", "langbridge_instruct", "blind_instruct"),
                    "total": seconds},
        "llm": {llm: {k: c[f"llm_{llm}"][k] for k in llm_facts} for llm in ("source", "target")},
        "shared_vocab": len(load_adapter(Path(s.out) / "langbridge_align").tokens),
        "vit": {k: c["vit"][k] for k in vit_facts},
        "vlm": vlm}


def print_table(vlm):
    """The scores of results.json's "vlm" for the terminal."""
    columns = ("vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1")
    print(f"\n{'':24}" + "".join(f"{column:>16}" for column in columns))
    for name, scores in (("MLP, align", vlm["mlp"]["align"]),
                         ("LangBridge, align", vlm["langbridge"]["align"]),
                         ("MLP, instruct", vlm["mlp"]["instruct"]),
                         ("LangBridge, instruct", vlm["langbridge"]["instruct"]),
                         ("blind, instruct", vlm["blind"]), ("chance", vlm["chance"])):
        print(f"{name:24}" + "".join(f"{scores[column]:16.3f}" for column in columns))


def main(s):
    torch.set_num_threads(s.threads)
    out = Path(s.out)
    waves = [[Job(s, name, *job) for name, job in wave.items()] for wave in WAVES]
    if s.stages != "all":
        wanted = s.stages.split(",")
        waves = [[job for job in wave if job.name in wanted] for wave in waves]
    done = [open_stage(s, name).config() is not None for name in STAGES]  # or refused, before all
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", asdict(s))
    print(f"nanoLangBridge: preset {s.preset}, device {s.device}, {s.precision}, {s.threads} "
          f"threads, torch {torch.__version__}, into {out}/", flush=True)
    clock = Clock(out / "seconds.json")
    if not all(done):
        with clock, Lanes(s, most=3) as lanes:
            for wave in waves:
                lanes.run(wave)
    if s.stages != "all":
        return
    r = results(s, clock.total)
    write_json(out / "results.json", r)
    print_table(r["vlm"])
    vlm = load_vlm(out, "langbridge_instruct")[1]
    show_answers(out / "samples.png", vlm, held_out(out)["test"], s.data, count=6)
    print(f"\n{clock.total / 60:.1f} minutes. Scores: {out}/results.json. Try next:\n"
          f"  python evaluate.py --out {out} --image results/picture.png\n"
          f"  python transfer.py --out {out}")


if __name__ == "__main__":
    run_command(lambda: main(parse_settings(sys.argv[1:])))
