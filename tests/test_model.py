"""The GPT and the VLM: causal, cached, and laid out as they say. The ViT and what teaches it. And
the shapes at the ends of lines: they are true."""
import linecache
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT, WORDS, make_llm

from adapter import LangBridge, MLPAdapter
from data.dataset import Shapes
from data.files import Refused
from model import GPT, VLM, GPTConfig, ShortConv, attention
from transfer import Probe, TopWords
from vision import CLIP, ViT, ViTConfig, probe

ENCODING = make_llm("source", 32)[1]
SMALL = ViTConfig(D=16, H=4, layers=1)
PICTURES = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8)


@pytest.fixture
def llm():
    """Two blocks, as if they were trained: no zeros are left that would hide a mistake."""
    torch.manual_seed(0)
    llm = GPT(GPTConfig(ENCODING.n_vocab, C=32, H=4, layers=2)).eval()
    for p in llm.parameters():
        nn.init.normal_(p, std=0.3)
    return llm


def some_ids(*shape):
    return torch.randint(0, 300, shape)


# ---- the GPT -------------------------------------------------------------------------------------

def test_a_future_token_cannot_change_past_logits(llm):
    a = some_ids(2, 20)
    b = torch.cat([a[:, :12], some_ids(2, 8)], dim=1)
    of_a, of_b = llm(llm.embed(a)), llm(llm.embed(b))
    assert torch.equal(of_a[:, :12], of_b[:, :12])
    assert not torch.allclose(of_a[:, 12:], of_b[:, 12:])


@pytest.mark.parametrize("queries", [9, 4, 1])
def test_attention_written_out_is_the_fused_kernel_also_after_a_cache(queries):
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(q[:, :, -queries:], k, v), fused[:, :, -queries:], atol=1e-5)


def test_a_short_convolution_is_the_sum_that_it_says():
    conv, x = ShortConv(3), torch.randn(2, 9, 3)
    for t in range(9):
        past = sum(conv.weight[i] * x[:, t - i] for i in range(min(6, t + 1)))
        assert torch.allclose(conv(x, None)[:, t], x[:, t] + past, atol=1e-6)


def test_cached_and_uncached_generation_agree_and_each_row_stops_where_it_should(llm):
    x = llm.embed(some_ids(4, 7))
    answers = llm.generate(x, stops=[], max_tokens=12)
    logits = llm(torch.cat([x, llm.embed(torch.tensor(answers))], dim=1))  # (4, 7 + 12, V)
    assert logits[:, 6:-1].argmax(-1).tolist() == answers
    stop = answers[0][5]
    until = [answer[:[*answer, stop].index(stop)] for answer in answers]
    assert llm.generate(x, stops=[stop], max_tokens=12) == until


def test_the_context_ends_answers_and_refuses_longer_texts(llm):
    assert len(llm.generate(torch.zeros(1, 505, 32), stops=[])[0]) == 7
    with pytest.raises(Refused, match="513 tokens do not fit"):
        llm(torch.zeros(1, 513, 32))


# ---- the VLM -------------------------------------------------------------------------------------

def test_a_picture_lies_between_prefix_and_text_in_rows_and_a_blind_model_has_none(llm):
    vlm, blind = (VLM(adapter, llm, ENCODING) for adapter in (MLPAdapter(16, 32), None))
    features, ids = torch.randn(2, 36, 16), some_ids(2, 5)
    prefix, newline = (vlm.embed(ENCODING.encode(text, allowed_special="all"))
                       for text in ("<|bos|>scene:\n", "\n"))  # (1, prefix, C), (1, 1, C)
    picture = vlm.picture(features)
    rows = picture[:, prefix.size(1):].view(2, 6, 7, 32)
    assert torch.equal(rows[:, :, :6], vlm.adapter(features).view(2, 6, 6, 32))
    assert (rows[:, :, 6] == newline).all() and (picture[:, :-42] == prefix).all()
    assert torch.equal(blind.picture(features), picture[:, :-42])
    before = llm.hidden(torch.cat([picture, llm.embed(ids)], dim=1))[:, -6:-1]  # each of the text
    assert torch.allclose(vlm(features, ids), before, atol=1e-5)
    assert vlm.room(36) + picture.size(1) == blind.room(36) + prefix.size(1) == llm.config.context


