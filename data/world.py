"""The world: scenes of coloured shapes, their pictures, and captions and questions about them.

Everything is generated from (split, seed, index), so there is nothing to download, and we know
the truth about every picture. A scene is a list of objects, each with a colour, a shape and a place
on a 3 x 3 board, and in the *rich* world also with a size:

    >>> scene = make_scene("test", seed=0, index=1)
    >>> caption(scene)
    'a purple triangle at the top center, a brown square at the bottom left.'
    >>> ask(scene, "color", random.Random(0)).answer
    'brown'
    >>> score_caption("a brown square at the bottom left.", scene)  # one of two, none invented
    (1, 1, 2)
    >>> rich = make_scene("test", seed=0, index=1, world=World(rich=True))
    >>> caption(rich)
    'a small purple triangle at the top center, a large brown square at the bottom left.'
    >>> ask(rich, "relation", random.Random(0)).question
    'is the brown square below the purple triangle?'

The splits 'train', 'val' and 'test' draw from separate random streams. Every picture of 'comp' (for
compositional) shows one of the colour-shape pairs in COMP_PAIRS, and no picture of the others does.
"""
import colorsys
import math
import random
import re
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
SIZES = ["small", "large"]  # of the rich world
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
RELATIONS = {  # the coordinate that decides, and the sign of first minus second
    "left of": ("col", -1), "right of": ("col", 1), "above": ("row", -1), "below": ("row", 1)}
SYNONYMS = {"circle": "disc", "square": "box", "diamond": "rhombus", "cross": "plus",
            "purple": "violet", "cyan": "turquoise", "pink": "rose"}

# One pair per colour, and every shape is in one or two. Both words are common in other pairs, so a
# model that understands them can name the pair too. (Any shift would do.)
COMP_PAIRS = {(color, SHAPES[(i + 3) % len(SHAPES)]) for i, color in enumerate(COLORS)}

QUESTION_TYPES = ["color", "shape", "where", "count", "exists"]
RICH_TYPES = QUESTION_TYPES + ["size", "relation"]
QUESTIONS = {  # at least two wordings each
    "color": ["what color is the {shape}?", "which color does the {shape} have?"],
    "shape": ["what shape is the {color} object?", "which shape does the {color} object have?"],
    "where": ["where is the {color} {shape}?", "in which place is the {color} {shape}?"],
    "count": ["how many objects are there?", "how many objects can you see?"],
    "count_color": ["how many {color} objects are there?", "how many {color} objects can you see?"],
    "exists": ["is there a {color} {shape}?", "can you see a {color} {shape}?"]}
RICH_QUESTIONS = {  # extra wordings, in the rich world only
    "color": ["tell me the color of the {shape}.", "the {shape} has what color?"],
    "shape": ["what is the {color} thing?", "tell me the shape of the {color} object."],
    "where": ["tell me where the {color} {shape} is.",
              "at which place do you find the {color} {shape}?"],
    "count": ["count the objects.", "what is the number of objects?"],
    "count_color": ["count the {color} objects.", "what is the number of {color} objects?"],
    "exists": ["does the scene have a {color} {shape}?", "do you see any {color} {shape}?"],
    "size": ["how large is the {color} {shape}?", "what size is the {color} {shape}?"],
    "relation": ["is the {color} {shape} {relation} the {other_color} {other_shape}?",
                 "do you see the {color} {shape} {relation} the {other_color} {other_shape}?"]}
ANSWERS = {"color": COLORS, "shape": SHAPES, "where": PLACES, "count": NUMBERS[:4],
           "exists": ["yes", "no"], "size": SIZES, "relation": ["yes", "no"]}
WORDINGS = ["a {color} {shape} at the {place}", "at the {place} a {color} {shape}",
            "a {shape} that is {color} at the {place}"]  # of an object in a caption
RICH_WORDINGS = ["a {size} {color} {shape} at the {place}",
                 "at the {place} a {size} {color} {shape}",
                 "a {shape} that is {size} and {color} at the {place}",
                 "the {place} has a {size} {color} {shape}"]
CAPTION_REQUESTS = ["describe the scene.", "what do you see?"]


class World(NamedTuple):
    """Which scenes there are. The rich world adds sizes, relations, synonyms and wordings."""
    max_objects: int = 3
    rich: bool = False


class Object(NamedTuple):
    color: str
    shape: str
    place: int  # index into PLACES
    size: str = ""  # of the rich world

    @property
    def row(self):
        return self.place // 3

    @property
    def col(self):
        return self.place % 3


def make_scene(split, seed, index, world=World()):
    """Scene `index`: 1 to max_objects objects in raster order, in distinct places, no two alike.
    Splits named 'text:..' (the LLMs' corpora and their exam) may contain any pair."""
    rng = random.Random(f"{split}/{seed}/{index}")
    n = rng.randint(1, world.max_objects)
    while True:
        pairs = {(rng.choice(COLORS), rng.choice(SHAPES)) for _ in range(n)}
        unseen, must_be_unseen = bool(pairs & COMP_PAIRS), split == "comp"
        allowed = split.startswith("text:") or unseen == must_be_unseen
        if len(pairs) == n and allowed:
            break
    pairs = rng.sample(sorted(pairs), n)
    places = sorted(rng.sample(range(9), n))
    scene = [Object(color, shape, place) for (color, shape), place in zip(pairs, places)]
    if world.rich:
        scene = [o._replace(size=rng.choice(SIZES)) for o in scene]
    return scene


