"""The tables and line figures of the READMEs, from the JSON files in results/json/.

    python results/report.py                  rewrites every table between <!-- NAME --> and
                                              <!-- end -->, and draws the figures anew
    python results/report.py out-0 out-1 ..   prints the tables over these --out folders, each of
                                              another seed

results/json/seed0/ holds what the commands wrote into the --out folder of seed 0, and so on. A cell
has the mean over the seeds and, for two or more of them, half the width of its 95% interval
(Student's t). Nothing is measured here, and nothing of the project is imported.

A table's NAME is one of TABLES; "NAME in FOLDER" is made from another folder of results/json/.
"""
import json
import math
import re
import textwrap
from argparse import ArgumentParser, RawTextHelpFormatter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RESULTS = Path(__file__).parent
JSON = RESULTS / "json"
SCORES = {"vqa": "vqa", "caption_f1": "caption F1", "pope_acc": "yes/no",
          "comp_vqa": "unseen pairs"}
OWN_SCORES = {"exact_match": "exact match", "token_f1": "token F1", "names_right": "right names"}
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # for 2 to 10 seeds


# ---- numbers and cells ---------------------------------------------------------------------------

def interval(values):
    """The mean of a value for each seed, and half the width of its 95% interval, t s / sqrt(n).

    t is the 97.5% quantile of Student's t; more than 10 seeds get that of 10, a little too wide.
    """
    n = len(values)
    half = T[min(n, 10) - 2] * np.std(values, ddof=1) / n ** 0.5 if n > 1 else 0.0
    return float(np.mean(values)), float(half)


def cell(values):
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}" if half >= 0.0005 else f"{mean:.3f}"


def mean_cell(values):
    """The mean alone, as .987"""
    return f"{np.mean(values):.3f}".removeprefix("0")


def look_up(runs, path):
    """The values at a path such as "vlm.mlp.align.vqa", one for each run; -1 is a list's last."""
    values = runs
    for key in path.split("."):
        values = [value[int(key)] if isinstance(value, list) else value[key] for value in values]
    return values


def ratios(runs, above, below, score):
    """A score of one row over that of another, paired: one for each run."""
    a, b = (look_up(runs, f"rows.{row}.scores.{score}") for row in (above, below))
    return [x / max(y, 1e-9) for x, y in zip(a, b)]


def score_rows(runs, where, scores, show=cell):
    """For each {title: path}: the title, and a cell for each score at this path."""
    return [[title, *(show(look_up(runs, f"{path}.{score}")) for score in scores)]
            for title, path in where.items()]


def markdown_table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def seeds_line(runs):
    return f"{len(runs)} seeds: mean ± half of its 95% interval." if len(runs) > 1 else "One seed."


# ---- line figures, with Pillow alone -------------------------------------------------------------

INKS = "#1b6ca8 #d1495b #2e8b57 #e08e0b #7b4fa3 #5c6670 #b56576 #00868b #8a6d3b #333333".split()
WIDTH, HEIGHT = 470, 330  # of a panel's axes, in pixels
LEFT, TOP = 60, 66  # room for the numbers on the y axis, and for the title
STEP = WIDTH + 80  # from one panel to the next


def line_plot(path, title, panels, xlabel, note, log=False, ylim=(0, 1), names_of_x=None):
    """Write a PNG with one panel for each score.

    panels: {score: {line's name: [(x, mean, half-width of the band), ..]}}, x from 0; a name has
    the same colour in all panels.
    log: a logarithmic x axis that also has a zero
    names_of_x: what to write at x = 0, 1, .. instead of numbers
    """
    inks = dict(zip(dict.fromkeys(n for lines in panels.values() for n in lines), INKS * 9))
    width, legend = len(panels) * STEP + 20, TOP + HEIGHT + 76
    per_row = width // 360  # names in a row of the legend
    height = legend + 32 + 22 * math.ceil(len(inks) / per_row)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture, "RGBA")
    write = partial(pen.text, fill="black", font_size=14)
    write((LEFT, 12), title, font_size=19)
    for k, (score, lines) in enumerate(panels.items()):
        left = LEFT + k * STEP
        draw_panel(pen, left, lines, inks, log, ylim, names_of_x)
        write((left + 6, TOP - 4), score, anchor="lb")
        write((left + WIDTH / 2, TOP + HEIGHT + 58), xlabel, anchor="mt")
    for i, (name, ink) in enumerate(inks.items()):
        x, y = LEFT + i % per_row * 330, legend + i // per_row * 22
        pen.line([(x, y + 8), (x + 24, y + 8)], fill=ink, width=4)
        write((x + 32, y), name)
    write((LEFT, height - 24), note, fill="#444444", font_size=13)
    picture.save(path)


