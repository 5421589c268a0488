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

MODELS = {  # title: where its scores are in results.json
    "MLP, after align": "mlp/align", "LangBridge, after align": "langbridge/align",
    "MLP, after instruct": "mlp/instruct", "LangBridge, after instruct": "langbridge/instruct",
    "blind: no picture, same tuning": "blind",
    "majority: each question's most frequent answer": "majority", "chance": "chance"}

OWN_SCORES = ["exact_match", "token_f1", "caption_exact", "retrieval"]  # of pictures from files

READING = {"text_qa": "answers from sentences", "raster_qa": "answers from rasters",
           "raster_caption_f1": "describes rasters (F1)"}


def results_table(runs):
    """The scores of several seeds of train.py (their results.json), as two tables."""
    first, seeds = runs[0], ", ".join(str(run["seed"]) for run in runs)
    scores = ["vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1"]
    if "vqa" not in first["vlm"]["chance"]:  # of pictures from files
        scores = OWN_SCORES
    exam = rows_across(runs, MODELS, ["vlm/{}/" + score for score in scores])
    return "\n\n".join([
        f"Seeds {seeds}, preset {first['preset']}, {first['device']}: mean (lowest to highest).",
        markdown_table(["on the test split", *scores], exam),
        markdown_table(["the parts", "score"], rows_of_parts(runs))])


def exported_table(r, runs):
    """An exported.json beside several seeds of the built-in world (their results.json)."""
    rows = []
    for title, where in MODELS.items():
        if where not in ("majority", "chance"):
            cells = []
            for score in SHORT_SCORES:
                cells.append(spread(across([r], f"vlm/{where}/{score}")))
                cells += [spread(across(runs, f"vlm/{where}/{score}"))] if runs else []
            rows.append([title, *cells])
    titles = [[f"{title}, from files", *([f"{title}, built in"] if runs else [])]
              for title in SHORT_SCORES.values()]
    return markdown_table(["exam of the built-in world", *sum(titles, [])], rows)


def own_table(run, moved, other):
    """Pictures from files: a results.json and a transfer.json, both on held-out pictures, and an
    evaluate_*.json about pictures in another style."""
    scores = OWN_SCORES
    by_row = {row["name"]: row["scores"] for row in moved["rows"]}

    def row(title, held, stage=None):
        values = [held[score] for score in scores]
        values += [stage[score] for score in scores] if stage else [None] * len(scores)
        return [title, *("" if value is None else f"{value:.3f}" for value in values)]

    rows, checked = [], other["checkpoints"]
    for title, where in MODELS.items():
        stage = where.replace("/", "_") if "/" in where else f"{where}_instruct"
        (held,) = across([run], f"vlm/{where}")
        rows.append(row(title, held, checked.get(stage) or other.get(where)))
    begin = "transfer/llm_target/seed0/"
    for title, name, stage in (
            ("target LLM: LangBridge, moved", "zero_shot_langbridge", ""),
            ("LangBridge, native after align", "stage1_native_langbridge", ""),
            ("LangBridge, moved and tuned", "transferred_langbridge",
             "from_llm_source/transferred_langbridge"),
            ("LangBridge, native", "native_langbridge", "native_langbridge_instruct"),
            ("MLP, native", "native_mlp", "native_mlp_instruct")):
        held = {score: by_row[name][score]["mean"] for score in scores}
        rows.append(row(title, held, checked.get(begin + stage)))
    return markdown_table(["", *scores, *(f"{score}, other style" for score in scores)], rows)


def precision_table(runs):
    """One seed in float32 and in bfloat16 (two results.json): 'the first / the second'."""
    def both(path):
        return " / ".join(f"{value:.3f}" for value in across(runs, path))

    models = [title for title, where in MODELS.items() if where not in ("majority", "chance")]
    rows = [[title, *(both(f"vlm/{MODELS[title]}/{score}") for score in SHORT_SCORES)]
            for title in models]
    parts = [[f"{llm} LLM", *(both(f"llm/{llm}/{score}") for score in READING)]
             for llm in ("source", "target")]
    return "\n\n".join([
        markdown_table(["float32 / bfloat16", *SHORT_SCORES.values()], rows),
        markdown_table(["float32 / bfloat16", *READING.values()], parts)])


