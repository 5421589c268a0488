"""From random weights to a model that answers questions about pictures, in one command.

    python train.py                    everything, into out/
    python train.py --preset smoke     the same in a few seconds, to see that it runs
    python train.py --help             every setting, with the laptop's values
    python train.py --data train.json --images DIR     on pictures and conversations of your own

    stage          what is trained                     on what
    llm_source     a GPT                               text only
    llm_target     a larger GPT, another vocabulary    text only (transfer.py moves adapters to it)
    vit            a ViT and a small text tower        pairs of picture and alt text
    *_align        an adapter; LLM and ViT are frozen  captions of pictures (LLaVA's stage 1)
    *_instruct     the adapter and the LLM             conversations about pictures (stage 2)

with * = langbridge and mlp, both on the source LLM, and blind_instruct, the same without a picture.
Each stage is a folder under --out. Interrupted? Run the same command again: finished stages are
kept, an unfinished one resumes from its last checkpoint and, on a CPU, ends bit for bit as if
nothing had happened.
"""
import math
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from adapter import EMPTY, START, LangBridge, MLPAdapter, fingerprint, load_adapter, save_adapter
from data.bpe import PATTERNS, train_bpe
from data.corpus import DIALECTS, encode, prompt, vocabulary
from data.dataset import Shapes
from data.files import (Refused, Stage, lock, read_json, read_tensors, write_json, write_tensors,
                        write_text)
from data.own import open_own
from data.run import Job, Parser, Signals, Stopped, command, lane, make_stages, number, say
from data.scoring import join_splits
from data.vocabularies import PUBLIC, open_encoding
from data.words import words_in
from evaluate import (guesses, held_out, load_vlm, score_line, score_llm, score_vlm, show_mistakes,
                      subspace, top_words)
from model import GPT, VLM, GPTConfig, load_llm, save_llm
from vision import CLIP, ViTConfig, encode_pictures, probe, save_vit


# ---- settings -----------------------------------------------------------------------------------

def setting(default, help, choices=None, least=1, most=10 ** 6):
    """A field of Settings: its name becomes a flag, `help` what --help says of it. Whole numbers
    are `least` to `most`, others 0 to 1."""
    kind = {int: number(least, most), float: number(0, 1, float)}.get(type(default), str)
    return field(default=default, metadata={"help": help, "choices": choices, "type": kind})


