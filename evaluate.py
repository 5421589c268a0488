"""Scores, questions about your own pictures, and a look inside.

    python evaluate.py                                    every score, into evaluate.json
    python evaluate.py --data test.json --images DIR      the same about other pictures
    python evaluate.py --image picture.png                a conversation, or a caption
    python evaluate.py --image picture.png --ask "what color is the circle?"
    python evaluate.py --image picture.png --trace        from the file to the answer, step by step
    python evaluate.py --image picture.png --map words.png            what each patch says
    python evaluate.py --image picture.png --swap red=blue --ask ..   what if it said blue?
    python evaluate.py --image picture.png --llm FILE.gguf --ask ..   ask a real LLM

The exam itself, its questions and what answers are worth, is in data/scoring.py.
"""
import inspect
import math
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from adapter import (NOTHING, Edited, LangBridge, MLPAdapter, fingerprint, load_adapter, readable,
                     token)
from data.bpe import line_ends
from data.corpus import encode, in_scene, prompt
from data.dataset import load_data
from data.files import Refused, read_json, read_tensors, write_json
from data.pictures import read_picture
from data.run import Parser, run_command
from data.own import open_own
from data.scoring import intervals
from model import LLM, VLM, Prompted, load_llm, same_length
from results.figures import contact_sheet, plot_study, word_map
from vision import ViT, encode_pictures, load_vit

SHOTS = 16  # solved examples that a real LLM reads before a scene
CHECKPOINTS = ("mlp_align", "langbridge_align", "mlp_instruct", "langbridge_instruct",
               "blind_instruct")


# ---- what lies in a folder ----------------------------------------------------------------------

def open_data(out):
    """The data that a folder's stages were trained on."""
    return load_data(read_json(Path(out) / "vit" / "config.json").get("data", {}), out)


def held_out(out, device="cpu", splits=None, data=None):
    """The frozen features of the exam's splits, or of others: {split: (pictures, N, D)}; no more
    pictures than `data` has, where given."""
    data = data or open_data(out)
    features = read_tensors(Path(out) / "vit" / "features.pt", mmap=True)
    return {split: features[split][:data.count(split)].float().to(device)
            for split in splits or data.EXAM}


def load_vlm(out, name):
    """(ViT, VLM) of a stage in an --out folder, as in load_vlm("out", "langbridge_instruct").

    The basis of its adapter comes from the LLM as it was before stage 2 tuned it.
    """
    out, folder = Path(out), Path(out) / name
    vit, base = load_vit(out / "vit").eval(), base_of(out, name)
    made = read_json(folder / "config.json")["files"]
    tuned, spoken = "llm.pt" in made, "adapter.pt" in made
    if not tuned and not spoken:
        raise Refused(f"{str(folder)!r} holds scores, but neither an adapter nor an LLM")
    adapter = load_adapter(folder).set_basis(*load_llm(base)) if spoken else None
    llm, encoding = load_llm(folder if tuned else base)
    return vit, VLM(adapter, llm, encoding).eval()


def load_real(out, name, file):
    """(ViT, VLM) of an adapter that was moved to a real LLM, which reads solved examples first:
    those that transfer.py has chosen for it, if it has."""
    vit, adapter = load_vit(out / "vit").eval(), load_adapter(out / name)
    if not isinstance(adapter, LangBridge):
        raise Refused(f"--llm needs a LangBridge, which speaks in words; {name!r} is none")
    data = open_data(out)
    if not data.kinds:
        raise Refused("--llm needs a run on our world: the examples that a real LLM reads are "
                      "about its scenes")
    llm, encoding = load_llm(file)
    chosen = out / "transfer" / file.stem / f"examples{SHOTS}" / "config.json"
    seed = read_json(chosen)["chosen"] if chosen.exists() else 0
    examples = data.examples(SHOTS, seed, "list")
    try:
        adapter.set_basis(llm, encoding)
    except ValueError as error:
        raise Refused(str(error)) from error
    return vit, Prompted(adapter, llm, encoding, examples).eval()


