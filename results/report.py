"""The tables and line figures of the READMEs, from the JSON files in results/json/.

    python results/report.py                  rewrites every table between <!-- NAME --> and
                                              <!-- end -->, and draws the figures anew
    python results/report.py out-0 out-1 ..   prints the tables over these --out folders, each of
                                              another seed

results/json/seed0/ holds what the commands wrote into the --out folder of seed 0, and so on. A cell
has the mean over the seeds and, for two or more of them, half the width of its 95% interval
(Student's t). A row that only n seeds have ends in (n). Nothing is measured here, and nothing
of the project is imported.

A table's NAME is one of TABLES; "NAME in FOLDER" is made from another folder of results/json/.
"""
import json
import re
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RESULTS = Path(__file__).parent
JSON = RESULTS / "json"
SCORES = {"vqa": "vqa", "caption_f1": "caption F1", "pope_acc": "yes/no",
          "comp_vqa": "unseen pairs"}
BOTH = ("vqa", "caption_f1")
OWN_SCORES = {"exact_match": "exact match", "token_f1": "token F1", "names_right": "right names"}
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # for 2 to 10 seeds
LEVEL = 0.97, 1.03  # two rows are level if the interval of their ratio lies within


# ---- numbers and cells ---------------------------------------------------------------------------

def interval(values):
    """The mean of a value for each seed, and half the width of its 95% interval, t s / sqrt(n).

    t is the 97.5% quantile of Student's t; more than 10 seeds get that of 10, a little too wide.
    """
    n = len(values)
    half = T[min(n, 10) - 2] * np.std(values, ddof=1) / n ** 0.5 if n > 1 else 0.0
    return float(np.mean(values)), float(half)


def shown(value, digits=3):
    """A number as .912"""
    return f"{value:.{digits}f}".removeprefix("0")


def cell(values, digits=3):
    """The mean and half of its interval, as .912 ± .043"""
    mean, half = interval(values)
    return shown(mean, digits) + f" ± {shown(half, digits)}" * (round(half, digits) > 0)


short_cell = partial(cell, digits=2)


def ratio_cell(values):
    mean, half = interval(values)
    level = len(values) > 1 and LEVEL[0] <= mean - half and mean + half <= LEVEL[1]
    return cell(values) + " (level)" * level


def mean_cell(values):
    """The mean alone"""
    return shown(np.mean(values))


def look_up(runs, path):
    """The values at a path such as "vlm.mlp.align.vqa", one for each run; -1 is a list's last."""
    values = runs
    for key in path.split("."):
        values = [value[int(key)] if isinstance(value, list) else value[key] for value in values]
    return values


def having(runs, *paths):
    """The runs that have all of these rows."""
    return [run for run in runs if {path.split(".")[0] for path in paths} <= {*run}]


def ratios(runs, above, below, score):
    """A score of one row over that of another, paired: one for each run that has both."""
    runs = having(runs, above, below)
    a, b = (look_up(runs, f"{row}.{score}") for row in (above, below))
    return [x / max(y, 1e-9) for x, y in zip(a, b)]


def both(runs, path):
    """Mean vqa and caption F1 at a path, as .938 / .802"""
    return " / ".join(mean_cell(look_up(runs, f"{path}.{score}")) for score in BOTH)


def markdown_table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def score_table(runs, header, where, scores, show=cell):
    """A row for each {title: path} that a run has, a column for each {score: title}."""
    rows = []
    for title, path in where.items():
        if its := having(runs, path):
            few = f" ({len(its)})" * (len(its) < len(runs))
            rows.append([title + few, *(show(look_up(its, f"{path}.{score}")) for score in scores)])
    return markdown_table([header, *scores.values()], rows)


def seeds_line(runs):
    return f"{len(runs)} seeds: mean ± half of its 95% interval." if len(runs) > 1 else "One seed."


# ---- line figures, with Pillow alone -------------------------------------------------------------

INKS = "#1b6ca8 #d1495b #2e8b57 #e08e0b #7b4fa3 #5c6670 #b56576 #00868b #8a6d3b #333333".split()
WIDTH, HEIGHT = 560, 330  # of the axes, in pixels
LEFT, TOP = 60, 60  # room for the numbers on the y axis, and for the title


