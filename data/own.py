"""Pictures and conversations of your own, as the stages see them (the interface is in dataset.py).

    python train.py --data train.json --images DIR

A file is a JSON list of entries in LLaVA's format, or JSON lines, one entry each:

    [{"id": "1", "image": "animals/fox.png", "conversations": [
        {"from": "human", "value": "<image>\\nwhat is this?"},
        {"from": "gpt", "value": "a red fox."}, ..]}, ..]

The first answer is the caption. Where things are in a picture is not known, only what is said about
it: so the LLMs learn to read rasters in which the words of a caption are scattered. Nothing of a
file is trusted: an entry that cannot be used is left out and counted. The scores:

    exact_match    share of answers that are right, but for case, punctuation and articles
    token_f1       how many words an answer shares with the right one
    names_right    exact match of first answers alone, which say what there is
"""
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.bpe import BOS
from data.corpus import EMPTY, in_scene, turn
from data.files import RANK, RANKS, Refused, read_sealed, write_sealed
from data.pictures import read_picture, warped
from data.scoring import QA, About, Answered, join_splits

REQUEST = "describe the picture."  # where an entry asks nothing
LONGEST_QUESTION, LONGEST_ANSWER = 400, 2000  # in bytes: with a picture, they fit into a context
BAD_SHARE = 0.05  # more bad entries are refused, unless --allow_bad
ASKED = 4  # turns of a held-out conversation, at most, that are asked
LEAST = {"train": 20, "val": 4, "test": 4}  # pictures
NEIGHBOURS = 20000  # training pictures among which the nearest one is looked for
STOP_WORDS = set(
    "a an and are as at be by can for from has have in into is it its not of on or our that the "
    "their them there these they this to was were which who with you your".split())
COLORS = set("red orange yellow green cyan blue purple violet pink brown black white gray grey "
             "gold silver".split())
PLACES = set("left right top bottom upper lower middle center centre corner above below".split())


# ---- reading files ------------------------------------------------------------------------------

class Entry(NamedTuple):
    name: str  # its id, or where it is in the file
    image: str  # a file name
    turns: list  # [(question, answer), ..]


class BadEntry(Exception):
    """Why an entry cannot be used."""


def read_conversations(path):
    """(the entries that can be used, {why not: [names]}). Raises Refused for a file of no use."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise Refused(f"cannot read {str(path)!r}: {error.strerror}; expected a file of "
                      "conversations") from error
    entries, bad = [], defaultdict(list)
    for name, item in items_of(path, text):
        if isinstance(item, dict) and "id" in item:
            name = str(item["id"])
        try:
            entries.append(read_entry(name, item))
        except BadEntry as why:
            bad[str(why)].append(name if len(name) < 40 else f"{name[:37]}...")
    if not entries:
        why = "; ".join(list_bad(bad)) or "it is empty"
        raise Refused(f"{str(path)!r} holds no conversation that can be used ({why}); expected a "
                      'list of {"id", "image", "conversations": [{"from": "human", "value": ..}, '
                      '{"from": "gpt", "value": ..}]}')
    return entries, bad


def items_of(path, text):
    """What a JSON file lists, [(name, item), ..]; the item is None for a line that is no JSON."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.split("\n")
        if text.lstrip()[:1] != "{" or len(lines) == 1:
            raise Refused(f"cannot read {str(path)!r} as JSON ({error}); is it whole?")
        return [(f"line {i}", parsed(line)) for i, line in enumerate(lines, 1) if line.strip()]
    whole = whole if isinstance(whole, list) else [whole]
    return [(f"entry {i}", item) for i, item in enumerate(whole)]


