from retinanet_ext.ops.coco_keypoints import num_labelled


def test_hidden_and_visible_keypoints_are_labelled():
    assert num_labelled([5, 6, 0, 7.5, 8.5, 1, 9, 10, 2]) == 2
    assert num_labelled([]) == num_labelled(()) == 0
