"""Files of conversations about pictures, in the format of LLaVA's data sets.

    [{"id": "1", "image": "animals/fox.png", "conversations": [
        {"from": "human", "value": "<image>\\nwhat is this?"},
        {"from": "gpt", "value": "a red fox."}, ..]}, ..]

A file is a JSON list of such entries, or JSON lines, one entry each. An entry without an image is
text to be read. Files of captions in COCO's format are read, too:

    {"images": [{"id": 7, "file_name": "7.jpg"}, ..],
     "annotations": [{"image_id": 7, "caption": "A fox in the snow."}, ..]}

Nothing of a file is trusted: an entry that cannot be used is left out and counted.
"""
import functools
import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.bpe import BOS
from data.files import Refused

REQUEST = "describe the picture."  # where an entry asks nothing
LONGEST_QUESTION, LONGEST_ANSWER = 400, 2000  # in bytes: with a picture, they fit into a context
BAD_SHARE = 0.05  # more bad entries are refused, unless --allow-bad


class Entry(NamedTuple):
    name: str  # its id, or where it is in the file
    image: str | None  # a file name
    context: str  # what comes before the first question of an entry without an image
    turns: list  # [(question, answer), ..]


class BadEntry(Exception):
    """Why an entry cannot be used."""


class Problems:
    """What was left out, and why."""

    def __init__(self, path):
        self.path, self.names, self.total = path, {}, 0

    def add(self, why, name):
        self.names.setdefault(why, []).append(name)

    def __len__(self):
        return sum(map(len, self.names.values()))

    def lines(self):
        """'missing picture: 3 (a.png, b.png, c.png)' for each kind"""
        return [f"{why}: {len(names)} ({', '.join(names[:3])}{', ..' if len(names) > 3 else ''})"
                for why, names in self.names.items()]

    def judge(self, allow_bad):
        """Say what was left out. Raises Refused if it was too much."""
        if len(self) > BAD_SHARE * self.total and not allow_bad:
            raise Refused(f"{str(self.path)!r}: {len(self)} of {self.total} entries cannot be used "
                          f"({'; '.join(self.lines())}); mend them, or train on the rest with "
                          "--allow-bad")
        if len(self) and multiprocessing.parent_process() is None:  # lanes do not repeat it
            print(f"{self.path}: {len(self)} of {self.total} entries are left out: "
                  f"{'; '.join(self.lines())}", flush=True)


# ---- reading -------------------------------------------------------------------------------------

def read_conversations(path):
    """The entries of a file that can be used, and Problems. Raises Refused for a file that holds
    none."""
    problems, entries = Problems(path), []
    for name, item in read_items(Path(path)):
        problems.total += 1
        if isinstance(item, dict) and "id" in item:
            name = str(item["id"])
        try:
            entries.append(read_entry(name, item))
        except BadEntry as bad:
            problems.add(str(bad), short(name))
    if not entries:
        why = "; ".join(problems.lines()) or "it is empty"
        raise Refused(f"{str(path)!r} holds no conversation that can be used ({why}); expected a "
                      'list of {"id", "image", "conversations": [{"from": "human", "value": ..}, '
                      '{"from": "gpt", "value": ..}]}')
    return entries, problems


def short(name):
    return name if len(name) < 40 else f"{name[:37]}..."


