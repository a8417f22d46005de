"""The main job: a model in memory, a checkpoint on disk, either with data."""