def line_plot(path, title, lines, xlabel, high=1.0):
    """Write a PNG. lines: {name: [(x, y), ..]}, y from 0 to `high`, x from 0 on an axis of square
    roots, which shows the start better than a linear one"""
    size = (LEFT + WIDTH + 40, TOP + HEIGHT + 60 + 22 * len(lines))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    write = partial(pen.text, fill="black", font_size=14)
    xmax = max(x for line in lines.values() for x, _ in line)

    def place(x, y):
        """Where (x, y) is on the picture, in pixels"""
        return LEFT + WIDTH * (x / xmax) ** 0.5, TOP + HEIGHT * (1 - y / high)

    write((LEFT, 16), title, font_size=19)
    for tick in np.linspace(0, high, 6):
        pen.line([place(0, tick), place(xmax, tick)], fill="#dddddd")
        write((LEFT - 8, place(0, tick)[1]), f"{tick:.2g}", anchor="rm")
    for x in (0, xmax / 16, xmax / 4, xmax * 9 / 16, xmax):  # at equal distances
        text = f"{x:,.0f}" if xmax > 20 else f"{x:.1f}"
        write((place(x, 0)[0], TOP + HEIGHT + 6), text, anchor="ma")
    write((LEFT + WIDTH, TOP + HEIGHT + 26), xlabel, anchor="ra")
    for k, (name, line) in enumerate(lines.items()):
        points, y = [place(*point) for point in line], TOP + HEIGHT + 58 + 22 * k
        pen.line(points, fill=INKS[k], width=2, joint="curve")
        for point in points:
            pen.circle(point, 3, fill=INKS[k])
        pen.line([(LEFT, y), (LEFT + 24, y)], fill=INKS[k], width=4)
        write((LEFT + 32, y), name, anchor="lm")
    picture.save(path)


# ---- the models of train.py ----------------------------------------------------------------------

TRAINED = {f"{title}, after {phase}": f"{kind}.{phase}" for phase in ("align", "instruct")
           for title, kind in (("MLP", "mlp"), ("LangBridge", "langbridge"))}
TRAINED["blind: no picture, same instruct"] = "blind"
GUESSES = {"each question's most frequent answer": "majority", "chance": "chance"}


def models_table(runs):
    """Several results.json: the VLMs, then the LLMs and the ViT on their own."""
    scores = SCORES if "vqa" in runs[0]["chance"] else OWN_SCORES
    parts = [[f"{title}: {score.replace('_', ' ')}", cell(look_up(runs, f"{path}.{score}"))]
             for title, path in (("source LLM", "llm.source"), ("target LLM", "llm.target"),
                                 ("ViT", "vit"))
             for score, value in look_up(runs, path)[0].items() if isinstance(value, float)]
    return "\n\n".join([seeds_line(runs),
                        score_table(runs, "on the source LLM", TRAINED | GUESSES, scores),
                        markdown_table(["the parts", "score"], parts)])


def types_table(runs):
    """The same by type of question, and what else there is about unseen pairs."""
    types = [f"{name}.{kind}" for name in ("vqa_by_type", "comp_vqa_by_type")
             for kind in runs[0]["blind"][name]]
    types += ["pope_yes_rate", "comp_caption_f1"]
    scores = {name: name.replace("vqa_by_type.", "").replace("_", " ") for name in types}
    return score_table(runs, "mean over the seeds", TRAINED | GUESSES, scores, mean_cell)


# ---- the rows of transfer.py ---------------------------------------------------------------------

RATIOS = [("zero_shot_langbridge", "aligned_langbridge"),  # both after align
          ("transferred_langbridge", "native_langbridge"), ("transferred_langbridge", "native_mlp"),
          ("transferred_langbridge", "tuned_linear_map"),
          *((f"{form}_zero_shot", f"{form}_aligned") for form in ("paper", "linear", "unwhitened"))]
HEADLINE = {"LangBridge, zero-shot: swap E, train nothing": "zero_shot_langbridge",
            "LangBridge, native": "aligned_langbridge", "MLP, native": "aligned_mlp",
            "control: LangBridge, its words shuffled": "zero_shot_shuffled",
            "blind: no picture, after instruct": "blind", "chance": "chance"}
CLAIM = {"linear map, MLP": "zero_shot_linear_map", "nearest words, MLP": "zero_shot_nearest_words",
         "text baseline, LangBridge": "text_langbridge", "text baseline, MLP": "text_mlp",
         "text baseline, a classifier with labels": "text_probe"}
