"""Files of a model: finding, reading and loading them, and writing them in one step."""
