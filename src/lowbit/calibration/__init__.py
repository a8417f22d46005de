"""Data that a float model is run on, to learn from what its layers see."""

from lowbit.calibration.batches import (
    SAMPLES_AT_ONCE,
    Calibration,
    batches_of,
    decoder_inputs,
    device_of,
)

__all__ = ["SAMPLES_AT_ONCE", "Calibration", "batches_of", "decoder_inputs", "device_of"]
