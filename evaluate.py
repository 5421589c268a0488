"""Scores, questions about your own pictures, and a look inside.

    python evaluate.py                                    every score, into evaluate.json
    python evaluate.py --data test.json --images DIR      the same about other pictures
    python evaluate.py --image picture.png                a conversation, or a caption
    python evaluate.py --image picture.png --ask "what color is the circle?"
    python evaluate.py --image picture.png --trace        from the file to the answer, step by step
    python evaluate.py --image picture.png --map words.png            the top words of each patch
    python evaluate.py --image picture.png --swap red=blue --ask ..   what if they were others?

The exam itself, its questions and what answers are worth, is in data/scoring.py.
"""
import copy
import inspect
import re
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from adapter import (EMPTY, LangBridge, MLPAdapter, load_adapter, readable, token)
from data.bpe import line_ends
from data.corpus import encode, in_scene, prompt
from data.dataset import load_data
from data.files import Refused, read_json, read_tensors, write_json
from data.own import open_own
from data.pictures import contact_sheet, read_picture, word_map
from data.run import Parser, run_command
from data.scoring import intervals
from model import GPT, VLM, load_llm, same_length
from vision import ViT, encode_pictures, load_vit

MODELS = ("mlp_align", "langbridge_align", "mlp_instruct", "langbridge_instruct", "blind_instruct")
OTHER = {"mlp": "langbridge", "langbridge": "mlp"}
TEMPERATURES = [0.03, 0.06, 0.1, 0.2]  # of an MLP's nearest words; one is chosen on val,
CHOSEN_ON = 150  # by so many pictures


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


def base_of(out, name):
    """The folder of the LLM that a stage started from."""
    config = read_json(Path(out) / name / "config.json")
    if "base" not in config:
        raise Refused(f"{name!r} is no model that sees pictures; try {', '.join(MODELS)}")
    return Path(out) / config["base"]


def load_vlm(out, name):
    """(ViT, VLM) of a stage in an --out folder, as in load_vlm("out", "langbridge_instruct").

    The basis of its adapter comes from the LLM as it was before stage 2 tuned it.
    """
    out, folder = Path(out), Path(out) / name
    vit, base = load_vit(out / "vit").eval(), base_of(out, name)
    made = read_json(folder / "config.json")["files"]
    if not {"llm.pt", "adapter.pt"} & {*made}:
        raise Refused(f"{str(folder)!r} holds scores, but neither an adapter nor an LLM")
    llm, encoding = load_llm(base)
    adapter = None
    if "adapter.pt" in made:
        adapter = load_adapter(folder).set_basis(llm, encoding)
    if "llm.pt" in made:
        llm, encoding = load_llm(folder)
    return vit, VLM(adapter, llm, encoding).eval()


# ---- scores -------------------------------------------------------------------------------------

def score_llm(llm, encoding, data, dialect):
    """Reading comprehension: data.examine_reading with an LLM's greedy answers."""
    device, stops = llm.embedding.weight.device, line_ends(encoding)
    llm.eval()

    def answer(asked):
        prompts = {}
        for i, (body, question) in enumerate(asked):
            ids, _ = encode(encoding, [*in_scene(body), (prompt(question), 0.0)])
            prompts[i] = ids[1 - llm.config.context:]  # a long text loses its beginning
        answers = [""] * len(asked)
        for indices, ids in same_length(prompts):
            for i, tokens in zip(indices, llm.generate(llm.embed(ids.to(device)), stops)):
                answers[i] = encoding.decode(tokens).strip()
        return answers

    return data.examine_reading(answer, dialect)


def examine_vlm(vlm, features, data):
    """What a VLM answers in the exam; all answers are generated, none is picked from a list.
    features: {split: (pictures, N, D)}"""
    vlm.eval()

    def answer(split, items):
        return vlm.answer(features[split], [(i, qa.question) for i, qa in items])

    return data.examine(answer, {split: len(x) for split, x in features.items()})


def score_vlm(vlm, features, data):
    """The scores of a VLM (data/scoring.py)."""
    return data.score(examine_vlm(vlm, features, data))


def best_on_val(vlms, val, data):
    """Of {constant: VLM}, the constant of the one that answers best on val (pictures, N, D)."""
    def quality(constant):
        scores = score_vlm(vlms[constant], {"val": val[:CHOSEN_ON]}, data)["val"]
        return sum(scores[name] for name in data.SCORES[:2])

    return max(vlms, key=quality)


