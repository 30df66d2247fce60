"""Every sampler on the list: its plain form, every backend, its order of convergence, its distribution."""

import copy
import functools
import inspect
import itertools
import math
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine import loop, samplers
from engine.backends import BACKENDS, REFERENCE
from engine.plan import Plan
from engine.preconditioning import EDM, IDDPM, VP, Direct
from engine.samplers import CHURN_PRESETS, REGISTRY, Levels, linear, registry
from engine.samplers.tables import TableSampler
from engine.state import Noise, State
from tests import plain_samplers
from tests.cases import assert_same_bits
from tests.helpers import gaussian, wavy

CPU = torch.device("cpu")
HERE = [b for b in BACKENDS if not b.not_supported_reasons(CPU, torch.float64)]
CHURN = {"S_churn": 12.0, "S_tmin": 0.1, "S_tmax": 60.0, "S_noise": 1.003}
TABLES = [name for name, entry in REGISTRY.items() if entry.fused]
# Options that exercise what the defaults do not.
VARIANTS = [
    *[(name, {}) for name in TABLES],
    *[("edm", CHURN), ("edm", {"solver": "euler"}), ("ddim", {"eta": 0.7}), ("dpmpp_2m_sde", {"eta": 0.0})],
    *[("lms", {"order": n}) for n in (1, 2, 3)],
    *[("dpmpp_2s", {"r": 0.3}), ("langevin", {"inner": 2, "epsilon": 0.3})],
    *[("ablation", CHURN | {"alpha": alpha, "solver": "heun"}) for alpha in (0.5, 2 / 3, 1.0)],
    *[
        ("ablation", {"discretization": d, "schedule": schedule, "scaling": scaling, "alpha": 2 / 3} | CHURN)
        for d, (schedule, scaling) in itertools.product(
            ("edm", "vp", "ve", "iddpm"), itertools.product(("linear", "vp", "ve"), ("none", "vp"))
        )
    ],
]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: str(v))


def test_every_sampler_has_a_plain_form():
    assert set(TABLES) == {name for name, value in vars(plain_samplers).items() if inspect.isfunction(value)} - {
        "_half_logs"
    }


@variants
def test_it_is_what_its_paper_says(name, options):
    """float64 throughout, so that what differs is the table: agreement to 1e-10 of the largest value."""
    denoiser = gaussian((1, 4, 4), std=0.3)
    steps = 7
    sampler = REGISTRY[name].make(steps=steps, sigma_min=0.05, sigma_max=20, **options)
    plan = Plan(sampler, denoiser.preconditioning)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(plan.draws, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    got = engine.sample(
        denoiser, latents=latents, noise=noise, sampler=sampler, output_dtype=torch.float64, backend="reference"
    )
    levels = sampler.levels
    sigmas = levels.sigmas(denoiser.preconditioning)
    own = {k: v for k, v in options.items() if k not in ("discretization",)}
    if options.get("schedule") == "vp":
        schedule = levels.vp_schedule(denoiser.preconditioning)
        own["betas"] = (schedule.beta_d, schedule.beta_min)

    def D(x, sigma):  # the network sees sigma in float32
        return denoiser.model(x, torch.as_tensor(sigma).to(torch.float32).expand(len(x)))

    expected = getattr(plain_samplers, name)(D, latents * sigmas[0], sigmas, lambda i: noise[i], **own)
    # Where the plain form reaches a level by another route, float32 may round it to the neighbour: 2^-24 relative.
    assert (got - expected).abs().max() <= 2e-7 * expected.abs().max()


@variants
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32], ids=str)
def test_every_backend_draws_the_reference_s_bits(name, options, state_dtype):
    sampler = REGISTRY[name].make(steps=6, **options)
    for pre, dtype in [(EDM(), torch.bfloat16), (VP(), torch.float32), (IDDPM(), torch.float16)]:
        denoiser = wavy(pre, (3, 5, 6), extra_channels=3 if isinstance(pre, IDDPM) else 0)
        drawn = [
            engine.sample(
                denoiser,
                seeds=[3, 2**63, 0],
                sampler=sampler,
                dtype=dtype,
                state_dtype=state_dtype,
                output_dtype=state_dtype,
                backend=backend.name,
            )
            for backend in HERE
        ]
        for images in drawn[:-1]:
            assert_same_bits(images, drawn[-1], f"{name} {options}")
        assert torch.isfinite(drawn[-1]).all()