@dataclass
class Settings:
    out: str = setting("out", "output folder; run the same command again to resume")
    preset: str = setting("laptop", "smoke takes seconds, and learns nothing", ["laptop", "smoke"])
    device: str = setting("auto", "cpu, cuda, mps, or auto")
    precision: str = setting("auto", "auto: bf16 on cuda, else fp32", ["auto", "fp32", "bf16"])
    stages: str = setting("all", "only these stages, separated by commas")
    threads: int = setting(0, "CPU threads in all; 0: as many as there are cores", None, 0, 1024)
    save_every: int = setting(60, "seconds between checkpoints", least=0)
    seed: int = setting(0, "seeds weights, documents and the order of data", None, 0, 10 ** 9)
    # what there is to see and to read
    data: str = setting("", "your conversations about pictures, in LLaVA's format (JSON)")
    images: str = setting("", "the folder of their pictures")
    val: str = setting("", "conversations that are held out; without them, a fifth of --data is")
    allow_bad: bool = setting(False, "train even if more than 5%% of --data cannot be used")
    pictures: int = setting(12000, "training pictures; with --data: at most", least=20)
    test_pictures: int = setting(600, "of the test split, each with four questions", least=20)
    H: int = setting(4, "attention heads of all models")
    # the language models; a vocabulary is learned from texts (bpe), or the part of a public one
    llm_source_tokenizer: str = setting("bpe", "of the source LLM", ["bpe", *PUBLIC])
    llm_source_V: int = setting(512, "its vocabulary (of a public one: at least)", least=300)
    llm_source_C: int = setting(128, "width")
    llm_source_layers: int = setting(2, "depth")
    llm_source_steps: int = setting(1400, "pretraining steps")
    llm_target_tokenizer: str = setting("bpe", "of the target LLM", ["bpe", *PUBLIC])
    llm_target_V: int = setting(640, "its vocabulary", least=300)
    llm_target_C: int = setting(160, "width")
    llm_target_layers: int = setting(3, "depth")
    llm_target_steps: int = setting(1250, "pretraining steps")
    llm_target_dialect: str = setting("target", "how its texts are written", list(DIALECTS)[1:])
    llm_batch: int = setting(10, "documents per step; many small steps beat a few large ones")
    llm_turns: int = setting(6, "questions and captions per scene, at most")
    llm_captions: float = setting(0.3, "probability that a turn is the caption (one at most)")
    llm_rasters: float = setting(0.75, "share of scenes given as a grid of words, not in sentences")
    llm_text_weight: float = setting(0.1, "loss weight of tokens outside answers")
    llm_matrix_lr: float = setting(0.03, "learning rate of the hidden matrices (Muon)")
    llm_lr: float = setting(0.006, "learning rate of everything else (AdamW)")
    # the vision encoder
    vit_size: int = setting(48, "picture side in pixels")
    vit_patch: int = setting(8, "patch side in pixels")
    vit_D: int = setting(128, "width")
    vit_layers: int = setting(3, "depth")
    vit_steps: int = setting(1200, "pretraining steps")
    vit_batch: int = setting(32, "pairs per step; half are twins, one attribute off", least=2)
    vit_matrix_lr: float = setting(0.01, "learning rate of the hidden matrices (Muon)")
    vit_lr: float = setting(0.001, "learning rate of everything else (AdamW)")
    # stage 1: the adapter on captions
    align_K: int = setting(0, "words of a LangBridge; 0: all that conversations use", least=0)
    align_hidden: int = setting(256, "hidden width of a LangBridge")
    align_coefficients: str = setting("softmax", "how outputs become weights", [*START])
    align_whiten: bool = setting(True, "whether a LangBridge reads whitened features")
    align_steps: int = setting(800, "steps")
    align_batch: int = setting(16, "pictures per step")
    align_word_loss: float = setting(0.0, "share of the word loss in the loss of a LangBridge")
    align_lr: float = setting(0.006, "learning rate (AdamW)")
    # stage 2: adapter and LLM on conversations
    instruct_steps: int = setting(400, "steps")
    instruct_batch: int = setting(16, "pictures per step")
    instruct_turns: int = setting(4, "turns of a conversation, at most")
    instruct_captions: float = setting(0.5, "probability that a turn is the caption (one at most)")
    instruct_matrix_lr: float = setting(0.006, "learning rate of the LLM's matrices (Muon)")
    instruct_lr: float = setting(0.001, "learning rate of everything else (AdamW)")

    @property
    def dataset(self):
        """What there is to see and to read (data/dataset.py)."""
        if not self.data:
            return Shapes(self.vit_size, self.pictures, self.test_pictures)
        return open_own(self.data, self.images, f"{self.out}/pictures", self.val, self.vit_size,
                        self.vit_size // self.vit_patch, self.pictures, self.test_pictures,
                        self.allow_bad)


PRESETS = {
    "laptop": {},
    "smoke": dict(
        pictures=64, test_pictures=20, llm_source_C=32, llm_source_layers=1, llm_source_steps=30,
        llm_target_C=48, llm_target_layers=2, llm_target_steps=30, llm_batch=4, llm_turns=4,
        vit_D=32, vit_layers=1, vit_steps=20, vit_batch=16, align_hidden=32, align_steps=20,
        align_batch=8, instruct_steps=20, instruct_batch=8)}
OWN = dict(  # with --data: more words, more things to tell apart, shorter texts
    pictures=10 ** 6, llm_source_V=4096, llm_target_V=5120, vit_steps=5000, llm_source_steps=1800,
    llm_target_steps=1800, llm_batch=24, llm_turns=10, llm_rasters=0.6, align_steps=1200,
    align_batch=32, align_word_loss=0.5, instruct_steps=1200)


def parse_settings(argv):
    """Settings from the command line; what it leaves out is as in the preset, else the default."""
    parser = Parser(__doc__)
    parser.add_fields(Settings)
    given = vars(parser.parse_args(argv))  # the flags that are there
    usual = (OWN if "data" in given else {}) | PRESETS[given.get("preset", "laptop")]
    s = Settings(**usual | given)
    s.out = str(Path(s.out))  # without a slash at its end
    s.threads = s.threads or os.cpu_count()
    if s.device == "auto":
        s.device = "cuda" if torch.cuda.is_available() else "cpu"
    if s.precision == "auto":
        s.precision = "bf16" if s.device == "cuda" else "fp32"
    s.data, s.images, s.val = (path and str(Path(path).resolve())
                               for path in (s.data, s.images, s.val))
    check(s)
    return s


