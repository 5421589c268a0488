"""From nothing to a picture that answers: every stage, from random weights, in one command.

    python train.py                    everything into out/, in the preset that fits the machine
    python train.py --preset smoke     the same in under a minute, to see that it runs
    python train.py --help             every setting

    stage          what is trained                     on what
    llm_source     a GPT                               text only
    llm_target     a larger GPT, another vocabulary    text only (transfer.py moves adapters to it)
    vit            a ViT and a small text tower        pairs of picture and caption
    *_align        an adapter, LLM and ViT frozen      captions of pictures              LLaVA's stage 1
    *_instruct     the adapter and the LLM             conversations about pictures      LLaVA's stage 2

with * = langbridge and mlp, both on the source LLM, and blind_instruct: the same tuning without a picture. Each stage is a
folder under --out. Run the same command again after an interruption: finished stages are kept, an unfinished one goes
on from its last checkpoint and, on a CPU, ends bit for bit as if nothing had happened.
"""
import argparse
import difflib
import inspect
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from adapter import BASES, COEFFICIENTS, NOTHING, LangBridge, MLPAdapter, load_adapter, save_adapter
from data.bpe import PATTERNS, shared_tokens, train_bpe
from data.corpus import conversation, description, document, encode, train_tokenizer
from data.report import contact_sheet
from data.scoring import score_chance
from data.world import World, draw, draw_split, keywords, make_scene, twin
from evaluate import examine_vlm, fail, held_out, load_vlm, score_features, score_llm, score_vlm, subspace
from model import GPT, VLM, GPTConfig, load_llm, save_llm
from vision import CLIP, ViTConfig, save_vit


@dataclass
class Settings:
    out: str = "out"  # folder for everything this command makes; run it again to continue there
    preset: str = "auto"  # smoke (under a minute), laptop, gpu, or auto: gpu if there is one, otherwise laptop
    device: str = "auto"  # cpu, cuda, mps, or auto
    precision: str = "auto"  # fp32, bf16 (autocast), or auto: bf16 on cuda, fp32 elsewhere
    stages: str = "all"  # only these stages, separated by commas
    threads: int = 0  # CPU threads in all; 0: as many as there are cores
    save_every: int = 60  # seconds between checkpoints
    parts: int = 2  # forward passes for a batch of texts about pictures, the short ones first: less padding on a CPU; a GPU is best with 1
    seed: int = 0  # of weights, order of data, documents
    # the world
    max_objects: int = 3  # most objects in a scene
    rich: bool = False  # sizes, relations (left of, above), synonyms and more wordings
    pictures: int = 12000  # training pictures for align and instruct
    test_pictures: int = 600  # pictures of the test split; each has two questions, one yes/no question and a caption
    # llm: the two language models
    llm_source_V: int = 512  # vocabulary of the source LLM
    llm_source_C: int = 128  # width
    llm_source_layers: int = 2  # depth
    llm_source_steps: int = 2000  # pretraining steps
    llm_target_V: int = 640  # vocabulary of the target LLM
    llm_target_C: int = 160  # width
    llm_target_layers: int = 3  # depth
    llm_target_steps: int = 1800  # pretraining steps
    llm_H: int = 4  # attention heads of both
    llm_batch: int = 10  # documents a step; many small steps teach more than few large ones
    llm_turns: int = 8  # questions and captions that follow a scene, at most
    llm_captions: float = 0.3  # share of these that ask for a description
    llm_rasters: float = 0.6  # share of scenes given as a raster of words instead of sentences
    llm_text_weight: float = 0.1  # weight in the loss of tokens that are no answer
    llm_matrix_lr: float = 0.03  # learning rate of the hidden matrices (Muon)
    llm_lr: float = 0.006  # learning rate of everything else (AdamW)
    # vit: the vision encoder
    vit_size: int = 48  # picture side in pixels
    vit_patch: int = 8  # patch side in pixels
    vit_D: int = 128  # width
    vit_layers: int = 3  # depth
    vit_steps: int = 1500  # pretraining steps
    vit_batch: int = 32  # pairs a step; half of them differ from the other half in one word
    vit_matrix_lr: float = 0.01  # learning rate of the hidden matrices (Muon)
    vit_lr: float = 0.001  # learning rate of everything else (AdamW)
    # align: stage 1, the adapter on captions
    align_K: int = 0  # words that a LangBridge may use; 0: all that both tokenizers have and conversations use; 1000: every shared token
    align_hidden: int = 256  # hidden width of a LangBridge
    align_coefficients: str = "softplus"  # how a LangBridge weighs words: softplus, softmax, relu or linear
    align_basis: str = "words"  # what a LangBridge combines: words, or centered (their differences from their mean)
    align_drawn: float = 0.25  # share of patches that, in training, say one word drawn by its weight instead of a mixture
    align_steps: int = 600  # steps
    align_batch: int = 32  # pictures a step
    align_matrix_lr: float = 0.01  # learning rate of the adapter's matrices (Muon)
    align_lr: float = 0.003  # learning rate of its biases (AdamW)
    # instruct: stage 2, adapter and LLM on conversations
    instruct_steps: int = 800  # steps
    instruct_batch: int = 16  # pictures a step
    instruct_turns: int = 4  # turns of a conversation, at most
    instruct_captions: float = 0.3  # share of the turns that ask for a caption
    instruct_lr: float = 0.001  # learning rate of embeddings, head and small parts (AdamW)
    instruct_matrix_lr: float = 0.006  # learning rate of the matrices of adapter and LLM (Muon)

    @property
    def world(self):
        return World(self.max_objects, self.rich)


