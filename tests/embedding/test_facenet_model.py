"""The model FaceNet: its networks, its input checks, its edge cases."""

import copy

import pytest
import torch
from torch import nn

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from retinanet_ext.embedding import FaceNet
from tests.builders import faces

SIZES = {"nn1": (220, 220), "nn2": (64, 64), "nn4": (64, 64), "nns1": (165, 165), "nns2": (140, 116)}
FEATURES = {
    "nn1": ("fc2", 4096), "nn2": ("inception_5b", 1024), "nn4": ("inception_5b", 896), "nns1": ("fc", 912),
    "nns2": ("fc", 384),
}  # fmt: skip
SMALL = ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.DEVICE", "cpu"]


def config(name="nn4", *opts):
    return load_config(None, [*SMALL, "MODEL.BACKBONE.NAME", f"build_facenet_{name}_backbone", *opts], datasets=False)


def facenet(name="nn4", *opts, seed=0):
    torch.manual_seed(seed)
    return d2.build_model(config(name, *opts))


class SumOfEmbeddings(nn.Module):
    """A loss of any batch, also of an empty one."""

    def forward(self, embeddings, identities):
        return {"loss": embeddings.sum() + identities.sum()}


@pytest.mark.parametrize("name", ["nn2", "nn4", "nns2"])
@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_networks_compute_the_map_they_promise_and_train_every_weight(name, norm, generator):
    model = facenet(name, "MODEL.FACENET.NORM", norm)
    feature, channels = FEATURES[name]
    assert {key: shape.channels for key, shape in model.backbone.output_shape().items()} == {feature: channels}
    inputs = faces(generator, SIZES[name], (0, 0, 1, 1))
    maps = model.backbone(model.preprocess_image(inputs))
    height, width = SIZES[name]
    size = (1, 1) if feature == "fc" else (height // 32, width // 32)
    assert maps[feature].shape == (4, channels, *size) and maps.keys() == {feature}
    embeddings = model.embed(model.preprocess_image(inputs))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    embeddings[:2].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    has_bias = {module.bias is not None for module in model.backbone.modules() if isinstance(module, d2.Conv2d)}
    assert has_bias == {not norm}


@pytest.mark.parametrize("name", ["nn1", "nns1"])
def test_networks_with_large_fully_connected_layers(name, generator):
    model = facenet(name).eval()
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image(faces(generator, SIZES[name], (0,))))
    feature, channels = FEATURES[name]
    assert maps[feature].shape == (1, channels, 1, 1) and maps[feature].std() > 0.01
    assert model.backbone.output_shape()[feature].channels == channels
    with pytest.raises(ValueError, match="but found 96x96; set INPUT.FACE.SIZE"):
        model(faces(generator, (96, 96), (0,)))


def test_nn2_runs_at_any_size(generator):
    model = facenet("nn2").eval()
    for size in ((32, 48), (33, 65), (96, 80)):
        (output,) = model(faces(generator, size, (0,)))
        assert output["embedding"].shape == (128,)


@pytest.mark.parametrize("norm", ["", "BN"])
def test_response_norm_runs_only_without_another_norm(norm, generator, monkeypatch):
    from retinanet_ext.embedding import inception

    shapes = []
    monkeypatch.setattr(inception, "local_response_norm", lambda maps: shapes.append(tuple(maps.shape[1:])) or maps)
    facenet("nn2", "MODEL.FACENET.NORM", norm).eval()(faces(generator, (64, 64), (0,)))
    # Table 2: after the first pooling, and before the second one.
    assert shapes == ([] if norm else [(64, 16, 16), (192, 16, 16)])


def patterns(generator, size_hw, identities):
    """Inputs of :func:`faces` that differ from each other as faces do: in coarse shapes, not in each pixel."""
    inputs = faces(generator, size_hw, identities)
    for image in inputs:
        coarse = torch.rand(1, 3, 6, 5, generator=generator) * 255
        image["image"] = nn.functional.interpolate(coarse, size_hw, mode="bilinear")[0].to(torch.uint8)
    return inputs


@pytest.mark.parametrize("name", ["nn2", "nn4", "nns2"])
def test_untrained_networks_tell_images_apart_without_norms(name, generator):
    # With weights as He et al. draw them the distances are about 0.01, with which triplet training collapses.
    model = facenet(name).eval()
    with torch.no_grad():
        embeddings = model.embed(model.preprocess_image(patterns(generator, (140, 116), range(4))))
    distances = torch.cdist(embeddings, embeddings).square()
    assert distances[~torch.eye(4, dtype=torch.bool)].mean() > 0.2


@pytest.mark.parametrize("norm", ["", "BN"])
def test_a_network_learns_a_few_images_from_scratch(norm, generator):
    model = facenet("nns2", "MODEL.FACENET.NORM", norm)
    inputs = patterns(generator, (140, 116), (0, 0, 1, 1, 2, 2))
    identities = torch.tensor([0, 0, 1, 1, 2, 2])
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.005)
    same = (identities[:, None] == identities) & ~torch.eye(6, dtype=torch.bool)
    other = identities[:, None] != identities
    for _ in range(20):
        embeddings = model.embed(model.preprocess_image(inputs))
        distances = (embeddings[:, None] - embeddings).square().sum(dim=2)
        loss = (distances[:, :, None] - distances[:, None, :] + 0.2).clamp(min=0)[same[:, :, None] & other[:, None, :]]
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert distances[same].max() + 0.2 < distances[other].min()


