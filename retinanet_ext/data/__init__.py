"""Data for the extension: registration from the config, checks before training, readers, generated shapes."""
