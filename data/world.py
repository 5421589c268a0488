"""The world: scenes of coloured shapes, their pictures, captions and questions, and the scoring of answers.

Everything is generated from (split, seed, index), so there is nothing to download and nothing to store, and the
generator knows the truth about every picture. A scene is a list of objects, each with a colour, a shape and a place on
a 3 x 3 board (in the *rich* world also a size):

    >>> scene = make_scene("test", seed=0, index=1)
    >>> caption(scene)
    'a purple triangle at the top center, a brown square at the bottom left.'
    >>> ask(scene, "color", random.Random(0)).answer
    'brown'
    >>> score_caption("a brown square at the bottom left.", scene)  # one of two objects found, none invented
    (1, 1, 2)
    >>> rich = make_scene("test", seed=0, index=1, world=World(rich=True))
    >>> caption(rich)
    'a small purple triangle at the top center, a large brown square at the bottom left.'
    >>> ask(rich, "relation", random.Random(0))[1:3]
    ('is the brown square below the purple triangle?', 'yes')

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
SIZES = ["small", "large"]  # of the rich world
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six"]
QUESTION_TYPES = ["color", "shape", "where", "count", "exists"]
RICH_TYPES = QUESTION_TYPES + ["size", "relation"]
RELATIONS = {"left of": ("col", -1), "right of": ("col", 1), "above": ("row", -1), "below": ("row", 1)}
SYNONYMS = {"circle": "disc", "square": "box", "diamond": "rhombus", "cross": "plus", "purple": "violet", "cyan": "turquoise", "pink": "rose"}

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
RICH_QUESTIONS = {  # the rich world asks in more ways; {r} relation, {d} and {t} the other object's colour and shape
    "color": ["tell me the color of the {s}.", "the {s} has what color?"],
    "shape": ["what is the {c} thing?", "tell me the shape of the {c} object."],
    "where": ["tell me where the {c} {s} is.", "at which place do you find the {c} {s}?"],
    "count": ["count the objects.", "what is the number of objects?"],
    "count_color": ["count the {c} objects.", "what is the number of {c} objects?"],
    "exists": ["does the scene have a {c} {s}?", "do you see any {c} {s}?"],
    "size": ["how large is the {c} {s}?", "what size is the {c} {s}?"],
    "relation": ["is the {c} {s} {r} the {d} {t}?", "do you see the {c} {s} {r} the {d} {t}?"],
}
ANSWERS = {"color": COLORS, "shape": SHAPES, "where": PLACES, "count": NUMBERS[:4], "exists": ["yes", "no"], "size": SIZES,
           "relation": ["yes", "no"]}
WORDINGS = ["a {c} {s} at the {p}", "at the {p} a {c} {s}", "a {s} that is {c} at the {p}"]  # of an object in a caption
RICH_WORDINGS = ["a {z} {c} {s} at the {p}", "at the {p} a {z} {c} {s}", "a {s} that is {z} and {c} at the {p}", "the {p} has a {z} {c} {s}"]
CAPTION_REQUESTS = ["describe the scene.", "what do you see?"]


class World(NamedTuple):
    """Which scenes there are. The rich world has sizes, relations, synonyms and more wordings."""
    max_objects: int = 3
    rich: bool = False


class Object(NamedTuple):
    color: str
    shape: str
    place: int  # index into PLACES
    size: str = ""  # of the rich world

    def __repr__(self):  # it seeds a picture's drawing, which must not depend on what the plain world lacks
        return f"Object(color={self.color!r}, shape={self.shape!r}, place={self.place}{f', size={self.size!r}' * bool(self.size)})"


class QA(NamedTuple):
    type: str
    question: str
    answer: str
    about: tuple  # (type, colour, shape) and what else it names: two questions about the same thing have the same answer, in whatever words


def make_scene(split, seed, index, world=World()):
    """The objects of scene `index` in raster order: 1 to max_objects of them, in distinct places, no two alike.

    Splits: 'train', 'val', 'test' avoid COMP_PAIRS, 'comp' has at least one of them, and 'text:...' (scenes that are
    only ever written about, one stream per name) may have any.
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    n = rng.randint(1, world.max_objects)
    while True:
        pairs = {(rng.choice(COLORS), rng.choice(SHAPES)) for _ in range(n)}
        unseen = len(pairs & COMP_PAIRS)
        if len(pairs) == n and (split.startswith("text:") or (unseen > 0) == (split == "comp")):
            break
    pairs = rng.sample(sorted(pairs), n)
    scene = [Object(*pair, place) for pair, place in zip(pairs, sorted(rng.sample(range(9), n)))]
    return [o._replace(size=rng.choice(SIZES)) for o in scene] if world.rich else scene


def is_rich(scene):
    return scene[0].size != ""


def types_of(scene):
    """The types of question that can be asked in this scene's world."""
    return RICH_TYPES if is_rich(scene) else QUESTION_TYPES


