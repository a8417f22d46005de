"""Readers of the data that models are trained and scored on: files in their tasks' own layouts."""