def base_of(out, name):
    """The folder of the LLM that a stage started from."""
    config = read_json(Path(out) / name / "config.json")
    if "base" not in config:
        raise Refused(f"{name!r} is no model that sees pictures; try {', '.join(CHECKPOINTS)}")
    return Path(out) / config["base"]


def words_read(out, name):
    """The words that a stage's LLM has read; empty if not recorded."""
    base = base_of(out, name)
    return set(read_json(base / "config.json").get("words", [])) if base.is_dir() else set()


# ---- scores -------------------------------------------------------------------------------------

def score_llm(llm, encoding, data, dialect):
    """Reading comprehension: data.examine_reading with an LLM's greedy answers."""
    device, stops = llm.embedding.weight.device, line_ends(encoding)
    llm.eval()

    def answer(asked):
        prompts = []
        for body, question in asked:
            ids, _ = encode(encoding, [*in_scene(body), (prompt(question), 0.0)])
            prompts.append(ids[1 - llm.config.context:])  # a long text loses its beginning
        answers = [""] * len(prompts)
        for indices, ids in same_length(dict(enumerate(prompts))):
            for i, tokens in zip(indices, llm.generate(llm.embed(ids.to(device)), stops)):
                answers[i] = encoding.decode(tokens).strip()
        return answers

    return data.examine_reading(answer, dialect)


def examine_vlm(vlm, features, data):
    """What a VLM says in the exam; all answers are generated, none is picked from a list.
    features: {split: (pictures, N, D)}"""
    vlm.eval()

    def answer(split, items):
        return vlm.answer(features[split], [(i, qa.question) for i, qa in items])

    def find(split, groups):
        return vlm.find(features[split], groups)

    return data.examine(answer, {split: len(x) for split, x in features.items()}, find)


def score_vlm(vlm, features, data):
    """The scores of a VLM (data/scoring.py)."""
    return data.score(examine_vlm(vlm, features, data))


def exam_facts(vlm, features, data):
    """What a stage keeps of an exam: the scores, what each picture adds to them, and the hash of
    the adapter that sat it, None if there is none."""
    said = examine_vlm(vlm, features, data)
    return {"hash": vlm.adapter and fingerprint(vlm.adapter), "scores": data.score(said),
            "counts": data.counts(said)}


def show_answers(path, said, data, count):
    """A model's answers about test pictures, wrong ones first: a PNG and a list."""
    answered = sorted(said["test"].questions, key=lambda a: a.right)
    wrong = sum(not a.right for a in answered)
    print(f"\n{count} answers about test pictures, wrong ones first ({wrong} of {len(answered)} "
          f"are wrong), in {path}:")
    rows = []
    for a in answered[:count]:
        picture = data.pictures("test", [a.picture])[0]
        rows.append((picture, a.qa.question, a.answer, a.qa.answer))
        verdict = "right" if a.right else "WRONG"
        print(f"  {verdict}  {a.qa.question}  {a.answer}  (truth: {a.qa.answer})")
    contact_sheet(path, rows)


# ---- what the adapter says ----------------------------------------------------------------------

def embeddings(llm, encoding, words):
    """One embedding per word, (words, C): of its token, or the mean over its tokens."""
    E = torch.zeros(len(words), llm.config.C, device=llm.embedding.weight.device)
    for k, word in enumerate(words):
        ids = torch.tensor(encoding.encode(f" {word}"), device=E.device)
        E[k] = llm.embed(ids).mean(0).detach()  # (C,)
    return E


@torch.no_grad()
def say(vlm, x, words):
    """How much each patch says each word: x (B, N, D) -> (B, N, words). For a LangBridge, its
    weights; for an MLP, the cosines between its visual tokens and the words' embeddings, each with
    its mean removed."""
    if isinstance(vlm.adapter, MLPAdapter):
        v, E = vlm.adapter(x), embeddings(vlm.llm, vlm.encoding, words)
        return F.normalize(v - v.mean((0, 1)), dim=-1) @ F.normalize(E - E.mean(0), dim=-1).T
    k = [vlm.adapter.tokens.index(token(word)) for word in words]
    return vlm.adapter.weights(x)[..., k]  # (B, N, words)


