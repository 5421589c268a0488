"""What the stages have left, gathered: results.json of train.py, transfer.json of transfer.py, and
their tables for the terminal.

Nothing is measured here, and nothing of the project is imported. The words native, zero-shot and
transferred mean what the glossary of results/README.md says.
"""
import numpy as np

SCORES = ("vqa", "caption_f1", "pope_acc", "comp_vqa")
RATIOS = [  # of rows, in transfer.json's "relative"
    ("transferred_langbridge", "native_mlp"),
    ("transferred_langbridge", "native_langbridge"),
    ("zero_shot_langbridge", "stage1_native_langbridge"),
    ("transferred_langbridge_after_instruct", "native_mlp"),
    ("transferred_langbridge_after_instruct", "native_langbridge"),
    ("zero_shot_langbridge_after_instruct", "stage1_native_langbridge"),
]


# ---- train.py -----------------------------------------------------------------------------------

def collect_run(configs, chance, seconds, shared_vocab, **facts):
    """results.json from {stage: its config.json}, the scores of chance and the whole run's seconds;
    facts: seed, preset, device, torch."""
    def took(*stages):
        return sum(configs[stage]["seconds"] for stage in stages)

    def some(stage, names):
        return {name: configs[stage][name] for name in names}

    def scores(kind):
        return {phase: configs[f"{kind}_{phase}"]["scores"] for phase in ("align", "instruct")}

    llm = ["params", "vocab", "text_qa", "raster_qa", "raster_caption_f1", "text_qa_by_type",
           "raster_qa_by_type"]
    probes = [name for name in configs["vit"] if name.startswith("probe_")]
    return {
        **facts,
        "seconds": {
            "data": configs["vit"]["seconds_features"],
            "llm_source": took("llm_source"), "llm_target": took("llm_target"), "vit": took("vit"),
            "align": took("mlp_align", "langbridge_align"),
            "instruct": took("mlp_instruct", "langbridge_instruct", "blind_instruct"),
            "total": seconds},
        "llm": {"source": some("llm_source", llm), "target": some("llm_target", llm)},
        "shared_vocab": shared_vocab,
        "vit": some("vit", ["params", "retrieval_top1", *probes]),
        "vlm": {"mlp": scores("mlp"), "langbridge": scores("langbridge"),
                "blind": configs["blind_instruct"]["scores"], "chance": chance}}


def print_run(vlm):
    """The scores of results.json's "vlm" for the terminal."""
    columns = ("vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1")
    print(f"\n{'':24}" + "".join(f"{column:>16}" for column in columns))
    for name, scores in (("MLP, align", vlm["mlp"]["align"]),
                         ("LangBridge, align", vlm["langbridge"]["align"]),
                         ("MLP, instruct", vlm["mlp"]["instruct"]),
                         ("LangBridge, instruct", vlm["langbridge"]["instruct"]),
                         ("blind, instruct", vlm["blind"]), ("chance", vlm["chance"])):
        print(f"{name:24}" + "".join(f"{scores[column]:16.3f}" for column in columns))


# ---- transfer.py --------------------------------------------------------------------------------

def collect_transfer(moves, rows, source, target):
    """transfer.json from transfer.py's moves, one for each seed, and its rows: scores, curves and
    costs. source, target: the names of the LLMs."""
    s = moves[0].row_s
    result = {"seeds": [move.s.seed for move in moves], "source": source, "target": target,
              "stage2_samples": s.instruct_steps * s.instruct_batch,
              "rows": [collect_row(moves, row) for row in rows], "relative": {}}
    by_name = {row["name"]: row for row in result["rows"]}
    for name, base in RATIOS:
        if name in by_name:
            above, below = by_name[name]["scores"], by_name[base]["scores"]
            result["relative"][f"{name.replace('_langbridge', '')}_vs_{base}"] = {
                k: above[k]["mean"] / max(below[k]["mean"], 1e-9) for k in SCORES}
    goal = 0.95 * by_name["native_mlp"]["curve"][-1][1]
    result["samples_to_95"] = {row["name"]: samples_to(row["curve"], goal)
                               for row in result["rows"] if row["stage2"]}
    moved = next(row for row in rows if row.name == "zero_shot_langbridge")
    configs = [move.stage_of(moved).config() for move in moves]
    hashes = [[config["hash_before"], config["hash_after"]] for config in configs]
    result["adapter_hash"] = {"before": hashes[0][0], "after": hashes[0][1], "every_seed": hashes}
    return result


def collect_row(moves, row):
    s, configs = moves[0].row_s, [move.stage_of(row).config() for move in moves]
    seconds = float(np.mean([config["seconds"] for config in configs]))
    steps1 = s.align_steps if row.stage1 else 0
    steps2 = s.instruct_steps if row.stage2 else 0
    if row.stage1 and row.stage2:  # stage 1's time is added
        stage1 = [move.start_of(row).config()["seconds"] for move in moves]
        seconds += float(np.mean(stage1))
    curves = []
    if row.stage2:
        for config in configs:
            curves.append([[step * s.instruct_batch, scores["vqa"], scores["caption_f1"]]
                           for step, scores in config["measured"]])
    curve = [[points[0][0], float(np.mean([vqa for _, vqa, _ in points]))]
             for points in zip(*curves)]
    scores = {}
    for score in SCORES:
        values = [config["scores"][score] for config in configs]
        scores[score] = {"mean": float(np.mean(values)), "values": values}
    return {"name": row.name, "stage1": row.stage1, "stage2": row.stage2, "scores": scores,
            "curve": curve, "curves": curves, "seconds": seconds, "steps": steps1 + steps2,
            "samples": steps1 * s.align_batch + steps2 * s.instruct_batch}


def samples_to(curve, goal):
    """Samples until a curve [[samples, score], ..] reaches a goal, interpolated; None if never.

    >>> samples_to([[0, 0.5], [100, 0.75], [200, 1.0]], 0.875)
    150.0
    """
    if curve[0][1] >= goal:
        return 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if y1 >= goal:
            return x0 + (x1 - x0) * (goal - y0) / (y1 - y0)
    return None


def print_transfer(r):
    """The rows of a transfer.json for the terminal."""
    scores = list(r["rows"][0]["scores"])
    print(f"\n{'':40}stage 1  stage 2" + "".join(f"{score:>12}" for score in scores))
    for row in r["rows"]:
        stage1, stage2 = ("yes" if row[stage] else "no" for stage in ("stage1", "stage2"))
        means = "".join(f"{row['scores'][score]['mean']:12.3f}" for score in scores)
        print(f"{row['name']:40}{stage1:>7}{stage2:>9}{means}")
    for name, values in r["relative"].items():
        print(f"{name + ':':56}" + "".join(f"{values[score]:12.3f}" for score in scores))
    print(f"hash of the moved adapter's trained parameters, before and after the swap: "
          f"{r['adapter_hash']['before']} and {r['adapter_hash']['after']}")
