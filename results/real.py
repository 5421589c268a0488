"""A LangBridge on LLMs that others have pretrained, with nothing trained on them.

    python results/real.py FILE.gguf [FILE2.gguf ..]         after train.py: the rows below
    python results/real.py FILE.gguf --image picture.png     a caption, or a conversation
    python results/real.py FILE.gguf --image picture.png --ask "what color is the circle?"

    row                       what the LLM reads of a picture
    reads_list                the true words: what it cannot read, it cannot see
    nothing                   nothing
    zero_shot_langbridge      a LangBridge, E swapped
    zero_shot_other_picture   control: another picture than the one that is asked about
    zero_shot_shuffled        control: word order permuted
    zero_shot_nearest_words   an MLP, its tokens mixed of their nearest words
    zero_shot_linear_map      an MLP, then a linear map; nearest words say which places are occupied
    text_langbridge, _mlp     a place's top two words, written as text
    zero_shot_swap_alone      a LangBridge, E swapped: all 6 x 6 visual tokens, no rule about places

Nobody has taught such an LLM to read rasters, but it follows examples. So it reads solved ones, as
text, and then the picture as a table of its occupied places. Of the possible answers we take the
one that the picture makes most likely (see `choose`); captions are written freely. Our own
LLMs get the same questions and rows, as rasters and without examples. Finished sets of examples are
kept. Writes real_FILE_HASH.json into --out, for each LLM.
"""
import math
import random
import re
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import torch
import torch.nn.functional as F

from adapter import EMPTY, fingerprint
from data import world
from data.bpe import BOS
from data.corpus import GRID, prompt, raster
from data.files import Refused, Stage, hash_of, lock, read_json, write_json
from data.gguf import GGUF, read_encoding, read_weights, sizes_of
from data.pictures import read_picture
from data.run import Job, Parser, make_stages, number, command, say
from data.scoring import Answered, caption_of, count_objects, count_right, intervals, share
from evaluate import as_asked, ask, chat, draw_word_map, held_out, load_vlm
from model import GPT, VLM, length, load_llm, pick, rotate, same_length
from results.report import load, real_table
from train import check, load_settings, open_stage
from transfer import (TopWords, in_places, map_linearly, mix_nearest_words, shuffle_words,
                      swap_embeddings)

SCENE, HEAD = "scene:\n", "place | object\n"  # how a scene begins, as for our LLMs, and a table
OPTIONS = {"color": world.COLORS, "shape": world.SHAPES, "where": world.PLACES}  # what is asked
SETS, FEW = 2, 10  # sets of examples; pictures of val on which an MLP's constant is chosen
OURS = ("llm_source", "llm_target")  # stages of train.py


# ---- the LLM ------------------------------------------------------------------------------------

def attention(q, k, v, keys, values, window):
    """softmax(q k^T / sqrt(c)) v, where H / G queries share a key and a value (arXiv 2305.13245).

    q (B, H, T, c), k and v (B, G, S, c) -> (B, H, T, c). The queries are the last T of P + S
    positions. keys and values (G, P, c) come before those of every row, so they are kept only once.
    A query sees the last `window` positions, its own included.
    """
    q = q.unflatten(1, (k.size(1), -1)) / math.sqrt(q.size(-1))  # (B, G, H/G, T, c)
    at = torch.arange(keys.size(1) + k.size(2), device=q.device)  # (P + S,)
    back = at[-q.size(3):, None] - at  # (T, P + S)
    far = min(keys.size(1), int((back >= window).all(0).sum()))  # what none of them sees
    keys, values, unseen = keys[:, far:], values[:, far:], ((back < 0) | (back >= window))[:, far:]
    before = torch.einsum("bgntc,gpc->gbntp", q, keys)  # (G, B, H/G, T, P)
    own = torch.einsum("bgntc,bgsc->gbnts", q, k)  # (G, B, H/G, T, S)
    for scores, mask in zip((before, own), unseen.tensor_split([keys.size(1)], dim=1)):
        if mask.any():
            scores.masked_fill_(mask, -math.inf)
    total = torch.logaddexp(before.logsumexp(-1, True), own.logsumexp(-1, True))  # (.., T, 1)
    y = torch.einsum("gbntp,gpc->bgntc", before.sub_(total).exp_(), values)  # (B, G, H/G, T, c)
    return (y + torch.einsum("gbnts,bgsc->bgntc", own.sub_(total).exp_(), v)).flatten(1, 2)


