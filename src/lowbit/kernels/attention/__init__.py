"""softmax(query · keyᵀ · scale + mask) · value (see csrc/attention.h)."""
