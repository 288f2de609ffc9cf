"""The training step once more, as a skilled user of PyTorch would write it.

The same mathematics as eir_jax (encoder, Eq. 1-10, memory bank, SGD, views), for one
device; the opponent of benchmarks/train_step.py, and a second oracle of the tests. Of
`eir_jax` nothing is used; the modules are named as its parameters are.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch_views import UNIFORMS, cutmix, make_views

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
Batch = dict[str, Tensor]
Terms = dict[str, Tensor]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that, given `split`, normalises rows before and after it apart."""

    split = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [n, channel, h, w]; running averages move once a part."""
        if not (self.split and self.training):
            return super().forward(x)
        parts = (x[: self.split], x[self.split :])
        return torch.cat([super(BatchNorm, self).forward(part) for part in parts])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm(features)
        self.reshapes = stride != 1 or channels != features
        if self.reshapes:
            self.conv_shortcut = nn.Conv2d(channels, features, 1, stride, bias=False)
            self.norm_shortcut = BatchNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, features, h / stride, w / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.reshapes:
            x = self.norm_shortcut(self.conv_shortcut(x))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Basic-block ResNet up to its last feature map, with either stem."""

    def __init__(self, blocks: tuple[int, ...], width: int, stem: str):
        super().__init__()
        self.imagenet = stem == "imagenet"
        size, stride = (7, 2) if self.imagenet else (3, 1)
        self.conv = nn.Conv2d(3, width, size, stride, size // 2, bias=False)
        self.norm = BatchNorm(width)
        self.blocks = []
        channels = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                features = width * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                self.add_module(name, BasicBlock(channels, features, stride))
                self.blocks.append(name)
                channels = features

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised [n, 3, height, width] to the last stage's feature map."""
        x = F.relu(self.norm(self.conv(images)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """ResNet, global average pool, Linear, L2 norm."""

    def __init__(self, name: str, width: int, stem: str, embedding_dim: int):
        super().__init__()
        self.backbone = ResNet(BLOCKS[name], width, stem)
        self.head = nn.Linear(8 * width, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images [n, 3, height, width] as unit vectors."""
        projected = self.head(self.backbone(images).mean((2, 3)))
        if projected.dtype == torch.bfloat16:
            projected = projected.float()
        return F.normalize(projected, dim=1)


class Objective(nn.Module):
    """From a batch's random numbers to the losses; holds encoder, bank and images.

    Args:
      config: the settings of eir_jax; of those, what `pytorch_check.refuse` lets pass.
      images: uint8 [N, height, width, 3].
      memory_bank: float32 [N, dim], unit rows.
      dtype: that the encoder computes in; torch.bfloat16 by autocast.
      together: one pass of all three images of an instance, with split batch norms,
        in place of two passes.
    """

    images: Tensor
    memory_bank: Tensor

    def __init__(
        self,
        config,
        images: Tensor,
        memory_bank: Tensor,
        dtype: torch.dtype = torch.float32,
        together: bool = False,
    ):
        super().__init__()
        model, data = config.model, config.data
        self.encoder = Encoder(model.name, model.width, model.stem, model.embedding_dim)
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("memory_bank", memory_bank, persistent=False)
        self.recipe = config.views.to_dict() | {"mean": data.mean, "std": data.std}
        self.size, self.dtype, self.together = data.image_size, dtype, together
        self.temperature, self.momentum = config.temperature, config.bank_momentum
        self.intra_temperature = config.intra.temperature
        self.lambda_intra = config.lambda_intra
        self.lambda_inter = config.lambda_inter
        if together:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.split = 2 * config.batch_size

    def forward(self, batch: Batch) -> tuple[Tensor, Terms, Tensor]:
        """Return the loss of Eq. 10, its terms, and view 1's embeddings.

        A batch holds `index`, `partner` int64, `ratio` float [batch], `uniforms`
        [2, batch, 30] and `box` int32 [batch, 4]; or, in place of the last two, `views`
        [2 * batch, 3, size, size] and `mixed`.
        """
        if "views" in batch:
            views, mixed = batch["views"], batch["mixed"]
        else:
            views, mixed = self.views_of(batch)
        with torch.autocast(
            views.device.type, self.dtype, self.dtype == torch.bfloat16
        ):
            if self.together:
                embedding = self.encoder(torch.cat([views, mixed]))
                v, mixed = embedding.tensor_split([len(views)])
            else:
                v, mixed = self.encoder(views), self.encoder(mixed)
        terms = self.losses(v, mixed, batch)
        loss = (
            terms["loss_instance"]
            + self.lambda_intra * terms["loss_intra"]
            + self.lambda_inter * terms["loss_inter"]
        )
        return loss, terms, v[: len(mixed)]

    @torch.no_grad()
    def views_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return views [2 * batch, 3, size, size], view 1 first, and mixed images."""
        chosen = self.images[batch["index"]]
        views = make_views(
            torch.cat([chosen, chosen]),
            batch["uniforms"].reshape(-1, UNIFORMS),
            self.recipe,
            self.size,
        )
        view1, view2 = views.tensor_split(2)
        mixed = cutmix(view1, view2[batch["partner"]], batch["box"])
        last = torch.channels_last
        return views.contiguous(memory_format=last), mixed.contiguous(
            memory_format=last
        )

    def losses(self, views: Tensor, mixed: Tensor, batch: Batch) -> Terms:
        """Eq. 2-9, each a mean over the batch, from embeddings of both views."""
        index, tau = batch["index"], self.temperature
        cosine = views @ self.memory_bank.T
        log_p, log_q = F.log_softmax(cosine / tau, dim=1).tensor_split(2)
        compared = F.log_softmax(cosine / self.intra_temperature, dim=1)
        compared_p, compared_q = compared.tensor_split(2)
        own_p, own_q = (x.gather(1, index[:, None])[:, 0] for x in (log_p, log_q))
        view1 = views[: len(mixed)]
        ratio = batch["ratio"][:, None]
        target = ratio * view1 + (1 - ratio) * view1[batch["partner"]]
        logits = F.normalize(target, dim=1) @ mixed.T / tau
        own = torch.arange(len(logits), device=logits.device)
        return {
            "loss_instance": -torch.logaddexp(own_p, own_q).mean(),
            "loss_intra": (compared_p.exp() * (compared_p - compared_q)).sum(1).mean(),
            "loss_inter": F.cross_entropy(logits, own),
        }

    @torch.no_grad()
    def update(self, index: Tensor, view1: Tensor) -> None:
        """Set each named row to l2((1 - m) * view1 + m * row)."""
        rows = (1 - self.momentum) * view1 + self.momentum * self.memory_bank[index]
        self.memory_bank.index_copy_(0, index, F.normalize(rows, dim=1))


def make_optimizer(config, encoder: Encoder) -> torch.optim.SGD:
    """Return SGD, as one kernel on a GPU and lists of tensors on a CPU."""
    c = config.optimizer
    on_gpu = next(encoder.parameters()).is_cuda
    how = {"fused": True} if on_gpu else {"foreach": True}
    return torch.optim.SGD(
        encoder.parameters(),
        lr=c.learning_rate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        **how,
    )


def make_step(
    objective: Objective, tx: torch.optim.SGD, mode: str = "default"
) -> Callable[[Batch], Terms]:
    """Return the step: it changes the encoder, the bank and `tx`, and returns losses.

    Args:
      objective: in training mode.
      tx: of its encoder's parameters.
      mode: of `torch.compile`, or 'eager'.
    """
    forward: Callable = objective
    update: Callable = objective.update
    if mode != "eager":
        chosen = None if mode == "default" else mode
        forward = torch.compile(objective, mode=chosen, dynamic=False, fullgraph=True)
        update = torch.compile(update, mode=chosen, dynamic=False, fullgraph=True)

    def step(batch: Batch) -> Terms:
        if mode != "eager":
            torch.compiler.cudagraph_mark_step_begin()
        tx.zero_grad(set_to_none=True)
        loss, terms, view1 = forward(batch)
        loss.backward()
        tx.step()
        update(batch["index"], view1.detach())
        return terms | {"loss": loss.detach()}

    return step


def draw_batches(config, num_examples: int, device: torch.device) -> Iterator[Batch]:
    """Yield what is random about each step, drawn on the device, without end."""
    size, side = config.batch_size, config.data.image_size
    alpha = torch.tensor(config.interpolation.alpha, device=device)
    beta = torch.distributions.Beta(alpha, alpha, validate_args=False)
    while True:
        order = torch.randperm(num_examples, device=device)
        for index in order[: num_examples // size * size].split(size):
            box = draw_box(beta.sample(), torch.rand(2, device=device), side)
            area = (box[2] - box[0]) * (box[3] - box[1])
            yield {
                "index": index,
                "uniforms": torch.rand(2, size, UNIFORMS, device=device),
                "partner": torch.randperm(size, device=device),
                "ratio": (1 - area / side**2).repeat(size),
                "box": box.repeat(size, 1),
            }


def draw_box(ratio: Tensor, centre: Tensor, side: int) -> Tensor:
    """Return cutmix's box [4] of area 1 - ratio, clipped to the image."""
    half = torch.floor(side * torch.sqrt(1 - ratio)).to(torch.int32) // 2
    middle = (centre * side).to(torch.int32)
    return torch.cat([middle - half, middle + half]).clamp(0, side)
