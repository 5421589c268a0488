"""A LangBridge on an LLM that others have pretrained, with nothing trained on it.

    python results/real.py FILE.gguf                         after train.py: the rows below
    python results/real.py FILE.gguf --image picture.png     a caption, or a conversation
    python results/real.py FILE.gguf --image picture.png --ask "what color is the circle?"

    row                       what the LLM reads of a picture
    reads_list                the true words as a table: what it cannot read, it cannot see
    reads_rasters             the true words as a raster
    nothing                   nothing
    zero_shot_langbridge      a LangBridge, E swapped
    zero_shot_other_picture   control: another picture than the one that is asked about
    zero_shot_shuffled        control: word order permuted
    zero_shot_nearest_words   an MLP, its tokens mixed of their nearest words
    zero_shot_linear_map      an MLP, then a linear map; nearest words say which places are occupied
    text_langbridge, _mlp     a tile's top two words, written as text

Nobody has taught this LLM to read rasters, but it follows examples. So it reads solved ones, as
text, and then a picture as a table of the occupied places: of all layouts that were tried, it
answers best about this one. Finished rows are kept. Writes real_FILE_HASH.json into --out.
"""
import math
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import torch
import torch.nn.functional as F

from adapter import EMPTY, fingerprint, load_adapter
from data import world
from data.corpus import GRID, prompt, raster
from data.files import Refused, Stage, hash_of, lock, read_json, write_json
from data.gguf import GGUF, read_encoding, read_weights, sizes_of
from data.pictures import read_picture
from data.run import Job, Parser, make_stages, number, command, say
from data.scoring import benchmark, caption_of
from evaluate import (TEMPERATURES, as_asked, ask, chat, draw_word_map, held_out, load_vlm,
                      nearest_words, score_vlm)
from model import GPT, VLM, length, rotate
from results.report import load, real_types_table
from train import check, load_settings, open_stage, training_features, words_of
from transfer import (RIDGES, TopWords, embed, in_tiles, linear_map, shuffle_words,
                      swap_embeddings)

SCENE, HEAD = "scene:\n", "place | object\n"  # how a scene begins, as for our LLMs, and a table
SETS, FEW = 6, 50  # sets of examples that are tried, on so many scenes of val


# ---- the LLM ------------------------------------------------------------------------------------

def attention(q, k, v, keys, values):
    """softmax(q k^T / sqrt(c)) v, where H / G queries share a key and a value (arXiv 2305.13245).

    q (B, H, T, c), k and v (B, G, S, c) -> (B, H, T, c). The queries are the last T of S positions.
    keys and values (G, P, c) come before those of every row, so they are kept only once.
    """
    q = q.unflatten(1, (k.size(1), -1)) / math.sqrt(q.size(-1))  # (B, G, H/G, T, c)
    before = torch.einsum("bgntc,gpc->bgntp", q, keys)  # (B, G, H/G, T, P)
    own = torch.einsum("bgntc,bgsc->bgnts", q, k)  # (B, G, H/G, T, S)
    later = torch.ones_like(own, dtype=torch.bool).triu(own.size(-1) - own.size(-2) + 1)
    weights = torch.cat([before, own.masked_fill(later, -math.inf)], -1).softmax(-1)  # (.., P + S)
    before, own = weights.tensor_split([keys.size(1)], dim=-1)
    y = torch.einsum("bgntp,gpc->bgntc", before, values)  # (B, G, H/G, T, c)
    return (y + torch.einsum("bgnts,bgsc->bgntc", own, v)).flatten(1, 2)  # (B, H, T, c)


