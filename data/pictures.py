"""Pictures from files as small squares: any PNG or JPEG, one warped, and many, decoded once."""
import hashlib
import json
import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.files import RANK, RANKS, Refused, read_summed, write_summed


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


# ---- many of them --------------------------------------------------------------------------------

def decode_all(images, names, size, folder):
    """The pictures of a folder, by name, decoded once: (array, marks).

    array (n, size, size, 3) uint8 is a file that is mapped into memory, so there may be more of
    them than memory holds; it is made again if a picture changes. A mark is the hash of a picture's
    pixels, or why it cannot be read. The two files are in `folder`.
    """
    files = [[name, *size_and_time(Path(images) / name)] for name in names]
    what = hashlib.sha256(json.dumps([str(Path(images).resolve()), size, names]).encode())
    path = Path(folder) / f"{what.hexdigest()[:16]}.npy"
    index = path.with_suffix(".json")
    found = load_decoded(path, index, files)
    if found is None and RANK == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        marks = decode(images, names, size, path)
        write_summed(index, {"files": files, "marks": marks})
    if RANKS > 1:
        torch.distributed.barrier()  # the others wait for the first
    return found or load_decoded(path, index, files)


def size_and_time(path):
    """What changes when a file does; (0, 0) if there is none"""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # a name may be no name
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def load_decoded(path, index, files):
    """(array, marks) if they are there and of these files, else None."""
    try:
        known = read_summed(index)
        array = np.load(path, mmap_mode="r")
    except (Refused, OSError, ValueError):
        return None
    return (array, known["marks"]) if known["files"] == files else None


def decode(images, names, size, path):
    """Decode pictures, a thousand at a time, into a .npy file. Returns their marks."""
    aside = path.with_suffix(".new")
    array = np.lib.format.open_memmap(aside, "w+", np.uint8, (len(names), size, size, 3))
    marks = []

    def decode_one(i):
        try:
            pixels = read_picture(Path(images) / names[i], size).numpy()[0]
        except Refused as error:
            return str(error)
        except MemoryError:
            return f"{names[i]!r} needs more memory than there is"
        array[i] = pixels
        return hashlib.sha256(pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in tqdm(range(0, len(names), 1000), "decoding, in thousands", leave=False):
            marks += pool.map(decode_one, range(start, min(start + 1000, len(names))))
    array.flush()
    del array
    os.replace(aside, path)
    return marks
