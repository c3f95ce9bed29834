"""Two processes give the results of one."""

import os
import socket

import pytest
import torch
from layers import risk_of
from torch.multiprocessing.spawn import start_processes

from opposing_signals.curvature import EigenTracker, curvature_split, gradient_norms, sample_curvature, sample_sharpness
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.optim.sam import ascended_gradient

pytestmark = pytest.mark.slow


def measured(layer: str) -> dict[str, torch.Tensor]:
    risk = risk_of(layer, examples=11, chunk=2)
    size = sum(p.numel() for p in risk.parameters)
    vectors = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    batch = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    products = risk.hessian_products(vectors)
    minibatch = risk.hessian_products(vectors, batch)
    along = sample_curvature(risk, vectors[0])
    pair = EigenTracker(tolerance=1e-8)(lambda v: risk.hessian_products(v).products, vectors[0])
    forward_pass = risk.backward(batch)
    risk.backward_with_products(vectors)
    split = curvature_split(risk, vectors[0])
    dropping = risk_of(layer, examples=11, chunk=2)
    dropping.model.append(torch.nn.Dropout(0.5))
    dropped = [dropping.backward(batch).losses for _ in range(2)]
    few = risk_of(layer, examples=11, chunk=6)  # two processes, one chunk in a batch of five: they share it
    of_few = few.backward(batch[:5])
    gradient_of_few = [parameter.grad for parameter in few.parameters]
    buffers_of_few = torch.cat([buffer.double().reshape(-1) for buffer in [torch.zeros(0), *few.model.buffers()]])
    products_of_few = few.hessian_products(vectors, batch[:5])
    few.model.zero_grad(set_to_none=True)
    few.backward_with_products(vectors, batch[:5])
    assert all(torch.equal(p.grad, bits) for p, bits in zip(few.parameters, gradient_of_few, strict=True))
    split_of_few = curvature_split(few, vectors[0], batch[:5])
    one = risk_of(layer, examples=11, chunk=11)  # one chunk in all
    along_one = sample_curvature(one, vectors[0])
    if layer in ("linear", "attention"):  # with batch norm no example has a loss of its own
        ascended = torch.cat([g.reshape(-1) for g in ascended_gradient(risk, batch, 0.1)])
    else:
        ascended = torch.zeros(0)
    return {
        "ascended": ascended,
        "of_few": torch.cat([p.grad.reshape(-1) for p in few.parameters]),
        "losses_of_few": of_few.losses,
        "products_of_few": products_of_few.products,
        "slopes_of_few": products_of_few.slopes,
        "buffers_of_few": buffers_of_few,
        "products_of_one": one.hessian_products(vectors).products,
        "curvatures_of_one": along_one.curvatures,
        "norms_of_one": gradient_norms(one),
        "of_fewest": risk_of(layer, examples=11).backward(batch[:1] if layer == "linear" else batch).losses,
        "split_of_few": torch.tensor([split_of_few.gauss_newton, split_of_few.functional]),
        "differences": 1e-5 * GradientDifferences(risk)(vectors),  # which have the rounding of gradients over h
        "differences_of_few": 1e-5 * GradientDifferences(few, batch[:5])(vectors),
        "dropped": torch.cat(dropped),
        "random_state": torch.get_rng_state(),  # a checkpoint holds that of the first process
        "gradient_norms": gradient_norms(risk),
        "sample_sharpness": sample_sharpness(risk, torch.tensor([10, 3]))[0],
        "split": torch.tensor([split.gauss_newton, split.functional]),
        "losses": products.losses,
        "gradient": products.gradient,
        "products": products.products,
        "slopes": products.slopes,
        "minibatch_products": minibatch.products,
        "minibatch_slopes": minibatch.slopes,
        "curvatures": along.curvatures,
        "eigenvalue": pair.values,
        "outputs": forward_pass.outputs,
        "sample_losses": risk.sample_losses().losses,
        "accumulated": torch.cat([p.grad.reshape(-1) for p in risk.parameters]),
    }


def worker(rank: int, port: int, layers: tuple[str, ...], folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.save({layer: measured(layer) for layer in layers}, f"{folder}/{rank}.pt")
        messages = []
        with pytest.MonkeyPatch.context() as patched:
            all_reduce = torch.distributed.all_reduce
            patched.setattr(torch.distributed, "all_reduce", lambda sent: (messages.append(sent), all_reduce(sent)))
            risk_of("batch_norm", chunk=2).backward()
        assert len(messages) == 5, "which are used, gradients, buffers, losses and outputs: one message each"
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_measures(tmp_path):
    layers = "linear", "batch_norm", "residual", "attention"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start_processes(worker, (port, layers, str(tmp_path)), nprocs=2, start_method="forkserver")
    for layer in layers:
        alone = measured(layer)
        for rank in range(2):
            shared = torch.load(tmp_path / f"{rank}.pt")[layer]
            assert shared.keys() == alone.keys()
            for name, value in alone.items():
                torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=1e-11, msg=f"{layer}: {name}")
