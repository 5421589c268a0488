"""The world: scenes of coloured shapes, their pictures, and captions and questions about them.

Everything is generated from (split, seed, index), so there is nothing to download, and we know
the truth about every picture. A scene is a list of objects, each with a colour, a shape and a place
on a 3 x 3 board:

    >>> scene = make_scene("test", seed=0, index=1)
    >>> caption(scene)
    'a brown circle at the top center, a pink cross at the bottom right.'
    >>> ask(scene, "color", random.Random(0)).answer
    'pink'
    >>> score_caption("a pink cross at the bottom right.", scene)  # one of two, none invented
    (1, 1, 2)

Which side a scene is on is decided by a hash of what is in it. So what is held out, pictures and
texts, is in nothing that is trained on.
"""
import colorsys
import hashlib
import math
import random
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

PAINTS = {"red": (0, 0.95, 0.95), "brown": (24, 0.75, 0.48), "yellow": (54, 0.95, 0.95),
          "green": (120, 0.9, 0.7), "cyan": (180, 0.9, 0.95), "blue": (225, 0.9, 0.95),
          "purple": (285, 0.85, 0.75), "pink": (330, 0.45, 1.0)}  # hue (degrees), saturation, value
COLORS = list(PAINTS)
SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross"]
# The outer and inner corners of a star in turn: how far from the centre, and in which direction
STAR = [(1.15 if i % 2 == 0 else 0.5, math.pi * (i / 5 - 1 / 2)) for i in range(10)]
CORNERS = {  # x and y, in radii from the centre; all shapes cover a similar area
    "star": [(reach * math.cos(angle), reach * math.sin(angle)) for reach, angle in STAR],
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "cross": [(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34),
              (0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34)]}
ROWS, COLS = ["top", "middle", "bottom"], ["left", "center", "right"]
PLACES = [f"{row} {col}" for row in ROWS for col in COLS]  # in raster order
NUMBERS = ["zero", "one", "two", "three"]  # of objects: a scene has three at most

PAIRS = [(color, shape) for color in COLORS for shape in SHAPES]
# One pair per colour, and every shape is in one or two. Both words are common in other pairs, so a
# model that understands them can name the pair too. (Any shift would do.)
COMP_PAIRS = [(color, SHAPES[(i + 3) % len(SHAPES)]) for i, color in enumerate(COLORS)]
SEEN_PAIRS = [pair for pair in PAIRS if pair not in COMP_PAIRS]
SIDES = ["train"] * 6 + ["val", "test", "text:val", "text:test"]  # a tenth of all scenes each

QUESTION_TYPES = ["color", "shape", "where", "count", "exists", "absent"]
TAUGHT = QUESTION_TYPES[:5] * 2 + ["where", "absent"]  # how often: where is the hardest to learn
WAYS = {"color": ["shape"], "shape": ["color"],  # what a question names a thing by
        "count": ["neither", "color", "shape"],
        "where": ["both", "both", "color", "shape"], "exists": ["both", "both", "color", "shape"]}
QUESTIONS = {  # several wordings each
    "color": ["what color is the {name}?", "which color does the {name} have?",
              "what is the color of the {name}?"],
    "shape": ["what shape is the {name}?", "which shape does the {name} have?",
              "what is the shape of the {name}?"],
    "where": ["where is the {name}?", "in which place is the {name}?"],
    "count": ["how many {names} are there?", "how many {names} can you see?"],
    "exists": ["is there a {name}?", "can you see a {name}?", "are there any {names}?"],
    "anything": ["is there anything {color}?", "can you see anything {color}?"]}
CAPTION_REQUESTS = ["describe the scene.", "what do you see?"]


class Object(NamedTuple):
    color: str
    shape: str
    place: int  # index into PLACES

    @property
    def row(self):
        return self.place // 3

    @property
    def col(self):
        return self.place % 3

    @property
    def pair(self):
        return self.color, self.shape


# ---- scenes and splits -------------------------------------------------------------------------

def belongs(scene, split):
    """Whether a scene is one of a split's. Its side, one of SIDES, is decided by a hash of its
    objects, whatever their order.

    split                       side         pairs of colour and shape
    train, val, test            the same     none of COMP_PAIRS
    comp                        test         one of COMP_PAIRS, at least
    text:val, text:test         the same     any; read by no LLM in training
    text: and a dialect         train        any; an LLM's corpus
    """
    text = "; ".join(f"{o.color} {o.shape} {o.place}" for o in sorted(scene))
    digest = hashlib.sha256(text.encode()).digest()
    side = SIDES[int.from_bytes(digest[:4], "big") % len(SIDES)]
    needed = "test" if split == "comp" else split if split in SIDES else "train"
    unseen = any(o.pair in COMP_PAIRS for o in scene)
    allowed = split.startswith("text:") or unseen == (split == "comp")
    return allowed and side == needed


