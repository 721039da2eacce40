"""One of two processes that train by the recipes for frameworks; see test_recipes.py.

Each recipe's cell is taken from the notebook. Written to FOLDER/RANK.json: by how much
the weights differ from those of SAM by hand, relative to their change.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from small_book import ROOT, read, text_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CELLS = [text_of(c) for c in read(ROOT / "notebooks" / "A3_recipes.ipynb")["cells"]]


def run(start: str, names: dict[str, Any]) -> None:
    """Execute the cell that starts so."""
    (cell,) = [text for text in CELLS if text.startswith(start)]
    exec(cell, names)


def everyone(batches: list[Any]) -> list[list[Any]]:
    """The batches of all processes, one list each."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, batches)
    return found


def by_hand(names: dict[str, Any], net: nn.Module, loss: Any, batches: Any, k: int):
    """The weights after steps of k micro-batches, of which each process has its own."""
    sums: list[Tensor] = []
    for parts in zip(*batches, strict=True):
        sams = [
            names["sam_by_hand"](net, lambda part=p: loss(net, part)) for p in parts
        ]
        sums.append(torch.stack(sams).mean(0))
        if len(sums) == k:
            names["descend"](net, torch.stack(sums).mean(0))
            sums.clear()
    return names["weights"](net)


def main(folder: str) -> None:
    names: dict[str, Any] = {"profile": "smoke", "seed": 0, "rho": 0.05}
    run("import io\nimport logging", names)
    run("def sam_by_hand", names)
    run("def gradient", names)
    run("warnings.filterwarnings", names)
    lightning, transformers = names["lightning"], names["transformers"]
    weights, make_net = names["weights"], names["make_net"]
    data = TensorDataset(names["pixels"][:256], names["labels"][:256])
    found, seen = {}, []

    def compared(net: nn.Module, fresh: nn.Module, loss: Any, k: int) -> float:
        start = weights(fresh)
        wanted = by_hand(names, fresh, loss, everyone(seen), k)
        return float((weights(net) - wanted).norm() / (wanted - start).norm())

    def classify(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def kept(net: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0].clone())

    # Accelerate: the net's inputs are kept, of the first of SAM's two passes
    run("def train_with_accelerate", names)
    net = make_net()
    handle = net.register_forward_pre_hook(kept)
    names["train_with_accelerate"](net, data, 2)
    handle.remove()
    rows = {x.numpy().tobytes(): y for x, y in data}
    seen[:] = [
        (x, torch.stack([rows[r.numpy().tobytes()] for r in x])) for x in seen[::2]
    ]
    found["accelerate"] = compared(net, make_net(), classify, 2)

    # Trainer
    seen.clear()
    run("def tiny_gpt", names)
    run("class SAMTrainer", names)

    class Trainer(names["SAMTrainer"]):
        def training_step(self, model, inputs, *args):
            seen.append(inputs["input_ids"].clone())
            return super().training_step(model, inputs, *args)

    torch.manual_seed(0)
    sentences = torch.randint(64, (32, 16))
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    net = names["tiny_gpt"]()
    rows = [{"input_ids": row, "labels": row} for row in sentences]
    Trainer(model=net, args=arguments, train_dataset=rows).train()
    found["Trainer"] = compared(
        net, names["tiny_gpt"](), lambda m, x: m(input_ids=x, labels=x).loss, 2
    )

    # Lightning
    seen.clear()
    run("class ManualSAM", names)
    run("class AutomaticSAM", names)

    class Module(names["ManualSAM"]):
        def training_step(self, batch, batch_index):
            seen.append([part.clone() for part in batch])
            super().training_step(batch, batch_index)

    def trainer() -> Any:
        return lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=dist.get_world_size(),
            strategy="ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    module = Module()
    trainer().fit(module, DataLoader(data, 32))
    found["Lightning"] = compared(module.net, make_net(), classify, 1)
    try:
        trainer().fit(names["AutomaticSAM"](), DataLoader(data, 32))
    except RuntimeError as error:
        found["refused"] = str(error)
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
