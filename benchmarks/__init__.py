"""Measurements, side by side with Detectron2. Not installed with the package; run them from the repository."""