def show_mistakes(path, vlm, features, data, count):
    """A model's answers about test pictures, wrong ones first: a PNG and a list."""
    said = examine_vlm(vlm, {"test": features["test"]}, data)["test"].questions
    answered = sorted(said, key=lambda a: a.right)
    wrong = sum(not a.right for a in answered)
    print(f"\n{count} answers about test pictures, wrong ones first ({wrong} of {len(answered)} "
          f"are wrong), in {path}:")
    rows = []
    for a in answered[:count]:
        picture = data.pictures("test", [a.picture])[0]
        rows.append((picture, a.qa.question, a.answer, a.qa.answer, a.right))
        verdict = "right" if a.right else "WRONG"
        print(f"  {verdict}  {a.qa.question}  {a.answer}  (truth: {a.qa.answer})")
    contact_sheet(path, rows)


# ---- the words of an adapter --------------------------------------------------------------------

def nearest_words(mlp, llm, encoding, tokens, temperature):
    """An MLP as a LangBridge: each visual token becomes a softmax over the words that are nearest.

        beta = softmax_k(v . e_k / (C temperature)),  v = mlp(x)

    That is linear in v, so it is one more layer of W: the MLP's own two, then a third that holds
    the embeddings of the words. From then on its basis can be swapped, and it can be trained.
    (Embeddings have |e|^2 = C, so v . e / C is a cosine times the length of v in words.) The LLM is
    the one that the MLP was trained with.
    """
    C = llm.config.C
    if mlp.config["hidden"] != C:
        raise Refused(f"only an MLP whose hidden width is {C}, its LLM's, has nearest words")
    bridge = LangBridge(mlp.config["D"], tokens, hidden=C, coefficients="softmax")
    bridge.set_basis(llm, encoding).to(bridge.E.device)
    bridge.W[0].load_state_dict(mlp.net[0].state_dict())
    bridge.W[2].load_state_dict(mlp.net[2].state_dict())
    with torch.no_grad():
        bridge.W[3].weight.copy_(bridge.E / (C * temperature))
        bridge.W[3].bias.zero_()
    return bridge


def with_word_weights(vlm, tokens, val, data):
    """A VLM whose adapter has word weights: itself, or its MLP's nearest words among the tokens, at
    the temperature that is best on val (pictures, N, D); None for an MLP that has none."""
    if not isinstance(vlm.adapter, MLPAdapter):
        return vlm
    if vlm.adapter.config["hidden"] != vlm.llm.config.C:
        return None
    llm, encoding = vlm.llm, vlm.encoding
    vlms = {temperature: VLM(nearest_words(vlm.adapter, llm, encoding, tokens, temperature), llm,
                             encoding) for temperature in TEMPERATURES}
    return vlms[best_on_val(vlms, val, data)]


@torch.no_grad()
def grounding(vlm, features, data, top=2, split="test"):
    """Are an object's words among the `top` of its patches, taken together? And of each kind, is
    the heaviest word the right one? The words are the whole vocabulary of the adapter.

    Returns three {kind: share}: the first answer, the same for another picture's object, the second
    answer.
    """
    tokens, found, best = vlm.adapter.tokens, [], defaultdict(list)
    for seen, beta in data.seen(split, vlm.adapter.weights(features)):
        weights = dict(zip(tokens, beta.sum(0).tolist()))
        found.append((seen.words, sorted(weights, key=weights.get)[-top:]))
        for kind, names in data.kinds.items():
            heaviest = max(names, key=lambda name: weights.get(token(name), 0.0))
            best[kind].append(heaviest == seen.words[kind])
    half = len(found) // 2
    others = [top_words for _, top_words in found[half:] + found[:half]]  # each of another picture
    own = {kind: float(np.mean([token(words[kind]) in top_words for words, top_words in found]))
           for kind in data.kinds}
    chance = {kind: float(np.mean([token(words[kind]) in other
                                   for (words, _), other in zip(found, others)]))
              for kind in data.kinds}
    return own, chance, {kind: float(np.mean(right)) for kind, right in best.items()}


@torch.no_grad()
def own_weight(vlm, features, data):
    """The share of |weight| that an object's patches put on its own words."""
    shares, tokens = [], vlm.adapter.tokens
    for seen, beta in data.seen("test", vlm.adapter.weights(features).abs()):
        weights = beta.sum(0)  # (K,)
        own = [k for k, t in enumerate(tokens) if t in map(token, seen.words.values())]
        shares.append((weights[own].sum() / weights.sum().clamp(min=1e-9)).item())
    return float(np.mean(shares))