def types_table(runs):
    """The same by type of question, means alone; 'comp' is about unseen pairs."""
    types = ["color", "shape", "where", "count", "exists"]
    asked = [f"vqa_by_type/{type}" for type in types]
    asked += [f"comp_vqa_by_type/{type}" for type in types if type != "count"]  # no pair in it
    asked += ["pope_yes_rate", "comp_pope_acc", "comp_pope_yes_rate"]
    by_type = []
    for title, where in MODELS.items():
        values = [np.mean(across(runs, f"vlm/{where}/{name}")) for name in asked]
        by_type.append([title, *(f"{value:.3f}".removeprefix("0") for value in values)])
    header = [name.replace("vqa_by_type/", "").replace("_", " ") for name in asked]
    return markdown_table(["mean over the seeds", *header], by_type)


def rows_of_parts(runs):
    """What the LLMs and the ViT score on their own."""
    if "vqa" not in runs[0]["vlm"]["chance"]:
        return rows_of_own_parts(runs)
    rows = []
    for llm in ("source", "target"):
        for what, score in [("sentences", "text_qa"), ("rasters", "raster_qa")]:
            types = across(runs, f"llm/{llm}/{score}_by_type")
            rows.append([f"{llm} LLM reads {what}", spread(across(runs, f"llm/{llm}/{score}"))])
            rows.append(["its worst question type", spread([min(t.values()) for t in types])])
        captions = across(runs, f"llm/{llm}/raster_caption_f1")
        rows.append([f"{llm} LLM describes rasters (F1)", spread(captions)])
    vit = {"ViT: retrieval among 100 pairs": "retrieval_top1",
           "ViT: linear probe, colour": "probe_color", "ViT: linear probe, shape": "probe_shape",
           "the same on unseen pairs, colour": "comp_probe_color",
           "the same on unseen pairs, shape": "comp_probe_shape"}
    return rows + rows_across(runs, vit, ["vit/{}"])


def rows_of_own_parts(runs):
    """The same on pictures from files."""
    rows, told = [], {"text_qa": "texts", "raster_qa": "grids of words"}
    for llm in ("source", "target"):
        rows += [[f"{llm} LLM reads {what}", spread(across(runs, f"llm/{llm}/{score}"))]
                 for score, what in told.items() if score in runs[0]["llm"][llm]]
    return rows + rows_across(runs, {"ViT: retrieval among 100 pairs": "retrieval_top1"},
                              ["vit/{}"])


def findings_table(runs):
    """Several evaluate.json about the adapters' words, as three tables."""
    adapters = {
        "LangBridge, after align": "langbridge",
        "LangBridge, after instruct": "langbridge_after_instruct",
        "MLP, nearest embeddings, after align": "mlp_nearest"}
    grounding = rows_across(runs, adapters, [
        "grounding/{}/color", "grounding/{}/shape",
        "grounding/chance/{}/color", "grounding/chance/{}/shape",
        "grounding/best_of_kind/{}/color", "grounding/best_of_kind/{}/shape"])
    steering = []
    for title, where in (("LangBridge: another word", ""),
                         ("MLP: shifted by means of labelled patches", "mlp/")):
        for stage in ("align", "instruct"):
            edits = ", ".join(str(n) for n in across(runs, f"steering/{where}{stage}/n"))
            follows = spread(across(runs, f"steering/{where}{stage}/changed_as_edited"))
            stays = spread(across(runs, f"steering/{where}{stage}/others_kept"))
            steering.append([f"{title}, after {stage}", edits, follows, stays])
    spans = {
        "MLP: the caption's words": "mlp/explained_own",
        "MLP: as many random words": "mlp/explained_random",
        "LangBridge: the caption's words": "langbridge/explained_own",
        "LangBridge: as many random words": "langbridge/explained_random"}
    subspace = rows_across(runs, spans, ["subspace/{}/0", "subspace/{}/-1"])
    return "\n\n".join([
        f"{len(runs)} seeds of train.py: mean (lowest to highest).",
        markdown_table(["among the 2 top words of an object's patches", "its colour", "its shape",
                        "another picture's colour", "shape", "its colour is the top colour",
                        "its shape the top shape"], grounding),
        markdown_table(["one colour swapped for another", "edits",
                        "the colour answer follows", "other answers stay"], steering),
        markdown_table(["energy of an object's patches that is explained by", "before stage 1",
                        "after it"], subspace)])