class Llama:
    """The LLM of most open weights (LLaMA, arXiv 2302.13971), straight from the tensors of a GGUF:
    embeddings (B, T, C) -> logits (B, T, V). Raises Refused if the file is damaged or not known.

    Unlike our GPT, it has norms with a gain, rotary positions only, a gate in its MLP (SwiGLU,
    arXiv 2002.05202) and no convolutions; embeddings, queries and keys are not normalised.
    """
    forward, generate, new_cache = GPT.forward, GPT.generate, GPT.new_cache

    def __init__(self, file, device="cpu"):
        self.config = sizes_of(file)
        weights = read_weights(file, self.config)
        self.weights = {name: torch.from_numpy(w).to(device) for name, w in weights.items()}
        self.embedding = torch.nn.Embedding.from_pretrained(self.weights["token_embd.weight"])
        self.blocks = [f"blk.{i}." for i in range(self.config.layers)]  # how their names begin
        self.begun, self.before = [], {}  # the ids that every text begins with; their keys, values

    def begin(self, ids):
        """From now on every text begins with these ids. They are read once."""
        if ids != self.begun:
            self.begun, self.before, cache = [], {}, self.new_cache()
            self.hidden(self.embed(torch.tensor([ids])), cache)
            for name, read in zip(self.blocks, cache):
                self.before[name] = read["keys"][0], read["values"][0]  # (G, P, c) each
            self.begun = ids

    def embed(self, ids):
        """Raises Refused for a byte that is no token of this LLM (data/gguf.py)."""
        if ids.max() >= self.config.V:
            raise Refused("a byte of this text is no token of this LLM: leave it out")
        return self.embedding(ids.to(self.embedding.weight.device))  # (.., T, C)

    def head(self, x):
        return F.linear(x, self.weights.get("output.weight", self.embedding.weight))  # (.., V)

    def hidden(self, x, cache=None):
        """What the head reads: x (B, T, C) -> (B, T, C). With a cache, x continues the cached text.
        Raises Refused if the context is too short."""
        cache, s = cache or self.new_cache(), self.config
        start = len(self.begun) + length(cache)
        if (end := start + x.size(1)) > s.context:
            raise Refused(f"{end} tokens are too many for this LLM ({s.context}): fewer --shots?")
        frequencies = s.base ** -(torch.arange(0, s.c, 2, device=x.device) / s.c)  # (c/2,)
        frequencies = frequencies / self.weights.get("rope_freqs.weight", 1.0)
        angles = torch.arange(start, end, device=x.device)[:, None] * frequencies  # (T, c/2)
        turns = torch.polar(torch.ones_like(angles), angles)  # (T, c/2), complex
        for name, its_cache in zip(self.blocks, cache):
            x = self.block(x, name, turns, its_cache)  # (B, T, C)
        return self.norm(x, "output_norm")  # (B, T, C)

    def block(self, x, name, turns, cache):
        """x + attention(norm(x)), then + mlp(norm(x)): x (B, T, C) -> (B, T, C)"""
        h = self.norm(x, f"{name}attn_norm")
        q, k, v = (self.linear(h, f"{name}attn_{part}").unflatten(2, (-1, self.config.c))
                   .transpose(1, 2) for part in "qkv")  # (B, H, T, c), two (B, G, T, c)
        if self.config.apart:  # bring the two channels of each rotary pair together
            q, k = (heads.unflatten(-1, (2, -1)).mT.flatten(-2) for heads in (q, k))
        q, k = rotate(q, turns), rotate(k, turns)
        for part, new in (("keys", k), ("values", v)):
            cache[part] = torch.cat([cache[part], new], dim=2) if part in cache else new
        before = self.before.get(name, (k[0, :, :0], v[0, :, :0]))  # 2 x (G, P, c); P may be 0
        y = attention(q, cache["keys"], cache["values"], *before)  # (B, H, T, c)
        x = x + self.linear(y.transpose(1, 2).flatten(2), f"{name}attn_output")  # (B, T, C)
        h = self.norm(x, f"{name}ffn_norm")
        gate, up = F.silu(self.linear(h, f"{name}ffn_gate")), self.linear(h, f"{name}ffn_up")
        return x + self.linear(gate * up, f"{name}ffn_down")  # (B, T, C)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.config.eps)


# ---- what it reads ------------------------------------------------------------------------------

def as_table(scene):
    return HEAD + "".join(f"{world.PLACES[o.place]} | {o.color} {o.shape}\n" for o in scene)


def as_raster(scene):
    return raster(scene, random.Random(f"raster/{scene}"))


TEXTS = {"reads_list": as_table, "reads_rasters": as_raster, "nothing": lambda scene: ""}


def solved_examples(n, seed, write, candidates=300):
    """n scenes, write(scene) of each, with three questions and their answers.

    Each is one of the scenes whose answers were given least often before: an LLM likes to repeat
    what it has just read.
    """
    rng, given, text = random.Random(f"examples/{seed}"), Counter(), ""
    scenes = [world.make_scene("text:source", f"examples/{seed}", i) for i in range(candidates)]
    for k in range(n):
        types = world.QUESTION_TYPES[k % 2 * 3:][:3]  # half, or half and the caption
        asked = [(scene, [world.ask(scene, type, rng) for type in types]) for scene in scenes]
        scene, qas = min((its for its in asked if all(its[1])),
                         key=lambda its: sum(given[qa.answer] for qa in its[1]))
        scenes.remove(scene)
        given.update(qa.answer for qa in qas)
        qas += [caption_of(scene)] * (k % 2)
        text += SCENE + write(scene)
        text += "".join(f"{prompt(qa.question)} {qa.answer}\n" for qa in rng.sample(qas, 3))
    return text


