"""Pictures and conversations of your own, as the stages see them (the seam is in dataset.py).

    python train.py --data train.json --images DIR

Where things are in a picture is not known, only what is said about it. So the LLMs learn to read
grids in which the words of a caption are scattered,

    scene:
     . fox . . red .
     . . fox fox . .
     ..
    question: what is this? a red fox.

unless there are texts, entries without an image, that give scenes of their own. The scores, where a
model is any functions that answer and find:

    exact_match    share of answers that are right, but for case, punctuation and articles
    caption_exact  the same of first answers alone, which say what there is
    token_f1       how many words an answer shares with the right one
    retrieval      how often, among 50 pictures, a first answer is likeliest about its own
"""
import functools
import hashlib
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.bpe import BOS
from data.conversations import content_words, normal, read_conversations, token_f1
from data.corpus import NOTHING, PREFIX, in_lines, in_scene, turn
from data.files import Refused, hash_of
from data.pictures import decode_all, warped
from data.scoring import QA, About, Answered, join_splits

SCENE = PREFIX.removeprefix(BOS)  # how a text begins that gives a scene
ASKED = 4  # turns of a held-out conversation, at most, that are asked
AMONG = 50  # pictures, of which one is to be found
COLORS = set("red orange yellow green cyan blue purple violet pink brown black white gray grey "
             "gold silver".split())
PLACES = set("left right top bottom upper lower middle center centre corner above below".split())
LEAST = {"train": 20, "val": 4, "test": 4}  # pictures


class OwnAnswered(Answered):
    """An answer is right but for case, punctuation and articles."""

    @property
    def right(self):
        return normal(self.answer) == normal(self.qa.answer)


class OwnSaid(NamedTuple):
    """What a model said about the pictures of a split."""
    questions: list  # [OwnAnswered]
    found: list  # whether it found the picture of each first answer
    pictures: int


@functools.lru_cache(2)
def order_of(n, seed):
    """A random order of n things."""
    return random.Random(seed).sample(range(n), n)


def hash_of_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def number_of(text):
    """A number that depends on nothing but a text."""
    return int(hash_of_text(text)[:16], 16)


def scattered(words, side, rng):
    """A caption's words on a grid of side x side tiles: each word once, then again in a random
    share of the tiles; the rest says 'nothing here'."""
    tiles, share = [NOTHING] * side * side, rng.uniform(0.1, 0.9)
    if words:
        places = rng.sample(range(len(tiles)), round(share * len(tiles)))
        said = words + rng.choices(words, k=len(places))
        for place, word in zip(places, said):
            tiles[place] = f" {word}"
    rows = [tiles[k:k + side] for k in range(0, len(tiles), side)]
    return "".join("".join(row) + "\n" for row in rows)


def varied(pictures, texts, rng):
    """Other drawings of the same things: each picture (n, size, size, 3) moved a little; if its
    text names no place, of another size and proportion, too, and turned a little; and, if it names
    no colour, a quarter of them without theirs. A ViT that sees the same few pictures again and
    again would learn them by heart, and not what they show."""
    return np.stack([redrawn(picture, set(text.split()), rng)
                     for picture, text in zip(pictures, texts)])


def redrawn(picture, words, rng):
    """One of them: a picture (size, size, 3), and the words of its text"""
    y, x = (len(picture) * rng.uniform(-1, 1) / 24 for _ in range(2))
    if words & PLACES:
        other = warped(picture, y, x)
    else:
        zoom, stretch = rng.uniform(0.7, 1.4), rng.uniform(0.85, 1.18)
        other = warped(picture, y, x, zoom, stretch, rng.uniform(-0.25, 0.25))
    if not words & COLORS and rng.random() < 0.25:
        other = other.convert("L").convert("RGB")
    return np.asarray(other)


@functools.cache
def open_own(conversations, images, folder, **settings):
    """An OwnData; it is read once in a process."""
    return OwnData(conversations, images, folder, **settings)


