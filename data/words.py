"""Words of any script: how texts are cut into them, how answers are compared, how one asks."""
import functools
import re
from collections import defaultdict
from difflib import get_close_matches
from unicodedata import category, normalize

# A letter (\p{L}), then letters, marks (\p{M}) and invisible joiners: accents are marks, if they
# are not a part of their letter, and so are the vowel signs of many scripts.
WORD = r"[\p{L}][\p{L}\p{M}\u200c\u200d]*"
NUMBER, SIGN = r"[\p{N}]", r"[^\s\p{L}\p{N}]"
STOP_WORDS = set(
    "a an and are as at be by can for from has have in into is it its not of on or our that the "
    "their them there these they this to was were which who with you your".split())
AROUND = ".,;:!?\"'`" "。、．，；：！？" "،؛؟।¡¿"  # a word; so do brackets and quotes


def cut(texts, pattern):
    """The chunks of some texts, by a pattern of tiktoken's. (Python's `re` does not know Unicode's
    classes: [\\p{N}] becomes [0..], with all the digits that the texts have.)"""
    texts, members = [*texts], defaultdict(str, L="a", M="\u0300", N="0")  # no class may be empty
    for char in {*"".join(texts)}:
        members[category(char)[0]] += char
    chunk = re.compile(re.sub(r"\\p{(.)}", lambda match: members[match[1]], pattern))
    return [found for text in texts for found in chunk.findall(text)]


def words_in(text):
    """The words and the numbers of a text, in their order."""
    return cut([text], f"{WORD}|{NUMBER}+")


def readable(tokens):
    """The tokens that are a word of three letters or more: no bytes, punctuation, word endings.

    >>> readable([b" red", b"ed", b" a", b" .", b"\\xff"])
    ['red']
    """
    lines = "\n".join(token.decode("utf-8", "replace") for token in tokens)
    return [word[1:] for word in cut([lines], f"(?m)^ {WORD}$") if len(word) > 3]


def plain(text):
    """A text in lower case, each letter one sign with its accents, one space between words."""
    return " ".join(normalize("NFC", text.lower()).split())


# ---- answers ------------------------------------------------------------------------------------

def trim(text):
    """A text without what is AROUND it; if there is nothing else, that counts.

    >>> trim("(red!)"), trim("?"), trim("c++"), trim("'.5'")
    ('red', '?', 'c++', '.5')
    """
    around = re.escape("".join(c for c in {*text} if c in AROUND or category(c) in "Ps Pe Pi Pf"))
    return re.sub(rf"^(?:(?![.,]\d)[\s{around}])+|[\s{around}]+$", "", text) or text


def words_of(text):
    """The words of a text, without case, what is around them, and articles before another word: so
    answers are compared. All other signs count.

    >>> words_of('The "Red" fox!'), words_of("15%"), words_of("a")
    (['red', 'fox'], ['15%'], ['a'])
    """
    words = trim(text.lower()).split()
    kept = [word for word, after in zip(words, words[1:])
            if word not in ("a", "an", "the") or not words_in(after)]
    return [trim(word) for word in kept + words[-1:]]


def content_of(text):
    """The words that say something; if there are none, all."""
    words = words_of(text)
    return [word for word in words if word not in STOP_WORDS] or words


@functools.cache
def says_something(word):
    """Whether a word, or a piece of one, is neither a stop word nor a sign."""
    return word not in STOP_WORDS and bool(words_in(word))


# ---- questions ----------------------------------------------------------------------------------

POLITE = r",? *\b(please|thanks|thank you|(can you |could you )?tell me)\b[,.!:]?"
SYNONYMS = {"thing": "object", "things": "objects", "something": "anything", "an": "a"}


def as_asked(text, habits):
    """A user's question as an LLM has read questions (its habits: see evaluate.py): without polite
    words, and a word that it never read becomes one that it did, if one means the same or looks
    alike. An empty question is the request for a description. (Of a real LLM nobody knows the
    words: its questions keep theirs.)

        'Please, is there  a star ?', 'is there a staar'  ->  'is there a star?'
    """
    read = habits["words"]

    def known(match):
        word = match[0]
        if word not in read and SYNONYMS.get(word) in read:
            return SYNONYMS[word]
        alike = [other for other in read if other[0] == word[0]]
        return (get_close_matches(word, alike, n=1, cutoff=0.82) or [word])[0]

    request, example, marks = habits["request"], habits["examples"][0], " ?？؟"
    question = re.sub(r"\b(what|where|who|how|it|that|there)'s\b", r"\1 is", plain(text))
    if read and "please" not in read:
        question = plain(re.sub(POLITE, "", question))
    question = re.sub(r"[^\s.,;:!?？؟]+", known, question or request)
    stem, end = question.rstrip(marks), example[len(example.rstrip(marks)):]
    if not stem or category(stem[-1])[0] == "P":
        return question
    if stem in (request.rstrip(marks), request[:-1]):
        return request
    return stem + (end or question[len(stem):])