def embeddings(llm, encoding, words):
    """One embedding per word, (words, C): of its token, or the mean over its tokens."""
    device = llm.embedding.weight.device
    return torch.stack([llm.embed(torch.tensor(encoding.encode(f" {word}"), device=device)).mean(0)
                        for word in words])


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
    training = vlm.adapter.training
    v = vlm.adapter.eval()(features[:pictures])  # (B, N, C)
    vlm.adapter.train(training)
    v = v - v.mean((0, 1))
    names = [word for words in data.kinds.values() for word in words]
    words = names + data.place_words
    vocabulary = readable(vlm.encoding.token_byte_values())
    R = embeddings(vlm.llm, vlm.encoding, vocabulary)  # (vocabulary, C): random words are from here
    E = embeddings(vlm.llm, vlm.encoding, words) - R.mean(0)  # (words, C)
    R = R - R.mean(0)
    unit = F.normalize(E[:len(names)], dim=-1)
    rng = np.random.default_rng(0)

    def explained(patches, span):
        basis = torch.linalg.qr(span.T)[0]  # (C, words), orthonormal: |P v| = |v basis|
        return ((patches @ basis).square().sum() / patches.square().sum()).item()

    measured = defaultdict(list)
    for _, objects in groupby(data.seen("test", v), key=lambda pair: pair[0].picture):
        objects = list(objects)
        patches = torch.cat([its for _, its in objects])  # (patches of objects, C)
        own = torch.tensor([[word in seen.words.values() for word in names]
                            for seen, its in objects for _ in its], device=v.device)
        cos = F.normalize(patches, dim=-1) @ unit.T  # (patches of objects, names)
        measured["own_cos"].append(cos[own].mean().item())
        measured["other_cos"].append(cos[~own].mean().item())
        true = sorted({w for seen, _ in objects for w in [*seen.words.values(), *seen.place]})
        others = [j for j, word in enumerate(vocabulary) if word not in true]
        measured["explained_own"].append(explained(patches, E[[words.index(w) for w in true]]))
        some = rng.choice(others, min(len(true), len(others)), replace=False)
        measured["explained_random"].append(explained(patches, R[some]))
    return {name: [float(np.mean(x)), float(1.96 * np.std(x) / len(x) ** 0.5)]
            for name, x in measured.items()}


def swap_words(adapter, swaps):
    """A copy of a LangBridge with one word in place of another: {'red': 'blue'} gives the weight of
    red to blue."""
    other = copy.deepcopy(adapter)
    for old, new in swaps.items():
        k, j = (adapter.tokens.index(token(word)) for word in (old, new))
        other.tokens[k], other.E[k] = adapter.tokens[j], adapter.E[j]
    return other


# ---- python evaluate.py -------------------------------------------------------------------------

def evaluate(out, names, data, features, path):
    """Scores with intervals, and the words of the adapters, into a JSON file."""
    result, vlms, wide = {"models": {}}, {}, max(22, *map(len, names))
    print(f"{'':{wide}}" + "".join(f"{score:>24}" for score in data.SCORES) + "   (95% interval)")
    for name in names:
        _, vlms[name] = load_vlm(out, name)
        said = examine_vlm(vlms[name], features, data)
        scores, bounds = data.score(said), intervals(data.counts(said))
        result["models"][name] = scores | {"intervals": bounds}
        cells = [f"{scores[k]:10.3f} ({bounds[k][0]:.3f}-{bounds[k][1]:.3f})" for k in data.SCORES]
        print(f"{name:{wide}}" + "".join(cells), flush=True)
    for name, scores in data.guesses({split: len(x) for split, x in features.items()}).items():
        result[name] = scores
        print(f"{name:{wide}}" + "".join(f"{scores[k]:10.3f}{'':14}" for k in data.SCORES))
    shown = vlms.get("langbridge_instruct", vlms[names[0]])
    show_mistakes(path.with_name("mistakes.png"), shown, features, data, count=10)
    if data.kinds and {*MODELS} <= {*names}:
        result |= study_words(out, vlms, features["test"], data)
    write_json(path, result)
    print(f"written: {path}")


