"""Fake quantization: training sees what will be stored."""
