"""Scores, questions about your own pictures, and a look into the adapter.

    python evaluate.py                                                        everything that is measured, into evaluate.json
    python evaluate.py --image picture.png --ask "what color is the circle?"
    python evaluate.py --image picture.png                                    a conversation; where there is no terminal, a caption
    python evaluate.py --image picture.png --map words.png                    what each patch says
    python evaluate.py --image picture.png --swap red=blue --ask "what color is the circle?"

The exam itself, its questions and their scoring, is data/scoring.py.
"""
import argparse
import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from adapter import LangBridge, load_adapter
from data.bpe import BOS
from data.corpus import raster, sentences
from data.report import KINDS, ablation_table, contact_sheet, fill_readme, line_plot, word_map
from data.scoring import by_objects, examine, intervals, score_answers, score_captions, score_chance, summarize
from data.world import CAPTION_REQUESTS, COLORS, PLACES, SHAPES, ask, ask_any, make_scene, types_of
from model import VLM, load_llm, same_length
from vision import load_vit


# ---- scores ------------------------------------------------------------------------------------------------------------

def score_llm(llm, encoding, dialect, seed, n, world):
    """Reading comprehension on n unseen scenes in words: can this LLM answer from sentences and from rasters, and can it
    describe a raster? What it cannot do from words, it cannot do from patches that are combinations of words."""
    llm.eval()
    device = llm.embedding.weight.device

    def answer(bodies, questions):
        prompts = [encoding.encode(f"{BOS}scene:\n{body}", allowed_special={BOS}) + encoding.encode(f"question: {question}")
                   for body, question in zip(bodies, questions)]
        answers = [""] * len(prompts)
        for rows, ids in same_length(prompts):
            for i, tokens in zip(rows, llm.generate(llm.embed(ids.to(device)), encoding.encode_single_token(b"\n"))):
                answers[i] = encoding.decode(tokens).strip()
        return answers

    scores, scenes = {}, [make_scene("text:held-out", seed, i, world) for i in range(n)]
    for name in ("text_qa", "raster_qa"):
        rng = random.Random(f"{name}/{seed}")
        questions = [ask(scene, types_of(scene)[i % len(types_of(scene))], rng) or ask_any(scene, rng) for i, scene in enumerate(scenes)]
        bodies = [raster(scene, rng) if name == "raster_qa" else sentences(rng.sample(scene, len(scene)), dialect, rng) for scene in scenes]
        scores[name], scores[name + "_by_type"] = score_answers(questions, answer(bodies, [qa.question for qa in questions]))
    few = scenes[:n // 3]
    captions = answer([raster(scene, rng) for scene in few], [CAPTION_REQUESTS[0]] * len(few))
    return scores | {"raster_caption_f1": score_captions(captions, few)[0]}


def examine_vlm(vlm, features, world):
    """What a VLM says about the exam's pictures; features: {split: (pictures, N, D)}. All answers are generated, none chosen from a list."""
    vlm.eval()
    return examine(lambda split, items: vlm.answer(features[split], [(i, qa.question) for i, qa in items]),
                   {split: len(x) for split, x in features.items()}, world)


def score_vlm(vlm, features, world):
    """The scores S of a VLM (data/scoring.py)."""
    return summarize(examine_vlm(vlm, features, world))


def linear_probe(x, y, x_test, y_test, classes):
    """Accuracy of a linear classifier (ridge regression to one-hot targets): what can be read off features directly."""
    mean, one = x.mean(0), lambda z: torch.cat([z, z.new_ones(len(z), 1)], dim=1)
    x, x_test = one(x - mean).double(), one(x_test - mean).double()
    gram = x.T @ x
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, x.T @ F.one_hot(y, classes).double())
    return ((x_test @ weights).argmax(1) == y_test).double().mean().item()


