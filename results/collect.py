"""What stages have left, gathered: results.json, transfer.json and budgets.json.

Nothing is measured here, and nothing of the project is imported: all comes from the config.json of
stages. What native, zero-shot and transferred mean is in the glossary of results/README.md.
"""
import numpy as np

RATIOS = [  # of rows, in transfer.json's "relative"
    ("transferred_langbridge", "native_mlp"),
    ("transferred_langbridge", "native_langbridge"),
    ("transferred_langbridge", "mlp_as_words"),
    ("transferred_langbridge", "stitched_mlp"),
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
        "commit": commits(configs.values()),
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


def commits(configs):
    """The commits of the code that made these stages."""
    return ", ".join(sorted({config["commit"] for config in configs}))


# ---- transfer.py --------------------------------------------------------------------------------

def collect_transfer(rows, names, configs, starts, **facts):
    """transfer.json: scores (of these names) and costs of every row. configs: {row's name: [the
    config of its stage, for each seed]}; starts: the same of the adapters that rows start from;
    facts: seeds, source, target, chance, majority."""
    made = [config for of_row in configs.values() for config in of_row]
    result = {**facts, "commit": commits(made), "stage2_samples": 0, "rows": [], "relative": {},
              "ratios": {}}
    for row in rows:
        result["rows"].append(collect_row(row, names, configs[row.name], starts.get(row.name)))
        if row.stage2:
            settings = configs[row.name][0]["settings"]
            result["stage2_samples"] = settings["instruct_steps"] * settings["instruct_batch"]
    for name, base in RATIOS:
        if name in configs and base in configs:
            ratios = {score: ratio(configs[name], configs[base], score) for score in names
                      if score in configs[name][0]["counts"]}
            key = f"{name.replace('_langbridge', '')}_vs_{base}"
            result["ratios"][key] = ratios
            result["relative"][key] = {score: found["mean"] for score, found in ratios.items()}
    moved = "zero_shot_langbridge"
    hashes = [[start["hash"], config["hash"]]
              for start, config in zip(starts[moved], configs[moved])]
    before, after = hashes[0]
    result["adapter_hash"] = {"before": before, "after": after, "every_seed": hashes}
    return result


def look_up(scores, name):
    """A score, or that of a type of question."""
    return scores[name] if name in scores else scores["vqa_by_type"][name]


def collect_real(examples, configs):
    """What transfer_<file>.json has besides: the LLM, its examples, and the curves of stage 2.
    configs: {row's name: [the config of its stage, for each seed]}"""
    result = {
        "llm": {"params": examples["params"], "vocab": examples["vocab"],
                "words": configs["zero_shot_langbridge"][0]["words"]},
        "examples": {"shots": examples["settings"]["shots"], "chosen": examples["chosen"],
                     "vqa_on_val": examples["tried"]}}
    curves = {}  # [[samples, vqa on val], ..]
    for name, (config, *_) in configs.items():
        if "measured" in config:
            batch = config["settings"]["instruct_batch"]
            curves[name] = [[batch * step, vqa] for step, vqa in config["measured"]]
    if "native_mlp" in curves:
        goal = 0.95 * curves["native_mlp"][-1][1]
        result |= {"curves": curves, "goal": goal, "samples_to_95": {
            name: samples_to(curve, goal) for name, curve in curves.items()}}
    return result


def collect_row(row, names, configs, starts):
    """A row of transfer.json from its stages' configs, one for each seed."""
    s = configs[0]["settings"]
    seconds = float(np.mean([config["seconds"] for config in configs]))
    if row.stage1 and row.stage2:  # stage 1's time is added
        seconds += float(np.mean([config["seconds"] for config in starts]))
    steps1 = s["align_steps"] if row.stage1 else 0
    steps2 = s["instruct_steps"] if row.stage2 else 0
    samples = steps1 * s["align_batch"] if steps1 else 0
    samples += steps2 * s["instruct_batch"] if steps2 else 0
    scores = {}
    for score in names:
        values = [look_up(config["scores"], score) for config in configs]
        scores[score] = {"mean": float(np.mean(values)), "values": values}
    return {"name": row.name, "stage1": row.stage1, "stage2": row.stage2, "scores": scores,
            "seconds": seconds, "steps": steps1 + steps2, "samples": samples}


def ratio(above, below, score, draws=1000):
    """A score of one row over that of another, from their configs, one for each seed:
    {"mean", "values", "interval"}. The interval (95%) is a paired bootstrap of the mean: each draw
    takes the same test pictures from both rows and from all seeds."""
    values = [a["scores"][score] / max(b["scores"][score], 1e-9) for a, b in zip(above, below)]
    pair = np.array([[config["counts"][score] for config in row] for row in (above, below)])
    n, rng = pair.shape[2], np.random.default_rng(0)  # pair: (2, seeds, pictures, 2)
    drawn = []
    for _ in range(draws):
        got, possible = np.moveaxis(pair[:, :, rng.integers(0, n, n)].sum(2), -1, 0)  # (2, seeds)
        a, b = got / possible.clip(1)
        drawn.append((a / b.clip(1e-9)).mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "values": values, "interval": [float(low), float(high)]}


def collect_budgets(rows, seeds):
    """budgets.json from [{"name", "rate", "points": [{"samples", and each score of each seed}]}]"""
    vqa = {row["name"]: [[point["samples"], float(np.mean(point["vqa"]))]
                         for point in row["points"]] for row in rows}
    goal = 0.95 * vqa["native_mlp"][-1][1]
    for row in rows:
        row["samples_to_95"] = samples_to(vqa[row["name"]], goal)
    samples = sorted({point["samples"] for row in rows for point in row["points"]})
    return {"seeds": seeds, "samples": samples, "goal": goal, "rows": rows}


def samples_to(curve, goal):
    """Samples until a curve [[samples, score], ..] reaches a goal, interpolated; None if never.

    >>> samples_to([[0, 0.5], [100, 0.75], [200, 1.0]], 0.875)
    150.0
    """
    if curve[0][1] >= goal:
        return float(curve[0][0])
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
        print(row_line(guess, "", "", [look_up(r[guess], name) for name in names]))
    for ratio, values in r["relative"].items():
        print(f"{ratio + ':':64}" + "".join(f"{values[name]:12.3f}" if name in values else
                                            f"{'':12}" for name in names))
    print(f"hash of the moved adapter at the end of its training, and at the end of its row: "
          f"{r['adapter_hash']['before']} and {r['adapter_hash']['after']}")
