"""From random weights to a model that answers questions about pictures, in one command.

    python train.py                    everything, into out/
    python train.py --preset smoke     the same in a few seconds, to see that it runs
    python train.py --help             every setting, with the laptop's values
    python train.py --data train.json --images DIR     on pictures and conversations of your own
    torchrun --nproc_per_node=8 train.py     on several GPUs (or CPUs), which share each batch

    stage          what is trained                     on what
    llm_source     a GPT                               text only
    llm_target     a larger GPT, another vocabulary    text only (transfer.py moves adapters to it)
    vit            a ViT and a small text tower        pairs of picture and alt text
    *_align        an adapter; LLM and ViT are frozen  captions of pictures (LLaVA's stage 1)
    *_instruct     the adapter and the LLM             conversations about pictures (stage 2)

with * = langbridge and mlp, both on the source LLM, and blind_instruct, the same without a picture.
Each stage is a folder under --out. After an interruption, the same command goes on: finished stages
are kept, an unfinished one resumes from its last checkpoint and, on a CPU, ends bit for bit as if
nothing had happened.
"""
import math
import os
import random
import re
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from adapter import BASES, COEFFICIENTS, NOTHING, LangBridge, MLPAdapter, load_adapter, save_adapter
from data.bpe import BOS, PATTERNS, load_encoding, open_encoding, tokens_of, train_bpe
from data.conversations import read_passages
from data.corpus import encode, vocabulary
from data.files import (RANK, RANKS, Refused, Stage, locked, move_aside, read_tensors, write_json,
                        write_summed, write_tensors)
from data.forecast import forecast
from data.loop import Loop, autocast, compile_blocks, optimizers, size_of
from data.run import Job, Parser, lanes, run_command, say_scores, seconds_in, stopwatch
from data.scoring import join_splits
from data.settings import OWN, PRESETS, SHORT, Settings, fill_in
from evaluate import (exam_facts, examine_vlm, held_out, load_vlm, score_llm, score_vlm,
                      show_answers, subspace)
from model import GPT, VLM, GPTConfig, load_llm, save_llm
from results.collect import collect_run
from results.report import results_table
from vision import CLIP, ViTConfig, Wordless, encode_pictures, probe, save_vit


# ---- settings: see data/settings.py --------------------------------------------------------------

