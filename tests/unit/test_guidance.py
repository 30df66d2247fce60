"""Guidance against its definitions in plain torch, on every backend to the bit; weights per sample, intervals."""

import math

import pytest
import torch
from torch import nn

import engine
from engine.backends import BACKENDS
from engine.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance, UntrainedClassifier, gradient_of
from engine.plan import Plan
from engine.preconditioning import EDM, VP, Direct, Discrete
from tests.cases import assert_same_bits
from tests.helpers import Wavy, wavy

CPU = torch.device("cpu")
HERE = [b.name for b in BACKENDS if not b.not_supported_reasons(CPU, torch.float64)]
SHAPE = (2, 6, 4)
SAMPLER = engine.samplers.edm(steps=5, S_churn=8)
GUIDE = wavy(EDM(), SHAPE, label_dim=3)
GUIDE.model.gain.data.fill_(0.4)


def draw(guide=None, denoiser=None, **options):
    options = {"seeds": [1, 2, 3], "class_labels": [0, 1, 2], "sampler": SAMPLER} | options
    return engine.sample(denoiser or wavy(EDM(), SHAPE, label_dim=3), guidance=guide, **options)


def slope(x, sigma, labels):
    return torch.tanh(labels.sum(1).reshape(-1, 1, 1, 1) - x) / (1 + sigma.reshape(-1, 1, 1, 1))


KINDS = {
    "cfg": ClassifierFree(1.8),
    "negative": ClassifierFree(1.8, negative=1),
    "interval": ClassifierFree(2.5, interval=(0.1, 5.0)),
    "rescale": ClassifierFree(3.0, rescale=0.7),
    "auto": AutoGuidance(2.2, rescale=0.3, guide=GUIDE),
    "classifier": ClassifierGuidance(0.8, gradient=slope, interval=(0.01, 30.0)),
}


class Guided(nn.Module):
    """The guided denoiser of each paper, in float64 for a whole trajectory: what the engine's table amounts to."""

    def __init__(self, denoiser, kind):
        super().__init__()
        self.denoiser, self.kind, self.label_dim, self.dtype = denoiser, kind, denoiser.label_dim, torch.float64

    def forward(self, x, sigma, labels):
        kind, pre = self.kind, self.denoiser.preconditioning
        D = self.denoiser(x, sigma, labels)
        if not kind.interval[0] <= sigma[0] <= kind.interval[1]:
            return D
        if isinstance(kind, ClassifierGuidance):
            return D + kind.weight * sigma.reshape(-1, 1, 1, 1) ** 2 * slope(x, sigma, labels)
        if isinstance(kind, AutoGuidance):
            other = kind.guide.double()(x, sigma, labels)
        else:
            away = torch.zeros_like(labels)
            if kind.negative is not None:
                away[:, kind.negative] = 1
            other = self.denoiser(x, sigma, away)
        guided = other + kind.weight * (D - other)
        c_skip, c_out, *_ = (c.reshape(-1, 1, 1, 1).double() for c in pre.coefficients(sigma))
        F, F_guided = (D - c_skip * x) / c_out, (guided - c_skip * x) / c_out  # what the network returned: rescaled
        ratio = F.flatten(1).std(1) / F_guided.flatten(1).std(1)
        F_guided = F_guided * (kind.rescale * ratio + 1 - kind.rescale).reshape(-1, 1, 1, 1)
        return c_skip * x + c_out * F_guided


@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_its_paper_says(name):
    kind, denoiser = KINDS[name], wavy(EDM(), SHAPE, label_dim=3).double()
    if isinstance(kind, AutoGuidance):
        kind = AutoGuidance(kind.weight, rescale=kind.rescale, guide=wavy(EDM(), SHAPE, label_dim=3).double())
        kind.guide.model.gain.data.fill_(0.4)
    expected = engine.sample(
        engine.Denoiser(Guided(denoiser, kind), Direct(), img_shape=SHAPE),
        seeds=[1, 2, 3], class_labels=[0, 1, 2], sampler=SAMPLER, output_dtype=torch.float64,
    )  # fmt: skip
    got = draw(kind, denoiser, output_dtype=torch.float64)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()  # Direct sees its input in float32
    assert (got - draw(None, denoiser, output_dtype=torch.float64)).abs().max() > 1e-2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_backend_draws_the_reference_s_bits(name, dtype):
    images = [draw(KINDS[name], dtype=dtype, backend=backend) for backend in HERE]
    for other in images[1:]:
        assert_same_bits(images[0], other, name)