def twin(scene, rng):
    """A scene that differs in one attribute: a shape (the likeliest), a colour, a place, a size."""
    values = {"shape": SHAPES, "color": COLORS, "place": range(9), "size": SIZES}
    attributes = ["shape", "shape", "color", "place"]
    if scene[0].size:
        attributes.append("size")
    while True:
        i, attribute = rng.randrange(len(scene)), rng.choice(attributes)
        new = list(scene)
        new[i] = scene[i]._replace(**{attribute: rng.choice(values[attribute])})
        pairs, places = {(o.color, o.shape) for o in new}, {o.place for o in new}
        distinct = len(pairs) == len(places) == len(new)
        if new != scene and distinct and not pairs & COMP_PAIRS:
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


def drawing_seed(scene, seed):
    """The seed of a drawing, as text; the plain world's empty sizes are left out of it."""
    return f"draw/{seed}/{scene}".replace(", size=''", "")


def rgb(hue, saturation, value):
    """A colour for Pillow, 0 to 255 each, from hue, saturation and value between 0 and 1."""
    return tuple(int(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))


def paint(obj, pen, cell, rng):
    """Draw an object in its place, `cell` pixels wide, with jitter in position, size and colour."""
    x = (obj.col + 0.5 + rng.uniform(-0.08, 0.08)) * cell
    y = (obj.row + 0.5 + rng.uniform(-0.08, 0.08)) * cell
    smallest, largest = {"": (0.36, 0.46), "small": (0.22, 0.28), "large": (0.38, 0.46)}[obj.size]
    r = rng.uniform(smallest, largest) * cell
    hue, saturation, value = PAINTS[obj.color]
    hue = (hue + rng.uniform(-6, 6)) / 360 % 1
    fill = rgb(hue, saturation * rng.uniform(0.9, 1), value * rng.uniform(0.9, 1))
    if obj.shape == "circle":
        pen.ellipse([x - 0.95 * r, y - 0.95 * r, x + 0.95 * r, y + 0.95 * r], fill=fill)
    else:
        pen.polygon(outline(obj.shape, x, y, r), fill=fill)


def draw(scene, size=48, seed=0):
    """A picture of the scene, (size, size, 3) uint8: anti-aliased, each object jittered, on a
    background with its own tint, brightness, gradient and noise. `seed` varies only the drawing."""
    rng = random.Random(drawing_seed(scene, seed))
    fine = 3 * size  # drawn at three times the size and shrunk: that is the anti-aliasing
    brightness, tint = rng.uniform(0.05, 0.95), rng.random()
    picture = Image.new("RGB", (fine, fine), rgb(tint, rng.uniform(0, 0.15), brightness))
    pen = ImageDraw.Draw(picture)
    for obj in scene:
        paint(obj, pen, fine / 3, rng)
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(64))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    down = rng.uniform(-24, 24) * ramp[:, None, None]
    across = rng.uniform(-24, 24) * ramp[None, :, None]
    grain = noise.normal(0, rng.uniform(0, 6), pixels.shape)
    return (pixels + (down + across) + grain).clip(0, 255).astype(np.uint8)


def draw_split(split, indices, size, world=World()):
    """Pictures of these scenes of a split, the same on every call: (n, size, size, 3) uint8"""
    return np.stack([draw(make_scene(split, 0, i, world), size) for i in indices])


def patches_of(place, side):
    """Indices of the patches that a place of the board covers, if there are side x side patches."""
    row, col = divmod(place, 3)
    k = side // 3  # a place is k x k patches
    return [(row * k + i) * side + col * k + j for i in range(k) for j in range(k)]


# ---- captions ----------------------------------------------------------------------------------

def wordings_of(obj):
    return RICH_WORDINGS if obj.size else WORDINGS


def caption(scene, wording=0):
    """The scene in words; all wordings say the same."""
    said = []
    for o in scene:
        text = wordings_of(o)[wording]
        said.append(text.format(size=o.size, color=o.color, shape=o.shape, place=PLACES[o.place]))
    return ", ".join(said) + "."


def any_caption(scene, rng):
    """A caption in a random wording."""
    return caption(scene, rng.randrange(len(wordings_of(scene[0]))))


def keywords(scene):
    """An alt text, content words only: ' brown star middle center cyan triangle bottom left'"""
    text = "".join(f" {o.size} {o.color} {o.shape} {PLACES[o.place]}" for o in scene)
    return text.replace("  ", " ")  # the plain world has no sizes


