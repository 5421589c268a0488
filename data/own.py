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

    exact_match    share of answers that are right, but for case, punctuation and articles
    token_f1       how many words an answer shares with the right one
    names_right    exact match of first answers alone: they name what is in a picture
"""
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.bpe import BOS
from data.corpus import EMPTY, in_scene, turn
from data.files import RANK, RANKS, Refused, Stage, checked
from data.pictures import decode, warped
from data.scoring import QA, About, Answered, Said, join_splits

REQUEST = "describe the picture."  # where an entry asks nothing
UNUSABLE = f"[\ufffd\ud800-\udfff]|{re.escape(BOS)}"  # no UTF-8, or no text
BAD_SHARE = 0.05  # if more entries are bad, the file is refused, unless --allow_bad
LEAST = {"train": 20, "val": 4, "test": 4}  # entries
ASKED = ("first", "later", "later", "later")  # turns of a held-out conversation
ARTICLES = {"a", "an", "the"}
NEIGHBOURS = 10000  # training pictures among which the nearest one is looked for, at most
STOP_WORDS = set(
    "a an and are as at be by can for from has have in into is it its not of on or our that the "
    "their them there these they this to was were which who with you your".split())
COLORS = set("red orange yellow green cyan blue purple violet pink brown black white gray grey "
             "gold silver".split())
PLACES = set("left right top bottom upper lower middle center centre corner above below".split())


# ---- reading files ------------------------------------------------------------------------------

class Entry(NamedTuple):
    image: str  # a file name
    turns: list  # [(question, answer), ..]


class BadEntry(Exception):
    """Why an entry cannot be used."""


def read_conversations(path, longest):
    """(the entries that can be used, {why not: [names]}). Raises Refused for a file of no use."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
        if text.lstrip()[:1] != "[":  # an entry a line
            lines = [line for line in text.split("\n") if line.strip()]
            text = "[" + ",\n".join(lines) + "]"
        items = json.loads(text)
    except OSError as error:
        raise Refused(f"cannot read {str(path)!r}: {error.strerror}")
    except (ValueError, RecursionError) as error:
        raise Refused(f"cannot read {str(path)!r} as JSON in UTF-8 ({error}); is it whole?")
    entries, bad = [], defaultdict(list)
    for k, item in enumerate(items, 1):
        try:
            entries.append(read_entry(item, longest))
        except BadEntry as why:
            name = item.get("id") if isinstance(item, dict) else None
            bad[str(why)].append(f"entry {k}" if name is None else f"{name!a:.40}")
    if not entries:
        raise Refused(f"{path}: no usable entry ({listed(bad) or 'empty'}); see data/README.md")
    return entries, bad


