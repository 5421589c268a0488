"""Results as people read them: the figures, and the tables of the README. Nothing is measured here.

The figures are drawn with Pillow alone. The tables are made from the JSON files that the commands write.
"""
import json
import re
from collections import defaultdict

import numpy as np
from PIL import Image, ImageDraw

from data.world import draw_split


# ---- figures -----------------------------------------------------------------------------------------------------------

INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3", "#5c6670", "#b56576", "#00868b", "#8a6d3b", "#333333"]


def line_plot(path, title, panels, xlabel, note, log=False, ylim=(0.0, 1.0), names_of_x=None):
    """Lines with bands, panels side by side, as a PNG: the one plotting helper.

    panels: [(ylabel, {line's name: (xs, ys)  or  (xs, ys, lowest, highest)})], the lines of all panels in the same order.
    log: a logarithmic x axis that also has a zero. names_of_x: what to write at x = 0, 1, .. instead of numbers.
    """
    w, h, left, top = 470, 330, 60, 66
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    picture = Image.new("RGB", (len(panels) * (w + left + 20) + 20, top + h + 90 + 22 * -(-len(names) // 3)), "white")
    pen = ImageDraw.Draw(picture, "RGBA")
    pen.text((left, 12), title, fill="black", font_size=19)
    scale = lambda x: np.log10(1 + np.asarray(x, dtype=float)) if log else np.asarray(x, dtype=float)
    for k, (ylabel, lines) in enumerate(panels):
        x0, y0 = left + k * (w + left + 20), top
        xmax = max(max(line[0]) for line in lines.values()) or 1
        at = lambda x, y: (x0 + w * scale(x) / scale(xmax), y0 + h * (1 - (np.clip(y, *ylim) - ylim[0]) / (ylim[1] - ylim[0])))
        for tick in np.linspace(*ylim, 6):
            y = at(0, tick)[1]
            pen.line([(x0, y), (x0 + w, y)], fill="#dddddd")
            pen.text((x0 - 8, y), f"{tick:.2g}", fill="black", font_size=13, anchor="rm")
        ticks = [0] + [10 ** i for i in range(7) if 10 ** i <= xmax] if log else [round(xmax * i / 5) for i in range(6)]
        for tick, name in enumerate(names_of_x) if names_of_x else [(tick, f"{tick:,}") for tick in ticks]:
            x = at(tick, 0)[0]
            pen.line([(x, y0 + h), (x, y0 + h + 5)], fill="black")
            pen.text((x, y0 + h + 8), name, fill="black", font_size=13, anchor="mt")
        pen.line([(x0, y0), (x0, y0 + h), (x0 + w, y0 + h)], fill="black", width=1)
        pen.text((x0 + 6, y0 - 4), ylabel, fill="black", font_size=14, anchor="lb")
        pen.text((x0 + w / 2, y0 + h + 28), xlabel, fill="black", font_size=14, anchor="mt")
        for name, (xs, ys, *band) in lines.items():
            ink = INKS[names.index(name) % len(INKS)]
            if band:
                edge = [*zip(*at(xs, band[1])), *reversed([*zip(*at(xs, band[0]))])]
                pen.polygon([(float(x), float(y)) for x, y in edge], fill=ink + "28")
            points = [(float(x), float(y)) for x, y in zip(*at(xs, ys))]
            pen.line(points, fill=ink, width=2, joint="curve")
            for x, y in points:
                pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=ink)
    for i, name in enumerate(names):
        x, y = left + (i % 3) * 330, top + h + 58 + 22 * (i // 3)
        pen.line([(x, y + 8), (x + 24, y + 8)], fill=INKS[i % len(INKS)], width=4)
        pen.text((x + 32, y), name, fill="black", font_size=14)
    pen.text((left, picture.height - 24), note, fill="#444444", font_size=13)
    picture.save(path)


def word_map(path, picture, panels, note, cell=92, shown=3):
    """A picture and, beside it, what each of its patches says: words as large and as dark as their weight, as a PNG.

    picture: (size, size, 3) uint8; panels: [(title, [[(word, weight from 0 to 1), ..] for each patch])]. Below each panel are the words
    with the largest sums over the patches.
    """
    side = int(len(panels[0][1]) ** 0.5)
    width, top = side * cell, 44
    sheet = Image.new("RGB", ((len(panels) + 1) * (width + 24) + 24, top + width + 190), "white")
    pen = ImageDraw.Draw(sheet)
    large = Image.fromarray(picture).resize((width, width), Image.Resampling.NEAREST)
    for p, (title, patches) in enumerate([("the picture", None), *panels]):
        x0 = 24 + p * (width + 24)
        pen.text((x0, top - 10), title, fill="black", font_size=19, anchor="lb")
        sheet.paste(large if patches is None else Image.blend(large, Image.new("RGB", large.size, "white"), 0.8), (x0, top))
        if patches is None:
            continue
        total = defaultdict(float)
        for n, words in enumerate(patches):
            x, y = x0 + n % side * cell, top + n // side * cell
            pen.rectangle([x, y, x + cell, y + cell], outline="#cccccc")
            for word, weight in words:
                total[word] += weight
            best = sorted(words, key=lambda w: -w[1])[:shown]
            for k, (word, weight) in enumerate(best):
                if weight >= 0.05:
                    size, shade = 10 + 8 * min(weight, 1), int(190 * (1 - min(weight, 1)))
                    pen.text((x + cell / 2, y + 18 + 28 * k), word, fill=(shade, shade, shade), font_size=size, anchor="mm")
        most = sorted(total.items(), key=lambda w: -w[1])[:8]
        for k, (word, weight) in enumerate(most):
            x, y = x0 + k // 4 * width // 2, top + width + 34 + 28 * (k % 4)
            pen.text((x, y), f"{word}", fill="black", font_size=14)
            pen.rectangle([x + 74, y + 3, x + 74 + 120 * weight / max(most[0][1], 1e-9), y + 13], fill=INKS[p])
            pen.text((x + 200, y), f"{weight:.1f}", fill="black", font_size=13)
        pen.text((x0, top + width + 8), "summed over the patches:", fill="#444444", font_size=13)
    pen.text((24, sheet.height - 26), note, fill="#444444", font_size=13)
    sheet.save(path)


def contact_sheet(path, said, size, world, count=6):
    """Pictures of the test split with a question, the answer given and the true one, wrong answers first, as one PNG.

    said: what the model said (data.scoring.examine).
    """
    questions = said["test"][1]
    rows = sorted(questions, key=lambda row: row[1].answer == row[2])[:count]
    sheet = Image.new("RGB", (280 * 3, 290 * -(-count // 3)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (i, qa, answer) in enumerate(rows):
        x, y = 280 * (k % 3) + 25, 290 * (k // 3)
        image = draw_split("test", [i], size, world)[0]
        sheet.paste(Image.fromarray(image).resize((200, 200), Image.Resampling.NEAREST), (x, y + 10))
        for line, text, color in ((0, qa.question, "black"), (1, f"answer: {answer}", "darkgreen" if answer == qa.answer else "darkred"),
                                  (2, f"truth: {qa.answer}", "black")):
            pen.text((x, y + 216 + 20 * line), text, fill=color, font_size=14)
    sheet.save(path)
    wrong = sum(qa.answer != answer for _, qa, answer in questions)
    print(f"\n{count} test pictures, wrong answers first ({wrong} of {len(questions)} are wrong), in {path}:")
    for _, qa, answer in rows:
        print(f"  {'right' if answer == qa.answer else 'WRONG'}  {qa.question}  {answer}  (truth: {qa.answer})")


# ---- tables ----------------------------------------------------------------------------------------------------------------

def spread(values):
    """Several seeds' scores in a table: mean (lowest to highest)."""
    return f"{np.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(set(values)) > 1 else "")


def across(runs, path):
    """The values at a path like 'vlm/mlp/align/vqa' of several JSON files; of lists the last one."""
    for key in path.split("/"):
        runs = [r[key] for r in runs]
    return [v[-1] if isinstance(v, list) else v for v in runs]


def results_table(runs):
    """Several results.json as one Markdown table."""
    def cell(path):
        values = across(runs, path)
        return spread([min(v.values()) for v in values] if isinstance(values[0], dict) else values)  # by question type: the worst one
    scores = ["vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1"]
    lines = [f"Seeds {', '.join(str(r['seed']) for r in runs)}, preset {runs[0]['preset']}, {runs[0]['device']}: mean (lowest to highest).", "",
             "| on the test split | " + " | ".join(scores) + " |", "| --- |" + " --- |" * len(scores)]
    for name, path in [("MLP, after align", "mlp/align"), ("LangBridge, after align", "langbridge/align"),
                       ("MLP, after instruct", "mlp/instruct"), ("LangBridge, after instruct", "langbridge/instruct"),
                       ("blind: no picture, same tuning", "blind"), ("chance", "chance")]:
        lines.append(f"| {name} | " + " | ".join(cell(f"vlm/{path}/{score}") for score in scores) + " |")
    lines += ["", "| the parts | score |", "| --- | --- |"]
    for name, path in [("source LLM reads sentences", "llm/source/text_qa"), ("its worst question type", "llm/source/text_qa_by_type"),
                       ("source LLM reads rasters", "llm/source/raster_qa"), ("its worst question type", "llm/source/raster_qa_by_type"),
                       ("source LLM describes rasters (F1)", "llm/source/raster_caption_f1"),
                       ("target LLM reads sentences", "llm/target/text_qa"), ("its worst question type", "llm/target/text_qa_by_type"),
                       ("target LLM reads rasters", "llm/target/raster_qa"), ("its worst question type", "llm/target/raster_qa_by_type"),
                       ("target LLM describes rasters (F1)", "llm/target/raster_caption_f1"),
                       ("ViT: retrieval among 100 pairs", "vit/retrieval_top1"), ("ViT: linear probe, colour", "vit/probe_color"),
                       ("ViT: linear probe, shape", "vit/probe_shape")]:
        lines.append(f"| {name} | {cell(path)} |")
    return "\n".join(lines)


def transfer_table(r):
    """A transfer.json as Markdown: its rows, and what they are relative to each other."""
    scores = list(r["rows"][0]["scores"])
    lines = [f"{r['source']} to {r['target']}, seeds {', '.join(map(str, r['seeds']))}: mean (lowest to highest).", "",
             "| row | stage 1 | stage 2 | " + " | ".join(scores) + " | seconds on the target | samples to 95% |",
             "|" + " --- |" * (len(scores) + 5)]
    for row in r["rows"]:
        samples = r["samples_to_95"].get(row["name"])
        cells = [row["name"], "yes" if row["stage1"] else "no", "yes" if row["stage2"] else "no", *(spread(row["scores"][k]["values"]) for k in scores),
                 f"{row['seconds']:.0f}", f"{samples:,.0f}" if samples is not None else "never" if row["stage2"] else ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Stage 2 has {r['stage2_samples']:,} samples in every row; 'samples to 95%': until the curve reaches 95% of native MLP's final vqa.",
              "", "| ratio of means | " + " | ".join(scores) + " |", "|" + " --- |" * (1 + len(scores))]
    for name, values in r["relative"].items():
        lines.append(f"| {name.replace('_vs_', ' / ').replace('_', ' ')} | " + " | ".join(f"{values[k]:.3f}" for k in scores) + " |")
    return "\n".join(lines)


KINDS = ["native", "zero_shot", "transferred"]


def ablation_table(sweep):
    """A sweep (evaluate.json, 'ablations') as Markdown: mean (lowest to highest) over the seeds."""
    points, kinds = sweep["points"], [kind for kind in KINDS if kind in sweep["points"][0]]
    columns = [(kind, score) for kind in kinds for score in ("vqa", "caption_f1")]
    lines = [f"| {sweep['setting']} | words | parameters | " + " | ".join(f"{kind.replace('_', '-')} {score}" for kind, score in columns)
             + " | weight on own words |", "|" + " --- |" * (4 + len(columns))]
    for p in points:
        cells = [str(p["value"]), str(p["K"]), f"{p['params']:,}", *(spread(p[kind][score]) for kind, score in columns), spread(p["own_weight"])]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, sweep["seeds"]))
    return "\n".join(lines + ["", f"Seeds {seeds}. Native: on the source LLM, after stage 1; zero-shot: moved to the target, nothing trained "
                              "there" + ("; transferred: tuned there in stage 2" if "transferred" in kinds else "") + "; weight on own words: the "
                              "share of weight that an object's patches put on its own colour and shape, after stage 1."])


def tries_table(r):
    """tries.json as Markdown."""
    scores = list(r["tries"][0]["source"]["test"])
    columns = [(llm, score) for llm in ("source", "target") for score in scores]
    lines = ["| stage 1 with | words | " + " | ".join(f"{dict(source='native', target='zero-shot')[llm]} {score}" for llm, score in columns)
             + " | weight on own words |", "|" + " --- |" * (3 + len(columns))]
    for row in r["tries"]:
        cells = [row["what"], str(row["K"]), *(spread(row[llm]["test"][score]) for llm, score in columns), spread(row["own_weight"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def findings(runs):
    """What several evaluate.json say of the adapters' words, as Markdown tables."""
    cell = lambda path: spread(across(runs, path))
    lines = [f"{len(runs)} seeds of train.py: mean (lowest to highest).", "",
             "| among the 5 top words of an object's patches | its colour | its shape | another picture's colour | shape |", "|" + " --- |" * 5]
    for key, name in (("langbridge", "LangBridge, after align"), ("langbridge_after_instruct", "LangBridge, after instruct"),
                      ("mlp_nearest", "MLP, nearest embeddings, after align")):
        cells = [cell(f"grounding/{part}{key}/{word}") for part in ("", "chance/") for word in ("color", "shape")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| one colour swapped for another in every patch | edits | the colour answer follows | other answers stay |", "|" + " --- |" * 4]
    for stage in ("align", "instruct"):
        edits = ", ".join(str(n) for n in across(runs, f"steering/{stage}/n"))
        lines.append(f"| after {stage} | {edits} | " + " | ".join(cell(f"steering/{stage}/{what}") for what in ("changed_as_edited", "others_kept")) + " |")
    lines += ["", "| energy of an object's patches that is explained by | before stage 1 | after it |", "| --- | --- | --- |"]
    for kind, name in (("mlp", "MLP"), ("langbridge", "LangBridge")):
        for span, what in (("explained_own", "the caption's words"), ("explained_random", "as many random words")):
            before = spread([r["subspace"][kind][span][0] for r in runs])
            lines.append(f"| {name}: {what} | {before} | {cell(f'subspace/{kind}/{span}')} |")
    return "\n".join(lines)


def fill_readme(text, folder):
    """The README with its tables as the runs in results/ have them: what stands between <!-- NAME --> and <!-- end --> is written here.

    NAME: seeds (results.json of several seeds), a transfer*.json, tries.json, findings (evaluate.json of several seeds), or ablate WHAT (the
    first one's ablations).
    """
    def table(name):
        read = lambda file: json.loads((folder / file).read_text(encoding="utf-8"))
        if name == "seeds":
            return results_table([read(path.name) for path in sorted(folder.glob("seed*.json"))])
        if name.startswith("transfer"):
            return transfer_table(read(name))
        if name == "tries.json":
            return tries_table(read(name))
        if name.startswith("ablate "):
            return ablation_table(read("evaluate.json")["ablations"][name[7:]]).split("\n\n")[0]  # the README has the legend once
        return findings([read(path.name) for path in sorted(folder.glob("evaluate*.json"))])

    return re.sub(r"<!-- (seeds|transfer\S*|tries.json|findings|ablate \w+) -->\n.*?<!-- end -->",
                  lambda found: f"<!-- {found[1]} -->\n{table(found[1])}\n<!-- end -->", text, flags=re.S)
