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
          "purple": (275, 0.85, 0.75), "pink": (330, 0.45, 1.0)}  # hue (degrees), saturation, value
COLORS = list(PAINTS)
SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross"]
CORNERS = {  # x and y, in radii from the centre; all shapes cover a similar area
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "cross": [(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34),
              (0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34)]}
ROWS, COLS = ["top", "middle", "bottom"], ["left", "center", "right"]
PLACES = [f"{row} {col}" for row in ROWS for col in COLS]  # in raster order
NUMBERS = ["zero", "one", "two", "three"]
MAX_OBJECTS = 3  # in a scene

PAIRS = [(color, shape) for color in COLORS for shape in SHAPES]
# One pair per colour, and every shape is in one or two. Both words are common in other pairs, so a
# model that understands them can name the pair too. (Any shift would do.)
COMP_PAIRS = [(color, SHAPES[(i + 3) % len(SHAPES)]) for i, color in enumerate(COLORS)]
SEEN_PAIRS = [pair for pair in PAIRS if pair not in COMP_PAIRS]
SIDES = ["train"] * 6 + ["val", "test", "text:val", "text:test"]  # a tenth of all scenes each

QUESTION_TYPES = ["color", "shape", "where", "count", "exists", "absent"]
WAYS = {"color": ["shape"], "shape": ["color"],  # what a question names a thing by
        "where": ["both", "both", "color", "shape"], "exists": ["both", "both", "color", "shape"]}