class Prompted(VLM):
    """A VLM whose LLM was never trained to see. Solved examples come first, then the picture:

        scene:
        place | object
        top left | red circle
        question: which shape does the red object have? circle
        ..
        scene:
        place | object
        bottom right | [visual token] [visual token]
        question: what color is the star? blue

    A place gets a line if its top word is not the empty word: two visual tokens, each the mean over
    the two rows of its four patches. Without an adapter, `features` are texts in place of a table.
    """
    batch = 64

    def __init__(self, adapter, llm, encoding, examples):
        super().__init__(adapter, llm, encoding)
        self.examples = encoding.encode(examples)

    def text(self, text):
        return self.embed(self.encoding.encode(text))[0]  # (T, C)

    def tables(self, features):
        """What the LLM reads of each picture: [(T, C), ..]"""
        if self.adapter is None:
            return [self.text(SCENE + text) for text in features]
        v = in_tiles(self.adapter(features)).unflatten(2, (2, 2)).mean(2)  # (B, places, 2, C)
        votes = in_tiles(self.adapter.weights(features)).sum(2)  # (B, places, K)
        occupied = votes.argmax(-1) != self.adapter.tokens.index(EMPTY)  # (B, places)
        tables = []
        for tokens, places in zip(v, occupied):
            pieces = [self.text(SCENE + HEAD)]
            for place in places.nonzero()[:, 0].tolist():
                pieces += [self.text(f"{world.PLACES[place]} |"), tokens[place], self.text("\n")]
            tables.append(torch.cat(pieces))  # (T, C)
        return tables

    def read(self, features):
        """The LLM reads pictures, those at a time whose tables are equally long: yields (their
        indices, the cache)."""
        self.llm.begin(self.examples)
        tables = self.tables(features)
        for size in sorted({*map(len, tables)}):
            alike = [i for i, table in enumerate(tables) if len(table) == size]
            for start in range(0, len(alike), self.batch):
                pictures, cache = alike[start:start + self.batch], self.llm.new_cache()
                self.llm.hidden(torch.stack([tables[i] for i in pictures]), cache)
                yield pictures, cache

    def answer(self, features, asked):
        """Raises Refused for a special token in a question: it is not text."""
        for special in self.encoding.special_tokens_set:
            if any(special in question for _, question in asked):
                raise Refused(f"{special!r} is a special token, not text: leave it out")
        return super().answer(features, asked)


# ---- rows ---------------------------------------------------------------------------------------

BRIDGES = ["zero_shot_langbridge", "zero_shot_other_picture", "zero_shot_shuffled",
           "text_langbridge"]
MLPS = ["zero_shot_nearest_words", "zero_shot_linear_map", "text_mlp"]


def adapters_for(s, name, llm, encoding):
    """A row's adapter on this LLM, as {constant: adapter}: several, where one is chosen on val."""
    _, ours = load_vlm(s.out, "mlp_align" if name in MLPS else "langbridge_align")
    adapter, source, target = ours.to(s.device).adapter, (ours.llm, ours.encoding), (llm, encoding)
    if name in BRIDGES:
        make = shuffle_words if name == "zero_shot_shuffled" else swap_embeddings
        return {None: make(s, adapter, source, target)}
    tokens = words_of(s, ours.encoding)
    mixed = {constant: nearest_words(adapter, *source, tokens, constant).set_basis(*target)
             for constant in TEMPERATURES}
    if name != "zero_shot_linear_map":
        return mixed
    known = [t for t in tokens if t in encoding.token_byte_values()]
    v = adapter(training_features(s)[:500].float().to(s.device)).flatten(0, 1)  # (n, C)
    e, e_target = embed(*source, known), embed(*target, known)  # (K, C), (K, C')
    mapped = {constant: linear_map(adapter, v, e, e_target, constant) for constant in RIDGES}
    for each in mapped.values():  # it has no words that say which places are occupied
        each.tokens, each.weights = tokens, mixed[TEMPERATURES[0]].weights
    return mapped


