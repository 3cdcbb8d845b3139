"""The one door to transformers: families, conversion, calibration, input and output."""
