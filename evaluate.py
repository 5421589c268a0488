"""Scores, questions about your own pictures, and a look inside.

    python evaluate.py                                    every score, into evaluate.json
    python evaluate.py --data test.json --images DIR      the same about other pictures
    python evaluate.py --image picture.png                a conversation
    python evaluate.py --image picture.png --ask "what color is the circle?"
    python evaluate.py --image picture.png < questions.txt            an answer for each line
    python evaluate.py --image picture.png --trace        from the file to the answer, step by step
    python evaluate.py --image picture.png --map words.png            the top words of each patch
    python evaluate.py --image picture.png --swap red=blue --ask ..   what if they were others?

The exam itself, its questions and what answers are worth, is in data/scoring.py.
"""
import copy
import inspect
import sys
from collections import defaultdict
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

with suppress(ImportError):
    import readline  # noqa: F401  arrow keys in a conversation, where Python has it

from adapter import EMPTY, LangBridge, MLPAdapter, load_adapter, token, written
from data.bpe import line_ends
from data.corpus import encode, in_scene, prompt
from data.dataset import load_data
from data.files import SUMS, Refused, read_json, read_tensors, write_json
from data.own import open_own
from data.pictures import contact_sheet, read_picture, word_map
from data.run import Parser, command
from data.scoring import intervals
from data.words import as_asked, plain, readable, words_in
from model import GPT, VLM, load_llm, same_length
from vision import ViT, encode_pictures, load_vit

MODELS = ("mlp_align", "langbridge_align", "mlp_instruct", "langbridge_instruct", "blind_instruct")
TEMPERATURES = [0.03, 0.06, 0.1, 0.2]  # of an MLP's nearest words; one is chosen on val,
CHOSEN_ON = 150  # by so many pictures


# ---- what lies in a folder ----------------------------------------------------------------------

def open_data(out):
    """The data that a folder's stages were trained on."""
    return load_data(read_json(Path(out) / "vit" / "config.json").get("data", {}), out)


def held_out(out, device="cpu", splits=None, data=None):
    """The frozen features of the exam's splits, or of others: {split: (pictures, N, D)}"""
    splits = splits or (data or open_data(out)).EXAM
    features = read_tensors(Path(out) / "vit" / "features.pt", mmap=True)
    return {split: features[split].float().to(device) for split in splits}


def load_vlm(out, name):
    """(ViT, VLM) of a stage in an --out folder, as in load_vlm("out", "langbridge_instruct").

    The basis of its adapter comes from its base, the LLM as it was before stage 2 tuned it.
    """
    folder, adapter = Path(out) / name, None
    config = read_json(folder / "config.json")
    if "base" not in config or not {"llm.pt", "adapter.pt"} & {*config["files"]}:
        raise Refused(f"{str(folder)!r} holds no VLM; try {', '.join(MODELS)}")
    llm, encoding = load_llm(Path(out) / config["base"])
    if "adapter.pt" in config["files"]:
        adapter = load_adapter(folder).set_basis(llm, encoding)
    if "llm.pt" in config["files"]:  # stage 1 leaves the LLM as it was, and saves none
        llm, encoding = load_llm(folder)
    return load_vit(Path(out) / "vit").eval(), VLM(adapter, llm, encoding).eval()


# ---- scores -------------------------------------------------------------------------------------

def score_llm(llm, encoding, data, dialect):
    """Reading comprehension: data.examine_reading with an LLM's greedy answers."""
    stops = line_ends(encoding)

    def answer(asked):
        prompts, answers = {}, {}
        for i, (body, question) in enumerate(asked):
            ids, _ = encode(encoding, [*in_scene(body), (prompt(question), 0.0)])
            prompts[i] = ids[1 - llm.config.context:]  # a long text loses its beginning
        for indices, ids in same_length(prompts):
            texts = map(encoding.decode, llm.generate(llm.embed(ids), stops))
            answers.update(zip(indices, texts))
        return [answers[i].strip() for i in prompts]

    return data.examine_reading(answer, dialect)


def examine_vlm(vlm, features, data):
    """What a VLM answers in the exam; all answers are generated, none is picked from a list.
    features: {split: (pictures, N, D)}"""
    def answer(split, items):
        return vlm.answer(features[split], [(i, qa.question) for i, qa in items])

    return data.examine(answer, {split: len(x) for split, x in features.items()})