@torch.no_grad()
def grounding(vlm, features, words, data, top=2, split="test"):
    """Are an object's words among the `top` that its patches say most, taken together? And of each
    kind, is the word that they say most the right one?

    Returns three {kind: share}: the first answer, the same for another picture's object, the second
    answer.
    """
    found, best = [], defaultdict(list)
    for seen, said in data.seen(split, say(vlm, features, words)):
        said = said.sum(0)  # (words,)
        most = said.topk(min(top, len(words))).indices.tolist()
        found.append((seen, {words[k] for k in most}))
        for kind, names in data.kinds.items():
            known = [name for name in names if name in words]
            loudest = max(known, key=lambda name: said[words.index(name)], default=None)
            best[kind].append(loudest == seen.words[kind])
    half = len(found) // 2
    others = [said for _, said in found[half:] + found[:half]]  # each of another picture
    own, chance = {}, {}
    for kind in data.kinds:
        own[kind] = float(np.mean([seen.words[kind] in said for seen, said in found]))
        chance[kind] = float(np.mean([seen.words[kind] in said
                                      for (seen, _), said in zip(found, others)]))
    return own, chance, {kind: float(np.mean(right)) for kind, right in best.items()}


@torch.no_grad()
def own_weight(vlm, features, data):
    """The share of |weight| that an object's patches put on its own words."""
    shares, tokens = [], vlm.adapter.tokens
    for seen, beta in data.seen("test", vlm.adapter.weights(features).abs()):
        said = beta.sum(0)  # (K,)
        true = {token(word) for word in seen.words.values()}
        own = [k for k, t in enumerate(tokens) if t in true]
        shares.append((said[own].sum() / said.sum().clamp(min=1e-9)).item())
    return float(np.mean(shares))


@torch.no_grad()
def subspace(vlm, features, data, pictures=100):
    """Do visual tokens lie near the words that describe them? (the paper's study of stage 1)

    Tokens and embeddings both have a large common component, so means are removed first.
      own_cos, other_cos: mean cosine of an object's patches to its own words, and to the other
                          words for objects
      explained_own: share of these patches' energy in the span of the words for the picture's
                     objects and their places, |P v|^2 / |v|^2
      explained_random: the same for as many random words of the vocabulary
    Each is [mean, half-width of its 95% interval over pictures].
    """
    vlm.eval()
    rng = random.Random("subspace")
    v = vlm.adapter(features[:pictures])  # (B, N, C)
    v = v - v.mean((0, 1))
    side = math.isqrt(v.size(1))
    names = [word for words in data.kinds.values() for word in words]
    words = names + data.place_words
    vocabulary = readable(vlm.encoding.token_byte_values())
    R = embeddings(vlm.llm, vlm.encoding, vocabulary)  # (vocabulary, C): random words are from here
    E = embeddings(vlm.llm, vlm.encoding, words) - R.mean(0)  # (words, C)
    R = R - R.mean(0)
    unit = F.normalize(E[:len(names)], dim=-1)

    def explained(patches, span):
        basis = torch.linalg.qr(span.T)[0]  # (C, words), orthonormal: |P v| = |v basis|
        return ((patches @ basis).square().sum() / patches.square().sum()).item()

    measured = defaultdict(list)
    for i in range(len(v)):
        scene = data.objects("test", i, side)
        patches = torch.cat([v[i, seen.patches] for seen in scene])  # (patches of objects, C)
        own = [[word in seen.words.values() for word in names]
               for seen in scene for _ in seen.patches]
        own = torch.tensor(own, device=v.device)  # (patches of objects, names)
        cos = F.normalize(patches, dim=-1) @ unit.T  # (patches of objects, names)
        measured["own_cos"].append(cos[own].mean().item())
        measured["other_cos"].append(cos[~own].mean().item())
        said = sorted({word for seen in scene for word in [*seen.words.values(), *seen.place]})
        others = [j for j, word in enumerate(vocabulary) if word not in said]
        measured["explained_own"].append(explained(patches, E[[words.index(w) for w in said]]))
        random_words = rng.sample(others, min(len(said), len(others)))
        measured["explained_random"].append(explained(patches, R[random_words]))
    return {name: [float(np.mean(x)), float(1.96 * np.std(x) / len(x) ** 0.5)]
            for name, x in measured.items()}