def score_features(features, world, train_pictures=3000):
    """Linear probes for an object's colour and shape on the frozen patch features of its place (2 x 2 patches side by side)."""
    def labelled(split, pictures):
        x, colors, shapes = [], [], []
        for o, patches in objects(features[split][:pictures], split, world):
            x.append(patches.float().flatten())
            colors.append(COLORS.index(o.color))
            shapes.append(SHAPES.index(o.shape))
        return torch.stack(x), torch.tensor(colors), torch.tensor(shapes)
    x, colors, shapes = labelled("train", train_pictures)
    x_test, colors_test, shapes_test = labelled("test", len(features["test"]))
    return {"probe_color": linear_probe(x, colors, x_test, colors_test, len(COLORS)),
            "probe_shape": linear_probe(x, shapes, x_test, shapes_test, len(SHAPES))}


# ---- what the adapter sees -----------------------------------------------------------------------------------------------

def patches_of(place, side):
    """The indices of the patches that a place of the 3 x 3 board covers, on a grid of side x side patches."""
    (row, col), k = divmod(place, 3), side // 3
    return [(row * k + i) * side + col * k + j for i in range(k) for j in range(k)]


def objects(values, split, world):
    """Each object of a split's first pictures with what its patches have: (Object, (patches, ..)); values (B, N, ..)."""
    side = int(values.size(1) ** 0.5)
    for i, grid in enumerate(values):
        for o in make_scene(split, 0, i, world):
            yield o, grid[patches_of(o.place, side)]


def embeddings(llm, encoding, words):
    """One embedding a word, (len(words), C): that of its token, or the mean over its tokens where it has several."""
    device = llm.embedding.weight.device
    return torch.stack([llm.embed(torch.tensor(encoding.encode(f" {word}"), device=device)).mean(0) for word in words]).detach()


@torch.no_grad()
def subspace(vlm, features, world, pictures=100):
    """Do visual tokens lie near the words that describe them? (the paper's study of adapters during stage 1)

    Means are removed first, of the visual tokens and of the word embeddings: each table has a large vector in common.
      own_cos, other_cos: mean cosine of an object's patches to its own colour and shape, and to all other colours and shapes
      explained_own: the share of these patches' energy in the span of the picture's caption words, |P v|^2 / |v|^2
      explained_random: the same for as many random words of the vocabulary
    Each is (mean, half of its 95% interval over pictures).
    """
    vlm.eval()
    rng, v = random.Random("subspace"), vlm.adapter(features["test"][:pictures])  # (B, N, C)
    side, v = int(v.size(1) ** 0.5), v - v.mean((0, 1))
    words = COLORS + SHAPES + sorted({word for place in PLACES for word in place.split()})
    vocabulary = readable(vlm.encoding.token_byte_values())
    E, R = (embeddings(vlm.llm, vlm.encoding, names) for names in (words, vocabulary))
    E, R = E - R.mean(0), R - R.mean(0)
    unit = F.normalize(E, dim=-1)
    measured = defaultdict(list)
    for i in range(len(v)):
        scene = make_scene("test", 0, i, world)
        patches = torch.cat([v[i, patches_of(o.place, side)] for o in scene])  # (patches of objects, C)
        cos = F.normalize(patches, dim=-1) @ unit[:len(COLORS + SHAPES)].T
        k = len(patches) // len(scene)
        own = torch.zeros_like(cos, dtype=torch.bool)
        for j, o in enumerate(scene):
            own[j * k:(j + 1) * k, [COLORS.index(o.color), len(COLORS) + SHAPES.index(o.shape)]] = True
        measured["own_cos"].append(cos[own].mean().item())
        measured["other_cos"].append(cos[~own].mean().item())
        said = sorted({word for o in scene for word in (o.color, o.shape, *PLACES[o.place].split())})
        for name, span in (("explained_own", E[[words.index(word) for word in said]]),
                           ("explained_random", R[rng.sample([j for j, word in enumerate(vocabulary) if word not in said], len(said))])):
            basis = torch.linalg.qr(span.T)[0]  # (C, words): orthonormal
            measured[name].append(((patches @ basis).square().sum() / patches.square().sum()).item())
    return {name: [float(np.mean(x)), float(1.96 * np.std(x) / len(x) ** 0.5)] for name, x in measured.items()}


