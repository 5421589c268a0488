"""Figures, drawn with Pillow alone: curves with bands, maps of words, sheets of answered questions.

Nothing is measured here, and nothing of the project is imported.
"""
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3",
        "#5c6670", "#b56576", "#00868b", "#8a6d3b", "#333333"]
NOTE_INK = "#444444"
PLOT_WIDTH, PLOT_HEIGHT = 470, 330  # of one panel's axes, in pixels
PLOT_LEFT, PLOT_TOP = 60, 66  # room for the numbers on the y axis, and for the title
CELL = 92  # side of a patch in a map of words
MAP_TOP, MAP_GAP = 44, 24


def enlarged(picture, side):
    """A (size, size, 3) uint8 array as a square picture whose pixels stay visible."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)


class Line(NamedTuple):
    """One line of a plot; with `lowest` and `highest`, it has a band around it."""
    xs: list
    ys: list
    lowest: list = None
    highest: list = None


class Axes:
    """One panel, and where numbers are on it: x from 0 to xmax, y over ylim."""

    def __init__(self, pen, left, xmax, ylim, log):
        self.pen, self.left, self.right = pen, left, left + PLOT_WIDTH
        self.bottom = PLOT_TOP + PLOT_HEIGHT
        self.xmax, self.ylim, self.log = xmax, ylim, log

    def x(self, values):
        values, xmax = np.asarray(values, dtype=float), self.xmax
        if self.log:  # log(1 + x) rather than log x, so that there is a zero
            values, xmax = np.log10(1 + values), np.log10(1 + xmax)
        return self.left + PLOT_WIDTH * values / xmax

    def y(self, values):
        low, high = self.ylim
        return PLOT_TOP + PLOT_HEIGHT * (1 - (np.clip(values, low, high) - low) / (high - low))

    def points(self, xs, ys):
        return [(float(x), float(y)) for x, y in zip(self.x(xs), self.y(ys))]

    def x_ticks(self, names_of_x):
        """[(x, what is written there)]"""
        if names_of_x:
            return enumerate(names_of_x)
        ticks = [round(self.xmax * i / 5) for i in range(6)]
        if self.log:
            ticks = [0] + [10 ** i for i in range(7) if 10 ** i <= self.xmax]
        return [(tick, f"{tick:,}") for tick in ticks]

    def draw_frame(self, xlabel, ylabel, names_of_x):
        """Grid lines, numbers, names of the axes."""
        pen, middle = self.pen, self.left + PLOT_WIDTH / 2
        for tick in np.linspace(*self.ylim, 6):
            y = self.y(tick)
            pen.line([(self.left, y), (self.right, y)], fill="#dddddd")
            pen.text((self.left - 8, y), f"{tick:.2g}", fill="black", font_size=13, anchor="rm")
        for tick, name in self.x_ticks(names_of_x):
            x = self.x(tick)
            pen.line([(x, self.bottom), (x, self.bottom + 5)], fill="black")
            pen.text((x, self.bottom + 6), name, fill="black", font_size=13, anchor="ma",
                     align="center")
        corner = (self.left, self.bottom)
        pen.line([(self.left, PLOT_TOP), corner, (self.right, self.bottom)], fill="black")
        pen.text((self.left + 6, PLOT_TOP - 4), ylabel, fill="black", font_size=14, anchor="lb")
        pen.text((middle, self.bottom + 42), xlabel, fill="black", font_size=14, anchor="mt")

    def draw_line(self, line, ink):
        if line.lowest is not None:
            band = self.points(line.xs, line.highest) + self.points(line.xs, line.lowest)[::-1]
            self.pen.polygon(band, fill=ink + "28")  # 28: mostly transparent
        points = self.points(line.xs, line.ys)
        self.pen.line(points, fill=ink, width=2, joint="curve")
        for x, y in points:
            self.pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=ink)


def line_plot(path, title, panels, xlabel, note, log=False, ylim=(0, 1), names_of_x=None):
    """Lines with bands, panels side by side, as a PNG.

    panels: [(ylabel, {line's name: Line})]; a name keeps its colour.
    log: a logarithmic x axis that also has a zero.
    names_of_x: what to write at x = 0, 1, .. instead of numbers.
    """
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    inks = {name: INKS[i % len(INKS)] for i, name in enumerate(names)}
    legend, width = PLOT_TOP + PLOT_HEIGHT + 58, len(panels) * (PLOT_WIDTH + 80) + 20
    per_row = width // 360  # names in a row of the legend
    height = legend + 32 + 22 * math.ceil(len(names) / per_row)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture, "RGBA")
    pen.text((PLOT_LEFT, 12), title, fill="black", font_size=19)
    for k, (ylabel, lines) in enumerate(panels):
        xmax = max(max(line.xs) for line in lines.values())
        if xmax == 0:  # a single point: any scale will do
            xmax = 1
        axes = Axes(pen, PLOT_LEFT + k * (PLOT_WIDTH + 80), xmax, ylim, log)
        axes.draw_frame(xlabel, ylabel, names_of_x)
        for name, line in lines.items():
            axes.draw_line(line, inks[name])
    for i, name in enumerate(names):
        x, y = PLOT_LEFT + i % per_row * 330, legend + i // per_row * 22
        pen.line([(x, y + 8), (x + 24, y + 8)], fill=inks[name], width=4)
        pen.text((x + 32, y), name, fill="black", font_size=14)
    pen.text((PLOT_LEFT, height - 24), note, fill=NOTE_INK, font_size=13)
    picture.save(path)


def over_seeds(xs, ys):
    """The Line of means of ys (points, seeds), in a band from the lowest to the highest."""
    return Line(xs, ys.mean(1), ys.min(1), ys.max(1))


def plot_budgets(r, path):
    """A budgets.json: vqa and caption F1 of each row over the samples of stage 2."""
    panels = []
    for label, score in (("vqa", "vqa"), ("caption F1", "caption_f1")):
        lines = {}
        for row in r["rows"]:
            samples = [point["samples"] for point in row["points"]]
            lines[row["name"].replace("_", " ")] = over_seeds(
                samples, np.array([point[score] for point in row["points"]]))
        panels.append((label, lines))
    seeds = ", ".join(map(str, r["seeds"]))
    line_plot(path, "Stage 2 on the target, each point a run of its own", panels,
              "samples of stage 2 (log)", f"Seeds {seeds}: mean, lowest and highest, whole test "
              "split.", log=True)


def plot_sweep(sweep, path):
    """An ablate_*.json: vqa and caption F1 of each of its points."""
    panels, names = [], [point["value"].replace(", ", ",\n") for point in sweep["points"]]
    for label, score in (("vqa", "vqa"), ("caption F1", "caption_f1")):
        lines = {}
        for row in sweep["points"][0]["rows"]:
            scores = np.array([point["rows"][row][score] for point in sweep["points"]])
            lines[row.replace("_", " ")] = over_seeds(range(len(names)), scores)
        panels.append((label, lines))
    seeds = ", ".join(map(str, sweep["seeds"]))
    line_plot(path, f"Ablation of {sweep['what']}", panels, sweep["what"],
              f"Seeds {seeds}: mean, lowest and highest.", names_of_x=names)


def plot_study(study, path):
    """evaluate.json's "subspace": do visual tokens approach words in stage 1?"""
    measures = {"own_cos": "own words", "other_cos": "other words",
                "explained_own": "the caption's words", "explained_random": "random words"}
    cosines, energies = {}, {}
    for kind, title in (("mlp", "MLP"), ("langbridge", "LangBridge")):
        for name, label in measures.items():
            mean, half = np.array(study[kind][name]), np.array(study[kind][f"{name}_interval"])
            panel = cosines if name.endswith("_cos") else energies
            panel[f"{title}, {label}"] = Line(study["steps"], mean, mean - half, mean + half)
    line_plot(path, "Stage 1 brings patches to the words that describe them",
              [("cosine to word embeddings", cosines), ("energy explained by words", energies)],
              "steps of stage 1 (log)", "100 test pictures, patches of objects, mean vectors "
              "removed; bands: 95% intervals.", log=True, ylim=(-0.2, 0.8))


def word_map(path, picture, panels, note):
    """A picture (size, size, 3) uint8 and, beside it, what each of its patches says, as a PNG.

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
            total[word] += weight
    most = max([1e-9, *total.values()])
    for k, (word, weight) in enumerate(total.most_common(8)):
        x, y = left + k // 4 * width // 2, top + 34 + 28 * (k % 4)
        pen.text((x, y), word, fill="black", font_size=14)
        pen.rectangle([x + 74, y + 3, x + 74 + 120 * weight / most, y + 13], fill=ink)
        pen.text((x + 200, y), f"{weight:.1f}", fill="black", font_size=13)


def contact_sheet(path, rows):
    """Pictures with a question, the answer given and the true one, three side by side, as a PNG.

    rows: [(picture (size, size, 3) uint8, question, answer, truth)]
    """
    width, height = 280, 290  # of one of them
    sheet = Image.new("RGB", (3 * width, math.ceil(len(rows) / 3) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (picture, question, answer, truth) in enumerate(rows):
        x, y = k % 3 * width + 25, k // 3 * height
        verdict = "darkgreen" if answer == truth else "darkred"
        sheet.paste(enlarged(picture, 200), (x, y + 10))
        pen.text((x, y + 216), question, fill="black", font_size=14)
        pen.text((x, y + 236), f"answer: {answer}", fill=verdict, font_size=14)
        pen.text((x, y + 256), f"truth: {truth}", fill="black", font_size=14)
    sheet.save(path)
