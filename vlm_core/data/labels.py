"""Token ids of a conversation and which of them are supervised, from its construction and never from a search.

The chat template is rendered once with a marker in place of every text, which gives the template's own pieces; the
texts are put between them again. Special tokens are then taken from the template's pieces alone, so that a text
cannot inject one, and an answer begins a piece of its own, so that the prompt's ids in training are those of
generation. For the Gemma template and the answer `Mass.`:

    <bos><start_of_turn>user\\n ... What is it?<end_of_turn>\\n<start_of_turn>model\\n | Mass.<end_of_turn> | \\n
    not supervised                                                                  | supervised         | not
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice
from typing import Any

from vlm_core.data.grids import Grid, grids_of
from vlm_core.data.markers import MARKER, MARKER_PATTERN
from vlm_core.families import Family


@dataclass(frozen=True)
class TokenizedConversation:
    """Ids of a conversation; `supervised[i]` says whether token i is a training target. Equal lengths."""

    input_ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class _Piece:
    text: str  # plain: no special token is recognised in it
    supervised: bool
    specials: tuple[str, ...] = ()  # a run of special tokens of the template, in place of a text


def tokenize_conversation(
    conversation: list[dict[str, Any]], processor: Any, family: Family, grids: Sequence[Grid] | None = None
) -> TokenizedConversation:
    """Returns the ids of a whole conversation; every assistant turn and its end-of-turn token are supervised.

    Of images, only their places are read, and where their number of tokens follows their size `grids`: those of its
    images, by default taken from the Pillow images that it holds.
    Raises ValueError where the template does not close an answer with the family's end-of-turn token.
    """
    pieces = list(_pieces(conversation, processor, family, grids, for_generation=False))
    return _encode(pieces, processor.tokenizer)


def tokenize_prompt(
    conversation: list[dict[str, Any]], processor: Any, family: Family, grids: Sequence[Grid] | None = None
) -> list[int]:
    """Returns the ids of a conversation that ends with a user turn, up to where the answer begins."""
    return _encode(
        list(_pieces(conversation, processor, family, grids, for_generation=True)), processor.tokenizer
    ).input_ids


def image_token_id(processor: Any, family: Family) -> int:
    """Returns the id that image features take the place of."""
    return processor.tokenizer.convert_tokens_to_ids(family.image_token)


def images_of(conversation: list[dict[str, Any]]) -> list[Any]:
    """Returns what the image parts of a conversation hold, in their order."""
    return [part["image"] for turn in conversation for part in turn["content"] if part["type"] == "image"]


def image_grids(conversation: list[dict[str, Any]], processor: Any, family: Family) -> list[Grid]:
    """Returns the grids of the Pillow images of a conversation, where their number of tokens follows their size."""
    if not family.patches_a_token:
        return []
    return grids_of([image.size for image in images_of(conversation)], processor.image_processor, family)


def require_template(processor: Any, family: Family) -> None:
    """Raises ValueError where the ids made here are not those that the processor itself makes.

    A tokenizer or template of another form than the family's would otherwise train on prompts that no one sends.
    """
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "What is shown?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A mass."}]},
    ]
    expected = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"][0]
    ids = tokenize_conversation(conversation, processor, family).input_ids
    if ids != list(expected):
        raise ValueError(
            f"the processor of this {family.model_type} model tokenizes its template otherwise than expected: "
            f"{list(expected)} and not {ids}; use the processor files of the published checkpoint"
        )


def _pieces(
    conversation: list[dict[str, Any]],
    processor: Any,
    family: Family,
    grids: Sequence[Grid] | None,
    *,
    for_generation: bool,
) -> Iterator[_Piece]:
    parts = [(turn["role"], part) for turn in conversation for part in turn["content"]]
    texts = [(role, part["text"]) for role, part in parts if part["type"] == "text"]
    if any(MARKER_PATTERN.search(text) for _, text in texts):
        raise ValueError("a text holds the characters U+E000 and U+E001, which are reserved for internal use")
    structure = tuple((turn["role"], tuple(part["type"] for part in turn["content"])) for turn in conversation)
    template, trimmed = _render(processor, structure, for_generation)
    counts = iter(image_grids(conversation, processor, family) if grids is None else grids)
    supervised = False
    for number, fragment in enumerate(MARKER_PATTERN.split(template)):
        if number % 2:
            role, text = texts[int(fragment)]
            supervised = role == "assistant"
            yield _Piece(text.strip() if trimmed[int(fragment)] else text, supervised)
        else:
            expanded = _expand_images(fragment, processor, family, counts)
            yield from _template_pieces(expanded, processor.tokenizer, family.end_of_turn if supervised else None)
            supervised = False


# Of each turn, its role and the types of its parts: all that a rendered template depends on besides the texts.
Structure = tuple[tuple[str, tuple[str, ...]], ...]


@lru_cache(maxsize=256)
def _render(processor: Any, structure: Structure, for_generation: bool) -> tuple[str, list[bool]]:
    """Returns the rendered template with markers in place of the texts, and of each text whether it is trimmed."""
    count = sum(types.count("text") for _, types in structure)
    markers = [MARKER.format(i) for i in range(count)]
    padded = [f" {marker} " for marker in markers]
    template, rendered = (_apply(processor, structure, iter(texts), for_generation) for texts in (markers, padded))
    return template, [text not in rendered for text in padded]


def _apply(processor: Any, structure: Structure, texts: Iterator[str], for_generation: bool) -> str:
    conversation = [
        {
            "role": role,
            "content": [{"type": kind, "text": next(texts)} if kind == "text" else {"type": kind} for kind in types],
        }
        for role, types in structure
    ]
    return processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=for_generation)


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Returns a pattern of every special token: the named ones, and those that are special in the vocabulary alone."""
    # Of two that match at a place, the longer is meant. The published Gemma tokenizers name no turn markers.
    marked = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    tokens: list[str] = sorted({*marked, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in tokens))