@torch.no_grad()
def say(vlm, x, words):
    """How much each patch says each word, (B, N, D) -> (B, N, words): LangBridge's weights; an MLP's cosine to the embeddings."""
    if isinstance(vlm.adapter, LangBridge):
        return vlm.adapter.weights(x)[..., [vlm.adapter.tokens.index(f" {word}".encode()) for word in words]]
    v, E = vlm.adapter(x), embeddings(vlm.llm, vlm.encoding, words)
    return F.normalize(v - v.mean((0, 1)), dim=-1) @ F.normalize(E - E.mean(0), dim=-1).T


def readable(tokens):
    """The words among a LangBridge's tokens that stand alone: no bytes, punctuation or pieces of one or two letters."""
    return [t[1:].decode() for t in tokens if t[:1] == b" " and len(t) > 3 and t.isascii() and t[1:].isalpha()]


@torch.no_grad()
def grounding(vlm, features, words, world, top=5):
    """Are an object's colour and shape among the `top` words of its patches (summed over them)?

    Returns {"color", "shape", "chance_color", "chance_shape"}; chance: the words of the object, the colour and shape of one of
    another picture.
    """
    found = [(o, {words[k] for k in patches.sum(0).topk(top).indices.tolist()}) for o, patches in objects(say(vlm, features, words), "test", world)]
    shifted = found[len(found) // 2:] + found[:len(found) // 2]
    rate = lambda pairs, part: float(np.mean([getattr(o, part) in said for o, said in pairs]))
    other = [(o, said) for (o, _), (_, said) in zip(found, shifted)]
    return {"color": rate(found, "color"), "shape": rate(found, "shape"),
            "chance_color": rate(other, "color"), "chance_shape": rate(other, "shape")}


@torch.no_grad()
def own_weight(vlm, features, world):
    """How much of what a LangBridge's patches of an object say is the object's own colour and shape: the share of |weight| on them."""
    shares = []
    for o, beta in objects(vlm.adapter.weights(features).abs(), "test", world):
        said = beta.sum(0)  # (K,)
        own = [k for k, token in enumerate(vlm.adapter.tokens) if token in (f" {o.color}".encode(), f" {o.shape}".encode())]
        shares.append((said[own].sum() / said.sum().clamp(min=1e-9)).item())
    return float(np.mean(shares))


class Edited(torch.nn.Module):
    """A LangBridge whose patches say one word where they said another: {"red": "blue"} moves the weight of red to blue."""

    def __init__(self, adapter, swaps):
        super().__init__()
        self.adapter, self.swaps = adapter, [(adapter.tokens.index(f" {a}".encode()), adapter.tokens.index(f" {b}".encode()))
                                             for a, b in swaps.items()]

    def forward(self, x):
        old = self.adapter.weights(x)  # (B, N, K)
        new = old.clone()
        for a, b in self.swaps:
            new[..., a] -= old[..., a]
            new[..., b] += old[..., a]
        return new @ self.adapter.E  # (B, N, C)


@torch.no_grad()
def steering(vlm, features, world):
    """Swap an object's colour word in every patch and ask again: does the answer about its colour follow, do the others stay?

    Each test picture with an object of unique colour and shape gives one edit, to a random colour that the picture lacks. Only
    questions that are answered rightly without the edit count. After it, 'what color is the circle?' should be answered with the
    new colour, its shape and place (asked with the new colour) and the place of another object as before.
    """
    rng, edits = random.Random("steering"), []
    for i in range(len(features)):
        scene = make_scene("test", 0, i, world)
        colors, shapes = [o.color for o in scene], [o.shape for o in scene]
        single = [o for o in scene if colors.count(o.color) == 1 and shapes.count(o.shape) == 1]
        if single:
            o, new = rng.choice(single), rng.choice([c for c in COLORS if c not in colors])
            asked = [("color", f"what color is the {o.shape}?", o.color, f"what color is the {o.shape}?", new),
                     ("other", f"what shape is the {o.color} object?", o.shape, f"what shape is the {new} object?", o.shape),
                     ("other", f"where is the {o.color} {o.shape}?", PLACES[o.place], f"where is the {new} {o.shape}?", PLACES[o.place])]
            asked += [("other", *2 * (f"where is the {p.color} {p.shape}?", PLACES[p.place])) for p in scene if p != o][:1]
            edits += [(i, o.color, new, *q) for q in asked]
    before = vlm.answer(features, [(e[0], e[4]) for e in edits])
    right = [e for e, answer in zip(edits, before) if answer == e[5]]
    hits = defaultdict(list)
    for pair in sorted({e[1:3] for e in right}):  # all pictures with the same edit at once
        group = [e for e in right if e[1:3] == pair]
        edited = VLM(Edited(vlm.adapter, {pair[0]: pair[1]}), vlm.llm, vlm.encoding)
        for e, answer in zip(group, edited.answer(features[[e[0] for e in group]], [(k, e[6]) for k, e in enumerate(group)])):
            hits[e[3]].append(answer == e[7])
    rate = lambda answers: sum(answers) / max(1, len(answers))
    return {"n": len(hits["color"]), "changed_as_edited": rate(hits["color"]), "others_kept": rate(hits["other"])}


# ---- your own pictures -------------------------------------------------------------------------------------------------

def fail(message):
    """A mistake of the user's: one clear line, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_picture(path, size):
    """Any PNG or JPEG as (1, size, size, 3) uint8: transparency on white, padded to a square with its border's colour."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        fail(f"there is no picture {str(path)!r}")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        fail(f"cannot read {str(path)!r} as a picture ({error}); PNG and JPEG files work")
    if picture.mode.startswith("I"):  # 16-bit greyscale
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(v) for v in np.median(border, axis=0)))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return torch.from_numpy(np.array(square.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)))[None]