def parse_settings(argv):
    """Settings from the command line; what it leaves out is as in the preset, else the default.
    With --fresh, an old folder is moved aside."""
    parser = Parser(__doc__)
    parser.add_fields(Settings)
    parser.add_argument("--fresh", action="store_true",
                        help="start over: what is in --out moves to a folder beside it")
    given = vars(parser.parse_args(argv))  # the flags that are there
    fresh = given.pop("fresh")
    s = Settings(**given)
    s.threads = s.threads or max(1, os.cpu_count() // RANKS)
    if s.device == "auto":
        s.device = "cuda" if torch.cuda.is_available() else "cpu"
    if s.precision == "auto":
        s.precision = "bf16" if s.device == "cuda" else "fp32"
    for name in ("conversations", "images", "val", "llm_source_tokenizer", "llm_target_tokenizer"):
        path = getattr(s, name)
        if path and ("tokenizer" not in name or path.endswith(".gguf")):
            setattr(s, name, str(Path(path).resolve()))
    s.corpus = [str(Path(path).resolve()) for path in s.corpus]
    fill_in(s, PRESETS[s.preset], given)
    if s.conversations:
        fill_in(s, OWN, [*given, *PRESETS[s.preset]])
    check(s)
    read_passages(tuple(s.corpus))  # refused now, not after the first stage
    if fresh and not s.dry_run and Path(s.out).exists():
        with locked(s.out):
            print(f"what was in {s.out}/ is now in {move_aside(s.out)}/", flush=True)
    if s.conversations and not s.data.gives_scenes:  # the files are read here
        fill_in(s, SHORT, [*given, *PRESETS[s.preset]])
    return s


def check(s):
    """Refuse settings that cannot work, before anything is made."""
    def expect(name, ok, what):
        if not ok:
            raise Refused(f"--{name} {getattr(s, name)}: expected {what}")

    try:
        torch.zeros(1, device=s.device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise Refused(f"--device {s.device}: this machine or this torch has no such device; "
                      "try --device cpu")
    expect("out", s.out.strip(), "a folder")
    if bool(s.conversations) != bool(s.images) or s.val and not s.conversations:
        raise Refused("--data FILE and --images DIR go together, and --val FILE with both")
    expect("stages", s.stages == "all" or set(s.stages.split(",")) <= set(STAGES),
           f"some of {', '.join(STAGES)}, or all")
    least = {"threads": 0, "save_every": 0, "seed": 0, "align_K": 0, "vit_batch": 2,
             "align_mlp_hidden": 0,
             "pictures": 20, "test_pictures": 20,
             "llm_source_V": 300, "llm_target_V": 300}  # 256 are the bytes
    most = {"threads": 1024, "seed": 2 ** 31 - 1}
    for name, value in asdict(s).items():
        if type(value) is int:
            low, high = least.get(name, 1), most.get(name, 10 ** 6)
            expect(name, low <= value <= high, f"{low} to {high}")
        elif name.endswith("lr"):
            expect(name, 0 <= value < math.inf, "0 or more")
        elif type(value) is float:
            expect(name, 0 <= value <= 1, "a share between 0 and 1")
    for llm in ("llm_source", "llm_target"):
        known = getattr(s, f"{llm}_tokenizer")
        if known != "bpe":
            open_encoding(known)  # refused now, not after training
        expect(f"{llm}_C", getattr(s, f"{llm}_C") % (2 * s.llm_H) == 0,
               f"a multiple of twice the {s.llm_H} heads")
    expect("vit_D", s.vit_D % s.vit_H == 0, f"a multiple of the {s.vit_H} heads")
    if s.vit_size % (3 * s.vit_patch):
        best = max(1, s.vit_size // 6)
        raise Refused(f"--vit_size {s.vit_size} --vit_patch {s.vit_patch}: each of the 3 x 3 "
                      "places must be a whole number of patches; 6 x 6 patches are best, like the "
                      f"6 x 6 words that the LLMs read: --vit_size {6 * best} --vit_patch {best}")
    if (s.vit_size // s.vit_patch) ** 2 > 256:
        raise Refused(f"--vit_size {s.vit_size} --vit_patch {s.vit_patch}: expected at most "
                      "16 x 16 patches; with a text, more do not fit into an LLM's context of "
                      f"{GPTConfig.context} tokens")
    for name, known in (("align_coefficients", COEFFICIENTS), ("align_basis", BASES)):
        expect(name, getattr(s, name) in known, " or ".join(known))
    expect("align_drawn", s.align_drawn == 0 or s.align_coefficients in ("softplus", "softmax"),
           f"0, for words cannot be drawn by {s.align_coefficients} weights")


def open_stage(s, name):
    """A stage's folder and the settings that determine its result: its own, and those of the stages
    that it builds on. `prefixes` are how their names begin."""
    last = name.split("/")[-1]
    if last in ("llm_source", "llm_target"):
        prefixes = (last, "llm_H", "llm_batch", "llm_turns", "llm_captions", "llm_rasters",
                    "llm_text_weight", "llm_matrix_lr", "llm_lr")
    elif last == "vit":
        prefixes = ("vit_",)
    elif last.endswith("_align"):
        prefixes = ("llm_", "vit_", "align_")
    else:
        prefixes = ("llm_", "vit_", "align_", "instruct_")
    prefixes += ("seed", "precision", "pictures", "test_pictures", "corpus")
    settings = {k: v for k, v in asdict(s).items() if k.startswith(prefixes)}
    settings["corpus"] = list(s.corpus)  # as it is read again
    if s.conversations:
        settings["files"] = s.data.sums
    return Stage(s.out, name, settings)


# ---- text: the language models ------------------------------------------------------------------

def pad(rows, dtype):
    """Lists of different lengths as one tensor (B, T), zeros at the end."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], True)


def weighted_loss(logits, ids, weights):
    """Cross-entropy of logits (n, V) for ids (n,), summed by weights (n,); divide by their sum."""
    return (F.cross_entropy(logits.float(), ids, reduction="none") * weights).sum()


class Sample(NamedTuple):
    """A text that is learned, and the picture that it is about, if any."""
    ids: list  # tokens
    weights: list  # of each token in the loss
    picture: int | None = None


def fitting(encoded, room, picture=None):
    """A Sample of (ids, weights), cut at its end if it does not fit into a context."""
    ids, weights = encoded
    return Sample(ids[:room], weights[:room], picture)


def by_length(samples, parts):
    """A batch in parts, each of texts of like length, so that little is padded. Yields lists."""
    samples = sorted(samples, key=lambda sample: len(sample.ids))
    size = math.ceil(len(samples) / parts)
    for start in range(0, len(samples), size):
        yield samples[start:start + size]


def parts_of(s, samples):
    """The parts of a batch, and whether they are this process's: under torchrun each computes every
    RANKS-th one, and Loop adds up their losses and gradients. Yields (part, mine)."""
    for k, part in enumerate(by_length(samples, max(s.parts, RANKS))):
        yield part, k % RANKS == RANK


def draw_along(adapter, x):
    """Draw the words of a part that another process computes: all random streams stay together."""
    if isinstance(adapter, LangBridge) and adapter.training and adapter.drawn > 0:
        with torch.no_grad():
            adapter(x)


def padded(part):
    """The ids and the weights of a part's samples, 0 for padding: 2 x (B, T)"""
    ids = pad([sample.ids for sample in part], torch.long)
    return ids, pad([sample.weights for sample in part], torch.float)


def targets(ids, weights, device):
    """What is to be predicted: of ids and weights (B, T), the indices into the B T positions whose
    weight is not 0, and the ids and the weights there: 3 x (n,)."""
    wanted = weights.flatten().nonzero().squeeze(1)
    found = wanted, ids.flatten()[wanted], weights.flatten()[wanted]
    return [x.to(device) for x in found]


def marked(pieces):
    """The text of a document, with the [answers] in brackets."""
    return "".join(f"[{text}]" if weight else text for text, weight in pieces)


def text_losses(s, llm, encoding, documents):
    """The mean loss of predicting each token of some documents from those before it, in parts: it
    is the sum of what is yielded."""
    samples = []
    for document in documents:
        sample = fitting(encode(encoding, document), llm.config.context)
        samples.append(sample._replace(weights=[max(w, s.llm_text_weight) for w in sample.weights]))
    total = sum(sum(sample.weights[1:]) for sample in samples)
    for part, mine in parts_of(s, samples):
        if not mine:
            continue
        ids, weights = padded(part)  # 2 x (B, T)
        wanted, answers, weights = targets(ids[:, 1:], weights[:, 1:], s.device)  # 3 x (n,)
        with autocast(s):
            hidden = llm.hidden(llm.embed(ids[:, :-1].to(s.device)))  # (B, T - 1, C)
            logits = llm.head(hidden.flatten(0, 1)[wanted])  # (n, V)
            loss = weighted_loss(logits, answers, weights) / total
        yield loss


def passages_of(s, dialect):
    """The texts of --corpus that an LLM reads: every other passage."""
    return read_passages(tuple(s.corpus))[dialect == "source"::2]


def document_of(s, dialect, i):
    """Document i of an LLM's corpus, as these settings want it. With --corpus, every fourth one is
    a passage."""
    if s.corpus and i % 4 == 3:
        passage = random.Random(f"passage/{s.seed}/{i}").choice(passages_of(s, dialect))
        return [(f"{BOS}{passage}\n", 0.0)]
    return s.data.document(dialect, s.seed, i, s.llm_rasters, s.llm_turns, s.llm_captions)


def documents_of(s, dialect, step):
    """The documents of a step."""
    indices = range(step * s.llm_batch, (step + 1) * s.llm_batch)
    return [document_of(s, dialect, i) for i in indices]


def new_llm(s, name):
    """An untrained GPT, its vocabulary, and kept ids: (LLM, tiktoken.Encoding, ids)"""
    dialect, V, C, layers, _ = s.of_llm(name)
    torch.manual_seed(s.seed)
    known, passages = getattr(s, f"{name}_tokenizer"), tuple(passages_of(s, dialect))
    encoding, ids = vocabulary(s.data, passages, dialect, known, V, s.seed)
    return GPT(GPTConfig(encoding.n_vocab, C, s.llm_H, layers)).to(s.device), encoding, ids


def pretrain_llm(s, stage):
    """A GPT from scratch, on text alone: predict the next token, answers above all."""
    dialect, _, _, _, steps = s.of_llm(stage.name)
    llm, encoding, ids = new_llm(s, stage.name)
    compile_blocks(s, llm)
    print(f"{stage.name}: a GPT of {size_of(llm):,} parameters, all trained, on {steps} x "
          f"{s.llm_batch} documents; vocabulary {encoding.n_vocab}; the first loss should be "
          f"ln V = {math.log(encoding.n_vocab):.2f}. The first document ([answers] weigh most):\n"
          f"{marked(document_of(s, dialect, 0))}", flush=True)
    loop = Loop(s, stage, [llm], optimizers(s.llm_matrix_lr, s.llm_lr, llm), steps)
    for step in loop:
        loop.update(text_losses(s, llm, encoding, documents_of(s, dialect, step)))
    save_llm(llm, encoding, stage.folder)
    if ids:
        write_json(stage.folder / "kept_ids.json", ids)
    read = range(min(2000, steps * s.llm_batch))
    text = "".join(piece for i in read for piece, _ in document_of(s, dialect, i))
    text = text.replace(BOS, "")
    words = sorted(set(re.findall("[a-z]+", text)))  # that it has read: evaluate.py warns of others
    stage.finish(seconds=loop.seconds, params=size_of(llm), vocab=encoding.n_vocab, words=words,
                 scores=score_llm(llm, encoding, s.data, dialect))


# ---- pictures: the vision encoder ---------------------------------------------------------------

def new_teacher(s):
    """An untrained ViT with what teaches it, CLIP or Wordless, and the vocabulary of alt texts."""
    torch.manual_seed(s.seed)
    config = ViTConfig(s.vit_size, s.vit_patch, s.vit_D, s.vit_H, s.vit_layers)
    if s.vit_pairs == "drawings":
        return Wordless(config).to(s.device), None
    texts = s.data.alt_texts(s.seed, 500)
    encoding = train_bpe(texts, s.data.alt_V, PATTERNS["source"], name="alt texts")
    return CLIP(config, encoding.n_vocab).to(s.device), encoding


def pairs_of(s, encoding, pictures, others):
    """pictures (B, size, size, 3) uint8, and ids (B, T), mask (B, T), or others like them"""
    pictures = torch.from_numpy(pictures).to(s.device)
    if encoding is None:
        return pictures, torch.from_numpy(others).to(s.device)
    ids = [encoding.encode(text) for text in others]
    mask = pad([[1] * len(row) for row in ids], torch.bool)
    return pictures, pad(ids, torch.long).to(s.device), mask.to(s.device)


def pretrain_vit(s, stage):
    """A ViT from scratch, contrastively: which alt text belongs to which picture of a batch?

    Half of a batch are twins of the other half. To tell a picture from its twin, every detail must
    be seen, not only those in which random pictures differ. With --vit_pairs drawings the ViT never
    meets a word: it asks which other drawing shows the same scene.
    """
    data = s.data
    model, encoding = new_teacher(s)
    compile_blocks(s, model)
    print(f"vit: a ViT of {size_of(model.vit):,} parameters and {size_of(model):,} with what "
          f"teaches it, all trained, on {s.vit_steps} x {s.vit_batch} pictures with {s.vit_pairs}; "
          f"the first loss should be about ln {s.vit_batch} = {math.log(s.vit_batch):.2f}",
          flush=True)

    loop = Loop(s, stage, [model], optimizers(s.vit_matrix_lr, s.vit_lr, model), s.vit_steps)
    for step in loop:
        pairs = pairs_of(s, encoding, *data.pairs(s.seed, step, s.vit_batch, s.vit_pairs))
        with autocast(s):
            loss = model.loss(*pairs)
        loop.update([loss / RANKS])  # it compares all pairs: each process computes the whole
    save_vit(model.vit, stage.folder)

    @torch.no_grad()
    def retrieval(split):
        """How often a picture finds its own text, or other drawing, among those of 100 pictures."""
        hits = []
        for k in range(3):
            pictures, others = data.test_pairs(split, k, s.vit_pairs)
            found = model(*pairs_of(s, encoding, pictures, others)).argmax(1).tolist()
            hits += [np.array_equal(others[j], other)  # some texts are alike
                     for j, other in zip(found, others)]
        return float(np.mean(hits))

    began = time.perf_counter()
    aside = {split: stage.folder / f"{split}-{RANK}.new" for split in data.SPLITS}
    features = {split: encode_pictures(model.vit, data, split, path)
                for split, path in aside.items()}
    write_tensors(stage.folder / "features.pt", features)
    took = time.perf_counter() - began
    scores = probe(features, data)  # {split: ..}
    for split in ("val", "test"):
        scores[split] = {"retrieval_top1": retrieval(split)} | scores[split]
    for path in aside.values():
        path.unlink()
    stage.finish(data=data.config(), seconds=loop.seconds, seconds_features=took,
                 params=size_of(model.vit), scores=join_splits(scores))


# ---- pictures as words: the adapters ------------------------------------------------------------

def words_of(s, encoding):
    """The words of a LangBridge, as byte strings: the tokens of conversations, most used first.

    Nothing is asked of the LLMs that it may be moved to. Unused tokens come last, and only if
    align_K asks for more.
    """
    text = ""
    for i in range(s.data.sampled):
        text += "".join(piece for piece, _ in s.data.conversation(i, random.Random(i), turns=4))
    ids, times = np.unique(encoding.encode(text), return_counts=True)
    ranked = ids[np.argsort(-times, kind="stable")].tolist()
    used = [encoding.decode_single_token_bytes(i) for i in ranked]
    words = [NOTHING] + [word for word in used if word != NOTHING]
    if s.align_K == 0:
        return words
    return (words + [token for token in tokens_of(encoding) if token not in words])[:s.align_K]


def blank_adapter(s, kind, llm, encoding):
    """An untrained adapter to an LLM; a LangBridge has words of its tokenizer."""
    torch.manual_seed(s.seed)
    if kind == "mlp":
        return MLPAdapter(s.vit_D, llm.config.C, s.align_mlp_hidden)
    return LangBridge(s.vit_D, words_of(s, encoding), s.align_hidden, s.align_coefficients,
                      s.align_basis, s.align_drawn)


def new_adapter(s, kind, llm, encoding):
    """The same, for the features at hand."""
    adapter = blank_adapter(s, kind, llm, encoding)
    if kind == "langbridge":
        adapter.whiten(training_features(s)[:1000].float().flatten(0, 1))
    return adapter.to(s.device)


def training_features(s):
    """The frozen features of the training pictures: (pictures, N, D)"""
    return read_tensors(Path(s.out) / "vit" / "features.pt", mmap=True)["train"]


def picture_losses(s, vlm, features, pictures, texts):
    """The mean loss of answers about training pictures, in parts: it is the sum of what is yielded.
    features (pictures, N, D)"""
    room = vlm.room(features.size(1))
    samples = [fitting(encode(vlm.encoding, text), room, i) for i, text in zip(pictures, texts)]
    total = sum(sum(sample.weights) for sample in samples)
    for part, mine in parts_of(s, samples):
        x = features[[sample.picture for sample in part]].float().to(s.device)  # (B, N, D)
        if not mine:
            draw_along(vlm.adapter, x)
            continue
        ids, weights = padded(part)  # 2 x (B, T)
        wanted, answers, weights = targets(ids, weights, s.device)  # 3 x (n,)
        with autocast(s):
            logits = vlm(x, ids.to(s.device), wanted)  # (n, V)
            loss = weighted_loss(logits, answers, weights) / total
        yield loss


def announce(s, stage, trained, vlm, steps, batch, sample):
    """Say what will be trained, and on what; `sample` is the first text."""
    parameters = sum(size_of(module) for module in trained)
    print(f"{stage.name}: {parameters:,} of {size_of(vlm):,} parameters trained (adapter "
          f"{size_of(vlm.adapter):,}, LLM {size_of(vlm.llm):,}), on {steps} x {batch} of "
          f"{s.data.count('train')} pictures", flush=True)
    if "/" not in stage.name:  # transfer.py's many stages would all print the same
        print(f"the first sample ([answers] are learned):\n[picture] {marked(sample)}", flush=True)


def align(s, stage, kind, llm_name="llm_source", study=False):
    """Stage 1: from captions, the adapter alone learns to say pictures in the frozen LLM's words.

    `kind` is mlp or langbridge. With `study`, it is tracked how close visual tokens come to words
    (evaluate.subspace), if the data know what objects there are.
    """
    llm, encoding = load_llm(Path(s.out) / llm_name)
    llm.to(s.device).requires_grad_(False)
    adapter = new_adapter(s, kind, llm, encoding).set_basis(llm, encoding)
    data = s.data
    vlm, exam = VLM(adapter, llm, encoding), held_out(s.out, s.device, data=data)
    features = training_features(s)  # (pictures, N, D)
    compile_blocks(s, vlm)
    announce(s, stage, [adapter], vlm, s.align_steps, s.align_batch,
             data.description(0, random.Random(0)))

    def measure():
        return subspace(vlm, exam["test"], data)

    measure_at = set()
    if study and data.kinds:  # evenly on a logarithmic axis
        measure_at = {0, s.align_steps} | {int(s.align_steps ** (i / 8)) for i in range(8)}
    loop = Loop(s, stage, [adapter], optimizers(s.align_matrix_lr, s.align_lr, adapter),
                s.align_steps, measure, measure_at)
    for step in loop:
        rng = random.Random(f"align/{s.seed}/{step}")  # all adapters meet the same samples
        pictures = [rng.randrange(len(features)) for _ in range(s.align_batch)]
        texts = [data.description(i, rng) for i in pictures]
        loop.update(picture_losses(s, vlm, features, pictures, texts))
    save_adapter(adapter, stage.folder)
    stage.finish(base=llm_name, seconds=loop.seconds, measured=loop.measured, params=size_of(vlm),
                 **exam_facts(vlm, exam, data))


def instruct(s, stage, kind, llm_name="llm_source", adapter=None, points=0):
    """Stage 2: adapter and LLM learn from conversations to answer questions about pictures.

    `kind` is mlp, langbridge or blind (no adapter, no picture). The adapter is the one that align
    left beside this stage, unless one is given. The basis of a LangBridge is a copy of the LLM's
    embeddings before this stage, and stays so: words keep the meaning that they had for W. So many
    `points` of a curve, vqa on val, are measured on the way.
    """
    llm, encoding = load_llm(Path(s.out) / llm_name)
    llm.to(s.device)
    if adapter is None and kind != "blind":
        adapter = load_adapter(stage.folder.with_name(f"{kind}_align")).to(s.device)
        adapter.set_basis(llm, encoding)
    if kind == "langbridge":
        adapter.drawn = 0.0  # words are sampled in stage 1 only: here it would cost caption F1
    trained = [llm] if adapter is None else [adapter, llm]
    data = s.data
    vlm, exam = VLM(adapter, llm, encoding), held_out(s.out, s.device, data=data)
    features = training_features(s)  # (pictures, N, D)

    def conversation(i, rng):
        return data.conversation(i, rng, s.instruct_turns, s.instruct_captions)

    def measure():
        return score_vlm(vlm, {"val": exam["val"][:50]}, data)["val"][data.SCORES[0]]

    compile_blocks(s, vlm)
    announce(s, stage, trained, vlm, s.instruct_steps, s.instruct_batch,
             conversation(0, random.Random(0)))
    loop = Loop(s, stage, trained, optimizers(s.instruct_matrix_lr, s.instruct_lr, *trained),
                s.instruct_steps, measure,
                {s.instruct_steps * i // points for i in range(points)} if points else ())
    for step in loop:
        rng = random.Random(f"instruct/{s.seed}/{step}")
        pictures = [rng.randrange(len(features)) for _ in range(s.instruct_batch)]
        texts = [conversation(i, rng) for i in pictures]
        loop.update(picture_losses(s, vlm, features, pictures, texts))
    save_llm(llm, encoding, stage.folder)
    if adapter is not None:
        save_adapter(adapter, stage.folder)
    stage.finish(base=llm_name, seconds=loop.seconds, measured=loop.measured, params=size_of(vlm),
                 **exam_facts(vlm, exam, data))


# ---- what it would take: see data/forecast.py ----------------------------------------------------

def on_paper(s, name):
    """A stage's modules and the losses of its first step: (trained, frozen, losses)"""
    rng, data = random.Random(0), s.data
    if name == "vit":
        model, encoding = new_teacher(s)
        pairs = pairs_of(s, encoding, *data.pairs(s.seed, 0, s.vit_batch, s.vit_pairs))
        return [model], [], (model.loss(*pairs) for _ in range(1))
    llm, encoding, _ = new_llm(s, name if name.startswith("llm_") else "llm_source")
    if name.startswith("llm_"):
        dialect, *_ = s.of_llm(name)
        return [llm], [], text_losses(s, llm, encoding, documents_of(s, dialect, 0))
    kind, phase = name.split("_")
    adapter = None
    if kind != "blind":
        adapter = blank_adapter(s, kind, llm, encoding).to(s.device).set_basis(llm, encoding)
    trained, frozen = ([adapter], [llm]) if phase == "align" else ([llm], [])
    if phase == "align":
        llm.requires_grad_(False)
        texts = [data.description(i, rng) for i in range(s.align_batch)]
    else:
        trained += [adapter] if adapter else []
        texts = [data.conversation(i, rng, s.instruct_turns, s.instruct_captions)
                 for i in range(s.instruct_batch)]
    features = torch.zeros(len(texts), (s.vit_size // s.vit_patch) ** 2, s.vit_D, device=s.device)
    vlm = VLM(adapter, llm, encoding)
    return trained, frozen, picture_losses(s, vlm, features, range(len(texts)), texts)


# ---- the whole run ------------------------------------------------------------------------------

STAGES = {  # name: (how it is made, with what, after which), the most urgent first
    "llm_source": (pretrain_llm, {}, []),
    "vit": (pretrain_vit, {}, []),
    "langbridge_align": (align, {"kind": "langbridge", "study": True}, ["llm_source", "vit"]),
    "langbridge_instruct": (instruct, {"kind": "langbridge"}, ["langbridge_align"]),
    "llm_target": (pretrain_llm, {}, []),
    "mlp_align": (align, {"kind": "mlp", "study": True}, ["llm_source", "vit"]),
    "mlp_instruct": (instruct, {"kind": "mlp"}, ["mlp_align"]),
    "blind_instruct": (instruct, {"kind": "blind"}, ["llm_source", "vit"]),
}


def main(s):
    if s.dry_run:
        meta = replace(s, device="meta", precision="fp32")
        forecast({name: partial(on_paper, meta, name) for name in STAGES})
        N = (s.vit_size // s.vit_patch) ** 2
        on_disk = 2 * N * s.vit_D * sum(s.data.count(split) for split in s.data.SPLITS)
        print(f"Features on disk: {on_disk / 2 ** 20:.1f} MB.")
        return
    with locked(s.out):
        make_all(s)


def make_all(s):
    torch.set_num_threads(s.threads)
    out = Path(s.out)
    stages = {name: open_stage(s, name) for name in STAGES}
    finished = {name for name in STAGES if stages[name].config()}  # refuses other settings
    write_summed(out / "settings.json", asdict(s))
    print(f"nanoLangBridge: preset {s.preset}, device {s.device}, {s.precision}, {s.threads} "
          f"threads, torch {torch.__version__}, into {out}/", flush=True)
    clock, began = out / "seconds.json", time.perf_counter()

    def say(job):
        say_scores(job)
        if job.stage.name == "langbridge_instruct":
            minutes = (time.perf_counter() - began) / 60
            print(f"\nAfter {minutes:.1f} minutes the first model can be asked, in another "
                  "terminal, while its controls and the target LLM are trained:\n"
                  f"  python evaluate.py --out {out} --image results/picture.png\n", flush=True)

    wanted = set(STAGES if s.stages == "all" else s.stages.split(",")) - finished
    jobs = [Job(make, s, stages[name], arguments, [stages[first] for first in after])
            for name, (make, arguments, after) in STAGES.items() if name in wanted]
    if jobs:
        with stopwatch(clock), lanes(s, 3, say) as run:
            run(jobs)
    if s.stages != "all":
        return
    configs = {name: stage.config() for name, stage in stages.items()}
    pictures = {split: s.data.count(split) for split in s.data.EXAM}
    words = load_adapter(out / "langbridge_align").tokens
    others = tokens_of(load_encoding(out / "llm_target" / "tokenizer.json"))
    r = collect_run(configs, s.data.chance(pictures), s.data.majority(pictures), seconds_in(clock),
                    seed=s.seed, preset=s.preset, device=s.device, torch=torch.__version__,
                    K=len(words), shared_vocab=len(set(words) & set(others)))
    write_json(out / "results.json", r)
    print(f"\n{results_table([r])}")
    _, vlm = load_vlm(out, "langbridge_instruct")
    if RANK == 0:
        said = examine_vlm(vlm, held_out(out, splits=["test"]), s.data)
        show_answers(out / "samples.png", said, s.data, count=6)
    print(f"\n{seconds_in(clock) / 60:.1f} minutes. Scores: {out}/results.json. Try next:\n"
          f"  python evaluate.py --out {out} --image results/picture.png\n"
          f"  python transfer.py --out {out}")


if __name__ == "__main__":
    run_command(lambda: main(parse_settings(sys.argv[1:])))