@pytest.mark.parametrize("name", KINDS)
def test_the_weight_that_does_nothing(name):
    kind = KINDS[name]
    neutral = type(kind)(**{**vars(kind), "weight": kind.neutral})
    assert_same_bits(draw(neutral), draw(), name)


@pytest.mark.parametrize("name", ["cfg", "auto", "classifier"])
def test_every_sample_its_own_weight(name):
    kind = KINDS[name]
    weights = [1.5, kind.neutral, 2.5]
    together = draw(type(kind)(**{**vars(kind), "weight": weights}), batch_size=2)
    for i, weight in enumerate(weights):
        alone = draw(type(kind)(**{**vars(kind), "weight": weight}), seeds=[i + 1], class_labels=[i])
        assert_same_bits(together[i], alone[0], f"weight {weight}")


class Counting(Wavy):
    def forward(self, x, *rest):
        self.seen.append(len(x))
        return super().forward(x, *rest)


def test_outside_its_interval_guidance_is_not_evaluated():
    network = Counting(3)
    network.seen = []
    denoiser = engine.Denoiser(network, EDM(), img_shape=SHAPE)
    sampler = engine.samplers.edm(steps=5, solver="euler")
    prepared = engine.Engine(denoiser, sampler=sampler, guidance=ClassifierFree(2.0, interval=(0.05, 10.0)))
    prepared.denoiser.model.seen = []
    prepared.sample(seeds=[1, 2, 3], class_labels=0)
    sigmas = Plan(sampler, EDM()).sigmas
    assert prepared.denoiser.model.seen == [6 if 0.05 <= sigma <= 10 else 3 for sigma in sigmas]
    assert 3 in prepared.denoiser.model.seen
    # Nor in a batch none of whose samples is guided.
    prepared = engine.Engine(denoiser, sampler=sampler, batch_size=2, guidance=ClassifierFree([1.0, 1.0, 1.0, 2.0]))
    prepared.denoiser.model.seen = []
    prepared.sample(seeds=[1, 2, 3, 4], class_labels=0)
    assert prepared.denoiser.model.seen == [2] * 5 + [4] * 5


def test_classifier_guidance_moves_samples_towards_the_class():
    """D of a broad Gaussian, and a classifier of the sign of x."""

    class Half(nn.Module):
        def forward(self, x, sigma):
            total = (1 + sigma**2).sqrt().reshape(-1, 1)
            score = math.sqrt(2 / math.pi) * x / total  # a smooth classifier; exactly how sharp does not matter here
            return torch.cat([-4 * score, 4 * score], 1)

    class Normal(nn.Module):
        label_dim = 2

        def forward(self, x, sigma, labels):
            return x / (1 + sigma.reshape(-1, 1) ** 2)

    denoiser = engine.Denoiser(Normal(), Direct(), img_shape=(1,), label_dim=2)
    kind = ClassifierGuidance(1.0, gradient=gradient_of(Half()))
    x = draw(kind, denoiser, seeds=range(4000), class_labels=1, sampler=engine.samplers.edm(steps=20))
    assert x.mean() > 0.5
    assert (x > 0).double().mean() > 0.85


def test_a_gradient_may_be_autograds():
    def autograd(x, sigma, labels):
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x**2 * sigma.reshape(-1, 1, 1, 1)).sum(), x)[0]

    images = draw(ClassifierGuidance(0.1, gradient=autograd))
    assert not images.requires_grad
    plain = ClassifierGuidance(0.1, gradient=lambda x, sigma, labels: 2 * x * sigma.reshape(-1, 1, 1, 1))
    assert torch.equal(images, draw(plain))