def _expand_images(fragment: str, processor: Any, family: Family, grids: Iterator[Grid]) -> str:
    placeholder = getattr(processor, family.image_placeholder)
    if family.image_expansion is not None:
        return fragment.replace(placeholder, getattr(processor, family.image_expansion))
    pieces = fragment.split(placeholder)
    expansions = [family.image_token * (down * across) for down, across in islice(grids, len(pieces) - 1)]
    return "".join(chain.from_iterable(zip(pieces, [*expansions, ""], strict=True)))


@lru_cache(maxsize=4096)  # an image of 256 tokens is taken apart once, and not for every question
def _template_pieces(fragment: str, tokenizer: Any, end_of_turn: str | None) -> tuple[_Piece, ...]:
    """Returns a template fragment as special tokens and plain text; `end_of_turn` is set behind an answer."""
    pieces, special = [], _special_tokens(tokenizer)
    if end_of_turn is not None:
        if not fragment.startswith(end_of_turn):
            raise ValueError(f"the chat template must close an answer with {end_of_turn!r}, found {fragment[:40]!r}")
        pieces.append(_Piece("", supervised=True, specials=(end_of_turn,)))
        fragment = fragment[len(end_of_turn) :]
    for is_special, matches in groupby(_split(fragment, special), key=lambda part: part[1]):
        parts = [text for text, _ in matches]
        pieces.append(_Piece("", False, tuple(parts)) if is_special else _Piece("".join(parts), False))
    return tuple(pieces)


def _split(fragment: str, special: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is a special token), without empty texts."""
    position = 0
    for match in special.finditer(fragment):
        if match.start() > position:
            yield fragment[position : match.start()], False
        yield match.group(), True
        position = match.end()
    if position < len(fragment):
        yield fragment[position:], False


def _encode(pieces: list[_Piece], tokenizer: Any) -> TokenizedConversation:
    ids: list[int] = []
    supervised: list[bool] = []
    # Plain neighbours are one text to the tokenizer, as they are when it sees the rendered string.
    for (is_special, is_target), group in groupby(pieces, key=lambda piece: (bool(piece.specials), piece.supervised)):
        if is_special:
            new = [i for piece in group for i in _special_ids(tokenizer, piece.specials)]
        else:
            new = _plain_ids(tokenizer, "".join(piece.text for piece in group))
        ids += new
        supervised += [is_target] * len(new)
    return TokenizedConversation(ids, supervised)


@lru_cache(maxsize=4096)
def _special_ids(tokenizer: Any, specials: tuple[str, ...]) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(specials))


@lru_cache(maxsize=4096)  # the template's own words, and questions that many images are asked
def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