def transfer_table(r):
    """A transfer.json as two tables: the rows, and ratios between them."""
    scores = list(r["rows"][0]["scores"])
    rows = []
    for row in r["rows"]:
        stages = ["yes" if row[stage] else "no" for stage in ("stage1", "stage2")]
        cells = [spread(row["scores"][score]["values"]) for score in scores]
        rows.append([row["name"], *stages, *cells, f"{row['seconds']:.0f}"])
    for guess in ("majority", "chance"):
        guessed = r[guess] | r[guess].get("vqa_by_type", {})
        rows.append([guess, "", "", *(f"{guessed[score]:.3f}" for score in scores), ""])
    ratios = []
    for name, by_score in r["ratios"].items():
        name = name.replace("_vs_", " / ").replace("zero_shot", "zero-shot").replace("_", " ")
        cells = []
        for score in by_score:
            low, high = by_score[score]["interval"]
            cells.append(f"{spread(by_score[score]['values'])}; {low:.3f} to {high:.3f}")
        ratios.append([name, *cells])
    seeds = ", ".join(map(str, r["seeds"]))
    if "llm" in r:
        header = ["row", "stage 1", "stage 2", *scores, "seconds"]
        return f"{real_line(r, seeds)}\n\n{markdown_table(header, rows)}"
    return "\n\n".join([
        f"{r['source']} to {r['target']}, seeds {seeds}: mean (lowest to highest).",
        markdown_table(["row", "stage 1", "stage 2", *scores, "seconds on the target"], rows),
        f"Stage 2 has {r['stage2_samples']:,} samples in every row. Ratios are taken within a "
        "seed;\nafter the semicolon: the 95% interval of their mean over other draws of test "
        "pictures.",
        markdown_table(["ratio", *scores], ratios)])


def tellings_table(r):
    """A tellings.json: how well a real LLM reads a scene that is told in different ways."""
    rows = []
    for title, by_score in r["ways"].items():
        cells = [f"{np.mean(values):.3f}".removeprefix("0") for values in by_score.values()]
        rows.append([title, spread(by_score["vqa"]), *cells[1:]])
    header = ["how a scene is told, in true words", *next(iter(r["ways"].values()))]
    return (f"{r['llm']}, {r['pictures']} scenes of val, three sets of examples: mean (lowest to "
            f"highest).\n\n{markdown_table(header, rows)}")


def real_line(r, seeds):
    """What there is to say about a real LLM and its examples."""
    have, of = r["llm"]["words"]
    text = (f"{r['source']} to {r['target']} ({r['llm']['params'] / 1e6:.0f} million parameters, "
            f"{r['llm']['vocab']:,} tokens, {have} of the\nadapter's {of} words), which reads "
            f"{r['examples']['shots']} solved examples first; seeds {seeds}:\n"
            "mean (lowest to highest).")
    if "goal" in r:
        needed = [f"{name} {'never' if samples is None else round(samples)}"
                  for name, samples in r["samples_to_95"].items()]
        text += (f"\nRows with stage 2 have one seed. Samples until vqa on val reaches "
                 f"{r['goal']:.3f}, 95% of native_mlp's last:\n{', '.join(needed)}.")
    return text