def test_a_classifier_guides_an_unconditional_network():
    """Its textbook use: the class is the classifier's alone, and a seed that is given none draws one."""
    kind = ClassifierGuidance(3.0, gradient=gradient_of(UntrainedClassifier(2, 4, seed=1)), classes=4)
    plain = wavy(EDM(), SHAPE)
    one, other = (draw(kind, plain, class_labels=c) for c in (1, 2))
    assert not torch.equal(one, other)
    drawn = [engine.noise.uniform_int([seed], 4)[0] for seed in (1, 2, 3)]
    assert torch.equal(draw(kind, plain, class_labels=None), draw(kind, plain, class_labels=drawn))
    with pytest.raises(ValueError, match="class_labels contains 4; allowed: 0 to 3"):
        draw(kind, plain, class_labels=4)


def test_a_gradient_under_inference_mode():
    kind = ClassifierGuidance(3.0, gradient=gradient_of(UntrainedClassifier(2, 3)))
    with torch.inference_mode():
        inside = draw(kind)
    assert torch.equal(inside, draw(kind))


def test_an_engine_s_own_guidance_can_be_turned_off():
    prepared = engine.Engine(wavy(EDM(), SHAPE, label_dim=3), sampler=SAMPLER, guidance=KINDS["cfg"])
    asked = {"seeds": [1, 2, 3], "class_labels": [0, 1, 2]}
    assert torch.equal(prepared.sample(**asked), draw(KINDS["cfg"]))
    assert torch.equal(prepared.sample(**asked, guidance=None), draw())
    assert prepared.sample(**asked, guidance=None, sampler=engine.samplers.rk45()).isfinite().all()


def test_weights_may_be_a_tensor():
    assert torch.equal(draw(ClassifierFree(torch.tensor([2.0, 3.0, 1.0]))), draw(ClassifierFree([2.0, 3.0, 1.0])))


def test_the_row_of_a_failure_is_the_plan_s():
    class Late(Wavy):
        def forward(self, x, c_noise, labels):
            F = super().forward(x, c_noise, labels)
            return F * torch.where(c_noise < 0, torch.nan, 1.0).reshape(-1, 1, 1, 1)

    denoiser = engine.Denoiser(Late(3), EDM(), img_shape=SHAPE)
    row = 1 + next(k for k, sigma in enumerate(Plan(SAMPLER, EDM()).sigmas) if sigma < 1)
    for weight in (2.0, [4.0, 3.0, 2.0]):
        with pytest.raises(engine.NonFiniteError, match=f"became non-finite at row {row} of the plan"):
            draw(ClassifierFree(weight), denoiser)