def study_words(out, vlms, features, data):
    """Grounding of the adapters, and how tokens moved towards words in stage 1, as lists."""
    val, tokens = held_out(out, splits=["val"])["val"], vlms["langbridge_align"].adapter.tokens
    grounded, study = {}, {}
    print("\nof an object's patches, the two top words hold")
    for name in ("langbridge_align", "mlp_align", "langbridge_instruct"):
        words = with_word_weights(vlms[name], tokens, val, data)
        if words is None:
            continue
        own, chance, best = grounding(words, features, data)
        grounded[name] = {"own": own, "chance": chance, "best_of_kind": best}
        said = [f"its {kind} in {own[kind]:.3f} (another picture's {chance[kind]:.3f})"
                for kind in own]
        print(f"  {name}: {', '.join(said)}")
    for kind in ("mlp", "langbridge"):
        measured = read_json(out / f"{kind}_align" / "config.json")["measured"]
        study["steps"] = [step for step, _ in measured]
        study[kind] = {name: [values[name] for _, values in measured] for name in measured[0][1]}
        (own, _), (end, _) = (study[kind]["explained_own"][k] for k in (0, -1))
        print(f"  {kind}: the caption's words explain {own:.3f} of the patches' energy before "
              f"stage 1, {end:.3f} after it")
    return {"grounding": grounded, "subspace": study}


def other_exam(out, file, images, allow_bad):
    """(data, features) of a file that is only an exam, for models that were trained on another."""
    vit, trained = load_vit(out / "vit").eval(), open_data(out)
    data = open_own(str(file), str(images), f"{out}/pictures", size=vit.config.size,
                    side=vit.config.grid, allow_bad=allow_bad, exam=True)
    if not trained.kinds:  # guesses may know the models' training data
        data.reference = trained
    return data, {"test": encode_pictures(vit, data, "test").float()}


def models_in(out):
    """The finished models in a folder: train.py's, then those that transfer.py has tuned."""
    tuned = [path.parent.relative_to(out).as_posix()
             for path in sorted(out.glob("transfer*/*/llm.pt"))]
    return [name for name in [*MODELS, *tuned] if (out / name / "config.json").exists()]


# ---- one picture --------------------------------------------------------------------------------

def draw_word_map(out, name, vlm, features, pixels, path):
    """The top words of each patch, of this model and of the other adapter after the same stage."""
    if vlm.adapter is None:
        raise Refused("a blind model has no adapter: there is no map of its words")
    data, models = open_data(out), {name: vlm}
    kind, _, phase = name.partition("_")
    beside = f"{OTHER.get(kind)}_{phase}"
    if (out / beside / "config.json").exists():
        models[beside] = load_vlm(out, beside)[1]
    tokens = load_adapter(out / "langbridge_align").tokens
    panels, val = [], held_out(out, splits=["val"])["val"]
    for title, each in sorted(models.items()):  # LangBridge first
        read = with_word_weights(each, tokens, val, data)
        if read is None:
            continue
        words = read.adapter
        names = [t.decode("utf-8", "replace").strip() for t in words.tokens]
        names[words.tokens.index(EMPTY)] = "."
        how = "its weights" if each.adapter is words else "its nearest words"
        patches = words.weights(features)[0].tolist()  # (N, K)
        panels.append((f"{title}: {how}", [list(zip(names, patch)) for patch in patches]))
    word_map(path, pixels[0].numpy(), panels,
             "'.' is the empty word; weights below 0.05 are left out.")
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
    if adapter is None:
        raise Refused("--trace needs an adapter; a blind model sees no picture")
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
                  "four patches furthest from the empty word:", beta, LangBridge.forward,
                  "self.weights")
        words = [t.decode("utf-8", "replace").strip() for t in adapter.tokens]
        for n in sorted(beta[0, :, adapter.tokens.index(EMPTY)].argsort()[:4].tolist()):
            top = [f"{words[k]!r} {beta[0, n, k]:.2f}" for k in beta[0, n].topk(3).indices]
            print(f"        row {n // side + 1}, column {n % side + 1}: {', '.join(top)}")
        show_step("5. The words' embeddings E (K, C), summed by weight, are the visual tokens.",
                  adapter(features), LangBridge.forward, "return")
    else:
        show_step("4. The MLP turns each feature into a visual token.", adapter(features),
                  MLPAdapter.forward, "return")
    picture, start = vlm.picture(features), len(vlm.prefix)  # (B, prefix + N + rows, C)
    show_step("6. They go inside the text. A newline ends each row.", picture, VLM.picture,
              "return torch.cat")
    ids = encoding.encode(prompt(question))
    print(f"        position 0: {'|'.join(encoding.decode([i]) for i in vlm.prefix)!r}")
    print(f"        position {start}: the picture, {picture.size(1) - start} tokens")
    print(f"        position {picture.size(1)}: {'|'.join(encoding.decode([i]) for i in ids)!r}")
    logits = llm(torch.cat([picture, vlm.embed(ids)], dim=1))
    show_step("7. The LLM reads all T positions; the logits of the last one choose the answer's "
              "first token:", logits, GPT.forward, "return")
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
    unread = sorted({*re.findall(r"\w+", question)} - {*known})
    if known and unread:  # of a real LLM, they are not known
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
    """Questions and answers about one picture, until /quit; draw_map(vlm) draws its words."""
    bridge, swaps = vlm.adapter, {}
    print("Ask in words like these, with the colours and shapes of your picture:")
    for question in data.example_questions():
        print(f"    {question}")
    print("Asked about what is not there, it guesses. An empty line asks for a description.\n"
          "/map draws the words of the patches, /swap red=blue changes them, /swap undoes it, "
          "/quit ends.")
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
                vlm.adapter = swap_words(bridge, swaps)
                now = [f"{new} for {old}" for old, new in swaps.items()]
                print(f"in every patch there is now {', '.join(now)}")
            elif line.startswith("/"):
                print(f"unknown: {line}; try /map, /swap WORD=WORD, /quit")
            else:
                print(ask(vlm, features, line or data.request, known))
        except (Refused, OSError) as error:
            print(error)