def load_vlm(out, name):
    """(ViT, VLM) from an --out folder; name: an adapter's folder there, such as 'langbridge_instruct'."""
    for path in (out / "vit" / "config.json", out / name / "config.json", *[out / name / "adapter.json"] * (not name.startswith("blind"))):
        if not path.exists():
            fail(f"there is no {str(path)!r}; 'python train.py --out {out}' makes it")
    base = out / json.loads((out / name / "config.json").read_text(encoding="utf-8"))["base"]
    adapter = None
    if not name.startswith("blind"):  # the embeddings before the LLM was tuned: those that the adapter was trained with
        adapter = load_adapter(out / name).set_basis(*load_llm(base))
    llm, encoding = load_llm(out / name if (out / name / "llm.pt").exists() else base)
    return load_vit(out / "vit").eval(), VLM(adapter, llm, encoding).eval()


def held_out(out):
    """The frozen features of the splits that nothing is trained on, in float32."""
    features = torch.load(out / "vit" / "features.pt", mmap=True, weights_only=True)
    return {split: features[split].float() for split in ("test", "comp")}


# ---- python evaluate.py: everything that can be measured --------------------------------------------------------------------

CHECKPOINTS = ["mlp_align", "langbridge_align", "mlp_instruct", "langbridge_instruct", "blind_instruct"]


def write_json(path, data):
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    print(f"written: {path}")