REAL = {"true words": "reads_list", "zero-shot LangBridge": "zero_shot_langbridge",
        "control: shuffled words": "zero_shot_shuffled", "linear map, MLP": "zero_shot_linear_map",
        "nearest words, MLP": "zero_shot_nearest_words",
        "text baseline, LangBridge": "text_langbridge", "text baseline, MLP": "text_mlp",
        "LangBridge, the swap alone": "zero_shot_swap_alone",
        "control: another picture": "zero_shot_other_picture", "nothing": "nothing",
        "chance": "chance"}
REAL_FEW = {title: REAL[title] for title in (
    "true words", "zero-shot LangBridge", "LangBridge, the swap alone",
    "control: another picture", "chance")}
KINDS = {kind: [f"vqa_by_type.{kind}"] for kind in ("color", "shape", "where")}
READ = KINDS | {"caption F1": ["caption_f1"]}  # of real_FILE_HASH.json
NAMED = {"color and shape": KINDS["color"] + KINDS["shape"]}
TUNED = {"native MLP": "native_mlp", "native LangBridge": "native_langbridge",
         "transferred LangBridge": "transferred_langbridge", "fresh MLP": "fresh_mlp",
         "fresh LangBridge": "fresh_langbridge", "MLP, linear map": "tuned_linear_map"}


def transfer_table(runs):
    """Several transfer.json: all rows, and ratios between rows."""
    first = runs[0]
    scores = SCORES if "vqa" in first["chance"] else OWN_SCORES
    where = {row["name"] + " *" * (row["stage1"] or row["stage2"]): row["name"]
             for row in first["rows"]}
    paired = [[f"{a} / {b}", *(ratio_cell(ratios(runs, a, b, score)) for score in scores)]
              for a, b in RATIOS if {a, b} <= {*where.values()}]
    where |= {"majority": "majority", "chance": "chance"}
    return "\n\n".join([
        f"{first['source']} to {first['target']}. {seeds_line(runs)} Ratios: within a seed; (n): "
        f"n seeds; level: interval within {LEVEL[0]} to {LEVEL[1]}; *: trained on the target LLM "
        f"({first['stage2_samples']:,} samples in stage 2).",
        score_table(runs, "on the target LLM", where, scores),
        markdown_table(["ratio", *scores.values()], paired)])


def rates_table(runs):
    """rates.json: the mean of vqa and caption F1 on val, at each learning rate of stage 2."""
    rows = {row["name"]: row["val"] for row in runs[0]["rows"]}
    tried = max(rows.values(), key=len)  # only where the highest is the best, there are higher ones
    cells = [[name, *(mean_cell(val[rate]) if rate in val else "" for rate in tried)]
             for name, val in rows.items()]
    return markdown_table(["times the rates", *(f"{float(rate):g}" for rate in tried)], cells)


def targets_table(runs, moved):
    """Several targets.json, beside the usual target of transfer.json."""
    rows = ["text_probe", "zero_shot_langbridge", "zero_shot_own_mark", "aligned_langbridge",
            "transferred_langbridge", "native_langbridge"]
    targets = {"usual": having(moved, *rows)} | {
        row["name"]: look_up(runs, row["name"]) for row in runs[0]["rows"]}
    cells = [[name, *(both(its, row) for row in rows)] for name, its in targets.items() if its]
    return markdown_table(["vqa / caption F1", *rows], cells)


def rows_table(rows, runs):
    """Some rows on the target LLM."""
    return score_table(runs, "on the target LLM", rows, SCORES, short_cell)


def by_llm(runs):
    """Several real_FILE_HASH.json: {LLM: its runs}, named by what precedes a type of weights, as in
    SmolLM2-135M-Instruct.Q4_1_b179c952"""
    llms = {}
    for run in runs:
        llms.setdefault(re.split(r"[.-][Qq]\d", run["target"])[0], []).append(run)
    return llms


def real_table(runs, rows=REAL, scores=READ):
    """A column for each LLM; a cell has the mean of each group of scores, and half of its interval
    over the seeds if there is one group."""
    llms, made = by_llm(runs), []
    for title, row in rows.items():
        made.append([title])
        for its in llms.values():
            groups = [np.mean([look_up(its, f"{row}.{name}") for name in names], axis=0)
                      for names in scores.values() if row in its[0]]  # older files lack some
            if len(scores) > 1:  # no room for intervals
                groups = np.mean(groups, axis=1, keepdims=True)
            made[-1].append(" / ".join(map(short_cell, groups)))
    return markdown_table([" / ".join(scores), *llms], made)