@torch.no_grad()
def steering(vlm, features, data, edited):
    """Swap a word in every patch and ask again: does the answer about it follow, do others stay?

    edited(old, new) makes the adapter with the swap. Counts only questions answered correctly
    before it (data.scoring.color_edits).
    """
    edits = data.edits(len(features))
    before = vlm.answer(features, [(edit.picture, edit.question) for edit in edits])
    right = [edit for edit, answer in zip(edits, before) if answer == edit.answer]
    hits = defaultdict(list)
    for old, new in sorted({(edit.old, edit.new) for edit in right}):
        group = [edit for edit in right if (edit.old, edit.new) == (old, new)]
        asked = [(k, edit.question_after) for k, edit in enumerate(group)]
        after = VLM(edited(old, new), vlm.llm, vlm.encoding)
        answers = after.answer(features[[edit.picture for edit in group]], asked)
        for edit, answer in zip(group, answers):
            hits[edit.follows].append(answer == edit.answer_after)
    share = {follows: sum(hits[follows]) / max(1, len(hits[follows])) for follows in (True, False)}
    return {"n": len(hits[True]), "changed_as_edited": share[True], "others_kept": share[False]}


class Shifted(nn.Module):
    """How an MLP, which has no words, is edited: visual tokens that are nearest to the mean of one
    class move by the difference of two means. The means need labelled pictures.

    means: {class: (C,)}; moves: {old class: new class}
    """

    def __init__(self, adapter, means, moves):
        super().__init__()
        self.adapter, self.names = adapter, list(means)
        self.means, self.moves = torch.stack(list(means.values())), moves

    def forward(self, x):
        v = self.adapter(x)  # (B, N, C)
        nearest = torch.cdist(v, self.means).argmin(-1)  # (B, N)
        target = torch.arange(len(self.names), device=v.device)
        for old, new in self.moves.items():
            target[self.names.index(old)] = self.names.index(new)
        return v + self.means[target[nearest]] - self.means[nearest]


@torch.no_grad()
def class_means(adapter, features, data, kind):
    """The mean visual token of each class of a kind, and of patches without an object, in labelled
    training pictures: {word: (C,), "": (C,)}"""
    v, shown = adapter(features), defaultdict(list)  # (pictures, N, C)
    for seen, patches in data.seen("train", v):
        shown[seen.words[kind]].append(patches)
    shown = {word: torch.cat(patches) for word, patches in shown.items()}  # (patches, C) each
    objects = torch.cat(list(shown.values()))
    empty = (v.sum((0, 1)) - objects.sum(0)) / (v.size(0) * v.size(1) - len(objects))
    return {word: patches.mean(0) for word, patches in shown.items()} | {"": empty}


# ---- python evaluate.py -------------------------------------------------------------------------

def evaluate(out, names, data, features, path):
    """Scores with intervals, and what the adapters say: into a JSON file, with figures."""
    result, vlms, said = {"checkpoints": {}}, {}, {}
    wide = max(22, *map(len, names))
    print(f"{'':{wide}}" + "".join(f"{score:>24}" for score in data.SCORES) + "   (95% interval)")
    for name in names:
        _, vlms[name] = load_vlm(out, name)
        said[name] = examine_vlm(vlms[name], features, data)
        scores, bounds = data.score(said[name]), intervals(data.counts(said[name]))
        result["checkpoints"][name] = scores | {
            "intervals": bounds, "by_objects": data.by_objects(said[name])}
        cells = [f"{scores[k]:10.3f} ({bounds[k][0]:.3f}-{bounds[k][1]:.3f})" for k in data.SCORES]
        print(f"{name:{wide}}" + "".join(cells), flush=True)
    pictures = {split: len(x) for split, x in features.items()}
    for name, guess in (("majority", data.majority), ("chance", data.chance)):
        result[name] = guess(pictures)
        cells = [f"{result[name][k]:10.3f}{'':14}" for k in data.SCORES]
        print(f"{name:{wide}}" + "".join(cells))
    shown = said.get("langbridge_instruct", said[names[0]])
    show_answers(out / "mistakes.png", shown, data, count=10)
    studied = {"langbridge_align", "mlp_align", "langbridge_instruct", "mlp_instruct"}
    if data.kinds and studied <= set(names):
        result |= look_inside(out, vlms, features["test"], data)
    write_json(path, result)
    print(f"written: {path}")


