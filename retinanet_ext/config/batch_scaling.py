"""Adapts the learning rate and the schedule to a batch size, from the one that the config was written for."""

import logging

from tabulate import tabulate

from retinanet_ext.d2 import CfgNode

REFERENCE_KEY, BATCH_KEY = "SOLVER.REFERENCE_IMS_PER_BATCH", "SOLVER.IMS_PER_BATCH"
# Numbers of iterations; those where 0 has a meaning of its own stay 0.
_ITERATIONS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")

logger = logging.getLogger(__name__)


def scaled_to_batch(cfg: CfgNode) -> tuple[CfgNode, str]:
    """Scale a config that was written for batches of ``SOLVER.REFERENCE_IMS_PER_BATCH`` images to its IMS_PER_BATCH.

    With k = IMS_PER_BATCH / REFERENCE_IMS_PER_BATCH, numbers of iterations are divided by k and rounded (at least 1, if
    they are not 0). With SGD, the learning rates are multiplied by k (Goyal et al., "Accurate, Large Minibatch SGD").
    With AdamW and AdaGrad they stay: there is no such rule for them. The number of images of the run stays the same.

    Args:
        cfg: not changed.

    Returns:
        A new config, whose reference is its own batch, so that it is not scaled again; and a table of what was scaled.
        ``cfg`` itself and an empty text if there is nothing to do.

    Raises:
        ValueError: SOLVER.REFERENCE_WORLD_SIZE asks for another scaling at the same time.
    """
    reference, batch = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference and cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise ValueError(
            f"{REFERENCE_KEY} is {reference} and SOLVER.REFERENCE_WORLD_SIZE {cfg.SOLVER.REFERENCE_WORLD_SIZE}: both "
            "scale the learning rate and the schedule, the second with the number of processes. Set one of them to 0"
        )
    if reference in (0, batch):
        return cfg, ""
    scaled = cfg.clone()
    scaled.defrost()
    factor = batch / reference
    changes = [(BATCH_KEY, reference, batch), *_scaled_rates(scaled, factor), *_scaled_iterations(scaled, factor)]
    scaled.SOLVER.REFERENCE_IMS_PER_BATCH = batch
    if cfg.is_frozen():
        scaled.freeze()
    table = tabulate(changes, headers=["key", f"for {reference} images", f"for {batch} images"], tablefmt="simple")
    return scaled, f"Scaled from batches of {reference} images to {batch} ({REFERENCE_KEY}):\n{table}{_rule(cfg)}"


def say_scaled(message: str) -> None:
    """Log the table of :func:`scaled_to_batch`, if it is not empty."""
    if message:
        logger.info("%s", message)


def _scaled_rates(cfg: CfgNode, factor: float) -> list[tuple[str, float, float]]:
    if cfg.SOLVER.OPTIMIZER != "SGD":
        return []
    changes = []
    for name in ("BASE_LR", "BASE_LR_END"):
        rate = cfg.SOLVER[name]
        if rate:
            # Twelve digits: 0.01 * (6 / 16) is written 0.00375.
            cfg.SOLVER[name] = float(f"{rate * factor:.12g}")
            changes.append((f"SOLVER.{name}", rate, cfg.SOLVER[name]))
    return changes


def _scaled_iterations(cfg: CfgNode, factor: float) -> list[tuple]:
    def scaled(iterations: int) -> int:
        return max(1, round(iterations / factor)) if iterations > 0 else iterations

    changes = []
    for key in _ITERATIONS:
        section, name = key.split(".")
        before = cfg[section][name]
        cfg[section][name] = scaled(before)
        changes.append((key, before, cfg[section][name]))
    steps = cfg.SOLVER.STEPS
    cfg.SOLVER.STEPS = tuple(scaled(step) for step in steps)
    changes.append(("SOLVER.STEPS", tuple(steps), cfg.SOLVER.STEPS))
    if cfg.MODEL.EMBEDDING.WARMUP.LOSS:
        warmup = cfg.MODEL.EMBEDDING.WARMUP
        changes.append(("MODEL.EMBEDDING.WARMUP.ITERS", warmup.ITERS, scaled(warmup.ITERS)))
        warmup.ITERS = scaled(warmup.ITERS)
    return changes


def _rule(cfg: CfgNode) -> str:
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        return "\nThe learning rate is scaled linearly, as for SGD."
    return (
        f"\nSOLVER.BASE_LR stays {cfg.SOLVER.BASE_LR:g}: the linear rule is for SGD, and the optimizer is {name}. Set "
        "another rate yourself; many multiply it by the square root of the ratio of the batches."
    )
