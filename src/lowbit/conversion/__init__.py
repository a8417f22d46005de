"""A float transformers model becomes a quantized one, and back."""