def score_vlm(vlm, features, data):
    """The scores of a VLM (data/scoring.py)."""
    return data.score(examine_vlm(vlm, features, data))


def guesses(data):
    """The scores of models that do not look: {how: scores}"""
    return data.guesses({split: data.count(split) for split in data.EXAM})


def score_line(title, data, scores=None):
    """A line of a table, with the scores that tables show; without any, the line at its top."""
    cells = [f"{scores[name]:.3f}" if scores else name for name in data.SCORES]
    return f"{title:30}" + "".join(f"{cell:>14}" for cell in cells)


def best_adapter(adapters, llm, encoding, out, data):
    """The one of these adapters with which the LLM answers best about pictures of val: test is for
    reports, so nothing is chosen by it."""
    val = held_out(out, llm.embedding.weight.device, ["val"], data)["val"][:CHOSEN_ON]

    def quality(adapter):
        scores = score_vlm(VLM(adapter, llm, encoding), {"val": val}, data)["val"]
        return sum(scores[name] for name in data.SCORES[:2])  # for shapes, vqa and caption F1

    return max(adapters, key=quality)


def show_mistakes(path, vlm, features, data, count):
    """A model's answers about test pictures, wrong ones first: a PNG and a list."""
    said = examine_vlm(vlm, {"test": features["test"]}, data)["test"].questions
    shown = sorted(said, key=lambda a: a.right)[:count]
    print(f"\n{count} of {len(said)} answers about test pictures, wrong ones first, in {path}:")
    for a in shown:
        print(f"  {'right' if a.right else 'WRONG'}  {a.qa.question}  {a.answer}  "
              f"(truth: {a.qa.answer})")
    contact_sheet(path, data.pictures("test", [a.picture for a in shown]), shown)


# ---- the words of an adapter --------------------------------------------------------------------

def nearest_words(mlp, llm, encoding, tokens, temperature):
    """An MLP as a LangBridge: each visual token becomes a softmax over the words that are nearest.

        beta = softmax_k(v . e_k / (C temperature)),  v = mlp(x)

    That is linear in v, so the MLP's last layer takes it in, and becomes the last layer of W. From
    then on its basis can be swapped, and it can be trained. (Embeddings have |e|^2 = C, so
    v . e / C is a cosine times the length of v in words.) The LLM is the one that the MLP was
    trained with.
    """
    first, _, last = mlp.net
    bridge = LangBridge(first.in_features, tokens, first.out_features, "softmax")
    bridge.set_basis(llm, encoding).to(bridge.E.device)
    bridge.W[0].load_state_dict(first.state_dict())
    with torch.no_grad():
        nearness = bridge.E / (llm.config.C * temperature)  # (K, C)
        bridge.W[2].weight.copy_(nearness @ last.weight)
        bridge.W[2].bias.copy_(nearness @ last.bias)
    return bridge


def with_words(vlm, out):
    """A VLM's adapter, if it weighs words; an MLP's nearest words, at the temperature that is best
    on val: so both kinds can be read in the same words."""
    if not isinstance(vlm.adapter, MLPAdapter):
        return vlm.adapter
    source, tokens = (vlm.llm, vlm.encoding), load_adapter(out / "langbridge_align").tokens
    mixed = [nearest_words(vlm.adapter, *source, tokens, constant) for constant in TEMPERATURES]
    return best_adapter(mixed, *source, out, open_data(out))


@torch.no_grad()
def grounding(adapter, features, data):
    """What do the patches of an object say, taken together? Three answers, each {kind: share}.

        own            a word of the object is among the two heaviest of the whole vocabulary
        chance         the same word is among the two heaviest of another picture's object
        best_of_kind   of all words of its kind, the right one is the heaviest
    """
    found = [(seen.words, dict(zip(adapter.tokens, beta.sum(0).tolist())))
             for seen, beta in data.seen("test", adapter.weights(features))]
    half = len(found) // 2  # so far away in the list is another picture
    hits = {name: defaultdict(list) for name in ("own", "chance", "best_of_kind")}
    for (words, weights), (_, others) in zip(found, found[half:] + found[:half]):
        for kind, names in data.kinds.items():
            true = token(words[kind])
            best = max(map(token, names), key=lambda t: weights.get(t, 0.0))
            hits["own"][kind].append(true in sorted(weights, key=weights.get)[-2:])
            hits["chance"][kind].append(true in sorted(others, key=others.get)[-2:])
            hits["best_of_kind"][kind].append(true == best)
    return {name: {kind: float(np.mean(right)) for kind, right in of_kinds.items()}
            for name, of_kinds in hits.items()}