def make_scene(split, seed, index):
    """Scene `index` of a split: its objects in raster order, in distinct places, no two alike."""
    rng = random.Random(f"{split}/{seed}/{index}")
    n = rng.randint(1, len(NUMBERS) - 1)
    while True:
        pairs, places = rng.sample(PAIRS, n), sorted(rng.sample(range(9), n))
        scene = [Object(*pair, place) for pair, place in zip(pairs, places)]
        if belongs(scene, split):
            return scene


def twin(scene, rng):
    """A training scene with one attribute changed: a shape (the likeliest), a colour, a place."""
    values = {"shape": SHAPES, "color": COLORS, "place": range(9)}
    while True:
        old, attribute = rng.choice(scene), rng.choice(["shape", "shape", "color", "place"])
        new = old._replace(**{attribute: rng.choice(values[attribute])})
        rest = [o for o in scene if o != old]
        distinct = all(o.pair != new.pair and o.place != new.place for o in rest)
        if new != old and distinct and belongs(rest + [new], "train"):
            return sorted(rest + [new], key=lambda o: o.place)


# ---- pictures ----------------------------------------------------------------------------------

def rgb(hue, saturation, value):
    """A colour for Pillow, 0 to 255 each, from hue, saturation and value: 0 to 1, more counts as 1.
    """
    return tuple(int(255 * v) for v in colorsys.hsv_to_rgb(hue, min(1, saturation), min(1, value)))


def paint(obj, pen, cell, rng):
    """Draw an object in its place, `cell` pixels wide, with jitter in place, size and colour."""
    x, y = ((k + 0.5 + rng.uniform(-0.08, 0.08)) * cell for k in (obj.col, obj.row))
    size = rng.uniform(0.36, 0.46) * cell
    rx, ry = size * rng.uniform(0.95, 1.05), size * rng.uniform(0.95, 1.05)
    hue, saturation, value = PAINTS[obj.color]
    hue = (hue + rng.uniform(-6, 6)) / 360 % 1
    fill = rgb(hue, saturation * rng.uniform(0.9, 1.1), value * rng.uniform(0.85, 1.1))
    if obj.shape == "circle":
        pen.ellipse([x - 0.95 * rx, y - 0.95 * ry, x + 0.95 * rx, y + 0.95 * ry], fill=fill)
    else:
        pen.polygon([(x + dx * rx, y + dy * ry) for dx, dy in CORNERS[obj.shape]], fill=fill)


def draw(scene, seed, size=48):
    """A picture of the scene, (size, size, 3) uint8: anti-aliased, each object jittered, on a
    background with its own tint, brightness, gradient and noise, all by `seed`, any text."""
    rng = random.Random(f"draw/{seed}")
    brightness, tint = rng.random(), rng.random()
    saturation = rng.uniform(0, 0.1) / max(brightness, 0.01)  # the darker, the more
    picture = Image.new("RGB", (3 * size, 3 * size), rgb(tint, saturation, brightness))
    pen = ImageDraw.Draw(picture)
    for obj in scene:
        paint(obj, pen, size, rng)  # one of the 3 x 3 places
    pixels = np.asarray(picture.reduce(3), dtype=np.float32)  # shrunk: that is the anti-aliasing
    noise = np.random.default_rng(rng.getrandbits(64))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    down = rng.uniform(-24, 24) * ramp[:, None, None]
    across = rng.uniform(-24, 24) * ramp[None, :, None]
    grain = noise.normal(0, rng.uniform(0, 6), pixels.shape)
    return (pixels + (down + across) + grain).clip(0, 255).astype(np.uint8)


def patches_of(place, side):
    """Indices of the patches that a place of the board covers, if there are side x side patches."""
    row, col = divmod(place, 3)
    k = side // 3  # a place is k x k patches
    return [(row * k + i) * side + col * k + j for i in range(k) for j in range(k)]


# ---- captions ----------------------------------------------------------------------------------

def caption(scene):
    """The scene in words, in the order of its objects."""
    return ", ".join(f"a {o.color} {o.shape} at the {PLACES[o.place]}" for o in scene) + "."


def keywords(scene):
    """An alt text, content words only: ' brown star middle center cyan triangle bottom left'"""
    return "".join(f" {o.color} {o.shape} {PLACES[o.place]}" for o in scene)


