"""The tables of README.md and results/README.md, from the JSON files in this folder.

    python results/report.py      rewrites every table between <!-- NAME --> and <!-- end -->

Nothing is measured here, and nothing of the project is imported. The words native, zero-shot and
transferred mean what the glossary of results/README.md says.
"""
import argparse
import json
import re
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent
READMES = [RESULTS.parent / "README.md", RESULTS / "README.md"]


# ---- cells and rows ------------------------------------------------------------------------------

def spread(values):
    """Several seeds' scores in one cell: mean (lowest to highest)."""
    mean = f"{np.mean(values):.3f}"
    if len(set(values)) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"


def short(values):
    """The mean alone, as .987"""
    return f"{np.mean(values):.3f}".removeprefix("0")


def comma_list(values):
    return ", ".join(str(value) for value in values)


def yes_or_no(value):
    return "yes" if value else "no"


def across(runs, path):
    """The values at a path like 'vlm/mlp/align/vqa' of several JSON files; a list's last one."""
    values = []
    for value in runs:
        for key in path.split("/"):
            value = value[key]
        values.append(value[-1] if isinstance(value, list) else value)
    return values


def markdown_table(header, rows):
    """The lines of a table."""
    lines = []
    for cells in [header, ["---"] * len(header), *rows]:
        lines.append("| " + " | ".join(cells) + " |")
    return lines


# ---- the report's tables -------------------------------------------------------------------------

def results_table(runs):
    """The scores of several seeds of train.py (their results.json), as two tables."""
    first = runs[0]
    seeds = comma_list(run["seed"] for run in runs)
    title = f"Seeds {seeds}, preset {first['preset']}, {first['device']}: mean (lowest to highest)."
    lines = [title, "", *exam_lines(runs), "", *parts_lines(runs)]
    return "\n".join(lines)


def exam_lines(runs):
    """What the VLMs score."""
    scores = ["vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1"]
    models = {
        "MLP, after align": "mlp/align",
        "LangBridge, after align": "langbridge/align",
        "MLP, after instruct": "mlp/instruct",
        "LangBridge, after instruct": "langbridge/instruct",
        "blind: no picture, same tuning": "blind",
        "chance": "chance",
    }
    rows = []
    for name, path in models.items():
        cells = [spread(across(runs, f"vlm/{path}/{score}")) for score in scores]
        rows.append([name, *cells])
    return markdown_table(["on the test split", *scores], rows)


def parts_lines(runs):
    """What the LLMs and the ViT score on their own."""
    rows = []
    for llm in ("source", "target"):
        for name, score in [("sentences", "text_qa"), ("rasters", "raster_qa")]:
            by_type = across(runs, f"llm/{llm}/{score}_by_type")
            worst = [min(scores.values()) for scores in by_type]
            rows.append([f"{llm} LLM reads {name}", spread(across(runs, f"llm/{llm}/{score}"))])
            rows.append(["its worst question type", spread(worst)])
        captions = across(runs, f"llm/{llm}/raster_caption_f1")
        rows.append([f"{llm} LLM describes rasters (F1)", spread(captions)])
    rows.append(["ViT: retrieval among 100 pairs", spread(across(runs, "vit/retrieval_top1"))])
    rows.append(["ViT: linear probe, colour", spread(across(runs, "vit/probe_color"))])
    rows.append(["ViT: linear probe, shape", spread(across(runs, "vit/probe_shape"))])
    return markdown_table(["the parts", "score"], rows)


def transfer_table(r):
    """A transfer.json: its rows, and what they are relative to each other."""
    scores = list(r["rows"][0]["scores"])
    rows = []
    for row in r["rows"]:
        cells = [spread(row["scores"][score]["values"]) for score in scores]
        rows.append([
            row["name"], yes_or_no(row["stage1"]), yes_or_no(row["stage2"]), *cells,
            f"{row['seconds']:.0f}", samples_cell(row, r["samples_to_95"])])
    header = ["row", "stage 1", "stage 2", *scores, "seconds on the target", "samples to 95%"]

    ratios = []
    for name, values in r["relative"].items():
        name = name.replace("_vs_", " / ").replace("zero_shot", "zero-shot").replace("_", " ")
        ratios.append([name, *[f"{values[score]:.3f}" for score in scores]])

    seeds = comma_list(r["seeds"])
    return "\n".join([
        f"{r['source']} to {r['target']}, seeds {seeds}: mean (lowest to highest).", "",
        *markdown_table(header, rows), "",
        f"Stage 2 has {r['stage2_samples']:,} samples in every row; 'samples to 95%': "
        "until the curve reaches 95% of native MLP's final vqa.", "",
        *markdown_table(["ratio of means", *scores], ratios)])