@torch.no_grad()
def told(adapter, encoding, features, captions):
    """Does a LangBridge say the content words of captions? Shares, for features (B, N, D):

        heaviest        of pictures whose heaviest word is one of their caption's content words
        heaviest_rare   the same among words that are in less than a tenth of all captions
        weight          of the weights: what these words have; the empty word apart
    """
    p = torch.cat([adapter.spoken(x) for x in features.split(100)])  # (B, K)
    said = adapter.said_in(encoding, [encoding.encode_ordinary(f" {text}") for text in captions])
    rare = p * (said.mean(0) < 0.1)  # (B, K)
    return {"heaviest": said.gather(1, p.argmax(1, keepdim=True)).mean().item(),
            "heaviest_rare": said.gather(1, rare.argmax(1, keepdim=True)).mean().item(),
            "weight": ((said * p).sum(1) / p.sum(1)).mean().item()}


@torch.no_grad()
def top_words(adapter, features, pictures=40, count=5):
    """The heaviest words of the patches of the first pictures: their weights, in half precision,
    and which words of the adapter they are, 2 x (pictures, N, count)"""
    heaviest = adapter.weights(features[:pictures]).topk(min(count, len(adapter.tokens)))
    return heaviest.values.half(), heaviest.indices.int()


@torch.no_grad()
def subspace(vlm, features, data, pictures=100):
    """Do visual tokens lie near the words that describe them? (the paper's study of stage 1)

    Tokens and embeddings both have a large common component, so means are removed first.
      explained_own: share of the energy of objects' patches in the span of the words for these
                     objects and their places, |P v|^2 / |v|^2
      explained_random: the same for as many random words of the vocabulary
    Each is [mean, half-width of its 95% interval over pictures].
    """
    v = vlm.adapter(features[:pictures])  # (B, N, C)
    v = v - v.mean((0, 1))
    vocabulary = readable(vlm.encoding.token_byte_values())

    def embed(words):
        """The mean of each word's tokens: (words, C)"""
        ids = [vlm.encoding.encode_ordinary(f" {word}") for word in words]
        return torch.stack([vlm.embed(its)[0].mean(0) for its in ids])

    mean = embed(vocabulary).mean(0)  # (C,)

    def explained(patches, words):
        basis = torch.linalg.qr((embed(words) - mean).T)[0]  # (C, words)
        return ((patches @ basis).square().sum() / patches.square().sum()).item()

    measured, rng = defaultdict(list), np.random.default_rng(0)
    for _, objects in groupby(data.seen("test", v), key=lambda pair: pair[0].picture):
        seen, patches = zip(*objects)  # what they are, and the patches of each (patches, C)
        true = sorted({word for o in seen for word in [*o.words.values(), *o.place]})
        others = [word for word in vocabulary if word not in true]
        some = rng.choice(others, min(len(true), len(others)), replace=False)
        measured["explained_own"].append(explained(torch.cat(patches), true))
        measured["explained_random"].append(explained(torch.cat(patches), some))
    return {name: [float(np.mean(x)), float(1.96 * np.std(x) / len(x) ** 0.5)]
            for name, x in measured.items()}


def swap_words(adapter, text):
    """A copy of a LangBridge with words in place of others, none if the text is empty.

        'red=blue'              the weight of red goes to blue
        'red=blue blue=red'     they change places

    Raises Refused unless the adapter has all these words.
    """
    other, tokens = copy.deepcopy(adapter), getattr(adapter, "tokens", [])  # an MLP has none
    names = [written(t) for t in tokens]  # the most used of two that look alike comes first
    for pair in plain(text).split():
        words = pair.split("=")
        if len(words) != 2 or not {*words} <= {*names}:
            raise Refused(f"--swap {pair}: expected WORD=WORD, a LangBridge's: {readable(tokens)}")
        old, new = map(names.index, words)
        other.tokens[old], other.E[old] = tokens[new], adapter.E[new]
    return other


