import torch

from retinanet_ext.detection import IoUMatcher, label_anchors


def test_labels_and_boxes_of_a_batch():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.5], [50.0, 50.0, 60.0, 60.0]])
    gt_boxes = [torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.zeros(0, 4), torch.tensor([[50.0, 50.0, 60.0, 59.0]])]
    gt_classes = [torch.tensor([2]), torch.zeros(0, dtype=torch.int64), torch.tensor([0])]
    targets = label_anchors(anchors, gt_boxes, gt_classes, IoUMatcher(low_quality="never"), num_classes=3)
    # Anchor 1 has IoU 0.45 with the first image's box: ignored. The second image is all background, 3.
    assert targets.labels.tolist() == [[2, -1, 3], [3, 3, 3], [3, 3, 0]]
    assert targets.image_index.tolist() == [0, 2]
    assert targets.anchor_index.tolist() == [0, 2]
    assert targets.gt_boxes.tolist() == [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 59.0]]
    assert targets.num_foreground.tolist() == [1, 0, 1]
