"""results/page.py: the page shows what the run holds, and loads nothing."""
import json

import torch
from conftest import run_here

from data.files import write_json
from evaluate import held_out, load_vlm, open_data, swap_words, with_words
from model import VLM, load_llm
from results.page import as_url


def test_the_page_shows_what_the_run_holds_and_loads_nothing(out):
    run_here("results/page.py", "--out", out)
    text = (out / "page.html").read_text("utf-8")
    assert len(text) < 2e6 and not any(it in text for it in ("http:", "https:", "url(", "@import"))
    pictures = shown(out)["pictures"]
    data, features, llm = open_data(out), held_out(out)["test"], load_llm(out / "llm_target")
    source, mlp = (load_vlm(out, f"{kind}_align")[1] for kind in ("langbridge", "mlp"))
    bridge, words = source.adapter, with_words(mlp, out)
    target = VLM(bridge.moved_to(*llm), *llm)
    for _, i, image, steps, nearest, about, swaps, _ in map(dict.values, pictures):
        assert image == as_url(data.pictures("test", [i])[0])
        for adapter, patches in ((bridge, steps[-1]), (words, nearest)):
            its, weights = torch.tensor(patches).unbind(-1)  # 2 x (N, count)
            beta = adapter.weights(features[[i]])[0]  # (N, K)
            for true in (beta.gather(1, its), beta.topk(its.size(1)).values):
                assert torch.allclose(true, weights / 1000, atol=1e-3)
        asked = [(i, its["question"]) for its in about]
        said = (vlm.answer(features, asked) for vlm in (source, target, mlp))
        for its, *texts in zip(about, *said):
            assert its["answers"][:3] == [[text, text == its["truth"]] for text in texts]
        for new, rows in swaps["others"].items():
            vlm = VLM(swap_words(bridge, f"{swaps['word']}={new}"), source.llm, source.encoding)
            said = vlm.answer(features, [(i, question) for question, _ in rows])
            assert said == [answers[0][0] for _, answers in rows]


def test_all_models_are_asked_what_a_real_llm_was_asked(out):
    path, question = out / "real_some_0.json", "what color is the star?"
    asked = [[0, question, "red", "red"], [1, question, "blue", ""]]
    write_json(path, {"target": "some_0", "zero_shot_langbridge_says": [
        " | ".join(map(str, its)) for its in asked]})
    run_here("results/page.py", "--out", out)
    path.unlink()
    page = shown(out)
    k = [name for name, _ in page["models"]].index("LangBridge, some, zero-shot")
    for picture in page["pictures"]:
        (its,), (_, _, truth, text) = picture["asked"], asked[picture["index"]]
        assert its["answers"][k] == [text, text == truth]


def shown(out):
    """The data of the page."""
    text = (out / "page.html").read_text("utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])