# ---- python evaluate.py -------------------------------------------------------------------------

def evaluate(out, names, data, features, path):
    """Scores with intervals, and the words of the adapters, into a JSON file."""
    result, vlms = {"models": {}}, {}
    print(score_line("with 95% intervals", data))
    for name in names:
        _, vlms[name] = load_vlm(out, name)
        said = examine_vlm(vlms[name], features, data)
        scores, bounds = data.score(said), intervals(data.counts(said))
        result["models"][name] = scores | {"intervals": bounds}
        print(score_line(name, data, scores))
        print(" " * 30 + "".join("{:8.3f}-{:.3f}".format(*bounds[score]) for score in data.SCORES))
    for how, scores in data.guesses({split: len(x) for split, x in features.items()}).items():
        result[how] = scores
        print(score_line(how, data, scores))
    shown = vlms.get("langbridge_instruct", vlms[names[0]])
    show_mistakes(path.with_suffix(".png"), shown, features, data, count=10)
    if data.kinds and {*MODELS} <= {*names}:
        result |= study_words(out, vlms, features["test"], data)
    elif not data.kinds:
        result["told"] = study_captions(out, vlms, features["test"], data)
    write_json(path, result)
    print(f"written: {path}")


def study_words(out, vlms, features, data):
    """Grounding of the adapters, and how tokens moved towards words in stage 1, as lists."""
    grounded, study = {}, {}
    print("\nthe two heaviest words of an object's patches hold its (another picture's)")
    for name in ("langbridge_align", "mlp_align", "langbridge_instruct"):
        grounded[name] = found = grounding(with_words(vlms[name], out), features, data)
        print(f"{name:30}" + ", ".join(f"{kind} {share:.3f} ({found['chance'][kind]:.3f})"
                                       for kind, share in found["own"].items()))
    for kind in ("mlp", "langbridge"):
        measured = read_json(out / f"{kind}_align" / "config.json")["measured"]
        study["steps"] = [step for step, _ in measured]
        study[kind] = {name: [values[name] for _, values in measured] for name in measured[0][1]}
    return {"grounding": grounded, "subspace": study}


def study_captions(out, vlms, test, data):
    """What LangBridges say about own pictures of test and, if there are some, of train."""
    found, features = {}, {"test": test}
    if data.of["train"]:
        seen = read_tensors(Path(out) / "vit" / "features.pt", mmap=True)["train"]
        features["train"] = seen[:2000].float()
    captions = {split: [entry.turns[0][1] for entry in data.of[split][:len(x)]]
                for split, x in features.items()}
    for name, vlm in vlms.items():
        if getattr(vlm.adapter, "coefficients", None) != "softmax":  # raw weights are no shares
            continue
        found[name] = {split: told(vlm.adapter, vlm.encoding, x, captions[split])
                       for split, x in features.items()}
        print(f"{name}: the heaviest word is in the caption " + ", ".join(
            f"{split} {its['heaviest']:.3f}" for split, its in found[name].items()))
    return found


def other_exam(args):
    """(data, features) of a file that is only an exam, for models that were trained on another."""
    vit, trained = load_vit(args.out / "vit").eval(), open_data(args.out)
    data = open_own(str(args.data), str(args.images), f"{args.out}/pictures", size=vit.config.size,
                    side=vit.config.grid, allow_bad=args.allow_bad, exam=True)
    if not trained.kinds:  # guesses may know the models' training data
        data.reference = trained
    return data, {"test": encode_pictures(vit, data, "test").float()}


# ---- one picture --------------------------------------------------------------------------------

def draw_word_map(out, name, vlm, features, pixels, path):
    """The top words of each patch, and beside those of a LangBridge the ones of an MLP that had the
    same training."""
    if vlm.adapter is None:
        raise Refused("a blind model has no adapter: there is no map of its words")
    models, panels, other = {name: with_words(vlm, out)}, [], name.replace("langbridge", "mlp")
    if other != name and (out / other / SUMS).exists():
        try:
            models[other] = with_words(load_vlm(out, other)[1], out)
        except (Refused, OSError) as error:  # its words are chosen by answers about val
            print(f"a map without {other}: {error}")
    for title, adapter in models.items():
        names = [written(t) for t in adapter.tokens]
        patches = adapter.weights(features)[0].tolist()  # (N, K)
        panels.append((title, [list(zip(names, patch)) for patch in patches]))
    word_map(path, pixels[0].numpy(), panels, "'.' is the empty word; weights below 0.05 are left "
             "out; those of an MLP say which words are nearest.")
    print(f"written: {path}")