def parse_caption(text):
    """The objects that a caption names, [(color, shape, place)]; "" for what it leaves out.

    >>> parse_caption("a red circle at the top left, a blue star")
    [('red', 'circle', 'top left'), ('blue', 'star', '')]
    """
    objects = []
    for part in re.split(r"[,.]", text):
        words = re.findall(r"[a-z]+", part)

        def first(names):
            return next((word for word in words if word in names), "")

        color, shape, row, col = map(first, (COLORS, SHAPES, ROWS, COLS))
        place = f"{row} {col}" if row and col else ""
        if color or shape or place:
            objects.append((color, shape, place))
    return objects


def score_caption(text, scene):
    """(right, said, true): how many objects of a caption are right in every attribute, how many
    it names, and how many there are. Naming one twice is one too many."""
    said = Counter(parse_caption(text))
    true = Counter((o.color, o.shape, PLACES[o.place]) for o in scene)
    return (said & true).total(), said.total(), true.total()


# ---- questions ---------------------------------------------------------------------------------

class About(NamedTuple):
    """What a question is about: something of a colour, of a shape, of both, or anything (None).

    The answer follows from this and the scene alone, however the question is worded.
    """
    type: str
    color: str | None = None
    shape: str | None = None

    @property
    def name(self):
        """red circle, circle, red object, or object"""
        return " ".join(filter(None, [self.color, self.shape or "object"]))

    @property
    def names(self):
        """red circles, .. or crosses"""
        return self.name + ("es" if self.name.endswith("s") else "s")

    def fits(self, scene):
        """The objects that have this name."""
        return [o for o in scene if self.color in (None, o.color) and self.shape in (None, o.shape)]

    def answer(self, scene):
        """The right answer about a scene."""
        its = self.fits(scene)
        if self.type == "count":
            return NUMBERS[len(its)]
        if self.type == "exists":
            return "yes" if its else "no"
        if not its:
            return f"there is no {self.name}"
        (o,) = its  # nothing is asked about a name that fits several
        return PLACES[o.place] if self.type == "where" else getattr(o, self.type)


class QA(NamedTuple):
    type: str  # one of QUESTION_TYPES
    question: str
    answer: str
    about: About


def named(type, pairs, rng):
    """What a question of this type calls things of these colours and shapes, all in one way."""
    way = rng.choice(WAYS[type])
    return [About(type, color if way in ("color", "both") else None,
                  shape if way in ("shape", "both") else None) for color, shape in pairs]


def missing(scene, type, rng, pairs):
    """What to ask about that is not there. Of the names with a colour and a shape, these are the
    hard ones, wherever the pairs have some: one of the two is there, but not both."""
    names = [about for about in named(type, pairs, rng) if not about.fits(scene)]
    there = {word for o in scene for word in o.pair}
    hard = [about for about in names if {about.color, about.shape} & there]
    return rng.choice(hard or names)


def subject(scene, type, rng, pairs):
    """What a random question of this type is about: an About, or None if the scene has nothing with
    a name of its own."""
    shown = [o.pair for o in scene if o.pair in pairs]
    if type == "count":
        if rng.random() < 0.3:
            return rng.choice(named(type, PAIRS, rng))  # most often, of these there are none
        names = named(type, [o.pair for o in scene], rng)
        return max(names, key=lambda about: len(about.fits(scene)))  # two, where that is possible
    if type == "absent":
        return missing(scene, rng.choice(["color", "shape", "where"]), rng, pairs)
    if type == "exists":
        if rng.random() < 0.5:
            return missing(scene, type, rng, pairs)
        return named(type, [rng.choice(shown)], rng)[0]
    names = [about for about in named(type, shown, rng) if len(about.fits(scene)) == 1]
    return rng.choice(names) if names else None


def ask(scene, type, rng, pairs=PAIRS):
    """A random question of this type as a QA, or None where the scene has no unambiguous one.

    Only these pairs of colour and shape are asked about, and denied: if unseen pairs were denied in
    training, where none is ever there, their names alone would come to mean 'no'.
    """
    about = subject(scene, type, rng, pairs)
    if about is None:
        return None
    key = "anything" if type == "exists" and not about.shape else about.type
    question = rng.choice(QUESTIONS[key]).format(
        name=about.name, names=about.names, color=about.color)
    return QA(type, question, about.answer(scene), about)


def ask_any(scene, rng, pairs=PAIRS, types=TAUGHT):
    """A random question of a random type; of another one where the scene has none."""
    return ask(scene, rng.choice(types), rng, pairs) or ask_any(scene, rng, pairs, types)
