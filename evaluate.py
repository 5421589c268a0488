"""Scores, and questions about your own pictures.

    python evaluate.py --image picture.png --ask "what color is the circle?"
    python evaluate.py --image picture.png                                    # without a question: a caption

The scores compare with the generator's truth, so they are exact; train.py calls them after each stage.
"""
import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, UnidentifiedImageError

from adapter import load_adapter
from data.bpe import BOS
from data.corpus import raster, sentences
from data.world import (ANSWERS, CAPTION_REQUESTS, COLORS, COMP_PAIRS, NUMBERS, QUESTION_TYPES, SHAPES, ask, ask_any, caption,
                        draw_split, make_scene, score_caption)
from model import VLM, load_llm, same_length
from vision import load_vit


# ---- scores ------------------------------------------------------------------------------------------------------------

def subject(qa):
    """The (color, shape) pair that a question is about, its answer filled in; None in it where there is no pair."""
    type, color, shape = qa.about
    return (qa.answer if type == "color" else color, qa.answer if type == "shape" else shape)


def benchmark(split, pictures, max_objects):
    """The questions of a split: (scenes, [(picture, QA)], [(picture, exists-QA)]). Always the same for a split.

    Two questions for each picture, types in turn where the scene allows; on 'comp', only questions about unseen pairs.
    """
    rng = random.Random(f"benchmark/{split}")
    scenes = [make_scene(split, 0, i, max_objects) for i in range(pictures)]
    questions, pope = [], []
    for i, scene in enumerate(scenes):
        for k in range(2):
            qa = ask(scene, QUESTION_TYPES[(2 * i + k) % len(QUESTION_TYPES)], rng) or ask_any(scene, rng)
            while split == "comp" and subject(qa) not in COMP_PAIRS:
                qa = ask_any(scene, rng)
            questions.append((i, qa))
        pope.append((i, ask(scene, "exists", rng)))
    return scenes, questions, pope


def score_answers(questions, answers):
    """Exact match, in all and by question type: (accuracy, {type: accuracy})"""
    hits = defaultdict(list)
    for qa, answer in zip(questions, answers):
        hits[qa.type].append(answer == qa.answer)
    return (float(np.mean(sum(hits.values(), []))), {type: float(np.mean(hits[type])) for type in QUESTION_TYPES if type in hits})


def score_captions(captions, scenes):
    """(F1 over objects, share of captions that are right and complete); an object counts when all its attributes are right."""
    right, said, true = np.array([score_caption(c, s) for c, s in zip(captions, scenes)]).T
    return float(2 * right.sum() / max(1, said.sum() + true.sum())), float(np.mean((right == said) & (right == true)))


def score_llm(llm, encoding, dialect, seed, n, max_objects):
    """Reading comprehension on n unseen scenes in words: can this LLM answer from sentences, and from rasters?"""
    llm.eval()
    scores, device = {}, llm.embedding.weight.device
    for name in ("text_qa", "raster_qa"):
        rng, prompts, questions = random.Random(f"{name}/{seed}"), [], []
        for i in range(n):
            scene = make_scene("text:test", seed, i, max_objects)
            qa = ask(scene, QUESTION_TYPES[i % len(QUESTION_TYPES)], rng) or ask_any(scene, rng)
            body = raster(scene, rng) if name == "raster_qa" else sentences(scene, dialect, rng)
            questions.append(qa)
            prompts.append(encoding.encode(f"{BOS}scene:\n{body}", allowed_special={BOS})
                           + encoding.encode(f"question: {qa.question}"))
        answers = [""] * n
        for rows, ids in same_length(prompts):
            for i, tokens in zip(rows, llm.generate(llm.embed(ids.to(device)), encoding.encode_single_token(b"\n"), 8)):
                answers[i] = encoding.decode(tokens).strip()
        scores[name], scores[name + "_by_type"] = score_answers(questions, answers)
    return scores


def score(answer, describe, pictures, max_objects):
    """The scores S: `answer(split, [(picture, QA)])` and `describe(split, scenes)` give texts, the generator knows the truth.

    pictures: {split: how many}. 'test' gives vqa (exact match), caption_f1 and caption_exact, and pope (balanced yes/no
    questions with hard negatives, as in POPE, arXiv 2305.10355); 'comp' gives the comp_ scores.
    """
    scores = {}
    for split, n in pictures.items():
        scenes, questions, pope = benchmark(split, n, max_objects)
        vqa, by_type = score_answers([qa for _, qa in questions], answer(split, questions))
        f1, exact = score_captions(describe(split, scenes), scenes)
        if split == "comp":
            scores |= {"comp_vqa": vqa, "comp_caption_f1": f1}
            continue
        said = answer(split, pope)
        scores |= {"vqa": vqa, "vqa_by_type": by_type, "caption_f1": f1, "caption_exact": exact,
                   "pope_acc": score_answers([qa for _, qa in pope], said)[0],
                   "pope_yes_rate": float(np.mean([a == "yes" for a in said]))}
    return scores