def other_exam(out, conversations, images, allow_bad):
    """(data, features) of a file that is only an exam, for models that know another one."""
    vit = load_vit(out / "vit").eval()
    trained, config = open_data(out), vit.config
    data = open_own(str(conversations), str(images), folder=f"{out}/pictures", size=config.size,
                    side=config.grid, allow_bad=allow_bad, exam=True)
    if not trained.kinds:
        data.known = trained.known  # what guesses may know
    path = out / "pictures" / "features.new"
    features = {"test": encode_pictures(vit, data, "test", path).float()}
    path.unlink()
    return data, features


def models_in(out, moved):
    """The stages of train.py in a folder; with `moved`, also those that transfer.py has tuned."""
    names = [name for name in CHECKPOINTS if (out / name / "config.json").exists()]
    for path in sorted((out / "transfer").glob("llm_*/seed*/**/config.json")) if moved else []:
        if {"adapter.pt", "llm.pt"} <= set(read_json(path)["files"]):
            names.append(path.parent.relative_to(out).as_posix())
    return names


def look_inside(out, vlms, features, data):
    """What the adapters say, in numbers: grounding, subspace, steering."""
    print("\nwhat the adapters say")
    words = readable(vlms["langbridge_align"].adapter.tokens)
    grounded = {"chance": {}, "best_of_kind": {}}
    for key, name in (("langbridge", "langbridge_align"), ("mlp_nearest", "mlp_align"),
                      ("langbridge_after_instruct", "langbridge_instruct")):
        own, chance, best = grounding(vlms[name], features, words, data)
        grounded[key], grounded["chance"][key], grounded["best_of_kind"][key] = own, chance, best
        said = [f"its {kind} in {own[kind]:.3f} (another picture's {chance[kind]:.3f})"
                for kind in own]
        print(f"  {key}: among the 2 words that an object's patches say most: {', '.join(said)}")
    labelled = read_tensors(out / "vit" / "features.pt", mmap=True)["train"][:1000].float()
    steered = {"mlp": {}}
    for stage in ("align", "instruct"):
        bridge, mlp = vlms[f"langbridge_{stage}"], vlms[f"mlp_{stage}"]
        means = class_means(mlp.adapter, labelled, data, "color")  # of which edits are
        steered[stage] = steering(bridge, features, data,
                                  lambda old, new: Edited(bridge.adapter, {old: new}))
        steered["mlp"][stage] = steering(mlp, features, data,
                                         lambda old, new: Shifted(mlp.adapter, means, {old: new}))
        for title, of in (("LangBridge, another word", steered[stage]),
                          ("MLP, shifted by means of labelled patches", steered["mlp"][stage])):
            print(f"  a colour swapped after {stage}, {title}: {of['n']} edits, the colour answer "
                  f"follows in {of['changed_as_edited']:.3f}, others stay in "
                  f"{of['others_kept']:.3f}")
    steered |= steered["instruct"]  # again at the top: this is the model that a user meets
    return {"grounding": grounded, "subspace": study_of(out), "steering": steered}


