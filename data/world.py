"""The world: scenes of coloured shapes, their pictures, captions and questions, and the scoring of answers.

Everything is generated from (split, seed, index), so there is nothing to download and nothing to store, and the
generator knows the truth about every picture. A scene is a list of objects, each with a colour, a shape and a place on
a 3 x 3 board:

    >>> scene = make_scene("test", seed=0, index=1)
    >>> caption(scene)
    'a purple triangle at the top center, a brown square at the bottom left.'
    >>> ask(scene, "color", random.Random(0)).answer
    'brown'
    >>> score_caption("a brown square at the bottom left.", scene)  # one of two objects found, none invented
    (1, 1, 2)

Splits are seeds: 'train', 'val' and 'test' never share a scene's random stream, and 'comp' holds only pictures with at
least one of the colour-shape pairs in COMP_PAIRS, which occur in no other split's pictures.
"""
import colorsys
import math
import random
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

PAINTS = {  # hue in degrees, saturation, value (jittered when drawn)
    "red": (0, 0.95, 0.95), "brown": (24, 0.75, 0.48), "yellow": (54, 0.95, 0.95), "green": (120, 0.9, 0.7),
    "cyan": (180, 0.9, 0.95), "blue": (225, 0.9, 0.95), "purple": (275, 0.85, 0.75), "pink": (330, 0.45, 1.0)}
COLORS = list(PAINTS)
SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross"]
ROWS, COLS = ["top", "middle", "bottom"], ["left", "center", "right"]
PLACES = [f"{row} {col}" for row in ROWS for col in COLS]  # in raster order
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
QUESTION_TYPES = ["color", "shape", "where", "count", "exists"]

# The pairs that no training picture shows: one for each colour, and every shape is in one or two. The rest of a pair's
# colour and of its shape are seen plenty, so a model that has understood both can name the pair.
COMP_PAIRS = {(color, SHAPES[(i + 3) % len(SHAPES)]) for i, color in enumerate(COLORS)}

QUESTIONS = {  # at least two wordings each; {c} colour, {s} shape
    "color": ["what color is the {s}?", "which color does the {s} have?"],
    "shape": ["what shape is the {c} object?", "which shape does the {c} object have?"],
    "where": ["where is the {c} {s}?", "in which place is the {c} {s}?"],
    "count": ["how many objects are there?", "how many objects can you see?"],
    "count_color": ["how many {c} objects are there?", "how many {c} objects can you see?"],
    "exists": ["is there a {c} {s}?", "can you see a {c} {s}?"],
}
ANSWERS = {"color": COLORS, "shape": SHAPES, "where": PLACES, "count": NUMBERS[:4], "exists": ["yes", "no"]}
WORDINGS = ["a {c} {s} at the {p}", "at the {p} a {c} {s}", "a {s} that is {c} at the {p}"]  # of an object in a caption
CAPTION_REQUESTS = ["describe the scene.", "what do you see?"]


class Object(NamedTuple):
    color: str
    shape: str
    place: int  # index into PLACES


class QA(NamedTuple):
    type: str
    question: str
    answer: str
    about: tuple  # (type, colour, shape): two questions about the same thing have the same answer, in whatever words