def evaluate(out, names):
    """Benchmarks with intervals, grounding, steering, the study of stage 1: into evaluate.json, with their figures."""
    from train import load_settings  # train.py imports this file
    s, path, features = load_settings(out), out / "evaluate.json", held_out(out)
    world = s.world
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result = {"checkpoints": {}, "ablations": known.get("ablations", {})}  # ablations are kept
    scores = ("vqa", "caption_f1", "pope_acc", "comp_vqa")
    print(f"{'':22}" + "".join(f"{score:>24}" for score in scores) + "   (95% interval)")
    for name in names:
        said = examine_vlm(load_vlm(out, name)[1], features, world)
        S = summarize(said) | {"intervals": intervals(said), "by_objects": by_objects(said)}
        result["checkpoints"][name] = S
        print(f"{name:22}" + "".join(f"{S[k]:10.3f} ({S['intervals'][k][0]:.3f}-{S['intervals'][k][1]:.3f})" for k in scores), flush=True)
        if name == "langbridge_instruct" or len(names) == 1:
            shown = said
    result["chance"] = score_chance({split: len(x) for split, x in features.items()}, world)
    print(f"{'chance':22}" + "".join(f"{result['chance'][k]:10.3f}{'':14}" for k in scores))
    contact_sheet(out / "mistakes.png", shown, s.vit_size, world, count=10)
    if {"langbridge_align", "mlp_align", "langbridge_instruct"} <= set(names):
        print("\nwhat the adapters see")
        result |= {"grounding": measure_grounding(out, features["test"], world), "subspace": study(out)}
        steered = {stage: steering(load_vlm(out, f"langbridge_{stage}")[1], features["test"], world) for stage in ("align", "instruct")}
        result["steering"] = steered | steered["instruct"]  # the tuned model's is the one a user meets
        print("  a colour swapped in every patch, after instruct: {n} edits, the colour answer follows in {changed_as_edited:.3f}, "
              "other answers stay in {others_kept:.3f}".format(**steered["instruct"]))
    write_json(path, result)


def measure_grounding(out, features, world):
    """grounding() of both adapters, over the words of the LangBridge that stand alone."""
    words, result = readable(load_adapter(out / "langbridge_align").tokens), {"chance": {}}
    for key, name in (("langbridge", "langbridge_align"), ("mlp_nearest", "mlp_align"), ("langbridge_after_instruct", "langbridge_instruct")):
        g = grounding(load_vlm(out, name)[1], features, words, world)
        result[key] = {"color": g["color"], "shape": g["shape"]}
        result["chance"][key] = {"color": g["chance_color"], "shape": g["chance_shape"]}
        print(f"  {key}: an object's colour is among the 5 top words of its patches in {g['color']:.3f}, its shape in {g['shape']:.3f} "
              f"(those of another picture: {g['chance_color']:.3f}, {g['chance_shape']:.3f}; {len(words)} words)")
    return result


def run_ablation(out, what, seeds, stage2, stages):
    """--ablate: transfer.ablate's sweep as a table, a figure, and a part of evaluate.json."""
    from train import load_settings  # train.py imports this file
    from transfer import SWEEPS, ablate
    if what not in SWEEPS:
        fail(f"--ablate {what}: expected one of {', '.join(SWEEPS)}")
    s = load_settings(out)
    s.threads, s.stages = os.cpu_count(), "all"
    torch.set_num_threads(1 if stages else s.threads)
    points = ablate(s, what, seeds, stage2, [__file__, *sys.argv[1:]], stages)
    if stages:
        return
    sweep = {"setting": SWEEPS[what][0], "seeds": seeds, "points": points}
    text = ablation_table(sweep)
    print(text)
    (out / f"ablate_{what}.md").write_text(text, encoding="utf-8")
    kinds = [kind for kind in KINDS if kind in points[0]]
    xs = list(range(len(points)))
    line = lambda kind, score: (xs, *[[f(p[kind][score]) for p in points] for f in (np.mean, min, max)])
    panel = lambda score: {kind.replace("_", "-"): line(kind, score) for kind in kinds}
    line_plot(out / f"ablate_{what}.png", f"Ablation of {what}", [("vqa", panel("vqa")), ("caption F1", panel("caption_f1"))], SWEEPS[what][0],
              f"Seeds {', '.join(map(str, seeds))}: mean, lowest and highest.", names_of_x=[str(p["value"]) for p in points])
    path = out / "evaluate.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result.setdefault("ablations", {})[what] = sweep
    write_json(path, result)


