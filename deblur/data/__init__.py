"""Pairs of blurred and sharp pictures, from folders to batches."""