def read_items(path):
    """What a file lists: [(name, item), ..]; the item is None for a line that is no JSON."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")  # marks what is no UTF-8
    except OSError as error:
        raise Refused(f"cannot read {str(path)!r}: {error.strerror}; expected a file of "
                      "conversations") from error
    text = text.removeprefix("\ufeff")
    whole = parse(text)
    lines = text.splitlines()
    if whole is None and text.lstrip()[:1] == "{" and len(lines) > 1:
        items = [(f"line {i}", parse(line)) for i, line in enumerate(lines, 1) if line.strip()]
    elif whole is None:
        raise Refused(f"cannot read {str(path)!r} as JSON ({where_broken(text)}); is it whole?")
    elif isinstance(whole, dict) and {"images", "annotations"} <= set(whole):
        items = read_coco(path, whole)
    else:
        items = [(f"entry {i}", item)
                 for i, item in enumerate(whole if isinstance(whole, list) else [whole])]
    return items


def parse(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def where_broken(text):
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)


def read_coco(path, whole):
    """Captions as conversations: an entry for each picture, with its first caption."""
    try:
        captions = {}
        for annotation in whole["annotations"]:
            captions.setdefault(annotation["image_id"], annotation["caption"])
        return [(str(image["file_name"]),
                 {"image": image["file_name"],
                  "conversations": [{"from": "human", "value": REQUEST},
                                    {"from": "gpt", "value": captions.get(image["id"], "")}]})
                for image in whole["images"]]
    except (TypeError, KeyError) as error:
        raise Refused(f"cannot read {str(path)!r} as captions in COCO's format: {error!r}")


def read_entry(name, item):
    """An Entry. Raises BadEntry."""
    if item is None:
        raise BadEntry("no JSON")
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise BadEntry("no list of conversations")
    image = item.get("image")
    if image is not None and (not isinstance(image, str) or not image or "\0" in image):
        raise BadEntry("the image is no file name")
    said = [read_message(message, k) for k, message in enumerate(item["conversations"])]
    if not said or len(said) % 2:
        raise BadEntry("a question without an answer")
    context, turns = "", []
    for question, answer in zip(said[::2], said[1::2]):
        if image is None and not turns:
            context, _, question = question.strip("\n").rpartition("\n")
        turns.append(read_turn(question.replace("<image>", " "), answer))
    return Entry(name, image, f"{context}\n" if context else "", turns)


def read_message(message, k):
    """The text of message k of a conversation, in lower case, as all texts here are: a small LLM
    has no capital letters to spare. Raises BadEntry."""
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise BadEntry("a message without a text")
    role, expected = message.get("from"), ("human", "gpt")[k % 2]
    if role not in ("human", "gpt"):
        raise BadEntry(f"the role {short(repr(role))}, not human or gpt")
    if role != expected:
        raise BadEntry("human and gpt do not take turns")
    text = message["value"].replace(BOS, "")
    if re.search("[\ufffd\ud800-\udfff]", text):  # what could not be decoded, or encoded again
        raise BadEntry("bytes that are no UTF-8")
    return text.lower()


def read_turn(question, answer):
    """(question, answer), each in one line. Raises BadEntry."""
    question, answer = " ".join(question.split()) or REQUEST, " ".join(answer.split())
    if not answer:
        raise BadEntry("an empty answer")
    if len(question.encode()) > LONGEST_QUESTION or len(answer.encode()) > LONGEST_ANSWER:
        raise BadEntry("a text too long for the context")
    return question, answer


@functools.cache
def read_passages(paths):
    """Texts of one's own, in passages of at most 80 words; paragraphs are kept apart."""
    passages = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"cannot read {path!r} as a text in UTF-8: {error}") from error
        for paragraph in re.split(r"\n\s*\n", text.replace(BOS, "").lower()):
            words = paragraph.split()
            passages += [" ".join(words[k:k + 80]) for k in range(0, len(words), 80)]
    if paths and len(passages) < 2:
        raise Refused(f"--corpus {' '.join(paths)}: expected two passages at least, one for each "
                      "LLM; an empty line ends a passage")
    return passages


# ---- what is in a text ---------------------------------------------------------------------------

STOP_WORDS = set(
    "a an and are as at be by can for from has have in into is it its not of on or our that the "
    "their them there these they this to was were which who with you your".split())


def content_words(text):
    """The words of a text that say what is in a picture.

    >>> content_words("there is a red fox at the top.")
    ['red', 'fox', 'top']
    """
    return [word for word in re.findall(r"[^\W_]+", text) if word not in STOP_WORDS]


def normal(text):
    """An answer as it is compared: without case, punctuation and articles, as SQuAD does it
    (Rajpurkar et al. 2016, arXiv 1606.05250). -> [word, ..]"""
    words = re.findall(r"[^\W_]+", text.lower())
    return [word for word in words if word not in ("a", "an", "the")]


def token_f1(said, true):
    """The words that two answers share: 2 |said & true| / (|said| + |true|)"""
    said, true = normal(said), normal(true)
    if not said or not true:
        return float(said == true)
    return 2 * (Counter(said) & Counter(true)).total() / (len(said) + len(true))
