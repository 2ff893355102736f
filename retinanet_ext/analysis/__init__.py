"""The pictures of the Focal Loss paper, from the project's own losses, models and measurements."""