def score_vlm(vlm, features, max_objects):
    """S of a VLM; features: {split: (pictures, N, D)}. All answers are generated, none are chosen from a list."""
    vlm.eval()
    return score(lambda split, items: vlm.answer(features[split][[i for i, _ in items]], [qa.question for _, qa in items]),
                 lambda split, scenes: vlm.answer(features[split], [CAPTION_REQUESTS[0]] * len(scenes)),
                 {split: len(x) for split, x in features.items()}, max_objects)


def score_chance(pictures, max_objects):
    """S of answers drawn at random from those possible, and of captions of other scenes, drawn at random."""
    rng, possible = random.Random("chance"), ANSWERS | {"count": NUMBERS[:max_objects + 1]}
    return score(lambda split, items: [rng.choice(possible[qa.type]) for _, qa in items],
                 lambda split, scenes: [caption(make_scene(split, 1, i, max_objects)) for i in range(len(scenes))],
                 pictures, max_objects)


def linear_probe(x, y, x_test, y_test, classes):
    """Accuracy of a linear classifier (ridge regression to one-hot targets): what can be read off features directly."""
    mean, one = x.mean(0), lambda z: torch.cat([z, z.new_ones(len(z), 1)], dim=1)
    x, x_test = one(x - mean).double(), one(x_test - mean).double()
    gram = x.T @ x
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, x.T @ F.one_hot(y, classes).double())
    return ((x_test @ weights).argmax(1) == y_test).double().mean().item()


def score_features(features, max_objects, train_pictures=3000):
    """Linear probes for an object's colour and shape on the frozen patch features of its place (2 x 2 patches side by side)."""
    def objects(split, pictures):
        x, colors, shapes = [], [], []
        for i in range(pictures):
            for obj in make_scene(split, 0, i, max_objects):
                grid = features[split][i].float()
                side = int(len(grid) ** 0.5)
                row, col, k = *divmod(obj.place, 3), side // 3
                x.append(grid.view(side, side, -1)[row * k:(row + 1) * k, col * k:(col + 1) * k].flatten())
                colors.append(COLORS.index(obj.color))
                shapes.append(SHAPES.index(obj.shape))
        return torch.stack(x), torch.tensor(colors), torch.tensor(shapes)
    x, colors, shapes = objects("train", min(train_pictures, len(features["train"])))
    x_test, colors_test, shapes_test = objects("test", len(features["test"]))
    return {"probe_color": linear_probe(x, colors, x_test, colors_test, len(COLORS)),
            "probe_shape": linear_probe(x, shapes, x_test, shapes_test, len(SHAPES))}


def results_table(runs):
    """Several results.json as one Markdown table: the mean over seeds, and the lowest and highest where there are several."""
    def cell(path):
        values = []
        for r in runs:
            for key in path.split("/"):
                r = r[key]
            values.append(r)
        if isinstance(values[0], dict):  # by question type: the worst one
            values = [min(v.values()) for v in values]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(set(values)) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"
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
                       ("target LLM reads sentences", "llm/target/text_qa"), ("its worst question type", "llm/target/text_qa_by_type"),
                       ("target LLM reads rasters", "llm/target/raster_qa"), ("its worst question type", "llm/target/raster_qa_by_type"),
                       ("ViT: retrieval among 100 pairs", "vit/retrieval_top1"), ("ViT: linear probe, colour", "vit/probe_color"),
                       ("ViT: linear probe, shape", "vit/probe_shape")]:
        lines.append(f"| {name} | {cell(path)} |")
    return "\n".join(lines)


# ---- figures -----------------------------------------------------------------------------------------------------------

INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3", "#5c6670", "#b56576", "#00868b", "#8a6d3b", "#333333"]


