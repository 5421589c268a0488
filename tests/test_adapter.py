"""The claim of the method, on tiny models: the adapter knows words, and only its basis knows the
LLM."""
import pytest
import torch
import torch.nn as nn
from conftest import WORDS, make_llm

from adapter import START, LangBridge, MLPAdapter, fingerprint, load_adapter, save_adapter
from data.files import Refused, write_json
from evaluate import told

SOURCE, TARGET = make_llm("source", 32), make_llm("target", 48)


def bridge(coefficients="softmax", tokens=WORDS):
    """A LangBridge on the source LLM whose last layer is large, as if it were trained."""
    torch.manual_seed(2)
    adapter = LangBridge(16, tokens, 24, coefficients)
    nn.init.normal_(adapter.W[-1].weight)
    return adapter.set_basis(*SOURCE)


def some_features(pictures=1):
    return torch.randn(pictures, 36, 16)


def embeddings_of_words(llm, encoding):
    ids = [encoding.encode_single_token(t) for t in WORDS]
    return llm.embed(torch.tensor(ids)).detach()  # (K, C)


# ---- weights and words ---------------------------------------------------------------------------

@pytest.mark.parametrize("coefficients", START)
def test_a_visual_token_mixes_words_by_weights_that_sum_to_one_unless_raw(coefficients):
    adapter, x = bridge(coefficients), some_features(2)
    weights = adapter.weights(x)
    assert torch.allclose(adapter(x), weights @ embeddings_of_words(*SOURCE), atol=1e-5)
    sums_to_one = torch.allclose(weights.sum(-1), torch.ones(2, 36))
    assert sums_to_one == (weights >= 0).all() == (coefficients != "linear")


@pytest.mark.parametrize("coefficients", START)
def test_an_untrained_bridge_starts_at_the_empty_word(coefficients):
    weights = LangBridge(16, WORDS, 24, coefficients).set_basis(*SOURCE).weights(some_features())
    assert (weights.argmax(-1) == WORDS.index(b" .")).all()


def test_whitened_features_differ_as_much_in_every_direction():
    x = torch.randn(5000, 16) * torch.logspace(0, 1, 16) + 3.0  # from 1 to 10 in spread
    adapter = bridge().whiten(x, floor=1e-4)
    white = (x - adapter.mean) @ adapter.scale
    assert torch.allclose(white.T.cov(), torch.eye(16), atol=0.02)
    assert white.mean(0).abs().max() < 1e-3 and torch.allclose(adapter.scale, adapter.scale.T)


def test_words_of_answers_are_those_that_say_something():
    encoding = SOURCE[1]
    answers = [encoding.encode_ordinary(text) for text in (" a red circle.\n", " . at the top")]
    tokens = [*WORDS, b" the", b"."]
    found = LangBridge(16, tokens).said_in(encoding, answers).bool()
    assert [[t for t, there in zip(tokens, row) if there] for row in found] == [
        [b" red", b" circle"], [b" top"]]


def test_what_is_told_is_compared_with_captions_also_without_their_frequent_words():
    adapter = bridge()
    nn.init.zeros_(adapter.W[-1].weight)
    adapter.W[-1].bias.data = torch.tensor([9.0, 5.0, 3.0, 4.0, 0.0, 0.0])  # ., red, blue, circle
    captions = ["red circle"] + 10 * ["red square"]
    found = told(adapter, SOURCE[1], some_features(11), captions)
    assert found["heaviest"] == 1 and found["heaviest_rare"] == pytest.approx(1 / 11)
    assert 0.6 < found["weight"] < 0.9


# ---- the swap ------------------------------------------------------------------------------------

def test_a_swap_changes_the_basis_and_nothing_else():
    adapter, x = bridge().whiten(some_features(9).flatten(0, 1)), some_features()
    v, weights, trained = adapter(x), adapter.weights(x), fingerprint(adapter)
    other = adapter.moved_to(*TARGET)
    assert torch.equal(adapter(x), v)  # a copy was moved, the original stays where it was
    assert torch.allclose(other(x), weights @ embeddings_of_words(*TARGET), atol=1e-5)
    for moved in (other, adapter.set_basis(*TARGET)):
        assert torch.equal(moved.weights(x), weights) and fingerprint(moved) == trained
    assert torch.equal(adapter(x), other(x))
    assert torch.equal(adapter.set_basis(*SOURCE)(x), v)  # there and back again


def test_the_basis_stays_fixed_while_the_llm_is_tuned():
    llm, encoding = make_llm("source", 32)
    adapter, x = bridge().set_basis(llm, encoding), some_features()
    before = adapter(x)
    nn.init.normal_(llm.embedding.weight)
    assert torch.equal(adapter(x), before)
    assert not torch.allclose(adapter.set_basis(llm, encoding)(x), before)


@pytest.mark.parametrize("coefficients", START)
def test_words_that_an_llm_lacks_are_listed_and_get_no_weight(coefficients):
    adapter, x = bridge(coefficients, [*WORDS, b" yeti"]), some_features()
    assert adapter.missing == [b" yeti"]
    assert not adapter.weights(x)[..., -1].any() and not adapter.E[-1].any()


def test_an_adapter_that_does_not_fit_an_llm_is_refused():
    with pytest.raises(Refused, match="lacks 2 of this adapter's 3 words"):
        bridge(tokens=[b" .", b" yeti", b" quark"])
    with pytest.raises(Refused, match="width 32 and cannot be used with one of width 48"):
        MLPAdapter(16, 32).set_basis(*SOURCE).set_basis(*TARGET)
    with pytest.raises(RuntimeError, match=r"set_basis\(llm, encoding\)"):
        LangBridge(16, WORDS)(some_features())


# ---- files -------------------------------------------------------------------------

@pytest.mark.parametrize("adapter", [
    MLPAdapter(16, 32), MLPAdapter(16, 32, 64), bridge("linear").whiten(torch.randn(50, 16) + 1),
    bridge("softmax", [*WORDS, b"\xff"])])
def test_a_saved_adapter_is_the_same_adapter(tmp_path, adapter):
    save_adapter(adapter, tmp_path)
    loaded, x = load_adapter(tmp_path).eval().set_basis(*SOURCE), some_features()
    assert loaded.config == adapter.config and fingerprint(loaded) == fingerprint(adapter)
    assert torch.equal(loaded(x), adapter.eval()(x))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    save_adapter(bridge(), tmp_path)
    write_json(tmp_path / "adapter.json", bridge().config | {"hidden": 25})
    with pytest.raises(Refused, match="does not go with the configuration"):
        load_adapter(tmp_path)


def test_a_fingerprint_sees_all_that_is_saved():
    adapter = bridge()
    saved, seen = [*adapter.parameters(), adapter.mean, adapter.scale], {fingerprint(adapter)}
    for tensor in saved:
        nn.init.normal_(tensor.view(-1)[-1:])
        seen.add(fingerprint(adapter))
    assert len(seen) == 1 + len(saved)