VP_WORLD = {"schedule": "vp", "scaling": "vp", "discretization": "vp"}


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("edm", {}, 2),
        ("edm", {"solver": "euler"}, 1),
        ("ddim", {}, 1),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2s", {}, 2),
        ("dpmpp_2s", {"r": 0.7}, 2),
        ("dpmpp_2m_sde", {"eta": 0.0}, 2),
        ("unipc", {}, 3),
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("ablation", {"alpha": 0.5}, 3),  # 2 in general; on this equation the third-order term happens to vanish
        ("ablation", {"alpha": 2 / 3}, 2),
        ("ablation", {"solver": "euler"} | VP_WORLD, 1),
        ("ablation", VP_WORLD, 2),
        ("ablation", {"schedule": "ve", "discretization": "ve"}, 2),
    ],
    ids=lambda v: str(v),
)
def test_order_of_convergence(name, options, order):
    """On the Gaussian's ODE, whose solution is known, from sigma_max to sigma_min: all rows but the last."""
    denoiser = gaussian()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)

    def network(state, k, guided):
        return denoiser.model(state.net_in, state.c_noise), None

    errors = []
    for steps in (32, 64, 128):
        sampler = REGISTRY[name].make(steps=steps, sigma_min=0.1, sigma_max=20, **options)
        plan = Plan(sampler, denoiser.preconditioning)
        state = State.allocate(
            torch.tensor(plan.table),
            plan.slots,
            Noise((1, 4, 4), latents=latents),
            torch.zeros(2, dtype=torch.int64),
            state_dtype=torch.float64,
            net_dtype=torch.float64,
        )
        loop.run(network, state, [False] * plan.nfe, REFERENCE)
        exact = denoiser.model.solution(latents * 20, 20, 0.1)
        errors.append((state.x / plan.rows[-1].s - exact).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.15), errors


class Mixture(nn.Module):
    """The optimal D of a mixture of two Gaussians of one dimension, N(m_i, 0.25^2) with weights w_i."""

    means, weights, std = (-1.0, 0.5), (0.3, 0.7), 0.25

    def __init__(self):
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))

    def forward(self, x, sigma):
        total = self.std**2 + sigma[:, None] ** 2
        logs = torch.stack(
            [math.log(w) - (x - m) ** 2 / (2 * total) for m, w in zip(self.means, self.weights, strict=True)]
        )
        share = torch.softmax(logs, 0)
        means = torch.stack([(self.std**2 * x + sigma[:, None] ** 2 * m) / total for m in self.means])
        return (share * means).sum(0)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("edm", {}, 40),
        ("edm", {"S_churn": 100.0}, 200),
        ("ablation", {"schedule": "vp", "scaling": "vp", "discretization": "vp"}, 60),
        ("ddim", {}, 200),
        ("dpmpp_2m", {}, 60),
        ("dpmpp_2s", {}, 40),
        ("lms", {}, 60),
        ("ddpm", {}, 200),
        ("ddim", {"eta": 0.5}, 200),
        ("euler_maruyama", {}, 400),
        ("predictor_corrector", {}, 200),
        ("dpmpp_2m_sde", {}, 100),
        ("langevin", {"inner": 20, "epsilon": 0.1, "discretization": "ve"}, 60),
        ("unipc", {}, 60),
    ],
    ids=lambda v: str(v),
)
def test_samples_have_the_distribution_of_the_data(name, options, steps):
    check_distribution(REGISTRY[name].make(steps=steps, sigma_min=0.02, sigma_max=30, **options))


def test_every_sampler_has_its_distribution_tested():
    marks = test_samples_have_the_distribution_of_the_data.pytestmark
    assert {name for name, *_ in marks[0].args[1]} == set(TABLES)


def test_rk45_has_the_distribution_of_the_data():
    check_distribution(samplers.rk45(sigma_min=0.02, sigma_max=30))


def check_distribution(sampler):
    count = 20_000
    denoiser = engine.Denoiser(Mixture(), Direct(), img_shape=(1,))
    x = engine.sample(denoiser, seeds=range(count), sampler=sampler, batch_size=count).flatten().double()
    left = (x < -0.25).double().mean()
    assert left.item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / count))
    for side, mean in [(x[x < -0.25], -1.0), (x[x >= -0.25], 0.5)]:
        assert side.mean().item() == pytest.approx(mean, abs=0.02)
        assert side.std().item() == pytest.approx(0.25, abs=0.02)