class OpenLLM:
    """An LLM of the families of most open weights, straight from the tensors of a GGUF file:
    embeddings (B, T, C) -> logits (B, T, V). Raises Refused if the file is damaged or not known.

    Unlike our GPT, all have norms with a gain, rotary positions only, a gate in the MLP (arXiv
    2002.05202), and no convolutions. What differs between them, besides sizes and biases:

                              LLaMA (2302.13971)   Qwen2 (2407.10671)   Gemma 3 (2503.19786)
        a rotary pair         two neighbours       half a head apart    half a head apart
        the MLP's gate        SiLU                 SiLU                 GELU, by tanh
        embeddings            as they are          as they are          times sqrt(C)
        norms                 before sublayers     before sublayers     after them, of q and k, too
        what a layer sees     everything           everything           a window; each sixth: all
    """
    forward, generate, new_cache = GPT.forward, GPT.generate, GPT.new_cache

    def __init__(self, file, device="cpu"):
        self.config = s = sizes_of(file)
        weights = read_weights(file, s)
        self.weights = {name: torch.from_numpy(w).to(device) for name, w in weights.items()}
        self.embedding = torch.nn.Embedding.from_pretrained(self.weights["token_embd.weight"])
        self.blocks = [f"blk.{i}." for i in range(s.layers)]  # how their names begin
        # the ids that every text begins with, and their keys and values; all that were read
        self.begun, self.before, self.beginnings = [], {}, {}
        gemma = s.family == "gemma3"
        self.neighbours, self.scale = s.family == "llama", math.sqrt(s.C) if gemma else 1.0
        self.gate = partial(F.gelu, approximate="tanh") if gemma else F.silu
        self.local = {name for i, name in enumerate(self.blocks) if gemma and (i + 1) % s.every}

    def begin(self, ids):
        """From now on every text begins with these ids. They are read once."""
        self.begun, self.before = [], {}
        if tuple(ids) not in self.beginnings:
            cache = self.new_cache()
            self.hidden(self.embed(torch.tensor([ids])), cache)
            self.beginnings[tuple(ids)] = {  # two (G, P, c) for each block
                name: (its["keys"][0], its["values"][0]) for name, its in zip(self.blocks, cache)}
        self.begun, self.before = ids, self.beginnings[tuple(ids)]

    def embed(self, ids):
        """Raises Refused for a byte that is no token of this LLM (data/gguf.py)."""
        if ids.max() >= self.config.V:
            raise Refused("a byte of this text is no token of this LLM: leave it out")
        return self.embedding(ids.to(self.embedding.weight.device)) * self.scale  # (.., T, C)

    def head(self, x):
        return F.linear(x, self.weights.get("output.weight", self.embedding.weight))  # (.., V)

    def hidden(self, x, cache=None):
        """What the head reads: x (B, T, C) -> (B, T, C). With a cache, x continues the cached text.
        Raises Refused if the context is too short."""
        cache, s = cache or self.new_cache(), self.config
        start = len(self.begun) + length(cache)
        if (end := start + x.size(1)) > s.context:
            raise Refused(f"{end} tokens are too many for this LLM ({s.context}): fewer --shots?")
        turns = {base: self.turns(start, end, base) for base in (s.base, s.near_base)}
        for name, its_cache in zip(self.blocks, cache):
            base = s.near_base if name in self.local else s.base
            x = self.block(x, name, turns[base], its_cache)  # (B, T, C)
        return self.norm(x, "output_norm")  # (B, T, C)

    def turns(self, start, end, base):
        """The rotations of the positions from start to end: (T, c/2), complex"""
        device = self.embedding.weight.device
        exponents = torch.arange(0, self.config.c, 2, device=device) / self.config.c  # (c/2,)
        frequencies = base ** -exponents / self.weights.get("rope_freqs.weight", 1.0)  # (c/2,)
        angles = torch.arange(start, end, device=device)[:, None] * frequencies  # (T, c/2)
        return torch.polar(torch.ones_like(angles), angles)  # (T, c/2)

    def block(self, x, name, turns, cache):
        """x + attention(norm(x)), then + mlp(norm(x)): x (B, T, C) -> (B, T, C)"""
        h = self.norm(x, f"{name}attn_norm")
        q, k, v = (self.linear(h, f"{name}attn_{part}").unflatten(2, (-1, self.config.c))
                   .transpose(1, 2) for part in "qkv")  # (B, H, T, c), two (B, G, T, c)
        q, k = self.norm(q, f"{name}attn_q_norm"), self.norm(k, f"{name}attn_k_norm")
        if not self.neighbours:  # bring the two channels of each rotary pair together
            q, k = (heads.unflatten(-1, (2, -1)).mT.flatten(-2) for heads in (q, k))
        q, k = rotate(q, turns), rotate(k, turns)
        for part, new in (("keys", k), ("values", v)):
            cache[part] = torch.cat([cache[part], new], dim=2) if part in cache else new
        before = self.before.get(name, (k[0, :, :0], v[0, :, :0]))  # 2 x (G, P, c); P may be 0
        window = self.config.window if name in self.local else self.config.context
        y = attention(q, cache["keys"], cache["values"], *before, window)  # (B, H, T, c)
        y = self.linear(y.transpose(1, 2).flatten(2), f"{name}attn_output")  # (B, T, C)
        x = x + self.norm(y, f"{name}post_attention_norm")  # (B, T, C)
        h = self.norm(x, f"{name}ffn_norm")
        gate, up = self.gate(self.linear(h, f"{name}ffn_gate")), self.linear(h, f"{name}ffn_up")
        y = self.linear(gate * up, f"{name}ffn_down")  # (B, T, C)
        return x + self.norm(y, f"{name}post_ffw_norm")  # (B, T, C)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x, name):
        """x itself, where this LLM has no such norm."""
        gain = self.weights.get(f"{name}.weight")
        return x if gain is None else F.rms_norm(x, x.shape[-1:], gain, self.config.eps)


