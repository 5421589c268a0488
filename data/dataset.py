"""The seam between the data and everything that learns from it.

The stages (train.py, evaluate.py, transfer.py) know pictures, texts and exams only through the
methods of one object, so none of them names a colour or a shape. ShapeData is that object for the
world of world.py; your own pictures would be another class with the same methods.
"""
import random
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from data import corpus, scoring
from data.world import (
    CAPTION_REQUESTS, COLORS, PLACES, SHAPES, World, draw, draw_split, keywords, make_scene,
    patches_of, twin)


class SeenObject(NamedTuple):
    """An object of a picture: what it is, where it is, and which patches show it."""
    words: dict  # {kind: word}, as in {"color": "red", "shape": "circle"}
    place: list  # the words of its place
    patches: list  # indices into the N patches


@dataclass(frozen=True)
class ShapeData:
    """Scenes of coloured shapes.

    what the stages need                             for
    config()                                         load_data, which makes the same object again
    count(split), pictures(split, indices)           the ViT's frozen features
    alt_texts(seed, n), pairs(seed, step, n)         the ViT: its words, its batches of twins
    test_pairs(k, n)                                 how well it finds a picture's text
    tokenizer(dialect, V, seed)                      the LLMs: their vocabulary
    document(dialect, seed, index, ..)               the LLMs: their corpus
    examine_reading(answer, dialect, seed)           the LLMs: their scores
    description(index, rng)                          align: the caption of a training picture
    conversation(index, rng, turns, captions)        instruct: a conversation about it
    examine(answer, pictures), chance(pictures)      the exam of a VLM (data/scoring.py)
    request, example_questions()                     what a user may ask
    kinds, place_words, objects(split, index, side)  what a patch should say
    edits(pictures)                                  what should follow when patches are edited

    Pictures are (n, size, size, 3) uint8; the texts that an LLM learns are (text, weight) pieces
    (data/corpus.py). Whatever is random is the same again for the same arguments.
    """
    max_objects: int = 3  # most objects in a scene
    rich: bool = False  # sizes, relations (left of, above), synonyms and more wordings
    size: int = 48  # picture side in pixels
    train_pictures: int = 12000
    test_pictures: int = 600

    SPLITS = ("train", "val", "test", "comp")
    request = CAPTION_REQUESTS[0]  # asks for a caption
    kinds = {"color": COLORS, "shape": SHAPES}  # the words that name an object
    place_words = sorted(set(" ".join(PLACES).split()))

    @property
    def world(self):
        return World(self.max_objects, self.rich)

    def config(self):
        """What load_data needs, as JSON can store it."""
        return {"kind": "shapes", **asdict(self)}

    def count(self, split):
        """How many pictures a split has."""
        if split == "train":
            return self.train_pictures
        if split == "test":
            return self.test_pictures
        return self.test_pictures // 2  # val and comp

    def pictures(self, split, indices):
        return draw_split(split, indices, self.size, self.world)

    def alt_texts(self, seed, n):
        """The alt texts of n scenes, from which the ViT's text tower learns its vocabulary."""
        return [keywords(make_scene("train", seed, i, self.world)) for i in range(n)]

    def pairs(self, seed, step, n):
        """A contrastive batch, (pictures, texts): n // 2 scenes, then the twin of each, which
        differs in one word."""
        half = n // 2
        indices = range(step * half, (step + 1) * half)
        scenes = [make_scene("train", seed + 1, i, self.world) for i in indices]
        rng = random.Random(f"twins/{seed}/{step}")
        twins = [twin(scene, rng) for scene in scenes]
        return self.with_texts(scenes + twins, step)

    def test_pairs(self, k, n=100):
        """The test pictures from k * n on, n of them: (pictures, texts)"""
        scenes = [make_scene("test", 0, n * k + i, self.world) for i in range(n)]
        return self.with_texts(scenes, 0)

    def with_texts(self, scenes, seed):
        pictures = np.stack([draw(scene, self.size, seed) for scene in scenes])
        return pictures, [keywords(scene) for scene in scenes]

    def tokenizer(self, dialect, V, seed):
        return corpus.train_tokenizer(dialect, V, seed, world=self.world)

    def document(self, dialect, seed, index, rasters, turns, captions):
        return corpus.document(dialect, seed, index, rasters, turns, captions, world=self.world)

    def description(self, index, rng):
        return corpus.description(make_scene("train", 0, index, self.world), rng)

    def conversation(self, index, rng, turns, captions=0.3):
        scene = make_scene("train", 0, index, self.world)
        return corpus.conversation(scene, rng, turns, captions)

    def examine_reading(self, answer, dialect, seed):
        n = 5 * self.test_pictures // 3
        return scoring.examine_reading(answer, dialect, seed, n, self.world)

    def examine(self, answer, pictures):
        return scoring.examine(answer, pictures, self.world)

    def chance(self, pictures):
        return scoring.score_chance(pictures, self.world)

    def edits(self, pictures):
        return scoring.color_edits(pictures, self.world)

    def example_questions(self):
        """One question of each type, from the exam about the test pictures."""
        _, questions, _ = scoring.benchmark("test", self.test_pictures, self.world)
        examples = {}
        for _, qa in questions:
            examples.setdefault(qa.type, qa.question)
        return list(examples.values())

    def objects(self, split, index, side):
        """The SeenObjects of a picture, of side x side patches."""
        seen = []
        for o in make_scene(split, 0, index, self.world):
            words = {"color": o.color, "shape": o.shape}
            seen.append(SeenObject(words, PLACES[o.place].split(), patches_of(o.place, side)))
        return seen


KINDS = {"shapes": ShapeData}


def load_data(config):
    """The object whose config() this is. Raises ValueError for a kind that there is not."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of data {kind!r}, expected one of {', '.join(KINDS)}")
    return KINDS[kind](**fields)
