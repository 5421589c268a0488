"""A page to look inside: how patches become words, in one file for a browser.

    python results/page.py      after train.py: writes page.html into --out

    the page has                            from
    a dozen test pictures                   `choose`
    a LangBridge's top words, by step       top_words.pt, which stage 1 has kept
    an MLP's nearest words                  evaluate.with_words
    answers, also after a swap of words     the models, now; a real LLM's: results/real.py

Its template is results/page.html. What it shows is in the file: it loads nothing.
"""
import base64
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, one folder up

import torch
from PIL import Image

from adapter import written
from data.files import Refused, read_json, read_tensors, write_text
from data.run import Parser, command
from data.scoring import caption_of
from data.world import COLORS, QA, About, make_scene, score_caption
from evaluate import examine_vlm, held_out, load_vlm, open_data, swap_words, top_words, with_words
from model import VLM, load_llm

OF_EACH = 4  # pictures of each kind, at most
MORE = {"mlp_align": "MLP, source LLM", "langbridge_instruct": "LangBridge, after stage 2",
        "mlp_instruct": "MLP, after stage 2", "blind_instruct": "no picture (blind)"}


# ---- pictures and answers -----------------------------------------------------------------------

def is_right(text, qa, scene):
    """A caption is right if its objects are those of the scene, in whatever order."""
    right, named, true = score_caption(text, scene)
    return right == named == true if qa.type == "caption" else text == qa.answer


def answers_of(said):
    """What a model said in the exam about each picture (data/scoring.py):
    [[[question, truth, answer, whether it is right], ..], ..]"""
    rows = [[] for _ in said.scenes]
    for a in [*said.questions, *said.pope]:
        rows[a.picture].append((a.qa, a.answer))
    for row, scene, text in zip(rows, said.scenes, said.captions):
        row.append((caption_of(scene), text))
    return [[[qa.question, qa.answer, text, is_right(text, qa, scene)] for qa, text in row]
            for row, scene in zip(rows, said.scenes)]


def choose(scenes, answers):
    """The pictures that are shown, {index: kind}: the first with one object, the first with three,
    and the first others about which something wrong was said."""
    kinds = {"one object": [len(scene) == 1 for scene in scenes],
             "three objects": [len(scene) == 3 for scene in scenes],
             "mistakes": [not all(right for *_, right in row) for row in answers]}
    chosen = {}
    for kind, its in kinds.items():
        new = [i for i, fits in enumerate(its) if fits and i not in chosen]
        chosen |= dict.fromkeys(new[:OF_EACH], kind)
    return chosen


def swaps(vlms, scene, x):
    """Answers with another word in place of the first object's colour, in every patch:
    {"word": the colour, "others": {other word: [[question, [[answer, right] by each VLM]], ..]}}.
    Right is what was put there; the colour in its own place is how it was before."""
    old, shape, others = scene[0].color, scene[0].shape, {}
    for new in COLORS:
        if new != old and any(o.color == new for o in scene):
            continue  # two objects might become one
        now = [o._replace(color=new) if o.color == old else o for o in scene]
        asked, about = [caption_of(now)], About("color", None, shape)
        if len(about.fits(now)) == 1:
            asked.insert(0, QA("color", f"what color is the {shape}?", new, about))
        said = [VLM(swap_words(vlm.adapter, f"{old}={new}"), vlm.llm, vlm.encoding).answer(
            x, [(0, qa.question) for qa in asked]) for vlm in vlms]
        others[new] = [[qa.question, [[text, is_right(text, qa, now)] for text in texts]]
                       for qa, *texts in zip(asked, *said)]
    return {"word": old, "others": others}


# ---- the page -----------------------------------------------------------------------------------

def bars(weights, words):
    """Top words, (N, count) each, as numbers: of each patch [[word, weight], ..], weights in
    thousandths."""
    thousandths = (1000 * weights.float()).round()
    return torch.stack([words.int(), thousandths.int()], dim=-1).tolist()  # (N, count, 2)


def as_url(pixels):
    """A picture (size, size, 3) uint8 as a PNG within the page."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def models_of(out, features, data):
    """[name, answers_of it, its vqa on the whole test split, if that is known], .., and the first
    two as VLMs: a LangBridge after stage 1 on its source LLM and, zero-shot, on the target."""
    def entry(name, vlm, folder):
        path = out / folder / "config.json"
        vqa = read_json(path)["scores"]["vqa"] if path.exists() else None
        return [name, answers_of(examine_vlm(vlm, {"test": features}, data)["test"]), vqa]

    _, source = load_vlm(out, "langbridge_align")
    llm = load_llm(out / "llm_target")
    target = VLM(source.adapter.moved_to(*llm), *llm).eval()
    models = [entry("LangBridge, source LLM", source, "langbridge_align"),
              entry("target LLM, zero-shot", target, "transfer/zero_shot_langbridge")]
    for path in sorted(out.glob("real/*/zero_shot_langbridge/config.json")):
        its, name = read_json(path), path.parent.parent.name.partition(".")[0]
        if len(its["answers"]) >= len(features):
            models.append([f"{name}, zero-shot", its["answers"], its["scores"]["vqa"]])
    models += [entry(name, load_vlm(out, stage)[1], stage) for stage, name in MORE.items()]
    return models, [source, target]


@torch.no_grad()
def data_of(out):
    """All that the page shows of a run."""
    data = open_data(out)
    if not data.kinds:
        raise Refused(f"{str(out)!r} was trained on other pictures; this page needs our world's")
    kept = read_tensors(out / "langbridge_align" / "top_words.pt")  # {step: 2 x (n, N, count)}
    n = len(next(iter(kept.values()))[0])
    features = held_out(out, splits=["test"], data=data)["test"][:n]
    models, bridges = models_of(out, features, data)
    nearest = top_words(with_words(load_vlm(out, "mlp_align")[1], out), features, n)
    scenes, pictures = [make_scene("test", 0, i) for i in range(n)], []
    for i, kind in choose(scenes, models[1][1]).items():
        asked = [{"question": question, "truth": truth,
                  "answers": [answers[i][k][2:] for _, answers, _ in models]}
                 for k, (question, truth, *_) in enumerate(models[0][1][i])]
        pictures.append({
            "kind": kind, "index": i, "image": as_url(data.pictures("test", [i])[0]),
            "bridge": [bars(*(x[i] for x in heaviest)) for heaviest in kept.values()],
            "mlp": bars(*(x[i] for x in nearest)), "asked": asked,
            "swaps": swaps(bridges, scenes[i], features[i:i + 1])})
    config = read_json(out / "langbridge_align" / "config.json")
    return {"commit": config["commit"], "seed": config["settings"]["seed"], "of": n,
            "words": [written(t) for t in bridges[0].adapter.tokens], "steps": [*kept],
            "models": [[name, vqa] for name, _, vqa in models], "pictures": pictures}


def main():
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default="out", help="of train.py (default: out)")
    out = parser.parse_args().out
    shown = json.dumps(data_of(out), ensure_ascii=False, separators=(",", ":"))
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    write_text(out / "page.html", template.replace("DATA_OF_A_RUN", shown.replace("<", "\\u003c")))
    print(f"written: {out / 'page.html'}; open it in a browser")


if __name__ == "__main__":
    with command():
        main()