def look_at(args):
    """python evaluate.py --image: whatever was asked for."""
    name = args.model or "langbridge_instruct"
    data, (vit, vlm) = open_data(args.out), load_vlm(args.out, name)
    known = read_json(base_of(args.out, name) / "config.json")["words"]
    pixels = read_picture(args.image, vit.config.size)
    features = vit(pixels)
    question = " ".join((args.ask or data.request).lower().split())
    if args.swap:
        vlm.adapter = swap_words(vlm.adapter, parse_swap(args.swap, vlm.adapter))
    if args.map and args.map.suffix.lower() != ".png":
        raise Refused(f"--map {args.map}: expected a file name that ends in .png")
    if args.map:
        draw_word_map(args.out, name, vlm, features, pixels, args.map)
    if args.trace:
        trace(args.image, vit, vlm, question, known)
    elif args.ask is None and not (args.map or args.swap) and sys.stdin.isatty():
        path = args.image.with_name(f"{args.image.stem}_words.png")
        chat(vlm, features, data, known,
             lambda vlm: draw_word_map(args.out, name, vlm, features, pixels, path))
    else:
        print(ask(vlm, features, question, known))


@torch.no_grad()
def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), help="the folder of train.py (default: out)")
    add("--model", help="a stage in --out: which model answers (default: langbridge_instruct) or, "
        "without --image, the only one to score")
    add("--image", type=Path, help="a picture: PNG or JPEG, any size")
    add("--ask", help="a question about it; without one, you get a description, or a conversation "
        "on a terminal")
    add("--trace", action="store_true", help="follow the picture step by step")
    add("--map", type=Path, metavar="PNG", help="draw the top words of each patch, LangBridge "
        "beside the MLP")
    add("--swap", metavar="WORD=WORD", help="replace the first word by the second in every patch, "
        "as in red=blue")
    add("--data", type=Path, metavar="JSON", help="score the models on these conversations (in "
        "LLaVA's format) instead, into evaluate_NAME.json")
    add("--images", type=Path, metavar="DIR", help="the folder of their pictures")
    add("--allow_bad", action="store_true", help="even if more than 5%% of them cannot be used")
    args = parser.parse_args()
    if (args.data is None) != (args.images is None):
        raise Refused("--data FILE and --images DIR go together")
    if args.image is not None and args.data is not None:
        raise Refused("--image asks about one picture, --data scores many: use one of them")
    if args.image is not None:
        if args.ask is not None and not args.ask.strip():
            raise Refused('the question is empty; try --ask "what color is the circle?", or leave '
                          "--ask out for a caption")
        return look_at(args)
    for flag in ("ask", "trace", "map", "swap"):
        if getattr(args, flag):
            raise Refused(f"which picture? --{flag} needs --image picture.png")
    names = [args.model] if args.model else models_in(args.out)
    if not names:
        raise Refused(f"{str(args.out)!r} has no finished model yet; "
                      f"'python train.py --out {args.out}' makes them")
    if args.data:
        data, features = other_exam(args.out, args.data, args.images, args.allow_bad)
        return evaluate(args.out, names, data, features,
                        args.out / f"evaluate_{args.data.stem}.json")
    data = open_data(args.out)
    features = held_out(args.out, splits=[split for split in data.EXAM if split != "val"])
    evaluate(args.out, names, data, features, args.out / "evaluate.json")


if __name__ == "__main__":
    run_command(main)