def study(out):
    """The study of stage 1 that train.py recorded, as a figure and as lists: do adapters move towards the words?"""
    result, panels = {}, {"cosine to word embeddings": {}, "energy explained by words": {}}
    measures = [("own_cos", "own words"), ("other_cos", "other words"), ("explained_own", "the caption's words"), ("explained_random", "random words")]
    for kind, title in (("mlp", "MLP"), ("langbridge", "LangBridge")):
        seen = json.loads((out / f"{kind}_align" / "config.json").read_text(encoding="utf-8"))["seen"]
        result["steps"], result[kind] = [step for step, _ in seen], {}
        for name, label in measures:
            mean, half = np.array([s[name] for _, s in seen]).T
            result[kind] |= {name: mean.tolist(), f"{name}_interval": half.tolist()}
            panels[list(panels)[name.startswith("explained")]][f"{title}, {label}"] = result["steps"], mean, mean - half, mean + half
        own, random = result[kind]["explained_own"], result[kind]["explained_random"]
        print(f"  {title}: the caption's words explain {own[0]:.3f} of the patches' energy before stage 1 and {own[-1]:.3f} after it, "
              f"random words {random[0]:.3f} and {random[-1]:.3f}")
    line_plot(out / "subspace.png", "Stage 1 brings patches to the words that describe them", list(panels.items()), "steps of stage 1 (log)",
              "100 test pictures, patches of objects, mean vectors removed; bands: 95% intervals.", log=True, ylim=(-0.2, 0.8))
    return result


@torch.no_grad()
def draw_word_map(out, model, pixels, path):
    """What LangBridge and the MLP of the same stage say about each patch of a picture, side by side."""
    stage = model.rsplit("_", 1)[-1] if model in CHECKPOINTS else None
    panels = []
    names = [model] if stage is None else [f"langbridge_{stage}", f"mlp_{stage}"]
    for name in names:
        vit, vlm = load_vlm(out, name)
        bridge = isinstance(vlm.adapter, LangBridge)
        if bridge:
            words = [t.decode("latin-1").strip() or "newline" for t in vlm.adapter.tokens]
            scores = vlm.adapter.weights(vit(pixels))[0]
        else:
            words = ["."] + readable(load_adapter(out / f"langbridge_{stage}").tokens)
            scores = say(vlm, vit(pixels), words)[0]
        panels.append(("LangBridge: its weights" if bridge else "MLP: nearest words (cosine)",
                       [[(word, float(w)) for word, w in zip(words, row) if word != "."] for row in scores]))
    word_map(path, pixels[0].numpy(), panels, f"{model} in {out.name}; words below 0.05 and the word for 'nothing here' (.) are not shown.")
    print(f"written: {path}")


# ---- a conversation ---------------------------------------------------------------------------------------------------------

def parse_swap(text, tokens):
    """'red=blue' -> {'red': 'blue'}, if the adapter has both words."""
    parts = text.split("=")
    for word in parts:
        if len(parts) != 2 or f" {word}".encode() not in tokens:
            fail(f"--swap {text}: expected WORD=WORD with words of the adapter: {', '.join(readable(tokens))}")
    return {parts[0]: parts[1]}