def check(s):
    """Refuse settings that cannot work, before anything is made."""
    def expect(name, ok, what):
        if not ok:
            raise Refused(f"--{name} {getattr(s, name)}: expected {what}")

    try:
        torch.zeros(1, device=s.device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        expect("device", False, "a device of this machine and this torch; try --device cpu")
    if bool(s.data) != bool(s.images) or s.val and not s.data:
        raise Refused("--data FILE and --images DIR go together, and --val FILE with both")
    expect("stages", s.stages == "all" or {*s.stages.split(",")} <= {*STAGES},
           f"some of {', '.join(STAGES)}, or all")
    for name in {s.llm_source_tokenizer, s.llm_target_tokenizer} - {"bpe"}:
        open_encoding(name)  # refused now, not after training
    for name in ("llm_source_C", "llm_target_C", "vit_D"):
        expect(name, getattr(s, name) % (2 * s.H) == 0, f"a multiple of twice the {s.H} heads")
    expect("align_K", s.align_K != 1, "0, or at least 2: the empty word is one of them")
    expect("align_word_loss", s.align_word_loss == 0 or s.align_coefficients == "softmax",
           "0 with linear weights, which are no shares: add --align_word_loss 0")
    expect("vit_size", s.vit_size % (3 * s.vit_patch) == 0 and s.vit_size <= 16 * s.vit_patch,
           f"3, 6, .. or 15 times --vit_patch {s.vit_patch}; 6 is best, as in rasters")


def load_settings(out):
    """The settings that train.py used for a folder."""
    path = Path(out) / "settings.json"
    try:
        return Settings(**read_json(path) | {"out": str(Path(out))})
    except TypeError:
        raise Refused(f"{str(path)!r} is of another version of this project; make the folder again")


def open_stage(s, name):
    """A stage's folder and the settings that decide its result: its own, and those of the stages
    that it builds on. Only transfer.py's stages, whose names have a slash, build on both LLMs."""
    last = name.split("/")[-1]
    parts = {"vit": ["vit_"], "llm_source": ["llm_"], "llm_target": ["llm_"]}.get(
        last, ["llm_", "vit_", "align_"] + ["instruct_"] * (not last.endswith("_align")))
    parts += ["H", "seed", "precision", "pictures", "test_pictures"]
    unread = "llm_source" if last == "llm_target" else "none" if "/" in name else "llm_target"
    settings = {k: v for k, v in asdict(s).items()
                if k.startswith(tuple(parts)) and not k.startswith(unread)}
    return Stage(s.out, name, settings | s.dataset.sums)


# ---- optimisers ---------------------------------------------------------------------------------

class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for hidden matrices (Jordan et al. 2024).

        U S V^T = the gradient's momentum;  W <- W - lr * sqrt(max(1, rows / columns)) * U V^T

    torch.optim.Muon does the same in a bfloat16 that many CPUs have to emulate.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                average = self.state[p]["momentum"]
                average.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"])  # Nesterov
                rate = group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5
                p.sub_(orthogonal(ahead), alpha=rate)


def orthogonal(x):
    """U S V^T -> U V^T, approximately: x (rows, columns) -> the same.

    Five steps x <- p(x x^T) x of a Newton-Schulz iteration, p(a) = 3.4445 - 4.7750 a + 2.0315 a^2
    (Jordan's coefficients), drive all singular values towards 1. Because a = x x^T becomes
    p(a) a p(a), the steps need x itself only at the end: where rows are few, that is much cheaper.
    """
    if x.size(0) > x.size(1):
        return orthogonal(x.T).T
    x = x / (x.norm() + 1e-7)
    one = torch.eye(x.size(0), device=x.device)
    a = x @ x.T  # (rows, rows)
    p = steps = 3.4445 * one - 4.7750 * a + 2.0315 * a @ a
    for _ in range(4):
        a = p @ a @ p
        p = 3.4445 * one - 4.7750 * a + 2.0315 * a @ a
        steps = p @ steps  # the product of all p
    return steps @ x


def optimizers_of(matrix_lr, lr, *modules):
    """Muon for the matrices in transformer blocks, AdamW for the rest: embeddings, heads, adapters,
    convolutions, positions and biases."""
    matrices = [part.weight for module in modules for name, part in module.named_modules()
                if isinstance(part, nn.Linear) and "block" in name]
    hidden = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in hidden]
    adamw = torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, matrix_lr), adamw] if matrices else [adamw]


