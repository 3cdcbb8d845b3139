"""The engine's name for the door to the C++ extension."""

from wrinklefree.artifact.native import load_native as load_native
