"""The interface between the data and the stages that learn from it.

train.py, evaluate.py and transfer.py ask one object for pictures, texts and exams, and know almost
nothing of what is in a picture. ShapeData is that object for the world of world.py, and OwnData, in
own.py, for pictures and conversations from files. For yet others, write another class with the same
methods, and name it in load_data and Settings.data.
"""
import random
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from data import corpus, scoring
from data.files import Refused
from data.own import open_own
from data.world import (CAPTION_REQUESTS, COLORS, COMP_PAIRS, PLACES, SEEN_PAIRS, SHAPES, draw,
                        keywords, make_scene, patches_of, twin)


def tell(scene, how):
    """A scene in words: as a list, a raster or sentences; or nothing of it."""
    rng = random.Random(f"tell/{scene}")
    tellings = {"list": corpus.listing, "raster": lambda scene: corpus.raster(scene, rng),
                "sentences": lambda scene: corpus.sentences(scene, "source", rng),
                "nothing": lambda scene: ""}
    return tellings[how](scene)


class SeenObject(NamedTuple):
    """An object of a picture: what it is, where it is, and which patches show it."""
    words: dict  # {kind: word}, as in {"color": "red", "shape": "circle"}
    place: list  # the words of its place
    patches: list  # indices into the N patches


@dataclass(frozen=True)
class ShapeData:
    """Scenes of coloured shapes. The same arguments always give the same result.

    what the stages need                         for
    config()                                     what load_data rebuilds the object from
    SPLITS, EXAM, count(split)                   the names and the sizes of the splits
    SCORES                                       the names of the scores that tables show
    pictures(split, indices)                     (n, size, size, 3) uint8, for the ViT's features
    alt_texts(seed, n), alt_V                    the ViT: the tokenizer of its text tower
    pairs(seed, step, n, of)                     the ViT: its batches, with texts or other drawings
    test_pairs(split, k, of)                     how well it finds what belongs to a picture
    texts(dialect, seed)                         the LLMs: what their vocabulary is made of
    document(dialect, seed, index, ..)           the LLMs: their corpus, in pieces (data/corpus.py)
    examine_reading(answer, dialect)             the LLMs: their scores
    tell(split, index, how), examples(n, seed, how)   an LLM that was not trained here: a scene in
                                                 words, and solved examples
    description(index, rng)                      align: the caption of a training picture
    conversation(index, rng, turns, captions)    instruct: a conversation about it
    sampled                                      how many of these a LangBridge has its words from
    examine(answer, pictures, find)              the exam of a VLM
    chance(pictures), majority(pictures)         the scores of guessing
    score(said), counts(said), by_objects(said)   what an exam is worth
    edits(pictures)                              what should change when patches are edited
    request, example_questions()                 what a user may ask
    kinds, place_words                           the words for objects and for their places; where
                                                 there are no kinds, the following is not asked
    objects(split, index, side)                  what the side x side patches of a picture show
    seen(split, values)                          the same for many pictures, with patches' values
    """
    size: int = 48  # picture side in pixels
    train_pictures: int = 12000
    test_pictures: int = 600

    SPLITS = ("train", "val", "test", "comp")
    EXAM = ("val", "test", "comp")  # the splits that a VLM is examined on
    SCORES = scoring.SCORES
    alt_V = 400
    sampled = 1000
    texts = staticmethod(corpus.texts_of)
    document = staticmethod(corpus.document)
    examine = staticmethod(scoring.examine)
    chance = staticmethod(scoring.score_chance)
    edits = staticmethod(scoring.color_edits)
    score = staticmethod(scoring.summarize)
    counts = staticmethod(scoring.counts)
    by_objects = staticmethod(scoring.by_objects)
    request = CAPTION_REQUESTS[0]  # asks for a caption
    kinds = {"color": COLORS, "shape": SHAPES}
    place_words = sorted(set(" ".join(PLACES).split()))

    def config(self):
        return {"kind": "shapes", **asdict(self)}

    def count(self, split):
        counts = {"train": self.train_pictures, "test": self.test_pictures}
        return counts.get(split, self.test_pictures // 2)  # val and comp have half as many

    def pictures(self, split, indices):
        return np.stack([draw(make_scene(split, 0, i), f"{split}/{i}", self.size)
                         for i in indices])

    def alt_texts(self, seed, n):
        return [keywords(make_scene("train", seed, i)) for i in range(n)]

    def pairs(self, seed, step, n, of):
        half, rng = n // 2, random.Random(f"twins/{seed}/{step}")
        indices = range(step * half, (step + 1) * half)  # of seed + 1: captions use seed 0
        scenes = [make_scene("train", seed + 1, i) for i in indices]
        scenes += [twin(scene, rng) for scene in scenes]
        pictures = self.drawings(scenes, f"pairs/{seed}/{step}")
        if of == "texts":
            return pictures, [keywords(scene) for scene in scenes]
        return pictures, self.drawings(scenes, f"others/{seed}/{step}")

    def drawings(self, scenes, seed):
        return np.stack([draw(scene, f"{seed}/{k}", self.size) for k, scene in enumerate(scenes)])

    def test_pairs(self, split, k, of, n=100):
        indices = range(k * n, (k + 1) * n)
        scenes = [make_scene(split, 0, i) for i in indices]
        if of == "texts":
            return self.pictures(split, indices), [keywords(scene) for scene in scenes]
        return self.pictures(split, indices), self.drawings(scenes, f"others/{split}/{k}")

    def tell(self, split, index, how):
        return tell(make_scene(split, 0, index), how)

    def examples(self, n, seed, how):
        return corpus.solved_examples(n, seed, lambda scene: tell(scene, how))

    def description(self, index, rng):
        return corpus.description(make_scene("train", 0, index), rng)

    def conversation(self, index, rng, turns, captions=0.3):
        return corpus.conversation(make_scene("train", 0, index), rng, turns, captions, SEEN_PAIRS)

    def examine_reading(self, answer, dialect):
        return scoring.join_splits({
            split: scoring.examine_reading(answer, dialect, f"text:{split}", self.count(split))
            for split in ("val", "test")})

    def majority(self, pictures):
        return scoring.score_majority(pictures, self.train_pictures)

    def example_questions(self):
        _, questions, _ = scoring.benchmark("test", self.test_pictures)
        examples = {}  # one of each type
        for _, qa in questions:
            examples.setdefault(qa.type, qa.question)
        return list(examples.values())

    def objects(self, split, index, side):
        seen = []
        for o in make_scene(split, 0, index):
            words = {"color": o.color, "shape": o.shape}
            seen.append(SeenObject(words, PLACES[o.place].split(), patches_of(o.place, side)))
        return seen

    def seen(self, split, values):
        """Each SeenObject of a split's first pictures, of 'comp' those of unseen pairs alone, and
        the values of its patches. `values` has shape (pictures, N, ..), torch or numpy."""
        side = int(values.shape[1] ** 0.5)
        for i, patches in enumerate(values):
            for o in self.objects(split, i, side):
                unseen = (o.words["color"], o.words["shape"]) in COMP_PAIRS
                if unseen or split != "comp":
                    yield o, patches[o.patches]


def load_data(config, out):
    """Rebuild the object of an --out folder from its config(). Raises Refused for one of another
    version."""
    kinds = {"shapes": ShapeData, "own": partial(open_own, folder=f"{out}/pictures")}
    fields = dict(config)
    kind = fields.pop("kind", None)
    another = "a folder of another version of this project must be made again"
    if kind not in kinds:
        raise Refused(f"unknown kind of data {kind!r}, expected one of {', '.join(kinds)}; "
                      f"{another}")
    try:
        return kinds[kind](**fields)
    except TypeError:
        raise Refused(f"data of kind {kind!r} have no such settings as {fields}; {another}")