def update(optimizers):
    """One step. (No clipping: Muon's and AdamW's steps do not grow with the gradient.)"""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def schedule(step, steps):
    """The learning rates' factor: warm up, hold, then decay linearly over the last half."""
    return min((step + 1) / min(50, steps), 1.0, 2 * (1 - step / steps))


# ---- the steps of a stage -----------------------------------------------------------------------

class Run:
    """A stage's steps, from where its last checkpoint left off:

        run = Run(s, stage, [model], optimizers, steps)
        for step in run:       # all of a step's data depend on this number alone
            ...                # forward and backward
            run.record(loss)   # stops at a loss that is no number
            update(optimizers)

    A checkpoint holds all that a step depends on, so a killed stage resumes as if nothing had
    happened.
    """
    KEPT = ("step", "seconds", "smooth", "log", "measured", "top_words")

    def __init__(self, s, stage, modules, optimizers, steps):
        self.s, self.stage, self.steps, self.optimizers = s, stage, steps, optimizers
        self.parts = [*modules, *optimizers]  # whose state is kept
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.step, self.seconds = 0, 0.0  # seconds: spent in steps
        self.smooth = None  # running mean of the loss
        # rows of log.csv; what a stage measures on its way; {step: top words of a few pictures}
        self.log, self.measured, self.top_words = [], [], {}
        stage.folder.mkdir(parents=True, exist_ok=True)
        state = stage.load_state()
        if state:
            for part, saved in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(saved)
            self.__dict__.update(state["kept"])
            say(f"{stage.name}: resuming from step {self.step}")

    def __iter__(self):
        stage, saved = self.stage, time.perf_counter()
        self.bar = tqdm(desc=stage.name, initial=self.step, total=self.steps, leave=False,
                        mininterval=1, dynamic_ncols=True, position=lane(), disable=None)
        while self.step < self.steps:
            for optimizer, rate in zip(self.optimizers, self.rates):
                optimizer.param_groups[0]["lr"] = rate * schedule(self.step, self.steps)
            began, Signals.in_step = time.perf_counter(), True
            yield self.step
            self.seconds += time.perf_counter() - began
            self.step += 1
            self.bar.update()
            if Signals.asked or time.perf_counter() - saved > self.s.save_every:
                stage.save_state(parts=[part.state_dict() for part in self.parts],
                                 kept={name: getattr(self, name) for name in self.KEPT})
                saved = time.perf_counter()
                if self.bar.disable:  # no terminal: a log
                    say(f"{stage.name}: step {self.step} of {self.steps}, loss {self.smooth:.3f}")
            Signals.in_step = False
            if Signals.asked:
                raise Stopped(128 + Signals.asked)
        self.bar.close()
        write_text(stage.folder / "log.csv", "".join(["step,loss,smoothed,lr\n", *self.log]))

    def record(self, loss):
        """Note the loss of a step. Raises Refused, before it reaches a weight, if the loss or a
        gradient is no number."""
        largest = torch.stack([p.grad.abs().max() for optimizer in self.optimizers
                               for p in optimizer.param_groups[0]["params"]]).max().item()
        if not math.isfinite(loss + largest):  # the largest is nan if one of them is
            raise Refused(f"{self.stage.name}: at step {self.step} (seed {self.s.seed}) the loss "
                          f"is {loss}, the largest gradient {largest}; delete the folder "
                          f"'{self.stage.folder}' and try lower learning rates or --precision fp32")
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        self.bar.set_postfix_str(f"loss {self.smooth:.3f}", refresh=False)
        if self.step % 10 == 0 or self.step < 5 or self.step == self.steps - 1:
            lr = self.optimizers[-1].param_groups[0]["lr"]
            self.log.append(f"{self.step},{loss:.5f},{self.smooth:.5f},{lr:.6g}\n")


def autocast(s):
    """bfloat16 if the settings ask for it."""
    return torch.autocast(torch.device(s.device).type, torch.bfloat16, s.precision == "bf16")


def size_of(module):
    """Number of parameters; 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


# ---- texts and their loss -----------------------------------------------------------------------

class Sample(NamedTuple):
    """A text that is learned, and the picture that it is about, if any."""
    ids: list  # tokens
    weights: list  # of each token in the loss
    picture: int | None = None


def by_length(samples):
    """A batch in two parts, the shorter texts and the longer ones, so that little is padded, and
    what one part needs in memory is freed before the next."""
    samples = sorted(samples, key=lambda sample: len(sample.ids))
    half = math.ceil(len(samples) / 2)
    return [part for part in (samples[:half], samples[half:]) if part]


def pad(rows, dtype):
    """Lists of different lengths as one tensor (B, T), zeros at the end."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], True)