class OwnData:
    """Pictures and conversations from files. Raises Refused if too much of them is bad.

    conversations, images   the file of entries (conversations.py), and the folder of pictures
    folder                  where pictures are kept as they were decoded
    val                     a file of what is held out; without one, a fifth is, by a hash of pixels
    size, side              of a picture, in pixels and in patches
    train_pictures, test_pictures   at most
    exam                    a file that is only an exam: all of it is the test split
    """
    SPLITS = ("train", "val", "test")
    EXAM = ("val", "test")
    SCORES = ("exact_match", "token_f1", "caption_exact", "retrieval")
    kinds = {}  # nothing is known of objects
    alt_V = 4000  # vocabulary of the ViT's text tower

    def __init__(self, conversations, images, folder, val="", size=48, side=6,
                 train_pictures=10 ** 6, test_pictures=600, allow_bad=False, exam=False):
        self.settings = {
            "conversations": str(conversations), "images": str(images), "val": str(val),
            "size": size, "side": side, "train_pictures": train_pictures,
            "test_pictures": test_pictures, "allow_bad": allow_bad}
        self.side, self.limits = side, {"train": train_pictures, "test": test_pictures,
                                        "val": max(1, test_pictures // 2)}
        files = [Path(conversations), *([Path(val)] if val else [])]
        read = [read_conversations(file) for file in files]
        names = sorted({entry.image for entries, _ in read for entry in entries if entry.image})
        if not names:
            raise Refused(f"{str(conversations)!r}: no entry has an image")
        self.array, marks = decode_all(images, names, size, folder)
        self.sums = [*map(hash_of, files), hash_of_text(" ".join(marks))]  # of all that is read
        self.row = {name: row for row, name in enumerate(names)}
        self.mark = dict(zip(names, marks))
        kept = []
        for entries, problems in read:
            kept.append([entry for entry in entries if self.is_seen(entry, problems)])
            problems.judge(allow_bad)
        self.of = {split: [] for split in self.SPLITS}
        self.texts_of = {split: [] for split in self.SPLITS}
        if exam:
            self.of["test"] = [entry for entry in kept[0] if entry.image]
            self.limits["test"] = len(self.of["test"])
        else:
            self.deal(kept)
        self.gives_scenes = any(entry.context.startswith(SCENE)
                                for entry in self.texts_of["train"])
        self.known = self.of["train"] or self.of["test"]  # what guesses may know
        questions = Counter(question for entry in self.known for question, _ in entry.turns)
        self.common = [question for question, _ in questions.most_common(5)]
        first = Counter(entry.turns[0][0] for entry in self.known)
        self.request = first.most_common(1)[0][0]

    # ---- what is in the files --------------------------------------------------------------------

    def is_seen(self, entry, problems):
        """Whether an entry needs no picture, or one that could be read."""
        if entry.image is None or self.is_hash(self.mark[entry.image]):
            return True
        missing = self.mark[entry.image].startswith("there is no picture")
        problems.add("a missing picture" if missing else "a picture that cannot be read",
                     entry.image)
        return False

    @staticmethod
    def is_hash(mark):
        return len(mark) == 64 and " " not in mark

    def number(self, entry):
        """A number that says which side an entry is on: the same for the same pixels."""
        return number_of(self.mark[entry.image] if entry.image else repr(entry[2:]))

    def deal(self, kept):
        """Deal the entries to the splits. A picture is in one of them only, whatever its name."""
        train, *held = kept
        known = {self.mark[entry.image] for entries in held for entry in entries if entry.image}
        for entry in train:
            split = {0: "val", 1: "test"}.get(self.number(entry) % 10, "train")
            if entry.image is None:
                self.texts_of[split].append(entry)
            elif not held:
                self.of[split].append(entry)
            elif self.mark[entry.image] not in known:
                self.of["train"].append(entry)
        for entry in [entry for entries in held for entry in entries if entry.image]:
            self.of["val" if self.number(entry) % 2 else "test"].append(entry)
        for split, least in LEAST.items():
            if len(self.of[split]) < least:
                raise Refused(f"{self.settings['conversations']!r}: only {len(self.of[split])} "
                              f"pictures for {split}, {least} are needed; the side of a picture "
                              "depends on its pixels")
            random.Random(split).shuffle(self.of[split])

    def config(self):
        return {"kind": "own", **self.settings}

    @property
    def sampled(self):
        """So many conversations are asked which words a LangBridge needs."""
        return min(10000, 20 * len(self.of["train"]))

    def count(self, split):
        return min(len(self.of[split]), self.limits[split])

    def pictures(self, split, indices):
        return np.stack([self.array[self.row[self.of[split][i].image]] for i in indices])

    # ---- for the ViT -----------------------------------------------------------------------------

    def alt_text(self, entry):
        """' red fox': the words of a first answer, twenty at most"""
        words = content_words(entry.turns[0][1])[:20] or ["picture"]
        return "".join(f" {word}" for word in words)

    def alt_texts(self, seed, n):
        return [self.alt_text(entry) for entry in self.of["train"][:20 * n]]

    @functools.cached_property
    def without_one(self):
        """Where twins are found, captions that differ in one word: for each caption, and each word
        of it, the hash of the others: (hashes, entries), both (M,), sorted by hash"""
        pairs = []
        for i, entry in enumerate(self.of["train"]):
            words = self.alt_text(entry).split()
            pairs += [(self.hash_without(words, k), i) for k in range(len(words))]
        hashes, entries = (np.array(column) for column in zip(*pairs))
        order = hashes.argsort(kind="stable")
        return hashes[order], entries[order]

    def hash_without(self, words, k):
        return number_of(" ".join(sorted(words[:k] + words[k + 1:]))) >> 1  # fits into an int64

    def twin(self, i, rng):
        """The index of a training picture whose caption differs in one word; i if none is met."""
        hashes, entries = self.without_one
        words = self.alt_text(self.of["train"][i]).split()
        for k in rng.sample(range(len(words)), len(words)):
            key = self.hash_without(words, k)
            low, high = np.searchsorted(hashes, key, "left"), np.searchsorted(hashes, key, "right")
            for other in entries[rng.choices(range(low, high), k=4)].tolist():
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
        chosen = chosen[:n]
        pictures, texts = self.pictures("train", chosen), [self.alt_text(train[i]) for i in chosen]
        if of == "texts":
            return varied(pictures, texts, rng), texts
        return varied(pictures, texts, rng), varied(pictures, texts, rng)

    def test_pairs(self, split, k, of, n=100):
        count = len(self.of[split])
        indices = [i % count for i in range(k * n, k * n + min(n, count))]
        pictures = self.pictures(split, indices)
        texts = [self.alt_text(self.of[split][i]) for i in indices]
        return pictures, texts if of == "texts" else varied(pictures, texts, random.Random(k))

    # ---- for the LLMs ----------------------------------------------------------------------------

    @functools.cache
    def half(self, dialect):
        """The entries that one of the LLMs reads: source and target share none. Of entries with the
        same first answer each reads half: so both know a name that two pictures have."""
        entries = self.texts_of["train"]
        if not self.gives_scenes:
            entries = entries + self.of["train"]
        entries = sorted(entries, key=lambda entry: (entry.turns[0][1], self.number(entry)))
        own = entries[dialect == "target"::2]
        if not own:
            raise Refused(f"{self.settings['conversations']!r}: too few entries for two LLMs")
        return own

    def document(self, dialect, seed, index, rasters, turns, captions):
        rng, entries = random.Random(f"document/{dialect}/{seed}/{index}"), self.half(dialect)
        round_, place = divmod(index, len(entries))
        entry = entries[order_of(len(entries), f"{seed}/{round_}")[place]]
        if entry.image is None:
            read = in_lines(BOS + entry.context)
            if entry.context.startswith(SCENE):
                read = in_scene(entry.context.removeprefix(SCENE))
            return read + self.as_pieces(entry.turns[:turns])
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
        """Does an LLM answer from grids, and from sentences, that it has not read?"""
        return join_splits({split: self.examine_reading_of(answer, split)
                            for split in self.EXAM})

    def examine_reading_of(self, answer, split):
        asked = defaultdict(list)  # what is read: [(scene in words, question, answer), ..]
        if self.gives_scenes:
            for k, entry in enumerate(self.texts_of[split][:300]):
                question, true = entry.turns[k % len(entry.turns)]
                asked["text_qa"].append((entry.context.removeprefix(SCENE), question, true))
        else:
            rng = random.Random(f"reading/{split}")
            for entry in self.of[split][:300]:
                question, true = entry.turns[0]
                body = scattered(content_words(true), self.side, rng)
                asked["raster_qa"].append((body, question, true))
                asked["text_qa"].append((f" {true}\n", question, true))
        scores = {}
        for name, items in asked.items():
            texts = answer([(body, question) for body, question, _ in items])
            scores[name] = float(np.mean([normal(text) == normal(true)
                                          for text, (_, _, true) in zip(texts, items)]))
        return scores

    # ---- for the adapters ------------------------------------------------------------------------

    def as_pieces(self, turns):
        return [piece for question, answer in turns for piece in turn(question, answer)]

    def some_turns(self, entry, rng, turns, captions):
        """Up to so many turns of an entry; the first answer, its caption, is among them with the
        probability that one of `turns` is a caption, or if there is no other."""
        first, *others = entry.turns
        told = not others or rng.random() < 1 - (1 - captions) ** turns
        chosen = rng.sample(others, min(len(others), turns - told))
        if told:
            chosen.insert(rng.randint(0, len(chosen)), first)
        return self.as_pieces(chosen)

    def description(self, index, rng):
        return turn(*self.of["train"][index].turns[0])

    def conversation(self, index, rng, turns, captions=0.3):
        entry = self.of["train"][index % len(self.of["train"])]
        return self.some_turns(entry, rng, turns, captions)

    def example_questions(self):
        return self.common

    # ---- the exam --------------------------------------------------------------------------------

    def examine(self, answer, pictures, find):
        """What a model says, {split: OwnSaid}: answer(split, [(picture, QA), ..]) -> texts,
        find(split, [(pictures, question, answer), ..]) -> the picture that each is most likely
        about."""
        said = {}
        for split, n in pictures.items():
            entries = self.of[split][:n]
            asked = []
            for i, entry in enumerate(entries):
                for k, (question, true) in enumerate(entry.turns[:ASKED]):
                    kind = "later" if k else "first"
                    asked.append((i, QA(kind, question, true, About(kind))))
            texts = answer(split, asked)
            questions = [OwnAnswered(i, qa, text) for (i, qa), text in zip(asked, texts)]
            groups = []
            for i, entry in enumerate(entries):
                start = min(i // AMONG * AMONG, max(0, n - AMONG))
                groups.append((range(start, min(start + AMONG, n)), *entry.turns[0]))
            found = [normal(entries[j].turns[0][1]) == normal(true)
                     for j, (_, _, true) in zip(find(split, groups), groups)]
            said[split] = OwnSaid(questions, found, n)
        return said

    def tally(self, said):
        """{score: [[got, possible], ..]} of a split's pictures"""
        result = {name: [[0, 0] for _ in range(said.pictures)] for name in self.SCORES}
        for a in said.questions:
            worth = {"exact_match": int(a.right), "token_f1": token_f1(a.answer, a.qa.answer)}
            if a.qa.type == "first":
                worth["caption_exact"] = worth["exact_match"]
            for name, got in worth.items():
                result[name][a.picture][0] += got
                result[name][a.picture][1] += 1
        result["retrieval"] = [[int(right), 1] for right in said.found]
        return result

    def counts(self, said):
        return self.tally(said["test"]) if "test" in said else {}

    def score(self, said):
        by_split = {}
        for split, of_split in said.items():
            sums = {name: np.sum(pairs, axis=0) for name, pairs in self.tally(of_split).items()}
            by_split[split] = {name: float(got / max(1, possible))
                               for name, (got, possible) in sums.items()}
        return join_splits(by_split)

    def by_objects(self, said):
        return {}  # how many there are is not known

    def chance(self, pictures):
        """The scores of the answers of random entries, and of random pictures."""
        rng = random.Random("chance")

        def answer(split, items):
            return [rng.choice(rng.choice(self.known).turns)[1] for _ in items]

        def find(split, groups):
            return [rng.choice(among) for among, _, _ in groups]

        return self.score(self.examine(answer, pictures, find))

    def majority(self, pictures):
        """The scores of the answer that each question most often has; if it was never asked, of the
        most frequent of all answers."""
        answers = defaultdict(Counter)
        for entry in self.known:
            for question, answer in entry.turns:
                answers[question][answer] += 1
                answers[""][answer] += 1

        def answer(split, items):
            known = [answers.get(qa.question) or answers[""] for _, qa in items]
            return [counter.most_common(1)[0][0] for counter in known]

        def find(split, groups):
            return [among[0] for among, _, _ in groups]

        return self.score(self.examine(answer, pictures, find))
