"""A model's tokenizer and chat template: the files of a model directory to GGUF's keys and back.

Two kinds of vocabulary: ``gpt2`` (byte-level BPE: GPT-2, Llama 3, Qwen, SmolLM, ...) and ``llama`` (SentencePiece's
BPE: Llama 2, Mistral, Gemma). What a kind cannot say is refused, because a tokenizer that is almost right gives a model
texts that it was not trained on, without a message.

Source: llama.cpp, src/llama-vocab.cpp, conversion/base.py and gguf-py/gguf/vocab.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wrinklefree.artifact.files import json_bytes
from wrinklefree.artifact.gguf.bpe import read_byte_level, read_pre_tokenizer, write_byte_level
from wrinklefree.artifact.gguf.container import GgufFile
from wrinklefree.artifact.gguf.metadata import Value
from wrinklefree.artifact.gguf.sentencepiece import read_sentencepiece, write_sentencepiece
from wrinklefree.artifact.gguf.tokenizer_files import TokenizerFiles
from wrinklefree.artifact.gguf.vocabulary import (
    CONTROL,
    EOM_KEY,
    EOT_KEY,
    ROLES,
    TOKENS_KEY,
    TYPES_KEY,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    added_token,
    read_vocabulary,
)
from wrinklefree.errors import FormatError, InputError, unknown_name

MODEL_KEY = "tokenizer.ggml.model"
ADD_BOS_KEY = "tokenizer.ggml.add_bos_token"
ADD_EOS_KEY = "tokenizer.ggml.add_eos_token"
TEMPLATE_KEY = "tokenizer.chat_template"
MAX_TEMPLATE_CHARACTERS = 1 << 20
KINDS = ("gpt2", "llama")
# Texts at which llama.cpp ends a generation wherever they are control tokens, whatever the keys say.
ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
)
TURN_ENDS = ENDS[:4]


def tokenizer_from_gguf(file: GgufFile) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja where there is one.

    A text gets BOS when the file says so, or, where it says nothing, when the kind implies it. A generation ends at the
    ids that the file names and at those that llama.cpp knows by their text.

    Raises: FormatError naming the key that is damaged, contradictory, or of a kind that is not supported.
    """
    vocabulary = read_vocabulary(file)
    model = file.text(MODEL_KEY)
    if model not in KINDS:
        raise FormatError(f"{file.path}: {MODEL_KEY}: {unknown_name('kind of tokenizer', model[:80], KINDS)}")
    if model == "llama":
        vocabulary = replace(vocabulary, roles={**_implied_roles(vocabulary), **vocabulary.roles})
        parts, implied_bos = read_sentencepiece(file, vocabulary), True
    else:
        kind = read_pre_tokenizer(file, vocabulary)
        parts, implied_bos = read_byte_level(file, vocabulary, kind), kind.adds_bos
    bos, eos = (_added(file, vocabulary, *role) for role in (("bos", implied_bos), ("eos", False)))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(vocabulary, bos, eos),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bos,
        "add_eos_token": eos,
        "clean_up_tokenization_spaces": False,
        **{name: vocabulary.tokens[index] for name, index in vocabulary.roles.items()},
    }
    files = {
        # Not as json_bytes has it: with indentation a large vocabulary takes twenty times as long.
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "generation_config.json": json_bytes(_ends(file, vocabulary)),
    }
    return {**files, **_templates(file, config), "tokenizer_config.json": json_bytes(config)}


def tokenizer_to_gguf(
    files: Mapping[str, bytes], config: Mapping[str, Any], losses: list[str] | None = None
) -> dict[str, Value]:
    """Return every ``tokenizer.`` key of a model.

    ``files``: tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json,
    generation_config.json and chat_template.jinja. ``config``: the object of config.json; ids up to its
    ``vocab_size`` that have no token get one that no text contains. ``losses``: None refuses a tokenizer of which the
    keys can only say almost what it does (`sentencepiece`); a list takes it and gets what is lost added.

    Raises: InputError for a tokenizer that the keys cannot describe exactly, saying what was found and what is
    supported; FormatError when a file is damaged.
    """
    source = TokenizerFiles(files, config)
    spaces = source.model.get("byte_fallback") is True
    vocabulary, keys = write_sentencepiece(source, losses) if spaces else write_byte_level(source)
    bos, eos = source.added_around(vocabulary)
    keys = {
        MODEL_KEY: "llama" if spaces else "gpt2",
        **keys,
        TOKENS_KEY: vocabulary.tokens,
        TYPES_KEY: vocabulary.types,
        **{ROLES[name]: index for name, index in vocabulary.roles.items()},
        ADD_BOS_KEY: bos,
        ADD_EOS_KEY: eos,
    }
    keys.update(_turn_ends(source, vocabulary))
    templates = source.templates()
    if set(templates) - {"default"}:
        keys[f"{TEMPLATE_KEY}s"] = sorted(set(templates) - {"default"})
    for name, template in templates.items():
        keys[TEMPLATE_KEY if name == "default" else f"{TEMPLATE_KEY}.{name}"] = template
    return keys