def padded(part):
    """The ids and the weights of a part's samples, 0 for padding: 2 x (B, T)"""
    ids = pad([sample.ids for sample in part], torch.long)
    return ids, pad([sample.weights for sample in part], torch.float)


def weighted_loss(head, hidden, ids, weights):
    """The cross-entropy of tokens, summed by weight: what predicts them hidden (B, T, C), ids and
    weights (B, T) -> ()

    Only tokens that weigh something go through the head, the largest matrix of a small LLM.
    """
    wanted = weights.flatten().nonzero().squeeze(1)  # (n,)
    ids, weights = (x.flatten()[wanted].to(hidden.device) for x in (ids, weights))  # 2 x (n,)
    logits = head(hidden.flatten(0, 1)[wanted.to(hidden.device)])  # (n, V)
    return (F.cross_entropy(logits.float(), ids, reduction="none") * weights).sum()


def text_loss(s, llm, part):
    """The summed loss of predicting each token of some texts from those before it."""
    ids, weights = padded(part)  # 2 x (B, T)
    with autocast(s):
        hidden = llm.hidden(llm.embed(ids[:, :-1]))  # (B, T - 1, C)
        return weighted_loss(llm.head, hidden, ids[:, 1:], weights[:, 1:])


def answer_loss(s, vlm, part, features):
    """The summed loss of the answers of some conversations, each about a picture.

    features: (pictures, N, D) of all training pictures
    """
    ids, weights = padded(part)  # 2 x (B, T)
    x = features[[sample.picture for sample in part]].float().to(s.device)  # (B, N, D)
    with autocast(s):
        hidden = vlm(x, ids)  # (B, T, C)
        return weighted_loss(vlm.llm.head, hidden, ids, weights)


def word_loss(s, vlm, part, features):
    """Do the patches of a LangBridge say the n content words of the caption? Summed over pictures.

        loss = - mean over these words of ln p - ln n     (p: LangBridge.spoken; perfect: near 0)

    The LLM sees v = beta @ E alone. If there are more words than E has dimensions, many beta give
    one v: whichever W finds, its LLM is content, and another LLM reads nonsense. This loss says
    which words, but not where they belong: that only the LLM knows.
    """
    x = features[[sample.picture for sample in part]].float().to(s.device)  # (B, N, D)
    said = vlm.adapter.said_in(vlm.encoding, [
        [i for i, weight in zip(sample.ids, sample.weights) if weight] for sample in part])
    said, log_p = said.to(s.device), vlm.adapter.spoken(x).clamp_min(1e-12).log()  # 2 x (B, K)
    n = said.sum(1).clamp_min(1)  # (B,)
    return (-(said * log_p).sum(1) / n - n.log()).sum()


def marked(pieces):
    """The text of a document, with the [answers] in brackets."""
    return "".join(f"[{text}]" if weight else text for text, weight in pieces)


# ---- text: the language models ------------------------------------------------------------------

def new_llm(s, name):
    """An untrained GPT and its vocabulary, with the dialect of its texts: (GPT, Encoding, str)"""
    dialect = "source" if name == "llm_source" else s.llm_target_dialect
    known, V, C, layers = (getattr(s, f"{name}_{what}")
                           for what in ("tokenizer", "V", "C", "layers"))
    torch.manual_seed(s.seed)
    encoding = vocabulary(s.dataset, dialect, known, V, s.seed)
    return GPT(GPTConfig(encoding.n_vocab, C, s.H, layers)).to(s.device), encoding, dialect