def study_of(out):
    """The measurements that align took (subspace), as lists, and their figure."""
    study = {}
    for kind, title in (("mlp", "MLP"), ("langbridge", "LangBridge")):
        measured = read_json(out / f"{kind}_align" / "config.json")["measured"]
        study["steps"], study[kind] = [step for step, _ in measured], {}
        for name in ("own_cos", "other_cos", "explained_own", "explained_random"):
            pairs = [values[name] for _, values in measured]
            study[kind][name] = [mean for mean, _ in pairs]
            study[kind][f"{name}_interval"] = [half for _, half in pairs]
        own, other = study[kind]["explained_own"], study[kind]["explained_random"]
        print(f"  {title}: the caption's words explain {own[0]:.3f} of the patches' energy before "
              f"stage 1, {own[-1]:.3f} after it; random words {other[0]:.3f}, {other[-1]:.3f}")
    plot_study(study, out / "subspace.png")
    return study


# ---- one picture --------------------------------------------------------------------------------

def draw_word_map(out, model, vlm, features, pixels, path):
    """What each patch says, by this model and by the other adapter of its stage."""
    if vlm.adapter is None:
        raise Refused("a blind model has no adapter: there is no map of what it says")
    bridge = mlp = None
    if isinstance(vlm.adapter, MLPAdapter):
        mlp, beside = vlm, model.replace("mlp", "langbridge")
    else:
        bridge, beside = vlm, model.replace("langbridge", "mlp")
    if model in CHECKPOINTS and (out / beside / "adapter.json").exists():
        _, other = load_vlm(out, beside)
        bridge, mlp = bridge or other, mlp or other
    speaker = bridge.adapter if bridge else load_adapter(out / "langbridge_align")
    words = readable(speaker.tokens)
    panels = []
    for title, each in (("LangBridge: its weights", bridge), ("MLP: nearest words (cosine)", mlp)):
        if each:
            said = say(each, features, words)[0]  # (N, words)
            panels.append((title, [list(zip(words, patch)) for patch in said.tolist()]))
    note = f"{model} in {out.name}; words below 0.05 are left out."
    word_map(path, pixels[0].numpy(), panels, note)
    print(f"written: {path}")


def show_step(title, tensor, function, code):
    """Print a step of the trace: its shape, and the line of `function` that contains `code`.

    The letters of the shape come from the comment at the end of that line.
    """
    lines, first = inspect.getsourcelines(function)
    i = next(i for i, line in enumerate(lines) if code in line)
    line, _, letters = lines[i].strip().partition("  # ")
    file = Path(inspect.getsourcefile(function)).relative_to(Path(__file__).parent).as_posix()
    print(f"\n{title}\n    {letters} = {tuple(tensor.shape)}\n"
          f"    {file}:{first + i}, {function.__qualname__}:  {line}")


