"""A Hugging Face directory's tensors and what its config.json says of their layout; ternary layers in every form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.huggingface.bitnet_layout import ROWS_PER_BYTE, Scheme, step_of, ternarize_online, unpack_rows
from wrinklefree.artifact.huggingface.floats import FLOAT_TYPES
from wrinklefree.artifact.huggingface.mlx_layout import MlxFormat
from wrinklefree.artifact.huggingface.shards import ShardedTensors
from wrinklefree.artifact.parts import Stored
from wrinklefree.artifact.ternary_values import exact_ternary
from wrinklefree.errors import FormatError

_KINDS = ("weight", "weight_scale", "bias", "scales", "biases")
# What old checkpoints store beside their weights; it follows from config.json.
_DERIVED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class HfLayer:
    """A ternary layer as it stands: its scales ``[1]``, ``[O]`` or ``[O, G]``, how to get its codes int8 ``[O, I]``.

    ``bias_factor``: what the stored bias is multiplied by.
    """

    shape: tuple[int, int]
    scales: NDArray[np.float32]
    codes: Callable[[], NDArray[np.int8]]
    stored: Stored
    bias_factor: NDArray[np.float32] | None = None


@dataclass
class HfSource:
    """The tensors of a directory; which of them were asked for is kept, so that none is left out in silence."""

    place: str
    tensors: ShardedTensors
    scheme: Scheme | None = None
    mlx: MlxFormat | None = None
    used: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, raw: Mapping[str, Any], tensors: ShardedTensors, place: str) -> HfSource:
        """Return the source with the layout that config.json (``raw``) tells; plain floats where it tells none."""
        key = "quantization" if "quantization" in raw else "quantization_config"
        settings = raw.get(key)
        if settings is None:
            return cls(place, tensors)
        inner = f"{place}: {key}"
        if not isinstance(settings, dict):
            raise FormatError(f"{inner}: found a JSON {type(settings).__name__}, an object is needed")
        if key == "quantization" or "quant_method" not in settings:
            return cls(place, tensors, mlx=MlxFormat.of(settings, inner))
        if settings["quant_method"] != "bitnet":
            raise FormatError(f"{inner}: quant_method: found {settings['quant_method']!r:.80}, only bitnet is ternary")
        return cls(place, tensors, Scheme.of(settings, inner))

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return a float tensor of this shape as float32. Raises: FormatError when it is anything else."""
        self.used.add(name)
        return self.tensors.floats(name, shape)

    def stored(self, owner: str) -> Stored:
        """Return how a part stands here."""
        found = [info for kind in _KINDS if (info := self.tensors.info(f"{owner}.{kind}")) is not None]
        return Stored(found[0].dtype, sum(info.num_bytes for info in found)) if found else Stored()

    def is_tied(self, said: object) -> bool:
        """Return whether embedding and head are one table; where config.json does not say, the tensors decide.

        Raises: FormatError when it says so and there is another head.
        """
        has_head = "lm_head.weight" in self.tensors.names
        if said is None or (said and not has_head):
            return not has_head
        if not said:
            return False
        for kind in ("weight", "scales", "biases"):
            names = [f"{table}.{kind}" for table in ("lm_head", "model.embed_tokens")]
            if not any(name in self.tensors.names for name in names):
                continue
            head, embedding = (self.tensors.array(name) for name in names)
            if not np.array_equal(head, embedding):
                raise FormatError(f"{self.place}: tie_word_embeddings is true, but lm_head is not the embedding")
            self.used.add(names[0])
        return True

    def layer(self, name: str, rows: int, columns: int) -> HfLayer:
        """Return a ternary layer, in whichever form it stands. Raises: FormatError when it is none of these sizes."""
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        info = self.tensors.info(weight)
        if info is None:
            raise FormatError(f"{self.tensors.directory}: the tensor {weight} is missing")
        self.used |= {weight, scale} & self.tensors.names
        packed = info.dtype == "U8"
        if not packed and scale not in self.tensors.names:
            return self._float_layer(name, (rows, columns))
        if self.scheme is None:
            raise FormatError(f"{self.place}: quantization_config is missing, but {weight} is packed or has a scale")
        shape = (rows // ROWS_PER_BYTE, columns) if packed and rows % ROWS_PER_BYTE == 0 else (rows, columns)
        if info.shape != shape or not (packed or info.dtype in FLOAT_TYPES):
            raise FormatError(
                f"{self.tensors.place(weight)}: found {info.dtype} {list(info.shape)}, a ternary matrix {rows} x "
                f"{columns} is U8 {[rows // ROWS_PER_BYTE, columns]} or floats {[rows, columns]}"
            )
        step = self._step(scale, rows, self.scheme.divide)
        read = self._packed_codes if packed else self._float_codes
        factor = None if self.scheme.divide else step
        return HfLayer((rows, columns), step, lambda: read(weight), self.stored(name), factor)

    def values(self, name: str, shape: tuple[int, int], rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return rows of a matrix that stands as floats, or in MLX's bits, as float32."""
        weight = f"{name}.weight"
        info = self.tensors.info(weight)
        self.used.add(weight)
        if info is None or info.dtype != "U32" or self.mlx is None:
            return self.tensors.floats(weight, shape, rows)
        beside = [f"{name}.scales", f"{name}.biases"]
        self.used.update(beside)
        try:
            words, groups = self.mlx.shapes(*shape)
        except FormatError as error:
            raise FormatError(f"{self.tensors.place(weight)}: {error}") from error
        if info.shape != words:
            raise FormatError(f"{self.tensors.place(weight)}: found shape {list(info.shape)}, {list(words)} is needed")
        scales, biases = (self.tensors.floats(tensor, groups, rows) for tensor in beside)
        return self.mlx.values(self.tensors.array(weight)[rows], scales, biases)

    def check_nothing_left(self) -> None:
        """Raise FormatError when a tensor was not asked for: the model would not be what the directory says."""
        left = sorted(name for name in self.tensors.names - self.used if not name.endswith(_DERIVED))
        if left:
            raise FormatError(f"{self.tensors.place(left[0])}: is a tensor that {self.place} gives no place")

    def _step(self, name: str, rows: int, divide: bool) -> NDArray[np.float32]:
        info = self.tensors.info(name)
        if info is None:
            raise FormatError(f"{self.tensors.directory}: the tensor {name} is missing, its matrix is packed")
        if info.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise FormatError(f"{self.tensors.place(name)}: found shape {list(info.shape)}, one number is needed")
        values = self.tensors.floats(name).reshape(-1)
        try:
            return step_of(values, divide)
        except FormatError as error:
            raise FormatError(f"{self.tensors.place(name)}: {error}") from error

    def _packed_codes(self, weight: str) -> NDArray[np.int8]:
        try:
            return unpack_rows(self.tensors.array(weight))
        except FormatError as error:
            raise FormatError(f"{self.tensors.place(weight)}: {error}") from error

    def _float_codes(self, weight: str) -> NDArray[np.int8]:
        values = self.tensors.floats(weight)
        codes = values.clip(-1, 1).astype(np.int8)
        if not np.array_equal(codes, values):
            raise FormatError(f"{self.tensors.place(weight)}: has a weight_scale, but holds other values than -1, 0, 1")
        return codes

    def _float_layer(self, name: str, shape: tuple[int, int]) -> HfLayer:
        weight = f"{name}.weight"
        if self.scheme is not None and self.scheme.online and not self.scheme.keeps(name):
            dtype = self.tensors.float_type(weight)
            _, step = ternarize_online(self.tensors.floats(weight, shape), dtype)

            def online() -> NDArray[np.int8]:
                return ternarize_online(self.tensors.floats(weight, shape), dtype)[0]

            return HfLayer(shape, step, online, self.stored(name))
        found = exact_ternary(self.values(name, shape))
        if found is None:
            raise FormatError(
                f"{self.tensors.place(weight)}: is not ternary (one size besides 0 in each group of 64 columns, or in "
                f"each row); make the model ternary first: wf convert {self.tensors.directory} CHECKPOINT"
            )

        def signs() -> NDArray[np.int8]:
            values = self.values(name, shape)
            return np.subtract(values > 0, values < 0, dtype=np.int8)

        return HfLayer(shape, found[1], signs, self.stored(name))
