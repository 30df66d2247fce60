"""Every sampler as its paper writes it: plain loops in torch, sharing nothing with the tables they are compared with.

Each takes D(x, sigma), the initial x of standard deviation sigma_0, the levels sigma_0 > ... > sigma_N = 0, and eps(i),
the i-th noise. Variance preserving papers are followed in their own variables: alpha = 1 / sqrt(1 + sigma^2),
x_vp = alpha x, noise level alpha sigma.
"""

import itertools
import math

import numpy as np
import torch


def edm(D, x, sigmas, eps, **options):
    return ablation(D, x, sigmas, eps, **options)


def ablation(D, x, sigmas, eps, solver="heun", schedule="linear", scaling="none", alpha=1.0, S_churn=0.0, S_tmin=0.0,
             S_tmax=math.inf, S_noise=1.0, betas=None, **_):  # fmt: skip
    """Algorithm 2 with equation 4 for the slope, derivatives of sigma(t) and s(t) by automatic differentiation."""

    def sigma_of(t):
        if schedule == "vp":
            return torch.expm1(betas[0] * t**2 / 2 + betas[1] * t).sqrt()
        return t.sqrt() if schedule == "ve" else t

    def time_of(sigma):
        if schedule == "vp":  # the positive root of beta_d t^2 / 2 + beta_min t = log(1 + sigma^2)
            c = torch.log1p(sigma**2)
            return 2 * c / (betas[1] + (betas[1] ** 2 + 2 * betas[0] * c).sqrt())
        return sigma**2 if schedule == "ve" else sigma

    def s_of(t):
        return (1 + sigma_of(t) ** 2) ** -0.5 if scaling == "vp" else t / t

    def slope(x, t):
        t = t.clone().requires_grad_()
        with torch.enable_grad():
            sigma, s = sigma_of(t), s_of(t)
            (sigma_dot,) = torch.autograd.grad(sigma, t, retain_graph=True)
            (s_dot,) = torch.autograd.grad(s, t)
        sigma, s = sigma.detach(), s.detach()
        score = (D(x / s, sigma) - x / s) / sigma**2
        return s_dot / s * x - s * sigma_dot * sigma * score

    steps = len(sigmas) - 1
    times = [*time_of(sigmas[:-1]), sigmas[-1]]
    x = x * (s_of(times[0]) if scaling == "vp" else 1)
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_tmin <= sigma_of(t) <= S_tmax else 0.0
        t_hat = time_of(sigma_of(t) * (1 + gamma))
        if gamma > 0:
            added = (sigma_of(t_hat) ** 2 - sigma_of(t) ** 2).sqrt()
            x = s_of(t_hat) / s_of(t) * x + added * s_of(t_hat) * S_noise * eps(i)
        h = t_next - t_hat
        d = slope(x, t_hat)
        if solver == "euler" or i == steps - 1:
            x = x + h * d
        else:
            d_prime = slope(x + alpha * h * d, t_hat + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x


def ddim(D, x, sigmas, eps, eta=0.0):
    """Equation 12, sigma of equation 16, in the variance preserving variables."""
    bars = 1 / (1 + sigmas**2)
    x = x * bars[0].sqrt()
    for i, (bar, bar_prev) in enumerate(itertools.pairwise(bars)):
        x_0 = D(x / bar.sqrt(), (1 / bar - 1).sqrt())
        eps_theta = (x - bar.sqrt() * x_0) / (1 - bar).sqrt()
        sigma = eta * ((1 - bar_prev) / (1 - bar)).sqrt() * (1 - bar / bar_prev).sqrt()
        x = bar_prev.sqrt() * x_0 + (1 - bar_prev - sigma**2).clip(min=0).sqrt() * eps_theta
        x = x + sigma * eps(i) if sigma > 0 else x
    return x


def ddpm(D, x, sigmas, eps):
    """Equations 6 and 7: the posterior q(x_{t-1} | x_t, x_0) at x_0 = D."""
    bars = 1 / (1 + sigmas**2)
    x = x * bars[0].sqrt()
    for i, (bar, bar_prev) in enumerate(itertools.pairwise(bars)):
        alpha = bar / bar_prev
        x_0 = D(x / bar.sqrt(), (1 / bar - 1).sqrt())
        mean = bar_prev.sqrt() * (1 - alpha) / (1 - bar) * x_0 + alpha.sqrt() * (1 - bar_prev) / (1 - bar) * x
        variance = (1 - bar_prev) / (1 - bar) * (1 - alpha)
        x = mean + variance.sqrt() * eps(i) if variance > 0 else mean
    return x


def euler_maruyama(D, x, sigmas, eps):
    """x + (sigma^2 - sigma_next^2) score + sqrt(sigma^2 - sigma_next^2) z; the mean alone in the last step."""
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        step = sigma**2 - sigma_next**2
        x = x + step * (D(x, sigma) - x) / sigma**2
        x = x + step.sqrt() * eps(i) if sigma_next > 0 else x
    return x


def predictor_corrector(D, x, sigmas, eps, snr=0.16):
    """Corrector: x + e score + sqrt(2 e) z, e = 2 (snr |z| / |score|)^2 with |z| / |score| = sigma; then predictor."""
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        e = 2 * (snr * sigma) ** 2
        x = x + e * (D(x, sigma) - x) / sigma**2 + (2 * e).sqrt() * eps(2 * i)
        step = sigma**2 - sigma_next**2
        x = x + step * (D(x, sigma) - x) / sigma**2
        x = x + step.sqrt() * eps(2 * i + 1) if sigma_next > 0 else x
    return x


def langevin(D, x, sigmas, eps, inner=5, epsilon=0.1):
    """x + a/2 score + sqrt(a) z with a = 2 epsilon sigma^2; the last evaluation denoises."""
    draw = 0
    for sigma in sigmas[:-1]:
        a = 2 * epsilon * sigma**2
        for _ in range(inner):
            denoised = D(x, sigma)
            x = x + a / 2 * (denoised - x) / sigma**2 + a.sqrt() * eps(draw)
            draw += 1
    return denoised


def _half_logs(sigmas):
    """(alpha, sigma_vp, lambda) of the variance preserving process at each level."""
    alpha = (1 + sigmas**2) ** -0.5
    return alpha, alpha * sigmas, -torch.log(sigmas)


def dpmpp_2m(D, x, sigmas, eps):
    """Algorithm 2, in the variance preserving variables; the step to sigma = 0 is its limit, D."""
    alpha, sigma, lam = _half_logs(sigmas)
    x, old, h_old = x * alpha[0], None, None
    for i in range(len(sigmas) - 2):
        h = lam[i + 1] - lam[i]
        new = D(x / alpha[i], sigmas[i])
        extrapolated = new if old is None else (1 + h / (2 * h_old)) * new - h / (2 * h_old) * old
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * extrapolated
        old, h_old = new, h
    return D(x / alpha[-2], sigmas[-2])


def dpmpp_2s(D, x, sigmas, eps, r=0.5):
    """Algorithm 1, in the variance preserving variables."""
    alpha, sigma, lam = _half_logs(sigmas)
    x = x * alpha[0]
    for i in range(len(sigmas) - 2):
        h = lam[i + 1] - lam[i]
        s = torch.exp(-(lam[i] + r * h))
        alpha_s = (1 + s**2) ** -0.5
        D_1 = D(x / alpha[i], sigmas[i])
        u = alpha_s * s / sigma[i] * x - alpha_s * torch.expm1(-r * h) * D_1
        mixed = (1 - 1 / (2 * r)) * D_1 + 1 / (2 * r) * D(u / alpha_s, s)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * mixed
    return D(x / alpha[-2], sigmas[-2])


def dpmpp_2m_sde(D, x, sigmas, eps, eta=1.0):
    """x e^-eta h + (1 - e^-(1 + eta) h) (D + h / (2 h_old) (D - D_old)) + sigma sqrt(1 - e^-2 eta h) z."""
    old, h_old = None, None
    for i in range(len(sigmas) - 2):
        h = torch.log(sigmas[i] / sigmas[i + 1])
        new = D(x, sigmas[i])
        tilted = new if old is None else new + h / (2 * h_old) * (new - old)
        x = sigmas[i + 1] / sigmas[i] * torch.exp(-eta * h) * x - torch.expm1(-(1 + eta) * h) * tilted
        x = x + sigmas[i + 1] * (-torch.expm1(-2 * eta * h)).sqrt() * eps(i)
        old, h_old = new, h
    return D(x, sigmas[-2])


def unipc(D, x, sigmas, eps):
    """Algorithms 5 and 8: predictor of order min(2, i), corrector of the same order, coefficients by linear algebra."""
    lam = -torch.log(sigmas)

    def rho(hh, ratios):
        """Solves R rho = b with B(h) = e^hh - 1."""
        b, phi, factorial = [], torch.expm1(hh) / hh - 1, 1.0
        for k in range(1, len(ratios) + 1):
            b.append(phi * factorial / torch.expm1(hh))
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        R = torch.stack([torch.tensor(ratios, dtype=torch.float64) ** k for k in range(len(ratios))])
        return torch.linalg.solve(R, torch.stack(b))

    outputs = [D(x, sigmas[0])]
    for i in range(len(sigmas) - 2):
        h = lam[i + 1] - lam[i]
        base = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * outputs[i]
        B = torch.expm1(-h)
        if i == 0:
            predicted, differences, ratios = base, [], []
        else:
            ratios = [((lam[i - 1] - lam[i]) / h).item()]
            differences = [(outputs[i - 1] - outputs[i]) / ratios[0]]
            predicted = base - B * 0.5 * differences[0]
        outputs.append(D(predicted, sigmas[i + 1]))
        weights = rho(-h, [*ratios, 1.0]) if i > 0 else torch.tensor([0.5], dtype=torch.float64)
        differences.append(outputs[i + 1] - outputs[i])
        x = base - B * sum(w * d for w, d in zip(weights, differences, strict=True))
    return outputs[-1]


def lms(D, x, sigmas, eps, order=4):
    """Adams-Bashforth coefficients by Gauss-Legendre quadrature, exact for these polynomials."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    slopes = []
    for i in range(len(sigmas) - 1):
        slopes.insert(0, (x - D(x, sigmas[i])) / sigmas[i])
        used = [sigmas[i - j].item() for j in range(min(i + 1, order))]
        a, b = sigmas[i].item(), sigmas[i + 1].item()
        at = (b - a) / 2 * nodes + (a + b) / 2
        for j, (node, d) in enumerate(zip(used, slopes, strict=False)):
            basis = np.prod(
                [(at - other) / (node - other) for k, other in enumerate(used) if k != j] or [at * 0 + 1], 0
            )
            x = x + (b - a) / 2 * float(np.sum(weights * basis)) * d
    return x