def test_one_step_goes_straight_to_zero():
    for name in TABLES:
        options = {"inner": 1} if name == "langevin" else {}
        plan = Plan(REGISTRY[name].make(steps=1, **options), EDM())
        assert plan.nfe == (2 if name == "predictor_corrector" else 1), name
        assert plan.sigmas == (pytest.approx(80.0),) * plan.nfe
        assert torch.isfinite(engine.sample(wavy(EDM()), seeds=[1], sampler=plan.sampler)).all()


def test_presets_of_the_paper():
    assert CHURN_PRESETS["imagenet-64"] == samplers.Churn(40, 0.05, 50, 1.003)
    with pytest.raises(TypeError, match="does not support item assignment"):
        CHURN_PRESETS["imagenet-64"] = samplers.Churn()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"eta": 1.5}, r"eta is 1.5; allowed: a number from 0 to 1"),
        ("dpmpp_2s", {"r": 0.0}, "r is 0.0"),
        ("ddim", {"eta": "1"}, "eta is '1'; allowed: a number from 0 to 1"),
        ("ddim", {"steps": True}, "steps is True; allowed: an integer from 1 to 100000"),
        ("edm", {"steps": 10**6}, "steps is 1000000; allowed: an integer from 1 to 100000"),
        ("ddim", {"steps": "7"}, "steps is '7'; allowed: an integer from 1"),
        ("edm", {"rho": "7"}, "rho is '7'; allowed: a finite number above 0"),
        ("edm", {"rho": None}, "rho is None; allowed: a finite number above 0"),
        ("edm", {"S_churn": None}, "S_churn is None; allowed: a number from 0"),
        ("edm", {"S_noise": math.nan}, "S_noise is nan; allowed: a finite number from 0"),
        ("edm", {"S_noise": math.inf}, "S_noise is inf; allowed: a finite number from 0"),
        ("edm", {"sigma_min": "1"}, "sigma_min is '1'; allowed: a finite number above 0"),
        ("edm", {"sigma_max": "80"}, "sigma_max is '80'; allowed: a finite number above sigma_min = 0.002"),
        ("ablation", {"alpha": "1"}, "alpha is '1'; allowed: a number from 1e-6 to 1"),
        ("ablation", {"alpha": 1e-300}, "alpha is 1e-300; allowed: a number from 1e-6 to 1"),
        ("ablation", {"solver": "euler", "alpha": 0.5}, "alpha is 0.5; allowed: 1.0, unless solver is 'heun'"),
        ("ablation", {"epsilon_s": None}, "epsilon_s is None; allowed: a number from 1e-9, below 1"),
        (
            "ablation",
            {"discretization": "vp", "epsilon_s": 1e-300},
            "epsilon_s is 1e-300; allowed: a number from 1e-9, below 1",
        ),
        ("ablation", {"discretization": "iddpm", "C_1": 1e300}, r"C_1 is 1e\+300; allowed: a number between 0 and 1"),
        (
            "ablation",
            {"discretization": "iddpm", "M": 10**9},
            "M is 1000000000; allowed: an integer from 2 to 100000",
        ),
        ("ablation", {"M": 10.0}, "M is 10.0; allowed: an integer from 2"),
        ("dpmpp_2m_sde", {"eta": math.inf}, "eta is inf; allowed: a finite number from 0"),
        ("dpmpp_2s", {"r": "a"}, "r is 'a'; allowed: a number from 1e-6 to 1"),
        ("dpmpp_2s", {"r": 1e-320}, "r is 1e-320; allowed: a number from 1e-6 to 1"),
        ("lms", {"order": 2.0}, "order is 2.0; allowed: an integer from 1 to 4"),
        ("langevin", {"epsilon": ()}, r"epsilon is \(\); allowed: a number between 0 and 1"),
        ("predictor_corrector", {"snr": None}, "snr is None; allowed: a number between 0 and 1"),
        ("rk45", {"rtol": "a"}, "rtol is 'a'; allowed: a finite number above 0"),
        ("rk45", {"sigma_max": "80"}, "sigma_max is '80'; allowed: a finite number above sigma_min = 0.002"),
        ("rk45", {"max_nfe": 100.0}, "max_nfe is 100.0; allowed: an integer from 9"),
        ("lms", {"order": 5}, "order is 5; allowed: an integer from 1 to 4"),
        ("langevin", {"inner": 0}, "inner is 0; allowed: an integer from 1"),
        ("predictor_corrector", {"snr": 0.0}, "snr is 0.0; allowed: a number between 0 and 1"),
        ("rk45", {"rtol": 0.0}, "rtol is 0.0; allowed: a finite number above 0"),
        ("rk45", {"sigma_max": 0.001}, "sigma_max is 0.001; allowed: a finite number above sigma_min = 0.002"),
        ("rk45", {"max_nfe": 3}, "max_nfe is 3; allowed: an integer from 9"),
        ("ddim", {"steps": 0}, "steps is 0; allowed: an integer from 1"),
        ("ddim", {"discretization": "cosine"}, "discretization is 'cosine'; allowed: 'edm', 'vp', 've', 'iddpm'"),
        ("ablation", {"alpha": 0.0}, "alpha is 0.0"),
        ("ablation", {"schedule": "cosine"}, "schedule is 'cosine'"),
        ("ablation", {"scaling": "ve"}, "scaling is 've'"),
        ("ablation", {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max is 2.0; allowed: a finite number above"),
        ("ablation", {"epsilon_s": 0.0}, "epsilon_s is 0.0"),
    ],
)
def test_bad_options_are_refused_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        REGISTRY[name].make(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(samplers.edm(), churn=3), "churn is 3; allowed: samplers.Churn(...)"),
        (lambda: replace(samplers.ablation(), churn=3), "churn is 3; allowed: samplers.Churn(...)"),
        (lambda: samplers.InversionSampler(solver="rk4"), "solver is 'rk4'; allowed: 'heun', 'euler'"),
        (
            lambda: samplers.InversionSampler(Levels(1)),
            "steps is 1; allowed: an integer from 2, to rise from one to another",
        ),
        (
            lambda: samplers.TableSampler(3, Levels()),
            "generate is 3; allowed: a function that yields rows made by linear(...)",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def two_draws_but_in_the_last(sigmas):
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        if sigma_next == 0:
            yield linear(sigma, D=1.0)
            return
        yield linear(sigma, x=0.9, D=0.1, std=0.1, draw=2 * i)
        yield linear(sigma, x=sigma_next / sigma, D=1 - sigma_next / sigma, std=0.1, draw=2 * i + 1)


@pytest.mark.parametrize("noise", ["philox", "torch"])
def test_noises_are_counted_in_the_rows_there_are(noise):
    sampler = samplers.TableSampler(two_draws_but_in_the_last, Levels(4))
    assert Plan(sampler, EDM()).draws == 6
    images = engine.sample(wavy(EDM()), seeds=[1, 2], sampler=sampler, noise=noise)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(
    ("name", "options", "draws"),
    [
        ("edm", CHURN, 7),
        ("ddim", {"eta": 1.0}, 7),
        ("dpmpp_2m", {}, 7),
        ("predictor_corrector", {}, 14),
        ("langevin", {"inner": 3}, 21),
    ],
)
def test_noises_a_sample_may_need(name, options, draws):
    """noise="torch" draws so many of each seed: one a step, used or not, as published, or all there are."""
    assert Plan(REGISTRY[name].make(7, **options), EDM()).draws == draws


def test_a_name_of_another_module_s_sampler_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))

    def ddim(sigmas):
        yield linear(sigmas[0], D=1.0)

    message = "the sampler's name is 'ddim'; allowed: one that engine.samplers.ancestral has not listed already"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        samplers.table(source="a test")(ddim)
    assert registry.REGISTRY["ddim"].make is samplers.ddim