def show_step(title, tensor, function, code="return"):
    """Print a step of the trace: its shape, and the line of `function` that contains `code`.

    The letters of the shape come from the comment at the end of that line.
    """
    lines, first = inspect.getsourcelines(function)
    i = next(i for i, line in enumerate(lines) if code in line)
    line, _, letters = lines[i].strip().partition("  # ")
    file = function.__module__.replace(".", "/") + ".py"  # data.pictures -> data/pictures.py
    print(f"\n{title}\n    {letters} = {tuple(tensor.shape)}\n    {file}:{first + i}, "
          f"{function.__qualname__}:  {line}")


def trace(vit, vlm, pixels, question):
    """Follow a picture to its answer, printing every step."""
    adapter, encoding, side = vlm.adapter, vlm.encoding, vit.config.grid
    if adapter is None:
        raise Refused("--trace needs an adapter; a blind model sees no picture")
    features = vit(pixels)  # (B, N, D)
    print(f"{question!r}: B = 1, N = {side} x {side} patches, p = {vit.config.patch} pixels a side")
    show_step("1. The file becomes a small square of pixels.", pixels, read_picture, "[None]")
    show_step("2. The square is cut into patches.", vit.patches(pixels), ViT.patches)
    show_step("3. The ViT turns each into a feature, with all others as context.", features,
              ViT.forward)
    title = "4. The MLP turns each feature into a visual token."
    if isinstance(adapter, LangBridge):
        beta = adapter.weights(features)  # (B, N, K)
        show_step(f"4. LangBridge gives each of its K = {len(adapter.tokens)} words a weight. The "
                  "four patches furthest from the empty word:", beta, LangBridge.forward,
                  "self.weights")
        for n in sorted(beta[0, :, adapter.tokens.index(EMPTY)].argsort()[:4].tolist()):
            top = [f"{written(adapter.tokens[k])!r} {beta[0, n, k]:.2f}"
                   for k in beta[0, n].argsort(descending=True)[:3]]
            print(f"        row {n // side + 1}, column {n % side + 1}: {', '.join(top)}")
        title = "5. The words' embeddings E (K, C), summed by weight, are the visual tokens."
    show_step(title, adapter(features), type(adapter).forward)
    picture = vlm.picture(features)  # (B, prefix + N + rows, C)
    show_step("6. They go inside the text. A newline ends each row.", picture, VLM.picture,
              "return torch.cat")
    print(f"        {encoding.decode(vlm.prefix)!r}, the picture, {prompt(question)!r}")
    text = vlm.embed(encoding.encode_ordinary(prompt(question)))  # (B, tokens of the text, C)
    logits = vlm.llm(torch.cat([picture, text], dim=1))  # (B, T, V)
    show_step("7. The LLM reads all T positions; the logits of the last one choose the answer's "
              "first token:", logits, GPT.forward)
    best = logits[0, -1].softmax(-1).topk(5)
    for p, i in zip(best.values.tolist(), best.indices.tolist()):
        print(f"        {p:.3f}  {encoding.decode([i])!r}")
    print("\n8. Token by token, until a newline, that becomes the answer:")


# An LLM's `habits` are how it was asked in training, from its config.json: the "words" of its
# questions, the "request" for a description, and "examples" of questions.

def ask(vlm, features, question, habits):
    """The answer to a question. Raises Refused for words that no question had in the LLM's
    training: whatever it said would be a guess."""
    odd = sorted({*words_in(question)} - {*habits["words"]})
    if odd and habits["words"]:  # of a real LLM, nobody knows them
        raise Refused(f"no question in training had {', '.join(odd)}; try: {habits['examples'][0]}")
    return vlm.answer(features, [(0, question)])[0] or "(no answer)"


