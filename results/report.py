"""The tables of the READMEs, from the JSON files in this folder.

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
KINDS = ["native", "zero_shot", "transferred"]  # where a sweep's LangBridges are examined


# ---- cells and rows ------------------------------------------------------------------------------

def spread(values):
    """Several seeds' scores in one cell: mean (lowest to highest)."""
    mean = f"{np.mean(values):.3f}"
    if len(set(values)) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"


def across(runs, path):
    """The values at a path like 'vlm/mlp/align/vqa' of several JSON files; in a list, /0 or /-1."""
    values = []
    for value in runs:
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        values.append(value)
    return values


def rows_across(runs, names, paths):
    """Rows [name, spread at each path] for {name: key}; {} in a path is replaced by the key."""
    rows = []
    for name, key in names.items():
        rows.append([name, *[spread(across(runs, path.format(key))) for path in paths]])
    return rows


def markdown_table(header, rows):
    lines = []
    for cells in [header, ["---"] * len(header), *rows]:
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---- the report's tables -------------------------------------------------------------------------

def results_table(runs):
    """The scores of several seeds of train.py (their results.json), as two tables."""
    first, seeds = runs[0], ", ".join(str(run["seed"]) for run in runs)
    models = {
        "MLP, after align": "mlp/align", "LangBridge, after align": "langbridge/align",
        "MLP, after instruct": "mlp/instruct", "LangBridge, after instruct": "langbridge/instruct",
        "blind: no picture, same tuning": "blind", "chance": "chance"}
    scores = ["vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1"]
    exam = rows_across(runs, models, ["vlm/{}/" + score for score in scores])
    return "\n\n".join([
        f"Seeds {seeds}, preset {first['preset']}, {first['device']}: mean (lowest to highest).",
        markdown_table(["on the test split", *scores], exam),
        markdown_table(["the parts", "score"], rows_of_parts(runs))])


def rows_of_parts(runs):
    """What the LLMs and the ViT score on their own."""
    rows = []
    for llm in ("source", "target"):
        for what, score in [("sentences", "text_qa"), ("rasters", "raster_qa")]:
            types = across(runs, f"llm/{llm}/{score}_by_type")
            rows.append([f"{llm} LLM reads {what}", spread(across(runs, f"llm/{llm}/{score}"))])
            rows.append(["its worst question type", spread([min(t.values()) for t in types])])
        captions = across(runs, f"llm/{llm}/raster_caption_f1")
        rows.append([f"{llm} LLM describes rasters (F1)", spread(captions)])
    vit = {"ViT: retrieval among 100 pairs": "retrieval_top1",
           "ViT: linear probe, colour": "probe_color", "ViT: linear probe, shape": "probe_shape"}
    return rows + rows_across(runs, vit, ["vit/{}"])


def findings_table(runs):
    """Several evaluate.json about the adapters' words, as three tables."""
    adapters = {
        "LangBridge, after align": "langbridge",
        "LangBridge, after instruct": "langbridge_after_instruct",
        "MLP, nearest embeddings, after align": "mlp_nearest"}
    grounding = rows_across(runs, adapters, [
        "grounding/{}/color", "grounding/{}/shape",
        "grounding/chance/{}/color", "grounding/chance/{}/shape"])
    steering = []
    for stage in ("align", "instruct"):
        edits = ", ".join(str(n) for n in across(runs, f"steering/{stage}/n"))
        follows = spread(across(runs, f"steering/{stage}/changed_as_edited"))
        stays = spread(across(runs, f"steering/{stage}/others_kept"))
        steering.append([f"after {stage}", edits, follows, stays])
    spans = {
        "MLP: the caption's words": "mlp/explained_own",
        "MLP: as many random words": "mlp/explained_random",
        "LangBridge: the caption's words": "langbridge/explained_own",
        "LangBridge: as many random words": "langbridge/explained_random"}
    subspace = rows_across(runs, spans, ["subspace/{}/0", "subspace/{}/-1"])
    return "\n\n".join([
        f"{len(runs)} seeds of train.py: mean (lowest to highest).",
        markdown_table(["among the 5 top words of an object's patches", "its colour", "its shape",
                        "another picture's colour", "shape"], grounding),
        markdown_table(["one colour swapped for another in every patch", "edits",
                        "the colour answer follows", "other answers stay"], steering),
        markdown_table(["energy of an object's patches that is explained by", "before stage 1",
                        "after it"], subspace)])


