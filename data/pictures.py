"""Pictures: read from files as small squares, redrawn, and drawn for people to look at."""
import hashlib
import math
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from data.files import Refused, Stage, checked

MOST_PIXELS = 90_000_000  # of a file: more are not read
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would be a warning
MISSING, BROKEN = UNREADABLE = "no such file in --images", "a picture that cannot be read"
COLORS = set("red orange yellow green cyan blue purple violet pink brown black white gray grey "
             "gold silver".split())
PLACES = set("left right top bottom upper lower middle center centre corner above below".split())


# ---- reading ------------------------------------------------------------------------------------

def read_picture(path, size):
    """Any PNG or JPEG as (1, size, size, 3) uint8. Raises Refused if it cannot be read.

    It is padded to a square with its border's median colour.
    """
    try:
        picture = open_picture(path)
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        if not os.path.exists(path):
            raise Refused(f"there is no picture {str(path)!r:.200}")
        raise Refused(f"cannot read {str(path)!r} as a picture ({error}); PNG and JPEG files work")
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(v) for v in np.median(border, axis=0)))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    smooth = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    pixels = np.array(square.resize((size, size), smooth))
    return torch.from_numpy(pixels)[None]  # (1, size, size, 3)


def open_picture(path):
    """A file as an RGB picture, upright as viewers show it; transparent pixels become white."""
    picture = Image.open(path)
    if math.prod(picture.size) > MOST_PIXELS:
        raise ValueError(f"more than {MOST_PIXELS:,} pixels")
    picture = ImageOps.exif_transpose(picture)  # phones say in EXIF how they were held
    if picture.mode.startswith("I"):  # 16-bit greyscale
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture.thumbnail((2048, 2048))  # a long strip would become a huge square
    return picture


def decode_all(images, names, size, folder):
    """The pictures of a folder, decoded once: (array, marks). A mark is the hash of a picture's
    pixels or, if it cannot be used, one of UNREADABLE.

    array (n, size, size, 3) uint8 is a file that is mapped into memory, so there may be more
    pictures than memory holds. It is made again if a picture changes.
    """
    paths = [Path(images) / name for name in names]
    facts = [os.path.exists(p) and [os.path.getsize(p), os.path.getmtime(p)] for p in paths]
    what = ascii([Path(images).resolve(), size, names, facts])
    stage = Stage(folder, hashlib.sha256(what.encode()).hexdigest()[:16], {})
    target = stage.folder / "pixels"

    def decode(path):
        try:
            pixels = read_picture(path, size).numpy().tobytes()
            return pixels, hashlib.sha256(pixels).hexdigest()
        except Refused:
            return bytes(3 * size * size), BROKEN if os.path.exists(path) else MISSING

    if stage.config() is None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        marks = []
        with open(target, "wb") as file, ThreadPool() as pool:
            decoded = pool.imap(decode, paths, chunksize=32)
            for pixels, mark in tqdm(decoded, "decoding", len(paths), leave=False):
                file.write(pixels)
                marks.append(mark)
        stage.finish(marks=marks)
    array = np.memmap(checked(target), np.uint8, "r", shape=(len(names), size, size, 3))
    return array, stage.config()["marks"]


def redrawn(picture, text, rng):
    """Another drawing of the same thing: a picture (size, size, 3) uint8 moved a little; if its
    text names no place, of another size and proportion, too, and turned a little; and, if it names
    no colour, in a quarter of cases without them. A ViT that sees the same few pictures again and
    again would learn them by heart, and not what they show."""
    words, size, half = set(text.split()), len(picture), len(picture) / 2
    y, x = (size * rng.uniform(-1, 1) / 24 for _ in range(2))
    zoom, stretch, angle = 1.0, 1.0, 0.0
    if not words & PLACES:
        zoom, stretch = rng.uniform(0.7, 1.4), rng.uniform(0.85, 1.18)
        angle = rng.uniform(-0.25, 0.25)  # in radians, about the centre
    a, b = zoom * math.cos(angle), -zoom * stretch * math.sin(angle)
    c, d = zoom * math.sin(angle), zoom * stretch * math.cos(angle)
    where = (a, b, half - (a + b) * half + x, c, d, half - (c + d) * half + y)  # of each pixel
    other = Image.fromarray(picture).transform(
        (size, size), Image.Transform.AFFINE, where, Image.Resampling.BILINEAR,
        fillcolor=tuple(picture[0, 0].tolist()))  # what was outside is as the top left corner
    if not words & COLORS and rng.random() < 0.25:
        other = other.convert("L").convert("RGB")
    return np.asarray(other)


# ---- drawn for people ---------------------------------------------------------------------------

CELL, TOP, GAP = 92, 44, 24  # of a map of words: side of a patch, above it, beside it


def enlarged(picture, side):
    """A (size, size, 3) uint8 array as a square picture whose pixels stay visible."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


def word_map(path, picture, panels, note):
    """A picture (size, size, 3) uint8 and, beside it, the top words of each patch, as a PNG.

    Words are as large and as dark as their weight.
    panels: [(title, [[(word, weight from 0 to 1), ..] for each patch])]
    """
    side = math.isqrt(len(panels[0][1]))  # patches
    width = side * CELL
    size = ((len(panels) + 1) * (width + GAP) + GAP, TOP + width + 40)
    sheet = Image.new("RGB", size, "white")
    pen, large = ImageDraw.Draw(sheet), enlarged(picture, width)
    pale = Image.blend(large, Image.new("RGB", large.size, "white"), 0.8)
    for p, (title, patches) in enumerate([("the picture", []), *panels]):
        left = GAP + p * (width + GAP)
        pen.text((left, TOP - 10), title, fill="black", font_size=19, anchor="lb")
        sheet.paste(pale if patches else large, (left, TOP))
        for n, words in enumerate(patches):
            draw_patch(pen, left + n % side * CELL, TOP + n // side * CELL, words)
    pen.text((GAP, sheet.height - 26), note, fill="dimgray", font_size=13)
    sheet.save(path)


def draw_patch(pen, x, y, words):
    """One patch's three heaviest words below each other; words: [(word, weight)]."""
    pen.rectangle([x, y, x + CELL, y + CELL], outline="#cccccc")
    heaviest = sorted(words, key=lambda pair: pair[1], reverse=True)
    for k, (word, weight) in enumerate(heaviest[:3]):
        if weight >= 0.05:  # fainter ones are left out
            shade = int(190 * (1 - min(weight, 1)))  # 0 is black
            pen.text((x + CELL / 2, y + 18 + 28 * k), word, fill=(shade, shade, shade),
                     font_size=10 + 8 * min(weight, 1), anchor="mm")


def contact_sheet(path, pictures, answered):
    """Pictures (n, size, size, 3) uint8, each with what was Answered about it, green if it is
    right, three side by side, as a PNG."""
    width, height = 280, 290  # of one of them
    sheet = Image.new("RGB", (3 * width, math.ceil(len(pictures) / 3) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (picture, a) in enumerate(zip(pictures, answered)):
        x, y = k % 3 * width + 25, k // 3 * height
        sheet.paste(enlarged(picture, 200), (x, y + 10))
        text = f"{a.qa.question}\nanswer: {a.answer}\ntruth: {a.qa.answer}"
        pen.text((x, y + 216), text, "darkgreen" if a.right else "darkred", font_size=14, spacing=6)
    sheet.save(path)