def transcript_table(runs):
    """Of one seed, the first six questions about test pictures, and all answers of zero-shot visual
    tokens: who gave the right one, and the wrong ones."""
    llms = by_llm(run for run in runs if run["seed"] == runs[0]["seed"])
    names = [name.split("-")[0] for name in llms]
    said = zip(*(run["zero_shot_langbridge_says"][:6] for run, in llms.values()))
    rows = []
    for lines in said:
        (_, question, truth, _), *_ = parts = [line.split(" | ") for line in lines]
        wrong = [f"{name}: {text}" for name, (*_, text) in zip(names, parts) if text != truth]
        rows.append([question, truth, ", ".join(wrong)])
    return markdown_table(["question", "truth", "wrong answers"], rows)


# ---- more words than dimensions ------------------------------------------------------------------

LOSSES = {"LLM": "the LLM's loss", "both": "half of both", "words": "the word loss alone"}
NATIVE, ZERO_SHOT = "aligned_langbridge", "zero_shot_langbridge"
MEASURED = [f"{NATIVE}.names_right", f"{ZERO_SHOT}.names_right",
            *(f"langbridge_align.{split}.{share}" for share in ("heaviest_rare", "weight")
              for split in ("train", "test"))]


def glyphs_table(runs):
    """glyphs.json: in each world, a row for each loss."""
    rows = [[str(world["names"]), f"{world['K/C']:.1f}", LOSSES[row["name"]],
             *(mean_cell(look_up([row], path)) for path in MEASURED)]
            for world in runs[0]["worlds"] for row in world["rows"]]
    return markdown_table(["names", "K / C", "trained by", "native", "zero-shot", "heaviest, train",
                           "test", "weight, train", "test"], rows)


def plot_glyphs(path, runs):
    """glyphs.json: what zero-shot keeps of a native adapter's right names."""
    lines = {title: [(world["K/C"], *ratios([row], ZERO_SHOT, NATIVE, "names_right"))
                     for world in runs[0]["worlds"] for row in world["rows"] if row["name"] == name]
             for name, title in LOSSES.items()}
    line_plot(path, "Right names: zero-shot / native, by what trains W", lines,
              "words / width", high=1.25)


# ---- the words of the adapters -------------------------------------------------------------------

def findings_table(runs):
    """Several evaluate.json: the top words of objects, and what explains visual tokens."""
    models = {name.replace("_", ", after "): f"grounding.{name}" for name in runs[0]["grounding"]}
    shares = {f"{share}.{kind}": f"{share} {kind}" for share in ("own", "chance", "best_of_kind")
              for kind in ("color", "shape")}
    spans = {f"{kind}: {name.replace('_', ' ')}": f"subspace.{kind}.{name}"
             for kind in ("mlp", "langbridge") for name in ("explained_own", "explained_random")}
    ends = {"0.0": "before stage 1", "-1.0": "after"}
    return "\n\n".join([seeds_line(runs), score_table(runs, "in the 2 top words", models, shares),
                        score_table(runs, "energy of an object's patches", spans, ends)])


def plot_subspace(path, runs):
    """evaluate.json's "subspace": do visual tokens approach words in stage 1?"""
    study, lines = runs[0]["subspace"], {}
    for title, kind in (("MLP", "mlp"), ("LangBridge", "langbridge")):
        for words in ("own", "random"):
            energy = [mean for mean, _ in study[kind][f"explained_{words}"]]
            lines[f"{title}, {words} words"] = [*zip(study["steps"], energy)]
    line_plot(path, "Energy of an object's patches that words explain", lines,
              "steps of stage 1", high=0.6)


# ---- budgets -------------------------------------------------------------------------------------

def budget_curve(runs, row, score):
    """[(samples of stage 2, mean score, half of its interval), ..]"""
    return [(point["samples"], *interval(look_up(runs, f"{row}.points.{i}.{score}")))
            for i, point in enumerate(runs[0][row]["points"])]


def reaches(curve, goal):
    """The x at which a curve [(x, y, half), ..] first reaches a goal, interpolated, as text.

    >>> reaches([(0, 0.5, 0.0), (100, 0.75, 0.0), (200, 1.0, 0.0)], 0.875)
    '150'
    """
    xs, ys, _ = zip(*curve)
    best = np.maximum.accumulate(ys)  # so far
    return f"{np.interp(goal, best, xs):,.0f}" if goal <= best[-1] else "never"


