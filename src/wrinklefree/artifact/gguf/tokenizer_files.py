"""The tokenizer's files of a Hugging Face directory as bytes, checked as far as GGUF's keys are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from wrinklefree.artifact.gguf.pre_tokenizers import sequence
from wrinklefree.artifact.gguf.vocabulary import (
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    ROLES,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    check_distinct,
    check_texts,
    padding,
)
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.errors import FormatError, InputError

# Where an added token is found in a text, as tokenizer.json says it.
_UNSAID = ("single_word", "lstrip", "rstrip")


class TokenizerFiles:
    """What tokenizer.json and the files beside it say. Raises: FormatError when they are damaged or missing."""

    def __init__(self, files: Mapping[str, bytes], config: Mapping[str, Any]) -> None:
        self._files = files
        self._config = config
        self.place = "tokenizer.json"
        if self.place not in files:
            raise InputError(
                "tokenizer.json: the model has none; a GGUF file holds its tokenizer, so it cannot be written without"
            )
        self.tokenizer = self._object(self.place)
        self.settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            self.settings.update(self._object(name))

    @property
    def model(self) -> Mapping[str, Any]:
        """The merging model. Raises: InputError when it is not BPE."""
        model = self.tokenizer.get("model")
        if not isinstance(model, dict):
            raise FormatError(f"{self.place}: model: found no object")
        if model.get("type", "BPE") != "BPE":
            raise InputError(f"{self.place}: model: found {str(model['type'])[:40]!r}, only BPE can be written to GGUF")
        return model

    @cached_property
    def model_vocab(self) -> Mapping[str, int]:
        """The text and id of every token but the added ones."""
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_TOKENS:
            raise FormatError(f"{self.place}: model: vocab: an object of 1 to {MAX_TOKENS} tokens is needed")
        check_texts(vocab, f"{self.place}: model: vocab")
        for text, index in vocab.items():
            _check_id(index, f"{self.place}: model: vocab: {text[:40]!r}")
        return vocab

    def vocabulary(self) -> Vocabulary:
        """Return the token of every id below config.json's ``vocab_size``.

        Raises: InputError when a token lies beyond it, or takes off spaces around it, which GGUF has no word for;
        FormatError when two tokens share an id, or one has two.
        """
        size = self._config.get("vocab_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_TOKENS:
            raise FormatError(f"config.json: vocab_size: found {size!r}, 1 to {MAX_TOKENS} is needed")
        texts: dict[int, str] = {}
        kinds: dict[int, int] = {}
        for text, index in self.model_vocab.items():
            self._place_token(texts, index, text, size)
            kinds[index] = NORMAL if text else UNUSED
        for added in self._added():
            self._place_token(texts, added["id"], added["content"], size)
            kinds[added["id"]] = CONTROL if added.get("special") is True else USER_DEFINED
        tokens = [texts.get(index) or padding(index) for index in range(size)]
        check_distinct(tokens, self.place)
        types = np.array([kinds.get(index, UNUSED) for index in range(size)], np.int32)
        return Vocabulary(self.place, tokens, types, self._roles({text: index for index, text in texts.items()}))

    def added_around(self, vocabulary: Vocabulary) -> tuple[bool, bool]:
        """Return whether a text gets BOS before it and EOS behind it.

        As ``add_bos_token`` and ``add_eos_token`` say, else as the post-processor does.

        Raises: InputError when the post-processor adds anything else.
        """
        found = []
        for (name, role), given in zip(
            (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")), self._around(vocabulary), strict=True
        ):
            declared = self.settings.get(name)
            found.append((declared if isinstance(declared, bool) else given) and role in vocabulary.roles)
        return found[0], found[1]

    def end_ids(self, vocabulary: Vocabulary) -> list[int]:
        """Return the ids that end a generation: generation_config.json's, config.json's, the tokenizer's own."""
        ids: list[int] = []
        for place, settings in (
            ("generation_config.json", self._object("generation_config.json")),
            ("config.json", self._config),
        ):
            value = settings.get("eos_token_id")
            for index in value if isinstance(value, list) else [] if value is None else [value]:
                _check_id(index, f"{place}: eos_token_id", len(vocabulary.tokens))
                ids.append(index)
        own = vocabulary.roles.get("eos_token")
        return list(dict.fromkeys(ids if own is None else [own, *ids]))

    def templates(self) -> dict[str, str]:
        """Return the chat templates under their names, ``default`` for the one that is used unasked."""
        if "chat_template.jinja" in self._files:
            return {"default": _text(self._files["chat_template.jinja"], "chat_template.jinja")}
        source = self.settings.get("chat_template")
        if isinstance(source, list):
            entries = [(entry.get("name"), entry.get("template")) for entry in source if isinstance(entry, dict)]
            return {name: text for name, text in entries if isinstance(name, str) and isinstance(text, str)}
        return {"default": source} if isinstance(source, str) else {}

    def _added(self) -> list[dict[str, Any]]:
        listed = self.tokenizer.get("added_tokens") or []
        if not isinstance(listed, list) or len(listed) > MAX_TOKENS:
            raise FormatError(f"{self.place}: added_tokens: a list is needed")
        for number, entry in enumerate(listed):
            place = f"{self.place}: added_tokens: entry {number}"
            if not isinstance(entry, dict):
                raise FormatError(f"{place}: found {type(entry).__name__}, an object is needed")
            check_texts([entry.get("content")], place)
            _check_id(entry.get("id"), place)
            wrong = [flag for flag in _UNSAID if entry.get(flag)]
            if wrong:
                raise InputError(
                    f"{place}: {entry['content']!r} has {wrong[0]}, which GGUF has no word for; the token would be "
                    "found in other places"
                )
        return listed

    def _place_token(self, texts: dict[int, str], index: int, text: str, size: int) -> None:
        if index >= size:
            raise InputError(
                f"{self.place}: {text[:40]!r} has the id {index}, the model has {size} (vocab_size of config.json); "
                "take the token out, or resize the model's embedding"
            )
        if texts.setdefault(index, text) != text:
            raise FormatError(f"{self.place}: {texts[index][:40]!r} and {text[:40]!r} both have the id {index}")

    def _roles(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Return the ids of BOS, EOS and so on: tokenizer_config.json's, else config.json's."""
        roles: dict[str, int] = {}
        for name in ROLES:
            value = self.settings.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                if text not in ids:
                    raise InputError(f"tokenizer_config.json: {name}: {text[:40]!r} is no token of tokenizer.json")
                roles[name] = ids[text]
        for name in ("bos_token", "eos_token", "pad_token"):
            found = self._config.get(f"{name}_id")
            for index in (found if isinstance(found, list) else [found])[:1]:
                if name not in roles and index is not None:
                    _check_id(index, f"config.json: {name}_id")
                    if index in ids.values():
                        roles[name] = index
        return roles

    def _around(self, vocabulary: Vocabulary) -> tuple[bool, bool]:
        """Return whether the post-processor puts BOS before a text and EOS behind it."""
        before: list[object] = []
        behind: list[object] = []
        place = f"{self.place}: post_processor"
        for step in sequence(self.tokenizer.get("post_processor"), "processors", self.place, "post_processor"):
            if step["type"] == "ByteLevel":  # moves offsets only
                continue
            single = step.get("single")
            if step["type"] != "TemplateProcessing" or not isinstance(single, list):
                raise InputError(
                    f"{place}: found {str(step['type'])[:40]!r}, TemplateProcessing and ByteLevel are supported"
                )
            side = before
            for piece in single:
                if isinstance(piece, dict) and "Sequence" in piece:
                    side = behind
                    continue
                special = piece.get("SpecialToken") if isinstance(piece, dict) else None
                side.append(special.get("id") if isinstance(special, dict) else None)
        roles = {name: vocabulary.tokens[index] for name, index in vocabulary.roles.items()}
        if before not in ([], [roles.get("bos_token")]) or behind not in ([], [roles.get("eos_token")]):
            raise InputError(
                f"{place}: adds {before} before a text and {behind} behind it; GGUF can say bos_token before and "
                "eos_token behind"
            )
        return bool(before), bool(behind)

    def _object(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a file, {} when there is none."""
        if name not in self._files:
            return {}
        return parse_json(self._files[name], name)


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: found bytes that are not UTF-8 at offset {error.start}") from error


def _check_id(index: object, place: str, size: int = 1 << 31) -> None:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < size:
        raise FormatError(f"{place}: found the id {index!r}, 0 to {size - 1} are allowed")
