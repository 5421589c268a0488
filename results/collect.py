"""What the stages have left, gathered: results.json of train.py and transfer.json of transfer.py.

Nothing is measured here, and nothing of the project is imported: all comes from the config.json of
stages. What native, zero-shot and transferred mean is in the glossary of results/README.md.
"""
import numpy as np

RATIOS = [  # of rows, in transfer.json's "relative"
    ("transferred_langbridge", "native_mlp"),
    ("transferred_langbridge", "native_langbridge"),
    ("zero_shot_langbridge", "stage1_native_langbridge"),
    ("transferred_langbridge_after_instruct", "native_mlp"),
    ("transferred_langbridge_after_instruct", "native_langbridge"),
    ("zero_shot_langbridge_after_instruct", "stage1_native_langbridge"),
]


# ---- train.py -----------------------------------------------------------------------------------

def collect_run(configs, chance, majority, seconds, **facts):
    """results.json from {stage: its config.json}, the scores of guessing, and the whole run's
    seconds; facts: seed, preset, device, torch, K, shared_vocab."""
    def took(*stages):
        return sum(configs[stage]["seconds"] for stage in stages)

    def part(stage, *names):
        return {name: configs[stage][name] for name in names} | configs[stage]["scores"]

    def scores(kind):
        return {phase: configs[f"{kind}_{phase}"]["scores"] for phase in ("align", "instruct")}

    return {
        **facts,
        "seconds": {
            "data": configs["vit"]["seconds_features"],
            "llm_source": took("llm_source"), "llm_target": took("llm_target"), "vit": took("vit"),
            "align": took("mlp_align", "langbridge_align"),
            "instruct": took("mlp_instruct", "langbridge_instruct", "blind_instruct"),
            "total": seconds},
        "llm": {dialect: part(f"llm_{dialect}", "params", "vocab")
                for dialect in ("source", "target")},
        "vit": part("vit", "params"),
        "vlm": {"mlp": scores("mlp"), "langbridge": scores("langbridge"),
                "blind": configs["blind_instruct"]["scores"], "majority": majority,
                "chance": chance}}


# ---- transfer.py --------------------------------------------------------------------------------

def collect_transfer(rows, names, configs, aligned, **facts):
    """transfer.json: scores (of these names), curves and costs of every row. configs: {row's name:
    [the config of its stage, for each seed]}; aligned: the same of stage 1, for rows that had it on
    the target; facts: seeds, source, target."""
    result = {**facts, "stage2_samples": 0, "rows": [], "relative": {}}
    for row in rows:
        result["rows"].append(collect_row(row, names, configs[row.name], aligned.get(row.name)))
        if row.stage2:
            settings = configs[row.name][0]["settings"]
            result["stage2_samples"] = settings["instruct_steps"] * settings["instruct_batch"]
    by_name = {row["name"]: row for row in result["rows"]}
    for name, base in RATIOS:
        if name in by_name:
            above, below = by_name[name]["scores"], by_name[base]["scores"]
            result["relative"][f"{name.replace('_langbridge', '')}_vs_{base}"] = {
                k: above[k]["mean"] / max(below[k]["mean"], 1e-9) for k in above}
    _, end = by_name["native_mlp"]["curve"][-1]
    result["samples_to_95"] = {row["name"]: samples_to(row["curve"], 0.95 * end)
                               for row in result["rows"] if row["stage2"]}
    hashes = [[config["hash_before"], config["hash_after"]]
              for config in configs["zero_shot_langbridge"]]
    before, after = hashes[0]
    result["adapter_hash"] = {"before": before, "after": after, "every_seed": hashes}
    return result


def collect_row(row, names, configs, aligned):
    """A row of transfer.json from its stages' configs, one for each seed."""
    s = configs[0]["settings"]
    seconds = float(np.mean([config["seconds"] for config in configs]))
    if row.stage1 and row.stage2:  # stage 1's time is added
        seconds += float(np.mean([config["seconds"] for config in aligned]))
    steps1 = s["align_steps"] if row.stage1 else 0
    steps2 = s["instruct_steps"] if row.stage2 else 0
    samples = steps1 * s["align_batch"]
    curves, curve = [], []
    if row.stage2:
        samples += steps2 * s["instruct_batch"]
        for config in configs:
            curves.append([[step * s["instruct_batch"], scores["vqa"], scores["caption_f1"]]
                           for step, scores in config["measured"]])
        x, vqa, _ = np.array(curves).transpose(2, 1, 0)  # each (points, seeds)
        curve = [[int(at), float(mean)] for at, mean in zip(x[:, 0], vqa.mean(1))]
    scores = {}
    for score in names:
        values = [config["scores"][score] for config in configs]
        scores[score] = {"mean": float(np.mean(values)), "values": values}
    return {"name": row.name, "stage1": row.stage1, "stage2": row.stage2, "scores": scores,
            "curve": curve, "curves": curves, "seconds": seconds, "steps": steps1 + steps2,
            "samples": samples}


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


# ---- for the terminal ----------------------------------------------------------------------------

def row_head(names):
    """The head of a table of rows, with these scores."""
    return f"{'':48}stage 1  stage 2" + "".join(f"{name:>12}" for name in names)


def row_line(name, stage1, stage2, values):
    """A row; each stage is True, False, or "" where it means nothing."""
    had = [{True: "yes", False: "no"}.get(stage, stage) for stage in (stage1, stage2)]
    return f"{name:48}{had[0]:>7}{had[1]:>9}" + "".join(f"{value:12.3f}" for value in values)


def print_transfer(r):
    """The rows of a transfer.json, means over its seeds, and their ratios."""
    names = list(r["rows"][0]["scores"])
    print(f"\n{row_head(names)}")
    for row in r["rows"]:
        means = [row["scores"][name]["mean"] for name in names]
        print(row_line(row["name"], row["stage1"], row["stage2"], means))
    for guess in ("majority", "chance"):
        print(row_line(guess, "", "", [r[guess][name] for name in names]))
    for ratio, values in r["relative"].items():
        print(f"{ratio + ':':64}" + "".join(f"{values[name]:12.3f}" for name in names))
    print(f"hash of the moved adapter's trained parameters, before and after the swap: "
          f"{r['adapter_hash']['before']} and {r['adapter_hash']['after']}")