def samples_cell(row, samples_to_95):
    if not row["stage2"]:
        return ""
    samples = samples_to_95[row["name"]]
    return "never" if samples is None else f"{samples:,.0f}"


KINDS = ["native", "zero_shot", "transferred"]  # where a sweep's LangBridges are examined


def kinds_of(sweep):
    """Those of KINDS that a sweep has: it may have been made without stage 2."""
    return [kind for kind in KINDS if kind in sweep["points"][0]]


def ablation_table(sweep):
    """An ablate_*.json, and under it what its columns mean."""
    return "\n".join([*ablation_lines(sweep), "", ablation_legend(sweep)])


def ablation_lines(sweep):
    columns = [(kind, score) for kind in kinds_of(sweep) for score in ("vqa", "caption_f1")]
    names = [f"{kind.replace('_', '-')} {score}" for kind, score in columns]
    rows = []
    for point in sweep["points"]:
        cells = [spread(point[kind][score]) for kind, score in columns]
        rows.append([
            str(point["value"]), str(point["K"]), f"{point['params']:,}", *cells,
            spread(point["own_weight"])])
    header = [sweep["setting"], "words", "parameters", *names, "weight on own words"]
    return markdown_table(header, rows)


def ablation_legend(sweep):
    meanings = [
        "Native: on the source LLM, after stage 1",
        "zero-shot: moved to the target, nothing trained there"]
    if "transferred" in kinds_of(sweep):
        meanings.append("transferred: tuned there in stage 2")
    meanings.append(
        "weight on own words: the share of weight that an object's patches put on its own colour "
        "and shape, after stage 1")
    return f"Seeds {comma_list(sweep['seeds'])}. " + "; ".join(meanings) + "."


def tries_table(r):
    """tries.json: what was tried in stage 1."""
    names = {"source": "native", "target": "zero-shot"}
    scores = list(r["tries"][0]["source"]["test"])
    columns = [(llm, score) for llm in names for score in scores]
    rows = []
    for tried in r["tries"]:
        cells = [spread(tried[llm]["test"][score]) for llm, score in columns]
        rows.append([tried["what"], str(tried["K"]), *cells, spread(tried["own_weight"])])
    titles = [f"{names[llm]} {score}" for llm, score in columns]
    return "\n".join(
        markdown_table(["stage 1 with", "words", *titles, "weight on own words"], rows))


def findings_table(runs):
    """What several evaluate.json say of the adapters' words, as three tables."""
    return "\n".join([
        f"{len(runs)} seeds of train.py: mean (lowest to highest).", "",
        *grounding_lines(runs), "", *steering_lines(runs), "", *subspace_lines(runs)])


def grounding_lines(runs):
    adapters = {
        "langbridge": "LangBridge, after align",
        "langbridge_after_instruct": "LangBridge, after instruct",
        "mlp_nearest": "MLP, nearest embeddings, after align",
    }
    rows = []
    for key, name in adapters.items():
        measures = [f"{key}/color", f"{key}/shape", f"chance/{key}/color", f"chance/{key}/shape"]
        cells = [spread(across(runs, f"grounding/{measure}")) for measure in measures]
        rows.append([name, *cells])
    header = ["among the 5 top words of an object's patches", "its colour", "its shape",
              "another picture's colour", "shape"]
    return markdown_table(header, rows)


def steering_lines(runs):
    rows = []
    for stage in ("align", "instruct"):
        edits = comma_list(across(runs, f"steering/{stage}/n"))
        follows = spread(across(runs, f"steering/{stage}/changed_as_edited"))
        stays = spread(across(runs, f"steering/{stage}/others_kept"))
        rows.append([f"after {stage}", edits, follows, stays])
    header = ["one colour swapped for another in every patch", "edits",
              "the colour answer follows", "other answers stay"]
    return markdown_table(header, rows)


def subspace_lines(runs):
    rows = []
    for kind, name in [("mlp", "MLP"), ("langbridge", "LangBridge")]:
        for span, what in [("explained_own", "the caption's words"),
                           ("explained_random", "as many random words")]:
            before = [run["subspace"][kind][span][0] for run in runs]
            after = across(runs, f"subspace/{kind}/{span}")
            rows.append([f"{name}: {what}", spread(before), spread(after)])
    header = ["energy of an object's patches that is explained by", "before stage 1", "after it"]
    return markdown_table(header, rows)


# ---- the tutorial's tables: means alone ----------------------------------------------------------

SHORT_SCORES = {
    "vqa": "vqa",
    "caption_f1": "caption F1",
    "pope_acc": "yes/no",
    "comp_vqa": "unseen pairs",
}


