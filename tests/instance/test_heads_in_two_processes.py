"""Losses and gradients of the heads in two processes, averaged, are those of one process with the joint batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retinanet_ext.d2 import ShapeSpec
from retinanet_ext.instance.keypoint_head import FCNKeypointHead
from retinanet_ext.instance.mask_head import FCNMaskHead, MLPMaskHead, SoftmaxMaskHead
from tests.instance.rois import random_rois

# RoIs of the images of each process: the second process has no image with RoIs, or none at all.
PARTS = [([3, 1], [2, 0]), ([3, 1], [0, 0]), ([3, 1], [])]


def make_heads():
    torch.manual_seed(0)
    shape = ShapeSpec(channels=4, height=7, width=7)
    return [
        FCNMaskHead(input_shape=shape, num_masks=5, conv_dim=8, num_conv=1),
        SoftmaxMaskHead(input_shape=shape, num_masks=6, conv_dim=8, num_conv=1),
        MLPMaskHead(input_shape=shape, num_masks=5, fc_dim=8),
        FCNKeypointHead(input_shape=shape, num_keypoints=3, conv_dims=[8]),
        FCNKeypointHead(input_shape=shape, num_keypoints=3, conv_dims=[8], keypoints_per_image=20.0),
    ]


def run_heads(counts, rank=None):
    """Loss and gradients of every head, on all images or on those of a process."""
    generator = torch.Generator().manual_seed(0)
    images = random_rois([*counts[0], *counts[1]], generator, mask_size=14, num_keypoints=3)
    x = torch.randn(sum(map(sum, counts)), 4, 7, 7, generator=generator)
    if rank is not None:
        first = len(counts[0])
        images = images[:first] if rank == 0 else images[first:]
        x = x.split([sum(part) for part in counts])[rank]
    results = []
    for head in make_heads():
        loss = sum(head(x, images).values())
        results.append([loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))])
    return results


def run_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = [tensor for counts in PARTS for tensors in run_heads(counts, rank) for tensor in tensors]
    for tensor in results:
        dist.all_reduce(tensor)
        tensor /= 2
    dist.destroy_process_group()
    if rank == 0:
        torch.save(results, f"{folder}/averaged.pt")


def test_two_processes_equal_one(tmp_path):
    mp.start_processes(run_process, nprocs=2, args=(str(tmp_path),), start_method="spawn")
    averaged = torch.load(tmp_path / "averaged.pt")
    expected = [tensor for counts in PARTS for tensors in run_heads(counts) for tensor in tensors]
    assert len(averaged) == len(expected)
    for found, joint in zip(averaged, expected, strict=True):
        torch.testing.assert_close(found, joint, rtol=1e-5, atol=1e-7)
    assert all(tensors[0] > 0 for counts in PARTS for tensors in run_heads(counts))