def line_plot(path, title, panels, xlabel, note, log=False, ylim=(0.0, 1.0)):
    """Lines with bands, panels side by side, as a PNG: the one plotting helper.

    panels: [(ylabel, {line's name: (xs, ys)  or  (xs, ys, lowest, highest)})], the lines of all panels in the same order.
    log: a logarithmic x axis that also has a zero.
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
        for tick in ticks:
            x = at(tick, 0)[0]
            pen.line([(x, y0 + h), (x, y0 + h + 5)], fill="black")
            pen.text((x, y0 + h + 8), f"{tick:,}", fill="black", font_size=13, anchor="mt")
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


# ---- your own pictures -------------------------------------------------------------------------------------------------

def fail(message):
    """A mistake of the user's: one clear line, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_picture(path, size):
    """Any PNG or JPEG as (1, size, size, 3) uint8: transparency on white, padded to a square with its border's colour."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        fail(f"there is no picture {str(path)!r}")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        fail(f"cannot read {str(path)!r} as a picture ({error}); PNG and JPEG files work")
    if picture.mode.startswith("I"):  # 16-bit greyscale
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(v) for v in np.median(border, axis=0)))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return torch.from_numpy(np.array(square.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)))[None]


def load_vlm(out, name):
    """(ViT, VLM) from an --out folder; name: an adapter's folder there, such as 'langbridge_instruct'."""
    for path in (out / "vit" / "config.json", out / name / "config.json", out / name / "adapter.json"):
        if not path.exists():
            fail(f"there is no {str(path)!r}; 'python train.py --out {out}' makes it")
    vit, adapter = load_vit(out / "vit"), load_adapter(out / name)
    base = out / json.loads((out / name / "config.json").read_text(encoding="utf-8"))["base"]
    adapter.set_basis(*load_llm(base))  # the embeddings before the LLM was tuned: those that the adapter was trained with
    llm, encoding = load_llm(out / name if (out / name / "llm.pt").exists() else base)
    return vit.eval(), VLM(adapter, llm, encoding).eval()


def contact_sheet(out, path, pictures, max_objects, name="langbridge_instruct", count=6):
    """Pictures of the test split with a question, the answer given and the true one, wrong answers first, as one PNG."""
    vit, vlm = load_vlm(out, name)
    _, questions, _ = benchmark("test", pictures, max_objects)
    images = draw_split("test", range(pictures), vit.config.size, max_objects)
    with torch.no_grad():
        features = torch.cat([vit(torch.from_numpy(images[i:i + 100])) for i in range(0, pictures, 100)])
    answers = vlm.answer(features[[i for i, _ in questions]], [qa.question for _, qa in questions])
    rows = sorted(zip(questions, answers), key=lambda row: row[0][1].answer == row[1])[:count]
    sheet = Image.new("RGB", (280 * 3, 290 * -(-count // 3)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, ((i, qa), answer) in enumerate(rows):
        x, y = 280 * (k % 3) + 25, 290 * (k // 3)
        sheet.paste(Image.fromarray(images[i]).resize((200, 200), Image.Resampling.NEAREST), (x, y + 10))
        for line, text, color in ((0, qa.question, "black"), (1, f"answer: {answer}", "darkgreen" if answer == qa.answer else "darkred"),
                                  (2, f"truth: {qa.answer}", "black")):
            pen.text((x, y + 216 + 20 * line), text, fill=color, font_size=14)
    sheet.save(path)
    wrong = sum(qa.answer != answer for (_, qa), answer in zip(questions, answers))
    print(f"\n{count} test pictures, wrong answers first ({wrong} of {len(questions)} are wrong), in {path}:")
    for (_, qa), answer in rows:
        print(f"  {'right' if answer == qa.answer else 'WRONG'}  {qa.question}  {answer}  (truth: {qa.answer})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder that train.py wrote (default: out)")
    parser.add_argument("--table", type=Path, nargs="+", metavar="JSON", help="print these results.json as the README's table, and stop")
    parser.add_argument("--image", type=Path, help="a picture: PNG or JPEG, any size")
    parser.add_argument("--ask", help="a question about it; without one, it is described")
    parser.add_argument("--model", default="langbridge_instruct", help="which adapter folder of --out answers (default: langbridge_instruct)")
    parser.error = lambda message: fail(f"{message}; see python evaluate.py --help")
    args = parser.parse_args()
    if args.table:
        return print(results_table([json.loads(path.read_text(encoding="utf-8")) for path in args.table]))
    if args.image is None:
        fail("which picture? try --image picture.png")
    if args.ask is not None and not args.ask.strip():
        fail("the question is empty; try --ask \"what color is the circle?\", or leave --ask away for a caption")
    vit, vlm = load_vlm(args.out, args.model)
    features = vit(read_picture(args.image, vit.config.size))
    print(vlm.answer(features, [args.ask.strip().lower() if args.ask else CAPTION_REQUESTS[0]])[0])


if __name__ == "__main__":
    main()