@torch.no_grad()
def make_row(s, stage, path):
    """A row's scores. What is open, the examples in reads_list and an MLP's constant elsewhere, is
    chosen by the answers about val."""
    name, file, exam = stage.folder.name, GGUF(path), held_out(s.out, s.device)
    llm, encoding = Llama(file, s.device), read_encoding(file)
    val, test = exam["val"][:FEW], exam["test"][:s.test_pictures]
    if name in TEXTS:
        val, test = ([TEXTS[name](world.make_scene(split, 0, i)) for i in range(len(pictures))]
                     for split, pictures in (("val", val), ("test", test)))
    if name == "zero_shot_other_picture":
        test = test.roll(len(test) // 2, 0)
    _, questions, _ = benchmark("val", len(val))
    asked, vlms, tried = [(i, qa.question) for i, qa in questions], {}, {}
    for seed in range(SETS) if name == "reads_list" else [chosen_examples(stage.folder.parent)]:
        write = as_raster if name == "reads_rasters" else as_table
        examples = solved_examples(stage.settings["shots"], seed, write)
        adapters = {seed: None} if name in TEXTS else adapters_for(s, name, llm, encoding)
        for key, adapter in adapters.items():
            adapter = TopWords(adapter) if name.startswith("text_") else adapter
            vlms[key] = Prompted(adapter, llm, encoding, examples).eval()
            answers = zip(vlms[key].answer(val, asked), questions)
            tried[key] = sum(answer == qa.answer for answer, (_, qa) in answers) / len(questions)
    best = max(tried, key=tried.get)
    stage.finish(chosen=best, tried=tried, hash=fingerprint(vlms[best].adapter),
                 scores=score_vlm(vlms[best], {"test": test}, s.dataset))


def chosen_examples(folder):
    """The seed of those that reads_list has chosen, if there is that row."""
    path = folder / "reads_list" / "config.json"
    return read_json(path)["chosen"] if path.exists() else 0


def known_as(path):
    """What a file is called here: its name, and its content, for two may have one name."""
    return f"{path.stem}_{hash_of(path)[:8]}"


def compare(s, args, file):
    """Make all rows, print them, and write real_FILE_HASH.json."""
    name, about = known_as(args.file), {"shots": args.shots}
    stages = {row: Stage(s.out, f"real/{name}/{row}", open_stage(s, row).settings | about)
              for row in [*TEXTS, *BRIDGES, *MLPS]}
    first = {stages["reads_list"].name}  # it chooses the examples
    make_stages(s, [Job(partial(make_row, s, path=args.file), stage, first - {stage.name})
                    for stage in stages.values()], lambda stage: say(f"{stage.name}: done"))
    facts = ("scores", "chosen", "tried", "hash", "commit")
    rows = [{"name": row} | {fact: stage.config()[fact] for fact in facts}
            for row, stage in stages.items()]
    words = load_adapter(args.out / "langbridge_align").tokens
    present = {*words} & {*read_encoding(file).token_byte_values()}
    trained, path = args.out / "langbridge_align" / "config.json", args.out / f"real_{name}.json"
    write_json(path, {
        "target": name, "seed": s.seed, "shots": args.shots, "words": [len(present), len(words)],
        "adapter_hash": read_json(trained)["hash"],  # E swapped, it is still the same
        "rows": rows, **s.dataset.guesses({"test": s.test_pictures})})
    print(f"\n{real_types_table(load([args.out], path.stem))}\n\nAbout {s.test_pictures} pictures. "
          f"Scores: {path}. For a conversation: --image PICTURE")


@torch.no_grad()
def look_at(s, args, file):
    """Answer about one picture, after the examples that were chosen, if they were."""
    name, llm, encoding = "langbridge_align", Llama(file), read_encoding(file)
    seed = chosen_examples(args.out / "real" / known_as(args.file))
    vit, ours = load_vlm(args.out, name)
    vlm = Prompted(ours.adapter.set_basis(llm, encoding), llm, encoding,
                   solved_examples(args.shots, seed, as_table)).eval()
    pixels = read_picture(args.image, vit.config.size)
    features = vit(pixels)  # (B, N, D)
    habits = {"words": [], "request": s.dataset.request,  # who knows which words it has read?
              "examples": s.dataset.example_questions()}
    if args.ask is None and sys.stdin.isatty():
        path = args.out / f"{args.image.stem}_words.png"
        return chat(vlm, features, habits,
                    lambda vlm: draw_word_map(args.out, name, vlm, features, pixels, path))
    print(ask(vlm, features, as_asked(args.ask or "", habits), habits))


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.gguf", help="an LLM of the LLaMA or Qwen2 family")
    add("--out", type=Path, default="out", help="the folder that train.py wrote (default: out)")
    add("--pictures", type=number(4), default=200, help="test pictures (default: 200)")
    add("--shots", type=number(1, 100), default=16, help="solved examples (default: 16)")
    add("--threads", type=number(1), help="CPU threads in all (default: what train.py used)")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    add("--image", type=Path, help="a picture to ask about: PNG or JPEG, any size")
    add("--ask", help="a question about it")
    args = parser.parse_args()
    file, s = GGUF(args.file), load_settings(args.out)
    s.threads, s.device = args.threads or s.threads, args.device or s.device
    s.test_pictures = min(args.pictures, s.test_pictures)
    check(s)
    torch.set_num_threads(s.threads)
    if s.data or s.vit_size != GRID * s.vit_patch:
        raise Refused("this needs a run on our world of 6 x 6 patches")
    if args.image:
        return look_at(s, args, file)
    if args.ask:
        raise Refused("which picture? --ask needs --image picture.png")
    lock(s.out)
    compare(s, args, file)


if __name__ == "__main__":
    with command():
        main()
