"""Parameters and multiply-adds of the networks against the tables of the FaceNet paper, row by row.

The expected numbers come from a formula by hand, ``(k * k * c_in + 1) * c_out`` for each convolution, with the channels
as the paper prints them; a bias counts as one multiply-add at each position, which the paper's numbers confirm.
"""

import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import META_ARCH_REGISTRY
from retinanet_ext.embedding.network_cost import network_cost, total_cost

# Table 1: row, kernel, input channels, output channels, output side, parameters and FLOPS as printed.
NN1 = [
    ("conv1", 7, 3, 64, 110, "9K", "115M"),
    ("conv2a", 1, 64, 64, 55, "4K", "13M"),
    ("conv2", 3, 64, 192, 55, "111K", "335M"),
    ("conv3a", 1, 192, 192, 28, "37K", "29M"),
    ("conv3", 3, 192, 384, 28, "664K", "521M"),
    ("conv4a", 1, 384, 384, 14, "148K", "29M"),
    ("conv4", 3, 384, 256, 14, "885K", "173M"),
    ("conv5a", 1, 256, 256, 14, "66K", "13M"),
    ("conv5", 3, 256, 256, 14, "590K", "116M"),
    ("conv6a", 1, 256, 256, 14, "66K", "13M"),
    ("conv6", 3, 256, 256, 14, "590K", "116M"),
    ("fc1", 1, 7 * 7 * 256, 2 * 32 * 128, 1, "103M", "103M"),  # maxout: two linear functions per output
    ("fc2", 1, 32 * 128, 2 * 32 * 128, 1, "34M", "34M"),
    ("projection", 1, 32 * 128, 128, 1, "524K", "0.5M"),
]
# Table 2: row, input channels, input side, output side, then 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection.
NN2 = [
    ("inception_2", 64, 56, 56, 0, 64, 192, 0, 0, 0, "115K", "360M"),
    ("inception_3a", 192, 28, 28, 64, 96, 128, 16, 32, 32, "164K", "128M"),
    ("inception_3b", 256, 28, 28, 64, 96, 128, 32, 64, 64, "228K", "179M"),
    ("inception_3c", 320, 28, 14, 0, 128, 256, 32, 64, 0, "398K", "108M"),
    ("inception_4a", 640, 14, 14, 256, 96, 192, 32, 64, 128, "545K", "107M"),
    ("inception_4b", 640, 14, 14, 224, 112, 224, 32, 64, 128, "595K", "117M"),
    ("inception_4c", 640, 14, 14, 192, 128, 256, 32, 64, 128, "654K", "128M"),
    ("inception_4d", 640, 14, 14, 160, 144, 288, 32, 64, 128, "722K", "142M"),
    ("inception_4e", 640, 14, 7, 0, 160, 256, 64, 128, 0, "717K", "56M"),
    ("inception_5a", 1024, 7, 7, 384, 192, 384, 48, 128, 128, "1.6M", "78M"),
    ("inception_5b", 1024, 7, 7, 384, 192, 384, 48, 128, 128, "1.6M", "78M"),
]
OUTPUT_CHANNELS_OF_NN2 = [192, 256, 320, 640, 640, 640, 640, 640, 1024, 1024, 1024]


def conv(kernel, c_in, c_out, side):
    """Parameters and multiply-adds of a convolution with bias."""
    parameters = (kernel * kernel * c_in + 1) * c_out if c_out else 0
    return parameters, parameters * side * side


def block(c_in, before, after, conv1x1, reduce3x3, conv3x3, reduce5x5, conv5x5, projection):
    parts = [conv(1, c_in, conv1x1, after), conv(1, c_in, reduce3x3, before), conv(3, reduce3x3, conv3x3, after)]
    parts += [conv(1, c_in, reduce5x5, before), conv(5, reduce5x5, conv5x5, after), conv(1, c_in, projection, after)]
    return tuple(map(sum, zip(*parts)))


def expected_rows(name):
    """Row name -> parameters and multiply-adds by hand, and both as the paper prints them."""
    if name == "nn1":
        return {row: (*conv(k, c_in, c_out, side), *printed) for row, k, c_in, c_out, side, *printed in NN1}
    rows = {"conv1": (*conv(7, 3, 64, 112), "9K", "119M")}
    rows |= {row: (*block(*channels[:-2]), *channels[-2:]) for row, *channels in NN2}
    return rows | {"projection": (*conv(1, 1024, 128, 1), "131K", "0.1M")}


def rounded(number, like):
    """The number in the form of the printed one: ``rounded(9472, "9K") == "9K"``."""
    digits = len(like[:-1].partition(".")[2])
    return f"{number / {'K': 1e3, 'M': 1e6, 'B': 1e9}[like[-1]]:.{digits}f}{like[-1]}"


def cost(name, height, width, *opts):
    opts = ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.BACKBONE.NAME", f"build_{name}_backbone", *opts]
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("FaceNet")(load_config(None, opts, datasets=False))
    return network_cost(model, height, width)