def read_entry(item, longest):
    """An Entry, in lower case, as all texts here are: a small LLM has no capital letters to spare.
    Raises BadEntry, also if a question has more bytes than `longest`."""
    try:
        image, messages = item.get("image"), item["conversations"]
        roles = [message["from"] for message in messages]
        texts = [" ".join(message["value"].lower().replace("<image>", " ").split())
                 for message in messages]
    except (AttributeError, KeyError, TypeError):
        raise BadEntry("not in LLaVA's format")
    turns = list(zip(texts[::2], texts[1::2]))
    reasons = {
        "no image": not isinstance(image, str) or not image,
        "human and gpt do not take turns": roles != ["human", "gpt"] * max(1, len(roles) // 2),
        f"bytes that are no UTF-8, or {BOS}": re.search(UNUSABLE, " ".join(texts)),
        "an empty answer": not all(answer for _, answer in turns),
        "a question too long": any(len(q.encode(errors="replace")) > longest for q, _ in turns)}
    for why, holds in reasons.items():
        if holds:
            raise BadEntry(why)
    return Entry(image, [(question or REQUEST, answer) for question, answer in turns])


def listed(bad):
    """{"no image": ["'7'", "'8'"]} -> "no image: 2 ('7', '8')", three names each at most"""
    return "; ".join(f"{why}: {len(names)} ({', '.join(names[:3])}{', ..' * (len(names) > 3)})"
                     for why, names in bad.items())


def judge(path, entries, bad, allow_bad):
    """Say what is left out of a file. Raises Refused if it is too much."""
    left_out = sum(map(len, bad.values()))
    total = left_out + len(entries)
    about = f"{path}: {left_out} of {total} entries cannot be used: {listed(bad)}"
    if not entries or left_out > BAD_SHARE * total and not allow_bad:
        raise Refused(f"{about}; mend them, or use the rest with --allow_bad")
    if left_out and multiprocessing.parent_process() is None:  # lanes do not repeat it
        print(about, flush=True)


# ---- pictures, decoded once ---------------------------------------------------------------------

def decode_all(images, names, size, folder):
    """The pictures of a folder, by name: (array, marks). A mark is the hash of a picture's pixels,
    or "" if it cannot be read.

    array (n, size, size, 3) uint8 is a file that is mapped into memory, so there may be more
    pictures than memory holds. It is made again if a picture changes.
    """
    paths = [Path(images) / name for name in names]
    facts = [[os.path.getsize(path), os.path.getmtime(path)] if os.path.exists(path) else None
             for path in paths]
    what = json.dumps([str(Path(images).resolve()), size, names, facts])
    stage = Stage(folder, hashlib.sha256(what.encode()).hexdigest()[:16], {})
    config, target = stage.config(), stage.folder / "pixels"
    if RANKS > 1:
        torch.distributed.barrier()  # all have looked before the first begins
    if config is None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        stage.finish(marks=decode(paths, size, target) if RANK == 0 else None)
        config = stage.config()
    array = np.memmap(checked(target), np.uint8, "r", shape=(len(names), size, size, 3))
    return array, config["marks"]


def redrawn(picture, text, rng):
    """Another drawing of the same thing: a picture (size, size, 3) moved a little; if its text
    names no place, of another size and proportion, too, and turned a little; and, if it names no
    colour, in a quarter of cases without them. A ViT that sees the same few pictures again and
    again would learn them by heart, and not what they show."""
    words = set(text.split())
    y, x = (len(picture) * rng.uniform(-1, 1) / 24 for _ in range(2))
    more = {} if words & PLACES else dict(
        zoom=rng.uniform(0.7, 1.4), stretch=rng.uniform(0.85, 1.18), angle=rng.uniform(-0.25, 0.25))
    other = warped(picture, y, x, **more)
    if not words & COLORS and rng.random() < 0.25:
        other = other.convert("L").convert("RGB")
    return np.asarray(other)


# ---- texts --------------------------------------------------------------------------------------

def words_of(text, without=ARTICLES):
    """The words of a text, without case, punctuation and these: so answers are compared, as in
    SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250). If there is nothing else, that counts.

    >>> words_of("The red-hot fox!"), words_of("?")
    (['red', 'hot', 'fox'], ['?'])
    """
    text = text.lower()
    plain = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return [word for word in plain.split() if word not in without] or text.split()


def token_f1(answer, true):
    """The words that two answers share: 2 |answer & true| / (|answer| + |true|)"""
    answer, true = Counter(words_of(answer)), Counter(words_of(true))
    return 2 * (answer & true).total() / (answer.total() + true.total())


def scattered(words, side, rng):
    """A caption's words on a raster of side x side tiles: each word once, then again in a random
    share of the tiles; the rest is empty."""
    tiles, share = [EMPTY] * side * side, rng.uniform(0.1, 0.9)
    places = rng.sample(range(len(tiles)), round(share * len(tiles)))
    for place, word in zip(places, words + rng.choices(words, k=len(places))):
        tiles[place] = f" {word}"
    rows = [tiles[k:k + side] for k in range(0, len(tiles), side)]
    return "".join("".join(row) + "\n" for row in rows)


# ---- the data -----------------------------------------------------------------------------------

class OwnAnswered(Answered):
    """An answer is right but for case, punctuation and articles."""

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
    files          the hash of what a model was trained on: it must be the same still
    """
    SPLITS = ("train", "val", "test")
    EXAM = ("val", "test")
    SCORES = ("exact_match", "token_f1", "names_right")
    kinds = {}  # nothing is known of objects
    alt_V = 4000  # vocabulary of the ViT's text tower

    def __init__(self, data, images, folder, val="", size=48, side=6, pictures=10 ** 6,
                 test_pictures=600, allow_bad=False, exam=False, files=None):
        self.fields = dict(data=data, images=images, val=val, size=size, side=side,
                           pictures=pictures, test_pictures=test_pictures, allow_bad=allow_bad)
        self.side, paths = side, [path for path in (data, val) if path]
        # a token is a byte or more: with the patches, a question then fits into a context of 512
        read = [read_conversations(path, min(400, 480 - side * (side + 1))) for path in paths]
        names = sorted({entry.image for entries, _ in read for entry in entries})
        self.array, marks = decode_all(images, names, size, folder)
        self.row, self.mark = {name: i for i, name in enumerate(names)}, dict(zip(names, marks))
        kept = []
        for path, (entries, bad) in zip(paths, read):
            kept.append([entry for entry in entries if self.mark[entry.image]])
            for image in [entry.image for entry in entries if not self.mark[entry.image]]:
                there = os.path.exists(Path(images) / image)
                why = "a picture that cannot be read" if there else "a missing picture"
                bad[why].append(f"{image!a:.40}")
            judge(path, kept[-1], bad, allow_bad)
        self.sums = {"files": hashlib.sha256(ascii([kept, marks]).encode()).hexdigest()[:16]}
        if files not in (None, self.sums["files"]):
            raise Refused(f"{data!r} or its pictures are not what the models were trained on; undo "
                          "that, or train into another --out")
        self.of = defaultdict(list)  # {split: [Entry]}
        if exam:
            self.of["test"] = kept[0]
        else:
            self.deal({"train": pictures, "val": max(1, test_pictures // 2), "test": test_pictures},
                      *kept)
        self.sampled = min(10000, 20 * len(self.of["train"]))
        self.reference = self  # whose training pictures guesses may know
        self.known = self.of["train"] or self.of["test"]
        self.request = Counter(entry.turns[0][0] for entry in self.known).most_common(1)[0][0]

    def deal(self, limits, train, held=()):
        """Deal the entries to the splits: by their pixels, so a picture is in one of them only."""
        taken = {self.mark[entry.image] for entry in held}
        train = [entry for entry in train if self.mark[entry.image] not in taken]
        some = ["train"] if held else ["train"] * 8 + ["val", "test"]
        for entries, sides in ((train, some), (held, ["val", "test"])):
            for entry in entries:
                self.of[sides[int(self.mark[entry.image], 16) % len(sides)]].append(entry)
        for split, most in limits.items():
            if len(self.of[split]) < LEAST[split]:
                raise Refused(f"--data has only {len(self.of[split])} entries for {split}, "
                              f"{LEAST[split]} are needed; a picture's pixels decide its split")
            random.Random(split).shuffle(self.of[split])
            del self.of[split][most:]

    def config(self):
        return {"kind": "own", **self.fields, **self.sums}

    def count(self, split):
        return len(self.of[split])

    def pictures(self, split, indices):
        return self.array[[self.row[self.of[split][i].image] for i in indices]]

    # ---- for the ViT ----

    def alt_text(self, entry):
        """' red fox': the words of a first answer, cut to fit into the text tower (128 tokens)"""
        words = words_of(entry.turns[0][1], STOP_WORDS)[:20]
        return "".join(f" {word}" for word in words).encode()[:120].decode(errors="ignore")

    def alt_texts(self, seed, n):
        return [self.alt_text(entry) for entry in self.of["train"][:20 * n]]

    def pairs(self, seed, step, n, of):
        rng, chosen = random.Random(f"pairs/{seed}/{step}"), {}
        for i in rng.choices(range(self.count("train")), k=2 * n):
            chosen.setdefault(self.alt_text(self.of["train"][i]), i)  # no two texts are alike
        return self.drawn("train", [*chosen.values()][:n], rng, of)

    def test_pairs(self, split, k, of, n=100):
        rng, count = random.Random(f"test pairs/{k}"), self.count(split)
        return self.drawn(split, rng.sample(range(count), min(n, count)), rng, of)

    def drawn(self, split, indices, rng, of):
        """Pictures and their texts, or other drawings; those of training are redrawn."""
        pictures = self.pictures(split, indices)
        texts = [self.alt_text(self.of[split][i]) for i in indices]

        def again():
            return np.stack([redrawn(p, text, rng) for p, text in zip(pictures, texts)])

        first = again() if split == "train" else pictures
        return first, texts if of == "texts" else again()

    # ---- for the LLMs ----

    @functools.cache
    def half(self, dialect):
        """The entries that one of the LLMs reads: source and target share none. Of entries with the
        same first answer each reads half: so both know a name that two pictures have."""
        entries = sorted(self.of["train"], key=lambda entry: (
            entry.turns[0][1], self.mark[entry.image]))[dialect == "target"::2]
        random.Random(dialect).shuffle(entries)
        return entries

    def raster(self, entry, rng):
        return scattered(words_of(entry.turns[0][1], STOP_WORDS), self.side, rng)

    def document(self, dialect, seed, index, rasters, turns, captions):
        rng, entries = random.Random(f"document/{dialect}/{seed}/{index}"), self.half(dialect)
        entry = entries[index % len(entries)]
        is_raster = rng.random() < rasters
        body = self.raster(entry, rng) if is_raster else f" {entry.turns[0][1]}\n"
        return in_scene(body) + self.some_turns(entry, rng, turns, captions)

    def texts(self, dialect, seed):
        for i in range(min(6000, 20 * len(self.half(dialect)))):
            for text, _ in self.document(dialect, seed, i, rasters=0.5, turns=8, captions=0.3):
                yield text.replace(BOS, "")

    def examine_reading(self, answer, dialect):
        """The exam with rasters that an LLM has not read, instead of pictures."""
        def read(split, items):
            rng = random.Random(f"reading/{split}")
            return answer([(self.raster(self.of[split][i], rng), qa.question) for i, qa in items])

        said = self.examine(read, {split: min(300, self.count(split)) for split in self.EXAM})
        return join_splits({split: {"raster_qa": float(np.mean([a.right for a in its.questions]))}
                            for split, its in said.items()})

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
                     for kind, (question, true) in zip(ASKED, entry.turns)]
            answered = zip(asked, answer(split, asked))
            questions = [OwnAnswered(i, qa, text) for (i, qa), text in answered]
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
        scores = {}
        for split in said:
            sums = {name: pairs.sum(0) for name, pairs in self.counts(said, split).items()}
            scores[split] = {name: float(got / possible) for name, (got, possible) in sums.items()}
        return join_splits(scores)

    def guesses(self, pictures):
        """The scores of the most frequent answer to each question, of the answers of random
        entries, and of the answers of the training picture whose pixels differ least."""
        known, rng, answers = self.reference.known, random.Random("chance"), defaultdict(Counter)
        for entry in known:
            for question, answer in entry.turns:
                answers[question][answer] += 1
                answers[""][answer] += 1  # for questions that were never asked
        usual = {question: its.most_common(1)[0][0] for question, its in answers.items()}

        def nearest(split, items):
            near = self.nearest(split, pictures[split])
            return [dict(near[i].turns).get(qa.question, near[i].turns[0][1]) for i, qa in items]

        models = {
            "majority": lambda split, items: [usual.get(qa.question, usual[""]) for _, qa in items],
            "chance": lambda split, items: [rng.choice(rng.choice(known).turns)[1] for _ in items]}
        if self.reference.of["train"]:
            models["nearest picture"] = nearest
        return {name: self.score(self.examine(model, pictures)) for name, model in models.items()}

    def nearest(self, split, n):
        """For each of a split's first n pictures, the known entry whose pixels differ least."""
        other = self.reference
        rows = [other.row[entry.image] for entry in other.known[:NEIGHBOURS]]
        x, y = (torch.from_numpy(pictures).flatten(1).float()  # 2 x (pictures, pixels)
                for pictures in (self.pictures(split, range(n)), other.array[rows]))
        return [other.known[i] for i in torch.cdist(x, y).argmin(1).tolist()]


open_own = functools.cache(OwnData)  # read once in a process