def draw_panel(pen, left, lines, inks, log, ylim, names_of_x):
    """The grid, the numbers at the axes, and the lines with their bands."""
    xmax, (low, high) = max(x for line in lines.values() for x, *_ in line) or 1, ylim
    write = partial(pen.text, fill="black", font_size=13)

    def place(x, y):
        """Where (x, y) is on the picture, in pixels."""
        x = math.log1p(x) / math.log1p(xmax) if log else x / xmax  # log(1 + x) has a zero
        y = (min(max(y, low), high) - low) / (high - low)
        return left + WIDTH * x, TOP + HEIGHT * (1 - y)

    for tick in np.linspace(low, high, 6):
        pen.line([place(0, tick), place(xmax, tick)], fill="#dddddd")
        write((left - 8, place(0, tick)[1]), f"{tick:.2g}", anchor="rm")
    pen.line([place(0, high), place(0, low), place(xmax, low)], fill="black")
    numbers = [0, *(10 ** i for i in range(7))] if log else [round(xmax * i / 5) for i in range(6)]
    for tick, name in enumerate(names_of_x) if names_of_x else ((n, f"{n:,}") for n in numbers):
        if tick <= xmax:
            x, y = place(tick, low)
            pen.line([(x, y), (x, y + 5)], fill="black")
            write((x, y + 6), name, anchor="ma", align="center")
    for name, line in lines.items():
        upper, lower = ([place(x, y + sign * half) for x, y, half in line] for sign in (1, -1))
        pen.polygon([*upper, *lower[::-1]], fill=inks[name] + "28")  # 28: mostly transparent
        points = [place(x, y) for x, y, _ in line]
        pen.line(points, fill=inks[name], width=2, joint="curve")
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=inks[name])


# ---- the models of train.py ----------------------------------------------------------------------

TRAINED = {f"{title}, after {phase}": f"vlm.{kind}.{phase}" for phase in ("align", "instruct")
           for title, kind in (("MLP", "mlp"), ("LangBridge", "langbridge"))}
TRAINED["blind: no picture, same instruct"] = "vlm.blind"
GUESSES = {"each question's most frequent answer": "vlm.majority", "chance": "vlm.chance"}


def models_table(runs):
    """Several results.json: the VLMs, then the LLMs and the ViT on their own."""
    scores = SCORES if "vqa" in runs[0]["vlm"]["chance"] else OWN_SCORES
    parts = [[f"{title}: {score.replace('_', ' ')}", cell(look_up(runs, f"{path}.{score}"))]
             for title, path in (("source LLM", "llm.source"), ("target LLM", "llm.target"),
                                 ("ViT", "vit"))
             for score, value in look_up(runs, path)[0].items() if isinstance(value, float)]
    return "\n\n".join([seeds_line(runs),
                        markdown_table(["on the source LLM", *scores.values()],
                                       score_rows(runs, TRAINED | GUESSES, scores)),
                        markdown_table(["the parts", "score"], parts)])


def types_table(runs):
    """The same by type of question, and what else there is about unseen pairs."""
    types = [f"{name}.{kind}" for name in ("vqa_by_type", "comp_vqa_by_type")
             for kind in runs[0]["vlm"]["blind"][name]]
    types += ["pope_yes_rate", "comp_pope_acc", "comp_pope_yes_rate", "comp_caption_f1"]
    header = [name.replace("vqa_by_type.", "").replace("_", " ") for name in types]
    return markdown_table(["mean over the seeds", *header],
                          score_rows(runs, TRAINED | GUESSES, types, mean_cell))


# ---- the rows of transfer.py ---------------------------------------------------------------------