def chat(vlm, features, draw_map):
    """Questions and answers about one picture until /quit."""
    bridge, swaps = vlm.adapter, {}
    print("Ask about the picture. An empty line describes it; /map draws what its patches say, /swap red=blue edits their words, "
          "/swap undoes that, /quit ends.")
    while True:
        try:
            line = input("> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return print()
        if line == "/quit":
            return
        elif line == "/map":
            draw_map()
        elif line.startswith("/swap"):
            if not isinstance(bridge, LangBridge):
                print("only a LangBridge has words to swap")
                continue
            try:
                swaps = {**swaps, **parse_swap(line[5:].strip(), bridge.tokens)} if line[5:].strip() else {}
                vlm.adapter = Edited(bridge, swaps)
                print(f"every patch now says {', '.join(f'{b} for {a}' for a, b in swaps.items())}" if swaps else "nothing is swapped")
            except SystemExit:
                pass
        elif line.startswith("/"):
            print(f"unknown: {line}; there are /map, /swap WORD=WORD, /quit")
        else:
            print(vlm.answer(features, [(0, line or CAPTION_REQUESTS[0])])[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder that train.py wrote (default: out)")
    parser.add_argument("--model", help="a model's folder in --out: for --image (default: langbridge_instruct), or the only one to examine")
    parser.add_argument("--image", type=Path, help="a picture: PNG or JPEG, any size")
    parser.add_argument("--ask", help="a question about it; without one, it is described, or on a terminal a conversation begins")
    parser.add_argument("--map", type=Path, metavar="PNG", help="draw what each patch of --image says, LangBridge beside the MLP")
    parser.add_argument("--swap", metavar="WORD=WORD", help="let every patch say the second word where it says the first, as in red=blue")
    parser.add_argument("--ablate", metavar="WHAT", help="sweep one setting: K, hidden, coefficients, basis, patches or drawn")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of --ablate (default: 0,1,2)")
    parser.add_argument("--stage2", action=argparse.BooleanOptionalAction, default=True,
                        help="let --ablate also tune on the target after the move (default: yes)")
    parser.add_argument("--stages", help=argparse.SUPPRESS)  # what a process of its own is to do
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    parser.add_argument("--readme", action="store_true", help="write the tables of README.md anew from the runs in results/, and stop")
    parser.error = lambda message: fail(f"{message}; see python evaluate.py --help")
    args = parser.parse_args()
    if args.readme:
        path = Path(__file__).with_name("README.md")
        text = path.read_text(encoding="utf-8")
        return path.write_text(fill_readme(text, path.with_name("results")), encoding="utf-8")
    if args.ablate:
        return run_ablation(args.out, args.ablate, [int(seed) for seed in args.seeds.split(",")], args.stage2, args.stages)
    if args.image is None:
        if args.ask is not None or args.map or args.swap:
            fail("which picture? --ask, --map and --swap need --image picture.png")
        if not (args.out / "settings.json").exists():
            fail(f"there is no {str(args.out / 'settings.json')!r}; 'python train.py --out {args.out}' makes it")
        names = [args.model] if args.model else [name for name in CHECKPOINTS if (args.out / name / "config.json").exists()]
        if not names:
            fail(f"{str(args.out)!r} has no finished model yet; 'python train.py --out {args.out}' makes them")
        return evaluate(args.out, names)
    if args.ask is not None and not args.ask.strip():
        fail("the question is empty; try --ask \"what color is the circle?\", or leave --ask away for a caption")
    model = args.model or "langbridge_instruct"
    vit, vlm = load_vlm(args.out, model)
    pixels = read_picture(args.image, vit.config.size)
    features = vit(pixels)
    if args.swap:
        if not isinstance(vlm.adapter, LangBridge):
            fail(f"--swap needs a LangBridge, which {model} is not")
        vlm.adapter = Edited(vlm.adapter, parse_swap(args.swap, vlm.adapter.tokens))
    if args.map:
        draw_word_map(args.out, model, pixels, args.map)
    elif args.ask is None and not args.swap and sys.stdin.isatty():
        return chat(vlm, features, lambda: draw_word_map(args.out, model, pixels, args.image.with_name(f"{args.image.stem}_words.png")))
    print(vlm.answer(features, [(0, args.ask.strip().lower() if args.ask else CAPTION_REQUESTS[0])])[0])


if __name__ == "__main__":
    main()