def transfer_table(r):
    """A transfer.json as two tables: the rows, and ratios between them."""
    scores = list(r["rows"][0]["scores"])
    header = ["row", "stage 1", "stage 2", *scores, "seconds on the target", "samples to 95%"]
    rows = []
    for row in r["rows"]:
        stages = ["yes" if row[stage] else "no" for stage in ("stage1", "stage2")]
        cells = [spread(row["scores"][score]["values"]) for score in scores]
        if not row["stage2"]:
            samples = ""
        elif r["samples_to_95"][row["name"]] is None:
            samples = "never"
        else:
            samples = f"{r['samples_to_95'][row['name']]:,.0f}"
        rows.append([row["name"], *stages, *cells, f"{row['seconds']:.0f}", samples])
    ratios = []
    for name, values in r["relative"].items():
        name = name.replace("_vs_", " / ").replace("zero_shot", "zero-shot").replace("_", " ")
        ratios.append([name, *[f"{values[score]:.3f}" for score in scores]])
    seeds = ", ".join(map(str, r["seeds"]))
    return "\n\n".join([
        f"{r['source']} to {r['target']}, seeds {seeds}: mean (lowest to highest).",
        markdown_table(header, rows),
        f"Stage 2 has {r['stage2_samples']:,} samples in every row; 'samples to 95%':\n"
        "until the curve reaches 95% of native MLP's final vqa.",
        markdown_table(["ratio of means", *scores], ratios)])


def sweep_table(sweep):
    """An ablate_*.json; it has no column "transferred" if it was made without stage 2."""
    kinds = [kind for kind in KINDS if kind in sweep["points"][0]]
    columns = [(kind, score) for kind in kinds for score in ("vqa", "caption_f1")]
    names = [f"{kind.replace('_', '-')} {score}" for kind, score in columns]
    header = [sweep["setting"], "words", "parameters", *names, "weight on own words"]
    rows = []
    for point in sweep["points"]:
        cells = [spread(point[kind][score]) for kind, score in columns]
        setting = [str(point["value"]), str(point["K"]), f"{point['params']:,}"]
        rows.append([*setting, *cells, spread(point["own_weight"])])
    return markdown_table(header, rows)


def ablation_table(sweep):
    """The sweep_table, and under it what its columns mean."""
    stage2 = ""
    if "transferred" in sweep["points"][0]:
        stage2 = "transferred: tuned there in stage 2; "
    seeds = ", ".join(map(str, sweep["seeds"]))
    return (f"{sweep_table(sweep)}\n\nSeeds {seeds}. Native: on the source LLM, after stage 1; "
            f"zero-shot: moved to the target, nothing trained there; {stage2}weight on own words: "
            "the share of weight that an object's patches put on its own colour and shape, after "
            "stage 1.")


def tries_table(r):
    """tries.json: what was tried in stage 1."""
    llms = {"source": "native", "target": "zero-shot"}
    columns = [(llm, score) for llm in llms for score in r["tries"][0]["source"]["test"]]
    names = [f"{llms[llm]} {score}" for llm, score in columns]
    rows = []
    for tried in r["tries"]:
        cells = [spread(tried[llm]["test"][score]) for llm, score in columns]
        rows.append([tried["what"], str(tried["K"]), *cells, spread(tried["own_weight"])])
    return markdown_table(["stage 1 with", "words", *names, "weight on own words"], rows)


# ---- the tutorial's tables: means alone ----------------------------------------------------------

SHORT_SCORES = {
    "vqa": "vqa", "caption_f1": "caption F1", "pope_acc": "yes/no", "comp_vqa": "unseen pairs"}