def test_misguided_guidance_has_a_seed():
    classifier = UntrainedClassifier(2, 3, seed=5)
    before = torch.random.get_rng_state()
    same, other = UntrainedClassifier(2, 3, seed=5), UntrainedClassifier(2, 3, seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    images = [draw(ClassifierGuidance(1.0, gradient=gradient_of(c))) for c in (classifier, same, other)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert not torch.equal(images[0], draw())


def test_a_rerun_in_float32_is_guided_by_the_guide_as_it_was_given():
    class Overflows(Wavy):
        def forward(self, x, *rest):
            F = super().forward(x, *rest)
            return F * 1e38 * 1e2 if x.dtype != torch.float32 else F

    denoiser = engine.Denoiser(Overflows(3), EDM(), img_shape=SHAPE)
    kind = AutoGuidance(2.0, guide=GUIDE)
    with pytest.warns(RuntimeWarning, match="run again in float32"):
        got = draw(kind, denoiser, dtype=torch.bfloat16, on_nonfinite="rerun", batch_size=1)
    plain = engine.Denoiser(Wavy(3), EDM(), img_shape=SHAPE)
    assert_same_bits(got, draw(kind, plain, batch_size=1), "rerun")


def test_latents_of_zero_snr_are_guided_where_they_can_be():
    pre = Discrete("linear", zero_snr=True, prediction="v")
    sampler = engine.samplers.ddim(steps=6, discretization="trailing")
    images = draw(ClassifierFree(2.0, rescale=0.7), wavy(pre, SHAPE, label_dim=3), sampler=sampler)
    assert torch.isfinite(images).all()
    everywhere, below = (ClassifierGuidance(1.0, interval=(0.0, end), gradient=slope) for end in (math.inf, 1e3))
    with pytest.raises(ValueError, match=r"interval is \(0.0, inf\); allowed, at zero terminal SNR"):
        draw(everywhere, wavy(pre, SHAPE, label_dim=3), sampler=sampler)
    assert torch.isfinite(draw(below, wavy(pre, SHAPE, label_dim=3), sampler=sampler)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(math.nan), r"weight is nan; allowed: a number up to 1e\+06"),
        (lambda: ClassifierFree(None), "weight is None; allowed: a number"),
        (lambda: ClassifierFree(True), "weight is True; allowed: a number"),
        (lambda: ClassifierFree(1e39), r"weight is 1e\+39; allowed: a number up to"),
        (lambda: ClassifierFree(2.0, interval=3.0), r"interval is 3.0; allowed: \(lowest, highest\)"),
        (
            lambda: ClassifierFree(2.0, interval=("a", "b")),
            r"^interval is \('a', 'b'\); allowed: \(lowest, highest\) sigma, from 0$",
        ),
        (lambda: ClassifierFree(2.0, rescale=None), "rescale is None; allowed: a number from 0 to 1"),
        (lambda: draw(ClassifierFree(2.0, negative=1.5)), "negative is 1.5; allowed: None, or a class"),
        (lambda: draw(ClassifierFree(2.0, negative=True)), "negative is True; allowed: None, or a class"),
        (lambda: ClassifierGuidance(1.0, gradient=slope, classes=-1), "classes is -1; allowed: an integer from 0"),
        (lambda: ClassifierGuidance(1.0, gradient=slope, classes=2.5), "classes is 2.5; allowed: an integer from 0"),
        (lambda: draw(ClassifierGuidance(1.0, gradient=slope, classes=7)), "classes is 7; allowed: the denoiser's 3"),
        (
            lambda: draw(ClassifierGuidance(1.0, gradient=gradient_of(UntrainedClassifier(2, 4)))),
            "classifier knows 4 classes, the samples' labels 3",
        ),
        (lambda: ClassifierFree(2.0, interval=(3.0, 1.0)), r"interval is \(3.0, 1.0\); allowed: \(lowest, highest\)"),
        (lambda: ClassifierFree(2.0, rescale=1.5), "rescale is 1.5; allowed: a number from 0 to 1"),
        (lambda: AutoGuidance(2.0), "guide is None; allowed: an engine.Denoiser"),
        (lambda: ClassifierGuidance(2.0), "gradient is None; allowed: a function"),
        (lambda: draw(ClassifierFree(2.0), wavy(EDM(), SHAPE), class_labels=None), "this one has no labels"),
        (lambda: draw(ClassifierFree(2.0, negative=3)), "negative is 3; allowed: None, or a class from 0 to 2"),
        (lambda: draw(ClassifierFree([1.0, 2.0])), r"weight has 2 entries; allowed: a number, or one a sample \(3\)"),
        (lambda: draw(AutoGuidance(2.0, guide=wavy(EDM(), (1, 4, 4)))), r"guide has img_shape \(1, 4, 4\)"),
        (lambda: draw(AutoGuidance(2.0, guide=wavy(VP(), SHAPE))), r"guide has preconditioning VP\("),
        (lambda: draw(AutoGuidance(2.0, guide=wavy(EDM(), SHAPE, label_dim=7))), "guide has label_dim 7; allowed: 0"),
        (lambda: draw("cfg"), "guidance is 'cfg'; allowed: one of engine.guidance"),
        (lambda: draw(ClassifierFree(2.0), sampler=engine.samplers.rk45()), "ClassifierFree; allowed: None"),
        (lambda: draw(ClassifierGuidance(1.0, gradient=lambda *a: 3)), "gradient returned int; allowed: a tensor"),
    ],
)  # fmt: skip
def test_bad_guidance_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