@pytest.mark.parametrize("told", [{"stochastic": True}, {"order": 2}, {"evaluations": 1}, {"source": None}])
def test_what_is_told_of_a_sampler_is_text(told):
    (name, value), *_ = told.items()
    message = f"{name} is {value}; allowed: text, as `samplers.registry.Entry` says"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        samplers.table(**{"source": "a test"} | told)(lambda sigmas: iter(()))


@pytest.mark.parametrize("name", TABLES)
def test_samplers_go_to_other_processes(name):
    sampler = REGISTRY[name].make(5, sigma_max=20.0)
    assert pickle.loads(pickle.dumps(sampler)) == copy.deepcopy(sampler) == sampler


def decorated(sigmas):
    yield linear(sigmas[0], D=1.0)


def test_a_sampler_without_a_name_says_so():
    @samplers.table(source="a test")
    def nameless(sigmas):
        yield linear(sigmas[0], D=1.0)

    registry.REGISTRY.pop("nameless")
    with pytest.raises(pickle.PicklingError, match=r"^nameless is not the sampler of that name in its module$"):
        pickle.dumps(nameless(2))
    assert copy.deepcopy(nameless(2)) == copy.copy(nameless(2)) == nameless(2)


def test_a_sampler_of_a_decorated_generator_goes_to_other_processes(monkeypatch):
    inner = decorated

    @functools.wraps(inner)
    def outer(sigmas):
        return inner(sigmas)

    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    monkeypatch.setattr(sys.modules[__name__], "decorated", samplers.table(source="a test")(outer))
    sampler = sys.modules[__name__].decorated(2)
    assert pickle.loads(pickle.dumps(sampler)) == sampler