def _turn_ends(source: TokenizerFiles, vocabulary: Vocabulary) -> dict[str, Value]:
    """Return the keys of further ids at which a generation ends.

    Those that llama.cpp knows by their text need none; only the end of a turn is said, because it would take any of
    them for that.

    Raises: InputError when there are more than the keys hold.
    """
    ends = source.end_ids(vocabulary)
    texts = [vocabulary.tokens[index] for index in ends]
    known = [text in ENDS and vocabulary.types[index] == CONTROL for index, text in zip(ends, texts, strict=True)]
    turn = next((index for index, text in zip(ends, texts, strict=True) if text in TURN_ENDS), None)
    others = [index for index, by_text in zip(ends, known, strict=True) if not by_text]
    others = [index for index in others if index != vocabulary.roles.get("eos_token")]
    ids = others if turn is None else [turn, *others]
    if len(ids) > 2:
        raise InputError(
            f"generation_config.json: eos_token_id: found {ends}; GGUF holds the tokenizer's own, two more, and those "
            f"called {', '.join(ENDS)}"
        )
    return dict(zip((EOT_KEY, EOM_KEY), ids, strict=False))


def _implied_roles(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids that llama.cpp takes for a ``llama`` vocabulary which does not name them."""
    special = vocabulary.ids(CONTROL, UNKNOWN)
    return {name: index for name, index in (("bos_token", 1), ("eos_token", 2), ("unk_token", 0)) if index in special}


def _added(file: GgufFile, vocabulary: Vocabulary, role: str, implied: bool) -> bool:
    """Return whether a text gets this token; only a token that exists can be added."""
    key = {"bos": ADD_BOS_KEY, "eos": ADD_EOS_KEY}[role]
    wanted = file.flag(key, implied)
    if wanted and f"{role}_token" not in vocabulary.roles:
        if key in file.metadata:
            raise FormatError(f"{file.path}: {key}: true, but the file names no such token")
        return False
    return wanted


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    special = set(vocabulary.ids(CONTROL, UNKNOWN))
    ids = vocabulary.ids(CONTROL, UNKNOWN, USER_DEFINED)
    return [added_token(index, vocabulary.tokens[index], index in special) for index in ids]


def _post_processor(vocabulary: Vocabulary, bos: bool, eos: bool) -> dict[str, Any] | None:
    """Return what puts BOS before a text and EOS behind it in programs that go by tokenizer.json alone."""
    if not bos and not eos:
        return None
    around = [("bos_token", bos), ("eos_token", eos)]
    tokens = [vocabulary.tokens[vocabulary.roles[name]] if used else None for name, used in around]

    def wrapped(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, behind = (
            [] if text is None else [{"SpecialToken": {"id": text, "type_id": type_id}}] for text in tokens
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *behind]

    return {
        "type": "TemplateProcessing",
        "single": wrapped("A", 0),
        "pair": [*wrapped("A", 0), *wrapped("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.tokens.index(text)], "tokens": [text]} for text in tokens if text
        },
    }


def _ends(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return generation_config.json: with every token at which the file's own program stops."""
    roles, most = vocabulary.roles, len(vocabulary.tokens) - 1
    control = {vocabulary.tokens[index]: index for index in vocabulary.ids(CONTROL)}
    ends = [roles["eos_token"]] if "eos_token" in roles else []
    ends += [file.size(key, most) for key in (EOT_KEY, EOM_KEY) if key in file.metadata]
    ends += [control[text] for text in ENDS if text in control]
    found: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))} if ends else {}
    for role in ("bos", "pad"):
        if f"{role}_token" in roles:
            found[f"{role}_token_id"] = roles[f"{role}_token"]
    return found


def _templates(file: GgufFile, config: dict[str, Any]) -> dict[str, bytes]:
    """Return chat_template.jinja; several named templates go into ``config`` as Hugging Face writes them."""
    named = {}
    for key in file.metadata:
        if key == TEMPLATE_KEY or key.startswith(f"{TEMPLATE_KEY}."):
            text = file.text(key)
            if len(text) > MAX_TEMPLATE_CHARACTERS:
                raise FormatError(
                    f"{file.path}: {key}: found {len(text)} characters, allowed are {MAX_TEMPLATE_CHARACTERS}"
                )
            named[key[len(TEMPLATE_KEY) + 1 :] or "default"] = text
    if set(named) <= {"default"}:
        return {"chat_template.jinja": named["default"].encode()} if named else {}
    config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    return {}
