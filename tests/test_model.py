"""The GPT and the VLM: causal, cached, and asked where they should be. The ViT and its teacher."""
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import WORDS, make_llm
from PIL import Image

from adapter import LangBridge, MLPAdapter
from data.files import Refused
from data.pictures import read_picture
from model import GPT, VLM, GPTConfig, ShortConv, attention, load_llm, same_length, save_llm
from vision import CLIP, ViT, ViTConfig, Wordless, linear_probe, load_vit, save_vit


@pytest.fixture(scope="module")
def encoding():
    return make_llm("source", 32)[1]


@pytest.fixture
def llm(encoding):
    """Two blocks, as if they were trained: no zeros are left that would hide a mistake."""
    torch.manual_seed(0)
    llm = GPT(GPTConfig(encoding.n_vocab, C=32, H=4, layers=2)).eval()
    for p in llm.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return llm


def some_ids(*shape):
    return torch.randint(0, 300, shape)


# ---- the GPT -------------------------------------------------------------------------------------

def test_a_future_token_cannot_change_past_logits(llm):
    a = some_ids(2, 20)
    b = a.clone()
    b[:, 12:] = some_ids(2, 8)
    of_a, of_b = llm(llm.embed(a)), llm(llm.embed(b))
    assert torch.equal(of_a[:, :12], of_b[:, :12])
    assert not torch.allclose(of_a[:, 12:], of_b[:, 12:])


def test_attention_written_out_is_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(q, k, v), fused, atol=1e-5)


def test_a_short_convolution_is_the_sum_that_it_says():
    conv, x = ShortConv(3), torch.randn(2, 9, 3)
    y, _ = conv(x)
    for t in range(9):
        expected = x[:, t].clone()
        for i in range(conv.width):
            if t - i >= 0:
                expected += conv.weight[i] * x[:, t - i]
        assert torch.allclose(y[:, t], expected, atol=1e-6)


def test_a_short_convolution_goes_on_where_it_was_left():
    conv, x = ShortConv(3), torch.randn(2, 9, 3)
    whole, _ = conv(x)
    begin, past = conv(x[:, :4])
    end, _ = conv(x[:, 4:], past)
    assert torch.allclose(torch.cat([begin, end], dim=1), whole, atol=1e-6)


def test_cached_and_uncached_generation_agree(llm):
    x = llm.embed(some_ids(3, 7))
    cached = llm.generate(x, stops=[], max_tokens=10)
    uncached = [[] for _ in range(3)]
    for _ in range(10):
        ids = llm(x)[:, -1].argmax(-1)  # (3,)
        for answer, id in zip(uncached, ids.tolist()):
            answer.append(id)
        x = torch.cat([x, llm.embed(ids[:, None])], dim=1)
    assert cached == uncached


def test_generation_stops_at_the_stop_token_of_each_row(llm):
    x = llm.embed(some_ids(4, 7))
    free = llm.generate(x, stops=[], max_tokens=12)
    stop = free[0][5]
    for answer, ended in zip(free, llm.generate(x, stops=[stop], max_tokens=12)):
        if stop in answer:
            answer = answer[:answer.index(stop)]
        assert ended == answer


def test_a_text_longer_than_the_context_is_refused(llm):
    with pytest.raises(Refused, match="513 tokens do not fit"):
        llm(torch.zeros(1, 513, 32))


def test_an_answer_ends_where_the_context_ends(llm):
    assert len(llm.generate(torch.zeros(1, 505, 32), stops=[])[0]) == 7


def test_rows_of_a_cache_can_be_picked_twice(llm):
    x = llm.embed(some_ids(2, 7))
    cache = llm.new_cache()
    llm.hidden(x, cache)
    again, y = cache.pick([1, 1, 0]), llm.embed(some_ids(3, 4))
    expected = llm(torch.cat([x[[1, 1, 0]], y], dim=1))[:, -4:]
    assert torch.allclose(llm(y, again), expected, atol=1e-4)


def test_what_one_row_has_read_can_be_the_beginning_of_many(llm):
    begin, y, z = llm.embed(some_ids(1, 7)), llm.embed(some_ids(3, 4)), llm.embed(some_ids(3, 1))
    cache = llm.new_cache()
    llm.hidden(begin, cache)
    shared = cache.share(3)
    assert shared.length == 7
    expected = llm(torch.cat([begin.expand(3, -1, -1), y, z], dim=1))
    assert torch.allclose(llm(y, shared), expected[:, 7:11], atol=1e-4)
    shared = shared.pick([2, 0])
    assert shared.length == 11
    assert torch.allclose(llm(z[[2, 0]], shared), expected[[2, 0], 11:], atol=1e-4)


def test_the_last_positions_alone_are_what_they_are_among_all(llm):
    x = torch.randn(2, 40, 32)
    assert torch.allclose(llm.hidden(x, last=7), llm.hidden(x)[:, -7:], atol=1e-5)
    assert llm.hidden(x[:, :9], last=7).shape == (2, 7, 32)  # fewer before it than it looks back


