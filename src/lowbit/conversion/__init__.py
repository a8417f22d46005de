"""Convert float models to quantized ones, and back."""