def test_answers_about_many_pictures_are_those_about_each_alone(llm):
    vlm, features = VLM(MLPAdapter(16, 32), llm, ENCODING), torch.randn(4, 36, 16)
    asked = [(3, "what color is the circle?"), (0, "is there a red star?"),
             (0, "how many objects are there?"), (1, "is there a red star?")]
    vlm.batch = 2
    for (i, question), answer in zip(asked, vlm.answer(features, asked), strict=True):
        text = vlm.embed(ENCODING.encode(f"question: {question}"))
        prompt = torch.cat([vlm.picture(features[i:i + 1]), text], dim=1)
        tokens = llm.generate(prompt, vlm.stops)[0]  # without the cache that questions share
        assert ENCODING.decode(tokens).strip() == answer


# ---- the ViT -------------------------------------------------------------------------------------

def test_patches_are_in_raster_order_and_show_how_far_pixels_are_from_the_median():
    x = PICTURES[0].float() / 127.5 - 1
    x = torch.cat([x, (x - x.flatten(0, 1).median(0).values).norm(dim=-1, keepdim=True)], dim=-1)
    for n, patch in enumerate(ViT(SMALL).patches(PICTURES)[0].view(36, 8, 8, 4)):
        down, across = n // 6 * 8, n % 6 * 8
        assert torch.allclose(patch, x[down:down + 8, across:across + 8], atol=1e-6)


def test_a_score_is_what_words_find_whatever_the_padding_and_the_loss_finds_each_its_own():
    clip, ids, mask = CLIP(SMALL, 300), some_ids(2, 6), torch.arange(6) < torch.tensor([[6], [4]])
    s = clip(PICTURES, ids, mask)
    for i, v in enumerate(clip.project(clip.vit(PICTURES))):
        for j, T in enumerate((6, 4)):
            w = clip.text(ids[j:j + 1, :T], mask[j:j + 1, :T])[0]  # (T, D)
            found = F.cosine_similarity(v[:, None], w, dim=-1).sort(dim=0).values[-4:]  # (4, T)
            assert s[i, j].item() == pytest.approx(40 * found.mean().item(), abs=1e-3)
    own = (s.log_softmax(0) + s.log_softmax(1)).diagonal()
    assert clip.loss(PICTURES, ids, mask).item() == pytest.approx(-own.mean().item() / 2)


def test_a_probe_reads_what_is_linear_and_not_what_is_absent():
    data = Shapes()
    features = {split: torch.randn(150, 36, 8) for split in ("train", "val", "test")}
    directions = {word: 2 * torch.randn(8) for word in data.kinds["color"]}
    for split in ("train", "val"):
        for seen, _ in data.seen(split, features[split]):
            features[split][seen.picture, seen.patches] += directions[seen.words["color"]]
    val, test = probe(features, data).values()
    assert val["probe_color"] > 0.95 and max(val["probe_shape"], test["probe_color"]) < 0.5


# ---- shapes --------------------------------------------------------------------------------------

SHAPE = re.compile(r"\s*(?:return|(?:\w+, )*([\w.]+) =) .*  # (?:\d x )?\(([^().]+)\)(?!, \()")


def test_lines_that_end_with_a_shape_make_a_tensor_of_that_shape(llm):
    sizes, checked = {"C": 32, "D": 16, "K": 6, "N": 36, "V": ENCODING.n_vocab, "H": 4, "c": 8,
                      "c/2": 4, "size": 48, "4 p^2": 256, **{str(n): n for n in range(9)}}, set()

    def enter(frame, event, arg):
        path, line, here = frame.f_code.co_filename, frame.f_lineno, sizes.copy()

        def step(frame, event, arg):  # a line has run when the next one begins
            nonlocal line
            named = SHAPE.match(linecache.getline(path, line))
            if named and event != "exception":
                x = eval(named[1], frame.f_globals, frame.f_locals) if named[1] else arg
                for letter, size in zip(named[2].strip(",").split(", "), x.shape, strict=True):
                    assert here.setdefault(letter, size) == size, f"{path}:{line}: {letter}"
                checked.add((path, line))
            line = frame.f_lineno
            return step

        return step if Path(path).parent == ROOT and frame.f_code.co_name[0] != "<" else None

    bridge, x, ids = LangBridge(16, WORDS, 24), torch.randn(2, 36, 16), some_ids(2, 36)
    sys.settrace(enter)
    vlm = VLM(bridge.set_basis(llm, ENCODING), llm, ENCODING)
    vlm(x, ids)
    vlm.answer(x, [(1, "what?")])
    CLIP(SMALL, 300).loss(PICTURES, ids, ids >= 0)
    TopWords(bridge)(x)
    Probe(WORDS, x, torch.rand(2, 9, 6)).set_basis(llm, ENCODING)(x)
    sys.settrace(None)
    assert len(checked) > 60