# ---- what it reads ------------------------------------------------------------------------------

def as_table(scene):
    return HEAD + "".join(f"{world.PLACES[o.place]} | {o.color} {o.shape}\n" for o in scene)


def as_raster(scene):
    return raster(scene, random.Random(f"raster/{scene}"))


def in_words(qa, answer):
    """How an answer is written after examples. A colour or a shape with what the question names,
    as in the table: an LLM likes to go on as it has read before."""
    forms = {"color": "{} {about.shape}", "shape": "{about.color} {}"}
    return forms.get(qa.type, "{}").format(answer, about=qa.about)


def solved_examples(captions, n, seed, write):
    """n scenes, write(scene) of each, with a question of each type and its answer, or a caption.

    Each is one of the scenes whose answers were given least often before: an LLM likes to repeat
    what it has just read.
    """
    rng, given, text = random.Random(f"examples/{seed}"), Counter(), ""
    scenes = [world.make_scene("text:source", f"examples/{seed}", i) for i in range(400)]
    asked = [(scene, [caption_of(scene)] if captions else
              [world.ask(scene, type, rng) for type in OPTIONS]) for scene in scenes]
    possible = [(scene, qas) for scene, qas in asked if all(qas)]
    for _ in range(n):
        scene, qas = best = min(possible, key=lambda its: sum(given[qa.answer] for qa in its[1]))
        possible.remove(best)
        given.update(qa.answer for qa in qas)
        text += SCENE + write(scene)
        text += "".join(f"{prompt(qa.question)} {in_words(qa, qa.answer)}\n"
                        for qa in rng.sample(qas, len(qas)))
    return text


