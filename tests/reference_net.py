"""The SSUL reference network restated, with the reference's names of tensors. Imports nothing of segrow."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# expansion, channels, repetitions, stride
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
            (6, 320, 1, 1))  # fmt: skip


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            conv = nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stages that would leave the output stride keep their size and dilate, from their second block on."""

    low, deep = 256, 2048

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, reached, dilation = 64, 4, 1
        for stage, count in enumerate(BLOCKS[name]):
            stride, before = (1 if stage == 0 else 2), dilation
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            planes = 64 * 2**stage
            blocks = [Bottleneck(inputs, planes, stride, before)]
            inputs = 4 * planes
            blocks += [Bottleneck(inputs, planes, 1, dilation) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        low = self.layer1(x)
        return low, self.layer4(self.layer3(self.layer2(low)))


def conv_norm_relu6(
    inputs: int, outputs: int, kernel: int, stride: int, dilation: int, groups: int
) -> nn.Sequential:
    """Not padded: a block pads its input."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, 0, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        layers = [conv_norm_relu6(inputs, inside, 1, 1, 1, 1)] if expansion > 1 else []
        layers.append(conv_norm_relu6(inside, inside, 3, stride, dilation, inside))
        self.conv = nn.Sequential(*layers, nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs
        self.margin = dilation

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, [self.margin] * 4))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    low, deep = 24, 320

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        features = [conv_norm_relu6(3, 32, 3, 2, 1, 1)]
        inputs, reached, dilation = 32, 2, 1
        for expansion, outputs, count, stride in INVERTED:
            before = dilation
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            for i in range(count):
                block = (stride, before) if i == 0 else (1, dilation)
                features.append(Inverted(inputs, outputs, *block, expansion))
                inputs = outputs
        self.low_level_features = nn.Sequential(*features[:4])
        self.high_level_features = nn.Sequential()
        for number, feature in enumerate(features[4:], start=4):
            self.high_level_features.add_module(str(number), feature)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low_level_features(x)
        return low, self.high_level_features(low)


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(inputs, inputs, 3, 1, dilation, dilation, inputs, bias=False)
        self.body = nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Aspp(nn.Module):
    def __init__(self, inputs: int, width: int, rates: tuple[int, ...], separable: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv_norm_relu(inputs, width, 1, 1, False)])
        for rate in rates:
            self.convs.append(conv_norm_relu(inputs, width, 3, rate, separable))
        self.convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(inputs, width, 1, 1, False)))
        self.project = conv_norm_relu(5 * width, width, 1, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.interpolate(conv(x), x.shape[2:], mode="bilinear") for conv in self.convs]
        return self.project(torch.cat(maps, 1))


def conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int, separable: bool) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, 1, dilation * (kernel // 2), dilation, bias=False)
    first = Separable(inputs, outputs, dilation) if separable else conv
    return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    def __init__(
        self,
        deep: int,
        low: int | None,
        width: int,
        rates: tuple[int, ...],
        heads: list[int],
        separable: bool,
    ) -> None:
        super().__init__()
        self.aspp = Aspp(deep, width, rates, separable)
        self.project = conv_norm_relu(low, 48, 1, 1, False) if low else None
        inputs = width + 48 if low else width
        self.head = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(inputs, width, 3, 1, separable), nn.Conv2d(width, classes, 1))
            for classes in heads
        )

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        x = self.aspp(deep)
        if self.project is not None:
            low = self.project(low)
            x = torch.cat([low, F.interpolate(x, low.shape[2:], mode="bilinear")], 1)
        return torch.cat([head(x) for head in self.head], 1)


class ReferenceNet(nn.Module):
    """Normalised images B 3 H W -> logits B C H W; with unknown the channels are unknown, background, …"""

    def __init__(
        self, model: str, output_stride: int, steps: list[int], unknown: bool, separable: bool, width: int
    ) -> None:
        super().__init__()
        family, _, backbone = model.partition("_")
        self.backbone = (
            MobileNet(output_stride) if backbone == "mobilenet" else ResNet(backbone, output_stride)
        )
        heads = [1, 1, *steps] if unknown else [steps[0] + 1, *steps[1:]]
        rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
        low = self.backbone.low if family == "deeplabv3plus" else None
        self.classifier = Classifier(self.backbone.deep, low, width, rates, heads, separable)
        self.unknown = unknown

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(*self.backbone(images))
        return F.interpolate(logits, images.shape[2:], mode="bilinear")

    def scores(self, images: Tensor, loss_type: str = "bce_loss") -> Tensor:
        """Scores of the classes, unknown folded into background."""
        logits = self(images)
        p = logits.sigmoid() if loss_type == "bce_loss" else logits.softmax(1)
        if self.unknown:
            p = torch.cat([p[:, :1] + p[:, 1:2], p[:, 2:]], 1)
        return p


def shake(net: nn.Module, seed: int) -> nn.Module:
    """Random statistics and affine parameters, such that values neither vanish nor explode with depth."""
    torch.manual_seed(seed)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            high = 0.4 if name.endswith("bn3") else 1.5
            nn.init.uniform_(module.weight, high / 3, high)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return net.eval()


def build(
    model: str = "deeplabv3_mobilenet",
    output_stride: int = 16,
    steps: tuple[int, ...] = (2,),
    unknown: bool = True,
    separable: bool = False,
    width: int = 16,
    seed: int = 0,
) -> ReferenceNet:
    with torch.random.fork_rng():
        net = ReferenceNet(model, output_stride, list(steps), unknown, separable, width)
        shake(net, seed)
    return net


def save(net: nn.Module, path: Path, wrapped: bool = False) -> Path:
    """As the reference saves it: an optimizer that has stepped, and a best score of numpy."""
    head = net.classifier.head[0]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for parameter in head.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    state = net.state_dict()
    if wrapped:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    best = np.mean([0.25, 0.5])
    torch.save({"model_state": state, "optimizer_state": optimizer.state_dict(), "best_score": best}, path)
    return path


def normalise(images: Tensor) -> Tensor:
    """uint8 -> ImageNet's normalisation."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    return (images.double() / 255 - mean) / std