def test_the_first_loss_is_that_of_guessing(encoding):
    llm = GPT(GPTConfig(encoding.n_vocab, C=32, H=4, layers=2))
    ids = torch.randint(0, encoding.n_vocab, (2, 10))
    loss = F.cross_entropy(llm(llm.embed(ids)).flatten(0, 1), ids.flatten())
    assert loss.item() == pytest.approx(math.log(encoding.n_vocab), abs=1e-4)


def test_a_saved_llm_is_the_same_llm(llm, encoding, tmp_path):
    save_llm(llm, encoding, tmp_path)
    again, its_encoding = load_llm(tmp_path)
    ids = some_ids(1, 10)
    assert torch.equal(llm(llm.embed(ids)), again(again.embed(ids)))
    assert its_encoding.encode(" red circle") == encoding.encode(" red circle")


def test_batches_of_one_length_hold_every_prompt_once():
    prompts = [[1] * n for n in (3, 5, 3, 3, 5)]
    batches = list(same_length(dict(enumerate(prompts)), batch=2))
    assert sorted(i for keys, _ in batches for i in keys) == [0, 1, 2, 3, 4]
    for keys, ids in batches:
        assert ids.shape == (len(keys), len(prompts[keys[0]]))


# ---- the VLM -------------------------------------------------------------------------------------

def test_the_picture_lies_between_prefix_and_text_with_a_newline_after_each_row(llm, encoding):
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding), torch.randn(2, 36, 16)
    x, start = vlm.picture(features), len(vlm.prefix)
    assert x.shape == (2, start + 42, 32)
    assert torch.equal(x[:, :start], llm.embed(torch.tensor([vlm.prefix] * 2)))
    rows = x[:, start:].view(2, 6, 7, 32)
    newline = llm.embed(torch.tensor([encoding.encode_single_token(b"\n")]))  # (1, 32)
    assert torch.equal(rows[:, :, 6], newline.expand(2, 6, 32))
    assert torch.equal(rows[:, :, :6].flatten(1, 2), vlm.adapter(features))


def test_a_token_is_predicted_from_all_that_stands_before_it(llm, encoding):
    vlm = VLM(MLPAdapter(16, 32), llm, encoding)
    features, ids, wanted = torch.randn(2, 36, 16), some_ids(2, 5), torch.tensor([0, 3, 4, 7])
    whole = llm(torch.cat([vlm.picture(features), llm.embed(ids)], dim=1))[:, -6:-1]
    assert torch.allclose(vlm(features, ids, wanted), whole.flatten(0, 1)[wanted], atol=1e-5)


def test_the_picture_matters_and_a_blind_model_has_none(llm, encoding):
    a, b, ids = torch.randn(1, 36, 16), torch.randn(1, 36, 16), some_ids(1, 5)
    wanted = torch.arange(5)
    seeing, blind = VLM(MLPAdapter(16, 32), llm, encoding), VLM(None, llm, encoding)
    assert not torch.allclose(seeing(a, ids, wanted), seeing(b, ids, wanted))
    assert torch.equal(blind(a, ids, wanted), blind(b, ids, wanted))


def test_answers_do_not_depend_on_what_else_is_asked(llm, encoding):
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding).eval(), torch.randn(4, 36, 16)
    asked = [(3, "what color is the circle?"), (0, "is there a red star?"),
             (0, "how many objects are there?"), (1, "is there a red star?")]
    vlm.batch = 2
    together = vlm.answer(features, asked)
    for (i, question), answer in zip(asked, together):
        assert vlm.answer(features[i:i + 1], [(0, question)]) == [answer]
        text = vlm.embed(encoding.encode(f"question: {question}"))
        prompt = torch.cat([vlm.picture(features[i:i + 1]), text], dim=1)
        tokens = llm.generate(prompt, vlm.stops)[0]  # without the cache that questions share
        assert encoding.decode(tokens).strip() == answer


def test_the_picture_found_is_the_one_that_makes_an_answer_likeliest(llm, encoding):
    vlm = VLM(LangBridge(16, WORDS, 24).set_basis(llm, encoding), llm, encoding).eval()
    features, question, answer = 3 * torch.randn(5, 36, 16), "what is this?", "a red circle."
    before = encoding.encode(f"question: {question}")
    ids = torch.tensor([before + encoding.encode(f" {answer}\n")]).expand(5, -1)
    said = torch.arange(len(before), ids.size(1))
    ln_p = []
    with torch.no_grad():
        for k in range(5):
            logits = vlm(features[k:k + 1], ids[:1], said)
            ln_p.append(-F.cross_entropy(logits, ids[0, said], reduction="sum").item())
    best = max(range(5), key=ln_p.__getitem__)
    worst = min(range(5), key=ln_p.__getitem__)
    others = [k for k in range(5) if k != best]
    asked = [(range(5), question, answer), (others, question, answer), ([worst, best], "", answer)]
    found = vlm.find(features, asked[:2])
    assert found == [best, max(others, key=ln_p.__getitem__)]
    assert VLM(None, llm, encoding).eval().find(features, asked) == [0, others[0], worst]


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(llm, encoding):
    vlm, features = VLM(MLPAdapter(16, 32), llm, encoding).eval(), torch.randn(1, 36, 16)
    with pytest.raises(Refused, match="at most"):
        vlm.answer(features, [(0, "what color? " * 200)])