def budgets_table(r):
    """A budgets.json: a row for each start, a column for each length of stage 2."""
    rows = []
    for row in r["rows"]:
        by_samples = {point["samples"]: point for point in row["points"]}
        cells = []
        for at in r["samples"]:
            point = by_samples.get(at)
            cells.append(" / ".join(f"{np.mean(point[score]):.3f}".removeprefix("0")
                                    for score in ("vqa", "caption_f1")) if point else "")
        needed = row["samples_to_95"]
        needed = "never" if needed is None else f"{needed:,.0f}"
        rows.append([row["name"], f"{row['rate']:g}", *cells, needed])
    header = ["vqa / caption F1 after samples", "rate", *(f"{at:,}" for at in r["samples"]),
              "samples to 95%"]
    return (f"{markdown_table(header, rows)}\n\nSeeds {', '.join(map(str, r['seeds']))}. Rate: "
            "times the usual learning rates, the best of three on val for the middle length. The\n"
            f"last column: until vqa reaches {r['goal']:.3f}, 95% of native MLP's after the "
            "longest; interpolated between lengths.")


def sweep_table(sweep):
    """An ablate_*.json: for each point, its rows."""
    rows = []
    for point in sweep["points"]:
        about = point["value"]
        if "K" in point:
            about += (f" ({point['K']} words, {point['params']:,} parameters, "
                      f"{np.mean(point['own_weight']):.2f} on own words)")
        if sweep["what"] in ("eye", "patches"):
            about += "; probes {probe_color:.3f}, {probe_shape:.3f}".format(**point["vit"])
        for name, scores in point["rows"].items():
            rows.append([about, name.replace("_", " "), *map(spread, scores.values())])
            about = ""
    scores = list(next(iter(sweep["points"][0]["rows"].values())))
    return markdown_table([sweep["what"], "row", *scores], rows)


def ablation_table(sweep):
    """The sweep_table, and under it what is in it."""
    seeds = ", ".join(map(str, sweep["seeds"]))
    return (f"{sweep_table(sweep)}\n\nSeeds {seeds}. On own words: the share of weight that an "
            "object's patches put on its own colour and shape, after stage 1.")


def unseen_table(runs):
    """Several unseen.json: who names what in seen and in unseen pairs."""
    rows = []
    for title in runs[0]:
        cells = [spread([run[title][split][kind] for run in runs])
                 for split in ("val", "comp") for kind in ("color", "shape")]
        rows.append([title, *cells])
    return markdown_table(["names an object's", "colour, seen pairs", "shape, seen pairs",
                           "colour, unseen pairs", "shape, unseen pairs"], rows)


def tries_table(r):
    """tries.json: what was tried in stage 1."""
    llms, scores = {"source": "native", "target": "zero-shot"}, ["vqa", "caption_f1", "pope_acc"]
    rows = []
    for tried in r["tries"]:
        cells = [spread(tried[llm]["test"][score]) if llm in tried else ""
                 for llm in llms for score in scores]
        own = spread(tried["own_weight"]) if "own_weight" in tried else ""
        rows.append([tried["what"], *cells, own])
    names = [f"{name} {score}" for name in llms.values() for score in scores]
    return markdown_table(["stage 1 with", *names, "weight on own words"], rows)