def transfer_cells(r, row_name):
    """One row of a transfer.json."""
    scores = next(row["scores"] for row in r["rows"] if row["name"] == row_name)
    return [short(scores[score]["values"]) for score in SHORT_SCORES]


def seed_cells(runs, path):
    """One model of several seeds of train.py."""
    return [short(across(runs, f"vlm/{path}/{score}")) for score in SHORT_SCORES]


def claim_table(r, runs):
    """An adapter that nothing was done to but swap its basis, and what to compare it with."""
    native = transfer_cells(r, "stage1_native_langbridge")
    moved = transfer_cells(r, "zero_shot_langbridge")
    shuffled = transfer_cells(r, "zero_shot_shuffled")
    rows = [
        ["LangBridge, native: aligned on the target itself", *native],
        ["LangBridge, moved: nothing trained on the target", *moved],
        ["the same, words shuffled", *shuffled],
        ["no picture (its LLM had stage 2, on text alone)", *transfer_cells(r, "blind")],
        ["chance", *seed_cells(runs, "chance")],
    ]
    header = ["on the target LLM", *SHORT_SCORES.values()]
    return "\n".join(markdown_table(header, rows))


def main_table(r, runs):
    """Both adapters on the source LLM and on the target, in one table."""
    rows = [
        ["source", "MLP", "align", *seed_cells(runs, "mlp/align")],
        ["source", "LangBridge", "align", *seed_cells(runs, "langbridge/align")],
        ["source", "MLP", "instruct", *seed_cells(runs, "mlp/instruct")],
        ["source", "LangBridge", "instruct", *seed_cells(runs, "langbridge/instruct")],
        ["source", "blind: no picture", "instruct", *seed_cells(runs, "blind")],
        ["target", "native MLP", "instruct", *transfer_cells(r, "native_mlp")],
        ["target", "native LangBridge", "instruct", *transfer_cells(r, "native_langbridge")],
        ["target", "transferred LangBridge", "instruct",
         *transfer_cells(r, "transferred_langbridge")],
        ["target", "blind: no picture", "instruct", *transfer_cells(r, "blind")],
        ["", "chance", "", *seed_cells(runs, "chance")],
    ]
    return "\n".join(markdown_table(["LLM", "adapter", "after", *SHORT_SCORES.values()], rows))


# ---- into the READMEs ----------------------------------------------------------------------------

def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_all(folder, pattern):
    return [read_json(path) for path in sorted(folder.glob(pattern))]


def table_names(folder):
    """Every NAME that can be filled in from the files in this folder."""
    names = ["claim", "main results", "seeds", "findings", "tries.json"]
    names += sorted(path.name for path in folder.glob("transfer*.json"))
    sweeps = sorted(path.stem.removeprefix("ablate_") for path in folder.glob("ablate_*.json"))
    return names + [f"ablate {what}" for what in sweeps]


def table(name, folder):
    """The table of this name, without its markers; raises ValueError if there is none."""
    if name not in table_names(folder):
        known = ", ".join(table_names(folder))
        raise ValueError(f"there is no table {name!r}; expected one of: {known}")
    if name == "claim":
        return claim_table(read_json(folder / "transfer.json"), read_all(folder, "seed*.json"))
    if name == "main results":
        return main_table(read_json(folder / "transfer.json"), read_all(folder, "seed*.json"))
    if name == "seeds":
        return results_table(read_all(folder, "seed*.json"))
    if name == "findings":
        return findings_table(read_all(folder, "evaluate*.json"))
    if name == "tries.json":
        return tries_table(read_json(folder / name))
    if name.startswith("transfer"):
        return transfer_table(read_json(folder / name))
    what = name.removeprefix("ablate ")
    sweep = read_json(folder / f"ablate_{what}.json")
    return "\n".join(ablation_lines(sweep))  # the report explains the columns once for all sweeps


MARKED = re.compile(r"<!-- (?!end -->)([^\n]+?) -->\n.*?<!-- end -->", flags=re.DOTALL)


def fill(text, folder):
    """The text with its tables as the JSON files in `folder` have them.

    A table stands between <!-- NAME --> and <!-- end -->. Raises ValueError for a NAME that is not
    one of table_names(folder).
    """
    def filled(found):
        name = found[1]
        return f"<!-- {name} -->\n{table(name, folder)}\n<!-- end -->"

    return MARKED.sub(filled, text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        try:
            new = fill(text, RESULTS)
        except ValueError as error:
            parser.error(f"{path.name}: {error}")
        path.write_text(new, encoding="utf-8")
        names = MARKED.findall(new)
        print(f"{path.relative_to(RESULTS.parent)}: {len(names)} tables ({comma_list(names)})")


if __name__ == "__main__":
    main()
