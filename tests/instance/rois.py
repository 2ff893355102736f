"""RoIs of a batch as the mask and keypoint heads get them, with ground truth that is given and not cut out."""

import torch

from retinanet_ext.d2 import Boxes, Instances, Keypoints


class GivenMasks:
    """Ground truth masks that have the size of the RoIs already: bool ``(M, S, S)``."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def crop_and_resize(self, boxes, size):
        assert boxes.shape == (len(self), 4) and self.targets.shape[1:] == (size, size)
        return self.targets


def random_boxes(count, generator, size=64):
    corner = torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


def random_rois(counts, generator, *, num_classes=5, mask_size=None, num_keypoints=None):
    """Per image that many RoIs, with what a head needs in training and at inference."""
    batch = []
    for count in counts:
        boxes = random_boxes(count, generator)
        classes = torch.randint(0, num_classes, (count,), generator=generator)
        rois = Instances((64, 64), proposal_boxes=Boxes(boxes), pred_boxes=Boxes(boxes))
        rois.gt_classes = rois.pred_classes = classes
        if mask_size:
            rois.gt_masks = GivenMasks(torch.rand(count, mask_size, mask_size, generator=generator) < 0.5)
        if num_keypoints:
            points = torch.rand(count, num_keypoints, 2, generator=generator) * 64
            visibility = torch.randint(0, 3, (count, num_keypoints, 1), generator=generator)
            rois.gt_keypoints = Keypoints(torch.cat([points, visibility], dim=2))
        batch.append(rois)
    return batch
