"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # What a run does about a loss or gradient that is not finite. The step is always examined and saved below
    # OUTPUT_DIR/incidents, and the weights stay those from before it. "stop" ends the run with an error; "skip" leaves
    # the step out; "rollback" goes back to the last good checkpoint, with a lower learning rate.
    cfg.SOLVER.NONFINITE = CN()
    cfg.SOLVER.NONFINITE.POLICY = "stop"
    # How many steps of a run may be skipped or rolled back; after that it stops. A resumed run goes on counting.
    cfg.SOLVER.NONFINITE.BUDGET = 10
    # Each rollback multiplies the learning rate by this factor, for the rest of the run. Above 0, up to 1.
    cfg.SOLVER.NONFINITE.LR_FACTOR = 0.5