def pretrain_llm(s, stage):
    """A GPT from scratch, on text alone: predict the next token, answers above all."""
    data, steps = s.dataset, getattr(s, f"{stage.name}_steps")
    llm, encoding, dialect = new_llm(s, stage.name)

    def document(i):
        return data.document(dialect, s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions)

    say(f"{stage.name}: a GPT of {size_of(llm):,} parameters, all trained, on {steps} x "
        f"{s.llm_batch} documents; vocabulary {encoding.n_vocab}; the first loss should be ln V = "
        f"{math.log(encoding.n_vocab):.2f}. The first document ([answers] weigh most):\n"
        f"{marked(document(0))}")
    optimizers = optimizers_of(s.llm_matrix_lr, s.llm_lr, llm)
    run = Run(s, stage, [llm], optimizers, steps)
    for step in run:
        samples = []
        for i in range(step * s.llm_batch, (step + 1) * s.llm_batch):
            ids, weights = encode(encoding, document(i), llm.config.context)
            samples.append(Sample(ids, [max(weight, s.llm_text_weight) for weight in weights]))
        weight, total = sum(sum(sample.weights[1:]) for sample in samples), 0.0
        for part in by_length(samples):
            loss = text_loss(s, llm, part) / weight
            loss.backward()
            total += loss.item()
        run.record(total)
        update(optimizers)
    save_llm(llm, encoding, stage.folder)
    asked = " ".join(text for i in range(min(2000, steps * s.llm_batch))
                     for text, _ in document(i) if text.startswith(prompt("")))
    habits = {"words": sorted({*words_in(asked)}), "request": data.request,
              "examples": data.example_questions()}  # evaluate.py refuses other words
    stage.finish(seconds=run.seconds, params=size_of(llm), habits=habits,
                 scores=score_llm(llm, encoding, data, dialect))


# ---- pictures: the vision encoder ---------------------------------------------------------------

def pairs_of(s, encoding, pictures, texts):
    """pictures (B, size, size, 3) uint8, and of their texts ids (B, T) and mask (B, T)"""
    ids = [encoding.encode_ordinary(text) for text in texts]
    mask = pad([[1] * len(row) for row in ids], torch.bool)
    pictures = torch.from_numpy(pictures).to(s.device)
    return pictures, pad(ids, torch.long).to(s.device), mask.to(s.device)


def pretrain_vit(s, stage):
    """A ViT from scratch, contrastively: which alt text belongs to which picture of a batch?

    Half of a batch are twins of the other half. To tell a picture from its twin, every detail must
    be seen, not only those in which random pictures differ.
    """
    data = s.dataset
    torch.manual_seed(s.seed)
    encoding = train_bpe(data.alt_texts(s.seed, 500), data.alt_V, PATTERNS["source"])
    config = ViTConfig(s.vit_size, s.vit_patch, s.vit_D, s.H, s.vit_layers)
    model = CLIP(config, encoding.n_vocab).to(s.device)
    say(f"vit: a ViT of {size_of(model.vit):,} parameters and {size_of(model):,} with its text "
        f"tower, all trained, on {s.vit_steps} x {s.vit_batch} pictures with texts; the first loss "
        f"should be about ln {s.vit_batch} = {math.log(s.vit_batch):.2f}")
    optimizers = optimizers_of(s.vit_matrix_lr, s.vit_lr, model)
    run = Run(s, stage, [model], optimizers, s.vit_steps)
    for step in run:
        pairs = pairs_of(s, encoding, *data.pairs(s.seed, step, s.vit_batch))
        with autocast(s):
            loss = model.loss(*pairs)
        loss.backward()
        run.record(loss.item())
        update(optimizers)
    save_vit(model.vit, stage.folder)

    features = {split: encode_pictures(model.vit, data, split) for split in data.SPLITS}
    write_tensors(stage.folder / "features.pt", features)
    scores = probe(features, data)  # {split: ..}
    for split in ("val", "test"):  # how often a picture finds its own text among those of 100
        pictures, texts = data.test_pairs(split)
        with torch.no_grad():
            found = model(*pairs_of(s, encoding, pictures, texts)).argmax(1).tolist()
        own = [texts[j] == text for j, text in zip(found, texts)]  # some texts are alike
        scores[split] = {"retrieval_top1": float(np.mean(own))} | scores[split]
    stage.finish(data=data.config(), seconds=run.seconds, params=size_of(model.vit),
                 scores=join_splits(scores))


# ---- pictures as words: the adapters ------------------------------------------------------------

def words_of(s, encoding):
    """The words of a LangBridge, as byte strings: the tokens of conversations, most used first.

    Nothing is asked of the LLMs that it may be moved to.
    """
    text, data = "", s.dataset
    for i in range(data.sampled):
        text += "".join(piece for piece, _ in data.conversation(i, random.Random(i), turns=4))
    ids, times = np.unique(encoding.encode_ordinary(text), return_counts=True)
    ranked = ids[np.argsort(-times, kind="stable")].tolist()
    used = [encoding.decode_single_token_bytes(i) for i in ranked]
    return [EMPTY, *(word for word in used if word != EMPTY)][:s.align_K or None]


def training_features(s):
    """The frozen features of the training pictures: (pictures, N, D)"""
    return read_tensors(Path(s.out) / "vit" / "features.pt", mmap=True)["train"]