def chat(vlm, features, habits, draw_map):
    """Questions and answers about one picture, from a terminal or, one a line, from a pipe. What
    cannot be answered gets its reason, in brackets."""
    bridge, typed = vlm.adapter, sys.stdin.isatty()
    usage = "\n    ".join(["Ask in words like these, or nothing:", *habits["examples"]]) + (
        "\n/map draws the words of the patches, /swap red=blue replaces one, /quit ends.")
    if typed:
        print(usage)
    while True:
        try:
            line = input("> " if typed else "").lower().strip()
        except EOFError:
            return
        try:
            if line in ("quit", "exit", "/quit", "/exit"):
                return
            if line in ("help", "/help", "?"):
                print(usage)
            elif line == "/map":
                draw_map(vlm)
            elif line.startswith("/swap"):
                vlm.adapter = swap_words(bridge, line.removeprefix("/swap"))
                print(f"swapped in every patch:{line.removeprefix('/swap') or ' nothing'}")
            else:
                print(ask(vlm, features, as_asked(line, habits), habits), flush=True)
        except (Refused, OSError) as error:
            print(f"({error})", flush=True)


def look_at(args):
    """python evaluate.py --image: whatever was asked for."""
    out, name = args.out, args.model or "langbridge_instruct"
    vit, vlm = load_vlm(out, name)
    base = read_json(out / name / "config.json")["base"]
    habits = read_json(out / base / "config.json")["habits"]
    pixels = read_picture(args.image, vit.config.size)
    features = vit(pixels)  # (B, N, D)
    if args.swap:
        vlm.adapter = swap_words(vlm.adapter, args.swap)
    if args.map:
        draw_word_map(out, name, vlm, features, pixels, args.map)
    if args.ask is None and not (args.trace or args.map or args.swap):
        path = out / f"{args.image.stem}_words.png"
        return chat(vlm, features, habits,
                    lambda vlm: draw_word_map(out, name, vlm, features, pixels, path))
    question = as_asked(args.ask or "", habits)
    answer = ask(vlm, features, question, habits)  # first: what it refuses is not traced either
    if args.trace:
        trace(vit, vlm, pixels, question)
    print(answer)


@torch.no_grad()
def main():
    parser = Parser(__doc__)
    add, one_of = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--out", type=Path, default="out", help="the folder of train.py (default: out)")
    add("--model", help="a stage: which answers (default: langbridge_instruct), or is scored alone")
    one_of("--image", type=Path, help="a picture: PNG or JPEG, any size")
    add("--ask", help="a question about it; without one, they are read from standard input")
    add("--trace", action="store_true", help="follow the picture step by step")
    add("--map", type=Path, metavar="PNG", help="draw each patch's top words")
    add("--swap", metavar="WORD=WORD", help="in every patch, the second word instead of the first")
    one_of("--data", type=Path, metavar="JSON", help="score these conversations (LLaVA's format)")
    add("--images", type=Path, metavar="DIR", help="the folder of their pictures")
    add("--allow_bad", action="store_true", help="even if more than 5%% of them cannot be used")
    args = parser.parse_args()
    out = args.out
    if bool(args.data) != bool(args.images):
        raise Refused("--data FILE and --images DIR go together")
    if not args.image and (args.ask or args.trace or args.map or args.swap):
        raise Refused("which picture? --ask, --trace, --map and --swap need --image PICTURE")
    if args.map and args.map.suffix.lower() != ".png":
        raise Refused(f"--map {args.map}: expected a file name that ends in .png")
    if args.image:
        return look_at(args)
    tuned = sorted(p.parent.relative_to(out).as_posix() for p in out.glob("transfer/*/llm.pt"))
    made = [name for name in [*MODELS, *tuned] if (out / name / SUMS).exists()]
    names = [args.model] if args.model else made or [MODELS[0]]  # load_vlm says what to do
    if args.data:
        data, features = other_exam(args)
        name = f"evaluate_{args.data.stem}_{data.sums['files'][:8]}.json"  # many are called test
        return evaluate(out, names, data, features, out / name)
    data = open_data(out)
    features = held_out(out, splits=[split for split in data.EXAM if split != "val"])
    evaluate(out, names, data, features, out / "evaluate.json")


if __name__ == "__main__":
    with command():
        main()
