"""Calibrated ternarisation: layer by layer, from a few thousand tokens, without end-to-end training."""

from wrinklefree.models.calibration.config import CalibrationConfig, CalibrationReport, LayerReport
from wrinklefree.models.calibration.walk import calibrate

__all__ = ["CalibrationConfig", "CalibrationReport", "LayerReport", "calibrate"]
