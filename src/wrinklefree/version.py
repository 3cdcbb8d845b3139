"""The version of the package and of every file layout it writes."""

__version__ = "0.1.0"

# Raised by one whenever a byte of the packed directory changes its meaning (docs/formats.md).
PACKED_FORMAT_VERSION = 1
# Raised by one whenever the `wrinklefree` object of a checkpoint's config.json changes its meaning.
CHECKPOINT_FORMAT_VERSION = 1