def twin(scene, rng):
    """A scene that differs in one word: one object has another shape (half of the time), colour or place."""
    while True:
        i, what = rng.randrange(len(scene)), rng.choice(["shape", "shape", "color", "place"] + ["size"] * is_rich(scene))
        value = rng.choice({"shape": SHAPES, "color": COLORS, "place": range(9), "size": SIZES}[what])
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
    for color, shape, place, size_word in scene:
        row, col = divmod(place, 3)
        x = (col + 0.5 + rng.uniform(-0.08, 0.08)) * cell
        y = (row + 0.5 + rng.uniform(-0.08, 0.08)) * cell
        r = rng.uniform(*{"": (0.36, 0.46), "small": (0.22, 0.28), "large": (0.38, 0.46)}[size_word]) * cell
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


def draw_split(split, indices, size, world=World()):
    """The pictures of these scenes of a split, always drawn the same: (n, size, size, 3) uint8"""
    return np.stack([draw(make_scene(split, 0, i, world), size) for i in indices])


# ---- words -------------------------------------------------------------------------------------------------------------

def wordings_of(obj):
    return RICH_WORDINGS if obj.size else WORDINGS


def phrase(obj, wording=0):
    """One object in words; the wordings say the same."""
    return wordings_of(obj)[wording].format(z=obj.size, c=obj.color, s=obj.shape, p=PLACES[obj.place])


def caption(scene, wording=0):
    return ", ".join(phrase(obj, wording) for obj in scene) + "."


def any_caption(scene, rng):
    """A caption in a random wording."""
    return caption(scene, rng.randrange(len(wordings_of(scene[0]))))


def keywords(scene):
    """The caption as an alt text, content words only: ' brown star middle center cyan triangle bottom left'"""
    return "".join(f" {o.size} {o.color} {o.shape} {PLACES[o.place]}".replace("  ", " ") for o in scene)


def ask(scene, type, rng):
    """A random question of this type with its exact answer, or None where the scene has no unambiguous one.

    'exists' is yes or no with equal chance, whatever the scene; its negatives are hard: the colour or the shape that it
    asks for is present, on another object. 'count' asks for all objects or for those of one colour. The rich world adds 'size'
    and 'relation' (does one object lie left of, right of, above or below another? yes and no with equal chance).
    """
    once = lambda values: [v for v in values if values.count(v) == 1]
    c = s = other = relation = None
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
    elif type == "size" and is_rich(scene):
        o = rng.choice(scene)
        c, s, answer = o.color, o.shape, o.size
    elif type == "relation" and is_rich(scene):
        at = lambda o: {"row": o.place // 3, "col": o.place % 3}
        relation = rng.choice(list(RELATIONS))
        axis, sign = RELATIONS[relation]
        pairs = [(o, p) for o in scene for p in scene if at(o)[axis] != at(p)[axis]]  # each pair both ways: yes and no balance
        if not pairs:
            return None
        o, other = rng.choice(pairs)
        c, s, answer = o.color, o.shape, "yes" if sign * (at(o)[axis] - at(other)[axis]) > 0 else "no"
    else:
        raise ValueError(f"unknown question type {type!r}, expected one of {', '.join(types_of(scene))}")
    key = "count_color" if type == "count" and c else type
    name = lambda word: SYNONYMS.get(word, word) if is_rich(scene) and rng.random() < 0.3 else word
    wordings = QUESTIONS.get(key, []) + (RICH_QUESTIONS[key] if is_rich(scene) else [])
    d, t = other[:2] if other else (None, None)
    question = rng.choice(wordings).format(c=name(c), s=name(s), r=relation, d=name(d), t=name(t))
    return QA(type, question, answer, (type, c, s) + ((relation, d, t) if other else ()))


def ask_any(scene, rng):
    """A random question of a random type that this scene can answer."""
    while True:
        qa = ask(scene, rng.choice(types_of(scene)), rng)
        if qa:
            return qa


def parse_caption(text):
    """The objects that a caption names, as a set of (color, shape, place, size); what it does not say is empty.

    >>> sorted(parse_caption("a red circle at the top left, a small blue star"))
    [('blue', 'star', '', 'small'), ('red', 'circle', 'top left', '')]
    """
    objects = set()
    for part in re.split(r"[,.]", text):
        words = re.findall(r"[a-z]+", part)
        first = lambda names: next((w for w in words if w in names), "")
        row, col = first(ROWS), first(COLS)
        obj = (first(COLORS), first(SHAPES), f"{row} {col}" if row and col else "", first(SIZES))
        if any(obj):
            objects.add(obj)
    return objects


def score_caption(text, scene):
    """(right, said, true): how many objects of the caption are right in every attribute, are named, and exist."""
    said = parse_caption(text)
    true = {(o.color, o.shape, PLACES[o.place], o.size) for o in scene}
    return len(said & true), len(said), len(true)