def make_scene(split, seed, index, max_objects=3):
    """The objects of scene `index` in raster order: 1 to max_objects of them, in distinct places, no two alike.

    Splits: 'train', 'val', 'test' avoid COMP_PAIRS, 'comp' has at least one of them, and 'text:...' (scenes that are
    only ever written about, one stream per name) may have any.
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    n = rng.randint(1, max_objects)
    while True:
        pairs = {(rng.choice(COLORS), rng.choice(SHAPES)) for _ in range(n)}
        unseen = len(pairs & COMP_PAIRS)
        if len(pairs) == n and (split.startswith("text:") or (unseen > 0) == (split == "comp")):
            break
    pairs = rng.sample(sorted(pairs), n)
    return [Object(*pair, place) for pair, place in zip(pairs, sorted(rng.sample(range(9), n)))]


def twin(scene, rng):
    """A scene that differs in one word: one object has another shape (half of the time), colour or place."""
    while True:
        i, what = rng.randrange(len(scene)), rng.choice(["shape", "shape", "color", "place"])
        value = rng.choice({"shape": SHAPES, "color": COLORS, "place": range(9)}[what])
        new = scene[:i] + [scene[i]._replace(**{what: value})] + scene[i + 1:]
        pairs = {(o.color, o.shape) for o in new}
        if new != scene and len(pairs) == len({o.place for o in new}) == len(new) and not pairs & COMP_PAIRS:
            return sorted(new, key=lambda o: o.place)


# ---- pictures ----------------------------------------------------------------------------------------------------------

def outline(shape, x, y, r):
    """The corner points of a shape of radius r around (x, y); a circle has none and is drawn as an ellipse."""
    if shape == "square":
        r *= 0.84  # so that all shapes cover a similar area
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    if shape == "diamond":
        return [(x, y - 1.1 * r), (x + 0.8 * r, y), (x, y + 1.1 * r), (x - 0.8 * r, y)]
    if shape == "star":
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        return [(x + (1.15, 0.5)[i % 2] * r * math.cos(a), y + (1.15, 0.5)[i % 2] * r * math.sin(a)) for i, a in enumerate(angles)]
    if shape == "cross":
        a = 0.34 * r
        return [(x - a, y - r), (x + a, y - r), (x + a, y - a), (x + r, y - a), (x + r, y + a), (x + a, y + a),
                (x + a, y + r), (x - a, y + r), (x - a, y + a), (x - r, y + a), (x - r, y - a), (x - a, y - a)]
    raise ValueError(f"unknown shape {shape!r}, expected one of {', '.join(SHAPES)}")


def draw(scene, size=48, seed=0):
    """A picture of the scene as (size, size, 3) uint8: anti-aliased, jittered in place, scale, hue and brightness, on a
    background with its own tint, brightness, gradient and noise. `seed` varies the drawing, not what is drawn."""
    rng = random.Random(f"draw/{seed}/{scene}")
    fine = 3 * size  # drawn at three times the size and shrunk: that is the anti-aliasing
    dark, tint = rng.uniform(0.05, 0.95), rng.random()
    shades = [int(255 * v) for v in colorsys.hsv_to_rgb(tint, rng.uniform(0, 0.15), dark)]
    picture = Image.new("RGB", (fine, fine), tuple(shades))
    pen, cell = ImageDraw.Draw(picture), fine / 3
    for color, shape, place in scene:
        row, col = divmod(place, 3)
        x = (col + 0.5 + rng.uniform(-0.08, 0.08)) * cell
        y = (row + 0.5 + rng.uniform(-0.08, 0.08)) * cell
        r = rng.uniform(0.36, 0.46) * cell
        hue, saturation, value = PAINTS[color]
        fill = colorsys.hsv_to_rgb((hue + rng.uniform(-6, 6)) / 360 % 1, saturation * rng.uniform(0.9, 1), value * rng.uniform(0.9, 1))
        fill = tuple(int(255 * v) for v in fill)
        if shape == "circle":
            pen.ellipse([x - 0.95 * r, y - 0.95 * r, x + 0.95 * r, y + 0.95 * r], fill=fill)
        else:
            pen.polygon(outline(shape, x, y, r), fill=fill)
    picture = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(64))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    gradient = rng.uniform(-24, 24) * ramp[:, None, None] + rng.uniform(-24, 24) * ramp[None, :, None]
    picture = picture + gradient + noise.normal(0, rng.uniform(0, 6), picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def draw_split(split, indices, size, max_objects=3):
    """The pictures of these scenes of a split, always drawn the same: (n, size, size, 3) uint8"""
    return np.stack([draw(make_scene(split, 0, i, max_objects), size) for i in indices])


# ---- words -------------------------------------------------------------------------------------------------------------

def phrase(obj, wording=0):
    """One object in words; the wordings say the same."""
    return WORDINGS[wording].format(c=obj.color, s=obj.shape, p=PLACES[obj.place])


def caption(scene, wording=0):
    return ", ".join(phrase(obj, wording) for obj in scene) + "."


def keywords(scene):
    """The caption as an alt text, content words only: ' brown star middle center cyan triangle bottom left'"""
    return "".join(f" {o.color} {o.shape} {PLACES[o.place]}" for o in scene)


def ask(scene, type, rng):
    """A random question of this type with its exact answer, or None where the scene has no unambiguous one.

    'exists' is yes or no with equal chance, whatever the scene; its negatives are hard: the colour or the shape that it
    asks for is present, on another object. 'count' asks for all objects or for those of one colour.
    """
    once = lambda values: [v for v in values if values.count(v) == 1]
    c = s = None
    if type == "color":
        found = once([o.shape for o in scene])
        if not found:
            return None
        s = rng.choice(found)
        answer = next(o.color for o in scene if o.shape == s)
    elif type == "shape":
        found = once([o.color for o in scene])
        if not found:
            return None
        c = rng.choice(found)
        answer = next(o.shape for o in scene if o.color == c)
    elif type == "where":
        o = rng.choice(scene)
        c, s, answer = o.color, o.shape, PLACES[o.place]
    elif type == "count":
        answer = NUMBERS[len(scene)]
        if rng.random() < 0.5:
            c = rng.choice([o.color for o in scene] if rng.random() < 0.7 else COLORS)
            answer = NUMBERS[sum(o.color == c for o in scene)]
    elif type == "exists":
        o = rng.choice(scene)
        c, s, answer = o.color, o.shape, "yes"
        if rng.random() < 0.5:
            answer, there = "no", {(o.color, o.shape) for o in scene}
            while (c, s) in there:
                c, s = (o.color, rng.choice(SHAPES)) if rng.random() < 0.5 else (rng.choice(COLORS), o.shape)
    else:
        raise ValueError(f"unknown question type {type!r}, expected one of {', '.join(QUESTION_TYPES)}")
    wordings = QUESTIONS["count_color" if type == "count" and c else type]
    return QA(type, rng.choice(wordings).format(c=c, s=s), answer, (type, c, s))


def ask_any(scene, rng):
    """A random question of a random type that this scene can answer."""
    while True:
        qa = ask(scene, rng.choice(QUESTION_TYPES), rng)
        if qa:
            return qa


def parse_caption(text):
    """The objects that a caption names, as a set of (color, shape, place); half-said objects have None in them.

    >>> sorted(parse_caption("a red circle at the top left, a blue star"))
    [('blue', 'star', None), ('red', 'circle', 'top left')]
    """
    objects = set()
    for part in re.split(r"[,.]", text):
        words = re.findall(r"[a-z]+", part)
        first = lambda names: next((w for w in words if w in names), None)
        row, col = first(ROWS), first(COLS)
        obj = (first(COLORS), first(SHAPES), f"{row} {col}" if row and col else None)
        if any(obj):
            objects.add(obj)
    return objects


def score_caption(text, scene):
    """(right, said, true): how many objects of the caption are right in every attribute, are named, and exist."""
    said = parse_caption(text)
    true = {(o.color, o.shape, PLACES[o.place]) for o in scene}
    return len(said & true), len(said), len(true)
