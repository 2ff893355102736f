"""Online hard example mining for a dense detector (Shrivastava et al., CVPR 2016, as the RetinaNet paper compares
with it: section 5.1 "OHEM", table 1d)."""

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.ops import nms_in_blocks

from .focal import dense_focal_loss
from .loss_interface import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, upcast

IGNORED = -1
# Anchors in a step of NMS, or 16 * batch if that is more. One step decides most images.
ANCHORS_PER_STEP = 2048


class OHEMLoss(nn.Module):
    """Cross entropy over the anchors that are hardest in each image; all others have no loss.

    Every anchor that is not ignored is scored by its cross entropy, summed over the K classes. NMS over the anchors by
    this score removes near-duplicates, and the ``batch`` anchors with the highest scores are kept. The 1:3 variant
    keeps three background anchors for each foreground anchor, as SSD does.

    Choices that the paper leaves open: each image has its own batch. NMS compares anchors, not predicted boxes, as the
    original compares its input regions. The sum is divided by the same normaliser as the sum of every other loss, the
    assigned foreground anchors, so that two arms of a study differ in nothing else.
    """

    def __init__(self, *, batch: int = 128, nms_thresh: float = 0.5, negatives_per_positive: int = 0):
        """
        Args:
            batch: most anchors kept per image.
            nms_thresh: IoU above which an anchor is dropped for another one of higher loss.
            negatives_per_positive: 0 keeps the hardest anchors of either kind. r > 0 keeps at most ``batch // (1 + r)``
                foreground anchors, and r background anchors for each of them, or r in an image without foreground.

        Raises:
            ValueError: a value outside its range.
        """
        super().__init__()
        if negatives_per_positive < 0:
            raise ValueError(
                f"CLS_LOSS.OHEM.NEGATIVES_PER_POSITIVE is {negatives_per_positive}; it must be 0 (off) or more"
            )
        if batch <= negatives_per_positive:
            raise ValueError(
                f"CLS_LOSS.OHEM.BATCH is {batch}; it must hold at least {negatives_per_positive + 1}: one foreground "
                f"anchor and its {negatives_per_positive} background anchors (NEGATIVES_PER_POSITIVE)"
            )
        if not 0 <= nms_thresh <= 1:
            raise ValueError(f"CLS_LOSS.OHEM.NMS_THRESH is {nms_thresh}; an IoU lies in [0, 1]")
        self.batch = batch
        self.nms_thresh = nms_thresh
        self.negatives_per_positive = negatives_per_positive

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        labels = torch.full_like(targets.labels, IGNORED)
        for logits, all_labels, kept_labels in zip(predictions.logits, targets.labels, labels):
            hard = self.hard_anchors(logits, all_labels, predictions.anchors)
            kept_labels[hard] = all_labels[hard]
        return dense_focal_loss(predictions.logits, labels, alpha=-1, gamma=0, reduction="per_image")

    @torch.no_grad()
    def hard_anchors(self, logits: torch.Tensor, labels: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Indices of the anchors that are kept in one image, ``(B,)`` int64, B <= ``batch``, by descending loss.

        NMS takes the hardest anchors first and stops once the selection is complete: in greedy NMS a lower score never
        affects a higher one. With ``negatives_per_positive`` above 0 and easy foreground anchors, it may have to see
        all anchors, each once; :func:`nms_in_blocks` bounds its memory.

        Args:
            logits: ``(R, K)``. Their cross entropies take a float32 tensor ``(R, K)``.
            labels: ``(R,)``: -1 ignored, 0..K-1 a class, K background.
            anchors: ``(R, 4)``, xyxy.
        """
        order = _by_descending_loss(logits, labels)
        is_foreground = labels[order] < logits.shape[1]
        last_foreground = int(is_foreground.nonzero().max()) if is_foreground.any() else -1
        kept = hard = order[:0]
        block = max(ANCHORS_PER_STEP, 16 * self.batch)
        for num_seen, survivors in nms_in_blocks(anchors[order], self.nms_thresh, block):
            kept = torch.cat([kept, survivors])
            hard, is_complete = self._select(kept, is_foreground, all_foreground_seen=num_seen > last_foreground)
            if is_complete:
                break
        return order[hard]

    def _select(self, kept: torch.Tensor, is_foreground: torch.Tensor, all_foreground_seen: bool):
        """The ranks to train on, from the ascending ranks that NMS kept; and whether they are final: more candidates
        would not change them."""
        if not self.negatives_per_positive:
            return kept[: self.batch], len(kept) >= self.batch
        most = self.batch // (1 + self.negatives_per_positive)
        positives = kept[is_foreground[kept]][:most]
        wanted = self.negatives_per_positive * max(1, len(positives))
        negatives = kept[~is_foreground[kept]][:wanted]
        is_complete = len(negatives) == wanted and (len(positives) == most or all_foreground_seen)
        return torch.cat([positives, negatives]).sort().values, is_complete


def _by_descending_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Indices of the anchors that are not ignored, ``(R',)``, by descending cross entropy over all classes."""
    considered = (labels != IGNORED).nonzero().squeeze(1)
    logits, labels = upcast(logits[considered]), labels[considered]
    # softplus(x) is -log(1 - p), the loss if the target is 0. For the labelled class the loss is -log(p), less by x.
    loss = F.softplus(logits).sum(dim=1)
    labelled_logit = logits.gather(1, labels.clamp(max=logits.shape[1] - 1)[:, None]).squeeze(1)
    loss = loss - torch.where(labels < logits.shape[1], labelled_logit, 0.0)
    return considered[loss.argsort(descending=True, stable=True)]


@CLS_LOSS_REGISTRY.register(name="ohem")
def _build_ohem(cfg) -> OHEMLoss:
    loss = cfg.MODEL.RETINANET.CLS_LOSS
    return OHEMLoss(
        batch=loss.OHEM.BATCH,
        nms_thresh=loss.OHEM.NMS_THRESH,
        negatives_per_positive=loss.OHEM.NEGATIVES_PER_POSITIVE,
    )
