"""Pictures and conversations of your own, as the stages see them (the interface is in dataset.py).

    python train.py --data train.json --images DIR

A file is a JSON list of entries in LLaVA's format, or has one entry a line (JSON lines):

    [{"id": "1", "image": "animals/fox.png", "conversations": [
        {"from": "human", "value": "<image>\\nwhat is this?"},
        {"from": "gpt", "value": "a red fox."}, ..]}, ..]

The first answer is the caption. Nobody knows where things are in a picture, only what is said about
it. So the LLMs learn to read rasters in which the words of a caption are scattered:

    scene:
     . fox . . red .
     . . fox fox . .
     ..
    question: what is this? a red fox.

Entries that cannot be used are left out and counted. The scores:

    exact_match    share of answers that are right, but for case, articles and the punctuation,
                   quotes and brackets around words
    token_f1       how many words an answer shares with the right one
    names_right    exact match of first answers alone: they name what is in a picture
"""
import functools
import hashlib
import json
import multiprocessing
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.corpus import EMPTY, in_scene, texts_in, turn
from data.files import Refused, read_json, write_json
from data.pictures import UNREADABLE, decode_all, redrawn
from data.scoring import QA, About, Answered, Said, join_splits, share
from data.words import content_of, plain, words_of

REQUEST = "describe the picture."  # where an entry asks nothing
BAD_SHARE = 0.05  # if more entries are bad, the file is refused, unless --allow_bad


# ---- reading files ------------------------------------------------------------------------------

class Entry(NamedTuple):
    image: str  # a file name
    turns: list  # [(question, answer), ..]