class Prompted(VLM):
    """A VLM whose LLM was never trained to see. Solved examples come first, then the picture:

        scene:
        place | object
        top left | red circle
        question: which shape does the red object have? red circle
        ..
        scene:
        place | object
        bottom right | [visual token] [visual token]
        question: what color is the star? blue star

    A place gets a line if its top word is not the empty word: two visual tokens, each the mean over
    the two rows of its four patches. If `write` is as_raster, all visual tokens are there, in rows.
    Without an adapter, `features` are texts. Our own LLMs get no examples (0 shots).
    """
    batch = 32  # questions at a time: Gemma's vocabulary is large

    def __init__(self, adapter, llm, encoding, shots, seed=0, write=as_table):
        super().__init__(adapter, llm, encoding)
        if BOS not in encoding.special_tokens_set:
            self.prefix = self.ids(SCENE)
        self.examples = cache(partial(self.examples, shots, seed, write))
        self.shots, self.write = shots, write

    def ids(self, text):
        """Newlines are tokens of their own, as they are after visual tokens."""
        pieces = filter(None, re.split("(\n)", text))
        return [id for piece in pieces for id in self.encoding.encode_ordinary(piece)]

    def text(self, text):
        return self.embed(self.ids(text))[0]  # (T, C)

    def examples(self, shots, seed, write, captions):
        """The ids of what comes first."""
        first, space = self.llm.config.begin
        return [*first, *self.ids(space + solved_examples(captions, shots, seed, write))]

    def scenes(self, features):
        """What the LLM reads of each picture: [(T, C), ..]"""
        if self.adapter is None:
            return [self.embed(self.prefix + self.ids(text))[0] for text in features]
        if self.write is as_raster:
            return [*self.picture(features)]
        v = in_places(self.adapter(features)).unflatten(2, (2, 2)).mean(2)  # (B, places, 2, C)
        votes = in_places(self.adapter.weights(features)).sum(2)  # (B, places, K)
        occupied = votes.argmax(-1) != self.adapter.tokens.index(EMPTY)  # (B, places)
        tables = []
        for tokens, places in zip(v, occupied):
            pieces = [self.text(SCENE + HEAD)]
            for place in places.nonzero()[:, 0].tolist():
                pieces += [self.text(f"{world.PLACES[place]} |"), tokens[place], self.text("\n")]
            tables.append(torch.cat(pieces))  # (T, C)
        return tables

    def read(self, features):
        """The LLM reads pictures, those at a time whose scenes are equally long: yields (their
        indices, the cache)."""
        scenes = self.scenes(features)
        for size in sorted({*map(len, scenes)}):
            pictures = [i for i, scene in enumerate(scenes) if len(scene) == size]
            cache = self.llm.new_cache()
            self.llm.hidden(torch.stack([scenes[i] for i in pictures]), cache)
            yield pictures, cache

    def begin(self, captions):
        """Questions follow solved questions, requests for a caption follow captions."""
        if self.shots:
            self.llm.begin(self.examples(captions))

    def answer(self, features, asked):
        """As a VLM; `asked` are all questions, or all requests for a caption. Raises Refused for a
        special token in a question: it is not text."""
        odd = [its for its in self.encoding.special_tokens_set if any(its in q for _, q in asked)]
        if odd:
            raise Refused(f"{odd[0]!r} is a special token, not text: leave it out")
        self.begin(asked[0][1] in world.CAPTION_REQUESTS)
        return super().answer(features, asked)

    def likely(self, features, asked):
        """log p of all possible answers: [(picture, QA), ..] -> [{answer: log p}, ..]"""
        self.begin(False)
        likely, form = [{} for _ in asked], in_words if self.shots else lambda qa, answer: answer
        for pictures, cache in self.read(features):
            about = {k: self.ids(prompt(qa.question))
                     for k, (i, qa) in enumerate(asked) if i in pictures}
            for ks, ids in same_length(about, self.batch):
                begun = pick(cache, [pictures.index(asked[k][0]) for k in ks])
                x = self.llm.hidden(self.llm.embed(ids), begun)[:, -1:]  # (n, 1, C)
                texts = {(row, answer): self.ids(f" {form(qa, answer)}")
                         for row, qa in enumerate(asked[k][1] for k in ks)
                         for answer in OPTIONS[qa.type]}
                # log p of what comes after a question, and after what answers begin with
                after = {(row,): its for row, its in enumerate(self.llm.head(x).log_softmax(-1))}
                starts = {(row, *ids[:-1]): ids[:-1] for (row, _), ids in texts.items() if ids[1:]}
                for keys, ids in same_length(starts, self.batch):
                    h = self.llm.hidden(self.llm.embed(ids), pick(begun, [row for row, *_ in keys]))
                    after |= zip(keys, self.llm.head(h).log_softmax(-1))  # (T, V) each
                for (row, answer), ids in texts.items():
                    logp = torch.cat([after[row,], after[row, *ids[:-1]]])[-len(ids):]  # (T, V)
                    likely[ks[row]][answer] = logp[range(len(ids)), ids].sum().item()
        return likely


