# SPDX-License-Identifier: Apache-2.0
"""A LeRobot plugin that keeps a dataset of small pictures in memory, decoded.

    lerobot-train --dataset.discover_packages_path=smolvla_mem_ros.training ...

LeRobot 0.6.1 decodes every picture of every row that it looks up, also where it wants only the actions: 45 ms
for a sample of 6 segments and 2 cameras. From memory it takes 3 ms, with equal values.
Datasets whose cameras are videos are left as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lerobot.datasets.dataset_reader import DatasetReader
from tqdm import tqdm

MAX_BYTES = 8 * 2**30  # of decoded pictures; larger datasets are read from disk as ever


class InMemoryTable:
    """Rows of a Hugging Face dataset as LeRobot reads them, from memory.

    Answers ``table[row]`` and ``table[column][rows]``; anything else goes to the dataset itself.
    """

    def __init__(self, table: Any, pictures: list[str]) -> None:
        self._table = table
        plain = table.with_format(None)
        self._columns: dict[str, torch.Tensor] = {}
        for name in plain.column_names:
            if name in pictures:
                column = plain.select_columns([name])
                bar = tqdm(column, desc=f"decoding {name}", unit="img", leave=False)
                rows = np.stack([np.asarray(row[name]) for row in bar])
                self._columns[name] = torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
            else:
                self._columns[name] = torch.from_numpy(np.array(plain.with_format("numpy")[name][:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return _Column(self._columns[key])
        return {name: _as_read(values[key]) for name, values in self._columns.items()}


class _Column:
    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __getitem__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        return _as_read(self._values[rows]).unbind()


def _as_read(values: torch.Tensor) -> torch.Tensor:
    """As LeRobot's reader gives them: pictures as floats in [0, 1]."""
    return values.float() / 255 if values.dtype == torch.uint8 else values


def _load(reader: DatasetReader) -> Any:
    table = _load_from_disk(reader)
    features = reader._meta.features
    pictures = [key for key, feature in features.items() if feature["dtype"] == "image"]
    size = len(table) * sum(int(np.prod(features[key]["shape"])) for key in pictures)
    return InMemoryTable(table, pictures) if pictures and size <= MAX_BYTES else table


_load_from_disk = DatasetReader._load_hf_dataset
DatasetReader._load_hf_dataset = _load