@pytest.mark.parametrize("kind", ["mlp", "langbridge"])
def test_frozen_parts_get_no_gradient_and_one_batch_can_be_learned(llm, encoding, kind):
    llm.requires_grad_(False)
    adapter = MLPAdapter(16, 32) if kind == "mlp" else LangBridge(16, WORDS, 32, "linear")
    vlm = VLM(adapter.set_basis(llm, encoding), llm, encoding)
    torch.manual_seed(0)
    features, ids, before = torch.randn(2, 36, 16), some_ids(2, 2), llm.head.weight.clone()
    wanted = torch.arange(ids.numel())
    optimizer, losses = torch.optim.AdamW(adapter.parameters(), 0.02), []
    for _ in range(60):
        loss = F.cross_entropy(vlm(features, ids, wanted), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is None for p in llm.parameters())
    assert torch.equal(before, llm.head.weight)
    assert losses[-1] < 0.5 * losses[0]


# ---- the ViT -------------------------------------------------------------------------------------

def test_the_patches_of_a_vit_are_in_raster_order():
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=48, patch=8, D=16, H=2, layers=0))  # no block: a patch sees itself
    a = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    b = a.clone()
    b[:, 8:16, 16:24] = 255  # the second row of patches, the third column
    changed = (vit(a) != vit(b)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1 * 6 + 2]


def test_a_saved_vit_is_the_same_vit(tmp_path):
    vit = ViT(ViTConfig(D=16, H=2, layers=1))
    save_vit(vit, tmp_path)
    picture = torch.randint(0, 255, (1, 48, 48, 3), dtype=torch.uint8)
    assert torch.equal(vit(picture), load_vit(tmp_path)(picture))


def test_padding_does_not_change_a_caption():
    clip = CLIP(ViTConfig(D=16, H=2, layers=1), 300)
    pictures = torch.randint(0, 255, (1, 48, 48, 3), dtype=torch.uint8)
    ids, mask = some_ids(1, 6), torch.ones(1, 6, dtype=torch.bool)
    short = clip(pictures, ids, mask)
    padded = clip(pictures, F.pad(ids, (0, 4)), F.pad(mask, (0, 4)))
    assert torch.allclose(short, padded, atol=1e-5)


def test_without_words_a_picture_is_nearest_to_itself():
    torch.manual_seed(0)
    model = Wordless(ViTConfig(D=16, H=2, layers=1))
    pictures = torch.randint(0, 255, (6, 48, 48, 3), dtype=torch.uint8)
    assert model(pictures, pictures).argmax(1).tolist() == list(range(6))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert model(pictures, pictures[order]).argmax(0).tolist() == order.tolist()
    assert model.loss(pictures, pictures) < model.loss(pictures, pictures[order])


def test_a_linear_probe_reads_what_is_linear_and_not_what_is_absent():
    y, y_test = torch.randint(0, 4, (800,)), torch.randint(0, 4, (400,))
    directions = torch.randn(4, 16)
    x, x_test = torch.randn(800, 16) + 3 * directions[y], torch.randn(400, 16)
    assert linear_probe(x, y, x_test + 3 * directions[y_test], y_test, 4) > 0.95
    assert linear_probe(x, y, x_test, y_test, 4) < 0.4


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("P", "png"), ("1", "png"), ("LA", "png"),
    ("I;16", "png"), ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg")])
def test_any_picture_can_be_read(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (317, 55)).save(path)
    assert read_picture(path, 48).shape == (1, 48, 48, 3)


def test_a_picture_is_padded_with_the_colour_of_its_border(tmp_path):
    wide = Image.new("RGB", (96, 48), "white")
    wide.paste("red", (40, 16, 56, 32))
    wide.save(tmp_path / "wide.png")
    pixels = read_picture(tmp_path / "wide.png", 48)[0]
    assert (pixels[:10] == 255).all() and (pixels[-10:] == 255).all()
    assert pixels[24, 24].tolist() == [255, 0, 0]


def test_half_a_picture_is_refused(tmp_path):
    whole, half = tmp_path / "whole.png", tmp_path / "half.png"
    Image.effect_noise((200, 200), 50).save(whole)
    half.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(Refused, match="cannot read .*half.png"):
        read_picture(half, 48)