def parsed(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_entry(name, item):
    """An Entry. Raises BadEntry."""
    if item is None:
        raise BadEntry("no JSON")
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise BadEntry("no list of conversations")
    image = item.get("image")
    if not isinstance(image, str) or not image or "\0" in image:
        raise BadEntry("no image" if image is None else "the image is no file name")
    texts = [read_message(message, k) for k, message in enumerate(item["conversations"])]
    if not texts or len(texts) % 2:
        raise BadEntry("a question without an answer")
    turns = []
    for question, answer in zip(texts[::2], texts[1::2]):
        turns.append((" ".join(question.replace("<image>", " ").split()) or REQUEST,
                      " ".join(answer.split())))
    if not all(answer for _, answer in turns):
        raise BadEntry("an empty answer")
    if any(len(question.encode()) > LONGEST_QUESTION or len(answer.encode()) > LONGEST_ANSWER
           for question, answer in turns):
        raise BadEntry("a text too long for the context")
    return Entry(name, image, turns)


def read_message(message, k):
    """The text of message k of a conversation, in lower case, as all texts here are: a small LLM
    has no capital letters to spare. Raises BadEntry."""
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise BadEntry("a message without a text")
    role, expected = message.get("from"), ("human", "gpt")[k % 2]
    if role != expected:
        raise BadEntry("human and gpt do not take turns" if role in ("human", "gpt") else
                       f"the role {str(role)[:20]!r}, not human or gpt")
    text = message["value"].lower().replace(BOS, "")
    if re.search("[\ufffd\ud800-\udfff]", text):  # what could not be decoded, or encoded again
        raise BadEntry("bytes that are no UTF-8")
    return text


def list_bad(bad):
    """'a missing picture: 3 (a.png, b.png, c.png)' for each kind"""
    return [f"{why}: {len(names)} ({', '.join(names[:3])}{', ..' if len(names) > 3 else ''})"
            for why, names in bad.items()]


def judge(path, entries, bad, allow_bad):
    """Say what was left out. Raises Refused if it was too much."""
    left_out = sum(map(len, bad.values()))
    total = len(entries) + left_out
    about = f"{left_out} of {total} entries"
    if left_out > BAD_SHARE * total and not allow_bad:
        raise Refused(f"{str(path)!r}: {about} cannot be used ({'; '.join(list_bad(bad))}); mend "
                      "them, or train on the rest with --allow_bad")
    if left_out and multiprocessing.parent_process() is None:  # lanes do not repeat it
        print(f"{path}: {about} are left out: {'; '.join(list_bad(bad))}", flush=True)


# ---- pictures, decoded once ---------------------------------------------------------------------

def decode_all(images, names, size, folder):
    """The pictures of a folder, by name: (array, marks). A mark is the hash of a picture's pixels,
    or why it cannot be read.

    array (n, size, size, 3) uint8 is a file in `folder` that is mapped into memory, so there may be
    more pictures than memory holds; it is made again if a picture changes.
    """
    files = [[name, *size_and_time(Path(images) / name)] for name in names]
    what = hashlib.sha256(json.dumps([str(Path(images).resolve()), size, names]).encode())
    path = Path(folder) / f"{what.hexdigest()[:16]}.npy"
    index = path.with_suffix(".json")
    if RANK == 0 and not (path.exists() and index.exists()
                          and read_sealed(index)["files"] == files):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(index, {"files": files, "marks": decode(images, names, size, path)})
    if RANKS > 1:
        torch.distributed.barrier()  # the others wait for the first
    return np.load(path, mmap_mode="r"), read_sealed(index)["marks"]


def size_and_time(path):
    """What changes when a file does; (0, 0) if there is none"""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except (OSError, ValueError):  # a name may be no name
        return 0, 0


def decode(images, names, size, path):
    """Decode pictures, a thousand at a time, into a .npy file. Returns their marks."""
    aside, marks = path.with_suffix(".new"), []
    array = np.lib.format.open_memmap(aside, "w+", np.uint8, (len(names), size, size, 3))

    def decode_one(i):
        try:
            array[i] = read_picture(Path(images) / names[i], size).numpy()[0]
        except (Refused, MemoryError) as error:
            return f"{names[i]!r}: {error}"
        return hashlib.sha256(array[i].tobytes()).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in tqdm(range(0, len(names), 1000), "decoding, in thousands", leave=False):
            marks += pool.map(decode_one, range(start, min(start + 1000, len(names))))
    array.flush()
    os.replace(aside, path)
    return marks


def redrawn(picture, text, rng):
    """Another drawing of the same thing: a picture (size, size, 3) moved a little; if its text
    names no place, of another size and proportion, too, and turned a little; and, if it names no
    colour, in a quarter of cases without them. A ViT that sees the same few pictures again and
    again would learn them by heart, and not what they show."""
    words, (y, x) = set(text.split()), (len(picture) * rng.uniform(-1, 1) / 24 for _ in range(2))
    if words & PLACES:
        other = warped(picture, y, x)
    else:
        zoom, stretch = rng.uniform(0.7, 1.4), rng.uniform(0.85, 1.18)
        other = warped(picture, y, x, zoom, stretch, rng.uniform(-0.25, 0.25))
    if not words & COLORS and rng.random() < 0.25:
        other = other.convert("L").convert("RGB")
    return np.asarray(other)


# ---- texts --------------------------------------------------------------------------------------

def content_words(text):
    """The words of a text that say what is in a picture.

    >>> content_words("there is a red fox at the top.")
    ['red', 'fox', 'top']
    """
    return [word for word in re.findall(r"[^\W_]+", text) if word not in STOP_WORDS]


def normal(text):
    """An answer as it is compared: without case, punctuation and articles, as SQuAD does it
    (Rajpurkar et al. 2016, arXiv 1606.05250). -> [word, ..]"""
    words = re.findall(r"[^\W_]+", text.lower())
    return [word for word in words if word not in ("a", "an", "the")]


def token_f1(answer, true):
    """The words that two answers share: 2 |answer & true| / (|answer| + |true|)"""
    answer, true = normal(answer), normal(true)
    if not answer or not true:
        return float(answer == true)
    return 2 * (Counter(answer) & Counter(true)).total() / (len(answer) + len(true))


def scattered(words, side, rng):
    """A caption's words on a raster of side x side tiles: each word once, then again in a random
    share of the tiles; the rest is empty."""
    tiles, share = [EMPTY] * side * side, rng.uniform(0.1, 0.9)
    if words:
        places = rng.sample(range(len(tiles)), round(share * len(tiles)))
        for place, word in zip(places, words + rng.choices(words, k=len(places))):
            tiles[place] = f" {word}"
    rows = [tiles[k:k + side] for k in range(0, len(tiles), side)]
    return "".join("".join(row) + "\n" for row in rows)


def number_of(text):
    """A number that depends on nothing but a text; it fits into an int64."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) >> 1


@functools.lru_cache(2)
def order_of(n, seed):
    """A random order of n things."""
    return random.Random(seed).sample(range(n), n)


# ---- the data -----------------------------------------------------------------------------------

class OwnAnswered(Answered):
    """An answer is right but for case, punctuation and articles."""

    @property
    def right(self):
        return normal(self.answer) == normal(self.qa.answer)


class OwnSaid(NamedTuple):
    """What a model answered about the pictures of a split."""
    questions: list  # [OwnAnswered]
    pictures: int


@functools.cache
def open_own(data, images, folder, *settings, **more):
    """An OwnData; it is read once in a process."""
    return OwnData(data, images, folder, *settings, **more)


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
        self.fields = {"data": data, "images": images, "val": val, "size": size, "side": side,
                       "pictures": pictures, "test_pictures": test_pictures,
                       "allow_bad": allow_bad}
        self.side = side
        files = [data, val] if val else [data]
        read = [read_conversations(file) for file in files]
        names = sorted({entry.image for entries, _ in read for entry in entries})
        self.array, marks = decode_all(images, names, size, folder)
        self.row, self.mark = {name: i for i, name in enumerate(names)}, dict(zip(names, marks))
        kept = []
        for file, (entries, bad) in zip(files, read):
            kept.append([])
            for entry in entries:
                mark = self.mark[entry.image]
                if len(mark) == 64:  # a hash
                    kept[-1].append(entry)
                else:
                    bad["a missing picture" if "there is no picture" in mark else
                        "a picture that cannot be read"].append(entry.image)
            judge(file, kept[-1], bad, allow_bad)
        hashes = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
        self.sums = {"files": [*hashes, hashlib.sha256(" ".join(marks).encode()).hexdigest()]}
        self.of = {split: [] for split in self.SPLITS}
        if exam:
            (self.of["test"],) = kept
        else:
            self.deal(kept, {"train": pictures, "val": max(1, test_pictures // 2),
                             "test": test_pictures})
        self.reference = self  # whose training pictures guesses may know
        self.known = self.of["train"] or self.of["test"]
        asked = Counter(question for entry in self.known for question, _ in entry.turns)
        self.common = [question for question, _ in asked.most_common(5)]
        first = Counter(entry.turns[0][0] for entry in self.known)
        self.request = first.most_common(1)[0][0]

    def deal(self, kept, limits):
        """Deal the entries to the splits: by their pixels, so a picture is in one of them only."""
        train, *held = kept
        held = [entry for entries in held for entry in entries]
        taken = {self.mark[entry.image] for entry in held}
        for entry in train:
            split = {0: "val", 1: "test"}.get(number_of(self.mark[entry.image]) % 10, "train")
            if not held:
                self.of[split].append(entry)
            elif self.mark[entry.image] not in taken:
                self.of["train"].append(entry)
        for entry in held:
            self.of["val" if number_of(self.mark[entry.image]) % 2 else "test"].append(entry)
        for split, least in LEAST.items():
            if len(self.of[split]) < least:
                raise Refused(f"{self.fields['data']!r}: only {len(self.of[split])} pictures for "
                              f"{split}, {least} are needed; the split of a picture depends on its "
                              "pixels")
            random.Random(split).shuffle(self.of[split])
            self.of[split] = self.of[split][:limits[split]]

    def config(self):
        return {"kind": "own", **self.fields}

    def count(self, split):
        return len(self.of[split])

    def pictures(self, split, indices):
        return np.stack([self.array[self.row[self.of[split][i].image]] for i in indices])

    # ---- for the ViT ----

    def alt_text(self, entry):
        """' red fox': the words of a first answer, twenty at most"""
        words = content_words(entry.turns[0][1])[:20] or ["picture"]
        return "".join(f" {word}" for word in words)

    def alt_texts(self, seed, n):
        return [self.alt_text(entry) for entry in self.of["train"][:20 * n]]

    @functools.cached_property
    def twins(self):
        """Where captions are found that differ in one word: {a caption less a word: entries}"""
        found = defaultdict(list)
        for i, entry in enumerate(self.of["train"]):
            words = self.alt_text(entry).split()
            for k in range(len(words)):
                found[number_of(" ".join(sorted(words[:k] + words[k + 1:])))].append(i)
        return found

    def twin(self, i, rng):
        """The index of a training picture whose caption differs in one word; i if none is met."""
        words = self.alt_text(self.of["train"][i]).split()
        for k in rng.sample(range(len(words)), len(words)):
            key = number_of(" ".join(sorted(words[:k] + words[k + 1:])))
            for other in rng.choices(self.twins[key], k=4):
                if sorted(self.alt_text(self.of["train"][other]).split()) != sorted(words):
                    return other
        return i

    def pairs(self, seed, step, n, of):
        rng, train = random.Random(f"pairs/{seed}/{step}"), self.of["train"]
        chosen, texts = [], set()
        while len(chosen) < n:
            anchor = rng.randrange(len(train))
            for i in (anchor, self.twin(anchor, rng)):
                text = self.alt_text(train[i])
                if text not in texts or rng.random() < 0.05:  # captions may all be alike
                    texts.add(text)
                    chosen.append(i)
        return self.drawn("train", chosen[:n], rng, of)

    def test_pairs(self, split, k, of, n=100):
        count = len(self.of[split])
        indices = [i % count for i in range(k * n, k * n + min(n, count))]
        return self.drawn(split, indices, random.Random(k), of)

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
            entry.turns[0][1], number_of(self.mark[entry.image])))
        return entries[dialect == "target"::2]

    def document(self, dialect, seed, index, rasters, turns, captions):
        rng, entries = random.Random(f"document/{dialect}/{seed}/{index}"), self.half(dialect)
        epoch, place = divmod(index, len(entries))
        entry = entries[order_of(len(entries), f"{seed}/{epoch}")[place]]
        caption = entry.turns[0][1]
        body = f" {caption}\n"
        if rng.random() < rasters:
            body = scattered(content_words(caption), self.side, rng)
        return in_scene(body) + self.some_turns(entry, rng, turns, captions)

    def texts(self, dialect, seed):
        for i in range(min(6000, 20 * len(self.half(dialect)))):
            for text, _ in self.document(dialect, seed, i, rasters=0.5, turns=8, captions=0.3):
                yield text.replace(BOS, "")

    def examine_reading(self, answer, dialect):
        """Does an LLM answer from rasters, and from sentences, that it has not read?"""
        scores = {}
        for split in self.EXAM:
            rng, asked, scores[split] = random.Random(f"reading/{split}"), defaultdict(list), {}
            for entry in self.of[split][:300]:
                question, true = entry.turns[0]
                words = scattered(content_words(true), self.side, rng)
                asked["raster_qa"].append((words, question, true))
                asked["text_qa"].append((f" {true}\n", question, true))
            for name, items in asked.items():
                texts = answer([(body, question) for body, question, _ in items])
                scores[split][name] = float(np.mean([
                    normal(text) == normal(true) for text, (_, _, true) in zip(texts, items)]))
        return join_splits(scores)

    # ---- for the adapters ----

    @property
    def sampled(self):
        return min(10000, 20 * len(self.of["train"]))

    def some_turns(self, entry, rng, turns, captions):
        """Up to so many turns of an entry; the first answer, its caption, is among them with the
        probability that one of `turns` is a caption, or if there is no other."""
        first, *others = entry.turns
        told = not others or rng.random() < 1 - (1 - captions) ** turns
        chosen = rng.sample(others, min(len(others), turns - told))
        if told:
            chosen.insert(rng.randint(0, len(chosen)), first)
        return [piece for question, answer in chosen for piece in turn(question, answer)]

    def description(self, index, rng):
        return turn(*self.of["train"][index].turns[0])

    def conversation(self, index, rng, turns, captions=0.3):
        entry = self.of["train"][index % len(self.of["train"])]
        return self.some_turns(entry, rng, turns, captions)

    def example_questions(self):
        return self.common

    # ---- the exam ----

    def examine(self, answer, pictures):
        """What a model, answer(split, [(picture, QA), ..]) -> texts, answers: {split: OwnSaid}"""
        said = {}
        for split, n in pictures.items():
            asked = []
            for i, entry in enumerate(self.of[split][:n]):
                for k, (question, true) in enumerate(entry.turns[:ASKED]):
                    kind = "later" if k else "first"
                    asked.append((i, QA(kind, question, true, About(kind))))
            texts = answer(split, asked)
            said[split] = OwnSaid([OwnAnswered(i, qa, text)
                                   for (i, qa), text in zip(asked, texts)], n)
        return said

    def tally(self, said):
        """{score: [[got, possible], ..]} of a split's pictures"""
        result = {name: [[0, 0] for _ in range(said.pictures)] for name in self.SCORES}
        for a in said.questions:
            worth = {"exact_match": int(a.right), "token_f1": token_f1(a.answer, a.qa.answer)}
            if a.qa.type == "first":
                worth["names_right"] = worth["exact_match"]
            for name, got in worth.items():
                result[name][a.picture][0] += got
                result[name][a.picture][1] += 1
        return result

    def counts(self, said):
        return self.tally(said["test"])

    def score(self, said):
        by_split = {}
        for split, of_split in said.items():
            sums = {name: np.sum(pairs, axis=0) for name, pairs in self.tally(of_split).items()}
            by_split[split] = {name: float(got / max(1, possible))
                               for name, (got, possible) in sums.items()}
        return join_splits(by_split)

    def guesses(self, pictures):
        """The scores of models that do not look, or that compare pixels: the most frequent answer
        of each question, the answers of random entries, and of the nearest training picture."""
        answers, rng, known = defaultdict(Counter), random.Random("chance"), self.reference.known
        for entry in known:
            for question, answer in entry.turns:
                answers[question][answer] += 1
                answers[""][answer] += 1

        def majority(split, items):
            counters = [answers.get(qa.question) or answers[""] for _, qa in items]
            return [counter.most_common(1)[0][0] for counter in counters]

        def chance(split, items):
            return [rng.choice(rng.choice(known).turns)[1] for _ in items]

        def nearest(split, items):
            near = [known[i] for i in self.nearest(split, pictures[split])]
            return [dict(near[i].turns).get(qa.question, near[i].turns[0][1]) for i, qa in items]

        models = {"majority": majority, "chance": chance}
        if self.reference.of["train"]:
            models["nearest picture"] = nearest
        return {name: self.score(self.examine(model, pictures)) for name, model in models.items()}

    def nearest(self, split, n):
        """Of each of a split's first n pictures, the index of the known one whose pixels differ
        least."""
        other, best = self.reference, torch.full((n,), torch.inf)
        known = [other.row[entry.image] for entry in other.known[:NEIGHBOURS]]
        x = torch.from_numpy(self.pictures(split, range(n))).flatten(1).float()  # (n, pixels)
        found = torch.zeros(n, dtype=torch.long)
        for start in range(0, len(known), 1000):
            some = torch.from_numpy(other.array[known[start:start + 1000]]).flatten(1).float()
            least, which = torch.cdist(x, some).min(1)
            closer = least < best
            best[closer], found[closer] = least[closer], which[closer] + start
        return found.tolist()