def read_conversations(path, longest):
    """(the entries that can be used, {why not: [names]}). Raises Refused for a file of no use."""
    try:
        raw = Path(path).read_bytes()
        items = parse(raw.decode(json.detect_encoding(raw), errors="replace"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"cannot read {str(path)!r} as JSON ({error}); mend that place, or, if the "
                      "file ends there, copy it again: it was cut")
    entries, bad = [], defaultdict(list)
    for k, item in enumerate(items, 1):
        entry, why = read_entry(item, longest)
        if why is None:
            entries.append(entry)
        else:
            name = item.get("id") if isinstance(item, dict) else None
            bad[why].append(f"entry {k}" if name is None else f"{name!r:.40}")
    if not entries:
        raise Refused(f"{path}: no usable entry ({listed(bad) or 'empty'}); see data/README.md")
    return entries, bad


def parse(text):
    """The items of a JSON list, or one after the other, as in JSON lines."""
    decode, items, at = json.JSONDecoder().raw_decode, [], 0
    while (at := re.compile(r"\s*").match(text, at).end()) < len(text):
        item, at = decode(text, at)
        items += item if isinstance(item, list) else [item]
    return items


def read_entry(item, longest):
    """An Entry, and None or why it cannot be used; a question may have `longest` bytes at most. All
    texts are in lower case, as everywhere here: a small LLM has no capital letters to spare."""
    try:
        image, messages = item.get("image"), item["conversations"]
        roles = [message["from"] for message in messages]
        texts = [plain(re.sub("(?i)<image>", " ", message["value"])) for message in messages]
    except (AttributeError, KeyError, TypeError):
        return None, "not in LLaVA's format"
    turns = [(question or REQUEST, answer) for question, answer in zip(texts[::2], texts[1::2])]
    reasons = {
        "no image (the name of one file)": not isinstance(image, str) or not image,
        "a picture in base64, not its file's name": re.match("data:|.{999}", str(image)),
        "human and gpt do not take turns": roles != ["human", "gpt"] * max(1, len(roles) // 2),
        "bytes that are no UTF-8": re.search("[\ufffd\ud800-\udfff]", " ".join(texts)),
        "an empty answer": not all(answer for _, answer in turns),
        "a question too long": any(len(q.encode(errors="replace")) > longest for q, _ in turns)}
    return Entry(image, turns), next((why for why, holds in reasons.items() if holds), None)


def listed(bad):
    """{"no image": ["'7'", "'8'"]} -> "no image: 2 ('7', '8')", three names each at most"""
    return "; ".join(f"{why}: {len(names)} ({', '.join(names[:3])}{', ..' * (len(names) > 3)})"
                     for why, names in bad.items())


def judge(path, entries, bad, marks, allow_bad, new):
    """The entries of a file whose pictures can be used, too; marks {name: mark} are those of
    decode_all. Says what is left out, if that is new. Raises Refused if it is too much."""
    kept = [entry for entry in entries if marks[entry.image] not in UNREADABLE]
    for name in [entry.image for entry in entries if marks[entry.image] in UNREADABLE]:
        bad[marks[name]].append(f"{name!r:.40}")
    left_out = sum(map(len, bad.values()))
    total = left_out + len(kept)
    about = f"{path}: {left_out} of {total} entries cannot be used: {listed(bad)}"
    if not kept or left_out > BAD_SHARE * total and not allow_bad:
        raise Refused(f"{about}; mend them" + ", or use the rest with --allow_bad" * bool(kept))
    if left_out and new:
        print(about, flush=True)
    return kept


# ---- texts --------------------------------------------------------------------------------------

def token_f1(answer, true):
    """The words that two answers share: 2 |answer & true| / (|answer| + |true|)"""
    answer, true = Counter(words_of(answer)), Counter(words_of(true))
    return 2 * (answer & true).total() / (answer.total() + true.total())


# ---- the data -----------------------------------------------------------------------------------

class OwnAnswered(Answered):
    """An answer is right if its words are."""

    @property
    def right(self):
        return words_of(self.answer) == words_of(self.qa.answer)


class OwnData:
    """Pictures and conversations from files. Raises Refused if too much of them is bad.

    data, images   the file of entries, and the folder of pictures
    folder         where pictures are kept as they were decoded
    val            a file of what is held out; without one, a fifth is, by a hash of pixels
    size, side     of a picture, in pixels and in patches
    pictures, test_pictures   of train and test, at most
    exam           whether the file is only an exam: all of it is the test split
    """
    SPLITS = ("train", "val", "test")
    EXAM = ("val", "test")
    SCORES = ("exact_match", "token_f1", "names_right")
    kinds = {}  # nothing is known of objects
    alt_V = 4000  # vocabulary of the ViT's text tower

    def __init__(self, data, images, folder, val="", size=48, side=6, pictures=10 ** 6,
                 test_pictures=600, allow_bad=False, exam=False):
        if not Path(images).is_dir():
            raise Refused(f"there is no folder {str(images)!r}; pictures are looked up in it")
        self.fields = dict(data=data, images=images, val=val, size=size, side=side,
                           pictures=pictures, test_pictures=test_pictures, allow_bad=allow_bad)
        self.side, paths = side, [path for path in (data, val) if path]
        # a token is a byte or more: with the patches, a question then fits into a context of 512
        read = [read_conversations(path, min(400, 480 - side * (side + 1))) for path in paths]
        names = sorted({entry.image for entries, _ in read for entry in entries})
        self.array, marks = decode_all(images, names, size, folder)
        self.row, self.mark = {name: i for i, name in enumerate(names)}, dict(zip(names, marks))
        hashes = [hashlib.sha256(ascii(entries).encode()).hexdigest() for entries, _ in read]
        found = dict(zip(("data", "val"), hashes)) | self.mark
        self.sums = {"files": hashlib.sha256(ascii(found).encode()).hexdigest()[:16]}
        new = exam or self.is_new(Path(folder).parent, found)
        kept = [judge(path, *its, self.mark, allow_bad, new) for path, its in zip(paths, read)]
        self.of = defaultdict(list, test=kept[0] if exam else [])  # {split: [Entry]}
        if not exam:
            self.deal(pictures, test_pictures, *kept)
        self.sampled = min(10000, 20 * len(self.of["train"]))
        self.reference = self  # whose training pictures guesses may know
        self.example_picture = f"{images}/{self.of['test'][0].image}"
        self.known = self.of["train"] or self.of["test"]
        self.request = Counter(entry.turns[0][0] for entry in self.known).most_common(1)[0][0]

    def is_new(self, out, found):
        """Whether nothing was trained in a folder yet; then {file: hash} is written there. Raises
        Refused if something was, on files that were not as those found now."""
        path = out / "data.json"
        if is_new := not any(out.glob("*/*.pt")) and multiprocessing.parent_process() is None:
            write_json(path, {"files": found})
        was = read_json(path)["files"] if path.exists() else {}
        for name in found | was:
            if found.get(name) != was.get(name):
                raise Refused(f"{self.fields.get(name, name)!r} is not as it was when {str(out)!r} "
                              "was trained; undo that, or train into another --out")
        return is_new

    def deal(self, pictures, test_pictures, train, held=()):
        """Deal the entries to the splits: by their pixels, so a picture is in one of them only."""
        taken = {self.mark[entry.image] for entry in held}
        train = [entry for entry in train if self.mark[entry.image] not in taken]
        some = ["train"] if held else ["train"] * 8 + ["val", "test"]
        for entries, sides in ((train, some), (held, ["val", "test"])):
            for entry in entries:
                self.of[sides[int(self.mark[entry.image], 16) % len(sides)]].append(entry)
        for split, least, most in (("train", 20, pictures), ("val", 4, max(1, test_pictures // 2)),
                                   ("test", 4, test_pictures)):
            its = self.of[split]
            if len(its) < least:
                raise Refused(f"{split} got only {len(its)} entries (by their pixels), {least} are "
                              "needed; add pictures (100 in all are enough), or use --val FILE")
            random.Random(split).shuffle(its)
            del its[most:]

    def config(self):
        return {"kind": "own", **self.fields}

    def count(self, split):
        return len(self.of[split])

    def pictures(self, split, indices):
        return self.array[[self.row[self.of[split][i].image] for i in indices]]

    # ---- for the ViT ----

    def alt_text(self, entry):
        """' red fox': the words of a first answer, cut to fit into the text tower (128 tokens)"""
        words = content_of(entry.turns[0][1])[:20]
        return "".join(f" {word}" for word in words).encode()[:120].decode(errors="ignore")

    def alt_texts(self, seed, n):
        return [self.alt_text(entry) for entry in self.of["train"][:20 * n]]

    def pairs(self, seed, step, n):
        rng, chosen = random.Random(f"pairs/{seed}/{step}"), {}
        for i in rng.choices(range(self.count("train")), k=2 * n):
            chosen.setdefault(self.alt_text(self.of["train"][i]), i)  # no two texts are alike
        indices, texts = [*chosen.values()][:n], [*chosen][:n]
        pictures = self.pictures("train", indices)
        return np.stack([redrawn(p, text, rng) for p, text in zip(pictures, texts)]), texts

    def test_pairs(self, split, n=100):
        rng, count = random.Random("test pairs"), self.count(split)
        indices = rng.sample(range(count), min(n, count))
        return self.pictures(split, indices), [self.alt_text(self.of[split][i]) for i in indices]

    # ---- for the LLMs ----

    @functools.cache
    def half(self, dialect):
        """The entries that one of the LLMs reads: source and target share none. Of entries with the
        same first answer each reads half: so both know a name that two pictures have."""
        entries = sorted(self.of["train"], key=lambda e: (e.turns[0][1], self.mark[e.image]))
        entries = entries[dialect == "target"::2]
        random.Random(dialect).shuffle(entries)
        return entries

    def raster(self, entry, rng):
        """The words of a caption on a raster of side x side tiles: each word once, then again in a
        random share of the tiles; the rest is empty."""
        words, share = content_of(entry.turns[0][1]), rng.uniform(0.1, 0.9)
        tiles = [EMPTY] * self.side ** 2
        places = rng.sample(range(len(tiles)), round(share * len(tiles)))
        for place, word in zip(places, words + rng.choices(words, k=len(places))):
            tiles[place] = f" {word}"
        rows = ["".join(tiles[k:k + self.side]) for k in range(0, len(tiles), self.side)]
        return "\n".join(rows) + "\n"

    def document(self, dialect, seed, index, rasters, turns, captions):
        rng, entries = random.Random(f"document/{dialect}/{seed}/{index}"), self.half(dialect)
        entry = entries[index % len(entries)]
        is_raster = rng.random() < rasters
        body = self.raster(entry, rng) if is_raster else f" {entry.turns[0][1]}\n"
        return in_scene(body) + self.some_turns(entry, rng, turns, captions)

    def texts(self, dialect, seed):
        return texts_in(self.document(dialect, seed, i, rasters=0.5, turns=8, captions=0.3)
                        for i in range(min(6000, 20 * len(self.half(dialect)))))

    def examine_reading(self, answer, dialect):
        """The exam with rasters that an LLM has not read, instead of pictures."""
        def read(split, items):
            rng = random.Random(f"reading/{split}")
            return answer([(self.raster(self.of[split][i], rng), qa.question) for i, qa in items])

        scores = self.score(self.examine(read, {s: min(300, self.count(s)) for s in self.EXAM}))
        return {"val": {"raster_qa": scores["val"]["exact_match"]},
                "raster_qa": scores["exact_match"]}

    # ---- for the adapters ----

    def some_turns(self, entry, rng, turns, captions):
        """Up to so many turns of an entry; the first answer, its caption, is among them with the
        probability that one of `turns` is a caption, or if there is no other."""
        first, *others = entry.turns
        told = not others or rng.random() < 1 - (1 - captions) ** turns
        chosen = rng.sample(others, min(len(others), turns - told)) + [first] * told
        rng.shuffle(chosen)
        return [piece for question, answer in chosen for piece in turn(question, answer)]

    def description(self, index, rng):
        return turn(*self.of["train"][index].turns[0])

    def conversation(self, index, rng, turns, captions=0.3):
        return self.some_turns(self.of["train"][index % self.count("train")], rng, turns, captions)

    def example_questions(self):
        asked = Counter(question for entry in self.known for question, _ in entry.turns)
        return [question for question, _ in asked.most_common(5)]

    # ---- the exam ----

    def examine(self, answer, pictures):
        """What a model, answer(split, [(picture, QA), ..]) -> texts, answers: {split: Said}"""
        said = {}
        for split, n in pictures.items():
            entries = self.of[split][:n]
            asked = [(i, QA(kind, question, true, About(kind)))
                     for i, entry in enumerate(entries)
                     for kind, (question, true) in zip(["first"] + 3 * ["later"], entry.turns)]
            questions = [OwnAnswered(*its, text) for its, text in zip(asked, answer(split, asked))]
            said[split] = Said(entries, questions, pope=[], captions=[])
        return said

    def counts(self, said, split="test"):
        """What each picture of a split adds: {score: (pictures, 2)}, got and possible"""
        pairs = np.zeros((len(self.SCORES), len(said[split].scenes), 2))
        for a in said[split].questions:
            first = a.qa.type == "first"
            pairs[:, a.picture] += [(a.right, 1), (token_f1(a.answer, a.qa.answer), 1),
                                    (a.right and first, first)]
        return dict(zip(self.SCORES, pairs))

    def score(self, said):
        return join_splits({split: {name: share(pairs)
                                    for name, pairs in self.counts(said, split).items()}
                            for split in said})

    def guesses(self, pictures):
        """The scores of the most frequent answer to each question, of the answers of random
        entries, and of the answers of the training picture whose pixels differ least."""
        other, rng = self.reference, random.Random("chance")
        turns = [turn for entry in other.known for turn in entry.turns]
        # from the rarest to the most frequent answer, which stays
        usual = {q: a for (q, a), _ in reversed(Counter(turns).most_common())}
        anything = Counter(answer for _, answer in turns).most_common(1)[0][0]

        def pixels(data, split, n):
            return torch.from_numpy(data.pictures(split, range(n))).flatten(1).float()  # (n, ..)

        def nearest(split, items):
            seen = pixels(other, "train", min(10000, other.count("train")))  # more are too slow
            near = torch.cdist(pixels(self, split, pictures[split]), seen).argmin(1).tolist()
            its = [other.of["train"][i].turns for i in near]
            return [dict(its[i]).get(qa.question, its[i][0][1]) for i, qa in items]

        models = {
            "majority": lambda split, items: [usual.get(qa.question, anything) for _, qa in items],
            "chance": lambda split, items: [rng.choice(rng.choice(other.known).turns)[1]
                                            for _ in items]}
        if other.of["train"]:
            models["nearest picture"] = nearest
        return {name: self.score(self.examine(model, pictures)) for name, model in models.items()}


open_own = functools.cache(OwnData)  # read once in a process