QUESTIONS = {  # two wordings each
    "color": ["what color is the {name}?", "which color does the {name} have?"],
    "shape": ["what shape is the {name}?", "which shape does the {name} have?"],
    "where": ["where is the {name}?", "in which place is the {name}?"],
    "count": ["how many {name}s are there?", "how many {name}s can you see?"],
    "exists": ["is there a {name}?", "can you see a {name}?"],
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

def side_of(scene):
    """The one of SIDES that a scene is on, by a hash of its objects, whatever their order."""
    text = "; ".join(f"{o.color} {o.shape} {o.place}" for o in sorted(scene))
    digest = hashlib.sha256(text.encode()).digest()
    return SIDES[int.from_bytes(digest[:4], "big") % len(SIDES)]


def belongs(scene, split):
    """Whether a scene is one of a split's.

    split                       side         pairs of colour and shape
    train, val, test            the same     none of COMP_PAIRS
    comp                        test         one of COMP_PAIRS, at least
    text:val, text:test         the same     any; read by no LLM in training
    text: and a dialect         train        any; an LLM's corpus
    """
    side = "test" if split == "comp" else split if split in SIDES else "train"
    unseen = any(o.pair in COMP_PAIRS for o in scene)
    allowed = split.startswith("text:") or unseen == (split == "comp")
    return allowed and side_of(scene) == side


def make_scene(split, seed, index):
    """Scene `index` of a split: 1 to MAX_OBJECTS objects in raster order, in distinct places, no
    two alike."""
    rng = random.Random(f"{split}/{seed}/{index}")
    n = rng.randint(1, MAX_OBJECTS)
    while True:
        pairs, places = rng.sample(PAIRS, n), sorted(rng.sample(range(9), n))
        scene = [Object(*pair, place) for pair, place in zip(pairs, places)]
        if belongs(scene, split):
            return scene


def twin(scene, rng):
    """A training scene with one attribute changed: a shape (the likeliest), a colour, a place."""
    values = {"shape": SHAPES, "color": COLORS, "place": range(9)}
    while True:
        i, attribute = rng.randrange(len(scene)), rng.choice(["shape", "shape", "color", "place"])
        new = list(scene)
        new[i] = scene[i]._replace(**{attribute: rng.choice(values[attribute])})
        pairs, places = {o.pair for o in new}, {o.place for o in new}
        distinct = len(pairs) == len(places) == len(new)
        if new != scene and distinct and belongs(new, "train"):
            return sorted(new, key=lambda o: o.place)


# ---- pictures ----------------------------------------------------------------------------------

def outline(shape, x, y, r):
    """The corners of a shape of radius r around (x, y). A circle has none: it is an ellipse."""
    if shape != "star":
        return [(x + across * r, y + down * r) for across, down in CORNERS[shape]]
    corners = []
    for i in range(10):  # outer and inner corners in turn
        angle = math.pi * i / 5 - math.pi / 2
        reach = 1.15 * r if i % 2 == 0 else 0.5 * r
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def rgb(hue, saturation, value):
    """A colour for Pillow, 0 to 255 each, from hue, saturation and value between 0 and 1."""
    return tuple(int(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))


def paint(obj, pen, cell, rng):
    """Draw an object in its place, `cell` pixels wide, with jitter in position, size and colour."""
    x = (obj.col + 0.5 + rng.uniform(-0.08, 0.08)) * cell
    y = (obj.row + 0.5 + rng.uniform(-0.08, 0.08)) * cell
    r = rng.uniform(0.36, 0.46) * cell
    hue, saturation, value = PAINTS[obj.color]
    hue = (hue + rng.uniform(-6, 6)) / 360 % 1
    fill = rgb(hue, saturation * rng.uniform(0.9, 1), value * rng.uniform(0.9, 1))
    if obj.shape == "circle":
        pen.ellipse([x - 0.95 * r, y - 0.95 * r, x + 0.95 * r, y + 0.95 * r], fill=fill)
    else:
        pen.polygon(outline(obj.shape, x, y, r), fill=fill)


def draw(scene, seed, size=48):
    """A picture of the scene, (size, size, 3) uint8: anti-aliased, each object jittered, on a
    background with its own tint, brightness, gradient and noise, all by `seed`, any text."""
    rng = random.Random(f"draw/{seed}")
    fine = 3 * size  # drawn at three times the size and shrunk: that is the anti-aliasing
    brightness, tint = rng.uniform(0.05, 0.95), rng.random()
    picture = Image.new("RGB", (fine, fine), rgb(tint, rng.uniform(0, 0.15), brightness))
    pen = ImageDraw.Draw(picture)
    for obj in scene:
        paint(obj, pen, fine / 3, rng)
    pixels = np.asarray(picture.reduce(3), dtype=np.float32)
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
    """The scene in words, its objects in raster order."""
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
    """What a question is about; None where it names nothing. Two questions about the same thing in
    a scene have the same answer, however they are worded."""
    type: str
    color: str | None = None
    shape: str | None = None

    @property
    def name(self):
        """red circle, circle, red object, or object"""
        return " ".join(filter(None, [self.color, self.shape or "object"]))

    def fits(self, scene):
        """The objects that have this name."""
        return [o for o in scene if self.color in (None, o.color) and self.shape in (None, o.shape)]


class QA(NamedTuple):
    type: str
    question: str
    answer: str
    about: About


def ask(scene, type, rng, pairs=PAIRS):
    """A random question of this type as a QA, or None where the scene has no unambiguous one.

    Only these pairs of colour and shape are asked about, and denied: if unseen pairs were denied in
    training, where none is ever there, their names alone would come to mean 'no'.
    """
    if type not in FIND:
        raise ValueError(f"unknown question type {type!r}, expected one of {', '.join(FIND)}")
    found = FIND[type](scene, type, rng, pairs)
    if found is None:
        return None
    about, answer = found
    key = "anything" if type == "exists" and not about.shape else about.type
    question = rng.choice(QUESTIONS[key]).format(name=about.name, color=about.color)
    return QA(type, question, answer, about)


def ask_any(scene, rng, pairs=PAIRS, types=QUESTION_TYPES):
    """A random question of a random type that this scene can answer."""
    while True:
        qa = ask(scene, rng.choice(types), rng, pairs)
        if qa:
            return qa


# A function (scene, type, rng, pairs) -> (About, answer) for each type of question; None if it has
# no such question.

def named(type, pair, way):
    """What names something of this colour and shape, by 'both', 'color', or 'shape'."""
    color, shape = pair
    return About(type, None if way == "shape" else color, None if way == "color" else shape)


def find_one(scene, type, rng, pairs):
    """Its colour, shape or place is asked of a thing whose name fits nothing else."""
    way = rng.choice(WAYS[type])
    names = [named(type, o.pair, way) for o in scene if o.pair in pairs]
    names = [about for about in names if len(about.fits(scene)) == 1]
    if not names:
        return None
    about = rng.choice(names)
    (o,) = about.fits(scene)
    return about, {"color": o.color, "shape": o.shape, "where": PLACES[o.place]}[type]


def find_count(scene, type, rng, pairs):
    colors = [o.color for o in scene]
    if rng.random() >= 0.5:
        return About("count"), NUMBERS[len(scene)]
    color = rng.choice(colors if rng.random() < 0.7 else COLORS)  # else most would be 'zero'
    return About("count", color), NUMBERS[colors.count(color)]


def find_exists(scene, type, rng, pairs):
    if rng.random() < 0.5:
        return missing(scene, type, rng, pairs), "no"
    o = rng.choice([o for o in scene if o.pair in pairs])
    return named(type, o.pair, rng.choice(WAYS[type])), "yes"


def find_absent(scene, type, rng, pairs):
    """A question about what is not there."""
    about = missing(scene, rng.choice(["color", "shape", "where"]), rng, pairs)
    return about, f"there is no {about.name}"


def missing(scene, type, rng, pairs):
    """The name of something that is not there. Of a colour and a shape, wherever these pairs have
    such a one, one of the two is there, but not both: that is harder."""
    way = rng.choice(WAYS[type])
    names = [named(type, pair, way) for pair in pairs]
    names = [about for about in names if not about.fits(scene)]
    there = {word for o in scene for word in o.pair}
    hard = [about for about in names if about.color in there or about.shape in there]
    return rng.choice(hard or names)


FIND = {"color": find_one, "shape": find_one, "where": find_one, "count": find_count,
        "exists": find_exists, "absent": find_absent}
ANSWERS = {"color": COLORS, "shape": SHAPES, "where": PLACES, "count": NUMBERS,
           "exists": ["yes", "no"],
           "absent": [f"there is no {About('', *pair).name}" for pair in PAIRS]}
