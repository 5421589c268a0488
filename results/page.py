"""A page to look inside: how patches become words, in one file for a browser.

    python results/page.py      after train.py: writes page.html into --out

    the page has                            from
    a dozen test pictures                   `choose`
    a LangBridge's top words, by step       top_words.pt, which stage 1 has kept
    an MLP's nearest words                  evaluate.with_words
    answers, also after a swap of words     the models, now; a real LLM's: real_*.json

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

from data.corpus import GRID
from data.files import Refused, read_json, read_tensors, write_text
from data.run import Parser, command
from data.scoring import benchmark, caption_of
from data.world import CAPTION_REQUESTS, COLORS, About, make_scene, score_caption
from evaluate import held_out, load_vlm, open_data, swap_words, top_words, with_words
from model import VLM, load_llm

OF_EACH = 4  # pictures of each kind, at most
MORE = {"mlp_align": "MLP, source LLM", "langbridge_instruct": "LangBridge, after stage 2",
        "mlp_instruct": "MLP, after stage 2", "blind_instruct": "blind (no picture), after stage 2"}


# ---- pictures and answers -----------------------------------------------------------------------

def load_models(out):
    """{name: (stage, VLM)}. The first two are a LangBridge after stage 1: on its source LLM and,
    zero-shot, on the target."""
    _, source = load_vlm(out, "langbridge_align")
    llm = load_llm(out / "llm_target")
    target = VLM(source.adapter.moved_to(*llm), *llm).eval()
    return {"LangBridge, source LLM": ("langbridge_align", source),
            "LangBridge, target LLM, zero-shot": ("transfer/zero_shot_langbridge", target)} | {
        name: (stage, load_vlm(out, stage)[1]) for stage, name in MORE.items()}


def real_answers(out):
    """What real LLMs have answered zero-shot, {name: {(picture, question, truth): text}}, from what
    results/real.py has written, if there is any."""
    answers = {}
    for its in map(read_json, sorted(out.glob("real_*_*.json"))):  # FILE_HASH
        if its["target"] in ("llm_source", "llm_target"):
            continue
        lines = [line.split(" | ", 3) for line in its["zero_shot_langbridge_says"]]
        answers[f"LangBridge, {its['target'].rpartition('_')[0]}, zero-shot"] = {
            (int(i), question, truth): text for i, question, truth, text in lines}
    return answers


def questions(pictures, real):
    """What is asked, [(picture, question, truth)]: what a real LLM was asked, or else the exam."""
    for answers in real.values():
        return [asked for asked in answers if asked[0] < pictures]
    scenes, asked, pope = benchmark("test", pictures)
    asked = [*asked, *pope, *((i, caption_of(scene)) for i, scene in enumerate(scenes))]
    return [(i, qa.question, qa.answer) for i, qa in asked]


def is_right(question, truth, text, scene):
    """A caption is right if its objects are those of the scene, in whatever order."""
    right, named, true = score_caption(text, scene)
    return right == named == true if question in CAPTION_REQUESTS else text == truth


def choose(scenes, about):
    """The pictures that are shown, {index: kind}: the first with one object, the first with three,
    and the first others about which the second model, zero-shot, has said something wrong."""
    kinds = {"one object": [i for i, scene in enumerate(scenes) if len(scene) == 1],
             "three objects": [i for i, scene in enumerate(scenes) if len(scene) == 3],
             "mistakes": [i for i, asked in enumerate(about)
                          if not all(its["answers"][1][1] for its in asked)]}
    chosen = {}
    for kind, its in kinds.items():
        chosen |= dict.fromkeys([i for i in its if i not in chosen][:OF_EACH], kind)
    return chosen


def swaps(vlms, scene, x):
    """Answers with another word in place of the first object's colour, in every patch:
    {"word": the colour, "others": {other word: [[question, [[answer, right] by each VLM]], ..]}}.
    Right is what was put there; the colour in its own place is how it was before. No colour of
    another object is put there: two objects might become one."""
    old, shape, others = scene[0].color, scene[0].shape, {}
    for new in sorted({*COLORS} - {o.color for o in scene[1:]} | {old}):
        now = [o._replace(color=new) if o.color == old else o for o in scene]
        asked = [caption_of(now)[1:3]]  # [(question, truth)]
        if len(About("color", None, shape).fits(now)) == 1:
            asked.insert(0, (f"what color is the {shape}?", new))
        said = [VLM(swap_words(vlm.adapter, f"{old}={new}"), vlm.llm, vlm.encoding).answer(
            x, [(0, question) for question, _ in asked]) for vlm in vlms]
        others[new] = [[question, [[text, is_right(question, truth, text, now)] for text in texts]]
                       for (question, truth), *texts in zip(asked, *said)]
    return {"word": old, "others": others}


# ---- the page -----------------------------------------------------------------------------------

def bars(weights, words):
    """Top words, (N, count) each, as numbers: of each patch [[word, weight], ..], weights in
    thousandths."""
    thousandths = (1000 * weights.float()).round().int()  # (N, count)
    return torch.stack([words.int(), thousandths], dim=-1).tolist()  # (N, count, 2)


def as_url(pixels):
    """A picture (size, size, 3) uint8 as a PNG within the page."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@torch.no_grad()
def data_of(out):
    """All that the page shows of a run."""
    data = open_data(out)
    features = held_out(out, splits=["test"], data=data)["test"]
    if not data.kinds or features.size(1) != GRID ** 2:
        raise Refused(f"{str(out)!r} is no run on our world of 6 x 6 patches: nothing to show here")
    kept = read_tensors(out / "langbridge_align" / "top_words.pt")  # {step: 2 x (n, N, count)}
    models, real = load_models(out), real_answers(out)
    asked = questions(len(kept[0][0]), real)
    said = {name: vlm.answer(features, [its[:2] for its in asked])
            for name, (_, vlm) in models.items()}
    said = dict([*said.items()][:2]) | {  # in this order
        name: [*map(texts.get, asked)] for name, texts in real.items()} | said
    n = 1 + max(i for i, *_ in asked)
    scenes, about = [make_scene("test", 0, i) for i in range(n)], [[] for _ in range(n)]
    for (i, question, truth), *texts in zip(asked, *said.values()):
        answers = [[text, is_right(question, truth, text or "", scenes[i])] for text in texts]
        about[i].append({"question": question, "truth": truth, "answers": answers})
    source, target, mlp, *_ = (vlm for _, vlm in models.values())
    nearest = top_words(with_words(mlp, out), features, n)
    pictures = [{
        "kind": kind, "index": i, "image": as_url(data.pictures("test", [i])[0]),
        "bridge": [bars(*(x[i] for x in heaviest)) for heaviest in kept.values()],
        "mlp": bars(*(x[i] for x in nearest)), "asked": about[i],
        "swaps": swaps([source, target], scenes[i], features[i:i + 1]),
        "truth": caption_of(scenes[i]).answer} for i, kind in choose(scenes, about).items()]
    paths = {name: out / stage / "config.json" for name, (stage, _) in models.items()}
    vqas = {name: read_json(path)["scores"]["vqa"] for name, path in paths.items() if path.exists()}
    config = read_json(out / "langbridge_align" / "config.json")
    return {"commit": config["commit"], "seed": config["settings"]["seed"], "of": n,
            "words": [t.decode("utf-8", "replace") for t in source.adapter.tokens],
            "steps": [*kept], "models": [[name, vqas.get(name)] for name in said],
            "pictures": pictures}


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