def choose(likely, without):
    """The answer that each picture makes likely, the highest log p - 0.7 log p'; p' is that without
    a picture: an LLM likes to repeat what examples said, whatever it sees (arXiv 2102.09690)."""
    return [max(p, key=lambda answer: p[answer] - 0.7 * q[answer]) for p, q in zip(likely, without)]


# ---- rows ---------------------------------------------------------------------------------------

BRIDGES = {"zero_shot_langbridge": swap_embeddings, "zero_shot_other_picture": swap_embeddings,
           "zero_shot_shuffled": shuffle_words, "text_langbridge": swap_embeddings,
           "zero_shot_swap_alone": swap_embeddings}
MLPS = {"zero_shot_nearest_words": mix_nearest_words, "zero_shot_linear_map": map_linearly,
        "text_mlp": mix_nearest_words}


def exam(split, n):
    """(n scenes, [(picture, QA), ..]): a question of each type, where there is one; of the first
    two scenes another place: with their captions, the transcript begins with these"""
    rng, scenes = random.Random(f"real/{split}"), [world.make_scene(split, 0, i) for i in range(n)]
    asked = [(i, world.ask(scene, type, rng)) for i, scene in enumerate(scenes)
             for type in [*OPTIONS, *["where"] * (i < 2)]]
    return scenes, [its for its in asked if its[1]]


def score(scenes, asked, said):
    """Scores, and their 95% intervals over pictures. said: the texts after each set of examples"""
    answered = [Answered(i, qa, text) for texts in said for (i, qa), text in zip(asked, texts)]
    counted = {type: count_right([a for a in answered if a.qa.type == type], len(scenes))
               for type in OPTIONS}
    captions = [a.answer for a in answered if a.qa.type == "caption"]  # sets x pictures
    objects = count_objects(captions, scenes * len(said)).reshape(len(said), -1, 2)
    counted["caption_f1"] = objects.sum(0)  # (pictures, 2)
    return {"vqa_by_type": {type: share(counted[type]) for type in OPTIONS},
            "caption_f1": share(counted["caption_f1"]), "intervals": intervals(counted)}


def vlm_for(s, name, target, quality, *how):
    """A row's VLM. Of an MLP's constants, the one with the highest quality(VLM)."""
    _, ours = load_vlm(s.out, "mlp_align" if name in MLPS else "langbridge_align")
    adapter, source = ours.to(s.device).adapter, (ours.llm, ours.encoding)

    def prompted(adapter):
        return Prompted(TopWords(adapter) if "text_" in name else adapter, *target, *how).eval()

    def best(adapters, *_):
        for each in adapters:  # a mapped MLP has no words that say which places are occupied
            each.tokens, each.weights = words.tokens, getattr(each, "weights", words.weights)
        return max(adapters, key=lambda each: quality(prompted(each)))

    if name in BRIDGES:
        return prompted(BRIDGES[name](s, adapter, source, target))
    words = mix_nearest_words(s, adapter, source, target, choose=lambda mixed, *_: mixed[0])
    return prompted(MLPS[name](s, adapter, source, target, choose=best))