def parse_caption(text):
    """The objects that a caption names, {(color, shape, place, size)}; "" for what it leaves out.

    >>> sorted(parse_caption("a red circle at the top left, a small blue star"))
    [('blue', 'star', '', 'small'), ('red', 'circle', 'top left', '')]
    """
    objects = set()
    for part in re.split(r"[,.]", text):
        words = re.findall(r"[a-z]+", part)

        def first(names):
            return next((word for word in words if word in names), "")

        color, shape, size, row, col = map(first, (COLORS, SHAPES, SIZES, ROWS, COLS))
        place = f"{row} {col}" if row and col else ""
        if color or shape or place or size:
            objects.add((color, shape, place, size))
    return objects


def score_caption(text, scene):
    """(right, said, true): how many objects of a caption are right in every attribute, how many
    it names, and how many there are."""
    said = parse_caption(text)
    true = {(o.color, o.shape, PLACES[o.place], o.size) for o in scene}
    return len(said & true), len(said), len(true)


# ---- questions ---------------------------------------------------------------------------------

class About(NamedTuple):
    """What a question is about; None where it names nothing. Two questions about the same thing in
    a scene have the same answer, however they are worded."""
    type: str
    color: str | None = None
    shape: str | None = None
    relation: str | None = None
    other_color: str | None = None
    other_shape: str | None = None


class QA(NamedTuple):
    type: str
    question: str
    answer: str
    about: About


def types_of(scene):
    """The question types of this scene's world."""
    return RICH_TYPES if scene[0].size else QUESTION_TYPES


def ask(scene, type, rng):
    """A random question of this type as a QA, or None where the scene has no unambiguous one."""
    types = types_of(scene)
    if type not in types:
        raise ValueError(f"unknown question type {type!r}, expected one of {', '.join(types)}")
    found = FIND[type](scene, rng)
    if found is None:
        return None
    about, answer = found
    return QA(type, word_question(about, types == RICH_TYPES, rng), answer, about)


def ask_any(scene, rng):
    """A random question of a random type that this scene can answer."""
    while True:
        qa = ask(scene, rng.choice(types_of(scene)), rng)
        if qa:
            return qa


def word_question(about, rich, rng):
    """The question in a random wording; the rich world has more of them, and some synonyms."""
    key = "count_color" if about.type == "count" and about.color else about.type
    wordings, words = QUESTIONS.get(key, []), about._asdict()  # size is rich only
    if not rich:
        return rng.choice(wordings).format(**words)
    wording = rng.choice(wordings + RICH_QUESTIONS[key])
    for slot in ("color", "shape", "other_color", "other_shape"):
        if rng.random() < 0.3:
            words[slot] = SYNONYMS.get(words[slot], words[slot])
    return wording.format(**words)


# A function (scene, rng) -> (About, answer) for each type of question; None if it has no such
# question. 'The circle' must mean one object, so only a unique shape is asked for its colour.

def unique(scene, attribute):
    """The objects that share this attribute, 'color' or 'shape', with no other object."""
    values = [getattr(o, attribute) for o in scene]
    return [o for o in scene if values.count(getattr(o, attribute)) == 1]


def find_color(scene, rng):
    candidates = unique(scene, "shape")
    if not candidates:
        return None
    o = rng.choice(candidates)
    return About("color", shape=o.shape), o.color


def find_shape(scene, rng):
    candidates = unique(scene, "color")
    if not candidates:
        return None
    o = rng.choice(candidates)
    return About("shape", color=o.color), o.shape


def find_where(scene, rng):
    o = rng.choice(scene)
    return About("where", o.color, o.shape), PLACES[o.place]


def find_size(scene, rng):
    o = rng.choice(scene)
    return About("size", o.color, o.shape), o.size


def find_count(scene, rng):
    colors = [o.color for o in scene]
    if rng.random() >= 0.5:
        return About("count"), NUMBERS[len(scene)]
    color = rng.choice(colors if rng.random() < 0.7 else COLORS)  # else most would be 'zero'
    return About("count", color), NUMBERS[colors.count(color)]


def find_exists(scene, rng):
    o = rng.choice(scene)
    color, shape = o.color, o.shape
    if rng.random() >= 0.5:
        return About("exists", color, shape), "yes"
    there = {(p.color, p.shape) for p in scene}
    while (color, shape) in there:  # a hard no: the colour or the shape is there, but not both
        if rng.random() < 0.5:
            color, shape = o.color, rng.choice(SHAPES)
        else:
            color, shape = rng.choice(COLORS), o.shape
    return About("exists", color, shape), "no"


def find_relation(scene, rng):
    relation = rng.choice(list(RELATIONS))
    axis, sign = RELATIONS[relation]
    # Each pair comes in both orders, so yes and no are equally likely.
    pairs = [(o, p) for o in scene for p in scene if getattr(o, axis) != getattr(p, axis)]
    if not pairs:
        return None
    o, other = rng.choice(pairs)
    holds = sign * (getattr(o, axis) - getattr(other, axis)) > 0
    about = About("relation", o.color, o.shape, relation, other.color, other.shape)
    return about, "yes" if holds else "no"


FIND = {"color": find_color, "shape": find_shape, "where": find_where, "count": find_count,
        "exists": find_exists, "size": find_size, "relation": find_relation}
