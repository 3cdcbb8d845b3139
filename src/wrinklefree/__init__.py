"""WrinkleFree: make a pretrained LLM ternary (1.58-bit), then run it fast on ordinary CPUs.

Importing this package imports nothing heavy: each room (`wrinklefree.engine`, `wrinklefree.train`, ...) is
imported by whoever needs it.
"""

from wrinklefree.version import __version__

__all__ = ["__version__"]