def new_adapter(s, kind, llm, encoding):
    """An untrained adapter (mlp or langbridge) to an LLM."""
    torch.manual_seed(s.seed)
    if kind == "mlp":
        return MLPAdapter(s.vit_D, llm.config.C).to(s.device)
    adapter = LangBridge(s.vit_D, words_of(s, encoding), s.align_hidden, s.align_coefficients)
    if s.align_whiten:
        adapter.whiten(training_features(s)[:1000].float().flatten(0, 1))
    return adapter.to(s.device).set_basis(llm, encoding)


def train_vlm(s, stage, phase, kind=None, llm_name="llm_source", adapter=None):
    """Stage 1 (align) or stage 2 (instruct) of a VLM.

        align       a new adapter, `kind` mlp or langbridge, learns to caption pictures; the LLM is
                    frozen
        instruct    adapter and LLM learn from conversations: the adapter that align left beside
                    this stage, if a kind is given, else the given one; None is blind

    In stage 2 the basis E of a LangBridge stays what it was: a copy of the embeddings of the
    untuned LLM. So words keep the meaning that they had for W. In stage 1 it is measured on the way
    how close visual tokens come to words (evaluate.subspace), and a LangBridge's top words are kept
    for results/page.py.
    """
    data, features = s.dataset, training_features(s)  # (pictures, N, D)
    llm, encoding = load_llm(Path(s.out) / llm_name)
    llm.to(s.device)
    steps, size, lr = (getattr(s, f"{phase}_{what}") for what in ("steps", "batch", "lr"))
    if phase == "align":
        adapter = new_adapter(s, kind, llm, encoding)
        llm.requires_grad_(False)
        trained = [adapter]
    else:
        if kind:
            adapter = load_adapter(stage.folder.with_name(f"{kind}_align")).to(s.device)
            adapter.set_basis(llm, encoding)
        trained = [module for module in (adapter, llm) if module]
    vlm, exam = VLM(adapter, llm, encoding), held_out(s.out, s.device, data=data)
    room = vlm.room(features.size(1))

    def text_about(i, rng):
        if phase == "align":
            return data.description(i, rng)
        return data.conversation(i, rng, s.instruct_turns, s.instruct_captions)

    say(f"{stage.name}: {sum(map(size_of, trained)):,} of {size_of(vlm):,} parameters trained "
        f"(adapter {size_of(adapter):,}, LLM {size_of(llm):,}), on {steps} x {size} of "
        f"{len(features)} pictures; the first sample ([answers] are learned):\n"
        f"[picture] {marked(text_about(0, random.Random(0)))}")
    studied = phase == "align" and data.kinds  # of other data it is not known what objects show
    study_at = {0, *(int(steps ** (i / 8)) for i in range(8))} if studied else ()  # on a log axis
    share = s.align_word_loss if phase == "align" and kind == "langbridge" else 0.0
    optimizers = optimizers_of(s.instruct_matrix_lr, lr, *trained)  # no Muon for an adapter alone
    run = Run(s, stage, trained, optimizers, steps)

    def study(step):
        run.measured.append([step, subspace(vlm, exam["test"], data)])
        if kind == "langbridge":
            run.top_words[step] = top_words(adapter, exam["test"])
            write_tensors(stage.folder / "top_words.pt", run.top_words)

    for step in run:
        if step in study_at:
            study(step)
        rng = random.Random(f"{phase}/{s.seed}/{step}")  # all adapters meet the same samples
        pictures = [rng.randrange(len(features)) for _ in range(size)]
        samples = [Sample(*encode(encoding, text_about(i, rng), room), i) for i in pictures]
        weight, total = sum(sum(sample.weights) for sample in samples), 0.0
        for part in by_length(samples):
            loss = (1 - share) * answer_loss(s, vlm, part, features) / weight
            if share:
                loss += share * word_loss(s, vlm, part, features) / size
            loss.backward()
            total += loss.item()
        run.record(total)
        update(optimizers)
    if studied:
        study(steps)
    if phase == "instruct":
        save_llm(llm, encoding, stage.folder)
    if adapter is not None:
        save_adapter(adapter, stage.folder)
    stage.finish(base=llm_name, seconds=run.seconds, measured=run.measured, params=size_of(vlm),
                 hash=fingerprint(adapter), scores=score_vlm(vlm, exam, data))


# ---- python train.py ----------------------------------------------------------------------------

