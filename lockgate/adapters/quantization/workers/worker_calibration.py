"""Calibration in a worker: texts become tokens, and the layers that see them say how far it is."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from worker_channel import Channel, Unusable  # type: ignore[import-not-found]


def as_text(tokenizer: Any, item: dict[str, Any]) -> str:
    """A conversation goes through the model's own chat template, if it has one; a text stays as it is."""
    if "text" in item:
        return str(item["text"])
    messages = item["messages"]
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages)
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def sample_loader(
    tokenizer: Any, items: list[dict[str, Any]], max_tokens: int
) -> tuple[DataLoader[Any], int]:
    """One sample a batch, unpadded, in the given order, with the number of tokens in all of them together."""
    samples = []
    for item in items:
        # A template writes the special tokens itself.
        ids = tokenizer(as_text(tokenizer, item), add_special_tokens="text" in item)["input_ids"]
        ids = ids[:max_tokens]
        if ids:
            row = torch.tensor([ids], dtype=torch.long)
            samples.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
    if not samples:
        raise Unusable("the calibration data hold no token")
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_size=1,
        shuffle=False,
        collate_fn=lambda batch: batch[0],
    )
    return loader, sum(sample["input_ids"].numel() for sample in samples)


class LayerProgress:
    """Reports, while entered, how many of the layers have begun to see data, over `passes` passes through the model.

    llm-compressor draws bars only. Its calibration goes layer by layer, so the first forward call of a layer says how far it is.
    """

    def __init__(
        self, layers: dict[str, Any], passes: int, channel: Channel, begin: float, end: float
    ) -> None:
        self._layers = layers
        self._passes = passes
        self._channel = channel
        self._begin, self._end = begin, end
        self._order = {name: number for number, name in enumerate(layers, 1)}
        self._reached = 0
        self._pass = 0
        self._told = -1
        self._handles: list[Any] = []

    def __enter__(self) -> LayerProgress:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        number = self._order[name]

        def reached(module: Any, arguments: Any, output: Any) -> None:
            total = len(self._order)
            if number == 1 and self._reached == total and self._pass < self._passes - 1:
                self._pass += 1
                self._reached = 0
            if number <= self._reached:
                return
            self._reached = number
            done = (self._pass + (number - 1) / total) / self._passes
            percent = int(100 * done)
            if percent > self._told:
                self._told = percent
                self._channel.progress(
                    "calibrate",
                    self._begin + (self._end - self._begin) * done,
                    f"layer {number} of {total}"
                    + (f", pass {self._pass + 1} of {self._passes}" if self._passes > 1 else ""),
                )

        return reached
