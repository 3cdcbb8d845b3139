"""Influence from gradients: against explicit inverses, exact kernels, and the truth on a problem where it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wrinklefree.data.influence import (
    LayerGradients,
    damping,
    datainf_scores,
    hadamard,
    inverse_hessian_vector,
    landmark_coefficients,
    landmark_scores,
    project,
)
from wrinklefree.errors import InputError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_with_one_gradient_datainf_is_the_exact_inverse() -> None:
    gradient, vector, damp = random(1, 7), random(7, seed=1), 0.3
    hessian = damp * torch.eye(7, dtype=torch.float64) + gradient.T @ gradient
    torch.testing.assert_close(inverse_hessian_vector(gradient, vector, damp), torch.linalg.solve(hessian, vector))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_with_several_it_is_the_mean_of_the_inverses(n: int) -> None:
    gradients, vector, damp = random(n, 9), random(9, seed=1), 0.05
    eye = torch.eye(9, dtype=torch.float64)
    inverses = torch.stack([torch.linalg.inv(damp * eye + torch.outer(g, g)) for g in gradients])
    torch.testing.assert_close(inverse_hessian_vector(gradients, vector, damp), inverses.mean(0) @ vector)


def test_scores_sum_over_layers_with_the_papers_damping() -> None:
    layers = [LayerGradients(random(6, d, seed=d), random(d, seed=d + 1), d) for d in (3, 8)]
    expected = torch.zeros(6, dtype=torch.float64)
    for layer in layers:
        n, d = layer.train.shape
        lam = 0.1 * sum(float(g @ g) / d for g in layer.train) / n
        assert damping(layer.train, d) == pytest.approx(lam)
        eye = torch.eye(d, dtype=torch.float64)
        inverse = torch.stack([torch.linalg.inv(lam * eye + torch.outer(g, g)) for g in layer.train]).mean(0)
        expected += torch.stack([layer.probe @ inverse @ g for g in layer.train])
    torch.testing.assert_close(datainf_scores(layers), expected)


def test_a_layer_without_gradient_says_nothing() -> None:
    assert datainf_scores([LayerGradients(torch.zeros(3, 4), torch.ones(4), 4)]).tolist() == [0.0, 0.0, 0.0]


def test_the_score_has_the_sign_of_the_true_effect() -> None:
    """Least squares: one small gradient step on a sequence with a positive score lowers the probe's loss."""
    x, w = random(30, 5), random(5, seed=1)
    y = x @ random(5, seed=2) + 0.1 * random(30, seed=3)
    probe_x, probe_y = random(20, 5, seed=4), random(20, 5, seed=4) @ random(5, seed=2)
    gradients = (x @ w - y)[:, None] * x
    probe = ((probe_x @ w - probe_y)[:, None] * probe_x).mean(0)
    scores = datainf_scores([LayerGradients(gradients, probe, 5)])

    def loss(at: Tensor) -> float:
        return float((probe_x @ at - probe_y).square().mean())

    truth = torch.tensor([loss(w) - loss(w - 1e-4 * g) for g in gradients])
    assert torch.corrcoef(torch.stack([scores, truth]))[0, 1] > 0.7
    helps = scores.abs() > scores.abs().median()
    assert (torch.sign(scores) == torch.sign(truth))[helps].all()


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_with_every_sequence_a_landmark_it_is_exact(kernel: str) -> None:
    embeddings, gradients, probe = random(12, 16), random(12, 30, seed=1), random(30, seed=2)
    everything = torch.arange(12)
    scores = landmark_scores(embeddings, everything, gradients, probe, 1e-9, kernel)  # type: ignore[arg-type]
    exact = torch.nn.functional.normalize(gradients, dim=1) @ probe
    torch.testing.assert_close(scores, exact, rtol=1e-5, atol=1e-6)


def test_few_landmarks_beat_chance_by_far_when_embeddings_tell() -> None:
    """200 sequences in five families of gradients; noisy linear views of them as embeddings; 20 landmarks."""
    families = random(5, 60)
    family = torch.arange(200) % 5
    gradients = families[family] + 0.5 * random(200, 60, seed=1)
    embeddings = gradients @ random(60, 12, seed=2) / 60**0.5 + 0.1 * random(200, 12, seed=3)
    probe = families[2] + 0.2 * random(60, seed=4)
    exact = torch.nn.functional.normalize(gradients, dim=1) @ probe
    landmarks = torch.randperm(200, generator=torch.Generator().manual_seed(5))[:20]
    rest = torch.ones(200, dtype=torch.bool)
    rest[landmarks] = False

    def correlation(points: Tensor) -> float:
        scores = landmark_scores(points, landmarks, gradients[landmarks], probe)
        return float(torch.corrcoef(torch.stack([scores[rest], exact[rest]]))[0, 1])

    assert correlation(embeddings) > 0.8
    assert abs(correlation(random(200, 12, seed=6))) < 0.3  # embeddings that tell nothing


def test_coefficients_are_the_ridge_solution() -> None:
    points, landmarks = random(6, 3), torch.tensor([0, 2, 5])
    chosen = points[landmarks]
    own = chosen @ chosen.T
    damped = own + 0.1 * own.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    expected = points @ chosen.T @ torch.linalg.inv(damped)
    torch.testing.assert_close(landmark_coefficients(points, landmarks, 0.1, "linear"), expected)
    with pytest.raises(InputError, match="landmarks"):
        landmark_coefficients(points, torch.tensor([], dtype=torch.int64), 0.1)


def test_hadamard_is_orthonormal_and_its_own_inverse() -> None:
    matrix = hadamard(torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64))
    assert set((matrix * 4).flatten().tolist()) == {-1.0, 1.0}
    vectors = random(3, 64)
    torch.testing.assert_close(hadamard(hadamard(vectors)), vectors)


def test_projection_keeps_products_on_average_and_small_vectors_exactly() -> None:
    a, b = random(4, 1000), random(4, 1000, seed=1) + random(4, 1000)
    torch.testing.assert_close(project(a, 1000, 0), a.float())
    exact = a @ b.T
    found = torch.stack([(project(a, 256, s).double() @ project(b, 256, s).double().T) for s in range(200)])
    # One product is off by about |a| |b| / sqrt(256); the mean of 200 by a fourteenth of that, four times allowed.
    allowed = 4 * float(a.norm(dim=1).max() * b.norm(dim=1).max()) / 16 / 200**0.5
    assert (found.mean(0) - exact).abs().max() < allowed
    assert torch.equal(project(a, 256, 7), project(a, 256, 7))
    assert not torch.equal(project(a, 256, 7), project(a, 256, 8))