@pytest.mark.parametrize("name, side", [("nn1", 220), ("nn2", 224)])
def test_each_row_is_the_papers(name, side):
    rows, expected = cost(f"facenet_{name}", side, side), expected_rows(name)
    assert [row.name for row in rows] == list(expected)
    deviations = {}
    for row in rows:
        parameters, multiply_adds, printed_parameters, printed_flops = expected[row.name]
        assert (row.parameters, row.multiply_adds) == (parameters, multiply_adds), row.name
        if rounded(parameters, printed_parameters) != printed_parameters:
            deviations[row.name, "parameters"] = (parameters, printed_parameters)
        if rounded(multiply_adds, printed_flops) != printed_flops:
            deviations[row.name, "FLOPS"] = (multiply_adds, printed_flops)
    # The paper's own 4a: its channels give 545,536 parameters with biases, 546K. Without its 768 biases they are the
    # printed 545K; but then 3a (163K), 4b (594K), 4c (653K), 4d (721K) and both first rows' FLOPS would be wrong.
    assert deviations == ({} if name == "nn1" else {("inception_4a", "parameters"): (545_536, "545K")})
    total = total_cost(rows)
    printed = ("140M", "1.6B") if name == "nn1" else ("7.5M", "1.6B")
    assert (rounded(total.parameters, printed[0]), rounded(total.multiply_adds, printed[1])) == printed


def test_without_biases_more_rows_would_differ_from_the_paper():
    assert (rounded(7 * 7 * 3 * 64 * 110**2, "115M"), rounded(7 * 7 * 3 * 64 * 112**2, "119M")) == ("114M", "118M")
    biases = {"3a": 368, "4a": 768, "4b": 784, "4c": 800, "4d": 816}
    rows = expected_rows("nn2")
    without = {row: rounded(rows[f"inception_{row}"][0] - count, "1K") for row, count in biases.items()}
    assert without == {"3a": "163K", "4a": "545K", "4b": "594K", "4c": "653K", "4d": "721K"}


def test_the_maps_have_the_papers_sizes():
    shapes = {row.name: row.output_shape for row in cost("facenet_nn1", 220, 220)}
    assert shapes == {name: (c_out, side, side) for name, _, _, c_out, side, _, _ in NN1[:11]} | {
        "fc1": (4096,), "fc2": (4096,), "projection": (128,)
    }  # fmt: skip
    shapes = {row.name: row.output_shape for row in cost("facenet_nn2", 224, 224)}
    expected = {row[0]: (c, row[3], row[3]) for row, c in zip(NN2, OUTPUT_CHANNELS_OF_NN2)}
    assert shapes == {"conv1": (64, 112, 112), **expected, "projection": (128,)}


def test_22_layers_deep():
    # The paper calls NN1 22 layers deep, and table 1 has 22 rows: 14 with weights, 4 poolings, 2 norms, concat, L2.
    assert len(NN1) + 4 + 2 + 1 + 1 == 22


def test_nn3_and_nn4_within_what_the_paper_prints():
    nn3 = total_cost(cost("facenet_nn2", 160, 160))
    # Convolutions at (160 / 224)^2 of NN2's positions. The text gives 500M to 1.6B for Inception networks.
    positions = (total_cost(cost("facenet_nn2", 224, 224)).multiply_adds - 131_200) * 25 // 49
    assert nn3.multiply_adds == positions + 131_200 and 500e6 < nn3.multiply_adds < 1.6e9
    assert nn3.parameters == 7_456_304
    nn4 = total_cost(cost("facenet_nn4", 96, 96))
    # 285M lies outside the paper's own range of 500M to 1.6B; 6.6M is the smaller end of its 6.6M to 7.5M parameters.
    assert (rounded(nn4.multiply_adds, "285M"), rounded(nn4.parameters, "6.6M")) == ("285M", "6.6M")
    removed = conv(1, 640, 64, 6)[0] + conv(5, 64, 128, 3)[0]  # 4e
    removed += 2 * (conv(1, 1024, 48, 3)[0] + conv(5, 48, 128, 3)[0])  # 5a, 5b
    removed += 2 * 128 * (384 + 192 + 128) + 128 * 128  # their inputs, and the projection's, have 128 channels less
    assert nn4.parameters == 7_456_304 - removed


@pytest.mark.parametrize(
    "name, size, parameters, flops", [("nns1", (165, 165), "26M", 220e6), ("nns2", (140, 116), "4.3M", 20e6)]
)
def test_small_networks_meet_their_budgets(name, size, parameters, flops):
    total = total_cost(cost(f"facenet_{name}", *size))
    assert rounded(total.parameters, parameters) == parameters
    assert total.multiply_adds == pytest.approx(flops, rel=0.015)


def test_resnet_50_is_counted_by_stage():
    opts = ["MODEL.RESNETS.OUT_FEATURES", "['res5']", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"]
    rows = cost("resnet", 224, 224, *opts)
    assert [row.name for row in rows] == ["stem", "res2", "res3", "res4", "res5", "projection"]
    # torchvision's ResNet-50 without its classifier; a norm has two parameters per channel, and no multiply-adds.
    assert sum(row.parameters for row in rows[:-1]) == 25_557_032 - (2048 * 1000 + 1000)
    assert rows[0].multiply_adds == 7 * 7 * 3 * 64 * 112**2


def test_counting_changes_nothing_in_the_model():
    model = META_ARCH_REGISTRY.get("FaceNet")(
        load_config(
            None,
            ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.BACKBONE.NAME", "build_facenet_nns2_backbone"],
            datasets=False,
        )
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network_cost(model, 140, 116)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
