"""Toy tokenizers built in memory: byte-level BPE over all 256 bytes, with or without a BOS post-processor."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


def byte_level(specials: tuple[str, ...] = ("<s>", "</s>")) -> Tokenizer:
    """Return a tokenizer of one token per byte (ids 0-255) plus special tokens from 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
    return tokenizer


def write(
    directory: Path,
    *,
    template: str | None = WITH_BOS,
    post_processor_bos: bool = False,
    template_file: bool = True,
    **config: object,
) -> Path:
    """Write a tokenizer's files into ``directory`` and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level()
    if post_processor_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, object] = {"bos_token": "<s>", "eos_token": "</s>", **config}
    if template is not None and template_file:
        (directory / "chat_template.jinja").write_text(template)
    elif template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