TUNED_BRIDGE = "transferred_langbridge"
RATIOS = [("zero_shot_langbridge", "aligned_langbridge")] + [  # both after align
    (TUNED_BRIDGE, other) for other in ("native_langbridge", "native_mlp", "tuned_linear_map")]
MOVED = {
    "zero-shot LangBridge": "zero_shot_langbridge", "control: shuffled words": "zero_shot_shuffled",
    "linear map, MLP": "zero_shot_linear_map", "nearest words, MLP": "zero_shot_nearest_words",
    "text baseline, LangBridge": "text_langbridge", "text baseline, MLP": "text_mlp"}
CLAIM = {"native MLP, after align *": "aligned_mlp",
         "nearest words, MLP": "zero_shot_nearest_words",
         "text baseline, LangBridge": "text_langbridge", "text baseline, MLP": "text_mlp",
         "text baseline, a probe with labels": "text_probe"}
HEADLINE = {"LangBridge, zero-shot: swap E, train nothing": "zero_shot_langbridge",
            "LangBridge, native: aligned on this LLM": "aligned_langbridge",
            "control: LangBridge with its words shuffled": "zero_shot_shuffled",
            "MLP, zero-shot through a linear map": "zero_shot_linear_map",
            "blind: no picture, tuned on this LLM": "blind"}
REAL = {"true words": "reads_list"} | MOVED | {
    "control: another picture": "zero_shot_other_picture", "nothing": "nothing"}
TUNED = {"native MLP": "native_mlp", "native LangBridge": "native_langbridge",
         "transferred LangBridge": TUNED_BRIDGE, "fresh MLP": "fresh_mlp",
         "MLP, linear map": "tuned_linear_map", "MLP, nearest words": "tuned_nearest_words"}


def paths(rows):
    return {title: f"rows.{name}.scores" for title, name in rows.items()}


def transfer_table(runs):
    """Several transfer.json: the rows that all of them have, and ratios between rows."""
    first = runs[0]
    scores = SCORES if "vqa" in first["chance"] else OWN_SCORES
    shared = {name: row for name, row in first["rows"].items()
              if all(name in run["rows"] for run in runs)}
    where = {name + " *" * (row["stage1"] or row["stage2"]): f"rows.{name}.scores"
             for name, row in shared.items()} | {"majority": "majority", "chance": "chance"}
    paired = [[" / ".join(pair), *(cell(ratios(runs, *pair, score)) for score in scores)]
              for pair in RATIOS if {*pair} <= {*shared}]
    return "\n\n".join([
        f"{first['source']} to {first['target']}. {seeds_line(runs)} Ratios are within a seed.\n"
        f"(* trained on the target LLM, {first['stage2_samples']:,} samples in stage 2)",
        markdown_table(["on the target LLM", *scores.values()], score_rows(runs, where, scores)),
        markdown_table(["ratio", *scores.values()], paired)])


def rows_table(rows, moved, trained=()):
    """Some rows on the target LLM; with results.json, what to compare them with."""
    guessed = score_rows(trained, GUESSES, SCORES, mean_cell) if trained else []
    return markdown_table(["on an LLM the adapter never saw", *SCORES.values()],
                          score_rows(moved, paths(rows), SCORES, mean_cell) + guessed)


def main_table(moved, trained):
    """Both adapters on the source LLM after each stage, and all ways to have one on the target."""
    rows = [["source", *cells] for cells in score_rows(trained, TRAINED, SCORES, mean_cell)]
    rows += [["target", *cells] for cells in score_rows(moved, paths(TUNED), SCORES, mean_cell)]
    return markdown_table(["LLM", "adapter", *SCORES.values()], rows)


# ---- real LLMs -----------------------------------------------------------------------------------

def real_table(runs, types=("color", "shape"), show=mean_cell):
    """What a real LLM answers with nothing trained on it."""
    scores = [*(f"vqa_by_type.{kind}" for kind in types), "vqa"]
    return markdown_table([f"{runs[0]['target'].split('.')[0]} is shown", *types, "vqa"],
                          score_rows(runs, paths(REAL) | {"chance": "chance"}, scores, show))


def real_types_table(runs):
    return f"{seeds_line(runs)}\n\n{real_table(runs, runs[0]['chance']['vqa_by_type'], cell)}"


# ---- the words of the adapters -------------------------------------------------------------------