def bench_table(r):
    """bench.json: what takes how long, beside what it is compared with."""
    def seconds(value):
        return "never" if value is None else f"{value:.3g} s"

    def megabytes(value):
        return f"{value:.0f} MB"

    step, generate, ask, skill, memory = (
        r[name] for name in ("step", "generate", "ask", "skill", "memory"))
    rows = [["a training step: nanoGPT's design / ours", seconds(step["gpt2"]),
             seconds(step["ours"]), f"{1 / step['ratio']:.2f}"]]
    ours = skill["designs"]["ours"]
    for design, of in skill["designs"].items():
        if design != "ours":
            both = of["seconds_to_goal"], ours["seconds_to_goal"]
            ratio = f"{both[0] / both[1]:.1f}" if None not in both else ""
            _, rate, times = design.split("-")
            rows.append([f"until {skill['goal']} on rasters: nanoGPT's design, {times} steps, "
                         f"rate {rate} / ours",
                         f"{seconds(both[0])} (of {of['seconds']:.0f}; at the end "
                         f"{of['curve'][-1][1]:.3f})", seconds(both[1]), ratio])
    rows.append(["generating 40 tokens: without the cache / with it", seconds(generate["uncached"]),
                 seconds(generate["cached"]), f"{generate['ratio']:.1f}"])
    rows.append(["a cold `--ask` / a cold `import torch`", seconds(ask["ask"]),
                 seconds(ask["import_torch"]), f"{ask['ratio']:.2f}"])
    rows.append([f"memory in the last tenth / the second tenth of {memory['steps']:,} steps",
                 megabytes(memory["late"]), megabytes(memory["early"]), f"{memory['ratio']:.3f}"])
    rows.append(["memory of `python train.py`, at most", megabytes(memory["peak"]), "", ""])
    return markdown_table(["medians", "the first", "the second", "ratio"], rows)


def faults_table(r):
    """faults.json: what came of damaged files."""
    came = {"refused in one line": "refused in one line", "the same answer": "made no difference"}
    rows = []
    for damage in dict.fromkeys(damage for damage, _, _ in r["outcomes"]):
        times = {what: n for kind, what, n in r["outcomes"] if kind == damage}
        good = [times.get(what, 0) for what in came]
        rows.append([damage, *map(str, good), str(sum(times.values()) - sum(good))])
    title = (f"{r['kills']} kills in {r['runs']} runs: all weights are those of a run that was "
             f"left alone. {r['files']} damaged files:\n\n")
    return title + markdown_table(["damage", *came.values(), "a fault"], rows)


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


def guesses(runs):
    return [["each question's most frequent answer", *means(runs, "vlm/majority")],
            ["chance", *means(runs, "vlm/chance")]]


def claim_table(target, runs):
    """What arrives at the target LLM with nothing trained there, and what to compare it with."""
    ways = [
        ("LangBridge, native: aligned there *", "stage1_native_langbridge"),
        ("MLP, native *", "stage1_native_mlp"),
        ("LangBridge, moved", "zero_shot_langbridge"),
        ("the same, its words shuffled", "zero_shot_shuffled"),
        ("the same, its words written out as text", "words_as_text_langbridge"),
        ("MLP, through a linear map", "zero_shot_stitched_mlp"),
        ("MLP, read as words", "zero_shot_mlp_as_words"),
        ("the same, its words written out as text", "words_as_text_mlp"),
        ("no adapter: a classifier with labels, written out", "probe_as_text"),
        ("blind: tuned on conversations without pictures *", "blind")]
    rows = [[title, *means(target, name)] for title, name in ways]
    rows += guesses(runs)
    return markdown_table(["on the target LLM", *SHORT_SCORES.values()], rows)


def main_table(target, runs):
    """Both adapters on the source LLM after each stage, and all ways to have one on the target."""
    rows = []
    for phase in ("align", "instruct"):
        for name, kind in (("MLP", "mlp"), ("LangBridge", "langbridge")):
            rows.append(["source", name, phase, *means(runs, f"vlm/{kind}/{phase}")])
    rows.append(["source", "blind: no picture", "instruct", *means(runs, "vlm/blind")])
    ways = [("native MLP", "native_mlp"), ("native LangBridge", "native_langbridge"),
            ("transferred LangBridge", "transferred_langbridge"),
            ("MLP, first read as words", "mlp_as_words"),
            ("MLP, first through a linear map", "stitched_mlp"), ("fresh MLP", "fresh_mlp")]
    rows += [["target", name, "instruct", *means(target, row)] for name, row in ways]
    return markdown_table(["LLM", "adapter", "after", *SHORT_SCORES.values()], rows)