PRESETS = {
    "laptop": {},
    "smoke": dict(pictures=64, test_pictures=20, llm_source_C=32, llm_source_layers=1, llm_source_steps=30, llm_target_C=48, llm_target_layers=2,
                  llm_target_steps=30, llm_batch=4, llm_turns=4, vit_D=32, vit_layers=1, vit_steps=20, vit_batch=16,
                  align_hidden=32, align_steps=20, align_batch=8, instruct_steps=20, instruct_batch=8),
    "gpu": dict(parts=1, max_objects=5, rich=True, pictures=40000, test_pictures=1000, llm_source_C=256, llm_source_layers=3, llm_source_steps=4000,
                llm_target_C=384, llm_target_layers=4, llm_target_steps=4000, llm_H=8, llm_batch=32, llm_turns=12, vit_size=96, vit_patch=16,
                vit_D=256, vit_layers=4, vit_steps=1500, vit_batch=128, align_hidden=1024, align_steps=1500, align_batch=64,
                instruct_steps=1000, instruct_batch=64),
}


# ---- settings ----------------------------------------------------------------------------------------------------------

def field_help():
    """{field: the comment beside it in the dataclass}: written once, shown by --help."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Settings), re.M))


def parse_settings(argv):
    """The command line as Settings: defaults, then the preset's values, then the flags. Unknown flags name the nearest."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    help = field_help()
    for f in fields(Settings):
        kind = dict(action=argparse.BooleanOptionalAction) if f.type is bool else dict(type=f.type, metavar=f.type.__name__.upper())
        parser.add_argument(f"--{f.name}", default=None, help=f"{help[f.name].replace('%', '%%')} (default: {f.default})", **kind)
    parser.error = lambda message: fail(f"{message}; see python train.py --help")
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].lstrip("-").split("=")[0], help, 1)
        fail(f"unknown setting {unknown[0]!r}" + (f"; did you mean --{near[0]}?" if near else "; see python train.py --help"))
    given = {name: value for name, value in vars(given).items() if value is not None}
    device = given.get("device", "auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = given.get("preset", "auto")
    if preset == "auto":
        preset = "gpu" if device == "cuda" else "laptop"
    if preset not in PRESETS:
        fail(f"--preset {preset}: expected one of {', '.join(PRESETS)}, auto")
    precision = given.get("precision", "auto")
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    s = Settings(**{**PRESETS[preset], **given, "preset": preset, "device": device, "precision": precision})
    check(s)
    return s


def as_flags(s):
    """Settings as a command line that parse_settings reads; without `stages`."""
    flag = lambda name, value: f"--{name}={value}" if not isinstance(value, bool) else f"--{name}" if value else f"--no-{name}"
    return [flag(name, value) for name, value in asdict(s).items() if name != "stages"]


def check(s):
    """Refuse settings that cannot work, before anything is made."""
    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        fail(f"--device {s.device}: this machine or this torch has no such device; try --device cpu")
    if s.align_coefficients not in COEFFICIENTS:
        fail(f"--align_coefficients {s.align_coefficients}: expected one of {', '.join(COEFFICIENTS)}")
    if s.align_basis not in BASES:
        fail(f"--align_basis {s.align_basis}: expected one of {', '.join(BASES)}")
    for name in re.split("[,;]", s.stages) if s.stages != "all" else []:
        if name not in STAGES:
            fail(f"--stages {name}: expected some of {', '.join(STAGES)}, or all")
    if s.parts < 1:
        fail(f"--parts {s.parts}: expected 1 or more")
    if not 0 <= s.align_drawn <= 1:
        fail(f"--align_drawn {s.align_drawn}: expected a share between 0 and 1")
    if s.precision not in ("fp32", "bf16"):
        fail(f"--precision {s.precision}: expected fp32, bf16 or auto")
    if s.vit_patch < 1 or s.vit_size % (3 * s.vit_patch):
        fail(f"--vit_size {s.vit_size} --vit_patch {s.vit_patch}: a place of the 3 x 3 board must be a whole number of patches; best are "
             f"6 x 6 patches, for the rasters that the LLMs read have 6 x 6 words: --vit_patch {s.vit_size // 6} --vit_size {s.vit_size // 6 * 6}")
    if not 1 <= s.max_objects <= 6:
        fail(f"--max_objects {s.max_objects}: expected 1 to 6")
    for name in ("llm_source_C", "llm_target_C"):
        if getattr(s, name) % (2 * s.llm_H):
            fail(f"--{name} {getattr(s, name)}: must be a multiple of twice the {s.llm_H} heads")
    for name in ("llm_source_V", "llm_target_V"):
        if getattr(s, name) < 300:
            fail(f"--{name} {getattr(s, name)}: expected at least 300, for 256 of them are the bytes")


def save_settings(s):
    """Into settings.json, so that transfer.py and evaluate.py need no flag but --out."""
    write(Path(s.out) / "settings.json", lambda path: path.write_text(json.dumps(asdict(s), indent=1), encoding="utf-8"))


def load_settings(out):
    """The settings of what train.py left in a folder."""
    path = Path(out) / "settings.json"
    if not path.exists():
        fail(f"there is no {str(path)!r}; 'python train.py --out {out}' makes it")
    return replace(Settings(**json.loads(path.read_text(encoding="utf-8"))), out=str(out))


def recipe(s, stage):
    """The settings that decide what a stage's result is: its own and those of the stages before it; of other stages, all."""
    order = ["llm", "vit", "align", "instruct"]
    stage = stage.split("/")[-1]
    kind = next((k for k in order if k in stage), "instruct")
    before = ("llm",) if kind == "llm" else ("vit",) if kind == "vit" else tuple(order[:order.index(kind) + 1])
    other = {"llm_source": "llm_target", "llm_target": "llm_source"}.get(stage, " ")
    return {k: v for k, v in asdict(s).items() if k in ("seed", "max_objects", "rich") or k.startswith(before) and not k.startswith(other)
            or k in ("pictures", "test_pictures") and kind != "llm"}


# ---- optimisation ------------------------------------------------------------------------------------------------------

class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: for hidden matrices, the level of AdamW in a third of the steps here.

    U S V^T = gradient's momentum;  W <- W - lr * sqrt(max(1, rows / columns)) * U V^T        (Jordan et al. 2024)

    U V^T comes from five Newton-Schulz iterations. torch.optim.Muon does the same one matrix at a time and in bfloat16,
    which a CPU without bfloat16 units has to emulate, some sixty times slower; here equal shapes go as one batch, in float32.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                updates = []
                for p in params:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov
                x = torch.stack(updates)  # (number of matrices, rows, columns)
                x = x.mT if rows > columns else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.mT if rows > columns else x
                for p, update in zip(params, x):
                    p.sub_(update, alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def optimizers(matrix_lr, lr, *modules):
    """Muon for the matrices of blocks and adapters, AdamW for embeddings, heads, convolutions, vectors and scalars."""
    named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
    hidden = lambda n, p: p.ndim == 2 and not re.search("embed|position|project|head|conv", n)
    matrices, others = [p for n, p in named if hidden(n, p)], [p for n, p in named if not hidden(n, p)]
    result = [Muon(matrices, matrix_lr)] if matrices else []
    return result + [torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0)]


def schedule(step, steps, warmup=50, decay=0.5):
    """The learning rate's factor: up, level, and down to zero over the last half, which is worth several points."""
    return min((step + 1) / min(warmup, steps), 1.0, (1 - step / steps) / decay)


def count(module):
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def write(path, save):
    """Write a file aside and rename it, so that a kill or a full disk leaves the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".new")
    save(aside)
    os.replace(aside, path)


def fit(s, folder, title, modules, opts, steps, loss_at, watch=None, moments=()):
    """The training loop of every stage: `loss_at(step)` -> loss, a function of the step alone, so that it can go on anywhere.

    Checkpoints the modules, the optimisers and the step to folder/state.pt every --save_every seconds, and resumes from
    there. Writes folder/log.csv. `watch()` measures something after each number of steps in `moments`.
    Returns (the seconds of training, those before an interruption included; [[steps done, what watch() returned], ..]).
    """
    folder.mkdir(parents=True, exist_ok=True)
    parent, rates = os.getppid(), [opt.param_groups[0]["lr"] for opt in opts]
    start, spent, smooth, log, seen = 0, 0.0, None, [], []
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=s.device, weights_only=True)
        if state["recipe"] != recipe(s, folder.name):
            refuse(folder, state["recipe"], recipe(s, folder.name))
        for part, saved in zip([*modules, *opts], state["parts"], strict=True):
            part.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        start, spent, smooth, log, seen = (state[k] for k in ("step", "seconds", "smooth", "log", "seen"))
        print(f"{title}: going on from step {start}")
    modes = lambda training: [m.train(training) for m in modules]
    modes(True)
    saved = time.perf_counter()
    bar = tqdm(range(start, steps), title.split("/")[-1], initial=start, total=steps, mininterval=1 if sys.stderr.isatty() else 60, dynamic_ncols=True,
               leave=False, position=int(os.environ.get("LANE", 0)))
    for step in bar:
        if step in moments:
            seen.append([step, watch()])
            modes(True)
        began = time.perf_counter()
        for opt, rate in zip(opts, rates):
            opt.param_groups[0]["lr"] = rate * schedule(step, steps)
        with torch.autocast(torch.device(s.device).type, torch.bfloat16, enabled=s.precision == "bf16"):
            loss = loss_at(step)
        value = loss.item()
        if not math.isfinite(value):
            fail(f"{title}: the loss is {value} at step {step}; lower the learning rate (its settings are in {folder}/log.csv)")
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        spent += time.perf_counter() - began
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if step % 10 == 0 or step == steps - 1:
            log.append([step, round(value, 5), round(smooth, 5), opts[-1].param_groups[0]["lr"]])
            bar.set_postfix_str(f"loss {smooth:.3f}", refresh=False)
        if time.perf_counter() - saved > s.save_every and step + 1 < steps:
            saved = time.perf_counter()
            state = {"parts": [part.state_dict() for part in [*modules, *opts]], "step": step + 1, "smooth": smooth, "log": log, "seen": seen,
                     "seconds": spent, "rng": torch.get_rng_state(), "recipe": recipe(s, folder.name)}
            write(folder / "state.pt", lambda path: torch.save(state, path))
        if "LANE" in os.environ and os.getppid() != parent:  # a lane whose train.py was killed must not live on
            sys.exit("train.py was stopped; run the same command again to go on")
    write(folder / "log.csv", lambda path: path.write_text(
        "step,loss,smoothed,lr\n" + "".join(f"{a},{b},{c},{d:.6g}\n" for a, b, c, d in log), encoding="utf-8"))
    modes(False)
    if steps in moments:
        seen.append([steps, watch()])
    return spent, seen


# ---- stages ------------------------------------------------------------------------------------------------------------

def refuse(folder, old, new):
    differ = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    fail(f"{str(folder)!r} holds a stage made with other settings ({'; '.join(differ[:4])}); use another --out, or delete it")


def finished(s, stage):
    """The config of a finished stage, or None; refuses one that was made by another recipe."""
    path = Path(s.out) / stage / "config.json"
    if not path.exists():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["recipe"] != json.loads(json.dumps(recipe(s, stage))):
        refuse(path.parent, config["recipe"], recipe(s, stage))
    return config


def finish(s, stage, **facts):
    """Declare a stage finished: config.json comes last, and the training state is no longer needed."""
    folder = Path(s.out) / stage
    config = {"stage": stage, "recipe": recipe(s, stage), "torch": torch.__version__, "device": s.device, **facts}
    write(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=1), encoding="utf-8"))
    (folder / "state.pt").unlink(missing_ok=True)


def pad(rows, dtype):
    """Lists of different lengths as one tensor (B, T), zeros at the end."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, :len(row)] = torch.tensor(row, dtype=dtype)
    return out


def weighted_loss(logits, ids, weights):
    """Cross-entropy of logits (n, V) for ids (n,), each token counting by its weight (n,): the sum; divide by the sum of the weights."""
    return (F.cross_entropy(logits.float(), ids, reduction="none") * weights).sum()


def pretrain_llm(s, stage):
    """A GPT from nothing, on text alone: next tokens of documents, answers weighing more than the rest."""
    dialect = stage.removeprefix("llm_")
    mine = {k.removeprefix(f"{stage}_"): v for k, v in asdict(s).items() if k.startswith(stage)}
    torch.manual_seed(s.seed)
    encoding = train_tokenizer(dialect, mine["V"], s.seed, world=s.world)
    llm = GPT(GPTConfig(encoding.n_vocab, mine["C"], s.llm_H, mine["layers"])).to(s.device)
    text = lambda i: document(dialect, s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions, world=s.world)
    print(f"{stage}: a GPT of {count(llm):,} parameters, all trained, on {mine['steps']} x {s.llm_batch} documents; vocabulary "
          f"{encoding.n_vocab}; the first loss should be ln V = {math.log(encoding.n_vocab):.2f}. The first document ([answers] count most):\n"
          + "".join(f"[{t}]" if w else t for t, w in text(0)))

    def loss_at(step):
        documents = [encode(encoding, text(step * s.llm_batch + i)) for i in range(s.llm_batch)]
        ids = pad([ids for ids, _ in documents], torch.long).to(s.device)  # (B, T)
        weights = pad([[max(w, s.llm_text_weight) for w in weights] for _, weights in documents], torch.float).to(s.device)
        return weighted_loss(llm(llm.embed(ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten(), weights[:, 1:].flatten()) / weights[:, 1:].sum()

    folder = Path(s.out) / stage
    seconds, _ = fit(s, folder, stage, [llm], optimizers(s.llm_matrix_lr, s.llm_lr, llm), mine["steps"], loss_at)
    save_llm(llm, encoding, folder)
    scores = score_llm(llm, encoding, dialect, s.seed, 5 * s.test_pictures // 3, s.world)
    finish(s, stage, seconds=seconds, params=count(llm), vocab=encoding.n_vocab, **scores)


@torch.no_grad()
def encode_pictures(s, vit, split, n):
    """Frozen features of the first n pictures of a split, computed once and for all: (n, N, D) in half precision."""
    parts = (range(start, min(start + 100, n)) for start in range(0, n, 100))
    return torch.cat([vit(torch.from_numpy(draw_split(split, part, s.vit_size, s.world)).to(s.device)).half().cpu() for part in parts])


def pretrain_vit(s, stage="vit"):
    """A ViT from nothing, contrastively: which of the batch's captions belongs to which picture?

    Half of each batch are twins of the other half, with one word changed: told apart from its twin, a picture must be
    seen in every detail, not only in those that happen to differ among random scenes.
    """
    torch.manual_seed(s.seed)
    first = [make_scene("train", s.seed, i, s.world) for i in range(500)]
    encoding = train_bpe([keywords(scene) for scene in first], 400, PATTERNS["source"], name="captions")
    clip = CLIP(ViTConfig(s.vit_size, s.vit_patch, s.vit_D, s.llm_H, s.vit_layers), encoding.n_vocab).to(s.device)
    print(f"vit: a ViT of {count(clip.vit):,} parameters and its text tower of {count(clip.text):,}, all trained, on {s.vit_steps} x "
          f"{s.vit_batch} pictures with captions; the first loss should be about ln {s.vit_batch} = {math.log(s.vit_batch):.2f}")

    def batch(scenes, step):
        images = torch.from_numpy(np.stack([draw(scene, s.vit_size, seed=step) for scene in scenes]))
        ids = [encoding.encode(keywords(scene)) for scene in scenes]
        mask = pad([[1] * len(row) for row in ids], torch.bool)
        return images.to(s.device), pad(ids, torch.long).to(s.device), mask.to(s.device)

    def loss_at(step):
        half, rng = s.vit_batch // 2, random.Random(f"twins/{s.seed}/{step}")
        scenes = [make_scene("train", s.seed + 1, step * half + i, s.world) for i in range(half)]
        return clip.loss(*batch(scenes + [twin(scene, rng) for scene in scenes], step))

    folder = Path(s.out) / stage
    seconds, _ = fit(s, folder, stage, [clip], optimizers(s.vit_matrix_lr, s.vit_lr, clip), s.vit_steps, loss_at)
    vit, began = clip.vit, time.perf_counter()
    save_vit(vit, folder)
    with torch.no_grad():
        top1 = [(clip(*batch([make_scene("test", 0, 100 * k + i, s.world) for i in range(100)], 0)).argmax(1).cpu()
                 == torch.arange(100)).float().mean().item() for k in range(5)]
    features = {split: encode_pictures(s, vit, split, n) for split, n in
                (("train", s.pictures), ("val", s.test_pictures // 2), ("test", s.test_pictures), ("comp", s.test_pictures // 2))}
    write(folder / "features.pt", lambda path: torch.save(features, path))
    finish(s, stage, seconds=seconds, seconds_features=time.perf_counter() - began, params=count(vit),
           retrieval_top1=float(np.mean(top1)), **score_features(features, s.world))


def shared_vocabulary(s, source, target):
    """The words of a LangBridge: tokens that both tokenizers have, ranked by how often conversations about pictures use them.

    Those that none uses come last, and only if align_K asks for more than the others.
    """
    both = set(shared_tokens(source, target))
    texts = "".join("".join(t for t, _ in conversation(make_scene("train", 0, i, s.world), random.Random(i), 4)) for i in range(1000))
    ids, times = np.unique(source.encode(texts), return_counts=True)
    ranked = [source.decode_single_token_bytes(int(i)) for i in ids[np.argsort(-times, kind="stable")]]
    used = [NOTHING] + [t for t in ranked if t in both and t != NOTHING]
    return used[:s.align_K] + sorted(both - set(used))[:max(0, s.align_K - len(used))] if s.align_K else used


def new_adapter(s, kind, llm, words):
    """An untrained adapter from the ViT to this LLM; `words` are those that a LangBridge may use."""
    torch.manual_seed(s.seed)
    if kind == "mlp":
        return MLPAdapter(s.vit_D, llm.config.C).to(s.device)
    return LangBridge(s.vit_D, words, s.align_hidden, s.align_coefficients, s.align_basis).to(s.device)


def picture_loss(s, vlm, features, rng, batch, samples):
    """The loss of a VLM on a batch of random training pictures, on the answers only; `samples(rng, scene)` gives the pieces of a text."""
    rows = [rng.randrange(len(features)) for _ in range(batch)]
    texts = [encode(vlm.encoding, samples(rng, make_scene("train", 0, row, s.world))) for row in rows]
    assert all(sum(weights) > 0 for _, weights in texts), "a sample without an answer teaches nothing"
    rows, texts = zip(*sorted(zip(rows, texts), key=lambda sample: len(sample[1][0])))
    loss, size = 0.0, -(-batch // s.parts)
    for part in (slice(start, start + size) for start in range(0, batch, size)):
        ids, weights = (pad(lists, dtype).to(s.device) for lists, dtype in zip(zip(*texts[part]), (torch.long, torch.float)))  # (B, T) each
        wanted = weights > 0  # the other logits would be made for nothing
        loss = loss + weighted_loss(vlm(features[list(rows[part])].float().to(s.device), ids, wanted), ids[wanted], weights[wanted])
    return loss / sum(sum(weights) for _, weights in texts)


def tune(s, stage, phase, adapter, llm, encoding, modules, opts, steps, batch, samples, watch=None, moments=()):
    """The loop of both phases, align and instruct, over picture_loss.

    Returns what a finished stage knows of itself: seconds, scores S, and `seen`: [[steps done, watch(vlm, features)], ..]
    after each number of steps in `moments`.
    """
    vlm = VLM(adapter, llm, encoding)
    features = torch.load(Path(s.out) / "vit" / "features.pt", mmap=True, weights_only=True)["train"]
    exam = {split: x.to(s.device) for split, x in held_out(Path(s.out)).items()}
    trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
    print(f"{stage}: {trained:,} of {count(adapter) + count(llm):,} parameters trained (adapter {count(adapter):,}, LLM {count(llm):,}), "
          f"on {steps} x {batch} of {len(features)} pictures", flush=True)
    if "/" not in stage:  # the many stages of transfer.py would say the same
        print("the first sample ([answers] are learned):\n[picture] " + "".join(
            f"[{t}]" if w else t for t, w in samples(random.Random(0), make_scene("train", 0, 0, s.world))), flush=True)

    # all adapters meet the same samples in the same order
    loss_at = lambda step: picture_loss(s, vlm, features, random.Random(f"{phase}/{s.seed}/{step}"), batch, samples)
    seconds, seen = fit(s, Path(s.out) / stage, stage, modules, opts, steps, loss_at, lambda: watch(vlm, exam), moments)
    return {"seconds": seconds, "seen": seen, "params": count(adapter) + count(llm), "scores": score_vlm(vlm, exam, s.world)}


def align(s, stage, adapter, llm, encoding, base, **watching):
    """Stage 1: the adapter alone learns, from captions, to say pictures in the frozen LLM's language."""
    llm.requires_grad_(False)
    adapter.drawn = s.align_drawn  # of a LangBridge: words, not mixtures
    facts = tune(s, stage, "align", adapter, llm, encoding, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter),
                 s.align_steps, s.align_batch, lambda rng, scene: description(scene, rng), **watching)
    save_adapter(adapter, Path(s.out) / stage)
    finish(s, stage, base=base, **facts)


def instruct(s, stage, adapter, llm, encoding, base, known=None, **watching):
    """Stage 2: adapter and LLM learn together from conversations; loss on the answers only. Without an adapter: blind.

    `known` are more facts for its config.json. The adapter's basis is a copy of the embeddings as they are at the start, and
    stays as it is while the LLM is tuned.
    """
    modules = [m for m in (adapter, llm) if m is not None]
    facts = tune(s, stage, "instruct", adapter, llm, encoding, modules, optimizers(s.instruct_matrix_lr, s.instruct_lr, *modules),
                 s.instruct_steps, s.instruct_batch, lambda rng, scene: conversation(scene, rng, s.instruct_turns, s.instruct_captions), **watching)
    save_llm(llm, encoding, Path(s.out) / stage)
    if adapter is not None:
        save_adapter(adapter, Path(s.out) / stage)
    finish(s, stage, base=base, **facts, **(known or {}))


def build_adapter(s, stage, base="llm_source"):
    """An align or instruct stage of train.py's own: of the adapter that the stage's name begins with, on the source LLM."""
    out, (kind, phase) = Path(s.out), stage.split("_")
    llm, encoding = load_llm(out / base)
    llm.to(s.device)
    if kind == "blind":
        adapter = None
    elif phase == "align":
        adapter = new_adapter(s, kind, llm, shared_vocabulary(s, encoding, load_llm(out / "llm_target")[1])).set_basis(llm, encoding)
    else:
        adapter = load_adapter(out / f"{kind}_align").to(s.device).set_basis(llm, encoding)
    if phase == "instruct":
        return instruct(s, stage, adapter, llm, encoding, base)
    moments = sorted({0, s.align_steps} | {int(s.align_steps ** (i / 8)) for i in range(8)})  # for evaluate.py's study, log-spaced
    align(s, stage, adapter, llm, encoding, base, watch=lambda vlm, features: subspace(vlm, features, s.world), moments=moments)


STAGES = {"llm_source": pretrain_llm, "llm_target": pretrain_llm, "vit": pretrain_vit, "langbridge_align": build_adapter, "mlp_align": build_adapter,
          "langbridge_instruct": build_adapter, "mlp_instruct": build_adapter, "blind_instruct": build_adapter}


def needs(stage):
    """The stages that must be finished before this one."""
    kind, _, phase = stage.partition("_")
    return {"align": ["llm_source", "llm_target", "vit"], "instruct": ["llm_source", "vit"] + [f"{kind}_align"] * (kind != "blind")}.get(phase, [])


# ---- the whole run -----------------------------------------------------------------------------------------------------

def run_stages(table, stages):
    """One stage after the other; table: {stage: (settings, function)}. What is finished is not made again."""
    for stage in stages:
        s, make = table[stage]
        config = finished(s, stage)
        if config:
            print(f"{stage}: already there")
        else:
            for other in needs(stage):
                if not finished(s, other):
                    fail(f"{stage} needs {other}, which is not in {s.out!r}; python train.py --out {s.out} makes all stages in order")
            make(s, stage)
            config = finished(s, stage)
        scores = config.get("scores") or {k: v for k, v in config.items() if isinstance(v, float) and "second" not in k}
        print(f"{stage}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float))
              + f"  ({config['seconds']:.0f} s)", flush=True)


def run_share(table, stages):
    """Of the chains 'a,b;c;d', one after the other, those that no other lane has taken."""
    for i, chain in enumerate(stages.split(";")):
        try:
            if "TAKEN" in os.environ:
                os.mkdir(Path(os.environ["TAKEN"]) / str(i))  # of several lanes that try, one can
        except FileExistsError:
            continue
        run_stages(table, chain.split(","))


def run_lanes(threads, command, table, *chains):
    """Chains of stages in lanes side by side, one process each, on a CPU with several cores; one after the other elsewhere.

    At this size a step gains little from a second thread, so two stages on one thread each are done sooner than one
    after the other on two threads. A lane that is free takes the next chain. It has the same number of threads whatever the others
    do: with another number, sums are rounded otherwise, and a run that goes on would not end like one that was not stopped.
    `command` is the program and the arguments that, with --stages, make some of the table's stages.
    """
    todo = [chain for chain in chains if not all(finished(table[stage][0], stage) for stage in chain)]
    if not todo or threads < 2 or any(s.device != "cpu" for s, _ in table.values()):
        return run_stages(table, sum(chains, []))
    lanes = min(threads, len(chains))
    command = [sys.executable, *command, "--stages", ";".join(",".join(chain) for chain in todo), "--threads", str(threads // lanes)]
    # glibc gives large blocks back to the system and gets them again page by page, at every step; kept, a step takes 0.92 of the time
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2 ** 25), "MALLOC_TRIM_THRESHOLD_": str(2 ** 30)}
    taken = tempfile.TemporaryDirectory()
    children = [subprocess.Popen(command, env={**keep, **os.environ, "LANE": str(i), "TAKEN": taken.name}) for i in range(min(lanes, len(todo)))]
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                break  # one has failed and has said why
            time.sleep(0.1)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()
        taken.cleanup()
    for child in children:
        if child.returncode:
            sys.exit(child.returncode if child.returncode > 0 else 1)


@contextmanager
def clock(path, new=True):
    """Adds the seconds inside the block to those in a file, so that a run that was interrupted knows what it took in all."""
    began, before = time.perf_counter(), json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    try:
        yield
    finally:
        total = before + new * (time.perf_counter() - began)
        write(path, lambda path: path.write_text(json.dumps(total), encoding="utf-8"))


def results(s, total):
    """results.json from the stages' configs; total: wall seconds of all the runs that it took."""
    c = {stage: finished(s, stage) for stage in STAGES}
    llm = lambda name: {k: c[name][k] for k in ("params", "vocab", "text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type", "raster_qa_by_type")}
    return {
        "seed": s.seed, "preset": s.preset, "device": s.device, "torch": torch.__version__,
        "seconds": {"data": c["vit"]["seconds_features"], "llm_source": c["llm_source"]["seconds"], "llm_target": c["llm_target"]["seconds"],
                    "vit": c["vit"]["seconds"], "align": c["mlp_align"]["seconds"] + c["langbridge_align"]["seconds"],
                    "instruct": sum(c[f"{k}_instruct"]["seconds"] for k in ("mlp", "langbridge", "blind")),
                    "total": total},
        "llm": {"source": llm("llm_source"), "target": llm("llm_target")},
        "shared_vocab": len(load_adapter(Path(s.out) / "langbridge_align").tokens),
        "vit": {k: c["vit"][k] for k in ("params", "retrieval_top1", "probe_color", "probe_shape")},
        "vlm": {kind: {"align": c[f"{kind}_align"]["scores"], "instruct": c[f"{kind}_instruct"]["scores"]} for kind in ("mlp", "langbridge")}
        | {"blind": c["blind_instruct"]["scores"], "chance": score_chance({"test": s.test_pictures, "comp": s.test_pictures // 2}, s.world)},
    }


def print_table(r):
    columns = ["vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1"]
    print("\n" + " " * 24 + "".join(f"{c:>16}" for c in columns))
    for name, scores in [("MLP, align", r["vlm"]["mlp"]["align"]), ("LangBridge, align", r["vlm"]["langbridge"]["align"]),
                         ("MLP, instruct", r["vlm"]["mlp"]["instruct"]), ("LangBridge, instruct", r["vlm"]["langbridge"]["instruct"]),
                         ("blind, instruct", r["vlm"]["blind"]), ("chance", r["vlm"]["chance"])]:
        print(f"{name:24}" + "".join(f"{scores[c]:16.3f}" for c in columns))


def main(argv):
    s = parse_settings(argv)
    s.threads = s.threads or os.cpu_count()
    torch.set_num_threads(s.threads)
    out = Path(s.out)
    out.mkdir(parents=True, exist_ok=True)
    table = {stage: (s, make) for stage, make in STAGES.items()}
    if s.stages != "all":
        return run_share(table, s.stages)
    new = None in [finished(s, stage) for stage in STAGES]  # also refuses a folder of other settings before anything is written
    save_settings(s)
    print(f"nanoLangBridge: preset {s.preset}, device {s.device}, {s.precision}, {s.threads} threads, torch {torch.__version__}, into {out}/")
    command = [__file__, *argv]
    with clock(out / "seconds.json", new):
        run_lanes(s.threads, command, table, ["llm_source", "vit"], ["llm_target"])
        run_lanes(s.threads, command, table, ["langbridge_align", "langbridge_instruct"], ["mlp_align", "mlp_instruct", "blind_instruct"])
    r = results(s, json.loads((out / "seconds.json").read_text(encoding="utf-8")))
    write(out / "results.json", lambda path: path.write_text(json.dumps(r, indent=1), encoding="utf-8"))
    print_table(r)
    contact_sheet(out / "samples.png", examine_vlm(load_vlm(out, "langbridge_instruct")[1], {"test": held_out(out)["test"]}, s.world),
                  s.vit_size, s.world)
    print(f"\n{r['seconds']['total'] / 60:.1f} minutes. Scores: {out}/results.json. Try next:\n"
          f"  python evaluate.py --out {out} --image picture.png --ask \"what color is the circle?\"\n"
          f"  python transfer.py --out {out}")


def run_as_command(main):
    """main(arguments) with a user's accidents told in one line."""
    if "LANE" not in os.environ:  # stopped from outside, it ends its lanes and counts its seconds as after ctrl-C
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; run the same command again to go on"))
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container", str(error)):  # torch.save on a full disk
            raise
        fail(f"cannot write: {str(error).splitlines()[0]}; free some space or check the folder, then run the same command again: "
             "it goes on from its last checkpoint")


if __name__ == "__main__":
    run_as_command(main)