def findings_table(runs):
    """Several evaluate.json: the top words of objects, and what explains visual tokens."""
    models = {name.replace("_", ", after "): f"grounding.{name}" for name in runs[0]["grounding"]}
    shares = [f"{share}.{kind}" for share in ("own", "chance", "best_of_kind")
              for kind in ("color", "shape")]
    spans = {f"{kind}: {name.replace('_', ' ')}": f"subspace.{kind}.{name}"
             for kind in ("mlp", "langbridge") for name in ("explained_own", "explained_random")}
    return "\n\n".join([
        seeds_line(runs),
        markdown_table(["in the 2 top words", *(share.replace(".", " ") for share in shares)],
                       score_rows(runs, models, shares)),
        markdown_table(["energy of an object's patches", "before stage 1", "after"],
                       score_rows(runs, spans, ["0.0", "-1.0"]))])


def plot_subspace(path, runs):
    """evaluate.json's "subspace": do visual tokens approach words in stage 1?"""
    study = runs[0]["subspace"]
    panels = {title: {name.replace("_", " "): [(step, *point) for step, point in
                                               zip(study["steps"], points)]
                      for name, points in study[kind].items()}
              for title, kind in (("MLP", "mlp"), ("LangBridge", "langbridge"))}
    line_plot(path, "Stage 1 brings patches to the words that describe them", panels, "steps (log)",
              "100 test pictures, patches of objects; bands: 95% intervals.", True, (-0.2, 0.8))


# ---- sweeps --------------------------------------------------------------------------------------

def sweep_table(runs):
    """Several sweep_NAME.json: the rows of each point."""
    rows = []
    for i, point in enumerate(runs[0]["points"]):
        about = point["value"]
        if point.get("K"):
            own = cell(look_up(runs, f"points.{i}.own_weight"))
            about += f" ({point['K']} words, {point['params']:,} parameters; own weight {own})"
        where = {name: f"points.{i}.rows.{name}" for name in point["rows"]}
        for cells in score_rows(runs, where, SCORES):
            rows.append([about, *cells])
            about = ""
    return markdown_table([runs[0]["what"], "row", *SCORES.values()], rows)


def plot_sweep(path, runs):
    points, what = runs[0]["points"], runs[0]["what"]
    panels = {score: {row: [(i, *interval(look_up(runs, f"points.{i}.rows.{row}.{score}")))
                            for i in range(len(points))] for row in points[0]["rows"]}
              for score in ("vqa", "caption_f1")}
    line_plot(path, f"Ablation of {what}", panels, what, seeds_line(runs),
              names_of_x=[textwrap.fill(point["value"], 12) for point in points])


def budget_curve(runs, row, score):
    """[(samples of stage 2, mean score, half of its interval), ..]"""
    return [(point["samples"], *interval(look_up(runs, f"rows.{row}.points.{i}.{score}")))
            for i, point in enumerate(runs[0]["rows"][row]["points"])]


def reaches(curve, goal):
    """The x at which a curve [(x, y, half), ..] first reaches a goal, interpolated, as text.

    >>> reaches([(0, 0.5, 0.0), (100, 0.75, 0.0), (200, 1.0, 0.0)], 0.875)
    '150'
    """
    xs, ys, _ = zip(*curve)
    best = np.maximum.accumulate(ys)  # so far
    return f"{np.interp(goal, best, xs):,.0f}" if goal <= best[-1] else "never"


def budgets_table(runs):
    """Several sweep_budgets.json: a row for each start, a column for each length of stage 2."""
    longest, rows = budget_curve(runs, "native_mlp", "vqa"), []
    goal, samples = 0.95 * longest[-1][1], [x for x, *_ in longest]
    for name in runs[0]["rows"]:
        vqa, f1 = (budget_curve(runs, name, score) for score in ("vqa", "caption_f1"))
        cells = {a[0]: f"{mean_cell(a[1])} / {mean_cell(b[1])}" for a, b in zip(vqa, f1)}
        rates = {f"{rate:g}" for rate in look_up(runs, f"rows.{name}.rate")}
        rows.append([name, "; ".join(sorted(rates)), *(cells.get(x, "") for x in samples),
                     reaches(vqa, goal)])
    return f"{seeds_line(runs)}\n\n" + markdown_table(
        ["vqa / caption F1", "rate", *(f"{x:,}" for x in samples), f"vqa {goal:.3f} at"], rows)