@torch.no_grad()
def make_set(s, stage, path):
    """The answers of all rows after one set of examples."""
    shots, seed, n = (stage.settings[name] for name in ("shots", "examples", "about"))
    if path in OURS:
        llm, encoding = load_llm(Path(s.out) / path)
        llm, write = llm.to(s.device), as_raster
    else:
        file, write = GGUF(path), as_table
        llm, encoding = OpenLLM(file, s.device), read_encoding(file)
    features = held_out(s.out, s.device, ["val", "test"])
    exams = {split: exam(split, m) for split, m in (("val", min(FEW, n)), ("test", n))}

    @cache
    def without(split, write):
        scenes, asked = exams[split]
        blank = Prompted(None, llm, encoding, shots, seed, write).eval()
        return blank.likely([""] * len(scenes), asked)

    def answers(vlm, split, pictures):
        return choose(vlm.likely(pictures, exams[split][1]), without(split, vlm.write))

    def quality(vlm):
        said = answers(vlm, "val", features["val"][:len(exams["val"][0])])
        return sum(answer == qa.answer for answer, (_, qa) in zip(said, exams["val"][1]))

    seen, said = dict.fromkeys([*BRIDGES, *MLPS], features["test"][:n]), {}
    seen["zero_shot_other_picture"] = seen["text_mlp"].roll(n // 2, 0)
    texts = {"reads_list": [*map(write, exams["test"][0])], "nothing": [""] * n}
    requests = [(i, world.CAPTION_REQUESTS[0]) for i in range(n)]
    for name, pictures in (texts | seen).items():
        how = shots, seed, as_raster if name == "zero_shot_swap_alone" else write
        vlm = Prompted(None, llm, encoding, *how).eval() if name in texts else vlm_for(
            s, name, (llm, encoding), quality, *how)
        said[name] = answers(vlm, "test", pictures) + vlm.answer(pictures, requests)
        say(f"{stage.name}, {name}: done")
    stage.finish(said=said)


# ---- python results/real.py ---------------------------------------------------------------------

def known_as(path):
    """What a file is called here: its name, and its content, for two may have one name."""
    return f"{path.stem}_{hash_of(path)[:8]}"


def compare(s, args):
    """Make all rows, print them, and write real_FILE_HASH.json for each LLM."""
    sets, jobs = {}, []
    llms = {known_as(path): path for path in args.files} | dict(zip(OURS, OURS))
    for name, path in llms.items():
        settings = open_stage(s, "real/set").settings | {
            "shots": 0 if name in OURS else args.shots, "about": s.test_pictures}
        sets[name] = [Stage(s.out, f"real/{name}/set{seed}", settings | {"examples": seed})
                      for seed in range(1 if name in OURS else SETS)]
        jobs += [Job(partial(make_set, s, path=path), stage) for stage in sets[name]]
    make_stages(s, jobs, lambda stage: say(f"{stage.name}: done"))
    scenes, asked = exam("test", s.test_pictures)
    asked += enumerate(map(caption_of, scenes))
    chance = s.dataset.guesses({"test": s.test_pictures})["chance"]
    chance["vqa_by_type"] = {type: 1 / len(names) for type, names in OPTIONS.items()}
    for name, stages in sets.items():
        said = [stage.config()["said"] for stage in stages]
        rows = [{"name": row, "scores": score(scenes, asked, [each[row] for each in said])}
                for row in said[0]]
        write_json(args.out / f"real_{name}.json", {
            **stages[0].settings, "target": name, "commit": stages[0].config()["commit"],
            "adapter_hash": read_json(args.out / "langbridge_align" / "config.json")["hash"],
            "rows": rows, "chance": chance, "zero_shot_langbridge_says": [
                f"{i} | {qa.question} | {qa.answer} | {text}"
                for (i, qa), text in zip(asked, said[0]["zero_shot_langbridge"])]})
    print(f"\n{real_table(load([args.out], 'real_*'))}\n\nScores: {args.out}/real_FILE_HASH.json. "
          "For a conversation: --image PICTURE")


@torch.no_grad()
def look_at(s, args):
    """Answer about one picture."""
    name, file = "langbridge_align", GGUF(args.files[0])
    llm, encoding = OpenLLM(file), read_encoding(file)
    vit, ours = load_vlm(args.out, name)
    vlm = Prompted(ours.adapter.set_basis(llm, encoding), llm, encoding, args.shots).eval()
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
    add("files", type=Path, nargs="+", metavar="FILE.gguf",
        help="LLMs of the LLaMA, Qwen2 or Gemma 3 family")
    add("--out", type=Path, default="out", help="the folder that train.py wrote (default: out)")
    add("--pictures", type=number(4), default=100, help="test pictures (default: 100)")
    add("--shots", type=number(1, 100), default=16, help="solved examples (default: 16)")
    add("--threads", type=number(1), help="CPU threads in all (default: what train.py used)")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    add("--image", type=Path, help="a picture to ask about: PNG or JPEG, any size")
    add("--ask", help="a question about it")
    args = parser.parse_args()
    [sizes_of(GGUF(path)) for path in args.files]  # refused now, not after an hour
    s = load_settings(args.out)
    s.threads, s.device = args.threads or s.threads, args.device or s.device
    s.test_pictures = min(args.pictures, s.test_pictures)
    check(s)
    torch.set_num_threads(s.threads)
    if s.data or s.vit_size != GRID * s.vit_patch:
        raise Refused("this needs a run on our world of 6 x 6 patches")
    if args.image:
        return look_at(s, args)
    if args.ask:
        raise Refused("which picture? --ask needs --image picture.png")
    lock(s.out)
    compare(s, args)


if __name__ == "__main__":
    with command():
        main()
