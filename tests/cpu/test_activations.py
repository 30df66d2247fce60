"""Memory that a prepared network uses again: only what nothing refers to, neither a tensor nor a view of it."""

import threading

import torch

from engine.networks.activations import Activations

SHAPE = (2, 64, 64, 64)  # 2 MiB of float32
X = torch.empty(0)


def test_it_is_used_again_when_nothing_refers_to_it():
    kept = Activations()
    first = kept.empty(X, SHAPE)
    assert first.shape == SHAPE
    assert first.is_contiguous(memory_format=torch.channels_last)
    address = first.data_ptr()
    view = first[:, :3]
    del first
    second = kept.empty(X, SHAPE)
    assert second.data_ptr() != address
    del view
    assert kept.empty(X, SHAPE).data_ptr() == address
    assert kept.empty(X.bfloat16(), (2, 128, 64, 64)).dtype == torch.bfloat16


def test_another_batch_size_lets_it_go():
    kept = Activations()
    alive = kept.empty(X, SHAPE).fill_(7)
    assert sum(map(len, kept._blocks.values())) == 1
    other = kept.empty(X, (4, 32, 64, 64)).fill_(3)
    assert sum(map(len, kept._blocks.values())) == 1
    assert bool((alive == 7).all())
    assert bool((other == 3).all())


def test_small_tensors_are_torchs():
    kept = Activations()
    assert kept.empty(X, (1, 16, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    assert not kept._blocks


def test_threads_do_not_share_a_tensor():
    kept, wrong = Activations(), []

    def fill(value: float) -> None:
        for _ in range(200):
            mine = kept.empty(X, SHAPE).fill_(value)
            if not bool((mine == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=fill, args=(float(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
