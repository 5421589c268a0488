"""Pictures: read from files as small squares, warped, and drawn for people to look at."""
import hashlib
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from data.files import Refused

MOST_PIXELS = 90_000_000  # of a file: more are not read
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would be a warning


# ---- reading ------------------------------------------------------------------------------------

def read_picture(path, size):
    """Any PNG or JPEG as (1, size, size, 3) uint8. Raises Refused if it cannot be read.

    It is padded to a square with its border's median colour.
    """
    try:
        picture = open_picture(path)
    except FileNotFoundError:
        raise Refused(f"there is no picture {str(path)!r}")
    except Exception as error:  # a broken file can make Pillow raise nearly anything
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


def decode(paths, size, target):
    """Write many pictures into one file, as (n, size, size, 3) uint8. Returns a mark for each: the
    hash of its pixels, or "" if it cannot be read."""
    marks = []

    def decode_one(path):
        try:
            pixels = read_picture(path, size).numpy().tobytes()
        except Refused:
            return bytes(3 * size * size), ""
        return pixels, hashlib.sha256(pixels).hexdigest()

    with open(target, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in tqdm(range(0, len(paths), 1000), "decoding, in thousands", leave=False):
            for pixels, mark in pool.map(decode_one, paths[start:start + 1000]):
                file.write(pixels)
                marks.append(mark)
    return marks


def warped(picture, y, x, zoom=1.0, stretch=1.0, angle=0.0):
    """A picture (size, size, 3) uint8 as a Pillow image that shows what is y and x pixels further,
    `zoom` times as much of it, `stretch` times more from top to bottom, turned by an angle in
    radians about the centre. What was outside has the colour of the top left corner."""
    size, half = len(picture), len(picture) / 2
    a, b = zoom * math.cos(angle), -zoom * stretch * math.sin(angle)
    c, d = zoom * math.sin(angle), zoom * stretch * math.cos(angle)
    where = (a, b, half - (a + b) * half + x, c, d, half - (c + d) * half + y)  # of each pixel
    return Image.fromarray(picture).transform(
        (size, size), Image.Transform.AFFINE, where, Image.Resampling.BILINEAR,
        fillcolor=tuple(picture[0, 0].tolist()))


# ---- drawn for people ---------------------------------------------------------------------------

CELL, TOP, GAP = 92, 44, 24  # of a map of words: side of a patch, above it, beside it


def enlarged(picture, side):
    """A (size, size, 3) uint8 array as a square picture whose pixels stay visible."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


def word_map(path, picture, panels, note):
    """A picture (size, size, 3) uint8 and, beside it, the top words of each patch, as a PNG.

    Words are as large and as dark as their weight; below, their sums over the patches.
    panels: [(title, [[(word, weight from 0 to 1), ..] for each patch])]
    """
    side = math.isqrt(len(panels[0][1]))  # patches
    width = side * CELL
    size = ((len(panels) + 1) * (width + GAP) + GAP, TOP + width + 190)
    sheet = Image.new("RGB", size, "white")
    pen, large = ImageDraw.Draw(sheet), enlarged(picture, width)
    pale = Image.blend(large, Image.new("RGB", large.size, "white"), 0.8)
    pen.text((GAP, TOP - 10), "the picture", fill="black", font_size=19, anchor="lb")
    sheet.paste(large, (GAP, TOP))
    for p, (title, patches) in enumerate(panels, start=1):
        left = GAP + p * (width + GAP)
        pen.text((left, TOP - 10), title, fill="black", font_size=19, anchor="lb")
        sheet.paste(pale, (left, TOP))
        for n, words in enumerate(patches):
            draw_patch(pen, left + n % side * CELL, TOP + n // side * CELL, words)
        draw_sums(pen, left, TOP + width, width, patches)
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


def draw_sums(pen, left, top, width, patches):
    """The eight heaviest words of a whole picture, as bars in two columns of four."""
    pen.text((left, top + 8), "summed over the patches:", fill="dimgray", font_size=13)
    total = Counter()
    for word, weight in sum(patches, []):
        total[word] += weight
    del total["."]  # the empty word
    heaviest = (+total).most_common(8)  # + leaves out what is not above zero, as raw weights may be
    for k, (word, weight) in enumerate(heaviest):
        x, y = left + k // 4 * width // 2, top + 34 + 28 * (k % 4)
        end = x + 74 + 120 * weight / heaviest[0][1]
        pen.text((x, y), word, fill="black", font_size=14)
        pen.rectangle([x + 74, y + 3, end, y + 13], fill="#1b6ca8")
        pen.text((x + 200, y), f"{weight:.1f}", fill="black", font_size=13)


def contact_sheet(path, rows):
    """Pictures with a question, the answer given and the true one, three side by side, as a PNG.

    rows: [(picture (size, size, 3) uint8, question, answer, truth, whether it is right)]
    """
    width, height = 280, 290  # of one of them
    sheet = Image.new("RGB", (3 * width, math.ceil(len(rows) / 3) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (picture, question, answer, truth, right) in enumerate(rows):
        x, y = k % 3 * width + 25, k // 3 * height
        sheet.paste(enlarged(picture, 200), (x, y + 10))
        inks = ("black", "darkgreen" if right else "darkred", "black")
        for j, text in enumerate((question, f"answer: {answer}", f"truth: {truth}")):
            pen.text((x, y + 216 + 20 * j), text, fill=inks[j], font_size=14)
    sheet.save(path)