@torch.no_grad()
def trace(path, vit, vlm, question, known):
    """Follow a picture to its answer, printing every step."""
    adapter, llm, encoding, side = vlm.adapter, vlm.llm, vlm.encoding, vit.config.grid
    if not isinstance(adapter, (LangBridge, MLPAdapter)):
        raise Refused("--trace needs an adapter as it was trained: not with --swap, and not a "
                      "blind model, which sees no picture")
    pixels = read_picture(path, vit.config.size)
    features = vit(pixels)  # (B, N, D)
    answer = ask(vlm, features, question, known)
    print(f"{path}, {question!r}: B = 1 picture, N = {side * side} patches")
    show_step("1. The file becomes a small square of pixels.", pixels, read_picture, "[None]")
    show_step(f"2. The square is cut into {side} x {side} patches of p x p pixels, p = "
              f"{vit.config.patch}, with four channels each.", vit.patches(pixels), ViT.patches,
              "return")
    show_step("3. The ViT turns each patch into a feature, with all the others as context.",
              features, ViT.forward, "return")
    if isinstance(adapter, LangBridge):
        beta = adapter.weights(features)  # (B, N, K)
        show_step(f"4. LangBridge gives each of its K = {len(adapter.tokens)} words a weight. The "
                  "four patches furthest from 'nothing here':", beta, LangBridge.forward,
                  "self.weights")
        words = [t.decode("latin-1").strip() for t in adapter.tokens]
        for n in sorted(beta[0, :, adapter.tokens.index(NOTHING)].argsort()[:4].tolist()):
            said = [f"{words[k]!r} {beta[0, n, k]:.2f}" for k in beta[0, n].topk(3).indices]
            print(f"        row {n // side + 1}, column {n % side + 1}: {', '.join(said)}")
        show_step("5. The words' embeddings E (K, C), summed by weight, are the visual tokens.",
                  adapter(features), LangBridge.forward, "return")
    else:
        show_step("4. The MLP turns each feature into a visual token.", adapter(features),
                  MLPAdapter.forward, "return")
    picture, start = vlm.picture(features), len(vlm.prefix)  # (B, prefix + N + rows, C)
    show_step(f"6. They go inside the text. {vlm.layout}", picture, type(vlm).picture,
              "return torch.cat")
    ids = encoding.encode(prompt(question))
    last = vlm.prefix[-5:]
    print(f"        position {start - len(last)}: {'|'.join(encoding.decode([i]) for i in last)!r}")
    print(f"        position {start}: the picture, {picture.size(1) - start} tokens")
    print(f"        position {picture.size(1)}: {'|'.join(encoding.decode([i]) for i in ids)!r}")
    logits = llm(torch.cat([picture, vlm.embed(ids)], dim=1))
    show_step("7. The LLM reads all T positions; the logits of the last one choose the answer's "
              "first token:", logits, LLM.forward, "return")
    best = logits[0, -1].softmax(-1).topk(5)
    for p, i in zip(best.values.tolist(), best.indices.tolist()):
        print(f"        {p:.3f}  {encoding.decode([i])!r}")
    print(f"\n8. The answer, token by token until a newline: {answer}")


def ask(vlm, features, question, known):
    """The answer to a user's question. Raises Refused if it cannot be asked; warns of words not in
    `known`, those that the LLM has read."""
    for special in vlm.encoding.special_tokens_set:
        if special in question:
            raise Refused(f"{special!r} is a special token, not text: leave it out")
    (answer,) = vlm.answer(features, [(0, question)])
    unread = sorted(set(re.findall(r"\w+", question)) - set(known))
    if known and unread:
        print(f"(this LLM has never read {', '.join(map(repr, unread))}: do not trust the answer)",
              file=sys.stderr, flush=True)
    return answer or "(no answer)"


def parse_swap(text, adapter):
    """'red=blue' -> {'red': 'blue'}; raises Refused unless the adapter has both words."""
    if not isinstance(adapter, LangBridge):
        raise Refused("--swap needs a LangBridge: other models have no words to swap")
    words = text.split("=")
    if len(words) != 2 or not all(token(word) in adapter.tokens for word in words):
        raise Refused(f"--swap {text}: expected WORD=WORD with words of the adapter: "
                      f"{', '.join(readable(adapter.tokens))}")
    return {words[0]: words[1]}


def chat(vlm, features, data, known, draw_map):
    """Questions and answers about one picture, until /quit; draw_map(vlm) draws what it says."""
    bridge, swaps = vlm.adapter, {}
    print("Ask in words like these, with the colours and shapes of your picture:")
    for question in data.example_questions():
        print(f"    {question}")
    print("Asked about what is not there, it guesses. An empty line asks for a description.\n"
          "/map draws what the patches say, /swap red=blue edits it, /swap undoes it, /quit ends.")
    while True:
        try:
            line = " ".join(input("> ").lower().split())
        except (EOFError, KeyboardInterrupt):
            return print()
        try:
            if line == "/quit":
                return
            elif line == "/map":
                draw_map(vlm)
            elif line == "/swap":
                swaps, vlm.adapter = {}, bridge
                print("nothing is swapped")
            elif line.startswith("/swap "):
                swaps |= parse_swap(line.removeprefix("/swap "), bridge)
                vlm.adapter = Edited(bridge, swaps)
                said = [f"{new} for {old}" for old, new in swaps.items()]
                print(f"every patch now says {', '.join(said)}")
            elif line.startswith("/"):
                print(f"unknown: {line}; try /map, /swap WORD=WORD, /quit")
            else:
                print(ask(vlm, features, line or data.request, known))
        except (Refused, OSError) as error:
            print(error)