STAGES = {  # name: (how it is made, with what, after which), the most urgent first
    "llm_source": (pretrain_llm, {}, []),
    "vit": (pretrain_vit, {}, []),
    "langbridge_align": (train_vlm, dict(phase="align", kind="langbridge"),
                         ["llm_source", "vit"]),
    "langbridge_instruct": (train_vlm, dict(phase="instruct", kind="langbridge"),
                            ["langbridge_align"]),
    "llm_target": (pretrain_llm, {}, []),
    "mlp_align": (train_vlm, dict(phase="align", kind="mlp"), ["llm_source", "vit"]),
    "mlp_instruct": (train_vlm, dict(phase="instruct", kind="mlp"), ["mlp_align"]),
    "blind_instruct": (train_vlm, dict(phase="instruct"), ["llm_source", "vit"]),
}


def say_scores(stage):
    """A line about a finished stage. Scores on val, for these may guide a choice."""
    config = stage.config()
    scores = [f"{name} {value:.3f}" for name, value in config["scores"]["val"].items()
              if isinstance(value, float)]
    say(f"{stage.name}: {', '.join(scores)}  ({config['seconds']:.0f} s)")


def main():
    s, began = parse_settings(sys.argv[1:]), time.perf_counter()
    torch.set_num_threads(s.threads)
    lock(s.out)
    out, stages = Path(s.out), {name: open_stage(s, name) for name in STAGES}
    for stage in stages.values():
        stage.config()  # refuses other settings
    write_json(out / "settings.json", asdict(s))
    say(f"nanoLangBridge: preset {s.preset}, device {s.device}, {s.precision}, {s.threads} "
        f"threads, torch {torch.__version__}, into {out}/")
    folder, picture = quote(s.out), quote(s.dataset.example_picture)
    query = f"  python evaluate.py --out {folder} --image {picture}"
    page = "" if s.data else f"\n  python results/page.py --out {folder}"

    def finished(stage):
        say_scores(stage)
        if stage.name == "langbridge_instruct":
            say(f"\nAfter {(time.perf_counter() - began) / 60:.1f} minutes you can query the first "
                f"model, in another terminal, while the rest is trained:\n{query}\n")

    wanted = STAGES if s.stages == "all" else s.stages.split(",")
    if s.data and "llm_target" in wanted and not stages["llm_target"].config():
        _, encoding, _ = new_llm(s, "llm_source")  # refused now, not after training:
        LangBridge(s.vit_D, words_of(s, encoding)).set_basis(*new_llm(s, "llm_target")[:2])
    jobs = [Job(partial(make, s, **arguments), stages[name], after)
            for name, (make, arguments, after) in STAGES.items() if name in wanted]
    make_stages(s, jobs, finished)
    if s.stages != "all":
        return
    result = results_of(s, stages, time.perf_counter() - began)
    write_json(out / "results.json", result)
    print(f"\n{score_line('on the test split', s.dataset)}")
    for model, scores in result["vlm"].items():  # an adapter has some after each of its stages
        for phase, its in scores.items() if "align" in scores else [("", scores)]:
            print(score_line(f"{model} {phase}", s.dataset, its))
    _, vlm = load_vlm(out, "langbridge_instruct")
    test = held_out(out, splits=["test"], data=s.dataset)
    show_mistakes(out / "samples.png", vlm, test, s.dataset, count=6)
    print(f"\n{result['seconds']['total'] / 60:.1f} minutes. Scores: {out}/results.json. Try "
          f"next:\n{query}\n  python transfer.py --out {folder}{page}")


def results_of(s, stages, seconds):
    """results.json: the scores of all stages, beside chance and the most frequent answers."""
    configs = {name: stage.config() for name, stage in stages.items()}

    def part(name):
        return {"params": configs[name]["params"]} | configs[name]["scores"]

    return {
        "seed": s.seed, "preset": s.preset, "device": s.device, "torch": torch.__version__,
        "commit": ", ".join(sorted({config["commit"] for config in configs.values()})),
        "K": len(load_adapter(stages["langbridge_align"].folder).tokens),
        "seconds": {name: config["seconds"] for name, config in configs.items()}
                   | {"total": seconds},  # in steps; the total is of the last command
        "llm": {name: part(f"llm_{name}") for name in ("source", "target")}, "vit": part("vit"),
        "vlm": {kind: {phase: configs[f"{kind}_{phase}"]["scores"]
                       for phase in ("align", "instruct")} for kind in ("mlp", "langbridge")}
               | {"blind": configs["blind_instruct"]["scores"]} | guesses(s.dataset)}


if __name__ == "__main__":
    with command():
        main()
