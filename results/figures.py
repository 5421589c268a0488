"""Figures, drawn with Pillow alone: lines with bands, maps of words, sheets of answered questions.

Nothing is measured here, and nothing of the project is imported.
"""
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3",
        "#5c6670", "#b56576", "#00868b", "#8a6d3b", "#333333"]
NOTE_INK = "#444444"


def enlarged(picture, side):
    """A (size, size, 3) uint8 array as a square picture whose pixels stay visible."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


# ---- lines with bands ----------------------------------------------------------------------------

PLOT_WIDTH, PLOT_HEIGHT = 470, 330  # of one panel's axes, in pixels
PLOT_LEFT, PLOT_TOP = 60, 66  # room for the numbers on the y axis, and for the title
PANEL_STEP = PLOT_WIDTH + PLOT_LEFT + 20  # from one panel to the next
LEGEND_COLUMNS, LEGEND_STEP, LEGEND_LINE = 3, 330, 22


class Line(NamedTuple):
    """One line of a plot; with `lowest` and `highest`, it has a band around it."""
    xs: list
    ys: list
    lowest: list = None
    highest: list = None


class Axes:
    """One panel, and where its numbers are on the picture: x from 0 to xmax, y over ylim."""

    def __init__(self, pen, left, xmax, ylim, log):
        self.pen, self.left, self.top = pen, left, PLOT_TOP
        self.right, self.bottom = left + PLOT_WIDTH, PLOT_TOP + PLOT_HEIGHT
        self.xmax, self.ylim, self.log = xmax, ylim, log

    def scale(self, x):
        """log(1 + x) rather than log x, so that a logarithmic axis has a zero."""
        x = np.asarray(x, dtype=float)
        return np.log10(1 + x) if self.log else x

    def x(self, values):
        return self.left + PLOT_WIDTH * self.scale(values) / self.scale(self.xmax)

    def y(self, values):
        low, high = self.ylim
        return self.top + PLOT_HEIGHT * (1 - (np.clip(values, low, high) - low) / (high - low))

    def points(self, xs, ys):
        return [(float(x), float(y)) for x, y in zip(self.x(xs), self.y(ys))]

    def x_ticks(self):
        """[(x, what is written there)]"""
        if self.log:
            ticks = [0] + [10 ** i for i in range(7) if 10 ** i <= self.xmax]
        else:
            ticks = [round(self.xmax * i / 5) for i in range(6)]
        return [(tick, f"{tick:,}") for tick in ticks]

    def draw(self, xlabel, ylabel, names_of_x):
        """The frame: grid lines, numbers, names of the axes."""
        pen = self.pen
        for tick in np.linspace(*self.ylim, 6):
            y = self.y(tick)
            pen.line([(self.left, y), (self.right, y)], fill="#dddddd")
            pen.text((self.left - 8, y), f"{tick:.2g}", fill="black", font_size=13, anchor="rm")
        ticks = enumerate(names_of_x) if names_of_x else self.x_ticks()
        for tick, name in ticks:
            x = self.x(tick)
            pen.line([(x, self.bottom), (x, self.bottom + 5)], fill="black")
            pen.text((x, self.bottom + 8), name, fill="black", font_size=13, anchor="mt")
        corner = (self.left, self.bottom)
        pen.line([(self.left, self.top), corner, (self.right, self.bottom)], fill="black", width=1)
        pen.text((self.left + 6, self.top - 4), ylabel, fill="black", font_size=14, anchor="lb")
        middle = self.left + PLOT_WIDTH / 2
        pen.text((middle, self.bottom + 28), xlabel, fill="black", font_size=14, anchor="mt")

    def draw_line(self, line, ink):
        if line.lowest is not None:
            above = self.points(line.xs, line.highest)
            below = self.points(line.xs, line.lowest)
            self.pen.polygon(above + below[::-1], fill=ink + "28")  # 28: mostly transparent
        points = self.points(line.xs, line.ys)
        self.pen.line(points, fill=ink, width=2, joint="curve")
        for x, y in points:
            self.pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=ink)


def draw_legend(pen, names, top):
    for i, name in enumerate(names):
        x = PLOT_LEFT + i % LEGEND_COLUMNS * LEGEND_STEP
        y = top + i // LEGEND_COLUMNS * LEGEND_LINE
        pen.line([(x, y + 8), (x + 24, y + 8)], fill=INKS[i % len(INKS)], width=4)
        pen.text((x + 32, y), name, fill="black", font_size=14)


def line_plot(path, title, panels, xlabel, note, log=False, ylim=(0, 1), names_of_x=None):
    """Lines with bands, panels side by side, as a PNG.

    panels: [(ylabel, {line's name: Line, or a tuple of its parts})]; a name has the same colour in
        every panel.
    log: a logarithmic x axis that also has a zero.
    names_of_x: what to write at x = 0, 1, .. instead of numbers.
    """
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    legend_height = LEGEND_LINE * -(-len(names) // LEGEND_COLUMNS)  # rounded up to whole rows
    height = PLOT_TOP + PLOT_HEIGHT + 90 + legend_height
    picture = Image.new("RGB", (len(panels) * PANEL_STEP + 20, height), "white")
    pen = ImageDraw.Draw(picture, "RGBA")
    pen.text((PLOT_LEFT, 12), title, fill="black", font_size=19)
    for k, (ylabel, lines) in enumerate(panels):
        lines = {name: Line(*line) for name, line in lines.items()}
        xmax = max(max(line.xs) for line in lines.values())
        if xmax == 0:  # a single point: any scale will do
            xmax = 1
        axes = Axes(pen, PLOT_LEFT + k * PANEL_STEP, xmax, ylim, log)
        axes.draw(xlabel, ylabel, names_of_x)
        for name, line in lines.items():
            axes.draw_line(line, INKS[names.index(name) % len(INKS)])
    draw_legend(pen, names, PLOT_TOP + PLOT_HEIGHT + 58)
    pen.text((PLOT_LEFT, height - 24), note, fill=NOTE_INK, font_size=13)
    picture.save(path)


# ---- what patches say ----------------------------------------------------------------------------

CELL = 92  # side of a patch, in pixels
MAP_TOP, MAP_GAP = 44, 24
WORDS_IN_A_PATCH = 3
FAINTEST = 0.05  # lighter words are left out


def word_map(path, picture, panels, note):
    """A picture and, beside it, what each of its patches says, as a PNG.

    Words are as large and as dark as their weight. Below each panel are the words with the largest
    sums over the patches.

    picture: (size, size, 3) uint8.
    panels: [(title, [[(word, weight from 0 to 1), ..] for each patch])]
    """
    side = int(len(panels[0][1]) ** 0.5)  # patches
    width = side * CELL
    step = width + MAP_GAP
    sheet = Image.new("RGB", ((len(panels) + 1) * step + MAP_GAP, MAP_TOP + width + 190), "white")
    pen = ImageDraw.Draw(sheet)
    large = enlarged(picture, width)
    pale = Image.blend(large, Image.new("RGB", large.size, "white"), 0.8)
    draw_title(pen, MAP_GAP, "the picture")
    sheet.paste(large, (MAP_GAP, MAP_TOP))
    for p, (title, patches) in enumerate(panels, start=1):
        left = MAP_GAP + p * step
        draw_title(pen, left, title)
        sheet.paste(pale, (left, MAP_TOP))
        for n, words in enumerate(patches):
            draw_patch(pen, left + n % side * CELL, MAP_TOP + n // side * CELL, words)
        draw_sums(pen, left, MAP_TOP + width, width, patches, INKS[p])
    pen.text((MAP_GAP, sheet.height - 26), note, fill=NOTE_INK, font_size=13)
    sheet.save(path)


def weight_of(pair):
    _, weight = pair
    return weight


def draw_title(pen, left, title):
    pen.text((left, MAP_TOP - 10), title, fill="black", font_size=19, anchor="lb")


def draw_patch(pen, x, y, words):
    """One patch's heaviest words below each other; words: [(word, weight)]."""
    pen.rectangle([x, y, x + CELL, y + CELL], outline="#cccccc")
    heaviest = sorted(words, key=weight_of, reverse=True)[:WORDS_IN_A_PATCH]
    for k, (word, weight) in enumerate(heaviest):
        if weight >= FAINTEST:
            at = (x + CELL / 2, y + 18 + 28 * k)
            size = 10 + 8 * min(weight, 1)
            shade = int(190 * (1 - min(weight, 1)))  # 0 is black
            pen.text(at, word, fill=(shade, shade, shade), font_size=size, anchor="mm")


def draw_sums(pen, left, top, width, patches, ink):
    """The eight heaviest words of a whole picture, as bars in two columns of four."""
    total = defaultdict(float)
    for words in patches:
        for word, weight in words:
            total[word] += weight
    heaviest = sorted(total.items(), key=weight_of, reverse=True)[:8]
    for k, (word, weight) in enumerate(heaviest):
        x = left + k // 4 * width // 2
        y = top + 34 + 28 * (k % 4)
        length = 120 * weight / max(weight_of(heaviest[0]), 1e-9)
        pen.text((x, y), word, fill="black", font_size=14)
        pen.rectangle([x + 74, y + 3, x + 74 + length, y + 13], fill=ink)
        pen.text((x + 200, y), f"{weight:.1f}", fill="black", font_size=13)
    pen.text((left, top + 8), "summed over the patches:", fill=NOTE_INK, font_size=13)


# ---- questions and answers -----------------------------------------------------------------------

SHEET_COLUMNS = 3
TILE_WIDTH, TILE_HEIGHT = 280, 290
PICTURE_SIDE = 200


class Answered(NamedTuple):
    """A question about a picture, what a model answered, and what is true."""
    picture: np.ndarray  # (size, size, 3) uint8
    question: str
    answer: str
    truth: str


def contact_sheet(path, rows):
    """Pictures with a question, the answer given and the true one, as a PNG.

    rows: [Answered, or a tuple of its parts], drawn in this order, three side by side.
    """
    height = TILE_HEIGHT * -(-len(rows) // SHEET_COLUMNS)  # rounded up to whole rows
    sheet = Image.new("RGB", (TILE_WIDTH * SHEET_COLUMNS, height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, row in enumerate(rows):
        row = Answered(*row)
        x = TILE_WIDTH * (k % SHEET_COLUMNS) + 25
        y = TILE_HEIGHT * (k // SHEET_COLUMNS)
        verdict = "darkgreen" if row.answer == row.truth else "darkred"
        sheet.paste(enlarged(row.picture, PICTURE_SIDE), (x, y + 10))
        pen.text((x, y + 216), row.question, fill="black", font_size=14)
        pen.text((x, y + 236), f"answer: {row.answer}", fill=verdict, font_size=14)
        pen.text((x, y + 256), f"truth: {row.truth}", fill="black", font_size=14)
    sheet.save(path)
