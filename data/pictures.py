"""Pictures, read from files as small squares, and drawn for people to look at."""
import math
import warnings
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError

from data.files import Refused

INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3",
        "#5c6670", "#b56576", "#00868b", "#8a6d3b", "#333333"]
NOTE_INK = "#444444"
CELL = 92  # side of a patch in a map of words
MAP_TOP, MAP_GAP = 44, 24


def read_picture(path, size):
    """Any PNG or JPEG as (1, size, size, 3) uint8. Raises Refused if it cannot be read.

    Transparent pixels become white, and it is padded to a square with its border's median colour.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # 90 million pixels
            picture = Image.open(path)
            picture.load()
    except FileNotFoundError:
        raise Refused(f"there is no picture {str(path)!r}")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError,
            Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Refused(f"cannot read {str(path)!r} as a picture ({error}); PNG and JPEG files work")
    if picture.mode.startswith("I"):  # 16-bit greyscale
        grey = np.asarray(picture, dtype=np.float64) / 257
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    picture.thumbnail((2048, 2048))  # a long strip would become a huge square
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(v) for v in np.median(border, axis=0)))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    smooth = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    pixels = np.array(square.resize((size, size), smooth))
    return torch.from_numpy(pixels)[None]  # (1, size, size, 3)


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

def enlarged(picture, side):
    """A (size, size, 3) uint8 array as a square picture whose pixels stay visible."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


def word_map(path, picture, panels, note):
    """A picture (size, size, 3) uint8 and, beside it, the top words of each patch, as a PNG.

    Words are as large and as dark as their weight; below, their sums over the patches.
    panels: [(title, [[(word, weight from 0 to 1), ..] for each patch])]
    """
    side = int(len(panels[0][1]) ** 0.5)  # patches
    width = side * CELL
    step = width + MAP_GAP
    sheet = Image.new("RGB", ((len(panels) + 1) * step + MAP_GAP, MAP_TOP + width + 190), "white")
    pen = ImageDraw.Draw(sheet)
    large = enlarged(picture, width)
    pale = Image.blend(large, Image.new("RGB", large.size, "white"), 0.8)
    pen.text((MAP_GAP, MAP_TOP - 10), "the picture", fill="black", font_size=19, anchor="lb")
    sheet.paste(large, (MAP_GAP, MAP_TOP))
    for p, (title, patches) in enumerate(panels, start=1):
        left = MAP_GAP + p * step
        pen.text((left, MAP_TOP - 10), title, fill="black", font_size=19, anchor="lb")
        sheet.paste(pale, (left, MAP_TOP))
        for n, words in enumerate(patches):
            draw_patch(pen, left + n % side * CELL, MAP_TOP + n // side * CELL, words)
        draw_sums(pen, left, MAP_TOP + width, width, patches, INKS[p])
    pen.text((MAP_GAP, sheet.height - 26), note, fill=NOTE_INK, font_size=13)
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


def draw_sums(pen, left, top, width, patches, ink):
    """The eight heaviest words of a whole picture, as bars in two columns of four."""
    pen.text((left, top + 8), "summed over the patches:", fill=NOTE_INK, font_size=13)
    total = Counter()
    for words in patches:
        for word, weight in words:
            total[word] += weight if word != "." else 0  # the empty word
    most = max([1e-9, *total.values()])
    for k, (word, weight) in enumerate(total.most_common(8)):
        x, y = left + k // 4 * width // 2, top + 34 + 28 * (k % 4)
        pen.text((x, y), word, fill="black", font_size=14)
        pen.rectangle([x + 74, y + 3, x + 74 + 120 * weight / most, y + 13], fill=ink)
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
        verdict = "darkgreen" if right else "darkred"
        sheet.paste(enlarged(picture, 200), (x, y + 10))
        pen.text((x, y + 216), question, fill="black", font_size=14)
        pen.text((x, y + 236), f"answer: {answer}", fill=verdict, font_size=14)
        pen.text((x, y + 256), f"truth: {truth}", fill="black", font_size=14)
    sheet.save(path)
