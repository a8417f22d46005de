"""The whole chain without a download: train a small model here, quantize it, measure, draw."""

from lowbit.demo.chain import Report, run
from lowbit.demo.model import DemoSettings

__all__ = ["Report", "DemoSettings", "run"]