def means(runs, path):
    """The means of all scores that lie at a path, as .987"""
    values = [across(runs, f"{path}/{score}") for score in SHORT_SCORES]
    return [f"{np.mean(seeds):.3f}".removeprefix("0") for seeds in values]


def scores_of_seeds(r):
    """The rows of a transfer.json as one {row: {score: value}} for each seed."""
    seeds = []
    for k in range(len(r["seeds"])):
        seeds.append({row["name"]: {score: by_seed["values"][k]
                                    for score, by_seed in row["scores"].items()}
                      for row in r["rows"]})
    return seeds


def claim_table(target, runs):
    """An adapter with only its basis swapped, and what to compare it with."""
    moved = {
        "LangBridge, native: aligned on the target itself": "stage1_native_langbridge",
        "LangBridge, moved (zero-shot): nothing trained on the target": "zero_shot_langbridge",
        "the same, words shuffled": "zero_shot_shuffled",
        "blind: tuned on the conversations, without the pictures": "blind"}
    rows = [[title, *means(target, name)] for title, name in moved.items()]
    rows.append(["chance", *means(runs, "vlm/chance")])
    return markdown_table(["on the target LLM", *SHORT_SCORES.values()], rows)


def main_table(target, runs):
    """Both adapters on the source LLM after each stage, and all ways to have one on the target."""
    rows = []
    for phase in ("align", "instruct"):
        for name, kind in (("MLP", "mlp"), ("LangBridge", "langbridge")):
            rows.append(["source", name, phase, *means(runs, f"vlm/{kind}/{phase}")])
    rows.append(["source", "blind: no picture", "instruct", *means(runs, "vlm/blind")])
    for name, row in (("native MLP", "native_mlp"), ("native LangBridge", "native_langbridge"),
                      ("transferred LangBridge", "transferred_langbridge"),
                      ("fresh MLP", "fresh_mlp"), ("fresh LangBridge", "fresh_langbridge"),
                      ("blind: no picture", "blind")):
        rows.append(["target", name, "instruct", *means(target, row)])
    rows.append(["", "chance", "", *means(runs, "vlm/chance")])
    return markdown_table(["LLM", "adapter", "after", *SHORT_SCORES.values()], rows)


# ---- into the READMEs ----------------------------------------------------------------------------

def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


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
    runs = [read_json(path) for path in sorted(folder.glob("seed*.json"))]
    if name in ("claim", "main results"):
        make = claim_table if name == "claim" else main_table
        return make(scores_of_seeds(read_json(folder / "transfer.json")), runs)
    if name == "seeds":
        return results_table(runs)
    if name == "findings":
        return findings_table([read_json(path) for path in sorted(folder.glob("evaluate*.json"))])
    if name == "tries.json":
        return tries_table(read_json(folder / name))
    if name.startswith("transfer"):
        return transfer_table(read_json(folder / name))
    what = name.removeprefix("ablate ")  # the report explains the columns once for all sweeps
    return sweep_table(read_json(folder / f"ablate_{what}.json"))


MARKED = re.compile(r"<!-- (?!end -->)([^\n]+?) -->\n.*?<!-- end -->", flags=re.DOTALL)


def fill(text, folder):
    """The text with its tables, each between <!-- NAME --> and <!-- end -->, as the JSON files in
    `folder` have them. Raises ValueError for a NAME that is not one of table_names(folder)."""
    def filled(found):
        return f"<!-- {found[1]} -->\n{table(found[1], folder)}\n<!-- end -->"

    return MARKED.sub(filled, text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in READMES:
        try:
            text = fill(path.read_text(encoding="utf-8"), RESULTS)
        except ValueError as error:
            parser.error(f"{path.name}: {error}")
        path.write_text(text, encoding="utf-8")
        names = MARKED.findall(text)
        print(f"{path.relative_to(RESULTS.parent)}: {len(names)} tables ({', '.join(names)})")


if __name__ == "__main__":
    main()