def look_at(args, model):
    """python evaluate.py --image: whatever was asked for."""
    data = open_data(args.out)
    if args.llm:
        vit, vlm = load_real(args.out, model, args.llm)
        known = set()  # it has read the web
    else:
        vit, vlm = load_vlm(args.out, model)
        known = words_read(args.out, model)
    pixels = read_picture(args.image, vit.config.size)
    features = vit(pixels)
    question = " ".join((args.ask or data.request).lower().split())
    if args.swap:
        vlm.adapter = Edited(vlm.adapter, parse_swap(args.swap, vlm.adapter))
    if args.map and args.map.suffix.lower() != ".png":
        raise Refused(f"--map {args.map}: expected a file name that ends in .png")
    if args.map:
        draw_word_map(args.out, model, vlm, features, pixels, args.map)
    if args.trace:
        trace(args.image, vit, vlm, question, known)
    elif args.ask is None and not (args.map or args.swap) and sys.stdin.isatty():
        path = args.image.with_name(f"{args.image.stem}_words.png")
        chat(vlm, features, data, known,
             lambda vlm: draw_word_map(args.out, model, vlm, features, pixels, path))
    else:
        print(ask(vlm, features, question, known))


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"),
                        help="the folder that train.py wrote (default: out)")
    parser.add_argument("--model", help="a stage in --out: which model answers (default: "
                        "langbridge_instruct) or, without --image, the only one to score")
    parser.add_argument("--image", type=Path, help="a picture: PNG or JPEG, any size")
    parser.add_argument("--ask", help="a question about it; without one, you get a description, or "
                        "a conversation on a terminal")
    parser.add_argument("--trace", action="store_true", help="follow the picture step by step")
    parser.add_argument("--map", type=Path, metavar="PNG", help="draw what each patch says, "
                        "LangBridge beside the MLP")
    parser.add_argument("--swap", metavar="WORD=WORD", help="replace the first word by the second "
                        "in what every patch says, as in red=blue")
    parser.add_argument("--llm", type=Path, metavar="GGUF", help="a real LLM answers, the one in "
                        "this file: the adapter is moved to it (--model: langbridge_align)")
    parser.add_argument("--data", type=Path, metavar="JSON", help="score what the models say about "
                        "these conversations (in LLaVA's format) instead, into evaluate_NAME.json")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of their pictures")
    parser.add_argument("--allow-bad", action="store_true", help="even if more than 5%% of them "
                        "cannot be used")
    args = parser.parse_args()
    if (args.data is None) != (args.images is None):
        raise Refused("--data FILE and --images DIR go together")
    if args.image is not None and args.data is not None:
        raise Refused("--image asks about one picture, --data scores many: use one of them")
    if args.image is None:
        for flag in ("ask", "trace", "map", "swap", "llm"):
            if getattr(args, flag):
                raise Refused(f"which picture? --{flag} needs --image picture.png")
        names = [args.model] if args.model else models_in(args.out, bool(args.data))
        if not names:
            raise Refused(f"{str(args.out)!r} has no finished model yet; "
                          f"'python train.py --out {args.out}' makes them")
        if args.data:
            data, features = other_exam(args.out, args.data, args.images, args.allow_bad)
            path = args.out / f"evaluate_{args.data.stem}.json"
        else:
            data, path = open_data(args.out), args.out / "evaluate.json"
            features = held_out(args.out, splits=[split for split in data.EXAM if split != "val"])
        return evaluate(args.out, names, data, features, path)
    if args.ask is not None and not args.ask.strip():
        raise Refused('the question is empty; try --ask "what color is the circle?", or leave '
                      "--ask out for a caption")
    look_at(args, args.model or ("langbridge_align" if args.llm else "langbridge_instruct"))


if __name__ == "__main__":
    run_command(main)