def test_seeds_give_the_same_weights_and_biases_start_at_zero():
    first, second, other = facenet(seed=1), facenet(seed=1), facenet(seed=2)
    pairs = zip(first.state_dict().items(), second.state_dict().values(), other.state_dict().values(), strict=True)
    for (name, a), b, c in pairs:
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == name.endswith("bias"), name
        assert a.any() != name.endswith("bias"), name


@pytest.mark.parametrize("name", ["nn2", "nns2"])
def test_grey_images(name, generator):
    model = facenet(name, "MODEL.PIXEL_MEAN", "[127.5]", "MODEL.PIXEL_STD", "[127.5]", "INPUT.FORMAT", "L").eval()
    assert model.backbone.conv1.weight.shape[1] == 1
    (output,) = model(faces(generator, SIZES[name], (0,), channels=1))
    assert output["embedding"].shape == (128,)


def test_grey_images_for_a_model_of_three_channels_are_refused(generator):
    with pytest.raises(ValueError, match=r"face_0.png has shape \(1, 64, 64\), but FaceNet takes .* 3 channels"):
        facenet().eval()(faces(generator, (64, 64), (0,), channels=1))


def test_mean_and_deviation_need_as_many_values():
    with pytest.raises(ValueError, match="PIXEL_MEAN has 1 values and MODEL.PIXEL_STD 3"):
        facenet("nn4", "MODEL.PIXEL_MEAN", "[127.5]")


def test_unknown_pooling_names_the_legal_ones():
    with pytest.raises(ValueError, match="MODEL.EMBEDDING.POOL is 'mean'; legal values: avg, max"):
        facenet("nn4", "MODEL.EMBEDDING.POOL", "mean")


def test_images_of_two_sizes_are_refused_with_their_names(generator):
    inputs = faces(generator, (64, 64), (0, 1)) + faces(generator, (48, 64), (1,))
    inputs[2]["file_name"] = "small.png"
    message = r"face_0.png has shape \(3, 64, 64\) and small.png has \(3, 48, 64\); resize .* INPUT.FACE.SIZE"
    with pytest.raises(ValueError, match=message):
        facenet()(inputs)


def test_training_without_identity_is_refused_with_the_name(generator):
    inputs = faces(generator, (64, 64), (0, 1))
    del inputs[1]["identity"]
    with pytest.raises(ValueError, match="face_1.png has no 'identity'"):
        facenet()(inputs)


def test_one_image(generator):
    model = facenet()
    inputs = faces(generator, (64, 64), (0,))
    model.loss = SumOfEmbeddings()
    model(inputs)["loss"].backward()
    (output,) = model.eval()(inputs)
    assert output["embedding"].dtype == torch.float32 and output["embedding"].norm().item() == pytest.approx(1)


@pytest.mark.parametrize("norm", ["", "BN"])
def test_no_images(norm):
    model = facenet("nn4", "MODEL.FACENET.NORM", norm)
    model.loss = SumOfEmbeddings()
    losses = model([])
    sum(losses.values()).backward()
    # Every process of a job exchanges gradients of all parameters.
    assert losses["loss"] == 0 and all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert model.eval()([]) == []


@pytest.mark.parametrize(
    "opts, features, expected",
    [
        ([], "['res4', 'res5']", "res5"),
        ([], "['res3', 'res4']", "res4"),
        (["MODEL.RESNETS.RES5_DILATION", "2"], "['res4', 'res5']", "res5"),  # both have stride 16
        (["MODEL.EMBEDDING.IN_FEATURE", "res3"], "['res3', 'res5']", "res3"),
    ],
)
def test_the_deepest_map_of_a_resnet_is_pooled(opts, features, expected):
    opts = [*SMALL, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", features, *opts]
    with torch.device("meta"):
        model = d2.META_ARCH_REGISTRY.get("FaceNet")(load_config(None, opts, datasets=False))
    assert model.in_feature == expected
    assert model.projection.in_features == model.backbone.output_shape()[expected].channels


def test_a_feature_that_the_backbone_lacks_names_those_it_has():
    with pytest.raises(ValueError, match="IN_FEATURE is 'res5', which the backbone does not have; legal: inception_5b"):
        facenet("nn4", "MODEL.EMBEDDING.IN_FEATURE", "res5")


def test_channels_last_runs_through_the_whole_network(generator):
    model = facenet("nn2").eval()
    formats = {}
    for name, module in model.backbone.named_modules():
        if isinstance(module, d2.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: formats.update(
                    {name: all(x.is_contiguous(memory_format=torch.channels_last) for x in (*inputs, output))}
                )
            )
    model(faces(generator, (64, 64), (0, 0)))
    assert len(formats) > 50 and all(formats.values())


def test_copies(generator):
    model = facenet("nn4").eval()
    inputs = faces(generator, (32, 32), (0,))
    assert isinstance(model, FaceNet)
    torch.testing.assert_close(copy.deepcopy(model)(inputs)[0]["embedding"], model(inputs)[0]["embedding"])
