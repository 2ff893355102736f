"""Ablation studies: a file names the arms as config overrides, and every arm runs with every seed."""