def budgets_table(runs):
    """Several budgets.json: a row for each start, a column for each length of stage 2; then, for
    each seed, the samples after which shares of the last scores of its native MLP are reached."""
    goals = [(score, share, look_up(runs, f"native_mlp.points.-1.{score}"))
             for score in BOTH for share in (0.9, 0.95)]
    samples, rows = [point["samples"] for point in runs[0]["native_mlp"]["points"]], []
    for name in (row["name"] for row in runs[0]["rows"]):
        cells = {point["samples"]: both(runs, f"{name}.points.{i}")
                 for i, point in enumerate(runs[0][name]["points"])}
        rows.append([name, *(cells.get(x, "") for x in samples)])
        for score, share, lasts in goals:
            rows[-1].append(" / ".join(reaches(budget_curve([run], name, score), share * last)
                                       for run, last in zip(runs, lasts)))
    header = [f"{share:.0%} of {SCORES[score]} at" for score, share, _ in goals]
    return f"Seeds: {len(runs)}; means.\n\n" + markdown_table(
        ["vqa / caption F1", *(f"{x:,}" for x in samples), *header], rows)


def plot_budgets(path, runs):
    """Several budgets.json: the table's vqa."""
    lines = {row["name"]: [(x, y) for x, y, _ in budget_curve(runs, row["name"], "vqa")]
             for row in runs[0]["rows"]}
    line_plot(path, "vqa on the target, after stage 2 of several lengths", lines,
              "samples of stage 2")


# ---- time ----------------------------------------------------------------------------------------

def plot_bench(path, runs):
    lines = {name: of["curve"] for name, of in runs[0]["skill"]["designs"].items()}
    line_plot(path, "Learning to read a grid of words: exact match", lines,
              "seconds of training")


# ---- into the READMEs ----------------------------------------------------------------------------

TABLES = {  # NAME: what makes it, from which files; NAME in FOLDER: the same of another folder
    "headline": (partial(rows_table, HEADLINE), "transfer"),
    "claim": (partial(rows_table, CLAIM), "transfer"),
    "main results": (partial(rows_table, TUNED), "transfer"),
    "results": (models_table, "results"), "types": (types_table, "results"),
    "transfer": (transfer_table, "transfer"), "reverse": (transfer_table, "transfer_reverse"),
    "glyphs": (glyphs_table, "glyphs"), "rates": (rates_table, "rates"),
    "targets": (targets_table, "targets", "transfer"),
    "real": (partial(real_table, rows=REAL_FEW, scores=NAMED), "real_*"),
    "real types": (real_table, "real_*"),
    "transcript": (transcript_table, "real_*"),
    "findings": (findings_table, "evaluate"), "budgets": (budgets_table, "budgets")}
FIGURES = {"subspace": (plot_subspace, "evaluate"), "budgets": (plot_budgets, "budgets"),
           "glyphs": (plot_glyphs, "glyphs"), "bench": (plot_bench, "bench")}
MARKED = re.compile(r"<!-- (?!end -->)([^\n]+?) -->\n.*?<!-- end -->", flags=re.DOTALL)


def load(folders, file):
    """The JSON files of this name; what they say of a model or a row stands under its name."""
    runs = [json.loads(path.read_text(encoding="utf-8"))
            for folder in sorted(folders) for path in sorted(folder.glob(f"{file}.json"))]
    return [run | run.get("vlm", {}) |
            {row["name"]: row.get("scores", row) for row in run.get("rows", [])} for run in runs]


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
    for name, (make, *files) in TABLES.items():
        runs = [load(folders, file) for file in files]
        if all(found and len(found) % len(folders) == 0 for found in runs):
            with suppress(KeyError):  # rows or scores that these runs do not have
                print(f"## {name}\n\n{make(*runs)}\n")


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="--out folders of train.py")
    folders = parser.parse_args().folders
    seeds = {run["seed"] for run in load(folders, "results")}
    if len(seeds) < len(folders):
        parser.exit(2, "expected a results.json of another seed in each folder\n")
    if folders:
        return print_tables(folders)
    for path in (RESULTS.parent / "README.md", RESULTS / "README.md"):
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, (plot, file) in FIGURES.items():
        plot(RESULTS / "figures" / f"{name}.png", load(JSON.glob("seed*"), file))


if __name__ == "__main__":
    main()
