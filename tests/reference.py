"""The equations once more, in float64 NumPy: the tests' independent oracle.

Written from the paper and its protocol alone; nothing here comes from `eir_jax`.
"""

import numpy as np


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def softmax(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def instance_losses(bank, v, w, index, tau):
    """Eq. 1-3: IR, IRaug to the letter, IRaug as a sum of two terms."""
    p = softmax(v @ bank.T / tau)
    q = softmax(w @ bank.T / tau)
    own = np.arange(len(v)), index
    return {
        "ir": -np.log(p[own]).mean(),
        "iraug": -np.log(p[own] + q[own]).mean(),
        "iraug_sum": (-np.log(p[own]) - np.log(q[own])).mean(),
    }


def intra(
    bank,
    v,
    w,
    tau,
    *,
    target_temperature=0.0,
    symmetric=False,
    p_from=None,
    left_out=None,
):
    """Eq. 4-6, row by row.

    `p_from`: the view that p is computed from, where it is held fixed; `left_out`: of
    each instance the row that takes no part.
    """
    divergences = []
    for i in range(len(v)):
        rows = bank if left_out is None else np.delete(bank, left_out[i], axis=0)
        target = (v if p_from is None else p_from)[i]
        p = softmax((target @ rows.T / (target_temperature or tau))[None])
        q = softmax((w[i] @ rows.T / tau)[None])
        forward, backward = (p * np.log(p / q)).sum(), (q * np.log(q / p)).sum()
        divergences.append((forward + backward) / 2 if symmetric else forward)
    return np.mean(divergences)


def mixed_target(v, partner, ratio):
    """Eq. 8."""
    return unit(ratio[:, None] * v + (1 - ratio[:, None]) * v[partner])


def inter(mixed, target, tau, *, literal=False):
    """Eq. 9 with the batch as negatives."""
    own = np.diag(softmax(target @ mixed.T / tau))
    return -np.log(own.sum()) if literal else -np.log(own).mean()


def inter_bank(mixed, target, bank, index, partner, tau, *, literal=False):
    """Eq. 9 with the bank's other rows as negatives."""
    own = []
    for k in range(len(mixed)):
        positive = np.exp(target[k] @ mixed[k] / tau)
        others = [
            np.exp(target[k] @ bank[j] / tau)
            for j in range(len(bank))
            if j not in (index[k], index[partner[k]])
        ]
        own.append(positive / (positive + np.sum(others)))
    return -np.log(np.sum(own)) if literal else -np.log(own).mean()


def isif(x, rows, tau):
    """ISIF as released; `x` are both views, one below the other, `rows` a copy."""
    count, losses = len(x), []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        p = softmax((x[i] @ rows[others].T / tau)[None])[0]
        pair = others.index((i + count // 2) % count)
        losses.append(-np.log(p[pair]) - np.log(1 - np.delete(p, pair)).sum())
    return np.mean(losses)


def isif_augmented(x, rows, tau, partner, interpolation, extrapolation):
    """The same with positives beyond the other view, and mixed negatives besides."""
    count, losses = len(x), []
    pair = lambda i: (i + count // 2) % count  # noqa: E731
    mixed = unit(interpolation * rows + (1 - interpolation) * rows[partner])
    for i in range(count):
        own = {i, pair(i)}
        apart = rows[pair(i)] - rows[i]
        positive = unit(rows[pair(i)] + extrapolation * apart)
        negatives = [rows[j] for j in range(count) if j not in own]
        negatives += [
            mixed[j] for j in range(count) if j not in own and partner[j] not in own
        ]
        p = softmax((x[i] @ np.stack([positive, *negatives]).T / tau)[None])[0]
        losses.append(-np.log(p[0]) - np.log(1 - p[1:]).sum())
    return np.mean(losses)


def nce(scores, z, num_examples):
    """Wu et al. (2018): the own score first, then those of the rows drawn."""
    noise = (scores.shape[1] - 1) / num_examples
    p = np.exp(scores) / z
    own = np.log(p[:, 0] / (p[:, 0] + noise))
    return -(own + np.log(noise / (p[:, 1:] + noise)).sum(1)).mean()


def nt_xent(x, tau):
    """SimCLR's loss; `x` are both views, one below the other."""
    count, losses = len(x), []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        p = softmax((x[i] @ x[others].T / tau)[None])[0]
        losses.append(-np.log(p[others.index((i + count // 2) % count)]))
    return np.mean(losses)


def cross_entropy(logits, label):
    return -np.log(softmax(logits)[np.arange(len(label)), label]).mean()


def info_nce(q, k, queue, tau):
    """MoCo's: each query's key against all keys of the queue."""
    own = np.exp((q * k).sum(1) / tau)
    return -np.log(own / (own + np.exp(q @ queue.T / tau).sum(1))).mean()


def divergence(rows_of, v, w, tau_p, tau_q):
    """KL(p || q) over the rows that `rows_of(i)` gives instance i."""
    found = []
    for i in range(len(v)):
        p = softmax((v[i] @ rows_of(i).T / tau_p)[None])
        q = softmax((w[i] @ rows_of(i).T / tau_q)[None])
        found.append((p * np.log(p / q)).sum())
    return np.mean(found)


def gradient(function, x, epsilon=1e-6):
    """Central finite differences of a scalar function, in float64."""
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += epsilon
        behind[place] -= epsilon
        out[place] = (function(ahead) - function(behind)) / (2 * epsilon)
    return out