def test_a_module_may_be_run_again(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))

    def rerun(sigmas):
        yield linear(sigmas[0], D=1.0)

    first, second = (samplers.table(source="a test")(rerun) for _ in range(2))
    assert registry.REGISTRY["rerun"].make is second is not first


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"edm", "ablation"}))
def test_help_tells_the_options_of_the_levels(name):
    told = inspect.getdoc(REGISTRY[name].make)
    for word in ("steps: ", "sigma_min", "sigma_max", "rho", "discretization: ", "Raises ValueError", "TypeError"):
        assert word in told


def test_a_table_without_a_docstring_has_that_of_the_levels(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))

    def undocumented(sigmas):
        yield linear(sigmas[0], D=1.0)

    assert samplers.table(source="a test")(undocumented).__doc__.startswith("steps: ")


@pytest.mark.parametrize("module", ["plan", "preconditioning", "discrete", "samplers.levels", "samplers.ablation"])
def test_public_methods_have_docstrings(module):
    """Those that override one are told by it."""
    there = vars(sys.modules[f"engine.{module}"]).values()
    for kind in [c for c in there if inspect.isclass(c) and c.__module__ == f"engine.{module}"]:
        methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
        bare = [n for n in methods if not n.startswith("_") and inspect.getdoc(getattr(kind, n)) is None]
        assert not bare, kind


def test_numbers_of_numpy_are_python_s():
    """And so are hashed, compared and written to settings.json like these."""
    given = samplers.edm(steps=np.int64(7), sigma_max=np.float64(40), rho=np.int32(5), S_churn=np.float32(0.5))
    assert given == samplers.edm(steps=7, sigma_max=40.0, rho=5, S_churn=0.5)
    assert "np." not in repr(given)
    assert Plan(REGISTRY["langevin"].make(3, inner=np.int64(2)), EDM()).nfe == 6


def test_an_unknown_option_is_refused_by_the_sampler_s_name():
    allowed = "steps, sigma_min, sigma_max, rho, discretization, eta"
    with pytest.raises(TypeError, match=rf"^ddim\(\) got an unexpected keyword argument 'foo'; allowed: {allowed}$"):
        samplers.ddim(foo=1)


def sigma_as_it_comes(sigmas):
    for sigma in sigmas:
        yield linear(sigma, D=1.0)


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda sigmas: None, "what <lambda> yields is None; allowed: rows made by linear(...), one or more"),
        (lambda sigmas: iter(()), "what <lambda> yields is []; allowed: rows made by linear(...), one or more"),
        (lambda sigmas: [1.5], "what <lambda> yields is [1.5]; allowed: rows made by linear(...), one or more"),
        (sigma_as_it_comes, "row 4 (LINEAR): sigma is 0.0; allowed: above 0, as it consumes a network's output"),
    ],
)
def test_a_sampler_of_one_s_own_that_yields_no_table(generate, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Plan(samplers.TableSampler(generate, Levels(3)), EDM())


def test_the_table_in_the_documentation_is_the_list():
    from engine.cli.samplers import markdown_table

    assert markdown_table() in (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()


def test_rows_that_say_no_draw_have_noise_of_their_own():
    """The same noise at every step would add up to an image of nearly twice the deviation."""

    def rows(numbered):
        def my_ancestral(sigmas):
            for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
                up = sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
                down = (sigma_next**2 - up**2) ** 0.5
                yield linear(sigma, x=down / sigma, D=1 - down / sigma, std=up, draw=i if numbered else None)

        return TableSampler(my_ancestral, Levels(12))

    plans = [Plan(rows(numbered), EDM()) for numbered in (True, False)]
    drawn = [[row.draw for row in plan.rows if row.std] for plan in plans]
    assert drawn[0] == drawn[1] == list(range(11))
    assert plans[0].draws == plans[1].draws

    def mixed(sigmas):
        yield linear(2.0, x=1.0, std=1.0)
        yield linear(1.0, x=1.0, std=1.0, draw=0)
        yield linear(1.0, x=1.0, D=1.0)
        yield linear(0.5, x=1.0, std=1.0)

    assert [row.draw for row in Plan(TableSampler(mixed, Levels(4)), EDM()).rows[1:]] == [1, 0, 0, 2]