def plot_budgets(path, runs):
    panels = {score: {row: budget_curve(runs, row, score) for row in runs[0]["rows"]}
              for score in ("vqa", "caption_f1")}
    line_plot(path, "Stage 2 on the target, each point a run of its own", panels,
              "samples of stage 2 (log)", seeds_line(runs), log=True)


# ---- time ----------------------------------------------------------------------------------------

def plot_bench(path, runs):
    lines = {name: [(x, y, 0.0) for x, y in of["curve"]]
             for name, of in runs[0]["skill"]["designs"].items()}
    line_plot(path, "Learning to read a grid of words", {"exact match on unread rasters": lines},
              "seconds of training (log)", "Two models at a time, a thread each.", log=True)


# ---- into the READMEs ----------------------------------------------------------------------------

TABLES = {  # NAME: what makes it, from which files; NAME in FOLDER: the same of another folder
    "headline": (partial(rows_table, HEADLINE), "transfer"),
    "claim": (partial(rows_table, CLAIM), "transfer", "results"),
    "main results": (main_table, "transfer", "results"),
    "results": (models_table, "results"), "types": (types_table, "results"),
    "transfer": (transfer_table, "transfer"), "reverse": (transfer_table, "transfer_reverse"),
    "real": (real_table, "real_SmolLM2*"), "real types": (real_types_table, "real_SmolLM2*"),
    "findings": (findings_table, "evaluate"), "budgets": (budgets_table, "sweep_budgets")} | {
    f"sweep {name}": (sweep_table, f"sweep_{name}") for name in
    ("coefficients", "whitening", "sampling", "K", "hidden", "basis", "eye", "target", "mlp")}
FIGURES = {"subspace": (plot_subspace, "evaluate"), "budgets": (plot_budgets, "sweep_budgets"),
           "bench": (plot_bench, "bench"),
           "ablate_coefficients": (plot_sweep, "sweep_coefficients")}
MARKED = re.compile(r"<!-- (?!end -->)([^\n]+?) -->\n.*?<!-- end -->", flags=re.DOTALL)


def load(folders, file):
    """The JSON files of this name; a list of rows becomes {row's name: row}."""
    runs = [json.loads(path.read_text(encoding="utf-8"))
            for folder in sorted(folders) for path in folder.glob(f"{file}.json")]
    return [run | {"rows": {row["name"]: row for row in run["rows"]}} if "rows" in run else run
            for run in runs]


def fill(text):
    """The text with every table between <!-- NAME --> and <!-- end --> made anew. Raises ValueError
    for a NAME that is not in TABLES, or one without its JSON."""
    def filled(found):
        name, _, folder = found[1].partition(" in ")
        make, *files = TABLES.get(name, [None])
        runs = [load(JSON.glob(folder or "seed*"), file) for file in files]
        if not files or not all(runs):
            raise ValueError(f"no table {found[1]!r}, or no JSON; names: {', '.join(TABLES)}")
        return f"<!-- {found[1]} -->\n{make(*runs)}\n<!-- end -->"

    return MARKED.sub(filled, text)


def print_tables(folders):
    """The tables of what all of these --out folders have."""
    seeds = [run["seed"] for run in load(folders, "results")]
    if len({*seeds}) < len(folders):
        raise ValueError(f"expected a results.json of another seed in each folder, found {seeds}")
    for name, (make, *files) in TABLES.items():
        runs = [load(folders, file) for file in files]
        if all(len(found) == len(folders) for found in runs):
            try:
                print(f"## {name}\n\n{make(*runs)}\n")
            except KeyError:
                continue  # a table of rows or scores that these runs do not have


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="--out folders of train.py")
    folders = parser.parse_args().folders
    try:
        if folders:
            return print_tables(folders)
        for path in (RESULTS.parent / "README.md", RESULTS / "README.md"):
            path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    for name, (plot, file) in FIGURES.items():
        plot(RESULTS / "figures" / f"{name}.png", load(JSON.glob("seed*"), file))


if __name__ == "__main__":
    main()