def real_table(r):
    """What a real LLM answers with nothing trained on it, from its transfer_<file>.json."""
    ways = [("the true words", "reads_list"),
            ("LangBridge's visual tokens", "zero_shot_langbridge"),
            ("those of another picture", "zero_shot_wrong_picture"),
            ("LangBridge's, words shuffled", "zero_shot_shuffled"),
            ("an MLP's, through a linear map", "zero_shot_stitched_mlp"),
            ("an MLP's, read as words", "zero_shot_mlp_as_words"),
            ("nothing", "nothing")]
    scores = ["color", "shape", "vqa"]
    by_row = {row["name"]: row["scores"] for row in r["rows"]}
    rows = []
    for title, name in ways:
        values = [by_row[name][score]["mean"] for score in scores]
        rows.append([title, *(f"{value:.2f}".removeprefix("0") for value in values)])
    guessed = r["chance"] | r["chance"]["vqa_by_type"]
    rows.append(["chance", *(f"{guessed[score]:.2f}".removeprefix("0") for score in scores)])
    return markdown_table([f"{r['target'].split('.')[0]} is shown", *scores], rows)


# ---- into the READMEs ----------------------------------------------------------------------------

def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


SINGLE = {"tries.json": tries_table, "bench.json": bench_table, "budgets.json": budgets_table,
          "tellings.json": tellings_table, "faults.json": faults_table}


def table_names(folder):
    """Every NAME that can be filled in from the files in this folder."""
    names = ["claim", "main results", "seeds", "types", "bf16", "findings", "unseen", "real"]
    names += ["exported"] if (folder / "exported.json").exists() else []
    names += ["own"] if (folder / "own_results.json").exists() else []
    names += ["vocabularies"] if (folder / "vocabularies.json").exists() else []
    names += [name for name in SINGLE if (folder / name).exists()]
    names += sorted(path.name for path in folder.glob("transfer*.json"))
    sweeps = sorted(path.stem.removeprefix("ablate_") for path in folder.glob("ablate_*.json"))
    return names + [f"ablate {what}" for what in sweeps]


def table(name, folder):
    """The table of this name, without its markers; raises ValueError if there is none."""
    if name not in table_names(folder):
        known = ", ".join(table_names(folder))
        raise ValueError(f"there is no table {name!r}; expected one of: {known}")

    def runs(pattern):
        return [read_json(path) for path in sorted(folder.glob(pattern))]

    if name in ("claim", "main results"):
        make = claim_table if name == "claim" else main_table
        whole = read_json(folder / "transfer_full-seeds.json")
        return make(scores_of_seeds(whole), runs("seed*.json"))
    if name == "seeds":
        return results_table(runs("seed*.json"))
    if name == "bf16":
        return precision_table([read_json(folder / "fp32.json"), read_json(folder / "bf16.json")])
    if name == "types":
        return types_table(runs("seed*.json"))
    if name == "findings":
        return findings_table(runs("evaluate*.json"))
    if name == "exported":
        return exported_table(read_json(folder / "exported.json"), runs("seed*.json"))
    if name == "own":
        return own_table(*(read_json(folder / f"own_{what}.json")
                           for what in ("results", "transfer", "evaluate")))
    if name == "vocabularies":
        return results_table(runs("vocabularies.json"))
    if name == "unseen":
        return unseen_table(runs("unseen*.json"))
    if name == "real":
        return real_table(runs("transfer_SmolLM2*.json")[0])
    if name in SINGLE:
        return SINGLE[name](read_json(folder / name))
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
